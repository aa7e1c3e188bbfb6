"""
L-BFGS over several restarts at once: every tensor has the restarts first, each has its own pairs and its own step.

Reference: Nocedal and Wright 2006, *Numerical Optimization*, algorithm 7.4 (two loops); Lewis and Overton 2013,
*Nonsmooth optimization via quasi-Newton methods*, algorithm 4.6 (the bracket); Hager and Zhang 2005, section 4.1
(slopes in place of values near the optimum).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

HISTORY = 10  # pairs
MAX_EVALUATIONS = 12  # of one line search
_DECREASE = 1e-4  # share of the promised decrease that a step must bring
_SLOPE = 0.9  # share of the slope that may remain
_ROUNDING = 1e-13  # of a value

Evaluate: TypeAlias = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Value `(A,)` and gradient `(A, P)` at points `(A, P)`; the second argument numbers the A restarts of the group."""


@dataclass(frozen=True)
class Curvature:
    """
    Pairs of steps and changes of the gradient, the newest last.

    Args:
        steps, changes (`torch.Tensor` of shape `(R, HISTORY, P)`):
            Zero where there is no pair yet.
        inverse (`torch.Tensor` of shape `(R, HISTORY)`):
            One over their product, 0 where there is no pair.
    """

    steps: Tensor
    changes: Tensor
    inverse: Tensor

    @classmethod
    def empty(cls, restarts: int, size: int, like: Tensor) -> Curvature:
        """No pair, for points `(restarts, size)`."""
        zeros = like.new_zeros(restarts, HISTORY, size)
        return cls(zeros, zeros.clone(), like.new_zeros(restarts, HISTORY))

    def direction(self, gradient: Tensor, index: Tensor, metric: Tensor) -> Tensor:
        """
        Quasi-Newton direction of some restarts; downhill.

        Args:
            gradient (`torch.Tensor` of shape `(A, P)`):
                Where they are.
            index (`torch.Tensor` of shape `(A,)`):
                Which restarts.
            metric (`torch.Tensor` of shape `(A, P)`):
                Positive: roughly the curvature in each coordinate, up to a factor. The loops start at its inverse.
        """
        inverse = self.inverse[index]
        slope = gradient / metric
        if not bool((inverse > 0).any()):
            return -slope
        result = gradient.clone()
        steps = self.steps[index]
        changes = self.changes[index]
        shares = torch.zeros_like(inverse)
        for j in reversed(range(HISTORY)):
            shares[:, j] = inverse[:, j] * (steps[:, j] * result).sum(1)
            result -= shares[:, j, None] * changes[:, j]
        newest = inverse[:, -1]
        scale = 1 / (newest * (changes[:, -1].square() / metric).sum(1))
        result *= torch.where(newest > 0, scale, 1.0)[:, None] / metric
        for j in range(HISTORY):
            correction = inverse[:, j] * (changes[:, j] * result).sum(1)
            result += (shares[:, j] - correction)[:, None] * steps[:, j]
        # Rounding, or pairs of an objective that has moved, may turn the direction uphill: then the slope itself.
        uphill = (result * gradient).sum(1) <= 0
        return -torch.where(uphill[:, None], slope, result)

    def add(self, index: Tensor, step: Tensor, change: Tensor) -> None:
        """Take up a pair of each of the restarts `index`; one without positive curvature is left out."""
        product = (step * change).sum(1)
        usable = product > 1e-12 * step.norm(dim=1) * change.norm(dim=1)
        chosen = index[usable]
        for pairs, latest in ((self.steps, step[usable]), (self.changes, change[usable])):
            pairs[chosen] = torch.cat([pairs[chosen, 1:], latest[:, None]], dim=1)
        self.inverse[chosen] = torch.cat([self.inverse[chosen, 1:], 1 / product[usable, None]], dim=1)

    def forget(self, index: Tensor) -> None:
        """Drop the pairs of some restarts."""
        self.inverse[index] = 0
        self.steps[index] = 0
        self.changes[index] = 0

    def take(self, index: Tensor) -> Curvature:
        """The pairs of some restarts."""
        return Curvature(self.steps[index], self.changes[index], self.inverse[index])


class Step(NamedTuple):
    """
    Where a step ended.

    Args:
        point, gradient (`torch.Tensor` of shape `(A, P)`), value (`torch.Tensor` of shape `(A,)`):
            There.
        evaluations (`torch.Tensor` of shape `(A,)`):
            How many the line search took.
        moved (`torch.Tensor` of shape `(A,)`):
            Whether a decrease was possible.
    """

    point: Tensor
    value: Tensor
    gradient: Tensor
    evaluations: Tensor
    moved: Tensor


def line_search(evaluate: Evaluate, point: Tensor, value: Tensor, gradient: Tensor, direction: Tensor) -> Step:
    """
    Step along a downhill direction until the value has fallen enough and the slope has flattened (weak Wolfe).

    A restart whose step is found costs nothing while others still look.

    Args:
        evaluate (`Callable`):
            See `Evaluate`.
        point, gradient, direction (`torch.Tensor` of shape `(A, P)`), value (`torch.Tensor` of shape `(A,)`):
            Where to start.

    Returns:
        [`Step`]: where no step decreases the value, the starting point.
    """
    slope = (direction * gradient).sum(1)
    length = torch.ones_like(value)
    lowest = torch.zeros_like(value)  # the longest step that was too short, and the shortest that was too long
    highest = torch.full_like(value, math.inf)
    ends = [point.clone(), value.clone(), gradient.clone()]
    evaluations = torch.zeros_like(value)
    moved = torch.zeros_like(value, dtype=torch.bool)
    running = slope < 0
    slack = _ROUNDING * value.abs()
    for _ in range(MAX_EVALUATIONS):
        index = running.nonzero()[:, 0]
        if not len(index):
            break
        step = length[index]
        trial = point[index] + step[:, None] * direction[index]
        trial_value, trial_gradient = evaluate(trial, index)
        evaluations[index] += 1
        trial_slope = (trial_gradient * direction[index]).sum(1)
        falls = trial_value <= value[index] + _DECREASE * step * slope[index]
        # Near the optimum values differ by less than float64 tells, and the slopes say whether the parabola falls.
        level = trial_value <= value[index] + slack[index]
        falls |= level & (trial_slope <= (2 * _DECREASE - 1) * slope[index])
        falls &= trial_gradient.isfinite().all(1)  # a NaN value does not fall
        is_flat = trial_slope >= _SLOPE * slope[index]
        accepted = index[falls]
        for end, trial_end in zip(ends, (trial, trial_value, trial_gradient), strict=True):
            end[accepted] = trial_end[falls]
        moved[accepted] = True
        lowest[accepted] = step[falls]
        too_long = index[~falls]
        highest[too_long] = step[~falls]
        # The parabola through value and slope at the start and the value here; a bisection where there is no such.
        drop = trial_value - value[index] - step * slope[index]
        parabola = torch.where(drop > 0, -0.5 * slope[index] * step.square() / drop, 0.0)
        bracketed = highest[index].isfinite()
        low = lowest[index]
        span = torch.where(bracketed, highest[index] - low, 0.0)
        inside = torch.clamp(parabola.nan_to_num(0.0), low + 0.1 * span, low + 0.5 * span)
        length[index] = torch.where(bracketed, inside, 2 * step)
        running[index] = ~(falls & is_flat)
    return Step(ends[0], ends[1], ends[2], evaluations, moved)
