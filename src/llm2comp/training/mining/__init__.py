"""Hard negatives that are mined again while stage 3 trains."""
