"""Headline, tables and plot of `moe_em_convergence.py`, from its rows."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import Any

TOLERANCE = 1e-3  # nats a row above a method's best value, to which passes are counted
NEAR = 5e-3  # nats a row: as good as the best of any method
PAPER = {"em": (0.785, 0.827), "gradient_em": (0.66, 1.29), "gd": (0.624, 1.30)}  # share right, cross entropy
HEADLINE_LINEAR = ("k2_d10", "k4_d20")
NAMES = {
    "auto": "auto", "auto_one": "auto, one start", "em": "EM", "em+lbfgs": "EM, then L-BFGS", "lbfgs": "L-BFGS",
    "gd": "gradient descent", "gradient_em": "gradient EM", "sgd": "SGD with momentum", "adam": "Adam",
    "adam_batches": "Adam on batches", "single": "one expert", "cgmm": "cgmm (EM)",
    "neural_trees": "neural-trees (Adam)",
}  # fmt: skip

Row = dict[str, Any]


def problems_of(rows: Iterable[Row], *names: str) -> list[tuple[str, int]]:
    """Problem and instance of the rows, of these problems where any are named."""
    return sorted({(row["problem"], row["instance"]) for row in rows if not names or row["problem"] in names})


def select(rows: Iterable[Row], problem: tuple[str, int], method: str, whitened: bool, start: int = 0) -> list[Row]:
    """Rows of a method on a problem, one a setting."""
    key = (*problem, method, whitened, start)
    return [
        row for row in rows if (row["problem"], row["instance"], row["method"], row["whitened"], row["start"]) == key
    ]


def passes_to(row: Row, target: float) -> float:
    """Passes after which a run is at most `target`; infinity where it never is."""
    return next((passes for passes, objective in row["curve"] if objective <= target), math.inf)


def best_of(rows: list[Row]) -> Row | None:
    """The setting with the lowest objective."""
    return min(rows, key=lambda row: row["objective"], default=None)


def passes_ratio(rival: list[Row], ours: list[Row]) -> float | None:
    """
    Passes of the rival to its best value + 1e-3 over those of ours to the same, each at the setting that takes the
    fewest; 0 where ours never is.

    `None` where one of them was not run.
    """
    rival_row = best_of(rival)
    if rival_row is None or not ours:
        return None
    target = rival_row["objective"] + TOLERANCE
    rival_passes, least_passes = (min(passes_to(row, target) for row in runs) for runs in (rival, ours))
    return rival_passes / least_passes  # over infinity: 0


def ratio_over(
    rows: list[Row], names: tuple[str, ...], rival: str, ours: str, *, whitened: bool = False, start: int = 0
) -> float | None:
    """Median over the problems of [`passes_ratio`]."""
    ratios = [
        passes_ratio(select(rows, problem, rival, whitened, start), select(rows, problem, ours, True, start))
        for problem in problems_of(rows, *names)
    ]
    measured_ratios = [ratio for ratio in ratios if ratio is not None]
    return round(median(measured_ratios), 2) if measured_ratios else None


def excess_of_auto(rows: list[Row]) -> list[tuple[tuple[str, int], float]]:
    """Objective of `auto` above the lowest of all runs of as many passes, nats a row, of each problem."""
    excess = []
    for problem in problems_of(rows):
        runs = [row for row in rows if (row["problem"], row["instance"]) == problem and "objective" in row]
        auto = [row for row in runs if row["method"] == "auto"]
        if auto and problem[0] != "invert28":  # there auto stops early on validation rows
            excess.append((problem, auto[0]["objective"] - min(row["objective"] for row in runs)))
    return excess


def headline_of(rows: list[Row]) -> dict[str, Any]:
    """The last line."""
    pictures = ("invert14",)
    in_share = [excess for (name, _), excess in excess_of_auto(rows) if name != "k8_d50"]
    of_eight = [excess for (name, _), excess in excess_of_auto(rows) if name == "k8_d50"]
    points = []
    for problem in problems_of(rows, *pictures):
        auto = select(rows, problem, "auto", True)
        single = select(rows, problem, "single", True)
        if auto and single:
            points.append(100 * (auto[0]["test_accuracy"] - single[0]["test_accuracy"]))
    nats = []
    for problem in problems_of(rows, *HEADLINE_LINEAR):
        cgmm = select(rows, problem, "cgmm", False)
        auto = select(rows, problem, "auto", True)
        if cgmm and auto:
            nats.append(cgmm[0]["nll"] - auto[0]["nll"])
    return {
        "benchmark": "moe_em_convergence",
        "gd_over_em_passes": ratio_over(rows, pictures, "gd", "em"),
        "gd_over_em_passes_whitened": ratio_over(rows, pictures, "gd", "em", whitened=True),
        "adam_over_auto_passes": ratio_over(rows, pictures, "adam", "auto_one"),
        "adam_over_auto_passes_whitened": ratio_over(rows, pictures, "adam", "auto_one", whitened=True),
        "adam_over_lbfgs_passes_random_start": ratio_over(rows, pictures, "adam", "lbfgs", start=1),
        "adam_over_auto_passes_linear": ratio_over(rows, HEADLINE_LINEAR, "adam", "auto_one"),
        "auto_best_share": round(sum(excess <= NEAR for excess in in_share) / len(in_share), 3) if in_share else None,
        "auto_problems": len(in_share),
        "auto_excess_nats_eight_experts": round(median(of_eight), 4) if of_eight else None,
        "mixture_minus_single_points": round(median(points), 2) if points else None,
        "cgmm_minus_auto_nats": round(median(nats), 4) if nats else None,
    }


# --- tables --------------------------------------------------------------------------------------------------------


def setting_of(row: Row, rows: list[Row]) -> str:
    """The best setting; marked where it is an end of those tried."""
    if row["setting"] is None:
        return ""
    tried = sorted(other["setting"] for other in rows if other["setting"] is not None)
    is_end = len(tried) > 2 and row["setting"] in (tried[0], tried[-1])
    return f"{row['setting']:g}{' (end)' if is_end else ''}"


def _cell(values: list[float | None], digits: int) -> str:
    numbers = [value for value in values if value is not None and math.isfinite(value)]
    return f"{median(numbers):.{digits}f}" if numbers else ""


def table_of(rows: list[Row], name: str) -> str:
    """A table of one problem: medians over its instances, each at its best setting."""
    kinds = list(
        dict.fromkeys((row["method"], row["whitened"], row["start"]) for row in rows if row["problem"] == name)
    )
    lines = [
        "| method | best settings | objective | test accuracy, % | test nats | passes to 1e-3 above its best | s |",
        "|---|---|---|---|---|---|---|",
    ]
    for method, whitened, start in kinds:
        groups = [select(rows, problem, method, whitened, start) for problem in problems_of(rows, name)]
        swept = [(min(group, key=_order), group) for group in groups if group]
        label = NAMES[method]
        if whitened and method in ("gd", "adam"):
            label += ", whitened"
        if start:
            label += ", random start"
        best = [row for row, _ in swept]
        accuracy = [None if row["test_accuracy"] is None else 100 * row["test_accuracy"] for row in best]
        passes = [passes_to(row, row["objective"] + TOLERANCE) for row in best if row.get("curve")]
        cells = [
            label,
            ", ".join(dict.fromkeys(setting_of(row, group) for row, group in swept)),
            _cell([row.get("objective") for row in best], 4),
            _cell(accuracy, 2),
            _cell([row["test_nll"] for row in best], 3),
            _cell(list(passes), 0),
            _cell([row["seconds"] for row in best], 1),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _order(row: Row) -> float:
    """What the best setting of a method is chosen by: the training rows."""
    return float(row["objective"] if "objective" in row else row["nll"])


def paper_table(rows: list[Row]) -> str:
    """The paper's table beside ours: 100 iterations on 28 x 28 pixels."""
    lines = ["| method | paper, share right / nats | here | stopped on validation rows |", "|---|---|---|---|"]
    for method, (accuracy, nats) in PAPER.items():
        groups = [select(rows, problem, method, method == "em") for problem in problems_of(rows, "invert28")]
        best_rows = [row for row in map(best_of, groups) if row is not None]
        if not best_rows:
            continue
        prefix = "last_" if "last_test_nll" in best_rows[0] else ""
        last_accuracy = _cell([row[prefix + "test_accuracy"] for row in best_rows], 3)
        last_nll = _cell([row[prefix + "test_nll"] for row in best_rows], 3)
        early_accuracy = _cell([row["test_accuracy"] for row in best_rows], 3) if prefix else ""
        cells = [NAMES[method], f"{accuracy} / {nats}", f"{last_accuracy} / {last_nll}", early_accuracy]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def tables_of(rows: list[Row], headline: dict[str, Any]) -> str:
    """The page beside the result."""
    parts = ["# Mixtures of experts: convergence", "", "| figure | value |", "|---|---|"]
    parts += [f"| {key} | {value} |" for key, value in headline.items() if key != "benchmark"]
    if problems_of(rows, "invert28"):
        parts += ["", "## The paper's table", "", paper_table(rows)]
    for name in dict.fromkeys(row["problem"] for row in rows):
        count = len(problems_of(rows, name))
        parts += ["", f"## {name}: medians of {count}", "", table_of(rows, name)]
    return "\n".join(parts) + "\n"


