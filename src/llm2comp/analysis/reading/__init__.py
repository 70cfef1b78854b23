"""What a memory holds: read again by the frozen language model, and measured over lengths."""
