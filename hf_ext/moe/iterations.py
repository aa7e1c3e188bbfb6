"""
What an iteration does to the state of a fit: EM with its safeguards, gradient steps, L-BFGS on the likelihood.

Reference: Fruytier et al. 2025 (arXiv 2411.06056), section 3.
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from hf_ext.moe.arguments import DEFAULT_RIDGE, EMArguments
from hf_ext.moe.lbfgs import Curvature, line_search
from hf_ext.moe.m_steps import complete_information, em_targets, m_step_lbfgs, m_step_linear
from hf_ext.moe.objective import Look, Objective
from hf_ext.moe.starts import restart_expert, seed_responsibilities
from hf_ext.moe.state import (
    EM,
    GRADIENT,
    HELD_OUT,
    JOINT,
    M_STEP,
    NOT_FINITE,
    RUNNING,
    SEPARABLE,
    TOL,
    FitState,
)

logger = logging.getLogger(__name__)

_INNER_TOLERANCE = 1e-10  # largest slope with which an M-step is over
_STALLS = 3  # iterations below `tol` in a row: one short step of a line search is not yet convergence
_SEPARABLE = 1e3  # a coefficient this large without a ridge: classes that can be separated


class Iterations:
    """
    The iterations of a fit.

    Args:
        objective ([`Objective`]):
            On the training rows.
        held_out ([`Objective`], *optional*):
            On held-out rows.
        arguments ([`EMArguments`]):
            Of the fit.
        state ([`FitState`]):
            Changed in place.
        dead_rows (`float`):
            Weight of rows below which an expert is dead.
    """

    def __init__(
        self,
        objective: Objective,
        held_out: Objective | None,
        arguments: EMArguments,
        state: FitState,
        dead_rows: float,
    ) -> None:
        self.objective = objective
        self.held_out = held_out
        self.arguments = arguments
        self.state = state
        self.dead_rows = dead_rows

    def start_joint(self, index: Tensor) -> None:
        """Value and gradient of the likelihood, from which L-BFGS starts."""
        state = self.state
        if not len(index):
            return
        evaluation = self.objective.likelihood(state.point[index], state.ridge[index])
        state.objective[index] = evaluation.value
        state.valued_point[index] = state.point[index]
        state.gradient[index] = evaluation.gradient
        state.shares[index] = evaluation.shares
        state.passes[index] += 1

    # --- EM ------------------------------------------------------------------------------------------------------

    def e_step(self, index: Tensor) -> Look:
        """E-step of some restarts; one whose objective has risen goes back to where it came from."""
        state = self.state
        look = self.objective.e_step(state.point[index], state.ridge[index])
        state.passes[index] += 1
        previous = state.limit[index]
        limit = previous + 1e-9 * (1 + previous.abs())
        is_em = state.phase[index] == EM
        rises = torch.where(is_em, ~(look.value <= limit), ~look.value.isfinite())
        if bool(rises.any()):
            self._go_back(index[rises])
            again = self.objective.e_step(state.point[index[rises]], state.ridge[index[rises]])
            state.passes[index[rises]] += 1
            for values, latest in zip(look[:5], again[:5], strict=True):
                values[rises] = latest
            look.responsibilities[:, rises] = again.responsibilities
            look.row_log_likelihood[:, rises] = again.row_log_likelihood
        calm = index[~rises]
        state.strikes[calm] = 0
        small = (previous[~rises] - look.value[~rises]).abs() < self.arguments.tol
        state.stalled[calm] = torch.where(small, state.stalled[calm] + 1, 0)
        state.objective[index] = look.value
        state.limit[index] = look.value
        state.valued_point[index] = state.point[index]
        state.gradient[index] = look.gradient
        state.shares[index] = look.shares
        self._stop(index[state.stalled[index] >= _STALLS], TOL)
        self._watch(index)
        return look

    def _go_back(self, index: Tensor) -> None:
        state = self.state
        state.point[index] = state.valued_point[index]
        state.strikes[index] += 1
        state.curvature.forget(index)
        # An over-relaxed step is first made again with the unit step: that is no failure of the M-step.
        allowed = 1 + (self.arguments.eta != 1)
        is_em = state.phase[index] == EM
        self._stop(index[is_em & (state.strikes[index] > allowed)], M_STEP)
        self._stop(index[~is_em], NOT_FINITE)

    def m_step(self, index: Tensor, look: Look) -> None:
        """M-step of some restarts after their E-step, or gradient steps in its place; dead experts start again."""
        state = self.state
        reseeded = self._reseed(index, look)
        gradient_group = (state.phase[index] == GRADIENT).nonzero()[:, 0]
        if len(gradient_group):  # all restarts have one method
            self._gradient_steps(index, look)
            return
        eta = torch.where(state.strikes[index] > 0, 1.0, self.arguments.eta)
        point = state.point[index]
        ridge = state.ridge[index]
        targets = em_targets(self.objective, point, look, eta)
        tolerance = _INNER_TOLERANCE * 0.5 ** state.strikes[index]
        is_linear = self.objective.shape.expert_type == "linear"
        gate_size = self.objective.shape.gate_rows * self.objective.width
        size = gate_size if is_linear else self.objective.size  # of the curvature pairs
        pairs = state.curvature
        curvature = Curvature(pairs.steps[index, :, :size], pairs.changes[index, :, :size], pairs.inverse[index])
        unchanged = bool((eta == 1).all()) and not reseeded
        start = None
        if is_linear:
            descent = m_step_linear(self.objective, point, ridge, targets)
            point = descent.point
            state.passes[index] += descent.passes
            if unchanged:
                start = (look.gate_value, look.gradient[:, :gate_size])
            inner_point = point[:, :gate_size]
        else:
            inner_point = point
            if unchanged:
                start = (look.expected_value, look.gradient)
        if not is_linear or self.objective.shape.num_experts > 1:
            descent = m_step_lbfgs(
                self.objective,
                inner_point,
                ridge,
                targets,
                start,
                curvature,
                steps=self.arguments.steps_for(self.objective.shape.expert_type),
                tolerance=tolerance,
                gate_only=is_linear,
            )
            state.passes[index] += descent.passes
            point = torch.cat([descent.point, point[:, descent.point.shape[1] :]], dim=1)
        state.point[index] = point
        state.steps[index, :, :size] = curvature.steps
        state.changes[index, :, :size] = curvature.changes
        state.inverse[index] = curvature.inverse

    def _gradient_steps(self, index: Tensor, look: Look) -> None:
        """Gradient steps on the expected likelihood; the first one is a step on the likelihood itself."""
        state = self.state
        point = state.point[index] - self.arguments.learning_rate * look.gradient
        count = 1 if self.arguments.method == "gd" else self.arguments.steps_for(self.objective.shape.expert_type)
        targets = em_targets(self.objective, point, look, torch.ones_like(look.value))
        for _ in range(count - 1):
            evaluation = self.objective.expected(point, state.ridge[index], targets)
            point = point - self.arguments.learning_rate * evaluation.gradient
            state.passes[index] += 1
        state.point[index] = point

    def _reseed(self, index: Tensor, look: Look) -> bool:
        """Start a dead expert of each restart again, on the rows that the mixture explains worst."""
        state = self.state
        if self.objective.shape.num_experts == 1 or self.objective.shape.symmetric:
            return False
        least_share = self.dead_rows / self.objective.rows.total
        weakest = look.shares.min(dim=1)
        is_dead = (weakest.values < least_share) & (state.reseeds[index] < self.arguments.max_reseeds)
        is_dead &= state.phase[index] == EM
        for position in is_dead.nonzero()[:, 0].tolist():
            expert = int(weakest.indices[position])
            restart = int(index[position])
            share = max(2 * least_share, 1 / (4 * self.objective.shape.num_experts))
            seed_responsibilities(look, self.objective.rows, position, expert, share, self.objective.reduce)
            restart_expert(state.point[restart], self.objective.shape, self.objective.width, expert)
            state.reseeds[restart] += 1
            state.curvature.forget(index[position : position + 1])
            state.limit[restart] = float("inf")  # the objective may rise at this step
            logger.info(
                "reseed: expert %d of restart %d handled %.1f rows; it starts again on the rows explained worst.",
                expert, int(state.restart[restart]), float(weakest.values[position]) * self.objective.rows.total,
            )  # fmt: skip
        return bool(is_dead.any())

    # --- L-BFGS on the likelihood ----------------------------------------------------------------------------------

    def joint_steps(self) -> None:
        """One step of L-BFGS; where other restarts make EM iterations, as many as cost the same."""
        state = self.state
        index = state.running(JOINT)
        if not len(index):
            return
        looked_at = index
        em_index = state.running(EM)
        budget = float(state.passes[em_index].max()) if len(em_index) else 0.0
        while len(index):
            self._joint_step(index)
            going_on = (state.stop[index] == RUNNING) & (state.passes[index] < budget)
            index = index[going_on]
        self._watch(looked_at)  # those that stop here too

    def _joint_step(self, index: Tensor) -> None:
        state = self.state
        curvature = state.curvature
        point = state.point[index]
        gradient = state.gradient[index]
        value = state.objective[index]
        shares = state.shares[index]
        ridge = state.ridge[index]

        def evaluate(points: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
            evaluation = self.objective.likelihood(points, ridge[group])
            shares[group] = evaluation.shares
            return evaluation.value, evaluation.gradient

        had_pairs = (state.inverse[index] > 0).any(1)
        metric = complete_information(self.objective, point, shares)
        step = line_search(evaluate, point, value, gradient, curvature.direction(gradient, index, metric))
        curvature.add(index, step.point - point, step.gradient - gradient)
        state.point[index] = step.point
        state.valued_point[index] = step.point
        state.objective[index] = step.value
        state.gradient[index] = step.gradient
        state.shares[index] = shares
        state.passes[index] += step.evaluations
        small = value - step.value < self.arguments.tol
        state.stalled[index] = torch.where(small, state.stalled[index] + 1, 0)
        curvature.forget(index[~step.moved])
        stuck = ~step.moved & ~had_pairs  # not even along the slope itself
        self._stop(index[stuck | (state.stalled[index] >= _STALLS)], TOL)

    # --- when to stop ----------------------------------------------------------------------------------------------

    def _stop(self, index: Tensor, reason: int) -> None:
        stop = self.state.stop
        stop[index] = torch.where(stop[index] == RUNNING, reason, stop[index])

    def _watch(self, index: Tensor) -> None:
        """Look at the held-out rows and at the size of the coefficients."""
        state = self.state
        if not len(index):
            return
        if self.arguments.ridge == 0 and self.objective.shape.expert_type != "linear":
            largest = self.objective.vectors(state.point[index])[0].abs().amax((1, 2))
            separable = index[largest > _SEPARABLE]
            if len(separable):
                logger.warning(
                    "A coefficient is above %g without a ridge: the classes can be separated, and the likelihood has "
                    "no maximum. Set ridge, for instance to %g.", _SEPARABLE, DEFAULT_RIDGE,
                )  # fmt: skip
                self._stop(separable, SEPARABLE)
        if self.held_out is None:
            return
        nll = self.held_out.nll(state.point[index])
        state.passes[index] += 0.5 * float(self.held_out.rows.sums[0] / self.objective.rows.sums[0])
        better = nll < state.held_out[index]
        state.held_out[index] = torch.where(better, nll, state.held_out[index])
        state.best_point[index[better]] = state.point[index[better]]
        state.since_best[index] = torch.where(better, 0, state.since_best[index] + 1)
        self._stop(index[state.since_best[index] >= self.arguments.patience], HELD_OUT)
