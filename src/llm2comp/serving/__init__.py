"""The HTTP server of encoders: requests of many clients share the batches of a model."""
