"""InfoPOUnpairedTrainer against loops over tokens, its own paired form, and KTOTrainer's data handling."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from peft import LoraConfig
from trl import KTOConfig, KTOTrainer, unpair_preference_dataset

from hf_ext.trainers.infopo import InfoPOConfig, InfoPOTrainer, InfoPOUnpairedConfig, InfoPOUnpairedTrainer
from tests.tiny import tiny_model
from tests.trainers.preference import conversational, first_batch, pairs, singles, start, sum_logp, tokens_of
from tests.trainers.runs import TOKENIZER, assert_same_weights, train


def unpaired(folder: Path, rows: Any = None, **changes: Any) -> Any:
    return start(InfoPOUnpairedTrainer, InfoPOUnpairedConfig, folder, singles(12) if rows is None else rows, **changes)


def loss_of(trainer: Any, batch: dict[str, Any] | None = None) -> float:
    return float(trainer.compute_loss(trainer.model, batch or first_batch(trainer)).detach())


@pytest.mark.parametrize("normalized", [False, True], ids=["sums", "means"])
def test_the_loss_is_that_of_a_loop_over_tokens(normalized: bool, tmp_path: Path) -> None:
    rows, beta = singles(5, 0.6), 2.0 if normalized else 0.02
    policy, reference = tiny_model(TOKENIZER), tiny_model(TOKENIZER, seed=1)
    share, losses = 3 / 5, []
    for row in rows:
        prompt, completion = tokens_of(row["prompt"], row["completion"])
        ratio = sum_logp(policy, prompt, completion) - sum_logp(reference, prompt, completion)
        f = beta * ratio / (len(completion) if normalized else 1)
        losses.append(-f / (2 * share) if row["label"] else np.exp(f) / (2 * (1 - share)))
    trainer = unpaired(
        tmp_path, rows, reference=1, beta=beta, length_normalized=normalized, per_device_train_batch_size=5
    )
    assert trainer.positive_fraction == pytest.approx(share)
    assert loss_of(trainer) == pytest.approx(np.mean(losses), abs=2e-4)


def test_a_pair_in_two_rows_has_half_the_pairs_loss_and_half_its_gradient(tmp_path: Path) -> None:
    rows = pairs(4)
    paired = start(InfoPOTrainer, InfoPOConfig, tmp_path / "pairs", rows, reference=1, beta=0.05)
    split = unpaired(
        tmp_path / "rows", unpair_preference_dataset(rows), reference=1, beta=0.05, per_device_train_batch_size=8
    )
    assert split.positive_fraction == 0.5
    for trainer in (paired, split):
        trainer.compute_loss(trainer.model, first_batch(trainer)).backward()
    assert loss_of(split) == pytest.approx(loss_of(paired) / 2, abs=1e-5)
    for (name, a), (_, b) in zip(split.model.named_parameters(), paired.model.named_parameters(), strict=True):
        scale = float(b.grad.abs().max())
        assert float((a.grad - b.grad / 2).abs().max()) <= 1e-4 * scale, name


def test_pairs_are_taken_as_they_are(tmp_path: Path) -> None:
    rows = pairs(6).add_column("weight", [i / 2 for i in range(6)])
    given = unpaired(tmp_path / "a", rows)
    split = unpaired(tmp_path / "b", unpair_preference_dataset(rows))
    assert given.train_dataset["label"][:] == split.train_dataset["label"][:]
    assert given.train_dataset["__hf_ext_row__"][:] == [*range(6), *range(6)], "a pair's two rows carry its number"
    assert train(given) == train(split)
    assert_same_weights(given.model, split.model)


def test_the_mean_over_micro_batches_is_the_whole_batchs_loss(tmp_path: Path) -> None:
    """Whatever classes a micro-batch holds: one row each, and a share of good rows far from a half."""
    rows = singles(8, 0.25)
    whole = unpaired(tmp_path / "whole", rows, reference=1, beta=0.05, per_device_train_batch_size=8)
    single = unpaired(tmp_path / "one", rows, reference=1, beta=0.05, per_device_train_batch_size=1)
    each = [loss_of(single, batch) for batch in single.get_train_dataloader()]
    assert len(each) == 8
    assert np.mean(each) == pytest.approx(loss_of(whole), abs=1e-5)


def test_a_weight_multiplies_its_rows_loss(tmp_path: Path) -> None:
    rows, weights = singles(4), [0.0, 2.0, 1.0, 0.5]
    settings: dict[str, Any] = {"reference": 1, "beta": 0.05, "train_sampling_strategy": "sequential"}
    single = unpaired(tmp_path / "one", rows, per_device_train_batch_size=1, **settings)
    each = [loss_of(single, batch) for batch in single.get_train_dataloader()]
    weighted = unpaired(tmp_path / "all", rows.add_column("weight", weights), **settings)
    assert loss_of(weighted) == pytest.approx(np.dot(each, weights) / 4, abs=1e-5)


@pytest.mark.parametrize("changes", [{"precompute_ref_log_probs": True}, {"activation_checkpointing": True}], ids=str)
def test_the_reference_may_be_had_otherwise(changes: dict, tmp_path: Path) -> None:
    plain, other = unpaired(tmp_path / "a"), unpaired(tmp_path / "b", **changes)
    assert np.abs(np.subtract(train(plain), train(other))).max() < 1e-6


def test_an_adapter_trains_and_the_base_stays(tmp_path: Path) -> None:
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    trainer = unpaired(
        tmp_path, reference=None, kwargs={"peft_config": lora}, learning_rate=2.0, max_steps=8, beta=0.02
    )
    losses = train(trainer)
    assert len(set(losses)) > 4
    assert trainer.state.log_history[-2]["infopo/mi"] != 0
    assert_same_weights(trainer.model.unload(), tiny_model(TOKENIZER))


@pytest.mark.parametrize("estimator", ["nwj", "jsd", "lsif", "nwj_mixture"])
def test_every_estimator_learns_which_responses_are_good(estimator: str, tmp_path: Path) -> None:
    trainer = unpaired(
        tmp_path, singles(8), estimator=estimator, max_steps=40, learning_rate=0.01, max_grad_norm=1.0, beta=0.1,
        per_device_train_batch_size=8,
    )  # fmt: skip
    train(trainer)
    logs = [entry for entry in trainer.state.log_history if "infopo/mi" in entry]
    assert logs[0]["infopo/mi"] == pytest.approx(0.0, abs=1e-5)
    assert logs[-1]["infopo/mi"] > 0.02
    assert logs[-1]["infopo/chosen_delta"] > logs[-1]["infopo/rejected_delta"]


def test_evaluation_has_ktos_metrics_and_ours(tmp_path: Path) -> None:
    rows = conversational(singles(6))
    mine = unpaired(tmp_path / "a", rows, kwargs={"eval_dataset": rows})
    theirs = start(
        KTOTrainer, KTOConfig, tmp_path / "b", rows, loss_type="apo_zero_unpaired", kwargs={"eval_dataset": rows}
    )
    expected, found = theirs.evaluate(), mine.evaluate()
    for name, value in expected.items():
        if name.startswith(("eval_logps", "eval_rewards", "eval_entropy", "eval_logits")):
            assert found[name] == pytest.approx(value, abs=1e-6), name
    assert found["eval_infopo/mi"] == pytest.approx(0.0, abs=1e-6)


def test_rows_sorted_by_label_are_shuffled(tmp_path: Path) -> None:
    rows = singles(16)
    rows = Dataset.from_list(sorted(rows, key=lambda row: not row["label"]))
    trainer = unpaired(tmp_path, rows, per_device_train_batch_size=8)
    labels = [batch["label"].tolist() for batch in trainer.get_train_dataloader()]
    assert all(0 < sum(part) < 8 for part in labels)
