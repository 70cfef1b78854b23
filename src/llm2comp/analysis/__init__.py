"""See inside an encoder: how its vectors use their space, and what its memory tokens say."""
