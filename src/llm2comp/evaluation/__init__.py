"""Scores of encoders: tasks, suites, kept results, training-free baselines."""
