"""Rows that a stage draws once, keeps as Arrow files, and reads from there."""
