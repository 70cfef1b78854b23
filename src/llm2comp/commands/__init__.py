"""The commands: each parses its arguments, calls the package and prints.

Imports of torch and of what builds on it stand inside the commands, so that
``--help`` answers at once.
"""
