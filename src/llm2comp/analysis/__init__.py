"""Analysis of encoders: measures, figures and reports."""
