"""Encoders and what they are made of: backbone, memory tokens, adapter, folder."""
