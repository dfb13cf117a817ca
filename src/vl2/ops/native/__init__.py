"""Products with weights, attention and small operations in C, compiled for the machine."""
