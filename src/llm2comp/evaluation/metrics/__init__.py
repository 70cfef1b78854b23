"""Metrics of embeddings that need no labels."""
