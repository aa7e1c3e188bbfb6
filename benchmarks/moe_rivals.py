"""
What `moe_em_convergence.py` runs on a problem: fits of the library, gradient methods over five steps, other packages.

Every run returns rows: `method`, `whitened`, `setting` (step, or inner steps), `start` (which random start, the first
where several run), `setup_passes`, `objective` (best within the budget), `test_nll` and `test_accuracy` (at the
end), `seconds`, `curve` (pairs of passes and best objective so far, of settings that come within 1e-3 of the best)
and `marks` (passes, seconds, test nats, test accuracy). A pass is one evaluation of value and gradient over all rows;
what comes before the first step, the Gram matrix and the fit of a single expert, is counted.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import torch
from moe_problems import RIDGE, Problem
from moe_tables import TOLERANCE
from torch import Tensor

from hf_ext.moe.arguments import EMArguments
from hf_ext.moe.em import MixtureFit
from hf_ext.moe.objective import Objective, Targets
from hf_ext.moe.starts import starting_points

# Of the steps, which a trial on 1,500 rows set: the best of five should be none of the ends.
STEPS = {
    ("gd", False): (0.1, 0.3, 1.0, 3.0, 10.0),
    ("gd", True): (1.0, 3.0, 10.0, 30.0, 100.0),
    ("gradient_em", False): (0.1, 0.3, 1.0, 3.0, 10.0),
    ("adam", False): (0.01, 0.03, 0.1, 0.3, 1.0),
    ("adam", True): (0.03, 0.1, 0.3, 1.0, 3.0),
    ("sgd", False): (0.01, 0.03, 0.1, 0.3, 1.0),
    ("adam_batches", False): (0.001, 0.003, 0.01, 0.03, 0.1),
}
LINEAR_STEPS = {
    ("gd", False): (0.03, 0.1, 0.3, 1.0, 3.0),
    ("gd", True): (0.03, 0.1, 0.3, 1.0, 3.0),
    ("adam", False): (0.01, 0.03, 0.1, 0.3, 1.0),
    ("adam", True): (0.01, 0.03, 0.1, 0.3, 1.0),
}
INNER_STEPS = (1, 2, 4, 8, 16)
BATCH = 256
LOOK_EVERY = 4  # passes between two values of a method on batches: they are not part of it, nor of its time
MARKS = (10, 20, 40, 80, 160, 320)
MOMENTUM = 0.9


Mark: TypeAlias = tuple[float, float, float | None, float | None]
"""Passes, seconds, test nats a row and share of right test rows."""


@dataclass
class Trace:
    """Values of one run on its way, and the test figures at a few places."""

    points: list[tuple[float, float]] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)

    def add(self, passes: float, objective: float, budget: float) -> None:
        """Take up a value where it is the best so far and within the budget."""
        if passes <= budget and objective < self.best:  # a NaN is no better
            self.points.append((passes, objective))

    @property
    def best(self) -> float:
        """Lowest objective."""
        return self.points[-1][1] if self.points else math.inf

    def row(self, **columns: Any) -> dict[str, Any]:
        """What a result holds of the run."""
        curve: list[tuple[float, float]] = []
        for passes, objective in self.points:  # thinned to 2 %: that is as fine as a ratio of passes needs
            is_last = (passes, objective) == self.points[-1]
            if not curve or is_last or (passes >= 1.02 * curve[-1][0] and objective <= curve[-1][1] - 1e-4):
                curve.append((round(passes, 2), round(objective, 6)))
        last_mark: Mark = self.marks[-1] if self.marks else (0.0, 0.0, None, None)
        figures = {"seconds": last_mark[1], "test_nll": last_mark[2], "test_accuracy": last_mark[3]}
        return {**columns, "objective": round(self.best, 6), **figures, "curve": curve, "marks": self.marks}

    def mark(self, passes: float, seconds: float, figures: tuple[float, float | None]) -> None:
        """Note test figures."""
        nll = round(figures[0], 5) if math.isfinite(figures[0]) else None
        accuracy = None if figures[1] is None else round(figures[1], 5)
        self.marks.append((round(passes, 2), round(seconds, 3), nll, accuracy))


def next_mark(passes: float, trace: Trace) -> bool:
    """Whether the test figures are due."""
    marked_passes = trace.marks[-1][0] if trace.marks else 0.0
    return any(marked_passes < mark <= passes for mark in MARKS)


# --- fits of the library -------------------------------------------------------------------------------------------


def fit_run(
    problem: Problem, arguments: EMArguments, budget: float, *, method: str, start: int = 0, early: bool = False
) -> dict[str, Any]:
    """
    A fit until it has made `budget` passes, the set-up among them.

    Args:
        problem ([`Problem`]), arguments ([`EMArguments`]):
            What to fit, and how.
        budget (`float`):
            Passes of all restarts.
        method (`str`):
            Name in the row.
        start (`int`, *optional*, defaults to 0):
            Of one start alone: which of the random ones.
        early (`bool`, *optional*, defaults to `False`):
            Whether the validation rows choose the parameters whose test figures the row has.
    """
    trace = Trace()
    began = time.perf_counter()
    testing = 0.0
    arguments = replace(arguments, ridge=RIDGE, restarts=max(arguments.restarts, start + 1))
    fit = MixtureFit(
        problem.X, problem.y, problem.shape, arguments, held_out=problem.validation if early else None,
        generator=torch.Generator().manual_seed(problem.instance),
    )  # fmt: skip
    if start:
        fit.state.take(torch.tensor([start]))
    passes = fit.state.total_passes()
    setup = float(fit.state.setup_passes)
    while not fit.finished and passes < budget:
        log = fit.step()
        # EM's value is that before the M-step: known after the E-step, one pass into the iteration.
        known_at = passes + 1 if arguments.method == "em" and len(fit.state.restart) == 1 else log.passes
        passes = log.passes
        trace.add(known_at, log.objective, budget)
        if next_mark(passes, trace):
            paused = time.perf_counter()
            best = int(fit.state.objective.nan_to_num(math.inf).argmin())
            figures = problem.test_figures(fit.parameters(fit.state.valued_point[best]))
            trace.mark(passes, paused - began - testing, figures)
            testing += time.perf_counter() - paused
    result = fit.result()
    seconds = time.perf_counter() - began - testing
    last_parameters = fit.parameters(fit.state.point[int(fit.state.objective.nan_to_num(math.inf).argmin())])
    if not early:
        trace.add(passes + 1 if arguments.method == "em" else passes, result.objective, budget)
    trace.mark(passes, seconds, problem.test_figures(result.parameters))
    row = trace.row(
        method=method, whitened=arguments.whiten, setting=arguments.inner_steps, start=start,
        setup_passes=round(setup, 2), restarts=arguments.restarts, iterations=result.iterations,
    )  # fmt: skip
    if early:  # the last iterate beside the one that the validation rows chose
        nll, accuracy = problem.test_figures(last_parameters)
        row |= {"last_test_nll": round(nll, 5), "last_test_accuracy": accuracy}
    return row | {"nll": round(result.nll, 6)}


# --- gradient methods ----------------------------------------------------------------------------------------------

Update = Callable[[Tensor, Tensor], Tensor]
"""New points `(S, P)` from points and gradients, S runs with a step each."""


def descent(steps: Tensor, momentum: float = 0.0) -> Update:
    """Gradient descent, with momentum as torch has it."""
    velocity = torch.zeros(())

    def update(point: Tensor, gradient: Tensor) -> Tensor:
        nonlocal velocity
        velocity = momentum * velocity + gradient
        return point - steps[:, None] * velocity

    return update


def adam(steps: Tensor) -> Update:
    """Adam with torch's constants."""
    mean = torch.zeros(())
    square = torch.zeros(())
    count = 0

    def update(point: Tensor, gradient: Tensor) -> Tensor:
        nonlocal mean, square, count
        count += 1
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.999 * square + 0.001 * gradient.square()
        scale = (square / (1 - 0.999**count)).sqrt() + 1e-8
        return point - steps[:, None] * (mean / (1 - 0.9**count)) / scale

    return update


