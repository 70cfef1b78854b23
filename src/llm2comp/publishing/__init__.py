"""Publish an encoder folder on the Hugging Face hub: checks, the card with scores, the upload."""
