"""Audit a randomised-response callable: does what it emits keep the epsilon that it states?"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from hf_ext.data.relabeling.columns import class_column
from hf_ext.data.relabeling.keys import WORD, keep_threshold
from hf_ext.data.relabeling.randomize import RandomizedResponse

SURE = 4.5  # standard errors: by chance once in 150,000 audits


@dataclass(frozen=True)
class AuditReport:
    """
    What `n` draws of a callable show.

    Args:
        epsilon (`float`):
            Nats stated.
        realised_epsilon (`float`):
            Nats of the integer thresholds themselves: exact, never above `epsilon`.
        lower_epsilon (`float`):
            Nats that the draws prove to be spent at least (4.5 standard errors below the estimate).
        n (`int`):
            Draws.
        counts (array of shape `(num_classes, num_classes)`):
            Draws by true and emitted class.
        chi_square (`float`), p_value (`float`):
            Of the counts against T. A p-value below 1e-4 means another channel than the one stated.
        attack_success (`float`), attack_bound (`float`):
            How often the emitted class is the true one, and $e^\\varepsilon / (e^\\varepsilon + K - 1)$.
        repeated (`bool`):
            Whether a second pass, in other batches, gave the same labels.
    """

    epsilon: float
    realised_epsilon: float
    lower_epsilon: float
    n: int
    counts: NDArray[np.int64]
    chi_square: float
    p_value: float
    attack_success: float
    attack_bound: float
    repeated: bool

    @property
    def passed(self) -> bool:
        """Whether nothing speaks against the stated epsilon."""
        slack = SURE * math.sqrt(self.attack_bound * (1 - self.attack_bound) / self.n)
        exact = self.realised_epsilon <= self.epsilon and self.lower_epsilon <= self.epsilon
        return exact and self.repeated and self.p_value > 1e-4 and self.attack_success <= self.attack_bound + slack


def audit_channel(callable: RandomizedResponse, n: int = 1_000_000) -> AuditReport:
    """
    Draw `n` noisy labels of known true ones and hold them against the stated channel.

    Args:
        callable ([`RandomizedResponse`]):
            With its key; plain, without a prior. Its ids are made up, so that no released draw is repeated.
        n (`int`, *optional*, defaults to 1,000,000):
            Draws, spread evenly over the true classes.

    Returns:
        [`AuditReport`]: `passed` sums it up.

    Raises:
        TypeError: if it is no [`RandomizedResponse`].
        ValueError: if it has a prior, or `after`.
    """
    if not isinstance(callable, RandomizedResponse):
        raise TypeError(f"audit_channel audits a RandomizedResponse, got {type(callable).__name__}.")
    if callable.prior_column is not None or callable.after is not None:
        raise ValueError("audit_channel audits plain randomised response: leave prior_column and after out.")
    k = callable.num_classes
    true = np.arange(n, dtype=np.int64) % k
    noisy = _emitted(callable, true, 100_000)
    first = min(n, 10_000)
    repeated = bool((_emitted(callable, true[:first], 777) == noisy[:first]).all())
    counts = np.bincount(true * k + noisy, minlength=k * k).reshape(k, k)
    expected = callable.channel.matrix() * counts.sum(axis=1, keepdims=True)
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    freedom = k * (k - 1)
    p_value = float(torch.special.gammaincc(torch.tensor(freedom / 2).double(), torch.tensor(chi_square / 2).double()))
    num_kept = int(np.trace(counts))
    return AuditReport(
        epsilon=callable.epsilon,
        realised_epsilon=realised_epsilon(callable.epsilon, k),
        lower_epsilon=_lower_bound(num_kept, n - num_kept, k),
        n=n,
        counts=counts,
        chi_square=chi_square,
        p_value=p_value,
        attack_success=num_kept / n,
        attack_bound=callable.channel.p,
        repeated=repeated,
    )


def realised_epsilon(epsilon: float, num_classes: int) -> float:
    """The largest log-ratio that the integer thresholds of a channel can show, in nats, rounded down to a float."""
    threshold = keep_threshold(epsilon, num_classes)
    rarest = WORD // num_classes
    value = math.log1p(threshold * WORD / ((WORD - threshold) * rarest))
    return min(value, epsilon)  # the integers do not exceed it; the logarithm's last digit may


def _emitted(callable: RandomizedResponse, true: NDArray[np.int64], batch_size: int) -> NDArray[np.int64]:
    parts = []
    for start in range(0, len(true), batch_size):
        ids = [f"hf-ext audit {i}" for i in range(start, min(start + batch_size, len(true)))]
        batch = callable({callable.label: true[start : start + batch_size], callable.id_column: ids})
        parts.append(class_column(batch, callable.label, callable.num_classes).flat)
    return np.concatenate(parts)


def _lower_bound(num_kept: int, num_changed: int, k: int) -> float:
    """The log-odds of being kept against one other class, less 4.5 standard errors of it."""
    if not num_kept:
        return -math.inf
    num_changed = max(num_changed, 1)
    return math.log(num_kept) - math.log(num_changed / (k - 1)) - SURE * math.sqrt(1 / num_kept + 1 / num_changed)
