"""Recipes: Python functions that say how a model is trained."""
