"""Headlines of the two benchmarks of curation follow from their rows; what they read and judge is made right."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def module(name: str, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return __import__(name)


@pytest.fixture(autouse=True)
def _forget():
    yield
    for name in ("curation_speed", "curation_quality", "common", "dclm_checkout", "junk", "tiny_lm", "measured"):
        sys.modules.pop(name, None)


def test_the_speed_headline_is_the_median_of_ratios_within_a_round(monkeypatch):
    script = module("curation_speed", monkeypatch)
    rows = [
        {"comparison": name, "round": number, "documents": 4, "ours": ours, "peer": peer}
        for name in script.RATIOS
        for number, (ours, peer) in enumerate([(100.0, 10.0), (400.0, 10.0), (90.0, 30.0)])
    ]
    options = argparse.Namespace(rounds=3, documents=4, dclm=None)
    headline = script.headline_of(options, rows, 0)
    assert {headline[key] for key in script.RATIOS.values()} == {10.0}
    assert headline["rules_per_second"] == 100
    assert all(f"  {key}" in script.__doc__ for key in headline if key not in ("rounds", "documents", "benchmark"))


@pytest.fixture
def quality(monkeypatch):
    return module("curation_quality", monkeypatch)


def test_wikitext_reads_as_it_was_before_it_was_cut_into_tokens(quality):
    tokens = (
        ' = A title = \n \n The " first @-@ class " team ( of 1 @,@ 200 ) won , 2 @.@ 5 to 1 ; it did n\'t lose . \n'
    )
    plain = '= A title =\n\nThe "first-class" team (of 1,200) won, 2.5 to 1; it did n\'t lose.\n'
    assert quality.detokenised(tokens) == plain


def test_the_copy_is_the_original_where_it_stayed_in_its_place(quality):
    rows = [
        {"id": "a", "kind": "good", "copy_of": None},
        {"id": "a2", "kind": "exact_duplicate", "copy_of": "a"},
        {"id": "b", "kind": "good", "copy_of": None},
        {"id": "b2", "kind": "near_duplicate", "copy_of": "b"},
    ]
    kinds = quality.relabelled(rows, {"a2": "exact", "b": "minhash"})
    assert kinds == {"a": "good", "a2": "exact_duplicate", "b": "near_duplicate", "b2": "good"}
    counts = quality.counts_of(kinds, {"a2": "exact", "b": "minhash"})
    went = {(row["step"], row["kind"]): row["dropped"] for row in counts if row["dropped"]}
    assert went == {("exact", "exact_duplicate"): 1, ("minhash", "near_duplicate"): 1}
    at_minhash = {row["kind"]: row["rows"] for row in counts if row["step"] == "minhash" and row["rows"]}
    assert at_minhash == {"good": 2, "near_duplicate": 1}


def test_the_quality_headline_follows_from_its_rows(quality):
    counts = [
        {"step": step, "kind": kind, "rows": 10, "dropped": dropped if step == "minhash" else 0}
        for step in quality.STEPS
        for kind, dropped in (("good", 2), ("near_duplicate", 8), ("boilerplate", 0))
    ]
    nats = [(6.0, 5.8, 5.6, 5.4, 5.2), (6.1, 5.9, 5.7, 5.6, 5.1)]
    rows = [
        {
            "nats": dict(zip(quality.ARMS, values, strict=True)),
            "classifier_auc": 0.9,
            "length_auc": 0.7,
            "counts": counts,
        }
        for values in nats
    ]
    headline = quality.headline_of(rows)
    assert headline["raw_minus_curated_nats"] == pytest.approx(0.55)
    assert headline["raw_minus_curated_nats_low"] == pytest.approx(0.5)
    assert headline["recovered_share"] == pytest.approx(1.1 / 1.8, abs=1e-3)
    assert headline["junk_recall"] == pytest.approx(8 / 20)
    assert headline["junk_precision"] == pytest.approx(8 / 10)
    assert all(f" {key} " in quality.__doc__.replace(",", " ") for key in headline if not key.endswith("_low"))
