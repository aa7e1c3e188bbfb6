"""Gaussian bandits with side information: what to measure next where one measurement tells of several things."""
