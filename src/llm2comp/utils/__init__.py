"""Helpers for all other parts: files, YAML, hardware, progress bars, tables."""
