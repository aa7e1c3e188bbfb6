r"""
A mixture of experts fitted by EM, one iteration at a time.

EM on this likelihood is mirror descent with a unit step: the next parameters minimise
$\langle \nabla L(t), \theta - t \rangle + \mathrm{KL}$, the divergence being the one between the complete-data models.
It therefore never raises $L$, needs no learning rate, and converges linearly at the rate of the missing information,
`mim_lambda_max` in [`hf_ext.moe.diagnostics`].

[`MixtureFit`] is the fit: `step()` is one iteration of all restarts, `state_dict()` its state. [`fit_em`] runs it.

Reference: Fruytier, Mokhtari and Sanghavi 2025, *Learning Mixtures of Experts with EM: A Mirror Descent Perspective*
(ICML 2025, PMLR 267; arXiv 2411.06056).
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import asdict, fields

import torch
from torch import Tensor

from hf_ext.moe.arguments import DEFAULT_RIDGE, RIDGES, EMArguments
from hf_ext.moe.iterations import Iterations
from hf_ext.moe.objective import Objective
from hf_ext.moe.parameters import MixtureParameters, MixtureShape
from hf_ext.moe.results import EMResult, FitLog
from hf_ext.moe.rows import Reduce, alone, check_row_count, mixture_rows
from hf_ext.moe.starts import least_rows, starting_points
from hf_ext.moe.state import (
    EM,
    GRADIENT,
    JOINT,
    MOST_ITERATIONS,
    RUNNING,
    STOP_REASONS,
    FitState,
    check_settings,
    pack_settings,
)

logger = logging.getLogger(__name__)

_FIRST_ROUND = 12  # passes of a restart; on real data the order after them is nearly that at the end

VARIANCE_FLOOR = 1e-6  # of the labels' variance: an expert that collapses on d points has no maximum without it


class MixtureFit:
    """
    A fit of several restarts, one iteration a call.

    Args:
        X (`torch.Tensor` of shape `(n, d)`):
            Features of the rows of this process, raw, without a column of ones; the fit is in float64, on its device.
        y (`torch.Tensor` of shape `(n,)`, linear experts also `(n, m)`):
            Classes from 0, or numbers.
        shape ([`MixtureShape`]):
            Of the mixture.
        arguments ([`EMArguments`], *optional*):
            How to fit.
        sample_weight (`torch.Tensor` of shape `(n,)`, *optional*):
            Non-negative row weights; 2 is the row twice.
        held_out (`tuple` of `X`, `y`, *optional*):
            Rows on which a restart is stopped early, and the best one and `ridge="auto"` are chosen.
        reduce (`Callable`, *optional*):
            Sum of a float64 tensor over processes, each of which holds some of the rows. All processes then hold the
            same fit. Called once a pass, in the same order everywhere.
        generator (`torch.Generator`, *optional*):
            On the CPU, in the same state on every process; seeded with 0 by default. Used by the starts alone.

    Raises:
        ValueError: if rows cannot be used (see [`mixture_rows`]), there are too few for a fit without a penalty, or
            `ridge="auto"` comes without held-out rows.

    Reference: Fruytier et al. 2025 (arXiv 2411.06056).
    """

    def __init__(
        self,
        X: Tensor,
        y: Tensor,
        shape: MixtureShape,
        arguments: EMArguments | None = None,
        *,
        sample_weight: Tensor | None = None,
        held_out: tuple[Tensor, Tensor] | None = None,
        reduce: Reduce = alone,
        generator: torch.Generator | None = None,
    ) -> None:
        self.arguments = arguments or EMArguments()
        self.shape = shape
        if self.arguments.ridge == "auto" and held_out is None:
            raise ValueError("ridge='auto' compares penalties on held-out rows: give held_out, or a number.")
        self.ridge = DEFAULT_RIDGE if isinstance(self.arguments.ridge, str) else self.arguments.ridge
        self._reduce = reduce
        self._generator = generator or torch.Generator().manual_seed(0)
        self._seconds = time.perf_counter()
        rows = mixture_rows(
            X, y, shape, sample_weight=sample_weight, standardize=self.arguments.standardize, reduce=reduce
        )
        check_row_count(rows, shape, self.ridge)
        variance = reduce((rows.weights @ rows.y.double().square().view(len(rows.y), -1)).mean().reshape(1))
        self.objective = Objective(
            rows,
            shape,
            whiten=self.arguments.whiten,
            variance_floor=VARIANCE_FLOOR * float(variance) if shape.expert_type == "linear" else VARIANCE_FLOOR,
            reduce=reduce,
        )
        self._held_out: Objective | None = None
        if held_out is not None:
            held_rows = mixture_rows(*held_out, shape, standardisation=rows.standardisation, reduce=reduce)
            self._held_out = self.objective.on_rows(held_rows)
        self._dead_rows = least_rows(self.objective, self.ridge)
        self._state: FitState | None = None

    # --- the course of a fit -------------------------------------------------------------------------------------

    @property
    def state(self) -> FitState:
        """The state; the random starts are made where there is none yet."""
        if self._state is None:
            self._state = self._begin()
        return self._state

    @property
    def finished(self) -> bool:
        """Whether every restart has stopped; with `ridge="auto"` under each penalty."""
        state = self.state
        is_last = self.arguments.ridge != "auto" or bool(state.halved)
        is_last |= int(state.iteration) >= self.arguments.max_iterations
        return is_last and bool((state.stop != RUNNING).all())

    def step(self) -> FitLog:
        """
        One iteration of every restart that goes on: an E-step and an M-step, or a step of L-BFGS on the likelihood.

        Returns:
            [`FitLog`]
        """
        state = self.state
        iterations = self._iterations(state)
        index = state.running(EM, GRADIENT)
        look = iterations.e_step(index) if len(index) else None
        if self._round_is_over():
            finalists = self._halve()
            looked_at = {restart: position for position, restart in enumerate(index.tolist())}
            index = state.running(EM, GRADIENT)
            if self.arguments.ridge == "auto" and int(state.halved):  # other penalties, at which nothing was looked at
                look = iterations.e_step(index) if len(index) else None
            elif look is not None:
                positions = [looked_at[restart] for restart in finalists[index].tolist()]
                look = look.take(torch.tensor(positions, dtype=torch.int64, device=index.device))
        elif look is not None:
            going_on = (state.stop[index] == RUNNING).nonzero()[:, 0]
            index = index[going_on]
            look = look.take(going_on)
        if self._hands_over():
            index = index[:0]
        if look is not None and len(index):
            iterations.m_step(index, look)
        iterations.joint_steps()
        state.iteration += 1
        if int(state.iteration) >= self.arguments.max_iterations:
            state.stop[state.stop == RUNNING] = MOST_ITERATIONS
        return self._log()

    def _iterations(self, state: FitState) -> Iterations:
        return Iterations(self.objective, self._held_out, self.arguments, state, self._dead_rows)

    def _round_is_over(self) -> bool:
        """Whether half of the restarts are to be given up: each round goes twice as far as the one before it."""
        state = self.state
        if int(state.halved):
            return False
        running = state.passes[state.stop == RUNNING]
        limit = _FIRST_ROUND * 2 ** int(state.halvings)
        return len(running) == 0 or float(running.max()) >= limit

    def _hands_over(self) -> bool:
        """Let L-BFGS take over from EM where that is due: the E-step has left value and gradient of the likelihood."""
        state = self.state
        method = self.arguments.method
        is_due = int(state.iteration) >= self.arguments.em_iterations
        is_em = state.phase == EM
        if method not in ("em+lbfgs", "auto") or not is_due or not bool(is_em.any()):
            return False
        if self.shape.expert_type == "linear":  # pairs of the gate alone
            state.curvature.forget(is_em.nonzero()[:, 0])
        state.phase[is_em] = JOINT
        return True

    def _begin(self) -> FitState:
        arguments = self.arguments
        restarts = arguments.restarts if self.shape.num_experts > 1 else 1
        point, passes = starting_points(self.objective, restarts, self.ridge, self._generator)
        method = arguments.method
        first = {"lbfgs": JOINT, "gd": GRADIENT, "gradient_em": GRADIENT}.get(method, EM)
        phase = torch.full((restarts,), first, dtype=torch.int64, device=point.device)
        if method == "auto":
            phase[: (restarts + 1) // 2] = JOINT
        setup = self.objective.setup_passes + passes
        state = FitState.beginning(point, phase, self.ridge, self.objective.size, self.shape.num_experts, setup)
        self._iterations(state).start_joint((phase == JOINT).nonzero()[:, 0])
        return state

    def _halve(self) -> Tensor:
        """Give up half of the restarts; with `ridge="auto"` the last goes on under each penalty. Returns which."""
        state = self.state
        state.halvings += 1
        is_auto = self.arguments.ridge == "auto"
        least = 1 if is_auto else self.arguments.finalists
        half = (len(state.point) + 1) // 2 if bool((state.stop == RUNNING).any()) else 1
        count = min(len(state.point), max(least, half))
        finalists = state.objective.nan_to_num(math.inf).argsort(stable=True)[:count]
        if count == len(state.point):  # none is given up: the order stays
            finalists = finalists.sort().values
        state.halved.fill_(int(count <= least))
        if is_auto and int(state.halved):
            finalists = finalists.repeat(len(RIDGES))
        survivors = torch.isin(state.restart, state.restart[finalists])
        state.dropped_passes += state.passes[~survivors].sum().cpu()
        cost = state.passes[finalists].clone()
        state.take(finalists)
        if is_auto and int(state.halved):
            state.ridge = state.point.new_tensor(RIDGES)
            state.passes[:] = 0
            state.passes[0] = cost[0]
            state.stop[:] = RUNNING
            state.stalled[:] = 0
            state.since_best[:] = 0
            state.objective[:] = math.inf
            state.limit[:] = math.inf
            state.held_out[:] = math.inf
            self._iterations(state).start_joint(state.running(JOINT))
        return finalists

    # --- what comes out --------------------------------------------------------------------------------------------

    def label_nats(self) -> float:
        """Nats a row between standardised labels and the user's."""
        if self.shape.expert_type != "linear":
            return 0.0
        return self.shape.num_outputs * float(self.objective.rows.standardisation.label_scale.log())

    def penalty(self, point: Tensor, ridge: Tensor) -> float:
        """Penalty in nats a row at coordinates `(P,)`."""
        vectors = self.objective.vectors(point[None])[0]
        return float(0.5 * ridge * (vectors.square() * self.objective.penalised).sum())

    def _log(self) -> FitLog:
        state = self.state
        best = int(state.objective.nan_to_num(math.inf).argmin())
        objective = float(state.objective[best]) + self.label_nats()
        return FitLog(
            iteration=int(state.iteration),
            objective=objective,
            nll=objective - self.penalty(state.valued_point[best], state.ridge[best]),
            held_out_nll=None if self._held_out is None else float(state.held_out.min()) + self.label_nats(),
            passes=state.total_passes(),
            seconds=time.perf_counter() - self._seconds,
            n_i=(state.shares[best] * self.objective.rows.total).tolist(),
            running=int((state.stop == RUNNING).sum()),
            reseeds=int(state.reseeds.sum()),
        )

    def _candidates(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Point, objective and shares of each restart, and what to choose by: no M-step is left unchecked."""
        state = self.state
        if self._held_out is not None:
            evaluation = self.objective.likelihood(state.best_point, state.ridge)
            return state.best_point, evaluation.value, evaluation.shares, state.held_out
        point = state.point.clone()
        evaluation = self.objective.likelihood(point, state.ridge)
        value = evaluation.value
        shares = evaluation.shares
        worse = (state.phase != JOINT) & ~(value <= state.objective)
        point[worse] = state.valued_point[worse]
        value = torch.where(worse, state.objective, value)
        shares = torch.where(worse[:, None], state.shares, shares)
        return point, value, shares, value

    def result(self) -> EMResult:
        """
        The best restart so far: by the held-out rows where there are any, otherwise by the objective.

        Costs one evaluation of each restart, and changes nothing: a fit goes on after it as if it had not been called.
        """
        state = self.state
        points, values, shares, order = self._candidates()
        best = int(order.nan_to_num(math.inf).argmin())
        objective = float(values[best]) + self.label_nats()
        dead_share = self._dead_rows / self.objective.rows.total
        dead_experts = (shares[best] < dead_share).nonzero()[:, 0].tolist() if self.shape.num_experts > 1 else []
        parameters = self.parameters(points[best])
        if self.arguments.prune and dead_experts and len(dead_experts) < self.shape.num_experts:
            parameters = parameters.without(dead_experts)
        held_out = None if self._held_out is None else float(state.held_out[best]) + self.label_nats()
        return EMResult(
            parameters=parameters,
            objective=objective,
            nll=objective - self.penalty(points[best], state.ridge[best]),
            held_out_nll=held_out,
            iterations=int(state.iteration),
            passes=state.total_passes(),
            seconds=time.perf_counter() - self._seconds,
            ridge=float(state.ridge[best]),
            restart=int(state.restart[best]),
            stop_reason=STOP_REASONS[int(state.stop[best])],
            reseeds=int(state.reseeds[best]),
            shares=shares[best],
            dead_experts=dead_experts,
        )

    def parameters(self, point: Tensor) -> MixtureParameters:
        """The mixture at coordinates `(P,)`, in the unit of the labels and on raw features."""
        vectors, log_variance = (values[0] for values in self.objective.vectors(point[None]))
        standardisation = self.objective.rows.standardisation
        gate = vectors[: self.shape.num_experts].clone()
        experts = vectors[self.shape.num_experts :].unflatten(0, (self.shape.num_experts, -1))
        variance = None
        if self.shape.expert_type == "linear":
            experts = experts * standardisation.label_scale
            experts[..., -1] += standardisation.label_mean
            variance = log_variance.exp() * standardisation.label_scale.square()
        return MixtureParameters(
            gate, experts.clone(), variance, standardisation.mean, standardisation.scale, self.shape.expert_type
        )

    # --- checkpoints -----------------------------------------------------------------------------------------------

    def settings(self) -> dict[str, str | int | float | bool | None]:
        """What a resumed fit must share with the one it goes on from, except how long it runs."""
        settings = {**asdict(self.shape), **asdict(self.arguments), "features": self.objective.width - 1}
        return {name: value for name, value in settings.items() if name != "max_iterations"}

    def state_dict(self) -> dict[str, Tensor]:
        """The state as tensors, copied: what `safetensors` takes."""
        return self.identity() | {field.name: getattr(self.state, field.name).clone() for field in fields(FitState)}

    def identity(self) -> dict[str, Tensor]:
        """What [`check_same`] compares: the settings, and weighted sums of the rows' columns."""
        return {"settings": pack_settings(self.settings()), "row_sums": self.objective.rows.sums.clone()}

    def check_same(self, state: dict[str, Tensor]) -> None:
        """
        Refuse a state of a fit with other settings or rows; its parameters are not looked at.

        Raises:
            ValueError: if settings or rows differ; each setting is listed.
        """
        check_settings(state["settings"], self.settings())
        sums = self.objective.rows.sums
        stored = state["row_sums"].to(sums)
        if stored.shape != sums.shape or not torch.allclose(stored, sums, rtol=1e-9, atol=1e-9):
            raise ValueError(
                f"the fit cannot be resumed: it was of {int(stored[0]):,} rows, and these {int(sums[0]):,} are others "
                "or have other features or labels. Give the same rows, or start anew."
            )

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """
        Go on from the state of a fit with the same settings and rows, to the same bits.

        Raises:
            ValueError: if settings or rows differ; each setting is listed.
        """
        self.check_same(state)
        device = self.objective.rows.X.device
        scalars = {"iteration", "halvings", "halved", "setup_passes", "dropped_passes"}
        names = [field.name for field in fields(FitState)]
        self._state = FitState(
            **{name: state[name].clone().to("cpu" if name in scalars else device) for name in names}
        )


def fit_em(
    X: Tensor,
    y: Tensor,
    shape: MixtureShape,
    *,
    arguments: EMArguments | None = None,
    sample_weight: Tensor | None = None,
    held_out: tuple[Tensor, Tensor] | None = None,
    callback: Callable[[FitLog], bool | None] | None = None,
    reduce: Reduce = alone,
    generator: torch.Generator | None = None,
) -> EMResult:
    """
    Fit a mixture of experts.

    Args:
        X, y, shape, arguments, sample_weight, held_out, reduce, generator:
            As in [`MixtureFit`].
        callback (`Callable`, *optional*):
            Called with the [`FitLog`] of each iteration; `True` ends the fit.

    Returns:
        [`EMResult`]

    Raises:
        ValueError: as [`MixtureFit`] says.

    Reference: Fruytier et al. 2025 (arXiv 2411.06056).
    """
    fit = MixtureFit(
        X, y, shape, arguments, sample_weight=sample_weight, held_out=held_out, reduce=reduce, generator=generator
    )
    while not fit.finished:
        log = fit.step()
        if callback is not None and callback(log):
            break
    return fit.result()
