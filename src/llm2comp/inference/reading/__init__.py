"""Memory that is read again: the frozen language model goes on from it, and judges what it says."""
