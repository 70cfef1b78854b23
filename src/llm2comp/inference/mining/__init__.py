"""Hard negatives: texts that an encoder ranks high for a query that they do not answer."""
