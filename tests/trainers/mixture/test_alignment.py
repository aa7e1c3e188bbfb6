"""What a mixture is told of a micro-batch is what a plain loop over gradients finds, however the step is cut up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from tests.tiny import tiny_model
from tests.trainers.mixture.sources import mixture, sft
from tests.trainers.runs import TOKENIZER, assert_same_weights, logged


class Recorder(TrainerCallback):
    """What was observed in each step, beside the weights it began with."""

    def __init__(self, trainer: Any) -> None:
        self.feedback, self.steps, self.weights = trainer.feedback, [], {}
        self.batches: list[dict] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.weights = {name: value.detach().clone() for name, value in model.named_parameters()}
        self.batches = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.steps.append((state.global_step - 1, self.weights, self.batches, list(self.feedback.alignments)))


def watched(trainer: Any) -> Recorder:
    """The recorder of a trainer, which notes the batches too."""
    recorder = Recorder(trainer)
    step = trainer.training_step

    def recorded(model: Any, inputs: dict, *args: Any) -> Any:
        recorder.batches.append({name: inputs[name].clone() for name in ("input_ids", "attention_mask", "labels")})
        return step(model, inputs, *args)

    trainer.training_step = recorded
    trainer.add_callback(recorder)
    return recorder


def gradient(weights: dict, batch: dict, tokens: int) -> torch.Tensor:
    """Of the summed loss over a number of tokens, in a model of its own, by torch alone."""
    model = tiny_model(TOKENIZER)
    model.load_state_dict(weights, strict=False)
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    labels = batch["labels"][:, 1:]
    loss = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="sum", ignore_index=-100)
    (loss / tokens).backward()
    return torch.cat([value.grad.flatten() for value in model.parameters()]).double()


def tokens_of(batches: list[dict]) -> int:
    return int(sum((batch["labels"][:, 1:] != -100).sum() for batch in batches))


@pytest.mark.parametrize(("accumulation", "last"), [(1, 7), (3, 3)])
def test_alignment_is_the_cosine_of_the_gradients_of_source_and_target(
    accumulation: int, last: int, tmp_path: Path
) -> None:
    trainer = sft(tmp_path, gradient_accumulation_steps=accumulation, max_steps=last + 1)
    recorder = watched(trainer)
    trainer.train()
    for step, weights, batches, alignments in (recorder.steps[0], recorder.steps[1], recorder.steps[last - 1]):
        positions = trainer.mixture.target_positions(step // 2, len(trainer.target_dataset))
        rows = [trainer.target_dataset[int(row)] for row in positions]
        held_out = trainer.data_collator([{"input_ids": row["input_ids"], "labels": row["labels"]} for row in rows])
        goal = gradient(weights, held_out, tokens_of([held_out]))
        total = tokens_of(batches)
        gradients = [gradient(weights, batch, total) for batch in batches]
        expected = [float(torch.nn.functional.cosine_similarity(value, goal, dim=0)) for value in gradients]
        assert alignments == pytest.approx(expected, rel=1e-5, abs=1e-6)
        assert len(alignments) == accumulation
    # Six micro-batches are the first looks at three sources; then every second step is observed.
    assert recorder.steps[last][3] == recorder.steps[last - 1][3]


def test_a_micro_batch_holds_rows_of_the_one_source_that_the_mixture_says(tmp_path: Path) -> None:
    trainer = sft(tmp_path, gradient_accumulation_steps=2, max_steps=4)
    recorder = watched(trainer)
    trainer.train()
    seen = []
    for _, _, batches, _ in recorder.steps:
        for batch in batches:
            words = {TOKENIZER.decode(row[:12]).split()[0] for row in batch["input_ids"]}
            assert len(words) == 1
            seen += words
    names = trainer.mixture.names
    assert seen == [names[source] for source in trainer.mixture.batch_sources[:8]]


def test_measuring_leaves_no_trace_in_the_training(tmp_path: Path) -> None:
    """The same rows without any measurement of the target give the same weights, bit for bit, dropout included."""
    trainers = []
    for reward in ("alignment", "probe_drop", "loss"):
        model = tiny_model(TOKENIZER, attention_dropout=0.2)
        trainers.append(sft(tmp_path / reward, mixture(reward=reward, floor_share=1 / 3), model=model))
        trainers[-1].train()  # before the next is made, which seeds the random numbers
    *measuring, plain = trainers
    for measured in measuring:
        assert measured.mixture.batch_sources[:4] == plain.mixture.batch_sources[:4]
        assert_same_weights(measured.model, plain.model)
        for name in ("loss", "num_tokens", "mean_token_accuracy", "entropy"):
            assert logged(measured, name) == logged(plain, name), name


def test_shares_means_and_errors_of_every_source_are_logged(tmp_path: Path) -> None:
    trainer = sft(tmp_path, gradient_accumulation_steps=4, max_steps=6)
    trainer.train()
    last = trainer.state.log_history[-2]
    for kind in ("share", "mean", "se"):
        assert {f"mixture/{name}/{kind}" for name in trainer.mixture.names} <= set(last)
    shares = [last[f"mixture/{name}/share"] for name in trainer.mixture.names]
    assert sum(shares) == pytest.approx(1)
    assert all(last[f"mixture/{name}/se"] > 0 for name in trainer.mixture.names)
    counts = [trainer.mixture.batch_sources[:24].count(source) / 24 for source in range(3)]
    assert shares == pytest.approx(counts)
