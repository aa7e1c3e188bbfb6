"""Headline, tables and plot of `bandit_regret.py`, from its rows."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

Row = dict[str, Any]
FloatArray = NDArray[np.float64]

POLICIES = ("purchase", "purchase_ucb", "track", "thompson", "ucb_n", "ucb1")
FEWEST_ERRORS = 2.0  # standard errors of a paired difference within which two means are equal


def matrices_of(rows: list[Row]) -> list[str]:
    """Names of the matrices, in their order."""
    return list(dict.fromkeys(row["problem"] for row in rows if row["kind"] == "curves"))


def bound_of(rows: list[Row], problem: str) -> float:
    """C* of a matrix."""
    return float(next(row["bound"] for row in rows if row["kind"] == "curves" and row["problem"] == problem))


def rounds_of(rows: list[Row]) -> list[int]:
    """The marks of `purchase`; the last but one is the horizon of all policies."""
    return sorted({row["rounds"] for row in rows if row["kind"] == "curves" and row["policy"] == "purchase"})


def regret_of(rows: list[Row], kind: str, problem: str, policy: str, rounds: int) -> FloatArray | None:
    """Regret of each run; `None` where the policy is not defined on the matrix."""
    key = (kind, problem, policy, rounds)
    for row in rows:
        if (row["kind"], row["problem"], row["policy"], row.get("rounds")) == key:
            return np.array(row["regret"])
    return None


def wins(rows: list[Row], rivals: tuple[str, ...]) -> float:
    """
    Share of the matrices on which `purchase` is not behind any rival by more than two standard errors of the mean
    difference; the runs are paired, for all policies meet the same noise.
    """
    rounds = rounds_of(rows)[-2]
    verdicts = []
    for problem in matrices_of(rows):
        regret = regret_of(rows, "curves", problem, "purchase", rounds)
        others = [regret_of(rows, "curves", problem, rival, rounds) for rival in rivals]
        if regret is None or any(other is None for other in others):
            continue
        differences = [regret - other for other in others]
        errors = [difference.std(ddof=1) / len(difference) ** 0.5 for difference in differences]
        verdicts.append(
            all(
                difference.mean() <= FEWEST_ERRORS * error
                for difference, error in zip(differences, errors, strict=True)
            )
        )
    return sum(verdicts) / len(verdicts)


def worst_over_mean(rows: list[Row], problem: str, policy: str) -> float:
    """Of the many runs, the worst over the mean."""
    regret = regret_of(rows, "worst", problem, policy, rounds_of(rows)[-2])
    assert regret is not None
    return float(regret.max() / regret.mean())


def slope_over_bound(rows: list[Row], problem: str) -> float:
    """Regret that `purchase` gains from the second mark to the last, over what the bound says of that."""
    rounds = rounds_of(rows)
    early, late = (regret_of(rows, "curves", problem, "purchase", mark) for mark in (rounds[1], rounds[-1]))
    assert early is not None
    assert late is not None
    return float((late - early).mean() / (bound_of(rows, problem) * math.log(rounds[-1] / rounds[1])))


def loops_of(rows: list[Row], problem: str, package: str, column: str) -> list[float]:
    """A column of the loops of a package."""
    return [row[column] for row in rows if (row["kind"], row["problem"], row["policy"]) == ("loop", problem, package)]


def loop_ratio(rows: list[Row], problem: str, package: str, column: str = "regret") -> float | None:
    """A package's mean over ours; `None` where it was not run."""
    values = loops_of(rows, problem, package, column)
    if column != "regret":
        return median(values) / median(loops_of(rows, problem, "hf-ext", column)) if values else None
    regret = regret_of(rows, "curves", problem, "purchase", rounds_of(rows)[1])
    return float(np.mean(values) / regret.mean()) if values and regret is not None else None


