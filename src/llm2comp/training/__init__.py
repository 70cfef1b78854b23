"""Training: recipes, their stages, and studies of many runs."""
