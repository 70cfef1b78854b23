"""Text for training and evaluation: packaged sources, local files and hub datasets."""
