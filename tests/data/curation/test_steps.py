"""What every row-wise step of curation does with rows, by a step whose rule is seen at a glance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
from datasets import Dataset

from hf_ext.data.curation.steps import Batch, Drop, RowStep, Rule, Values
from hf_ext.guards.rows import RowError


@dataclass(frozen=True, kw_only=True)
class Shorten(RowStep):
    """Drop documents under three or over six characters, cut the others at four."""

    name: ClassVar[str] = "shorten"

    @property
    def rules(self) -> tuple[Rule, ...]:
        return (Rule("short", minimum=3), Rule("long", maximum=6))

    def measure(self, texts: list[str], batch: Batch) -> tuple[dict[str, list[Any]], dict[str, Values]]:
        lengths = np.array([len(text) for text in texts], dtype=float)
        return {"text": [text[:4] for text in texts]}, {"short": lengths, "long": lengths}


def test_a_document_at_a_bound_stays_and_one_beyond_goes_with_value_and_bound():
    rows = Dataset.from_dict({"text": ["ab", "abc", "abcdef", "abcdefg"]}).map(Shorten(), batched=True)
    assert rows["drop_reason"] == ["shorten:short", "", "", "shorten:long"]
    np.testing.assert_array_equal(rows["drop_value"], [2.0, np.nan, np.nan, 7.0])
    np.testing.assert_array_equal(rows["drop_threshold"], [3.0, np.nan, np.nan, 6.0])
    assert rows["text"][1:3] == ["abc", "abcd"]


@pytest.mark.parametrize(("bound", "value", "exclusive", "is_broken"), [
    ("minimum", 2.9, False, True), ("minimum", 3.0, False, False), ("minimum", 3.0, True, True),
    ("maximum", 3.1, False, True), ("maximum", 3.0, False, False), ("maximum", 3.0, True, True),
    ("maximum", float("nan"), True, False), ("maximum", float("inf"), False, True),
])  # fmt: skip
def test_rule(bound, value, exclusive, is_broken):
    rule = Rule("r", **{bound: 3.0}, exclusive=exclusive)
    assert rule.broken_by(np.array([value])).tolist() == [is_broken]
    assert rule.broken_bound(value) == (3.0 if is_broken else None)


def test_the_first_row_to_go_may_come_in_any_batch():
    rows = Dataset.from_dict({"text": ["abcd", "abcd", "a", "abcd"]}).map(Shorten(), batched=True, batch_size=1)
    assert rows["drop_reason"] == ["", "", "shorten:short", ""]


def test_a_row_with_a_reason_is_left_alone_and_the_first_reason_stays():
    rows = {"text": ["a", "abcde"], "drop_reason": ["url:banned", None], "drop_value": [1.0, None]}
    out = Shorten()(rows | {"drop_threshold": [0.0, None]})
    assert out["drop_reason"] == ["url:banned", ""]
    np.testing.assert_array_equal([out["drop_value"], out["drop_threshold"]], [[1.0, np.nan], [0.0, np.nan]])
    assert out["text"] == ["a", "abcd"]


def test_a_row_that_is_no_document_is_named_or_written_down():
    with pytest.raises(RowError, match=r"row 12, column 'text': expected a string, found None.*\n.*on_bad_row"):
        Shorten().judge({"text": ["abc", None]}, [11, 12])
    judgement = Shorten(on_bad_row="drop", max_chars=9).judge({"text": [None, "abcde", 7, " \n", "x" * 10]})
    assert judgement.drops == [
        Drop("error:NoneType"), None, Drop("error:int"), Drop("empty"), Drop("too_long", 10.0, 9.0),
    ]  # fmt: skip
    assert judgement.columns["text"][1] == "abcd"
    assert np.isnan(judgement.values["short"]).tolist() == [True, False, True, True, True]


@pytest.mark.parametrize("max_chars", [0, -1, 2**31, 1.5e10, "many"])
def test_places_of_a_document_fit_32_bits(max_chars):
    with pytest.raises(ValueError, match=r"max_chars must be a whole number, at least 1 and below 2\*\*31, got"):
        Shorten(max_chars=max_chars)


def test_a_missing_column_is_named_with_a_remedy():
    with pytest.raises(ValueError, match=r"needs a column 'text'.*'body'.*text_column"):
        Shorten().judge({"body": ["abc"]})


def test_bytes_are_no_text():
    with pytest.raises(RowError, match=r"row 0, column 'text': expected a string, found bytes"):
        Shorten().judge({"text": [b"abc"]})


def test_an_empty_batch_and_a_batch_of_dropped_rows_pass():
    assert Shorten()({"text": []})["drop_reason"] == []
    out = Shorten()({"text": ["a"], "drop_reason": ["x:y"], "drop_value": [None], "drop_threshold": [None]})
    assert out["drop_reason"] == ["x:y"]
