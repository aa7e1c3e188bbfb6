"""A trainer that is dropped is gone at once, with its models: nobody waits for the garbage collector."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conformance.registry import BY_NAME, RETRIEVERS
from tests.trainers.runs import config_of


@pytest.fixture(autouse=True)
def without_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("name", BY_NAME)
def test_a_dropped_trainer_and_its_models_are_freed_by_counting_references(name: str, tmp_path: Path) -> None:
    trainer = BY_NAME[name].build(tmp_path, 8, max_steps=1)
    trainer.train()
    # A model of sentence-transformers holds itself, by its card's data, whoever trains it (6.2).
    kinds = [] if BY_NAME[name] in RETRIEVERS else ["model", "ref_model"]
    models = {kind: weakref.ref(getattr(trainer, kind)) for kind in kinds if getattr(trainer, kind, None) is not None}
    dropped = weakref.ref(trainer)
    del trainer
    assert dropped() is None
    assert {kind: model() is None for kind, model in models.items()} == dict.fromkeys(models, True)


def test_a_model_that_is_held_keeps_its_forward_and_its_next_trainer_its_head(tmp_path: Path) -> None:
    from hf_ext import WeightedSFTConfig, WeightedSFTTrainer
    from tests.conformance.registry import plain_rows
    from tests.tiny import tiny_model, tiny_tokenizer

    tokenizer = tiny_tokenizer()
    model = tiny_model(tokenizer)

    def build(place: str) -> WeightedSFTTrainer:
        args = config_of(WeightedSFTConfig, tmp_path / place, max_steps=1)
        return WeightedSFTTrainer(model, args, train_dataset=plain_rows(8), processing_class=tokenizer)

    first = build("a")
    first.train()
    second = build("b")
    del first
    second.train()
    assert "forward" in vars(model)
    del second
    third = build("c")
    third.train()
    del third
    ids = tokenizer("a b", return_tensors="pt")
    assert model(**ids).logits.shape[-1] == len(tokenizer)
