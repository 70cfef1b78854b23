"""Tasks of mteb whose data come from packages. One file per task, one line in the registry."""
