"""Products with quantised weights in C, compiled for the machine that runs them."""
