"""Look inside encoders: measures, figures, reports."""
