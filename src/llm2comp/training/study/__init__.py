"""Studies: settings and seeds compared at an equal budget."""
