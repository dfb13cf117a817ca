"""The model's parts as single-device modules: no ranks, no files."""
