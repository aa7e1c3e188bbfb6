"""Preference rows: every defect is named by row and column; good rows, however odd, pass."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, Value

from hf_ext.data.preference import with_prompts
from hf_ext.guards.preference_rows import check_preference_rows, check_unpaired_rows
from hf_ext.guards.rows import RowError
from tests.guards.bad_preference_rows import (
    CHAT,
    HEAVY,
    KNOWN,
    PAIR,
    PREFERENCE_CASES,
    SINGLE,
    WHOLE,
    check_of,
    rows_with,
)
from tests.guards.bad_rows import FORMS, Case, bot, user

every_case = pytest.mark.parametrize("case", PREFERENCE_CASES, ids=lambda case: case.name.replace(" ", "_"))
both_forms = pytest.mark.parametrize("make", FORMS.values(), ids=FORMS)


@both_forms
@every_case
def test_a_bad_row_is_named_and_its_twin_passes(case: Case, make: Any) -> None:
    with pytest.raises(RowError) as caught:
        list(check_of(case)(make(rows_with(case, case.bad))))
    assert (caught.value.row_index, caught.value.column) == (5, case.column)
    said = str(caught.value)
    assert said.startswith(f"row 5, column {case.column!r}: ")
    assert case.problem in said
    assert case.excerpt in said, "no excerpt shows which row is meant"
    assert 'pass on_bad_row="drop"' in said
    assert len(list(check_of(case)(make(rows_with(case, case.twin))))) == 8


@both_forms
@every_case
def test_a_dropped_row_is_written_and_no_other(case: Case, make: Any, tmp_path: Path) -> None:
    file = tmp_path / "bad.jsonl"
    kept = check_of(case)(make(rows_with(case, case.bad)), on_bad_row="drop", bad_rows_path=file)
    assert [row["__hf_ext_row__"] for row in kept] == [0, 1, 2, 3, 4, 6, 7]
    (entry,) = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert (entry["row_index"], entry["column"]) == (5, case.column)


GOOD: dict[str, list[dict]] = {
    "an empty prompt": [PAIR | {"prompt": ""}, PAIR],
    "white space": [PAIR | {"rejected": " "}, PAIR],
    "one more word": [PAIR | {"rejected": "Scattering. Yes."}],
    "other case": [PAIR | {"rejected": "scattering."}],
    "chat": [CHAT, CHAT],
    "no prompt": [WHOLE, WHOLE],
    "the same words by another speaker": [CHAT | {"rejected": [user("Scattering.")]}],
    "more messages": [CHAT | {"rejected": [bot("Scattering."), user("And?")]}],
    "the same in another order": [
        {"chosen": [user("a"), bot("b"), user("c")], "rejected": [user("a"), bot("c"), user("b")]},
        {"chosen": [user("a"), bot("b")], "rejected": [user("a"), bot("c")]},
    ],
    "zero weight beside another": [HEAVY | {"weight": 0.0}, HEAVY],
    "integer weights": [PAIR | {"weight": 2}, PAIR | {"weight": 0}],
    "positive reference": [KNOWN | {"ref_chosen_logps": 0.5}],
    "other columns": [PAIR | {"source": None, "score": math.nan}],
}


@pytest.mark.parametrize("rows", GOOD.values(), ids=GOOD)
@both_forms
def test_good_rows_pass_as_they_are(rows: list[dict], make: Any) -> None:
    out = list(check_preference_rows(make(rows)))
    assert [{k: row[k] for k in rows[0] if k != "score"} for row in out] == [
        {k: row[k] for k in rows[0] if k != "score"} for row in rows
    ]
    assert [row["__hf_ext_row__"] for row in out] == list(range(len(rows)))


def test_equal_pairs_are_found_wherever_they_stand() -> None:
    """Against a loop, on strings and messages, with lengths and contents that often agree by chance."""
    import random

    rng = random.Random(4)
    texts = [[rng.choice(["a", "b"]), rng.choice(["a", "b"])] for _ in range(400)]
    for row in texts[::7]:
        row[1] = row[0]

    def turns(text: str) -> list[dict[str, Any]]:
        return [bot(text) for _ in range(1 + len(text) % 2)] + [user(text)] * rng.randint(0, 1)

    for make in (lambda text: text, turns):
        rows = [{"prompt": make("a"), "chosen": make(one), "rejected": make(other)} for one, other in texts]
        expected = [i for i, row in enumerate(rows) if row["chosen"] != row["rejected"]]
        kept = check_preference_rows(Dataset.from_list(rows), on_bad_row="drop", bad_rows_path="/dev/null")
        assert kept["__hf_ext_row__"][:] == expected
        assert 0 < len(expected) < 400


def test_integers_for_labels_are_refused_with_the_columns_type() -> None:
    rows = Dataset.from_list([SINGLE | {"label": 1}, SINGLE | {"label": 0}])
    with pytest.raises(
        RowError, match=r"row 0, column 'label': expected true or false, found int 1.*type is int64"
    ) as said:
        check_unpaired_rows(rows)
    assert "dataset.cast_column('label', Value('bool'))" in str(said.value)
    assert check_unpaired_rows(rows.cast_column("label", Value("bool")))["label"][:] == [True, False]


@both_forms
def test_a_text_prompt_beside_dialogues_that_hold_it_is_not_read(make: Any) -> None:
    pair = {"chosen": [user("Why?"), bot("So.")], "rejected": [user("Why?"), bot("No.")]}
    lost = pair | {"rejected": None}
    for prompt in ("Why?", "Why?\n"):
        rows = make([row | {"prompt": prompt} for row in (lost, pair, pair)])
        kept = list(check_preference_rows(rows, on_bad_row="drop", bad_rows_path="/dev/null"))
        assert [set(row) for row in kept] == [{"chosen", "rejected", "__hf_ext_row__"}] * 2
        assert [row["prompt"] for row in with_prompts(Dataset.from_list(kept), "train")] == [[user("Why?")]] * 2


@both_forms
@pytest.mark.parametrize(
    "pair",
    [
        {"prompt": "When?", "chosen": [user("Why?"), bot("So.")], "rejected": [user("Why?"), bot("No.")]},
        {"prompt": "Why?", "chosen": [bot("So.")], "rejected": [bot("No.")]},
    ],
    ids=["another prompt", "replies alone"],
)
def test_a_text_prompt_that_conversations_do_not_hold_is_refused(pair: dict, make: Any) -> None:
    with pytest.raises(
        RowError, match=r"column 'prompt': expected a list of messages .*; if 'chosen' and 'rejected' begin with it"
    ):
        list(check_preference_rows(make([pair] * 3)))


@pytest.mark.parametrize(
    ("check", "rows", "column"),
    [
        (check_preference_rows, {"prompt": ["p"], "chosen": ["c"]}, "rejected"),
        (check_preference_rows, {"messages": [[bot("c")]]}, "chosen"),
        (check_unpaired_rows, {"prompt": ["p"], "completion": ["c"]}, "label"),
        (check_unpaired_rows, {"completion": ["c"], "label": [True]}, "prompt"),
    ],
)
def test_a_missing_column_is_named_with_those_there_are(check: Any, rows: dict, column: str) -> None:
    with pytest.raises(RowError, match=f"column {column!r}: this column is missing. The columns are") as caught:
        check(Dataset.from_dict(rows))
    assert "dataset.rename_column" in str(caught.value)


@pytest.mark.parametrize("label", [True, False])
def test_one_class_in_the_train_set_is_refused_and_elsewhere_not(label: bool) -> None:
    rows = Dataset.from_list([SINGLE | {"label": label}] * 3)
    with pytest.raises(ValueError, match=rf"Every one of the 3 rows .* \(label={label}\): with one class"):
        check_unpaired_rows(rows)
    assert len(check_unpaired_rows(rows, dataset_name="eval")) == 3


def test_pairs_given_as_unpaired_rows_are_checked_as_pairs() -> None:
    with pytest.raises(RowError, match="row 5, column 'rejected': the same as 'chosen'"):
        check_unpaired_rows(Dataset.from_list([PAIR] * 5 + [PAIR | {"rejected": "Scattering."}]))


def test_many_bad_rows_are_counted_and_a_row_index_is_kept() -> None:
    rows = [PAIR | {"__hf_ext_row__": 10 + i} for i in range(4)]
    for i in (1, 3):
        rows[i] = rows[i] | {"chosen": None}
    with pytest.raises(RowError, match=r"row 11, column 'chosen'(.|\n)*1 more bad row in this dataset"):
        check_preference_rows(Dataset.from_list(rows))