def headline_of(rows: list[Row]) -> dict[str, Any]:
    """The figures that the benchmark's docstring lists."""
    rounds = rounds_of(rows)
    bounded = [problem for problem in matrices_of(rows) if bound_of(rows, problem) > 0]
    ratios = [ratio_of(rows, problem) for problem in bounded]
    slopes = [slope_over_bound(rows, problem) for problem in bounded]
    early, late = (regret_of(rows, "curves", "full", "purchase", mark) for mark in (rounds[0], rounds[-2]))
    simplex = [row for row in rows if row["kind"] == "simplex" and row["arms"] == 12]
    lazy, eager = (row for row in rows if row["kind"] == "plans")
    figures: dict[str, Any] = {
        "worst_regret_over_bound": max(ratios),
        "late_regret_without_bound": float((late - early).mean()),
        "wins_over_ucb": wins(rows, ("ucb1", "ucb_n")),
        "wins_over_thompson": wins(rows, ("thompson",)),
        "wins_over_purchase_ucb": wins(rows, ("purchase_ucb",)),
        "worst_run_over_mean": worst_over_mean(rows, "bandit", "purchase"),
        "worst_run_over_mean_any": max(worst_over_mean(rows, problem, "purchase") for problem in bounded),
        "thompson_worst_run_over_mean": worst_over_mean(rows, "bandit", "thompson"),
        "slope_over_bound": median(slopes),
        "worst_slope_over_bound": max(slopes),
    }
    for package in ("mabwiser", "bayesianbandits"):
        figures[f"{package}_over_purchase"] = loop_ratio(rows, "bandit", package)
    for package in ("mabwiser", "bayesianbandits", "bayesianbandits_told"):
        figures[f"{package}_over_purchase_hub"] = loop_ratio(rows, "hub", package)
    for package in ("mabwiser", "bayesianbandits"):
        figures[f"{package}_over_purchase_time"] = loop_ratio(rows, "hub", package, "ms_a_round")
    figures["highs_over_simplex_time"] = median(row["highs_us"] / row["simplex_us"] for row in simplex)
    figures["lazy_plans_share"] = lazy["plans"] / eager["plans"]
    figures["lazy_over_eager_regret"] = float(np.mean(lazy["regret"]) / np.mean(eager["regret"]))
    rounded = {name: value if value is None else round(value, 4) for name, value in figures.items()}
    return {"benchmark": "bandit_regret", **rounded}


def ratio_of(rows: list[Row], problem: str) -> float:
    """Mean regret of `purchase` at the common horizon over C* log T."""
    rounds = rounds_of(rows)[-2]
    regret = regret_of(rows, "curves", problem, "purchase", rounds)
    assert regret is not None
    return float(regret.mean() / (bound_of(rows, problem) * math.log(rounds)))


def tables_of(rows: list[Row]) -> str:
    """Regret of all policies on all matrices, and the loops, as Markdown."""
    horizon = rounds_of(rows)[-2]
    lines = [
        f"Mean regret at {horizon:,} rounds (standard error); C* log T; over it `purchase`; its worst of many runs.",
        "",
        f"| matrix | C* log T | {' | '.join(POLICIES)} | purchase / bound | slope / bound | worst run |",
        f"|---|---:|{'---:|' * len(POLICIES)}---:|---:|---:|",
    ]
    for problem in matrices_of(rows):
        bound = bound_of(rows, problem)
        cells = []
        for policy in POLICIES:
            regret = regret_of(rows, "curves", problem, policy, horizon)
            error = 0.0 if regret is None else regret.std(ddof=1) / len(regret) ** 0.5
            cells.append("" if regret is None else f"{regret.mean():.1f} ({error:.1f})")
        shares = [f"{share(rows, problem):.2f}" if bound > 0 else "" for share in (ratio_of, slope_over_bound)]
        worst = regret_of(rows, "worst", problem, "purchase", horizon)
        worst_cell = "" if worst is None else f"{worst.max():.0f}"
        lines.append(f"| {' | '.join([problem, f'{bound * math.log(horizon):.1f}', *cells, *shares, worst_cell])} |")
    lines += [
        "",
        f"| package, {rounds_of(rows)[1]:,} rounds | matrix | mean regret | ms a round |",
        "|---|---|---:|---:|",
    ]
    for package, problem in dict.fromkeys((row["policy"], row["problem"]) for row in rows if row["kind"] == "loop"):
        regret_cell = f"{np.mean(loops_of(rows, problem, package, 'regret')):.1f}"
        time_cell = f"{median(loops_of(rows, problem, package, 'ms_a_round')):.3f}"
        lines.append(f"| {package} | {problem} | {regret_cell} | {time_cell} |")
    return "\n".join(lines) + "\n"


def plot(rows: list[Row], path: Path) -> None:
    """Mean regret of every policy against rounds, one field a matrix, with C* log t."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = matrices_of(rows)
    figure, axes = plt.subplots(math.ceil(len(names) / 4), min(4, len(names)), figsize=(14, 9), squeeze=False)
    marks = rounds_of(rows)
    for axis, problem in zip(axes.flat, names, strict=False):
        for number, policy in enumerate(POLICIES):
            curve = [(mark, regret_of(rows, "curves", problem, policy, mark)) for mark in marks]
            points = [(mark, regret.mean()) for mark, regret in curve if regret is not None]
            if points:
                axis.plot(*zip(*points, strict=True), color=f"C{number}", marker=".", label=policy)
        if bound_of(rows, problem) > 0:
            line = bound_of(rows, problem) * np.log(marks)
            axis.plot(marks, line, color="black", linestyle="--", label="C* log t")
        axis.set(xscale="log", title=problem, xlabel="rounds", ylabel="mean regret")
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=len(labels), frameon=False)
    figure.tight_layout(rect=(0, 0.05, 1, 1))
    figure.savefig(path, dpi=90, metadata={"Software": None})
