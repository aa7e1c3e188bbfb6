"""Preference rows on their way to tokens: prompts not given, equal pairs, other types' columns, templates."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from trl import extract_prompt

from hf_ext import InfoPOConfig, InfoPOTrainer, InfoPOUnpairedConfig, InfoPOUnpairedTrainer, RowError
from hf_ext.data.preference import ExtractPrompt, pairs_to_unpaired
from tests.guards.bad_rows import FORMS, bot, user
from tests.guards.test_tokens import STRICT
from tests.trainers.preference import conversational, pairs, singles, start
from tests.trainers.runs import TOKENIZER

both_forms = pytest.mark.parametrize("make", FORMS.values(), ids=FORMS)


def ours(folder: Path, rows: Any, **changes: Any) -> Any:
    return start(InfoPOTrainer, InfoPOConfig, folder, rows, **changes)


def unpaired(folder: Path, rows: Any, **changes: Any) -> Any:
    return start(InfoPOUnpairedTrainer, InfoPOUnpairedConfig, folder, rows, **changes)


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    said = [record.getMessage() for record in caplog.records if record.name.startswith("hf_ext")]
    caplog.clear()
    return said


# --- prompts that are not given --------------------------------------------------------------------------------------


def split(chosen: Any, rejected: Any) -> tuple[Any, Any, Any]:
    parts = ExtractPrompt()({"chosen": [chosen], "rejected": [rejected]})
    return parts["prompt"][0], parts["chosen"][0], parts["rejected"][0]


def test_the_prompt_ends_where_the_first_word_that_differs_begins() -> None:
    for chosen, rejected, expected in (
        ("Yes, gladly. ", "No, go away.", ("", "Yes, gladly. ", "No, go away.")),
        ("The sky is blue", "The sky is blue and wide", ("The sky is", " blue", " blue and wide")),
        ("The sky is blue and wide", "The sky is blue", ("The sky is", " blue and wide", " blue")),
        ("It is black.", "It is blue.", ("It is", " black.", " blue.")),
        ("Sum: 14", "Sum: 15", ("Sum:", " 14", " 15")),
        ("Q: Why?\nSo.", "Q: Why?\nNo.", ("Q: Why?\n", "So.", "No.")),
        ("Hi!", "Hi!!", ("Hi", "!", "!!")),
        ("Hi ", "Hi there", ("Hi", " ", " there")),
        ("word", "words", ("", "word", "words")),
        ("cafe\u0301 is", "cafe is", ("", "cafe\u0301 is", "cafe is")),
        ("\u5929\u7a7a\u84dd", "\u5929\u7a7a\u7ea2", ("\u5929\u7a7a", "\u84dd", "\u7ea2")),
        ([user("a"), bot("b")], [user("a"), bot("c")], ([user("a")], [bot("b")], [bot("c")])),
        (
            [user("a"), bot("b")],
            [user("a"), bot("b"), user("c")],
            ([user("a")], [bot("b")], [bot("b"), user("c")]),
        ),
    ):
        assert split(chosen, rejected) == expected
        assert expected[0] + expected[1] == chosen
        assert expected[0] + expected[2] == rejected


def test_on_ordinary_pairs_the_prompt_is_trls() -> None:
    """Where the answers' first words begin with other letters, or messages are shared."""
    texts = [{side: row["prompt"] + row[side] for side in ("chosen", "rejected")} for row in pairs(12)]
    texts = [row for row in texts if extract_prompt(row)["chosen"][:2].strip()[:1] != ""]
    chats = [{side: row["prompt"] + row[side] for side in ("chosen", "rejected")} for row in conversational(pairs(4))]
    ordinary = [row for row in texts if not extract_prompt(row)["prompt"][-1].isalnum()] + chats
    assert len(ordinary) > 8
    for row in ordinary:
        expected = extract_prompt(row)
        assert split(**row) == (expected["prompt"], expected["chosen"], expected["rejected"])


