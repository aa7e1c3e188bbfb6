"""Curation on many machines: Ray Data, and a step for datatrove."""
