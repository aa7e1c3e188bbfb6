"""Every bad row is named with its column, an excerpt and the remedy; good rows come back as they went in."""

from __future__ import annotations

import json
import pickle
import time

import pytest
from datasets import Dataset, DatasetDict, disable_progress_bars

from hf_ext.guards.rows import RowError, check_sft_rows
from tests.guards.bad_rows import ASSISTANT, CASES, FORMS, TEXT, as_stream, bad_rows_of, bot, user
from tests.tiny import tiny_messages_dataset, tiny_prompt_completion_dataset, tiny_sentences, tiny_text_dataset

disable_progress_bars()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "_"))
def test_bad_row_is_named_with_column_excerpt_and_remedy(case, form):
    with pytest.raises(RowError) as caught:
        list(check_sft_rows(FORMS[form](bad_rows_of(case)), **case.options))
    row = 0 if case.wide and form == "dataset" else 2
    first, excerpt, *_, remedy = str(caught.value).split("\n")
    assert (caught.value.row_index, caught.value.column) == (row, case.column)
    assert first.startswith(f"row {row}, column {case.column!r}: ")
    assert case.problem in first
    assert excerpt.startswith(f"  {case.excerpt}")
    assert len(excerpt.split(": ", 1)[1]) <= 80
    assert remedy.startswith("  Fix the row, drop it with dataset.filter, or pass on_bad_row=")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "_"))
def test_good_twin_passes(case, form):
    rows = [case.base, case.base | case.twin, case.base]
    checked = list(check_sft_rows(FORMS[form](rows), **case.options))
    assert [row["__hf_ext_row__"] for row in checked] == [0, 1, 2]


def test_cases_are_distinct_and_many():
    assert len({(case.column, case.name) for case in CASES}) == len(CASES) >= 45


MISSING = [
    ({"body": "Ada counts."}, "text", "expected 'text', 'messages', 'prompt' with 'completion', or 'input_ids'"),
    ({"prompt": "Why?", "answer": "No."}, "completion", "'prompt' is there. The columns are 'prompt', 'answer'"),
    ({"completion": "No.", "question": "Why?"}, "prompt", "'completion' is there"),
    ({"prompt": "Why?", "text": "Why? No."}, "completion", "The columns are 'prompt', 'text'"),
]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("row", "column", "words"), MISSING, ids=[column + str(i) for i, (_, column, _) in enumerate(MISSING)]
)
@pytest.mark.parametrize("on_bad_row", ["raise", "drop"])
def test_missing_column_says_what_is_there_and_what_is_expected(row, column, words, form, on_bad_row, tmp_path):
    with pytest.raises(RowError, match="this column is missing") as caught:
        check_sft_rows(FORMS[form]([row]), on_bad_row=on_bad_row, bad_rows_path=tmp_path / "bad.jsonl")
    assert caught.value.column == column
    assert words in str(caught.value)
    assert "dataset.rename_column" in str(caught.value)
    assert not (tmp_path / "bad.jsonl").exists()


def test_a_key_missing_from_one_row_of_a_stream_is_named():
    with pytest.raises(RowError, match=r"row 1, column 'text': missing in this row; its columns are 'title'"):
        list(check_sft_rows(as_stream([TEXT, {"title": "On boats"}])))


@pytest.mark.parametrize(
    ("values", "kind"),
    [([1, 2], "int64"), ([["a"]], "list<item: string>"), ([None, None], "null"), ([b"a"], "binary")],
)
def test_column_of_a_wrong_type_names_row_0_and_the_type(values, kind):
    with pytest.raises(RowError, match=f"row 0, column 'text'.*column's type is {kind}"):
        check_sft_rows(Dataset.from_dict({"text": values}))


