"""How one model runs on many devices, or in less memory; the model files know nothing of it."""
