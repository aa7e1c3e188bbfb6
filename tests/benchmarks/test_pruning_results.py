"""The pruning benchmarks: their parts against closed forms, their committed results computed a second time."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
KEPT = {"pca": 0.1, "proxy": 0.1, "minilm": 0.2, "minilm_weak": 0.2}
WITHOUT_SCORES = {
    "random",
    "herding",
    "herding_unit",
    "gm",
    "gm_raw",
    "gm_official",
    "moderate",
    "easy",
    "hard",
    "k_center",
}
WITH_SCORES = {"el2n", "grand", "forgetting", "uncertainty"}


@pytest.fixture
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import pruning_generation
    import pruning_robustness

    yield pruning_robustness, pruning_generation
    for name in ("pruning_generation", "pruning_robustness", "common"):
        sys.modules.pop(name, None)


def load(name: str) -> dict:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def mean(rows: list[dict], features: str, corruption: str, method: str, keep: float | None = None) -> float:
    keep = KEPT[features] if keep is None else keep
    values = [
        row["accuracy"][method]
        for row in rows
        if (row["features"], row["corruption"], row["keep"]) == (features, corruption, keep)
    ]
    return float(np.mean(values))


def test_frechet_distance_of_samples_of_two_known_normals(scripts):
    rng = np.random.default_rng(0)
    a = rng.standard_normal((200_000, 3)) * [1, 2, 3] + [0, 0, 1]
    b = rng.standard_normal((200_000, 3)) * [2, 2, 1]
    assert scripts[1].frechet(a, b) == pytest.approx(1 + (1 + 0 + 4), abs=0.1)  # |means|^2 + sum (s - t)^2
    assert scripts[1].frechet(a, a) == pytest.approx(0, abs=1e-6)


def test_corruption_spoils_its_share_and_nothing_else(scripts):
    rng = np.random.default_rng(0)
    arrays = {
        "train": rng.random((300, 784), dtype=np.float32),
        "train_labels": rng.integers(0, 10, 300),
        "test": np.zeros((2, 784), np.float32),
        "test_labels": np.zeros(2, np.int64),
    }
    clean = scripts[0].corrupted("fashion_mnist", arrays, "none", 0.0, 5, 200)
    flipped = scripts[0].corrupted("fashion_mnist", arrays, "labels", 0.4, 5, 200)
    noisy = scripts[0].corrupted("fashion_mnist", arrays, "inputs", 0.2, 5, 200)
    assert (clean.wrong.sum(), flipped.wrong.sum(), noisy.wrong.sum()) == (0, 80, 40)
    assert ((flipped.labels != clean.labels) == flipped.wrong).all()
    assert ((noisy.inputs != clean.inputs).any(1) == noisy.wrong).all()
    assert (flipped.inputs == clean.inputs).all()
    assert (noisy.labels == clean.labels).all()


def test_spoilt_pictures_are_the_rows_that_are_named(scripts):
    pictures = np.random.default_rng(0).random((50, 784), dtype=np.float32)
    before = pictures.copy()
    wrong = scripts[1].spoilt(pictures, np.zeros(50), 0.4, np.random.default_rng(1))
    assert wrong.sum() == 20
    assert ((pictures != before).any(1) == wrong).all()


def test_half_width_is_students(scripts):
    from scipy.stats import ttest_1samp

    values = [70.0, 71.5, 74.0]
    rows = [
        {"features": "pca", "corruption": "none", "keep": 0.1, "accuracy": {"gm": v}, "wrong_kept": {}} for v in values
    ]
    average, half, _ = scripts[0].means_of(rows)["pca", "none", 0.1]["gm"]
    low, high = ttest_1samp(values, 0).confidence_interval(0.95)
    assert (average - half, average + half) == pytest.approx((low, high))


def test_the_grid_is_whole():
    result = load("pruning_robustness")
    cells = {(row["features"], row["corruption"], row["seed"], row["keep"]) for row in result["rows"]}
    seeds = result["headline"]["seeds"]
    assert len(cells) == len(result["rows"]) == 3 * 5 * seeds * 3 + 5 * seeds
    assert seeds >= 3
    for row in result["rows"]:
        methods = WITHOUT_SCORES if row["features"] == "minilm_weak" else WITHOUT_SCORES | WITH_SCORES
        assert methods | {"full"} <= set(row["accuracy"])
        share = int([*row["corruption"].split(), "0"][1])
        assert row["wrong_kept"]["random"] == pytest.approx(share, abs=7.5)
    assert result["headline"]["cpu_minutes"] <= 45


def test_robustness_headline_follows_from_its_rows():
    result = load("pruning_robustness")
    rows, headline = result["rows"], result["headline"]
    for features in KEPT:
        for condition in ("none", "labels 40", "inputs 40"):
            stem = f"{features}_{condition.replace(' ', '')}"
            for method in ("full", "random", "herding", "herding_unit", "gm", "gm_raw", "gm_official"):
                assert headline[f"{stem}_{method}"] == pytest.approx(
                    mean(rows, features, condition, method), abs=0.051
                )
            best = headline[f"best_{stem}"]
            others = next(set(row["accuracy"]) for row in rows if row["features"] == features) - {"full"}
            top = max(mean(rows, features, condition, method) for method in others)
            assert mean(rows, features, condition, best) == pytest.approx(top)
    held = [one for one in result["orderings"] if one["holds"]]
    assert headline["orderings_held"] == len(held)
    missed = {one["claim"]: one["margin"] for one in result["orderings"] if not one["holds"]}
    assert headline["orderings_missed"] == missed


def test_metric_and_median_are_told_apart_by_the_four_that_differ_in_one_of_them():
    result = load("pruning_robustness")
    rows, headline = result["rows"], result["headline"]
    spoilt = ("labels 20", "labels 40", "inputs 20", "inputs 40")
    for features in KEPT:
        names = ("gm", "gm_raw", "herding_unit", "herding")
        gm, gm_raw, unit, raw = (np.array([mean(rows, features, one, name) for one in spoilt]) for name in names)
        assert headline[f"median_{features}"] == pytest.approx(np.mean([gm - unit, gm_raw - raw]), abs=0.006)
        assert headline[f"metric_{features}"] == pytest.approx(np.mean([gm - gm_raw, unit - raw]), abs=0.006)
    cells = {(row["features"], row["corruption"], row["keep"]) for row in rows if row["corruption"] != "none"}
    ahead = [mean(rows, f, c, "gm", k) > mean(rows, f, c, "full", k) for f, c, k in cells]
    assert (headline["corrupted_settings"], headline["gm_over_full"]) == (len(ahead), sum(ahead))


# Measured beforehand on a prototype: (features, corruptions, better, worse), at a margin of half a point.
EXPECTED = [
    *(
        (features, ("labels 20", "labels 40"), better, worse)
        for features in ("minilm", "minilm_weak")
        for better, worse in (("gm", "herding"), ("gm_official", "herding"), ("herding", "random"), ("gm", "full"))
    ),
    ("proxy", ("labels 40",), "gm_official", "random"),
    ("proxy", ("labels 40",), "gm", "random"),
    ("proxy", ("labels 40",), "random", "herding"),
    ("pca", ("none",), "herding", "random"),
    ("pca", ("none",), "gm_raw", "random"),
    ("pca", ("none",), "random", "gm_official"),
    *((features, ("labels 20", "labels 40"), "random", "k_center") for features in KEPT),
]
# Not so here: under a strong weight penalty a fifth of the rows does not beat all of them, and at 20 % wrong labels
# herding is as good as the released selector. The how-to says so.
MISSED = {
    ("minilm", "labels 20", "gm", "full"),
    ("minilm", "labels 40", "gm", "full"),
    ("minilm", "labels 20", "gm_official", "herding"),
}


@pytest.mark.parametrize(
    ("features", "corruption", "better", "worse"),
    [(features, one, better, worse) for features, some, better, worse in EXPECTED for one in some],
)
def test_ordering_expected_from_the_prototype(features, corruption, better, worse):
    rows = load("pruning_robustness")["rows"]
    margin = mean(rows, features, corruption, better) - mean(rows, features, corruption, worse)
    assert (margin >= 0.5) == ((features, corruption, better, worse) not in MISSED), margin


def test_every_ordering_is_in_the_result_and_the_missed_ones_are_named():
    result = load("pruning_robustness")
    claims = {f"{features}, {one}: {better} > {worse}" for features, some, better, worse in EXPECTED for one in some}
    assert claims == {one["claim"] for one in result["orderings"]}
    missed = {f"{features}, {one}: {better} > {worse}" for features, one, better, worse in MISSED}
    assert missed == set(result["headline"]["orderings_missed"])


def test_table_says_what_the_rows_say():
    rows = load("pruning_robustness")["rows"]
    text = (RESULTS / "pruning_robustness.md").read_text(encoding="utf-8")
    section = text.split("## minilm, 20% kept")[1].split("##")[0]
    line = next(line for line in section.splitlines() if line.startswith("| gm |"))
    cells = [float(cell.replace("*", "").split("±")[0]) for cell in line.split("|")[2:7]]
    conditions = ("none", "labels 20", "labels 40", "inputs 20", "inputs 40")
    assert cells == pytest.approx([mean(rows, "minilm", one, "gm") for one in conditions], abs=0.051)


def test_generation_headline_follows_from_its_rows():
    result = load("pruning_generation")
    headline = result["headline"]
    seeds = {row["seed"] for row in result["rows"]}
    assert headline["seeds"] == len(seeds) >= 3
    for share in (0.0, 0.2, 0.4):
        table = {
            arm: np.array([r["frechet"] for r in result["rows"] if (r["arm"], r["corrupted"]) == (arm, share)])
            for arm in ("full", "clean", "random", "herding", "herding_unit", "gm", "gm_raw")
        }
        percent = round(100 * share)
        for arm, values in table.items():
            assert len(values) == len(seeds)
            assert headline[f"{percent}_{arm}"] == pytest.approx(values.mean(), abs=6e-4)
        for rival in ("random", "herding", "herding_unit"):
            expected = table["gm"].mean() / table[rival].mean()
            assert headline[f"gm_over_{rival}_{percent}"] == pytest.approx(expected, abs=1e-4)
        expected = table["gm_raw"].mean() / table["herding"].mean()
        assert headline[f"gm_raw_over_herding_{percent}"] == pytest.approx(expected, abs=1e-4)
    assert headline["floor"] < min(row["frechet"] for row in result["rows"])
    assert min(result["judge_accuracy"]) > 85
    kept = {row["rows"] for row in result["rows"] if row["arm"] not in ("full", "clean")}
    assert kept == {2000}


def test_speed_headline_follows_from_its_rounds():
    result = load("gm_matching_speed")
    headline, found = result["headline"], result["rows"]
    assert (headline["n"], headline["d"], headline["k"]) == (100_000, 384, 10_000)
    assert len(found) >= 15
    ratios = {
        "speedup_exact": ("released", "int8"),
        "speedup_pool": ("released", "pool"),
        "speedup_over_numpy": ("numpy", "int8"),
        "f32_over_read_bound": ("f32", "read_f32"),
        "int8_over_read_bound": ("int8", "read_int8"),
    }
    for key, (slow, fast) in ratios.items():
        assert headline[key] == pytest.approx(np.median([row[slow] / row[fast] for row in found]), abs=6e-4), key
    assert headline["f32_over_read_bound"] >= 1, "nothing is faster than reading: the bound would be none"
    hours = 10_000 * np.median([row["released"] for row in found]) / 3600
    assert headline["released_hours"] == pytest.approx(hours, abs=6e-4)
    assert headline["exact_seconds"] == result["calls"]["int8"]["seconds_by_k"]["10000"]
    assert headline["peak_memory_mb"] == round(result["memory_bytes"]["int8"]["peak"] / 1e6)
    assert set(result["curves"]) == {"n", "k", "threads"}
    assert [one["internal_api"] for one in result["numpy_blas"]], "which kernel numpy's product ran"
