"""What any trainer of encoders here must do. A new method joins with one line in `registry.RETRIEVERS`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.training_args import SentenceTransformerTrainingArguments

from tests.conformance.loading import PICKLES, check_training_loads_no_pickle_and_no_code
from tests.conformance.registry import RETRIEVERS, Retriever
from tests.trainers import retrieval
from tests.trainers.runs import assert_same_weights, train, weights_of

every_retriever = pytest.mark.parametrize("method", RETRIEVERS, ids=lambda method: method.name)
STEPS = 16
SGD: dict[str, Any] = {"max_steps": STEPS, "optim": "sgd", "learning_rate": 0.1}
CUT: dict[str, Any] = {"mini_batch_num_tokens": 60}  # of the cached loss: a few texts a forward


def build_parent(method: Retriever, folder: Path, **changes: Any) -> Any:
    """The parent on the same rows, with the same loss."""
    model = method.model()
    stock = {
        name: value
        for name, value in vars(retrieval.config(folder, method.config, **changes)).items()
        if name in SentenceTransformerTrainingArguments.__dataclass_fields__ and not name.startswith("_")
    }
    known = {name for name, entry in SentenceTransformerTrainingArguments.__dataclass_fields__.items() if entry.init}
    args = SentenceTransformerTrainingArguments(**{name: stock[name] for name in stock if name in known})
    args.prompts = {"query": "ask: "}
    rows = method.rows(32).remove_columns("id")
    return method.parent(model, args, train_dataset=rows, loss=MultipleNegativesRankingLoss(model))


@pytest.mark.parametrize("accumulation", [1, 2])
@every_retriever
def test_without_exemplars_it_equals_its_parent_bit_for_bit(
    method: Retriever, accumulation: int, tmp_path: Path
) -> None:
    changes = {"gradient_accumulation_steps": accumulation, "max_steps": 6}
    model = method.model()
    ours = method.build(
        tmp_path, 32, model=model, example_rate=0.0, prompts={"query": "ask: "}, **changes,
        kwargs={"loss": MultipleNegativesRankingLoss(model)},
    )  # fmt: skip
    theirs = build_parent(method, tmp_path / "parent", **changes)
    assert train(ours) == train(theirs)
    assert_same_weights(ours.model, theirs.model)


@every_retriever
def test_with_exemplars_it_differs_from_its_parent(method: Retriever, tmp_path: Path) -> None:
    theirs = build_parent(method, tmp_path / "parent")
    assert train(method.build(tmp_path, 32, prompts={"query": "ask: "})) != train(theirs)


def two_process_jobs(folder: Path) -> list[dict[str, Any]]:
    changes = SGD | {"per_device_train_batch_size": 2}
    cuts = {"whole": changes, "cut": changes | CUT}
    return [
        {
            "id": f"{method.name}/{name}", "method": method.name, "folder": str(folder / method.name / name),
            "rows": 32, "changes": cut,
        }
        for method in RETRIEVERS
        for name, cut in cuts.items()
    ]  # fmt: skip


@pytest.mark.timeout(900)
@every_retriever
def test_a_batch_of_four_is_two_processes_of_two_and_mini_batches_of_any_size(
    method: Retriever, two_processes: dict, tmp_path: Path
) -> None:
    changes = SGD | {"per_device_train_batch_size": 4}
    whole = train(method.build(tmp_path / "whole", 32, **changes))
    cut = train(method.build(tmp_path / "cut", 32, **changes, **CUT))
    shared, shared_cut = (two_processes[f"{method.name}/{name}"] for name in ("whole", "cut"))
    assert shared["world"] == shared_cut["world"] == 2
    assert len(whole) == len(shared["losses"]) == len(shared_cut["losses"]) == STEPS
    assert np.mean(whole[-8:]) < np.mean(whole[:8]) - 0.1, "nothing was learned: equal losses would mean little"
    # Scores of up to 50 (the inverse temperature) in float32 are known to 4e-6.
    assert np.abs(np.subtract(whole, cut)).max() < 1e-4
    assert np.abs(np.subtract(whole, shared["losses"])).max() < 1e-4
    assert np.abs(np.subtract(whole, shared_cut["losses"])).max() < 1e-4


@every_retriever
def test_lora_trains_the_adapter_alone_and_reloads_with_stock_classes(method: Retriever, tmp_path: Path) -> None:
    trainer = method.build(tmp_path, 32, max_steps=12, learning_rate=1.0, kwargs={"peft_config": method.adapter()})
    frozen = {name: value for name, value in weights_of(trainer.model).items() if "lora" not in name}
    losses = train(trainer)
    assert np.mean(losses[-3:]) < np.mean(losses[:3])
    assert all(torch.equal(value, frozen[name]) for name, value in weights_of(trainer.model).items() if name in frozen)
    trainer.save_model(str(tmp_path / "saved"))
    assert (tmp_path / "saved" / "adapter_model.safetensors").is_file()
    assert not list((tmp_path / "saved").rglob("model.safetensors"))
    loaded = SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    query = ["where is the calm kite"]
    assert np.array_equal(loaded.encode(query), trainer.model.eval().encode(query))
    assert np.abs(loaded.encode(query) - method.model().encode(query)).max() > 1e-3


@every_retriever
def test_the_saved_folder_is_stock_has_a_card_and_no_pickle(method: Retriever, tmp_path: Path) -> None:
    trainer = method.build(tmp_path, 16, max_steps=2, model_license="apache-2.0")
    train(trainer)
    folder = tmp_path / "saved"
    trainer.save_model(str(folder))
    assert_same_weights(SentenceTransformer(str(folder), device="cpu"), trainer.model)
    assert not [path for path in folder.rglob("*") if path.name.endswith(PICKLES)]
    assert "hf_ext" not in (folder / "modules.json").read_text(), "a module of ours would need trust_remote_code"
    card = ModelCard.load(folder / "README.md")
    assert card.data.license == "apache-2.0"
    assert card.data.library_name == "sentence-transformers"
    assert {"hf-ext", method.name, "sentence-transformers"} <= set(card.data.tags)
    assert str(tmp_path) not in card.content, "the card names a place on this machine"


@every_retriever
def test_training_saving_and_resuming_load_no_pickle_and_no_code_of_a_model(
    method: Retriever, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_training_loads_no_pickle_and_no_code(method, tmp_path, monkeypatch)
