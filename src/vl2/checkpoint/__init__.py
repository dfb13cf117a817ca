"""Checkpoints in the released layout: load, save, convert, and what a model costs in memory."""
