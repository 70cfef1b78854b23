"""mteb tasks whose data comes from packages: one file per task, one line in the registry."""
