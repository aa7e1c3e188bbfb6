"""What a fit tells of itself: each iteration, and its end."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from hf_ext.moe.parameters import MixtureParameters


@dataclass(frozen=True)
class FitLog:
    """
    What an iteration shows, of the best restart: its values are those before the iteration's M-step.

    Args:
        iteration (`int`):
            Iterations so far.
        objective, nll (`float`):
            Nats a row with and without the penalty.
        held_out_nll (`float` or `None`):
            Least nats a row on the held-out rows so far.
        passes (`float`):
            Of all restarts, with the set-up.
        seconds (`float`):
            Since this process began the fit.
        n_i (`list[float]`):
            Rows that each expert handles, weighted.
        running (`int`):
            Restarts that go on.
        reseeds (`int`):
            Re-seeded experts so far, of all restarts.
    """

    iteration: int
    objective: float
    nll: float
    held_out_nll: float | None
    passes: float
    seconds: float
    n_i: list[float]
    running: int
    reseeds: int


@dataclass(frozen=True)
class EMResult:
    """
    The best restart of a fit.

    Args:
        parameters ([`MixtureParameters`]):
            On raw features.
        objective, nll (`float`):
            Nats a row on the training rows, with and without the penalty.
        held_out_nll (`float` or `None`):
            Nats a row on the held-out rows.
        iterations (`int`), passes (`float`), seconds (`float`):
            Of the whole fit, all restarts and the set-up.
        ridge (`float`):
            The penalty of this restart.
        restart (`int`), stop_reason (`str`), reseeds (`int`):
            Its number, why it stopped (`"tol"`, `"m_step"`, `"held_out"`, `"max_iterations"`, `"separable"`,
            `"not_finite"`, `"running"`), and its re-seeded experts.
        shares (`torch.Tensor` of shape `(k,)`):
            $n_i / n$ of every expert, pruned ones too.
        dead_experts (`list[int]`):
            Experts that handle too few rows to be fitted.
    """

    parameters: MixtureParameters
    objective: float
    nll: float
    held_out_nll: float | None
    iterations: int
    passes: float
    seconds: float
    ridge: float
    restart: int
    stop_reason: str
    reseeds: int
    shares: Tensor
    dead_experts: list[int]
