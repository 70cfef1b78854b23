"""Measures of embeddings that need no labels."""
