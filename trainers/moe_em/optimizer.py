"""A fit as an optimiser: the host's loop then logs, evaluates, saves and stops as it does for any other."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from accelerate.optimizer import AcceleratedOptimizer
from torch.nn import Parameter
from torch.optim import Optimizer
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from hf_ext.moe.em import MixtureFit
from hf_ext.moe.results import FitLog


class MixtureOptimizer(Optimizer):
    """
    An optimiser whose `step()` is one iteration of a fit over all rows.

    It holds no gradient and changes none of its parameters: what is fitted is in float64, and the model takes it over
    where it is evaluated or saved.

    Args:
        parameters (`Iterable[Parameter]`):
            Of the model, for the host.
        fit ([`~hf_ext.moe.em.MixtureFit`]):
            What takes the steps.
    """

    def __init__(self, parameters: Iterable[Parameter], fit: MixtureFit) -> None:
        super().__init__(parameters, {"lr": 1.0})
        self.fit = fit
        self.last_log: FitLog | None = None

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One iteration."""
        self.last_log = self.fit.step()

    def objective(self) -> float:
        """Nats a row, of the last look at all rows; before the first one, at the best random start."""
        state = self.fit.state
        values = state.objective
        if not bool(values.isfinite().any()):
            values = self.fit.objective.likelihood(state.point, state.ridge).value
        return float(values.nan_to_num(torch.inf).min()) + self.fit.label_nats()


def mixture_optimizer(optimizer: Any) -> MixtureOptimizer | None:
    """The optimiser of a fit, also inside of what accelerate made of it; `None` of another."""
    if isinstance(optimizer, AcceleratedOptimizer):
        optimizer = optimizer.optimizer
    return optimizer if isinstance(optimizer, MixtureOptimizer) else None


class StopWithFit(TrainerCallback):
    """Ends training with the fit, after what is due at the end: its log, evaluation and checkpoint."""

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Look whether every restart has stopped."""
        optimizer = mixture_optimizer(kwargs.get("optimizer"))
        if optimizer is None or not optimizer.fit.finished:
            return
        control.should_training_stop = True
        # An epoch is an iteration: what is due at an epoch's end comes by itself.
        control.should_log = control.should_log or args.logging_strategy == IntervalStrategy.STEPS
        control.should_evaluate = control.should_evaluate or args.eval_strategy == IntervalStrategy.STEPS
        control.should_save = control.should_save or args.save_strategy == SaveStrategy.STEPS