# --- plot ----------------------------------------------------------------------------------------------------------

SHOWN = (
    ("auto", True), ("auto_one", True), ("em", True), ("gd", False), ("gd", True), ("adam", False), ("adam", True),
    ("adam_batches", False),
)  # fmt: skip
GRID = (8, 10, 13, 16, 20, 25, 32, 40, 50, 64, 80, 100, 130, 160, 200, 250, 320, 400)


def value_at(row: Row, passes: float) -> float:
    """Best objective after so many passes."""
    return min((objective for cost, objective in row["curve"] if cost <= passes), default=math.nan)


def plot(rows: list[Row], path: Path) -> None:
    """Objective against passes, of each kind of problem, and test nats against passes and seconds on pictures."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = [name for name in ("invert14", "k2_d10", "k4_d20", "snips", "banking77") if problems_of(rows, name)]
    figure, axes = plt.subplots(1, len(names) + 2, figsize=(4 * len(names) + 8, 4.5))
    for axis, name in zip(axes, names, strict=False):
        lowest = min(row["objective"] for row in rows if row["problem"] == name and "objective" in row)
        for number, (method, whitened) in enumerate(SHOWN):
            best = [best_of(select(rows, problem, method, whitened)) for problem in problems_of(rows, name)]
            runs = [row for row in best if row is not None and row["curve"]]
            if runs:
                heights = [median(value_at(row, passes) for row in runs) - lowest + 1e-3 for passes in GRID]
                label = NAMES[method] + (", whitened" if whitened and method in ("gd", "adam") else "")
                axis.plot(GRID, heights, color=f"C{number}", label=label)
        axis.set(xscale="log", yscale="log", title=name, xlabel="passes", ylabel="objective - lowest + 1e-3, nats")
    for axis, column, unit in ((axes[-2], 0, "passes"), (axes[-1], 1, "seconds")):
        for number, (method, whitened) in enumerate(SHOWN):
            best = [best_of(select(rows, problem, method, whitened)) for problem in problems_of(rows, "invert14")[:1]]
            marks = [mark for row in best if row is not None for mark in row["marks"] if mark[2] is not None]
            axis.plot([mark[column] for mark in marks], [mark[2] for mark in marks], color=f"C{number}", marker=".")
        axis.set(xscale="log", title="invert14, first instance", xlabel=unit, ylabel="test nats", ylim=(0.4, 1.5))
    handles: dict[str, Any] = {}
    for axis in axes:
        handles |= dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
    figure.legend(handles.values(), handles.keys(), loc="lower center", ncols=len(SHOWN), frameon=False)
    figure.tight_layout(rect=(0, 0.07, 1, 1))
    figure.savefig(path, dpi=90, metadata={"Software": None})
