"""Brute force in float64, and data with a known shape."""

import numpy as np


def unit(rows):
    rows = np.asarray(rows, np.float64)
    return rows / np.sqrt((rows**2).sum(1, keepdims=True))


def brute_force(rows, k, center, theta0=None):
    """Algorithm 1 as it is written: every score of every pick, the first of equals, without replacement."""
    rows, theta = np.asarray(rows, np.float64), np.array(center if theta0 is None else theta0, np.float64)
    left, picks = np.ones(len(rows), bool), []
    for _ in range(k):
        scores = (rows * theta).sum(1)
        picks.append(int(np.argmax(np.where(left, scores, -np.inf))))
        left[picks[-1]] = False
        theta = theta + center - rows[picks[-1]]
    return picks


def cloud(n=400, d=12, seed=0, shift=0.3):
    """Rows around a point off the origin, of a falling spectrum."""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((n, d)) / np.sqrt(1 + np.arange(d)) + shift).astype(np.float32)
