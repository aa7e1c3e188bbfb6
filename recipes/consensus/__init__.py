"""Recipes of consensus retraining."""