def on_batch(objective: Objective, index: Tensor) -> Objective:
    """The objective of some of the rows."""
    rows = objective.rows
    weights = torch.full_like(rows.weights[: len(index)], 1 / len(index))
    return objective.on_rows(replace(rows, X=rows.X[index], y=rows.y[index], weights=weights))


class GradientRun:
    """Runs of one method from one start, a step each, as one batch of points."""

    def __init__(self, problem: Problem, *, whiten: bool, start: int, count: int) -> None:
        self.problem = problem
        arguments = EMArguments(method="gd", ridge=RIDGE)
        began = time.perf_counter()
        whitened = MixtureFit(problem.X, problem.y, problem.shape, arguments)
        if not whiten:
            began = time.perf_counter()
        generator = torch.Generator().manual_seed(problem.instance)
        points, passes = starting_points(whitened.objective, start + 1, RIDGE, generator)
        point = points[start:]
        self.fit = whitened
        if not whiten:  # the same start in other coordinates; these need no Gram matrix
            self.fit = MixtureFit(problem.X, problem.y, problem.shape, replace(arguments, whiten=False))
            point = self.fit.objective.pack(*whitened.objective.free_vectors(point))
        self.setup_passes = self.fit.objective.setup_passes + passes
        self.point = point.repeat(count, 1)
        self.ridge = point.new_full((count,), RIDGE)
        self.setup_seconds = time.perf_counter() - began

    def test_figures(self) -> list[tuple[float, float | None]]:
        """Of each run."""
        return [self.problem.test_figures(self.fit.parameters(point)) for point in self.point]


