"""Which trainers take a mixture, what each makes of the sources, and what is refused."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import ClassLabel, Dataset
from sentence_transformers import SentenceTransformerTrainer
from transformers import Trainer
from trl import SFTConfig, SFTTrainer

from hf_ext import (
    MixtureSFTConfig,
    MixtureSFTTrainer,
    PretrainingTrainer,
    RowError,
    SideObservationMixture,
    WeightedSFTConfig,
    WeightedSFTTrainer,
    with_mixture,
)
from hf_ext.trainers.weighted_sft.trainer import WeightedSFTTrainer as Host
from tests.trainers import classifiers, pretraining
from tests.trainers.mixture.sources import HOSTS, SIZES, mixture, sft, sources, target, texts, weighted
from tests.trainers.runs import build, config_of, logged


@pytest.mark.parametrize("host", HOSTS)
def test_every_host_trains_on_the_sources_and_learns_of_all(host: str, tmp_path: Path) -> None:
    trainer = HOSTS[host](tmp_path, max_steps=6, gradient_accumulation_steps=2)
    before = [value.detach().clone() for value in trainer.model.parameters()]
    trainer.train()
    assert any(not torch.equal(one, other) for one, other in zip(before, trainer.model.parameters(), strict=True))
    mix = trainer.mixture
    assert len(trainer.train_dataset) == sum(mix.sizes)
    assert set(mix.batch_sources[:12]) == {0, 1, 2}
    assert all(mix.standard_errors[name] < float("inf") for name in mix.names)
    assert len(logged(trainer, "mixture/alpha/share")) == 6


def test_sources_are_packed_apart(tmp_path: Path) -> None:
    trainer = weighted(tmp_path, packing=True, max_length=64)
    start = 0
    for name, size in zip(trainer.mixture.names, trainer.source_sizes, strict=True):
        packed = trainer.train_dataset.select(range(start, start + size))
        text = trainer.processing_class.batch_decode(packed["input_ids"][:])
        others = set(SIZES) - {name}
        assert all(name in line and not any(other in line for other in others) for line in text)
        start += size
    assert start == len(trainer.train_dataset) < sum(SIZES.values())


def test_rows_are_numbered_through_all_sources(tmp_path: Path) -> None:
    trainer = weighted(tmp_path)
    assert trainer.train_dataset["__hf_ext_row__"] == list(range(sum(SIZES.values())))


def test_the_weights_of_flow_are_of_the_rows_of_all_sources(tmp_path: Path) -> None:
    trainer = HOSTS["flow"](tmp_path, max_steps=1)
    trainer.train()
    weights = [entry if isinstance(entry, float) else entry[0] for entry in trainer.train_dataset["weight"]]
    assert len(set(weights)) > 50
    assert trainer.flow_statistics["flow/ess_ratio"] < 1


def test_the_trainer_of_the_command_line_is_the_host_with_a_mixture_of_its_settings(tmp_path: Path) -> None:
    fields = {"reward_every": 2, "target_rows": 8, "floor_share": 0.05, "max_steps": 6, "seed": 3}
    args = config_of(MixtureSFTConfig, tmp_path / "a", **fields)
    ours = build(MixtureSFTTrainer, args, None, sources=sources(), target=target())
    args = config_of(WeightedSFTConfig, tmp_path / "b", max_steps=6, seed=3)
    other = build(with_mixture(WeightedSFTTrainer), args, None, mixture=mixture())
    for trainer in (ours, other):
        trainer.train()
    assert ours.mixture.state_dict() == other.mixture.state_dict()
    for one, two in zip(ours.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(one, two)


def test_a_function_is_asked_for_the_reward_of_each_block(tmp_path: Path) -> None:
    steps: list[int] = []

    def reward(trainer: Any) -> float:
        steps.append(trainer.state.global_step)
        return float(len(steps))

    trainer = sft(tmp_path, mixture(reward=reward), max_steps=7)
    trainer.train()
    assert steps == [2, 4, 6]
    assert [trainer.mixture.arms[2 * block] for block in range(3)] == [0, 1, 2]
    assert trainer.mixture.arms[0] == trainer.mixture.arms[1]


BATCHES = {"per_device_train_batch_size": 12, "per_device_eval_batch_size": 12}


def test_the_drop_of_the_targets_loss_is_that_of_an_evaluation(tmp_path: Path) -> None:
    trainer = sft(tmp_path, mixture(reward="probe_drop", target_rows=12), max_steps=3, **BATCHES)
    losses = [trainer._target_loss(0)]
    losses.append(trainer.evaluate(eval_dataset=target(), metric_key_prefix="eval")["eval_loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    trainer.train()
    told = trainer.mixture.state_dict()
    assert told["former_loss"] < losses[0]
    assert told["waiting"] == [[0, 0, pytest.approx(losses[0] - told["former_loss"], rel=1e-6)]]


def test_a_second_training_begins_anew(tmp_path: Path) -> None:
    trainer = sft(tmp_path, max_steps=4)
    trainer.train()
    state = trainer.mixture.state_dict()
    trainer.train()
    assert trainer.mixture.batch_sources[:4] == state_sources(state, trainer)
    assert trainer.mixture.num_trained == 4


def state_sources(state: dict[str, Any], trainer: Any) -> list[int]:
    again = mixture()
    again.lay_out(trainer.source_sizes, 4, 1)
    again.load_state_dict(state)
    return again.batch_sources[:4]


def test_a_dropped_trainer_is_freed_by_counting_references(tmp_path: Path) -> None:
    trainer = weighted(tmp_path, max_steps=2)
    trainer.train()
    gc.collect()
    gc.disable()
    try:
        dropped = weakref.ref(trainer)
        del trainer
        assert dropped() is None
    finally:
        gc.enable()


# --- refused ---------------------------------------------------------------------------------------------------------


def test_what_is_no_trainer_or_draws_its_own_batches_is_refused() -> None:
    with pytest.raises(TypeError, match="needs a class of trainers, got 5"):
        with_mixture(5)
    with pytest.raises(TypeError, match="SentenceTransformerTrainer draws its batches itself"):
        with_mixture(SentenceTransformerTrainer)
    for host in (with_mixture(SFTTrainer), MixtureSFTTrainer):
        with pytest.raises(TypeError, match=f"{host.__name__} trains on a mixture already"):
            with_mixture(host)
    assert with_mixture(Trainer) is with_mixture(Trainer)
    assert with_mixture(Host).__name__ == "WeightedSFTTrainerWithMixture"


def test_a_target_row_in_a_source_is_named(tmp_path: Path) -> None:
    mix = mixture()
    mix.target = Dataset.from_dict({"text": [*target(3)["text"], mix.sources["beta"][7]["text"]]})
    with pytest.raises(ValueError, match=r"Row 3 of the target is row 7 of source 'beta', and 1 rows of that source"):
        sft(tmp_path, mix)


@pytest.mark.parametrize("name", ["alpha", "beta"])
def test_a_malformed_row_is_named_with_its_source(name: str, tmp_path: Path) -> None:
    mix = mixture()
    rows = mix.sources[name]
    mix.sources[name] = Dataset.from_dict({"text": [*rows["text"][:5], None, *rows["text"][6:]]})
    with pytest.raises(RowError, match=rf"^source '{name}' dataset, row 5, column 'text'"):
        weighted(tmp_path, mix)


def test_a_malformed_row_of_a_host_that_prepares_none_is_named_with_its_source(tmp_path: Path) -> None:
    rows = {name: pretraining.sequences(n, seed=n) for name, n in SIZES.items()}
    examples = rows["beta"].to_list()
    examples[3]["input_ids"] = examples[3]["input_ids"][:5]
    mix = SideObservationMixture(rows | {"beta": Dataset.from_list(examples)}, reward="loss")
    args = pretraining.config(tmp_path, architecture=pretraining.TINY)
    with pytest.raises(RowError, match=r"^source 'beta' dataset, row 3, column 'input_ids': 5 tokens") as caught:
        with_mixture(PretrainingTrainer)(None, args, mixture=mix)
    assert caught.value.row_index == 3


def test_columns_of_unlike_types_are_named_with_two_sources(tmp_path: Path) -> None:
    noted = {name: texts(name, 8, 1).add_column("note", note) for name, note in (("a", [1] * 8), ("b", ["x"] * 8))}
    message = r"column 'note' is Value\('int64'\) in source 'a' and Value\('string'\) in source 'b'. Make them alike"
    with pytest.raises(ValueError, match=message):
        weighted(tmp_path, SideObservationMixture(noted, reward="loss"))
    columns = ["input_ids", "attention_mask", "label"]
    labels = classifiers.labelled_rows(8).features["label"].names
    classes = {
        name: classifiers.labelled_rows(8).select_columns(columns).cast_column("label", ClassLabel(names=names))
        for name, names in (("a", labels), ("b", labels[::-1]))
    }
    with pytest.raises(ValueError, match=r"column 'label' is ClassLabel.* in source 'a' and ClassLabel.* in source"):
        HOSTS["classifier"](tmp_path, SideObservationMixture(classes, reward="loss"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_sampling_strategy": "group_by_length"}, "group_by_length.*holds rows of one source"),
        ({"auto_find_batch_size": True}, "auto_find_batch_size"),
        ({"ignore_data_skip": True}, "ignore_data_skip"),
        ({"accelerator_config": {"split_batches": True}}, "split_batches"),
    ],
)
def test_a_setting_that_takes_the_choice_of_rows_away_is_refused(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        sft(tmp_path, **changes)


def test_rows_beside_a_mixture_and_a_checkpoint_without_one_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="beside mixture="):
        build(with_mixture(SFTTrainer), config_of(SFTConfig, tmp_path), texts("a", 4, 0), mixture=mixture())
    with pytest.raises(ValueError, match="takes sources="):
        build(MixtureSFTTrainer, config_of(MixtureSFTConfig, tmp_path), None)
    plain = build(
        SFTTrainer, config_of(SFTConfig, tmp_path / "out", save_strategy="steps", save_steps=2), texts("a", 16, 0)
    )
    plain.train()
    with pytest.raises(ValueError, match="a training without a mixture"):
        sft(tmp_path).train(resume_from_checkpoint=True)


def test_a_run_with_other_sources_is_not_gone_on_with(tmp_path: Path) -> None:
    sft(tmp_path, max_steps=2, save_strategy="steps", save_steps=2).train()
    mix = mixture()
    mix.sources.pop("gamma")
    other = type(mix)(mix.sources, mix.target, reward_every=2, target_rows=8, floor_share=0.05, seed=3)
    with pytest.raises(ValueError, match=r"sources was \['alpha', 'beta', 'gamma'\], is \['alpha', 'beta'\]"):
        sft(tmp_path, other).train(resume_from_checkpoint=True)
