"""Recipes of mixtures of experts by EM."""