def gradient_runs(
    problem: Problem,
    method: str,
    steps: Sequence[float],
    budget: int,
    *,
    whiten: bool,
    start: int = 0,
    inner: int = 1,
    counts_setup: bool = True,
) -> list[dict[str, Any]]:
    """
    A gradient method over several steps at once; the seconds of the batch are shared out among them.

    Args:
        problem ([`Problem`]):
            What to fit.
        method (`str`):
            `gd`, `adam`: on all rows; `gradient_em`: an E-step, then `inner` gradient steps; `sgd`, with momentum,
            and `adam_batches`: on batches of 256.
        steps (`Sequence[float]`):
            A run each.
        budget (`int`):
            Passes of each run, the set-up among them.
        whiten (`bool`):
            Whether in whitened coordinates.
        start (`int`, *optional*, defaults to 0):
            Which random start.
        inner (`int`, *optional*, defaults to 1):
            Gradient steps for one E-step.
        counts_setup (`bool`, *optional*, defaults to `True`):
            Whether the set-up is part of the budget.
    """
    run = GradientRun(problem, whiten=whiten, start=start, count=len(steps))
    sizes = torch.tensor(steps, dtype=torch.float64)
    update = adam(sizes) if method.startswith("adam") else descent(sizes, MOMENTUM if method == "sgd" else 0.0)
    offset = run.fit.label_nats()
    traces = [Trace() for _ in steps]
    passes = run.setup_passes
    seconds = run.setup_seconds
    limit = budget if counts_setup else budget + passes
    shuffle = torch.Generator().manual_seed(1000 + problem.instance)
    while passes + 1 <= limit:
        began = time.perf_counter()
        values: list[float] = []
        if method in ("sgd", "adam_batches"):
            _batch_pass(run, update, shuffle)
            passes += 1
            known_at = passes
            seconds += (time.perf_counter() - began) / len(steps)
            if int(passes) % LOOK_EVERY == 0:
                values = run.fit.objective.likelihood(run.point, run.ridge).value.tolist()
        else:
            known_at = passes + 1  # the value before the step
            values = _full_pass(run, update, inner).tolist()
            passes += inner
            seconds += (time.perf_counter() - began) / len(steps)
        for trace, value in zip(traces, values, strict=False):
            trace.add(known_at, value + offset, limit)
        if next_mark(passes, traces[0]):
            for trace, figures in zip(traces, run.test_figures(), strict=True):
                trace.mark(passes, seconds, figures)
    for trace, figures in zip(traces, run.test_figures(), strict=True):
        trace.mark(passes, seconds, figures)
    rows = [
        trace.row(
            method=method, whitened=whiten, setting=step, start=start, setup_passes=round(run.setup_passes, 2),
            restarts=1, iterations=round((passes - run.setup_passes) / inner),
        )
        for trace, step in zip(traces, steps, strict=True)
    ]  # fmt: skip
    return with_best_curve(rows)


