"""Read the weights, configuration and tokenizer of a language model from files."""
