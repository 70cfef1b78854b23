"""Studies: objective x seed x setting at an equal budget, each cell a run of its own."""
