"""What the host trainers are handed: the texts of `formatting_func`, and the columns of one data type."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from hf_ext._columns import ROW_INDEX
from hf_ext.guards.rows import RowError
from hf_ext.trainers.flow import FlowSFTConfig, FlowSFTTrainer
from hf_ext.trainers.infopo import InfoPOConfig, InfoPOTrainer, InfoPOUnpairedConfig, InfoPOUnpairedTrainer
from hf_ext.trainers.weighted_sft import WeightedSFTConfig, WeightedSFTTrainer
from tests.tiny import tiny_model, tiny_prompt_completion_dataset, tiny_text_dataset
from tests.trainers.runs import TOKENIZER, build, config_of

CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
ROWS = [
    {"prompt": "Hi ", "completion": "Hello.", "messages": CHAT, "weight": 2.0},
    {"prompt": "Ho ", "completion": "", "messages": CHAT, "weight": 1.0},
    {"prompt": "Hu ", "completion": "Yes.", "messages": CHAT, "weight": 0.5},
]


def sentence(row: dict[str, Any]) -> str | None:
    assert ROW_INDEX not in row
    return f"Q {row['prompt']}A {row['completion']}" if row["completion"] else None


def texts(rows: Any) -> list[str]:
    return [TOKENIZER.decode(row["input_ids"]) for row in rows]


FORMATTED = ["Q Hi A Hello.<|im_end|>", "Q Hu A Yes.<|im_end|>"]


@pytest.mark.parametrize("streamed", [False, True])
def test_a_formatting_func_makes_the_text_of_every_set_and_rows_without_one_are_dropped(
    streamed: bool, tmp_path: Path
) -> None:
    rows: Any = Dataset.from_list(ROWS)
    held_out = rows.select([2])
    rows = rows.to_iterable_dataset() if streamed else rows
    args = config_of(WeightedSFTConfig, tmp_path, on_bad_row="drop", dataset_text_field="answer")
    trainer = build(WeightedSFTTrainer, args, rows, formatting_func=sentence, eval_dataset={"held_out": held_out})
    good_rows = list(trainer.train_dataset)
    assert texts(good_rows) == FORMATTED
    assert [row["weight"] for row in good_rows] == [2.0, 0.5]
    assert texts(trainer.eval_dataset["held_out"]) == FORMATTED[1:]
    first = json.loads(Path(args.bad_rows_path).read_text(encoding="utf-8").splitlines()[0])
    assert (first["row_index"], first["column"]) == (1, "formatting_func")
    assert first["row"] == ROWS[1]


@pytest.mark.parametrize(
    ("function", "words"),
    [(lambda row: row["answer"], "it raised KeyError: 'answer'"), (lambda row: [row["prompt"]], "got list")],
    ids=["raises", "list"],
)
def test_a_row_that_a_formatting_func_fails_on_is_named(function: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(RowError, match="row 0, column 'formatting_func'") as caught:
        build(
            WeightedSFTTrainer,
            config_of(WeightedSFTConfig, tmp_path),
            Dataset.from_list(ROWS),
            formatting_func=function,
        )
    assert words in str(caught.value)
    assert "__hf_ext" not in str(caught.value), "a column that the user does not have"


def test_a_formatting_func_of_rows_that_are_tokenised_is_refused(tmp_path: Path) -> None:
    rows = Dataset.from_list([{"input_ids": [5, 6, 7]}] * 2)
    with pytest.raises(ValueError, match="formatting_func has no effect on the train dataset"):
        build(WeightedSFTTrainer, config_of(WeightedSFTConfig, tmp_path), rows, formatting_func=sentence)


def test_flow_scores_the_texts_that_it_trains_on(tmp_path: Path) -> None:
    rows = Dataset.from_list([ROWS[0], ROWS[2]] * 2).remove_columns("weight")
    formatted = rows.map(lambda row: {"text": sentence(row)}).select_columns("text")
    weights = []
    for source, function in ((rows, sentence), (formatted, None)):
        args = config_of(FlowSFTConfig, tmp_path / str(function is None), max_steps=1)
        trainer = build(FlowSFTTrainer, args, source, formatting_func=function)
        trainer.train()
        weights.append(trainer.train_dataset["weight"][:])
    assert weights[0] == weights[1]


def test_completions_of_an_eval_set_are_masked_though_the_train_rows_have_none(tmp_path: Path) -> None:
    held_out = tiny_prompt_completion_dataset(2)
    args = config_of(WeightedSFTConfig, tmp_path)
    trainer = build(WeightedSFTTrainer, args, tiny_text_dataset(4), eval_dataset=held_out)
    for row, raw in zip(trainer.eval_dataset, held_out, strict=True):
        supervised = [label for label in row["labels"] if label != -100]
        assert TOKENIZER.decode(supervised).strip() == raw["completion"] + "<|im_end|>"


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("unpaired", [False, True], ids=["pairs", "single"])
def test_preference_rows_end_with_the_end_token_whatever_stands_beside_them(
    unpaired: bool, streamed: bool, tmp_path: Path
) -> None:
    others = {"messages": CHAT, "tools": "hammer", "text": "zz", "row_index": 7}
    single = {"completion": "Hello.", "chosen": "zz", "rejected": "yy"}
    pair = {"chosen": "Hello.", "rejected": "Go.", "completion": "zz", "label": 3}
    rows: Any = Dataset.from_list(
        [{"prompt": "Hi "} | others | (single | {"label": i % 2 == 0} if unpaired else pair) for i in range(4)]
    )
    rows = rows.to_iterable_dataset() if streamed else rows
    trainer_class, config_class = (
        (InfoPOUnpairedTrainer, InfoPOUnpairedConfig) if unpaired else (InfoPOTrainer, InfoPOConfig)
    )
    settings = {"positive_fraction": 0.5} if unpaired else {}
    args = config_of(config_class, tmp_path, **settings)
    trainer = build(trainer_class, args, rows, ref_model=tiny_model(TOKENIZER))
    for row in trainer.train_dataset:
        assert TOKENIZER.decode(row["completion_ids" if unpaired else "chosen_ids"]) == "Hello.<|im_end|>"
        assert "messages" not in row
        assert row["row_index"] == 7
