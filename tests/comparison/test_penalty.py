"""The quadratic penalty against gradient descent by hand, and the Fisher information against a KL's curvature."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import Trainer, TrainingArguments

from hf_ext.comparison.penalty import QuadraticPenaltyCallback, context_free_fisher
from tests.tiny import tiny_model


class Line(torch.nn.Module):
    """Two numbers, a frozen one, and a loss that is their distance to a row's."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
        self.frozen = torch.nn.Parameter(torch.tensor([7.0]), requires_grad=False)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": ((self.weight - x) ** 2).sum(-1).mean() / 2}


ROWS = [[3.0, 1.0], [0.0, 4.0], [-1.0, 2.0], [2.0, -2.0], [1.0, 1.0], [5.0, 0.0]]


def _args(folder: Path, **settings: Any) -> TrainingArguments:
    return TrainingArguments(
        str(folder), per_device_train_batch_size=1, max_steps=6, learning_rate=0.1, lr_scheduler_type="linear",
        max_grad_norm=0.0, report_to="none", use_cpu=True, disable_tqdm=True, seed=4, save_strategy="steps",
        save_steps=3, logging_steps=1, **{"optim": "sgd", **settings},
    )  # fmt: skip


def _trained(folder: Path, penalty: QuadraticPenaltyCallback | None, resume: Any = None, **settings: Any) -> Trainer:
    trainer = Trainer(
        Line(), _args(folder, **settings), train_dataset=Dataset.from_dict({"x": ROWS}).with_format("torch"),
        callbacks=[] if penalty is None else [penalty],
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=resume)
    return trainer


@pytest.mark.parametrize("fisher", [None, [2.0, 0.5]])
def test_under_sgd_it_is_gradient_descent_on_loss_plus_penalty(tmp_path: Path, fisher: list[float] | None) -> None:
    seen: list[torch.Tensor] = []
    information = None if fisher is None else {"weight": torch.tensor(fisher)}
    penalty = QuadraticPenaltyCallback(0.7, information)
    trainer = Trainer(
        Line(), _args(tmp_path), train_dataset=Dataset.from_dict({"x": ROWS}).with_format("torch"),
        callbacks=[penalty],
    )  # fmt: skip
    hook = trainer.model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["x"][0].clone()), with_kwargs=True
    )
    trainer.train()
    hook.remove()
    start = np.array([1.0, -2.0])
    information_values = np.ones(2) if fisher is None else np.array(fisher)
    theta = start.copy()
    for step, row in enumerate(seen):
        rate = 0.1 * (1 - step / 6)
        gradient = (theta - row.double().numpy()) + 0.7 * information_values * (theta - start)
        theta = theta - rate * gradient
    np.testing.assert_allclose(trainer.model.weight.detach().numpy(), theta, atol=1e-6)
    assert trainer.model.frozen.item() == 7.0
    by_hand = 0.7 / 2 * (information_values * (theta - start) ** 2).sum()
    assert penalty.value(trainer.model) == pytest.approx(by_hand, abs=1e-6)
    logged = [entry["penalty"] for entry in trainer.state.log_history if "penalty" in entry]
    assert len(logged) == 6
    assert logged[-1] == pytest.approx(by_hand, abs=1e-6)


def test_under_adamw_the_pull_is_not_rescaled_by_adam(tmp_path: Path) -> None:
    """One step: Adam's own is the learning rate times a sign, so what differs from it is the pull, by hand."""
    penalty = QuadraticPenaltyCallback(0.5)
    rows = Dataset.from_dict({"x": ROWS}).with_format("torch")
    trainer = Trainer(Line(), _args(tmp_path, optim="adamw_torch"), train_dataset=rows, callbacks=[penalty])
    with torch.no_grad():
        trainer.model.weight.add_(torch.tensor([4.0, -4.0]))  # the original stays [1, -2]
    trainer.args.max_steps = 1
    trainer.train()
    sign = torch.tensor([1.0, -1.0])  # of the gradient, for every row: the weights lie beyond them all
    moved = torch.tensor([5.0, -6.0]) - 0.1 * 0.5 * torch.tensor([4.0, -4.0]) - 0.1 * sign
    torch.testing.assert_close(trainer.model.weight.detach(), moved, rtol=0, atol=1e-6)


def test_a_pull_never_goes_past_the_original(tmp_path: Path) -> None:
    trainer = _trained(tmp_path, QuadraticPenaltyCallback(1e6))
    last_rate = 0.1 / 6
    distance = (trainer.model.weight.detach() - torch.tensor([1.0, -2.0])).abs().max()
    assert float(distance) <= last_rate * 10


