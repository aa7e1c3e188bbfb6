"""The retrieval benchmark: its scores against hand-worked cases, its committed headline computed a second time."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import rare_retrieval

    yield rare_retrieval
    for name in ("rare_retrieval", "retrieval_jobs", "common"):
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def result() -> dict:
    path = ROOT / "benchmarks" / "results" / "rare_retrieval.json"
    return json.loads(path.read_text(encoding="utf-8"))


# --- parts -----------------------------------------------------------------------------------------------------------


def test_ndcg_of_hand_worked_rankings(script):
    assert script.gain_of(["a", "b", "c"], {"a"}) == 1.0
    assert script.gain_of(["b", "a", "c"], {"a"}) == pytest.approx(1 / math.log2(3))
    two = (1 / math.log2(2) + 1 / math.log2(4)) / (1 / math.log2(2) + 1 / math.log2(3))
    assert script.gain_of(["a", "x", "b"], {"a", "b"}) == pytest.approx(two)
    assert script.gain_of([f"x{i}" for i in range(10)] + ["a"], {"a"}) == 0.0
    documents = np.eye(3, dtype="f2")
    queries = np.array([[0.9, 0.1, 0.0], [0.1, 0.2, 0.7]])
    found = script.ndcg(documents, queries, ["a", "b", "c"], [{"b"}, {"c"}])
    assert found == pytest.approx([1 / math.log2(3), 1.0])


def test_a_blend_keeps_bare_what_uses_no_examples_and_has_length_one(script):
    plain, shown = np.array([[1.0, 0.0], [1.0, 0.0]]), np.array([[0.0, 1.0], [0.0, 1.0]])
    mixed = script.blended(plain, shown, 0.5, np.array([True, False]))
    assert mixed == pytest.approx(np.array([[math.sqrt(0.5), math.sqrt(0.5)], [1.0, 0.0]]))


def test_dev_is_a_fifth_of_the_ids_and_does_not_change(script):
    from retrieval_jobs import is_dev

    assert 350 < sum(is_dev(str(i)) for i in range(2000)) < 450
    assert [i for i in range(30) if is_dev(str(i))] == [i for i in range(30) if is_dev(str(i))]


@pytest.mark.real
def test_no_dev_query_is_trained_on_or_shown_while_tuning(script, real_data):
    from retrieval_jobs import Job, load, rows_of, split_of, store_of

    job = Job("rare", without_dev=True)
    for task, rows in rows_of(job).items():
        data = load(task, 0, False)
        dev, pool = split_of(data, "dev")
        assert len(dev) > 50
        assert not set(rows["id"]) & set(dev)
        assert not set(store_of(data, pool).column("id")) & set(dev)
        test, _ = split_of(data, "test")
        assert not set(test) & {query for query, _ in data["pairs"]["train"]}


# --- the committed result --------------------------------------------------------------------------------------------


def table_of(rows: list[dict], arm: str, task: str, column: str, seeds: tuple[int, ...] = (0, 1, 2)) -> list[float]:
    """Points of each query, mean of seeds, by plain loops."""
    own = [row for row in rows if (row["arm"], row["task"]) == (arm, task) and row["seed"] in seeds]
    seeds = [[int(value) for value in row[column].split()] for row in own]
    return [sum(values) / len(values) / 100 for values in zip(*seeds, strict=True)]


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def test_retrieval_headline_follows_from_its_rows(result):
    rows, headline = result["rows"], result["headline"]
    assert headline["seeds"] == 3 == len({row["seed"] for row in rows if row["arm"] == "twin"})
    rare, twin = (table_of(rows, arm, "scifact", name) for arm, name in (("rare", "blend"), ("twin", "plain")))
    assert len(rare) == len(twin) == 200, "all test claims"
    gains = [a - b for a, b in zip(rare, twin, strict=True)]
    (leaked,) = {row["leaked"] for row in rows if (row["arm"], row["task"]) == ("rare", "scifact")}
    other = [
        a - b
        for a, b in zip(
            table_of(rows, "rare", "pubmedqa", "blend"), table_of(rows, "twin", "pubmedqa", "plain"), strict=True
        )
    ]
    assert len(other) == 250
    clean = [gain for gain, flag in zip(gains, leaked, strict=True) if flag == "0"] + other
    cautious = [
        np.subtract(table_of(rows, "rare_cautious", task, "blend"), table_of(rows, "twin", task, "plain"))
        for task in ("scifact", "pubmedqa")
    ]
    plain = mean(table_of(rows, "rare", "scifact", "plain")) - mean(twin)
    ood = mean(table_of(rows, "rare_ood", "scifact", "blend")) - mean(table_of(rows, "twin_ood", "scifact", "plain"))
    expected = {
        "gain_ndcg_points": mean(gains),
        "gain_clean_points": mean(clean),
        "gain_plain_points": plain,
        "cautious_gain_ndcg_points": cautious[0].mean(),
        "cautious_gain_clean_points": mean([*cautious[0][[flag == "0" for flag in leaked]], *cautious[1]]),
        "gain_ood_points": ood,
        "copy_ndcg_points": mean(table_of(rows, "rare", "scifact", "copy")),
        "twin_ndcg_points": mean(twin),
        "rare_ndcg_points": mean(rare),
        "untouched_ndcg_points": mean(table_of(rows, "untouched", "scifact", "plain")),
        "gain_over_blended_twin_points": mean(rare) - mean(table_of(rows, "twin", "scifact", "blend")),
        "gain_over_unpooled_twin_points": mean(rare) - mean(table_of(rows, "twin_unpooled", "scifact", "blend")),
        "gain_same_positives_points": mean(rare) - mean(table_of(rows, "rare_same_positives", "scifact", "blend")),
        "gain_over_pooled_points": mean(table_of(rows, "rare", "scifact", "blend", (0,)))
        - mean(table_of(rows, "rare_pooled", "scifact", "blend")),
    }
    for arm, task in (("boolq", "boolq"), ("smollm2", "scifact")):
        ours, theirs = table_of(rows, f"rare_{arm}", task, "blend"), table_of(rows, f"twin_{arm}", task, "plain")
        expected[f"{arm}_gain_points"] = mean(ours) - mean(theirs)
    for name, value in expected.items():
        assert headline[name] == pytest.approx(value, abs=6e-4), name


def test_the_augmented_share_counts_queries_whose_vector_uses_examples(result):
    rows, headline = result["rows"], result["headline"]
    shares = {}
    for task in ("scifact", "pubmedqa"):
        own = [row for row in rows if (row["arm"], row["task"]) == ("rare", task)]
        flags = own[0]["uses"] if all(row["weight"] >= 0.2 for row in own) else "0" * len(own[0]["uses"])
        shares[task] = flags
        assert headline[f"augmented_share_{task}"] == pytest.approx(flags.count("1") / len(flags), abs=6e-5)
    pooled = "".join(shares.values())
    assert headline["augmented_share"] == pytest.approx(pooled.count("1") / len(pooled), abs=6e-5)


@pytest.mark.parametrize("name", ["gain_ndcg_points", "gain_ood_points", "cautious_gain_ndcg_points"])
def test_an_interval_holds_for_queries_drawn_again(name, result):
    rows, headline = result["rows"], result["headline"]
    ours = {"gain_ood_points": "rare_ood", "cautious_gain_ndcg_points": "rare_cautious"}.get(name, "rare")
    theirs = "twin_ood" if "ood" in name else "twin"
    gains = np.subtract(table_of(rows, ours, "scifact", "blend"), table_of(rows, theirs, "scifact", "plain"))
    drawn = np.random.default_rng(7).integers(len(gains), size=(3000, len(gains)))
    low, high = np.quantile(gains[drawn].mean(axis=1), [0.025, 0.975])
    width = headline[f"{name}_high"] - headline[f"{name}_low"]
    assert width == pytest.approx(high - low, rel=0.15)
    assert headline[f"{name}_low"] == pytest.approx(low, abs=0.15 * width)


def test_weights_and_floors_are_what_dev_chose(result):
    for arm, tasks in result["chosen"].items():
        for task, chosen in tasks.items():
            if "table" not in chosen:
                assert arm in ("untouched", "twin_smollm2"), "read bare"
                continue
            allowed = [cell for cell in chosen["table"] if cell["share"] >= 0.5 and cell["weight"] >= 0.2]
            assert chosen["all"] + chosen["clean"] == max(cell["all"] + cell["clean"] for cell in allowed)
            harmless = [cell for cell in allowed if cell["clean"] >= chosen["plain_clean"]]
            cautious = max(cell["all"] for cell in harmless) if harmless else max(cell["clean"] for cell in allowed)
            assert chosen["cautious"]["all" if harmless else "clean"] == cautious
            for name, pair in ((arm, chosen), ("rare_cautious", chosen["cautious"])):
                used = [row for row in result["rows"] if (row["arm"], row["task"]) == (name, task)]
                if arm == "rare" or name == arm:
                    assert {(row["weight"], row["floor"]) for row in used} == {(pair["weight"], pair["floor"])}
