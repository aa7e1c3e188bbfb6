"""The figures of the consensus benchmark: its settings and expected orderings, headline and tables from the rows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from statistics import fmean, stdev
from typing import Any

from scipy.stats import t as student

SETTINGS = [
    (dataset, model, epsilon)
    for dataset, epsilons in (("fashion_mnist", (1, 2, 3)), ("snips", (1, 2, 3)), ("banking77", (2, 3, 4)))
    for model in ("linear", "mlp")
    for epsilon in epsilons
] + [("fashion_mnist", "cnn", 2)]
MORE_SEEDS = {("banking77", 3): 5}
# (dataset, model, epsilon, better, worse, least margin in points): measured beforehand on a prototype.
ORDERINGS = [
    ("banking77", "linear", 3, "consensus", "full", 0.0),
    ("banking77", "linear", 3, "full", "baseline", 0.0),
    ("banking77", "linear", 3, "consensus", "baseline", 5.0),
    ("snips", "linear", 1, "forward_consensus", "consensus", 0.0),
    ("snips", "linear", 1, "consensus", "baseline", 5.0),
    ("fashion_mnist", "linear", 1, "forward", "consensus", 0.0),
    ("fashion_mnist", "linear", 1, "consensus", "baseline", 3.0),
    ("fashion_mnist", "linear", 3, "forward", "baseline", 0.0),
    ("fashion_mnist", "linear", 3, "baseline", "consensus", -0.3),
]


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean, and the ends of its 95 % interval by Student's t."""
    half = float(student.ppf(0.975, len(values) - 1)) * stdev(values) / math.sqrt(len(values))
    return fmean(values), fmean(values) - half, fmean(values) + half


def rows_of(rows: list[dict[str, Any]], dataset: str, model: str, epsilon: float) -> list[dict[str, Any]]:
    """The rows of a setting."""
    return [row for row in rows if (row["dataset"], row["model"], row["epsilon"]) == (dataset, model, epsilon)]


