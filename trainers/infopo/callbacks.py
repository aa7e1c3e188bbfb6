"""Watching a preference run: is the chosen response still as likely as it was, and is the estimator full."""

from __future__ import annotations

import logging
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

logger = logging.getLogger(__name__)

CHOSEN_DELTA = "infopo/chosen_delta"
REMEDIES = (
    "In this order: mix in the chosen responses' own loss, loss_type=['infopo', 'sft'] with a weight of 0.1 to 0.5; "
    "lower learning_rate; raise beta; filter pairs whose responses are nearly the same."
)
NEARLY_FULL = 0.95  # of the ceiling


class LikelihoodGuardCallback(TrainerCallback):
    r"""
    Acts once the chosen responses have become less likely than under the reference model.

    It reads the mean change of the chosen responses' log-probability, `infopo/chosen_delta`, from the log: of
    evaluations where there are any (of each set, where there are several), of training otherwise. A resumed run
    continues the count, which is taken from the log's history.

    Args:
        mode (`str`, *optional*, defaults to `"warn"`):
            `"warn"` says so once with the numbers and remedies; `"stop"` also ends training.
        tolerance (`float`, *optional*, defaults to `0.0`):
            Drop that is tolerated, in nats per token.
        patience (`int`, *optional*, defaults to `3`):
            Consecutive logs below minus `tolerance` before it acts.

    Attributes:
        verdict (`str`):
            What it has seen so far, in words.

    Raises:
        ValueError: if the mode is another, the tolerance negative, or the patience below 1.
    """

    def __init__(self, mode: str = "warn", tolerance: float = 0.0, patience: int = 3) -> None:
        if mode not in ("warn", "stop"):
            raise ValueError(f"mode must be 'warn' or 'stop', got {mode!r}.")
        if not tolerance >= 0 or patience < 1:
            raise ValueError(f"tolerance must be at least 0 and patience at least 1, got {tolerance!r}, {patience!r}.")
        self.mode = mode
        self.tolerance = tolerance
        self.patience = patience
        self.verdict = "no value yet"
        self._has_warned = False
        self._has_fallen = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Go on with the verdict of a run that is resumed, as if it had seen each of its logs."""
        for entries in self._entries(args, state).values():
            for count in range(1, len(entries) + 1):
                self._judge(entries[:count])

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict | None = None, **_: Any
    ) -> None:
        """Count, and act."""
        entries = self._entries(args, state)
        is_low = [self._judge(entries[key]) for key in logs or {} if key in entries]
        if not any(is_low):
            return
        if not self._has_warned:
            self._has_warned = True
            ending = " Training stops here (likelihood_guard='stop')." if self.mode == "stop" else ""
            logger.warning("Likelihood guard: the %s. %s%s", self.verdict, REMEDIES, ending)
        if self.mode == "stop":
            control.should_training_stop = True

    def has_stopped(self, args: TrainingArguments, state: TrainerState) -> bool:
        """Whether the run whose log this is was stopped by it."""
        is_low = [self._judge(entries) for entries in self._entries(args, state).values()]
        return self.mode == "stop" and any(is_low)

    @staticmethod
    def _entries(args: TrainingArguments, state: TrainerState) -> dict[str, list[tuple[float, int]]]:
        """Values in the log's history, nats per token, with their steps; apart for each evaluation set."""
        strategy = str(getattr(args.eval_strategy, "value", args.eval_strategy))
        start = "" if strategy == "no" else "eval_"
        entries: dict[str, list[tuple[float, int]]] = {}
        for logs in state.log_history:
            for key in logs:
                is_of_set = start and key.startswith(start) and key.endswith("_" + CHOSEN_DELTA)
                if is_of_set or key == start + CHOSEN_DELTA:
                    entries.setdefault(key, []).append((logs[key], logs.get("step", state.global_step)))
        return entries

    def _judge(self, entries: list[tuple[float, int]]) -> bool:
        """Whether it is to act on the last of these values; sets the verdict, which stays once they have fallen."""
        last = [value for value, _ in entries[-self.patience :]]
        is_low = len(last) == self.patience and max(last) < -self.tolerance
        if is_low:
            self._has_fallen = True
            self.verdict = (
                f"chosen responses fell: {', '.join(f'{value:+.4f}' for value in last)} nats per token against the "
                f"reference at the last {len(last)} logs before step {entries[-1][1]}"
            )
        elif entries and not self._has_fallen:
            self.verdict = f"chosen responses at {last[-1]:+.4f} nats per token against the reference"
        return is_low


class CeilingCallback(TrainerCallback):
    """Say once that an estimator has nearly reached the value it cannot exceed, so that its gradients are gone."""

    def __init__(self) -> None:
        self._has_warned = False

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict | None = None, **_: Any
    ) -> None:
        """Compare `infopo/mi` with `infopo/mi_ceiling`."""
        value, ceiling = ((logs or {}).get(f"infopo/{name}") for name in ("mi", "mi_ceiling"))
        if self._has_warned or value is None or ceiling is None or value <= NEARLY_FULL * ceiling:
            return
        self._has_warned = True
        logger.warning(
            "infopo/mi is %.3f of at most %.3f nats at step %s: the estimator is full and its gradients are nearly "
            "gone. A flat loss no longer says that nothing is left to learn; use estimator='nwj', or stop here.",
            value, ceiling, state.global_step,
        )  # fmt: skip