@both_forms
def test_pairs_that_share_no_beginning_are_counted_or_named(
    make: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    texts = [{"chosen": "Yes. ", "rejected": "No."}, {"chosen": "Is it? Yes.", "rejected": "Is it? No."}]
    rows = list(ours(tmp_path, make(texts)).train_dataset)
    assert [TOKENIZER.decode(row["prompt_ids"]) for row in rows] == ["", "Is it?"]
    (said,) = warnings_of(caplog)
    which = "1 of 2 pairs (50.0 %)" if make is FORMS["dataset"] else "row 0 (the first such row)"
    assert f"the responses of {which} of the train dataset share no beginning" in said
    shared = {"chosen": [user("Hi"), bot("Ho")], "rejected": [user("Hi"), bot("Hu")]}
    chats = [shared, {"chosen": [user("A"), bot("Ho")], "rejected": [user("B"), bot("Hu")]}, shared]
    with pytest.raises(RowError, match="share no beginning, and there is no 'prompt'") as caught:
        list(ours(tmp_path, make(chats)).train_dataset)
    assert (caught.value.row_index, caught.value.column) == (1, "rejected")
    dropped = ours(tmp_path, make(chats), on_bad_row="drop", bad_rows_path=str(tmp_path / "bad.jsonl"))
    assert [row["__hf_ext_row__"] for row in dropped.train_dataset] == [0, 2]


@both_forms
def test_prompts_that_stand_in_the_responses_too_are_counted(
    make: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for rows in (list(pairs(3)), list(conversational(pairs(3)))):
        list(ours(tmp_path, make(rows)).train_dataset)
        assert warnings_of(caplog) == []
        twice = [row | {side: row["prompt"] + row[side] for side in ("chosen", "rejected")} for row in rows[1:]]
        half = rows[0] | {"chosen": rows[0]["prompt"] + rows[0]["chosen"]}
        list(ours(tmp_path, make([half, *twice])).train_dataset)
        (said,) = warnings_of(caplog)
        which = "2 of 3 pairs (66.7 %)" if make is FORMS["dataset"] else "row 1 (the first such row)"
        assert f"Both responses of {which} of the train dataset begin with their prompt" in said


# --- pairs that are the same within max_length -----------------------------------------------------------------------


LONG = "word " * 30


@both_forms
def test_pairs_that_are_the_same_within_max_length_are_counted(
    make: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    same = [{"prompt": "A? ", "chosen": LONG + "Yes.", "rejected": LONG + "No."}] * 2
    same += [{"prompt": "A? ", "chosen": "Yes.<|im_end|>", "rejected": "Yes."}]  # the host ends the other one alike
    good = [{"prompt": "A? ", "chosen": "Yes. " + LONG, "rejected": "Yes"}, {"prompt": "A? ", **split_pair()}]
    list(ours(tmp_path, make(same + good), max_length=24).train_dataset)
    (said,) = warnings_of(caplog)
    which = "3 of 5 pairs (60.0 %)" if make is FORMS["dataset"] else "row 0 (the first such row)"
    assert f"response of {which} of the train dataset are the same tokens within max_length=24" in said
    list(ours(tmp_path, make(same[:2] + good), max_length=512).train_dataset)
    assert warnings_of(caplog) == []


def split_pair() -> dict[str, str]:
    return {"chosen": "No.", "rejected": "Not."}


def test_nothing_but_such_pairs_is_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    same = Dataset.from_list([{"prompt": "A? ", "chosen": LONG + "Yes.", "rejected": LONG + "No."}] * 2)
    whole_prompt = [{"prompt": LONG * 3, "chosen": "Yes.", "rejected": "No."}]
    every = "response of every one of the 2 pairs of the {} dataset are the same tokens within max_length=24"
    for build in (ours, unpaired):
        with pytest.raises(ValueError, match=every.format("train")):
            build(tmp_path, same, max_length=24)
    with pytest.raises(ValueError, match=every.format("eval")):
        ours(tmp_path, 4, max_length=24, kwargs={"eval_dataset": same})
    warnings_of(caplog)
    mixed = Dataset.from_list([*same, *whole_prompt, {"prompt": "A? ", **split_pair()}])
    unpaired(tmp_path, mixed, max_length=24)
    said = warnings_of(caplog)
    assert any("2 of 3 pairs (66.7 %) of the train dataset are the same tokens" in text for text in said)
    assert any("2 of 8 rows (25.0 %) of the train dataset have no completion token left" in text for text in said)


# --- columns of the user's own ---------------------------------------------------------------------------------------


def test_columns_of_another_type_change_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Labelled rows stay labelled rows beside 'chosen' and 'rejected', pairs stay pairs beside 'label'."""
    rows = singles(6)
    stranger = [
        ("chosen", [1, 0] * 3),
        ("rejected", [0, 1] * 3),
        ("messages", [[user("x")]] * 6),
        ("score", [0.5] * 6),
    ]
    plain = unpaired(tmp_path, rows).train_dataset
    assert warnings_of(caplog) == []
    for width in range(1, len(stranger) + 1):
        more = Dataset.from_dict({**rows.to_dict(), **dict(stranger[:width])})
        prepared = unpaired(tmp_path, more).train_dataset
        for name in ("prompt_ids", "completion_ids", "label"):
            assert prepared[name][:] == plain[name][:]
        assert warnings_of(caplog) == []
    both = pairs(6)
    labelled = Dataset.from_dict({**both.to_dict(), "label": [7] * 6, "messages": [[user("x")]] * 6})
    for build in (ours, unpaired):
        expected, prepared = (build(tmp_path, given).train_dataset for given in (both, labelled))
        names = [
            name for name in expected.column_names if name.endswith("_ids") or (build is unpaired and name == "label")
        ]
        assert [prepared[name][:] for name in names] == [expected[name][:] for name in names]
    assert pairs_to_unpaired(labelled)["label"][:] == [True, False] * 6


# --- tokenizers and templates ----------------------------------------------------------------------------------------


@both_forms
def test_a_pair_that_the_template_does_not_take_is_named_and_dropped(make: Any, tmp_path: Path) -> None:
    strict = copy.deepcopy(TOKENIZER)
    strict.chat_template = STRICT
    rows = [dict(row) for row in conversational(pairs(4))]
    rows[2]["rejected"] = [user("And?")]
    for build, data, column in ((ours, rows, "rejected"), (unpaired, rows, "rejected")):
        settings: dict[str, Any] = {"kwargs": {"processing_class": strict}}
        if build is unpaired and make is FORMS["stream"]:
            settings["positive_fraction"] = 0.5
        with pytest.raises(RowError, match="roles must alternate") as caught:
            list(build(tmp_path, make(data), **settings).train_dataset)
        assert (caught.value.row_index, caught.value.column) == (2, column)
        file = tmp_path / f"{build.__name__}.jsonl"
        settings |= {"on_bad_row": "drop", "bad_rows_path": str(file)}
        kept = {row["__hf_ext_row__"] for row in build(tmp_path, make(data), **settings).train_dataset}
        assert kept == {0, 1, 3}
        assert {json.loads(line)["row_index"] for line in file.read_text(encoding="utf-8").splitlines()} == {2}


def test_without_an_end_token_texts_are_refused(tmp_path: Path) -> None:
    bare = copy.deepcopy(TOKENIZER)
    bare.eos_token = None
    for build, rows in ((ours, pairs(4)), (unpaired, singles(4))):
        with pytest.raises(ValueError, match=r"no end token.*: set tokenizer\.eos_token"):
            build(tmp_path, rows, kwargs={"processing_class": bare})
    assert len(ours(tmp_path, conversational(pairs(4)), kwargs={"processing_class": bare}).train_dataset) == 4
