"""A report in the place of the other model: the same differences, or a sentence why not."""

from __future__ import annotations

from pathlib import Path

import pytest

from hf_ext.evaluation.core import CoreReport, evaluate_core
from tests.evaluation.core.small_tasks import small_rows, write_tasks
from tests.tiny import tiny_model, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
MODEL, OTHER = tiny_model(TOKENIZER, seed=0), tiny_model(TOKENIZER, seed=1)


def measured(model, data: Path, **settings) -> CoreReport:
    return evaluate_core(model, TOKENIZER, data, show_progress=False, **settings)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    labels = ("copa", "winograd", "lambada_openai")
    return write_tasks(tmp_path_factory.mktemp("tasks"), {label: small_rows(label, 6) for label in labels})


@pytest.fixture(scope="module")
def earlier(data) -> CoreReport:
    return measured(OTHER, data, max_rows=5)


def test_the_differences_are_those_to_the_model_itself(data, earlier):
    by_report = measured(MODEL, data, max_rows=4, against=earlier)
    by_model = measured(MODEL, data, max_rows=4, against=OTHER)
    assert by_report.differences == by_model.differences
    assert by_report.tasks == by_model.tasks
    assert by_report.settings["against"] == by_model.settings["against"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"max_rows": 6}, "lacks 1 of 6 rows of 'copa', such as row 5"),
        ({"max_rows": 4, "protocol": "nanochat"}, "protocol='foundry', and now it is 'nanochat'"),
        ({"max_rows": 4, "max_length": 100}, "max_length=512, and now it is 100"),
    ],
)
def test_rows_that_make_no_pairs_are_refused_before_a_model_runs(data, earlier, settings, words, monkeypatch):
    monkeypatch.setattr(type(MODEL), "forward", None)
    with pytest.raises(ValueError, match=words):
        measured(MODEL, data, against=earlier, **settings)


def test_a_report_without_its_rows_or_of_other_data_is_refused(data, earlier, tmp_path):
    with pytest.raises(ValueError, match="without its rows"):
        measured(MODEL, data, against=CoreReport.from_dict(earlier.to_dict()))
    others = [row | {"id": f"other-{row['id']}"} for row in small_rows("copa", 6, seed=1)]
    elsewhere = write_tasks(tmp_path / "elsewhere", {"copa": others})
    with pytest.raises(ValueError, match="lacks 2 of 2 rows of 'copa'"):
        measured(MODEL, elsewhere, max_rows=2, against=earlier)
