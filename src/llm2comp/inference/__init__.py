"""Use an encoder: load, encode, search."""
