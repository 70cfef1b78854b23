"""Training stages: each takes a folder and makes a folder; ``chain`` runs a recipe's."""
