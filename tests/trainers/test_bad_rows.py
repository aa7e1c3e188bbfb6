"""Malformed rows through the trainer: named before training, or left out and written down."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from hf_ext.guards.rows import RowError
from hf_ext.trainers.weighted_sft import WeightedSFTConfig, WeightedSFTTrainer
from tests.tiny import tiny_prompt_completion_dataset, tiny_text_dataset
from tests.trainers.runs import assert_same_weights, build, config_of, train


def spoilt(n: int = 16) -> Dataset:
    rows = tiny_prompt_completion_dataset(n).to_list()
    rows[3]["completion"] = None
    rows[9]["completion"] = ""
    rows[12]["weight"] = -1.0
    return Dataset.from_list([{"weight": 1.0 + i / 10} | row for i, row in enumerate(rows)])


def test_the_first_bad_row_is_named(tmp_path: Any) -> None:
    with pytest.raises(RowError, match=r"row 3, column 'completion'"):
        build(WeightedSFTTrainer, config_of(WeightedSFTConfig, tmp_path), spoilt())


@pytest.mark.parametrize("streamed", [False, True])
def test_dropping_trains_on_the_good_rows_and_writes_down_the_others(streamed: bool, tmp_path: Any) -> None:
    settings: dict[str, Any] = {"train_sampling_strategy": "sequential", "max_steps": 3}
    kind = (lambda rows: rows.to_iterable_dataset()) if streamed else (lambda rows: rows)
    args = config_of(WeightedSFTConfig, tmp_path / "drop", on_bad_row="drop", **settings)
    dropping = build(WeightedSFTTrainer, args, kind(spoilt()))
    losses = train(dropping)

    good = spoilt().select([i for i in range(16) if i not in (3, 9, 12)])
    clean = build(WeightedSFTTrainer, config_of(WeightedSFTConfig, tmp_path / "clean", **settings), kind(good))
    assert losses == train(clean)
    assert_same_weights(dropping.model, clean.model)

    lines = [json.loads(line) for line in Path(args.bad_rows_path).read_text(encoding="utf-8").splitlines()]
    assert sorted({(line["row_index"], line["column"]) for line in lines}) == [
        (3, "completion"), (9, "completion"), (12, "weight"),
    ]  # fmt: skip
    if not streamed:  # a stream is read anew for each look at its first row
        assert len(lines) == 3
    assert next(line for line in lines if line["row_index"] == 9)["row"]["prompt"] == "Tell me about row 9. "


LONG_PROMPT = 5


def with_a_long_prompt() -> Dataset:
    rows = tiny_prompt_completion_dataset(8).to_list()
    rows[LONG_PROMPT]["prompt"] = "A very long question indeed. " * 12
    return Dataset.from_list(rows)


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("streamed", [False, True])
def test_a_row_that_truncation_leaves_without_a_target_is_named(packing: bool, streamed: bool, tmp_path: Any) -> None:
    rows = with_a_long_prompt().to_iterable_dataset() if streamed else with_a_long_prompt()
    args = config_of(WeightedSFTConfig, tmp_path, packing=packing, max_length=40)
    with pytest.raises(RowError, match=f"row {LONG_PROMPT}, column 'labels': no supervised token") as found:
        train(build(WeightedSFTTrainer, args, rows))
    assert found.value.row_index == LONG_PROMPT
    assert "A very long question" in str(found.value)


def test_a_row_without_a_target_after_truncation_can_be_dropped(tmp_path: Any) -> None:
    args = config_of(WeightedSFTConfig, tmp_path, max_length=40, on_bad_row="drop")
    trainer = build(WeightedSFTTrainer, args, with_a_long_prompt())
    assert trainer.train_dataset["__hf_ext_row__"][:] == [0, 1, 2, 3, 4, 6, 7]
    (line,) = [json.loads(line) for line in Path(args.bad_rows_path).read_text(encoding="utf-8").splitlines()]
    assert line["row_index"] == LONG_PROMPT
    assert line["column"] == "labels"


def test_no_row_left_is_an_error_of_its_own(tmp_path: Any) -> None:
    args = config_of(WeightedSFTConfig, tmp_path, max_length=4, on_bad_row="drop")
    with pytest.raises(ValueError, match="no row left with a supervised token"):
        build(WeightedSFTTrainer, args, tiny_prompt_completion_dataset(4))


def test_token_weights_of_the_wrong_length_are_named(tmp_path: Any) -> None:
    rows = tiny_text_dataset(4).add_column("weight", [[1.0, 2.0]] * 4)  # a text row's tokens are not known before
    with pytest.raises(RowError, match=r"row 0, column 'weight': has 2 entries, the tokenised row has \d+ tokens"):
        build(WeightedSFTTrainer, config_of(WeightedSFTConfig, tmp_path), rows)


def test_a_bad_row_of_the_eval_set_says_which_set(tmp_path: Any) -> None:
    with pytest.raises(RowError, match=r"eval dataset, row 3"):
        build(
            WeightedSFTTrainer, config_of(WeightedSFTConfig, tmp_path), tiny_prompt_completion_dataset(8),
            eval_dataset=spoilt(),
        )  # fmt: skip
