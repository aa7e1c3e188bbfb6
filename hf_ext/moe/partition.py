"""Who handles what: the gate's regions on two axes, each expert's share, and the rows most typical of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from hf_ext.guards.reports import SavedReport, markdown_table
from hf_ext.guards.row_text import shorten
from hf_ext.moe.parameters import MixtureParameters
from hf_ext.moe.rows import check_finite

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DRAWN_ROWS = 2000
_GRID = 200  # points along an axis of the drawn plane
_WIDE = 4096  # features: the covariance of more takes gigabytes, and minutes


@dataclass(frozen=True)
class TypicalRow:
    """
    A row near the centre of what an expert handles.

    Args:
        row (`int`):
            Its number, from 0.
        responsibility (`float`):
            The expert's, for this row.
        excerpt (`str`):
            Of its text, at most 80 characters.
    """

    row: int
    responsibility: float
    excerpt: str


@dataclass(frozen=True)
class ExpertPart:
    """
    What one expert handles.

    Args:
        expert (`int`):
            Its number, from 0.
        share (`float`):
            Its mean responsibility over all rows.
        rows (`int`):
            Rows of which it has the largest responsibility.
        accuracy (`float`, *optional*):
            Share of those rows whose class the mixture predicts; `None` without labels, or of linear experts.
        typical (`list[TypicalRow]`):
            The rows among them that lie nearest to their centre in standardised features.
    """

    expert: int
    share: float
    rows: int
    accuracy: float | None = None
    typical: list[TypicalRow] = field(default_factory=list)


@dataclass(frozen=True)
class PartitionReport(SavedReport):
    r"""
    How a mixture divides the rows among its experts: numbers, JSON, Markdown and a plot.

    The plot's axes are the first two principal axes of the standardised features; its regions are those of the gate on
    the plane through the rows' mean, $\arg\max_i (a\,u_i + b\,v_i + c_i)$. In more dimensions rows lie before and
    behind that plane, so a row may have another expert than the region in which it is drawn.

    Args:
        rows (`int`):
            Rows that were divided.
        by_labels (`bool`):
            Whether responsibilities are those given the labels, or the gate's.
        experts (`list[ExpertPart]`):
            One each.
        points (`list[list[float]]`):
            Up to 2,000 rows, evenly spread over the set: their place on both axes, and their expert.
        plane (`list[list[float]]`):
            $u_i, v_i, c_i$ of each expert, in nats.
        explained (`list[float]`):
            Share of the variance of the features along each of the two axes.
    """

    rows: int
    by_labels: bool
    experts: list[ExpertPart]
    points: list[list[float]]
    plane: list[list[float]]
    explained: list[float]

    file_name = "partition"
    plot_size = (7.2, 5.2)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values that `json` takes; `from_dict` reads it back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> PartitionReport:
        """
        The report that `to_dict` gave.

        Raises:
            ValueError: if its numbers are not those of a plot.
        """
        experts = [
            ExpertPart(**{**part, "typical": [TypicalRow(**row) for row in part["typical"]]})
            for part in values["experts"]
        ]
        report = cls(**{**values, "experts": experts})
        lengths = {len(numbers) for numbers in (*report.points, *report.plane)}
        if lengths - {3} or len(report.plane) not in (0, len(experts)) or len(report.explained) not in (0, 2):
            raise ValueError("points and plane must hold three numbers each, a plane an expert, explained two numbers")
        return report

    def to_markdown(self) -> str:
        """The report as Markdown: a line an expert, and its typical rows."""
        kind = "given the labels" if self.by_labels else "of the gate"
        lines = [
            [
                part.expert,
                f"{part.share:.1%}",
                f"{part.rows:,}",
                "" if part.accuracy is None else f"{part.accuracy:.1%}",
            ]
            for part in self.experts
        ]
        table = markdown_table(["expert", "share", "rows", "accuracy on them"], lines, numbers=(1, 2, 3))
        typical = [
            [part.expert, f"{row.row:,}", f"{row.responsibility:.3f}", row.excerpt]
            for part in self.experts
            for row in part.typical
        ]
        parts = [table, f"Shares are mean responsibilities {kind}, over {self.rows:,} rows."]
        if typical:
            titles = ["expert", "row", "responsibility", "excerpt"]
            parts.append("### Most typical rows\n\n" + markdown_table(titles, typical, numbers=(1, 2)))
        return "\n\n".join(parts) + "\n"

    def missing_for_plot(self) -> str | None:
        """What a plot needs and the report lacks."""
        return None if self.points and self.plane and self.explained else "features of at least two dimensions"

    def draw(self, figure: Figure) -> None:
        """Draw rows and regions on the two axes, a colour an expert."""
        axes = figure.subplots()
        points = np.array(self.points)
        low = points[:, :2].min(0)
        high = points[:, :2].max(0)
        margin = 0.05 * (high - low) + 1e-6
        self._draw_regions(axes, low - margin, high + margin)
        for part in self.experts:
            expert_points = points[points[:, 2] == part.expert]
            label = f"expert {part.expert}: {part.share:.1%}"
            axes.scatter(
                expert_points[:, 0], expert_points[:, 1], s=7, color=f"C{part.expert}", edgecolors="none", label=label
            )
        axes.set_xlabel(f"first principal axis ({self.explained[0]:.0%} of the variance)")
        axes.set_ylabel(f"second principal axis ({self.explained[1]:.0%})")
        axes.set_title("Rows by expert, on the regions of the gate", loc="left")
        axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))

    def _draw_regions(self, axes: Axes, low: np.ndarray, high: np.ndarray) -> None:
        horizontal = np.linspace(low[0], high[0], _GRID)
        vertical = np.linspace(low[1], high[1], _GRID)
        a, b = np.meshgrid(horizontal, vertical)
        u, v, c = np.array(self.plane).T[:, :, None, None]
        regions = (a * u + b * v + c).argmax(0)
        for number in np.unique(regions):
            inside = np.where(regions == number, 1.0, np.nan)
            axes.contourf(horizontal, vertical, inside, levels=[0.5, 1.5], colors=[f"C{number}"], alpha=0.18)
        axes.set_xlim(low[0], high[0])
        axes.set_ylim(low[1], high[1])


def partition_report(
    mixture: MixtureParameters,
    X: Tensor,
    y: Tensor | None = None,
    *,
    text_of: Callable[[int], str] | None = None,
    typical_rows: int = 3,
) -> PartitionReport:
    """
    Measure how a mixture divides rows among its experts.

    Args:
        mixture ([`~hf_ext.moe.parameters.MixtureParameters`]):
            Of a fit, or a model's `mixture_parameters()`.
        X (`torch.Tensor` of shape `(n, d)`):
            Raw features.
        y (`torch.Tensor` of shape `(n,)` or `(n, m)`, *optional*):
            Labels: responsibilities are then those given the label.
        text_of (`Callable[[int], str]`, *optional*):
            A row's text, for its excerpt.
        typical_rows (`int`, *optional*, defaults to 3):
            Rows to name of each expert.

    Raises:
        ValueError: if there is no row, or a feature is not finite.
    """
    if not len(X):
        raise ValueError("there is no row to divide among the experts.")
    X = X.detach().to(mixture.gate)
    check_finite(X, "X")
    gate_logits = mixture.outputs(X)[0]
    responsibilities = gate_logits.softmax(-1) if y is None else mixture.posterior(X, y.to(X.device))[0]
    handled_by = responsibilities.argmax(-1)
    correct = None
    if y is not None and mixture.expert_type != "linear":
        correct = (mixture.predict(X).argmax(-1) == y.to(X.device)).double()
    standardised = (X - mixture.mean) / mixture.scale
    experts = [
        _part(expert, responsibilities[:, expert], handled_by == expert, standardised, correct, text_of, typical_rows)
        for expert in range(len(mixture.gate))
    ]
    points, plane, explained = _plane(mixture, standardised, handled_by)
    return PartitionReport(len(X), y is not None, experts, points, plane, explained)


def _part(
    expert: int,
    responsibility: Tensor,
    is_handled: Tensor,
    standardised: Tensor,
    correct: Tensor | None,
    text_of: Callable[[int], str] | None,
    typical_rows: int,
) -> ExpertPart:
    places = is_handled.nonzero()[:, 0]
    share = float(responsibility.mean())
    if not len(places):
        return ExpertPart(expert, share, 0)
    weights = responsibility[places]
    center = weights @ standardised[places] / weights.sum()
    distances = (standardised[places] - center).square().sum(1)
    nearest = places[distances.argsort(stable=True)[:typical_rows]].tolist()
    typical = [
        TypicalRow(row, float(responsibility[row]), "" if text_of is None else shorten(text_of(row)))
        for row in nearest
    ]
    accuracy = None if correct is None else float(correct[places].mean())
    return ExpertPart(expert, share, len(places), accuracy, typical)


def _plane(
    mixture: MixtureParameters, standardised: Tensor, handled_by: Tensor
) -> tuple[list[list[float]], list[list[float]], list[float]]:
    """Places of some rows on two principal axes, the gate on the plane that they span, and the variance they hold."""
    is_wide = standardised.shape[1] > _WIDE
    if standardised.shape[1] < 2 or (is_wide and len(standardised) < 2):
        return [], [], []
    center = standardised.mean(0)
    spread = standardised - center
    chosen = torch.linspace(0, len(spread) - 1, min(len(spread), _DRAWN_ROWS)).round().long().to(spread.device)
    if is_wide:
        axes = torch.linalg.svd(spread[chosen], full_matrices=False).Vh[:2].T
    else:
        axes = torch.linalg.eigh(spread.T @ spread / len(spread)).eigenvectors[:, [-1, -2]]  # ascending
    largest = axes.abs().argmax(0)
    axes = axes * axes[largest, [0, 1]].sign()  # a sign of its own would turn the plot from one run to the next
    places = spread[chosen] @ axes
    points = torch.cat([places, handled_by[chosen, None].to(places)], 1)
    weight = mixture.gate[:, :-1]
    constant = weight @ center + mixture.gate[:, -1]
    plane = torch.cat([weight @ axes, constant[:, None]], 1)
    total = spread.square().sum().clamp(min=1e-300)
    explained = (spread @ axes).square().sum(0) / total
    return points.tolist(), plane.tolist(), explained.tolist()
