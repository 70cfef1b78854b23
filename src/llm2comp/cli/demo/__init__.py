"""The command that shows everything in fifteen minutes, and the sizes that fit a machine."""
