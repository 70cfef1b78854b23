"""The forms in which people have their rows: layouts of columns, and files in several parts."""
