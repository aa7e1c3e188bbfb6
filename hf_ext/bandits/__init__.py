"""Gaussian bandits with side information: what to measure next where one measurement tells of several things."""

from hf_ext.method import Method

METHODS = (
    Method(
        name="selection",
        summary="the best of several checkpoints or adapters on paired held-out rows, with a confidence",
        commands=("eval select",),
    ),
)
