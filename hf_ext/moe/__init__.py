"""Mixtures of experts fitted by EM: the mathematics, on float64 tensors."""
