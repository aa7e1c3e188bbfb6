"""The schedule of the learning rate in DCLM's runs."""

from __future__ import annotations

import math


def warmup_cosine(step: int, *, num_warmup_steps: int, num_steps: int, end_ratio: float) -> float:
    r"""
    Factor of the learning rate in a step: a linear warm-up, then half a cosine down to `end_ratio`.

    $$f_s = \frac{s+1}{w} \;(s < w),\quad f_s = r + \frac{1-r}{2}\Big(1 + \cos\frac{\pi (s-w)}{S-w}\Big) \;(s \ge w)$$

    The host's own warm-up begins at a rate of 0, so that its first step trains nothing; this one does not.

    Args:
        step (`int`):
            Optimiser steps taken so far, $s$ from 0.
        num_warmup_steps, num_steps (`int`):
            $w$ and $S$.
        end_ratio (`float`):
            $r$, the last learning rate over the largest.

    Reference: the training code of Li et al. 2024, *DataComp-LM* (arXiv 2406.11794).
    """
    if step < num_warmup_steps:
        return (step + 1) / num_warmup_steps
    progress = min(1.0, (step - num_warmup_steps) / max(1, num_steps - num_warmup_steps))
    return end_ratio + (1 - end_ratio) * 0.5 * (1 + math.cos(math.pi * progress))
