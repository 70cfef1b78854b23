"""A report to look at: one HTML file of a run, or of several models side by side."""
