"""Fewer memory tokens: in training, and of an encoder that was trained for it."""
