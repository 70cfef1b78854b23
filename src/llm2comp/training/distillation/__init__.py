"""Stage 3 learns from a teacher: the vectors of an encoder or the scores of a cross-encoder."""
