"""Text for training and evaluation: packaged sources, local files, hub datasets."""