def test_message_reads_as_the_style_page_shows_it():
    question = (
        "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May.\nHow many?"
    )
    rows = [{"prompt": "p", "completion": "c"}] * 4213 + [{"prompt": question, "completion": None}] * 3
    with pytest.raises(RowError) as caught:
        check_sft_rows(Dataset.from_list(rows))
    assert str(caught.value) == (
        "row 4,213, column 'completion': expected a non-empty string, found None.\n"
        "  prompt: 'Natalia sold clips to 48 of her friends in April, and then she sold half as...'\n"
        "  2 more bad rows in this dataset.\n"
        '  Fix the row, drop it with dataset.filter, or pass on_bad_row="drop" '
        "(dropped rows are written to bad_rows.jsonl)."
    )


def test_bad_rows_are_named_wherever_they_stand_in_a_long_dataset(tmp_path):
    rows = Dataset.from_dict({"text": ["" if i in (9_999, 10_000, 20_001) else "a" for i in range(20_005)]})
    kept = check_sft_rows(rows, on_bad_row="drop", bad_rows_path=tmp_path / "bad.jsonl")
    assert set(range(20_005)) - set(kept["__hf_ext_row__"][:]) == {9_999, 10_000, 20_001}


def test_error_survives_the_way_back_from_a_worker():
    error = pickle.loads(pickle.dumps(RowError("row 1, column 'text': bad.", 1, "text")))
    assert (str(error), error.row_index, error.column) == ("row 1, column 'text': bad.", 1, "text")


def test_error_names_an_evaluation_dataset():
    with pytest.raises(RowError, match=r"^eval dataset, row 0, column 'text'"):
        check_sft_rows(Dataset.from_dict({"text": [""]}), dataset_name="eval")


@pytest.mark.parametrize("form", FORMS)
def test_empty_dataset_is_refused(form):
    with pytest.raises(ValueError, match="The train dataset is empty"):
        check_sft_rows(FORMS[form]([]))


def test_all_zero_weights_are_refused_but_one_weight_is_enough():
    rows = Dataset.from_dict({"text": ["a", "b"], "weight": [0.0, 0.0]})
    with pytest.raises(ValueError, match="Every weight of the train dataset is 0"):
        check_sft_rows(rows)
    assert len(check_sft_rows(Dataset.from_dict({"text": ["a", "b"], "weight": [[0.0], [0.0, 0.1]]}))) == 2


def test_unusable_arguments_are_refused():
    rows = Dataset.from_dict({"text": ["a"]})
    with pytest.raises(ValueError, match='on_bad_row must be "raise" or "drop"'):
        check_sft_rows(rows, on_bad_row="skip")
    with pytest.raises(ValueError, match=r'Pass bad_rows_path="bad_rows\.jsonl"'):
        check_sft_rows(rows, on_bad_row="drop")
    with pytest.raises(TypeError, match=r"dataset\['train'\]"):
        check_sft_rows(DatasetDict({"train": rows}))
    with pytest.raises(TypeError, match="got list"):
        check_sft_rows([{"text": "a"}])


@pytest.mark.parametrize(
    ("rows", "options"),
    [
        (tiny_text_dataset(), {}),
        (tiny_prompt_completion_dataset(), {}),
        (tiny_prompt_completion_dataset(conversational=True), ASSISTANT),
        (tiny_messages_dataset(), ASSISTANT),
        (Dataset.from_dict({"messages": [[user("a"), bot("b")]], "text": [None]}), {}),
        (Dataset.from_dict({"question": ["a"], "weight": [1]}), {"formatting_func": str}),
    ],
    ids=["text", "turns", "chat-turns", "messages", "messages-beside-text", "formatted"],
)
def test_good_rows_come_back_as_they_went_in(rows, options):
    checked = check_sft_rows(rows, **options)
    assert checked.remove_columns("__hf_ext_row__").to_list() == rows.to_list()
    assert checked.remove_columns("__hf_ext_row__").features == rows.features
    assert checked["__hf_ext_row__"][:] == list(range(len(rows)))
    streamed = check_sft_rows(rows.to_iterable_dataset(), **options)
    assert list(streamed) == checked.to_list()
    assert streamed.features == checked.features


