"""The k memory vectors of a text as an embedding of their own, for late interaction."""
