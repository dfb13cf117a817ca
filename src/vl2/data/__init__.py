"""Training data: where records come from and how they become batches."""
