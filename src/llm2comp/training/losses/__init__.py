"""The losses of UCL and SCL, all of sentence-transformers."""
