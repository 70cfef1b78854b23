"""Objectives of stage 1. Each has its own file and one line in the registry."""
