"""What an encoder folder holds beside its weights: its layout, its card and its reference."""