def orderings_of(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Each ordering with its measured margin."""
    for dataset, model, epsilon, better, worse, least in ORDERINGS:
        own = rows_of(rows, dataset, model, epsilon)
        margin = fmean(row["accuracy"][better] - row["accuracy"][worse] for row in own)
        claim = f"{dataset}, {model}, epsilon {epsilon}: {better} - {worse} >= {least:g}"
        yield {"claim": claim, "margin": round(margin, 2), "holds": margin >= least}


def headline_of(result: dict[str, Any], cpu_seconds: float) -> dict[str, Any]:
    """The headline from the rows."""
    rows, covered = result["rows"], result["coverage"]
    shown = [row["accuracy"] for row in rows_of(rows, "banking77", "linear", 3)]
    gain, low, high = interval([row["consensus"] - row["baseline"] for row in shown])
    worst = min(
        fmean(row["accuracy"]["auto"] - row["accuracy"]["forward"] for row in rows_of(rows, *of)) for of in SETTINGS
    )
    tuned = [row["accuracy"] for row in result["finetuned"]]
    inside = [r["out_of_fold_estimate"]["low"] <= r["out_of_fold_accuracy"] <= r["out_of_fold_estimate"]["high"]
              for r in covered]  # fmt: skip
    return {
        "benchmark": "consensus_label_dp",
        "settings": len({(row["dataset"], row["model"], row["epsilon"]) for row in rows}),
        "seeds": min(sum(1 for _ in rows_of(rows, *of)) for of in SETTINGS),
        "best_gain_points": round(gain, 2),
        "best_gain_low": round(low, 2),
        "best_gain_high": round(high, 2),
        "consensus_over_forward_points": round(fmean(r["forward_consensus"] - r["forward"] for r in shown), 2),
        "auto_regret_points": round(fmean(max(r["accuracy"].values()) - r["accuracy"]["auto"] for r in rows), 2),
        "auto_minus_round1_points": round(worst, 2),
        "auto_minus_baseline_points": round(fmean(r["accuracy"]["auto"] - r["accuracy"]["baseline"] for r in rows), 2),
        "orderings_held": sum(one["holds"] for one in result["orderings"]),
        "orderings": len(result["orderings"]),
        "coverage": round(fmean(inside), 3),
        "coverage_repeats": len(inside),
        "finetuned_forward_points": round(fmean(r["forward"] - r["baseline"] for r in tuned), 2),
        "finetuned_consensus_points": round(fmean(r["forward_consensus"] - r["baseline"] for r in tuned), 2),
        "cpu_minutes": round(cpu_seconds / 60, 1),
    }


def tables_of(result: dict[str, Any]) -> str:
    """Markdown: accuracies, what the first round makes of the training rows, estimates beside the truth."""
    rows = result["rows"]
    arms = list(dict.fromkeys(arm for row in rows for arm in row["accuracy"]))
    lines = [
        "# Consensus under label privacy: accuracy on clean test rows",
        "",
        "Written by `benchmarks/consensus_label_dp.py`, which explains the arms. Means over seeds in %. Bold: the",
        "best arm of a setting. `gain` is consensus minus baseline in points, with its 95 % interval.",
        "",
        "| set, model, epsilon | " + " | ".join(arms) + " | gain | auto takes |",
        "|---" * (len(arms) + 3) + "|",
    ]
    for of in SETTINGS:
        own = rows_of(rows, *of)
        means = {arm: fmean(row["accuracy"][arm] for row in own) for arm in arms}
        best = max((arm for arm in arms if arm != "auto"), key=lambda arm: means[arm])
        cells = [f"**{means[arm]:.1f}**" if arm == best else f"{means[arm]:.1f}" for arm in arms]
        gain, low, high = interval([row["accuracy"]["consensus"] - row["accuracy"]["baseline"] for row in own])
        taken = ", ".join(sorted({row["chosen"] for row in own}))
        lines.append(f"| {of[0]}, {of[1]}, {of[2]} | " + " | ".join(cells)
                     + f" | {gain:+.1f} [{low:+.1f}, {high:+.1f}] | {taken} |")  # fmt: skip
    lines += [
        "",
        "## Training rows, and accuracy without clean labels",
        "",
        "Given: share of right labels in the release. S: rows whose prediction (cross-entropy, in sample) is the",
        "given label. In sample: accuracy read off the noisy labels of the rows that model was trained on, beside the",
        "truth in brackets. Out of fold: the same of the forward round's out-of-fold predictions.",
        "",
        "| set, model, epsilon | given | share of S | right in S | in sample | out of fold |",
        "|---|---|---|---|---|---|",
    ]
    for of in SETTINGS:
        own = rows_of(rows, *of)
        mean = {k: fmean(row[k] for row in own) for k in own[0] if isinstance(own[0][k], float)}
        estimate = fmean(row["out_of_fold_estimate"]["value"] for row in own)
        lines.append(
            f"| {of[0]}, {of[1]}, {of[2]} | {mean['given_accuracy']:.3f} | {mean['share']:.3f} | "
            f"{mean['precision']:.3f} | {mean['in_sample_estimate']:.3f} ({mean['predicted_accuracy']:.3f}) | "
            f"{estimate:.3f} ({mean['out_of_fold_accuracy']:.3f}) |"
        )
    lines += [
        "",
        "## Orderings expected from the prototype",
        "",
        "| ordering | margin, points | holds |",
        "|---|---|---|",
    ]
    lines += [f"| {o['claim']} | {o['margin']:+.2f} | {'yes' if o['holds'] else 'no'} |" for o in result["orderings"]]
    title = "## MiniLM fine-tuned on 2,000 snips texts, epsilon 1"
    lines += ["", title, "", "| seed | baseline | forward | forward_consensus |", "|---|---|---|---|"]
    for row in result["finetuned"]:
        found = row["accuracy"]
        lines.append(f"| {row['seed']} | " + " | ".join(f"{found[arm]:.1f}" for arm in found) + " |")
    return "\n".join(lines) + "\n"
