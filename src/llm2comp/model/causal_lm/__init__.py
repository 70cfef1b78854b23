"""A causal language model: its parts, its dropout, and the checks that it must pass."""
