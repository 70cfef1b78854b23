"""Folders that sentence-transformers loads as a `MultiVectorEncoder`."""
