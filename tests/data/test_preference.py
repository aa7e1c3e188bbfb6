"""Pairs as labelled rows: against TRL's own unpairing, and the trainer that reads them."""

from __future__ import annotations

from typing import Any

import pytest
from datasets import Dataset, DatasetDict
from trl import unpair_preference_dataset

from hf_ext import RowError
from hf_ext.data.preference import PairsToUnpaired, pairs_to_unpaired

STANDARD = {
    "prompt": [f"What is {i} + 1? " for i in range(7)],
    "chosen": [f"{i + 1}" for i in range(7)],
    "rejected": [f"{i + 2}" for i in range(7)],
    "weight": [i / 4 for i in range(7)],
}


def conversational() -> Dataset:
    def turn(role: str, texts: list[str]) -> list[list[dict[str, str]]]:
        return [[{"role": role, "content": text}] for text in texts]

    return Dataset.from_dict(
        {
            "prompt": turn("user", STANDARD["prompt"]),
            "chosen": turn("assistant", STANDARD["chosen"]),
            "rejected": turn("assistant", STANDARD["rejected"]),
            "weight": STANDARD["weight"],
        }
    )


def by_content(dataset: Any) -> list[str]:
    return sorted(repr(sorted(row.items())) for row in dataset)


@pytest.mark.parametrize("pairs", [Dataset.from_dict(STANDARD), conversational()], ids=["standard", "conversational"])
def test_the_rows_are_trls_and_the_two_of_a_pair_stay_together(pairs: Dataset) -> None:
    rows = pairs_to_unpaired(pairs)
    assert by_content(rows) == by_content(unpair_preference_dataset(pairs))
    assert rows["label"] == [True, False] * 7
    for i, pair in enumerate(pairs):
        assert rows[2 * i]["completion"] == pair["chosen"]
        assert rows[2 * i + 1]["completion"] == pair["rejected"]
        assert rows[2 * i]["prompt"] == rows[2 * i + 1]["prompt"] == pair["prompt"]
        assert rows[2 * i + 1]["weight"] == pair["weight"]


@pytest.mark.parametrize("batch_size", [1, 2, 1000])
def test_the_order_does_not_depend_on_the_batch_as_trls_does(batch_size: int) -> None:
    pairs = Dataset.from_dict(STANDARD)
    rows = pairs.map(PairsToUnpaired(), batched=True, batch_size=batch_size, remove_columns=["chosen", "rejected"])
    assert rows["completion"] == pairs_to_unpaired(pairs)["completion"]


def test_a_prompt_within_the_responses_is_extracted() -> None:
    whole = conversational()
    implicit = Dataset.from_list(
        [{side: row["prompt"] + row[side] for side in ("chosen", "rejected")} for row in whole]
    )
    expected = pairs_to_unpaired(whole.remove_columns("weight"))
    assert by_content(pairs_to_unpaired(implicit)) == by_content(expected)


def test_a_text_prompt_beside_dialogues_that_hold_it_is_replaced_by_their_messages() -> None:
    question = {"role": "user", "content": "Why?"}
    replies = [{"role": "assistant", "content": text} for text in ("So.", "No.")]
    rows = Dataset.from_list(
        [{"prompt": "Why?", "chosen": [question, replies[0]], "rejected": [question, replies[1]]}]
    )
    assert pairs_to_unpaired(rows)[:] == pairs_to_unpaired(rows.remove_columns("prompt"))[:]
    assert pairs_to_unpaired(DatasetDict(train=rows))["train"]["prompt"][:] == [[question]] * 2


def test_conversations_that_share_nothing_are_named() -> None:
    def turns(first: str) -> list[dict[str, str]]:
        return [{"role": "user", "content": first}, {"role": "assistant", "content": first + "!"}]

    rows = [{"chosen": turns("a"), "rejected": [*turns("a")[:1], *turns("b")[1:]]}]
    rows.append({"chosen": turns("a"), "rejected": turns("b")})
    with pytest.raises(RowError, match=r"row 1, column 'rejected': 'chosen' and 'rejected' share no beginning"):
        pairs_to_unpaired(Dataset.from_list(rows))


def test_streams_and_dicts_of_splits_give_the_same_rows() -> None:
    pairs = Dataset.from_dict(STANDARD)
    expected = list(pairs_to_unpaired(pairs))
    assert list(pairs_to_unpaired(pairs.to_iterable_dataset())) == expected
    assert list(pairs_to_unpaired(DatasetDict(train=pairs), num_proc=2)["train"]) == expected


@pytest.mark.parametrize("missing", ["chosen", "rejected"])
def test_rows_that_are_no_pairs_are_a_value_error(missing: str) -> None:
    rows = Dataset.from_dict(STANDARD).remove_columns(missing)
    with pytest.raises(ValueError, match=f"'{missing}' is missing"):
        pairs_to_unpaired(rows)
    with pytest.raises(ValueError, match=f"'{missing}' is missing"):
        rows.map(PairsToUnpaired(), batched=True)
