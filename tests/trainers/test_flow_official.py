"""FLOW as its authors' code trains it, and what the default does at any batch size, by loops over full logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from hf_ext.trainers.flow import FlowSFTConfig, FlowSFTTrainer
from tests.tiny import tiny_model, tiny_prompt_completion_dataset
from tests.trainers.runs import TOKENIZER, build, config_of, train, weights_of

LENGTH = 48


def rows(n: int = 8) -> Dataset:
    """Completions of unlike length and, every other one being a repeated word, of unlike loss."""
    plain = tiny_prompt_completion_dataset(n, seed=3)
    return plain.map(
        lambda row, i: row if i % 2 else {"completion": " ".join(["apples"] * (2 + i))}, with_indices=True
    )


def batch_of(prepared: Dataset) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Padded ids, labels and attention mask of all rows, as the official collator makes them."""
    longest = max(len(row["input_ids"]) for row in prepared)
    padded = {"input_ids": TOKENIZER.pad_token_id, "labels": -100}
    ids, labels = (
        torch.tensor([row[name] + [fill] * (longest - len(row[name])) for row in prepared])
        for name, fill in padded.items()
    )
    return ids, labels, (ids != TOKENIZER.pad_token_id).long()


def official_losses(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`get_dataset_temperature.py`: sums and numbers of the shifted, supervised tokens' losses, a row each."""
    shifted = labels[:, 1:]
    log_probs = torch.log_softmax(logits[:, :-1].float(), dim=-1)
    losses = -log_probs.gather(2, shifted.clamp(min=0)[..., None])[..., 0] * (shifted != -100)
    return losses.sum(1), (shifted != -100).sum(1)


def official_loss(logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """`trainer_utils.py`: the sequences' weights times the sums of their tokens' losses, over supervised tokens."""
    sums, counts = official_losses(logits, labels)
    return (weights * sums).sum() / counts.sum()


def official_weights(logits: torch.Tensor, labels: torch.Tensor, tau: float | None = None) -> torch.Tensor:
    """`create_weighted_dataset.py`: exp of minus the mean loss over tau, the median, without its rounding."""
    sums, counts = official_losses(logits, labels)
    means = sums.double() / counts
    return torch.exp(-means / (np.median(means.numpy()) if tau is None else tau))


def flow(tmp_path: Path, dataset: Dataset | None = None, **changes: Any) -> Any:
    settings = {"max_length": LENGTH, "train_sampling_strategy": "sequential"} | changes
    return build(FlowSFTTrainer, config_of(FlowSFTConfig, tmp_path, **settings), dataset or rows())


def test_the_official_weights_and_loss_to_a_millionth_on_the_same_logits(tmp_path: Path) -> None:
    trainer = flow(tmp_path, weight_scale="none", per_device_train_batch_size=8, max_steps=3)
    assert trainer.args.normalize == "tokens"
    model = tiny_model(TOKENIZER)
    ids, labels, mask = batch_of(trainer.train_dataset)
    losses = train(trainer)
    logits = model(ids, attention_mask=mask).logits
    weights = official_weights(logits.detach(), labels)
    assert trainer.train_dataset["weight"][:] == pytest.approx(weights.tolist(), abs=1e-6)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    for step, loss in enumerate(losses):
        expected = official_loss(model(ids, attention_mask=mask).logits, labels, weights)
        assert loss == pytest.approx(expected.item(), abs=1e-6), step
        optimiser.zero_grad()
        expected.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
    for name, value in weights_of(trainer.model).items():
        assert (value - weights_of(model)[name]).abs().max() < 1e-6, name


@pytest.mark.parametrize("size", [1, 2, 4])
def test_a_step_of_any_size_has_the_official_loss_over_the_mean_weight_of_all_tokens(
    size: int, tmp_path: Path
) -> None:
    """At rate 0 the steps are those of one model: one row a step is not plain SFT, and two rows lose nothing."""
    fixed = {"max_steps": 8 // size, "learning_rate": 0.0, "tau": 0.15}
    trainer = flow(tmp_path, per_device_train_batch_size=size, **fixed)
    ids, labels, mask = batch_of(trainer.train_dataset)
    trainer.check_result = lambda: None  # that nothing has moved
    losses = train(trainer)
    with torch.no_grad():
        logits = tiny_model(TOKENIZER)(ids, attention_mask=mask).logits
    weights = official_weights(logits, labels, tau=0.15)
    _, counts = official_losses(logits, labels)
    mean = (weights * counts).sum() / counts.sum()
    parts = [slice(step * size, (step + 1) * size) for step in range(8 // size)]
    expected = [official_loss(logits[part], labels[part], weights[part] / mean).item() for part in parts]
    assert losses == pytest.approx(expected, rel=1e-5)
    plain = [official_loss(logits[part], labels[part], torch.ones(size)).item() for part in parts]
    assert max(abs(np.log(np.divide(losses, plain)))) > 0.3, "the step is one of plain SFT"


def test_rows_of_like_loss_and_a_tiny_temperature_still_take_steps_as_large_as_sft(tmp_path: Path) -> None:
    """tau='ess:0.8' puts exp(-loss / tau) below float32; weights of mean 1 keep the step's size."""
    texts = [f"Ada counts 5 apples at home. Ben sells 9 drums. {i}" for i in range(10, 26)]
    like = Dataset.from_dict({"text": texts})
    trainer = flow(tmp_path / "flow", like, tau="ess:0.8", per_device_train_batch_size=16, max_steps=2)
    losses = train(trainer)
    stock = build(SFTTrainer, config_of(SFTConfig, tmp_path / "sft", max_length=LENGTH, max_steps=2,
                                        per_device_train_batch_size=16), like)  # fmt: skip
    assert losses == pytest.approx(train(stock), rel=0.05)
    assert min(trainer.train_dataset["weight"]) > 0
    assert np.mean(trainer.train_dataset["weight"]) == pytest.approx(1, rel=0.01)


def test_dividing_by_weights_gives_the_former_loss_on_either_scale(tmp_path: Path) -> None:
    runs = [
        train(flow(tmp_path / scale, weight_scale=scale, normalize="weights", per_device_train_batch_size=2))
        for scale in ("mean", "none")
    ]
    assert runs[0] == pytest.approx(runs[1], rel=1e-5)
    ids, labels, mask = batch_of(flow(tmp_path / "rows").train_dataset)
    with torch.no_grad():
        logits = tiny_model(TOKENIZER)(ids, attention_mask=mask).logits
    weights = official_weights(logits, labels)[:2]
    sums, counts = official_losses(logits[:2], labels[:2])
    assert runs[0][0] == pytest.approx(((weights * sums).sum() / (weights * counts).sum()).item(), abs=1e-5)


def test_documents_count_alike_under_reduction_row_and_their_mean_weight_is_one(tmp_path: Path) -> None:
    trainer = flow(tmp_path, reduction="row", per_device_train_batch_size=8, max_steps=1)
    ids, labels, mask = batch_of(trainer.train_dataset)
    (loss,) = train(trainer)
    with torch.no_grad():
        logits = tiny_model(TOKENIZER)(ids, attention_mask=mask).logits
    weights = official_weights(logits, labels)
    sums, counts = official_losses(logits, labels)
    assert np.mean(trainer.train_dataset["weight"]) == pytest.approx(1, rel=1e-6)
    assert loss == pytest.approx((weights / weights.mean() * sums / counts).mean().item(), abs=1e-5)
