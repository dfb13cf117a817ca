"""Makers: pictures of print, forms, tables, charts, screens and shapes with exact ground truth.

Each kind is one file with one function `make(rng, world) -> Made`. No line here knows a model.
"""
