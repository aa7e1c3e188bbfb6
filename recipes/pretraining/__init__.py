"""Recipes of pretraining: DCLM's scales, and two that two processor cores bear."""
