"""WiSE-FT at several alphas, measured alike, and the one that keeps KL(original || new) within a bound."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_ext.evaluation.forgetting import ForgettingMeasures
from hf_ext.evaluation.models import Model, free_memory, loaded
from hf_ext.evaluation.report import ForgettingReport, RunResult
from hf_ext.evaluation.wise_ft import tuned_model, wise_ft
from hf_ext.guards.numbers import NON_NEGATIVE, PROBABILITY
from hf_ext.guards.reports import SavedReport

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from transformers import PreTrainedTokenizerBase

__all__ = ["ALPHAS", "WiseFTSweep", "sweep_wise_ft"]

ALPHAS = (0.2, 0.4, 0.6, 0.8, 1.0)


@dataclass(frozen=True)
class WiseFTSweep(SavedReport):
    """
    Results of [`sweep_wise_ft`].

    Args:
        report ([`ForgettingReport`]):
            A run for each alpha, in rising order; that of 1 is the tuned model.
        alphas (`list[float]`):
            Of the runs.
        max_kl (`float`, *optional*):
            The bound, nats per token.
        alpha (`float`, *optional*):
            What was picked; `None` without a bound, or where no run keeps it.
    """

    report: ForgettingReport
    alphas: list[float]
    max_kl: float | None = None
    alpha: float | None = None

    file_name = "wise_ft"
    plot_size = (7.2, 4.8)

    def verdict(self) -> str:
        """What was picked and why, in a sentence."""
        if self.max_kl is None:
            return "No bound on KL(original‖new) was given, so no alpha was picked."
        if self.alpha is None:
            return (
                f"No alpha keeps KL(original‖new) within {self.max_kl:g} nats/token: sweep smaller ones, or stay with "
                "the original model."
            )
        by = "the lowest target loss of those" if self.report.original.target_loss else "the largest"
        return f"Picked: alpha {self.alpha:g}, {by} that keep KL(original‖new) within {self.max_kl:g} nats/token."

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values that `json` takes; `from_dict` reads it back."""
        return {
            "alpha": self.alpha,
            "max_kl": self.max_kl,
            "alphas": self.alphas,
            "report": self.report.to_dict(),
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> WiseFTSweep:
        """The report that `to_dict` gave."""
        report = ForgettingReport.from_dict(values["report"])
        return cls(report, values["alphas"], values["max_kl"], values["alpha"])

    def to_markdown(self) -> str:
        """The forgetting report's table, a line an alpha, and the verdict."""
        return f"{self.report.to_markdown()}\n{self.verdict()}\n"

    def missing_for_plot(self) -> str | None:
        """What a plot needs and the report lacks."""
        return self.report.missing_for_plot()

    def draw(self, figure: Figure) -> None:
        """Draw the path from the original model to the tuned one."""
        self.report.draw(figure)


def sweep_wise_ft(
    model: Model | str | Path,
    original: Model | str | Path,
    tokenizer: PreTrainedTokenizerBase,
    *,
    alphas: Sequence[float] = ALPHAS,
    max_kl: float | None = None,
    **measures: Any,
) -> WiseFTSweep:
    r"""
    Measure the models between the original one and the tuned one, and pick one by its KL.

    Within the bound it is the one with the lowest target loss, where `target` is given, else the one with the largest
    alpha. What is picked by rows is flattered by them: report it on others.

    Args:
        model (model, `str` or `Path`), original (model, `str` or `Path`):
            As in [`wise_ft`]. Three models are in memory at once: these two and one between them.
        tokenizer (`PreTrainedTokenizerBase`):
            Of both.
        alphas (`Sequence[float]`, *optional*, defaults to `(0.2, 0.4, 0.6, 0.8, 1.0)`):
            From 0 to 1; in any order, each once.
        max_kl (`float`, *optional*):
            Bound on KL(original || new), nats per token; without one nothing is picked.
        **measures:
            Those of [`forgetting_report`]: `target`, `context_free` (which `max_kl` needs), `general_text`, ...

    Returns:
        [`WiseFTSweep`]: `.alpha`, `.report`, `.to_markdown()`, `.save(folder)`.

    Raises:
        ValueError: if an alpha or the bound is out of bounds, an alpha comes twice, `max_kl` is given without
            `context_free`, or as in [`wise_ft`] and [`forgetting_report`].

    Example:

    ```python
    >>> sweep = sweep_wise_ft("out/sft", "original", tokenizer, target=held_out, context_free="fresh", max_kl=0.05)
    >>> model = wise_ft("out/sft", "original", sweep.alpha)
    ```
    """
    _check(alphas, max_kl, measures)
    start = loaded(original, like=model)
    tuned = tuned_model(model, start)
    forgetting = ForgettingMeasures(lambda: start, tokenizer, **measures)
    runs = []
    for alpha in sorted(alphas):
        mixed = wise_ft(tuned, start, alpha)
        runs.append(forgetting.of(f"alpha {alpha:g}", mixed))
        del mixed
        free_memory()
    picked = None if max_kl is None else _picked(runs, sorted(alphas), max_kl)
    return WiseFTSweep(forgetting.report(runs), sorted(map(float, alphas)), max_kl, picked)


def _check(alphas: Sequence[float], max_kl: float | None, measures: dict[str, Any]) -> None:
    if not alphas:
        raise ValueError("alphas is empty: give numbers from 0 to 1.")
    for alpha in alphas:
        problem = PROBABILITY.problem_of(alpha)
        if problem is not None:
            raise ValueError(f"alpha {problem}.")
    if len(set(alphas)) < len(alphas):
        raise ValueError(f"alphas={list(alphas)} names one twice; give each once.")
    if max_kl is None:
        return
    problem = NON_NEGATIVE.problem_of(max_kl)
    if problem is not None:
        raise ValueError(f"max_kl {problem}.")
    if measures.get("context_free") is None:
        raise ValueError("max_kl is a bound on KL(original || new), which is measured on context_free: give that too.")


def _picked(runs: list[RunResult], alphas: list[float], max_kl: float) -> float | None:
    within = [
        (run, alpha)
        for run, alpha in zip(runs, alphas, strict=True)
        if run.kl_original_to_new is not None and run.kl_original_to_new.mean <= max_kl
    ]
    if not within:
        return None
    # a larger alpha goes first where losses are equal, and where there are none
    best = min(within, key=lambda pair: (pair[0].target_loss.mean if pair[0].target_loss else 0.0, -pair[1]))
    return float(best[1])
