"""The recipe's push: one commit whatever goes wrong on the way; no label, prediction, checkpoint or pickle in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from huggingface_hub import ModelCard
from transformers import AutoModelForSequenceClassification, Trainer, TrainingArguments

from hf_ext.hub.push import PushError
from hf_ext.rounds.consensus import ConsensusRecipe
from hf_ext.trainers.consensus import ForwardCorrectedTrainer
from tests.hub.fake_hub import FOR_EVER, FakeHub
from tests.trainers.classifiers import CHANNEL, consensus_config, labelled_rows, tiny_bert
from tests.trainers.runs import assert_same_weights


@pytest.fixture(scope="module")
def rows() -> Dataset:
    return labelled_rows(24, 0.3, 1)


def recipe(folder: Path, rows: Dataset, **changes: Any) -> ConsensusRecipe:
    fields = {"mode": "consensus", "budget": "steps", "select_on_noisy_eval": False, "num_train_epochs": 1}
    fields |= {"push_to_hub": True, "hub_model_id": "me/tiny", "save_strategy": "steps", "save_steps": 2}
    args = consensus_config(folder, **(fields | {"model_license": "apache-2.0"} | changes))
    return ConsensusRecipe(Trainer, tiny_bert, args, rows, channel=CHANNEL)


def test_a_run_ends_in_one_commit_through_errors_and_lost_answers(hub: FakeHub, tmp_path: Path, rows: Dataset) -> None:
    hub.fail("preupload", 503, 2)
    hub.fail("commit", "lost")  # applied, but the answer does not come
    result = recipe(tmp_path / "out", rows).run()
    assert hub.titles("me/tiny") == ["End of training"]
    names = set(hub.files("me/tiny"))
    assert {"model.safetensors", "config.json", "README.md", "rounds.md"} <= names
    private = ("rounds/", "folds/", "checkpoint-", "predictions", "consensus.json", "training_args")
    assert not [name for name in names if name.startswith(private) or name.endswith((".arrow", ".bin", ".pt", ".pth"))]
    assert_same_weights(AutoModelForSequenceClassification.from_pretrained("me/tiny"), result.trainer.model)
    card = ModelCard.load("me/tiny")
    assert card.data.license == "apache-2.0"
    assert "consensus" in card.data.tags
    assert 'model="me/tiny"' in card.text
    assert "epsilon 1.5 nats, of one label" in card.text
    assert not [name for name, content in hub.files("me/tiny").items() if str(tmp_path).encode() in content]


def test_a_hub_that_is_down_costs_the_push_and_not_the_run(hub: FakeHub, tmp_path: Path, rows: Dataset) -> None:
    hub.fail("commit", 503, FOR_EVER)
    with pytest.raises(PushError, match="out"):
        recipe(tmp_path / "out", rows).run()
    AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert (tmp_path / "out" / "rounds.md").is_file()
    hub.faults.clear()
    again = recipe(tmp_path / "out", rows).run()
    assert again.trainer is None, "a run that is finished is pushed again, not trained again"
    assert hub.titles("me/tiny") == ["End of training"]


def test_a_classifier_with_the_host_s_own_arguments_is_pushed_too(hub: FakeHub, tmp_path: Path, rows: Dataset) -> None:
    """Those know no `model_license`."""
    args = TrainingArguments(
        str(tmp_path / "out"), hub_model_id="me/stock", use_cpu=True, bf16=False, report_to="none"
    )
    trainer = ForwardCorrectedTrainer(model=tiny_bert(), args=args, train_dataset=rows, channel=CHANNEL)
    trainer.push_to_hub()
    assert hub.titles("me/stock") == ["End of training"]
    assert ModelCard.load("me/stock").data.license == "unknown"
