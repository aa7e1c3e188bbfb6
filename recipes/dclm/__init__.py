"""Recipes of DCLM's game: one scale, a model a treatment of the data."""
