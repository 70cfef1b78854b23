"""One HTML file about a run, or about several encoders side by side."""
