"""An index of texts that lasts: a folder that is added to, changed and searched."""
