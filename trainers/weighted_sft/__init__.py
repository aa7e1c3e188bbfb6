"""Supervised fine-tuning with a weight for each row or token."""