def _full_pass(run: GradientRun, update: Update, inner: int) -> Tensor:
    """A value and a step; of gradient EM the E-step and all its steps."""
    objective = run.fit.objective
    if inner == 1:
        evaluation = objective.likelihood(run.point, run.ridge)
        run.point = update(run.point, evaluation.gradient)
        return evaluation.value
    look = objective.e_step(run.point, run.ridge)
    run.point = update(run.point, look.gradient)
    targets = Targets(look.responsibilities)
    for _ in range(inner - 1):
        run.point = update(run.point, objective.expected(run.point, run.ridge, targets).gradient)
    return look.value


def _batch_pass(run: GradientRun, update: Update, shuffle: torch.Generator) -> None:
    """A step for each batch of the shuffled rows."""
    objective = run.fit.objective
    for index in torch.randperm(len(objective.rows.X), generator=shuffle).split(BATCH):
        gradient = on_batch(objective, index).likelihood(run.point, run.ridge).gradient
        run.point = update(run.point, gradient)


def with_best_curve(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows; of settings that do not come within 1e-3 nats of the best one the curve is left out."""
    best = min(row["objective"] for row in rows)
    return [row if row["objective"] <= best + TOLERANCE else {**row, "curve": [], "marks": []} for row in rows]


# --- other packages ------------------------------------------------------------------------------------------------


def cgmm_run(problem: Problem) -> dict[str, Any]:
    """
    `cgmm` (EM) as by default: nats of the training rows.

    Each of its experts has noise of its own, which can only help it: with `shared_covariance=True` cgmm 0.5.1 divides
    the covariance by the number of rows twice.
    """
    from cgmm import MixtureOfExpertsRegressor

    began = time.perf_counter()
    model = MixtureOfExpertsRegressor(problem.shape.num_experts, random_state=problem.instance).fit(
        problem.X.numpy(), problem.y.numpy()
    )
    seconds = time.perf_counter() - began
    nll = -float(model.log_prob(problem.X.numpy(), problem.y.numpy()).mean())
    test_nll = -float(model.log_prob(problem.X_test.numpy(), problem.y_test.numpy()).mean())
    return {
        "method": "cgmm", "whitened": False, "setting": None, "start": 0, "nll": round(nll, 6),
        "test_nll": round(test_nll, 5), "test_accuracy": None, "seconds": round(seconds, 3),
        "iterations": model.n_iter_,
    }  # fmt: skip


def neural_trees_runs(problem: Problem, rates: Sequence[float], epochs: int) -> list[dict[str, Any]]:
    """`neural-trees` (Adam on batches): one gate over two experts, each with its hidden layer; no dropout."""
    from neural_trees import HierarchicalMixtureOfExperts

    mean = problem.X.mean(0)
    scale = problem.X.std(0).clamp(min=1e-6)
    train = ((problem.X - mean) / scale).numpy()
    test = ((problem.X_test - mean) / scale).numpy()
    index = torch.arange(len(problem.y_test))
    rows = []
    for rate in rates:
        began = time.perf_counter()
        model = HierarchicalMixtureOfExperts(
            depth=1, dropout_rate=0.0, max_epochs=epochs, learning_rate=rate, batch_size=BATCH,
            random_state=problem.instance,
        ).fit(train, problem.y.numpy())  # fmt: skip
        seconds = time.perf_counter() - began
        probabilities = torch.from_numpy(model.predict_proba(test))
        nll = -probabilities[index, problem.y_test].clamp(min=1e-30).log().mean()
        accuracy = (probabilities.argmax(1) == problem.y_test).double().mean()
        rows.append(
            {
                "method": "neural_trees",
                "whitened": False,
                "setting": rate,
                "start": 0,
                "nll": round(model.training_history_[-1]["loss"], 6),
                "test_nll": round(float(nll), 5),
                "test_accuracy": round(float(accuracy), 5),
                "seconds": round(seconds, 3),
                "iterations": epochs,
            }
        )
    return rows
