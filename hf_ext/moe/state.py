"""What a fit is at any moment: tensors, so that a checkpoint holds it and a resumed fit goes on to the same bits."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from hf_ext.moe.lbfgs import Curvature

EM = 0  # what a restart does next
JOINT = 1
GRADIENT = 2
RUNNING = 0
TOL, M_STEP, HELD_OUT, MOST_ITERATIONS, SEPARABLE, NOT_FINITE = range(1, 7)
STOP_REASONS = ("running", "tol", "m_step", "held_out", "max_iterations", "separable", "not_finite")


@dataclass
class FitState:
    """
    The state of a fit of R restarts; float64 unless said otherwise.

    Args:
        point, valued_point (`torch.Tensor` of shape `(R, P)`):
            Coordinates, and the last ones of which the objective is known: those before an M-step.
        objective (`torch.Tensor` of shape `(R,)`):
            At `valued_point`, in nats a row.
        limit (`torch.Tensor` of shape `(R,)`):
            What the next value of EM must not exceed: the objective, or infinity after a re-seeding.
        gradient (`torch.Tensor` of shape `(R, P)`):
            In joint L-BFGS that at `point`.
        steps, changes (`torch.Tensor` of shape `(R, HISTORY, size)`):
            Curvature pairs, of linear experts' EM in the gate's coordinates alone; `inverse`, of shape `(R, HISTORY)`,
            is one over their products.
        phase, stop, strikes, stalled, reseeds, since_best, restart (`torch.Tensor` of shape `(R,)`, int64):
            What comes next; why it stopped; rises of the objective in a row; iterations in a row that brought less
            than `tol`; re-seeded experts; iterations since the best held-out value; number of the restart.
        passes, ridge, held_out (`torch.Tensor` of shape `(R,)`):
            Passes so far, penalty, best value on held-out rows.
        shares (`torch.Tensor` of shape `(R, k)`):
            $n_i / n$ at the last look.
        best_point (`torch.Tensor` of shape `(R, P)`):
            Where the held-out rows were most likely.
        iteration, halvings, halved (`torch.Tensor`, int64 scalars):
            Iterations so far; how often half of the restarts were given up; whether that is over.
        setup_passes, dropped_passes (`torch.Tensor`, scalars):
            Of the Gram matrix and the starts; of restarts that were given up.
    """

    point: Tensor
    valued_point: Tensor
    objective: Tensor
    limit: Tensor
    gradient: Tensor
    steps: Tensor
    changes: Tensor
    inverse: Tensor
    phase: Tensor
    stop: Tensor
    strikes: Tensor
    stalled: Tensor
    reseeds: Tensor
    since_best: Tensor
    restart: Tensor
    passes: Tensor
    ridge: Tensor
    held_out: Tensor
    shares: Tensor
    best_point: Tensor
    iteration: Tensor
    halvings: Tensor
    halved: Tensor
    setup_passes: Tensor
    dropped_passes: Tensor

    @classmethod
    def beginning(
        cls, point: Tensor, phase: Tensor, ridge: float, curvature_size: int, num_experts: int, setup_passes: float
    ) -> FitState:
        """The state before the first iteration, at coordinates `(R, P)`."""
        restarts = len(point)
        zeros = point.new_zeros(restarts)
        counts = torch.zeros(restarts, dtype=torch.int64, device=point.device)
        curvature = Curvature.empty(restarts, curvature_size, point)
        infinity = torch.full_like(zeros, float("inf"))
        return cls(
            point=point,
            valued_point=point.clone(),
            objective=infinity,
            limit=infinity.clone(),
            gradient=torch.zeros_like(point),
            steps=curvature.steps,
            changes=curvature.changes,
            inverse=curvature.inverse,
            phase=phase,
            stop=counts.clone(),
            strikes=counts.clone(),
            stalled=counts.clone(),
            reseeds=counts.clone(),
            since_best=counts.clone(),
            restart=torch.arange(restarts, device=point.device),
            passes=zeros.clone(),
            ridge=torch.full_like(zeros, ridge),
            held_out=infinity.clone(),
            shares=point.new_zeros(restarts, num_experts),
            best_point=point.clone(),
            iteration=torch.zeros((), dtype=torch.int64),
            halvings=torch.zeros((), dtype=torch.int64),
            halved=torch.zeros((), dtype=torch.int64),
            setup_passes=torch.tensor(setup_passes, dtype=torch.float64),
            dropped_passes=torch.zeros((), dtype=torch.float64),
        )

    @property
    def curvature(self) -> Curvature:
        """The pairs: a view, which `add` and `forget` change in place."""
        return Curvature(self.steps, self.changes, self.inverse)

    def take(self, index: Tensor) -> None:
        """Go on with some of the restarts, in this order; a number may come twice."""
        for field in fields(self):
            values = getattr(self, field.name)
            if values.ndim:
                setattr(self, field.name, values[index].clone())

    def running(self, *phases: int) -> Tensor:
        """Numbers of the restarts that go on, in one of some phases."""
        in_phase = torch.isin(self.phase, self.phase.new_tensor(phases))
        return ((self.stop == RUNNING) & in_phase).nonzero()[:, 0]

    def total_passes(self) -> float:
        """Passes of all restarts, those given up and the set-up among them."""
        return float(self.passes.sum()) + float(self.setup_passes) + float(self.dropped_passes)


def pack_settings(settings: dict[str, Any]) -> Tensor:
    """Settings as a tensor of bytes, so that they lie beside the state."""
    text = json.dumps(settings, sort_keys=True)
    return torch.tensor(list(text.encode()), dtype=torch.uint8)


def check_settings(stored: Tensor, settings: dict[str, Any]) -> None:
    """
    Refuse a state of a fit with other settings.

    Raises:
        ValueError: if any differ; the message lists each with both values.
    """
    stored_settings = json.loads(bytes(stored.cpu().tolist()).decode())
    names = sorted(stored_settings | settings)
    changes = [
        f"{name} was {stored_settings.get(name)!r} and is {settings.get(name)!r}"
        for name in names
        if stored_settings.get(name) != settings.get(name)
    ]
    if changes:
        raise ValueError(f"the fit cannot be resumed: {'; '.join(changes)}. Give the same settings, or start anew.")