def test_row_index_counts_the_rows_as_given_after_shuffle_and_select():
    rows = tiny_text_dataset(40).shuffle(seed=3).select(range(5, 30))
    checked = check_sft_rows(rows)
    assert checked["text"][:] == rows["text"][:]
    assert checked["__hf_ext_row__"][:] == list(range(25))


def test_row_index_that_is_there_is_kept_and_named(tmp_path):
    rows = Dataset.from_dict({"text": ["a", "", "b"], "__hf_ext_row__": [70, 4000, 9]})
    with pytest.raises(RowError, match="row 4,000"):
        check_sft_rows(rows)
    kept = check_sft_rows(rows, on_bad_row="drop", bad_rows_path=tmp_path / "bad.jsonl")
    assert kept["__hf_ext_row__"][:] == [70, 9]
    with pytest.raises(RowError, match="row 4,000"):
        list(check_sft_rows(rows.to_iterable_dataset()))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("value", [None, [], "7", 1.5])
def test_a_stranger_s_row_index_is_refused_by_name_in_good_and_bad_rows(form, value):
    for text in ("a", ""):
        with pytest.raises(RowError, match="column '__hf_ext_row__': expected the row's position") as caught:
            list(check_sft_rows(FORMS[form]([{"text": text, "__hf_ext_row__": value}])))
        assert (caught.value.row_index, caught.value.column) == (-1, "__hf_ext_row__")


def test_formatted_datasets_are_checked_and_keep_their_format():
    rows = Dataset.from_dict({"input_ids": [[1, 2], [3]], "weight": [[1.0, 0.5], [1.0]]}).with_format("torch")
    checked = check_sft_rows(rows)
    assert checked.format["type"] == "torch"
    assert check_sft_rows(checked)["__hf_ext_row__"][:].tolist() == [0, 1]
    assert len(list(check_sft_rows(rows.to_iterable_dataset().with_format("torch")))) == 2


def test_same_rows_give_the_same_fingerprint_so_that_later_maps_are_cached(tmp_path):
    rows = Dataset.from_dict({"text": ["a", "", "b"]})
    options = {"on_bad_row": "drop", "bad_rows_path": tmp_path / "bad.jsonl"}
    one, two = check_sft_rows(rows, **options), check_sft_rows(rows, **options)
    assert one._fingerprint == two._fingerprint != rows._fingerprint
    assert check_sft_rows(Dataset.from_dict({"text": ["a", "b"]}))._fingerprint != one._fingerprint


@pytest.mark.parametrize(
    "positions",
    [range(3000), range(2999, -1, -1), range(0, 3000, 2), [2996, 7, 7, 1001, 6]],
    ids=["as they are", "backwards", "every other", "picked"],
)
@pytest.mark.parametrize("period", [1, 2, 7])
def test_dropped_rows_are_written_whole_and_in_order_whether_they_stand_together_or_apart(tmp_path, positions, period):
    rows = [
        {"text": None if i % period == 0 else "x", "more": {"list": [i, None], "word": f"é{i}"}} for i in range(3000)
    ]
    rows.append({"text": "good", "more": {"list": [0], "word": ""}})
    picked = [rows[i] for i in (*positions, 3000)]
    path = tmp_path / "bad.jsonl"
    good = check_sft_rows(Dataset.from_list(rows).select([*positions, 3000]), on_bad_row="drop", bad_rows_path=path)
    written = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [(line["row_index"], line["row"]) for line in written] == [
        (i, row) for i, row in enumerate(picked) if row["text"] is None
    ]
    assert good["__hf_ext_row__"] == [i for i, row in enumerate(picked) if row["text"] is not None]


@pytest.mark.parametrize("shuffled", [False, True])
def test_a_hundred_thousand_rows_take_little_time(shuffled):
    rows = Dataset.from_dict({"text": tiny_sentences(1000) * 100})
    rows = rows.shuffle(seed=0) if shuffled else rows
    start = time.process_time()
    assert len(check_sft_rows(rows)) == 100_000
    assert time.process_time() - start < 4.0  # seconds of CPU; measured: 0.02, and 0.5 to 1.5 shuffled