def test_a_weight_of_zero_changes_nothing_and_a_resumed_run_pulls_to_the_first_model(tmp_path: Path) -> None:
    plain = _trained(tmp_path / "plain", None)
    none = _trained(tmp_path / "none", QuadraticPenaltyCallback(0.0))
    assert torch.equal(plain.model.weight, none.model.weight)
    whole = _trained(tmp_path / "whole", QuadraticPenaltyCallback(0.7))
    resumed = _trained(
        tmp_path / "again", QuadraticPenaltyCallback(0.7), resume=str(tmp_path / "whole" / "checkpoint-3")
    )
    assert torch.equal(whole.model.weight, resumed.model.weight)
    late = Trainer(Line(), _args(tmp_path / "late"), train_dataset=Dataset.from_dict({"x": ROWS}).with_format("torch"))
    late.add_callback(QuadraticPenaltyCallback(0.7))
    with pytest.raises(ValueError, match="pass the penalty in the trainer's callbacks="):
        late.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_a_pull_is_computed_in_float32_at_least_and_rounded_once(
    tmp_path: Path, dtype: torch.dtype, caplog: pytest.LogCaptureFixture
) -> None:
    """A rate and a Fisher information whose product is zero in float16, and a distance that brings it back."""
    fisher = {"weight": torch.tensor([1e-7, 0.3])}
    trainer = Trainer(Line().to(dtype), _args(tmp_path), callbacks=[penalty := QuadraticPenaltyCallback(0.5, fisher)])
    with torch.no_grad():
        trainer.model.weight.copy_(torch.tensor([60_000.0, -2.75]))
    moved_from = trainer.model.weight.detach().double().clone()
    optimizer = torch.optim.SGD(trainer.model.parameters(), lr=1000.0)
    penalty.on_pre_optimizer_step(
        trainer.args, trainer.state, trainer.control, model=trainer.model, optimizer=optimizer
    )
    share = (1000.0 * 0.5 * fisher["weight"].double()).clamp(max=1)
    exact = moved_from - share * (moved_from - torch.tensor([1.0, -2.0]).double())
    assert trainer.model.weight.dtype == dtype
    half_a_step = torch.finfo(dtype).eps / 2 + 1e-7  # of the dtype's own rounding, and of float32 inside
    assert ((trainer.model.weight.detach().double() - exact).abs() <= half_a_step * exact.abs()).all()
    assert ("Train float32 weights" in caplog.text) == (dtype in (torch.bfloat16, torch.float16))


def test_what_cannot_be_pulled_is_refused(tmp_path: Path) -> None:
    for weight in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="The weight of the penalty must be"):
            QuadraticPenaltyCallback(weight)
    for fisher, words in (
        ({"other": torch.ones(2)}, "fits no trained weight"),
        ({"weight": torch.ones(3)}, "fits no trained weight"),
        ({"frozen": torch.ones(1)}, "fits no trained weight"),
        ({"weight": torch.tensor([1.0, -1.0])}, "negative"),
    ):
        with pytest.raises(ValueError, match=words):
            _trained(tmp_path, QuadraticPenaltyCallback(1.0, fisher))
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(tiny_model(20), LoraConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(ValueError, match="scale the adapter afterwards"):
        Trainer(adapted, _args(tmp_path), callbacks=[QuadraticPenaltyCallback(1.0)])


# --- Fisher ----------------------------------------------------------------------------------------------------------

SYMBOLS = 4
CHECKED = ("model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight", "model.norm.weight")


def _log_probs(model: Any) -> torch.Tensor:
    """Log-probability of every continuation of two tokens after token 0, shape `(SYMBOLS ** 2,)`, in float64."""
    pairs = list(itertools.product(range(SYMBOLS), repeat=2))
    ids = torch.tensor([[0, *pair] for pair in pairs])
    with torch.no_grad():
        steps = model(input_ids=ids).logits.double().log_softmax(-1)
    return torch.stack([steps[i, 0, a] + steps[i, 1, b] for i, (a, b) in enumerate(pairs)])


def test_expected_fisher_is_the_curvature_of_the_kl() -> None:
    """The expectation over all sequences, against a second difference of the KL, which needs no gradient."""
    model = tiny_model(SYMBOLS, layers=1, width=8, initializer_range=0.5).double().eval()
    start = _log_probs(model)
    expected: dict[str, torch.Tensor] = {name: torch.zeros(()) for name in CHECKED}
    for probability, pair in zip(start.exp(), itertools.product(range(SYMBOLS), repeat=2), strict=True):
        row = Dataset.from_dict({"input_ids": [[0, *pair]], "labels": [[-100, *pair]]})
        fisher = context_free_fisher(model, row, show_progress=False)
        expected = {name: expected[name] + float(probability) * fisher[name] for name in CHECKED}
    weights = dict(model.named_parameters())
    size = 1e-2  # the norms of a Llama are float32 inside, so that a smaller one is lost in rounding
    for name in CHECKED:
        for position in (0, 3):
            values = []
            for change in (size, -size):
                with torch.no_grad():
                    weights[name].view(-1)[position] += change
                    values.append(float((start.exp() * (start - _log_probs(model))).sum()))
                    weights[name].view(-1)[position] -= change
            curvature = sum(values) / size**2 / 2  # per token: the rows have two
            assert float(expected[name].view(-1)[position]) == pytest.approx(curvature, rel=2e-3, abs=1e-6)


def test_fisher_is_summed_over_rows_and_divided_by_tokens() -> None:
    model = tiny_model(SYMBOLS, layers=1, width=8)
    rows = {"input_ids": [[0, 1, 2, 3], [0, 2, 1]], "labels": [[-100, 1, 2, 3], [-100, 2, 1]]}
    both = context_free_fisher(model, Dataset.from_dict(rows), show_progress=False)
    first, second = (
        context_free_fisher(
            model, Dataset.from_dict({name: [values[i]] for name, values in rows.items()}), show_progress=False
        )
        for i in (0, 1)
    )
    for name, values in both.items():
        torch.testing.assert_close(values, (3 * first[name] + 2 * second[name]) / 5)
    cut = context_free_fisher(model, Dataset.from_dict(rows), max_rows=1, max_length=3, show_progress=False)
    short = Dataset.from_dict({"input_ids": [[0, 1, 2]], "labels": [[-100, 1, 2]]})
    for name, values in context_free_fisher(model, short, show_progress=False).items():
        torch.testing.assert_close(cut[name], values)
    assert all(parameter.grad is None for parameter in model.parameters())
    with pytest.raises(ValueError, match="sample some"):
        context_free_fisher(model, Dataset.from_dict({"input_ids": [[0, 1]], "labels": [[-100, -100]]}))
