"""Regret of simulated runs: numbers, a table, a plot beside the lower bound."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hf_ext.bandits.information import SideInformation
from hf_ext.bandits.lower_bound import Bound, lower_bound
from hf_ext.guards.markdown import Markdown, code
from hf_ext.guards.reports import SavedReport, markdown_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["RegretCurves"]

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class RegretCurves(SavedReport):
    """
    Regret of simulated runs; `plot` draws it beside the lower bound, `save` writes it as JSON, Markdown, SVG and PNG.

    Args:
        policy (`str`):
            That was played.
        means (array of shape `(K,)`):
            True means, in units of reward.
        info ([`SideInformation`]):
            What playing an arm tells.
        marks (`tuple[int, ...]`):
            Rounds.
        regret (array of shape `(replicas, marks)`):
            Sum of the gaps of the arms played until then, in units of reward.
        plays (array of shape `(replicas, K)`):
            How often each arm was played by the horizon.
    """

    policy: str
    means: FloatArray
    info: SideInformation
    marks: tuple[int, ...]
    regret: FloatArray
    plays: FloatArray

    file_name = "regret"
    plot_size = (7.2, 4.8)

    @property
    def mean(self) -> FloatArray:
        """Over the replicas, shape `(marks,)`."""
        return self.regret.mean(axis=0)

    @property
    def standard_error(self) -> FloatArray:
        """Of that mean, shape `(marks,)`; NaN for a single replica."""
        replicas = len(self.regret)
        return self.regret.std(axis=0, ddof=1) / replicas**0.5 if replicas > 1 else np.full(len(self.marks), np.nan)

    @property
    def bound(self) -> Bound:
        """The lower bound on regret over log T; equal best means count as one arm."""
        return lower_bound(self.means, self.info, tie="merge")

    def to_dict(self) -> dict[str, Any]:
        """The runs as plain values that `json` takes; `from_dict` reads them back."""
        return {
            "policy": self.policy,
            "names": list(self.info.names),
            "means": self.means.tolist(),
            "precision": self.info.precision.tolist(),
            "marks": list(self.marks),
            "regret": self.regret.tolist(),
            "plays": self.plays.tolist(),
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> RegretCurves:
        """
        The runs that `to_dict` gave.

        Raises:
            ValueError: if they do not fit together.
        """
        info = SideInformation(np.array(values["precision"], dtype=np.float64), names=tuple(values["names"]))
        means, regret, plays = (np.array(values[name], dtype=np.float64) for name in ("means", "regret", "plays"))
        marks = tuple(values["marks"])
        has_rising_marks = all(type(mark) is int and mark > 0 for mark in marks) and list(marks) == sorted({*marks})
        shapes = [means.shape, regret.shape, plays.shape]
        replicas = len(regret)
        expected_shapes = [(info.num_arms,), (replicas, len(marks)), (replicas, info.num_arms)]
        is_finite = all(np.isfinite(array).all() for array in (means, regret, plays))
        if not (marks and replicas and has_rising_marks and shapes == expected_shapes and is_finite):
            raise ValueError("marks must be rising rounds, and means, regret and plays finite and of their shapes")
        return cls(str(values["policy"]), means, info, marks, regret, plays)

    def __str__(self) -> str:
        """The runs as a Markdown table."""
        return self.to_markdown()

    def to_markdown(self) -> str:
        """A line a mark: mean regret, its error, the worst run, and the mean over the bound."""
        constant = self.bound.value
        columns = zip(self.marks, self.mean, self.standard_error, self.regret.max(axis=0), strict=True)
        lines = [
            [f"{mark:,}", f"{mean:.4g}", f"{error:.2g}", f"{worst:.4g}", _share(mean, constant, mark)]
            for mark, mean, error, worst in columns
        ]
        titles = ["rounds", "mean regret", "standard error", "worst run", Markdown("mean / (C\\* log t)")]
        table = markdown_table(titles, lines, numbers=range(len(titles)))
        return (
            f"{table}\n\n{len(self.regret):,} runs of {code(self.policy)}. C\\* = {constant:.4g}: no consistent "
            "policy has less regret than about C\\* log t for large t; at a finite t it may.\n"
        )

    def missing_for_plot(self) -> str | None:
        """What a plot needs and the runs lack."""
        return None if len(self.marks) > 1 else "regret at two marks or more: pass marks=[100, 1_000, ...] to simulate"

    def draw(self, figure: Figure) -> None:
        """Draw the mean with two standard errors, the worst run, and the bound."""
        axes = figure.subplots()
        marks = np.array(self.marks)
        axes.plot(marks, self.mean, color="C0", marker=".", label=f"{self.policy}, mean of {len(self.regret):,} runs")
        if len(self.regret) > 1:
            margin = 2 * self.standard_error
            axes.fill_between(marks, self.mean - margin, self.mean + margin, color="C0", alpha=0.2, label="± 2 s.e.")
        axes.plot(marks, self.regret.max(axis=0), color="C1", linestyle=":", label="worst run")
        constant = self.bound.value
        if constant > 0:
            axes.plot(marks, constant * np.log(marks), color="black", linestyle="--", label="lower bound, C* log t")
        axes.set(xscale="log", xlabel="rounds t", ylabel="regret, units of reward")
        axes.set_title(f"Regret of {self.policy}", loc="left")
        axes.legend(frameon=False)


def _share(regret: float, constant: float, rounds: int) -> str:
    bound = constant * math.log(rounds)
    return f"{regret / bound:.2f}" if bound > 0 else ""
