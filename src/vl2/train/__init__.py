"""Training on one process."""
