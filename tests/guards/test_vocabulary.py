"""Tokens that a model has no embedding for are named before training and scoring; added ones that it has are taken."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from peft import PromptTuningConfig, get_peft_model

from hf_ext import (
    InfoPOConfig,
    InfoPOTrainer,
    LikelihoodReport,
    RowError,
    WeightedSFTConfig,
    WeightedSFTTrainer,
    add_original_losses,
    forgetting_report,
    likelihood_report,
)
from tests.tiny import tiny_model, tiny_text_dataset
from tests.trainers.runs import TOKENIZER, build, config_of

SIZE = len(TOKENIZER)
TEXTS = Dataset.from_dict({"text": ["Ada counts.", "Ben <new> paints.", "Chen sells."]})
PAIRS = Dataset.from_dict({"prompt": ["Hi "] * 3, "chosen": ["Yes.", "Yes <new>.", "So."], "rejected": ["No."] * 3})


@pytest.fixture
def tokenizer() -> Any:
    tokenizer = copy.deepcopy(TOKENIZER)
    tokenizer.add_tokens(["<new>"])
    return tokenizer


def weighted(tmp_path: Path, tokenizer: Any, model: Any = None, rows: Any = TEXTS, **changes: Any) -> Any:
    args = config_of(WeightedSFTConfig, tmp_path, max_steps=1, max_length=64, **changes)
    model = tiny_model(TOKENIZER) if model is None else model
    return build(WeightedSFTTrainer, args, rows, model=model, processing_class=tokenizer)


def preference(tmp_path: Path, tokenizer: Any) -> Any:
    args = config_of(InfoPOConfig, tmp_path, max_steps=1)
    return build(InfoPOTrainer, args, PAIRS, ref_model=tiny_model(TOKENIZER), processing_class=tokenizer)


def measured(pairs: Dataset, tokenizer: Any, model: Any, reference: Any) -> LikelihoodReport:
    return likelihood_report(model, reference, pairs, tokenizer, num_bootstrap=10, show_progress=False)


@pytest.mark.parametrize(
    "run",
    [
        lambda path, tokenizer: weighted(path, tokenizer).train(),
        lambda path, tokenizer: weighted(path, tokenizer, packing=True).train(),
        lambda path, tokenizer: preference(path, tokenizer).train(),
        lambda path, tokenizer: add_original_losses(TEXTS, tiny_model(TOKENIZER), tokenizer, show_progress=False),
        lambda path, tokenizer: measured(PAIRS, tokenizer, *[tiny_model(TOKENIZER)] * 2),
        lambda path, tokenizer: forgetting_report(
            tiny_model(TOKENIZER), tiny_model(TOKENIZER), tokenizer, target=TEXTS
        ),
    ],
    ids=["weighted", "packed", "preference", "scores", "pairs", "report"],
)
def test_a_token_without_embedding_is_named_with_its_row(
    run: Callable[[Path, Any], Any], tokenizer: Any, tmp_path: Path
) -> None:
    with pytest.raises(RowError, match=f"no embedding for the token {SIZE}.*resize_token_embeddings") as caught:
        run(tmp_path, tokenizer)
    assert caught.value.row_index == 1


def test_added_tokens_that_are_embedded_or_in_no_row_are_taken(tokenizer: Any, tmp_path: Path) -> None:
    resized = tiny_model(TOKENIZER)
    resized.resize_token_embeddings(len(tokenizer))
    for model, rows in ((resized, TEXTS), (tiny_model(TOKENIZER), tiny_text_dataset(3))):
        assert weighted(tmp_path, tokenizer, model, rows).train().global_step == 1


def test_the_original_of_a_model_with_virtual_tokens_scores_as_the_model_without() -> None:
    rows = tiny_text_dataset(3)
    plain = add_original_losses(rows, tiny_model(TOKENIZER), TOKENIZER, show_progress=False)
    prompted = get_peft_model(tiny_model(TOKENIZER), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    scored = add_original_losses(rows, prompted, TOKENIZER, show_progress=False)
    assert scored["original_nll_sum"][:] == pytest.approx(plain["original_nll_sum"][:])
    pairs = PAIRS.select([0, 2])
    alone = measured(pairs, TOKENIZER, prompted, None)
    beside = measured(pairs, TOKENIZER, prompted, tiny_model(TOKENIZER))
    assert alone.to_dict()["measures"] == beside.to_dict()["measures"]
