"""Training stages. Each takes a folder and makes a folder."""
