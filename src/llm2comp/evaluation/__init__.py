"""Scores of encoders: tasks, suites, stored results and training-free baselines."""
