"""Text for training and evaluation: packaged sources, local files, datasets of the hub."""
