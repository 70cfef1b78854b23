"""Many files of texts into as many files of vectors, on one machine or on a cluster."""
