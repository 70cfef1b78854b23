"""Pretext objectives. One file per objective, one line in the registry."""
