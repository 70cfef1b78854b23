"""Tasks for choosing settings. None of them is a test set."""
