"""Score encoders on offline mteb tasks, and put the scores into tables."""
