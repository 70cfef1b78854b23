"""What is seen of a run while it trains: its log, its progress and held-out measurements."""
