"""The tasks that we export, run by lm-evaluation-harness on a tiny model: the figures of `evaluate_core`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytest.importorskip("lm_eval")

from tests.evaluation.core.small_tasks import small_rows, write_tasks


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "benchmarks"))
    import core_agreement

    yield core_agreement
    for name in ("core_agreement", "common", "measured"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("label", ["copa", "arc_easy", "winograd", "lambada_openai"])
def test_log_likelihoods_and_figures_are_ours(script, label, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    model, tokenizer = script.model_and_tokenizer(quick=True)
    data = write_tasks(tmp_path / "data", {label: small_rows(label, 12)})
    ours = script.our_rows(model, tokenizer, data, label, 8)
    theirs = script.harness_rows(model, tokenizer, data, label, 8)
    rows = script.compared(label, ours, theirs)
    headline = script.headline_of(rows)
    assert headline["rows"] == 8
    assert headline["rows_disagreeing"] == 0
    assert headline["max_loglik_difference"] <= 1e-4


def test_a_difference_is_seen(script):
    ours = {"row": 0, "losses": [2.0, 1.0], "characters": [4, 1], "correct": True}
    theirs = {"row": 0, "gold": 1, "logliks": [-2.0, -1.5], "is_greedy": [False, False], "acc": 1, "acc_norm": 1}
    (row,) = script.compared("copa", [ours], [theirs])
    assert row["difference"] == 0.5
    assert row["disagrees"] == ["acc_norm"]  # by character the first option is ours
    with pytest.raises(ValueError, match="same rows"):
        script.compared("copa", [ours], [theirs | {"row": 1}])
