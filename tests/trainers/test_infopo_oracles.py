"""InfoPOTrainer against TRL itself, and against the same numbers computed token by token."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from trl import DPOConfig, DPOTrainer, extract_prompt

from hf_ext.trainers.infopo import InfoPOConfig, InfoPOTrainer
from tests.tiny import tiny_model
from tests.trainers.preference import conversational, first_batch, pairs, start, sum_logp, tokens_of
from tests.trainers.runs import TOKENIZER, assert_same_weights, train

LORA = {"r": 4, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}


def lora(seed: int = 3) -> LoraConfig:
    return LoraConfig(**LORA)


def ours(folder: Path, rows: Any = 12, **changes: Any) -> Any:
    return start(InfoPOTrainer, InfoPOConfig, folder / "ours", rows, **changes)


def host(folder: Path, rows: Any = 12, **changes: Any) -> Any:
    return start(DPOTrainer, DPOConfig, folder / "host", rows, **changes)


def largest_difference(one: Any, other: Any) -> float:
    pairs_of = zip(one.named_parameters(), other.named_parameters(), strict=True)
    return max(float((a - b).detach().abs().max()) for (_, a), (_, b) in pairs_of)


# --- estimators that TRL has under another name ----------------------------------------------------------------------


@pytest.mark.parametrize(("estimator", "loss_type"), [("infonce", "sigmoid"), ("jsd", "bco_pair")])
def test_estimators_that_trl_has_train_to_the_same_parameters(estimator: str, loss_type: str, tmp_path: Path) -> None:
    settings = {"beta": 0.5, "max_steps": 5, "learning_rate": 0.005}
    mine = ours(tmp_path, estimator=estimator, **settings)
    theirs = host(tmp_path, loss_type=[loss_type], **settings)
    assert np.abs(np.subtract(train(mine), train(theirs))).max() < 1e-6
    assert largest_difference(mine.model, theirs.model) < 1e-6
    assert largest_difference(mine.model, tiny_model(TOKENIZER)) > 1e-3, "nothing moved"
    other = ours(tmp_path, estimator="nwj", **settings)
    train(other)
    assert largest_difference(other.model, theirs.model) > 1e-4, "any loss would have passed"


@pytest.mark.parametrize("normalized", [False, True], ids=["sums", "means"])
def test_at_the_reference_the_gradient_is_twice_dpos(normalized: bool, tmp_path: Path) -> None:
    mine = ours(tmp_path, beta=0.3, length_normalized=normalized)
    theirs = host(tmp_path, beta=0.3, loss_type=["sigmoid_norm" if normalized else "sigmoid"])
    for trainer in (mine, theirs):
        trainer.compute_loss(trainer.model, first_batch(trainer)).backward()
    for (name, a), (_, b) in zip(mine.model.named_parameters(), theirs.model.named_parameters(), strict=True):
        scale = float(b.grad.abs().max())
        assert scale > 0, name
        assert float((a.grad - 2 * b.grad).abs().max()) <= 1e-5 * scale, name


# --- without infopo it is DPOTrainer ---------------------------------------------------------------------------------


HOST_LOSSES: dict[str, dict[str, Any]] = {
    "sigmoid": {"loss_type": "sigmoid"},
    "mixed": {"loss_type": ["ipo", "sft"], "loss_weights": [1.0, 0.3]},
    "precomputed": {"loss_type": ["sigmoid"], "precompute_ref_log_probs": True},
    "ld": {"loss_type": ["sigmoid"], "ld_alpha": 0.5},
    "accumulated": {"loss_type": ["hinge"], "gradient_accumulation_steps": 2, "per_device_train_batch_size": 2},
    "weighted_by_wpo": {"loss_type": ["sigmoid"], "use_weighting": True},
}


@pytest.mark.parametrize("guard", ["off", "warn"])
@pytest.mark.parametrize("settings", HOST_LOSSES.values(), ids=HOST_LOSSES)
def test_without_infopo_it_is_dpo_bit_for_bit(settings: dict, guard: str, tmp_path: Path) -> None:
    mine, theirs = ours(tmp_path, likelihood_guard=guard, **settings), host(tmp_path, **settings)
    assert train(mine) == train(theirs)
    assert_same_weights(mine.model, theirs.model)
    for mine_logs, their_logs in zip(mine.state.log_history[:-1], theirs.state.log_history[:-1], strict=True):
        assert {name: mine_logs[name] for name in their_logs} == their_logs
        guarded = guard == "warn" and "ld_alpha" not in settings
        assert ("infopo/chosen_delta" in mine_logs) == guarded


def test_without_infopo_an_adapter_is_dpos_too(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"loss_type": "sigmoid", "reference": None, "learning_rate": 0.5}
    mine = ours(tmp_path, kwargs={"peft_config": lora()}, **settings)
    theirs = host(tmp_path, kwargs={"peft_config": lora()}, **settings)
    assert train(mine) == train(theirs)
    assert_same_weights(mine.model, theirs.model)


# --- the reference, however it is had --------------------------------------------------------------------------------


def test_precomputed_in_the_step_and_with_checkpointing_are_one_run(tmp_path: Path) -> None:
    plain = ours(tmp_path)
    losses = train(plain)
    assert losses[0] == pytest.approx(1.0, abs=1e-6)
    assert len(set(losses)) == 3
    for changes in (
        {"precompute_ref_log_probs": True},
        {"activation_checkpointing": True},
        {"precompute_ref_log_probs": True, "reference": None},
        {"padding_free": True},
    ):
        other = ours(tmp_path, **changes)
        assert np.abs(np.subtract(losses, train(other))).max() < 1e-6, changes
        assert largest_difference(plain.model, other.model) < 1e-6, changes


def test_columns_that_are_there_are_used_as_they_are(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows, model = pairs(4), tiny_model(TOKENIZER)
    columns = {
        side: [sum_logp(model, *tokens_of(row["prompt"], row[side])) for row in rows]
        for side in ("chosen", "rejected")
    }
    given = rows
    for side, values in columns.items():
        given = given.add_column(f"ref_{side}_logps", np.subtract(values, 2.0 if side == "rejected" else 0.0))
    trainer = ours(tmp_path, given, reference=None, precompute_ref_log_probs=True, beta=0.1)
    loss = trainer.compute_loss(trainer.model, first_batch(trainer))
    assert float(loss) == pytest.approx(math.exp(0.1 * 2.0), abs=1e-4)  # f_w = 0, f_l = 0.1 * 2 nats
    with caplog.at_level("WARNING"):
        ours(tmp_path, given)
    assert "ref_chosen_logps and ref_rejected_logps, which are not used" in caplog.text


@pytest.mark.parametrize("precompute", [False, True])
def test_a_new_adapter_is_compared_with_the_base_model(precompute: bool, tmp_path: Path) -> None:
    trainer = ours(
        tmp_path, 3, reference=None, precompute_ref_log_probs=precompute, kwargs={"peft_config": lora()},
        per_device_train_batch_size=1, learning_rate=5.0,
    )  # fmt: skip
    losses = train(trainer)
    assert losses[0] == pytest.approx(1.0, abs=1e-6)
    assert_same_weights(trainer.model.unload(), tiny_model(TOKENIZER))
    for loss, logs in zip(losses, trainer.state.log_history, strict=False):  # a batch of one: the host's rewards tell
        assert loss == pytest.approx(-logs["rewards/chosen"] + math.exp(logs["rewards/rejected"]), abs=1e-5)
    assert abs(losses[-1] - 1.0) > 1e-4


def test_a_trained_adapter_is_compared_with_itself_at_the_start(tmp_path: Path) -> None:
    torch.manual_seed(5)
    model = get_peft_model(tiny_model(TOKENIZER), LoraConfig(**LORA, init_lora_weights=False))
    trainer = ours(tmp_path, 3, model=model, reference=None, per_device_train_batch_size=1, learning_rate=1.0)
    losses = train(trainer)
    assert losses[0] == pytest.approx(1.0, abs=1e-6)
    for loss, logs in zip(losses, trainer.state.log_history, strict=False):
        assert loss == pytest.approx(-logs["rewards/chosen"] + math.exp(logs["rewards/rejected"]), abs=1e-5)


def test_virtual_tokens_of_a_prompt_are_not_counted(tmp_path: Path) -> None:
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5)
    trainer = ours(
        tmp_path, 3, reference=None, kwargs={"peft_config": config}, per_device_train_batch_size=1, beta=0.02
    )
    for loss, logs in zip(train(trainer), trainer.state.log_history, strict=False):
        assert loss == pytest.approx(-logs["rewards/chosen"] + math.exp(logs["rewards/rejected"]), abs=1e-5)
        assert logs["rewards/chosen"] != 0


# --- numbers, token by token -----------------------------------------------------------------------------------------


def by_hand(rows: Dataset, beta: float, normalized: bool) -> dict[str, list[float]]:
    """Log-ratios of seed 0 against seed 1 and completion lengths, from loops over tokens."""
    policy, reference = tiny_model(TOKENIZER), tiny_model(TOKENIZER, seed=1)
    found: dict[str, list[float]] = {name: [] for name in ("u_w", "u_l", "n_w", "n_l", "f_w", "f_l")}
    for row in rows:
        for side, letter in (("chosen", "w"), ("rejected", "l")):
            prompt, completion = tokens_of(row["prompt"], row[side])
            ratio = sum_logp(policy, prompt, completion) - sum_logp(reference, prompt, completion)
            found[f"u_{letter}"].append(ratio)
            found[f"n_{letter}"].append(len(completion))
            found[f"f_{letter}"].append(beta * ratio / (len(completion) if normalized else 1))
    return found


@pytest.mark.parametrize("normalized", [False, True], ids=["sums", "means"])
@pytest.mark.parametrize("form", ["standard", "conversational"])
def test_loss_and_metrics_are_those_of_a_loop_over_tokens(form: str, normalized: bool, tmp_path: Path) -> None:
    rows, beta = pairs(4), 2.0 if normalized else 0.02
    expected = by_hand(rows, beta, normalized)
    if form == "conversational":
        rows, expected = conversational(rows), {}
    trainer = ours(tmp_path, rows, reference=1, beta=beta, length_normalized=normalized, max_length=128)
    trainer.model.train()
    loss = float(trainer.compute_loss(trainer.model, first_batch(trainer)).detach())
    logs: dict[str, float] = {}
    trainer.log(logs)
    if form == "conversational":  # its template is TRL's business: the host's rewards tell
        assert logs["infopo/mi"] == pytest.approx(1 - loss, abs=1e-5)
        if not normalized:
            assert loss > -logs["rewards/chosen"] + math.exp(logs["rewards/rejected"]) - 1e-5  # Jensen
        return
    u_w, u_l, n_w, n_l, f_w, f_l = (np.array(expected[name]) for name in expected)
    assert loss == pytest.approx(np.mean(-f_w + np.exp(f_l)), abs=2e-4)
    both = (u_w < 0) & (u_l < 0) & (u_w > u_l)
    oracle = {
        "mi": 1 + np.mean(f_w) - np.mean(np.exp(f_l)),
        "mi_js": math.log(2) - 0.5 * np.mean(np.log1p(np.exp(-f_w)) + np.log1p(np.exp(f_l))),
        "chosen_delta": np.mean(u_w / n_w),
        "rejected_delta": np.mean(u_l / n_l),
        "chosen_dropped": np.mean(u_w < 0),
        "push_pull": np.mean(np.exp(f_l)),
        "squeeze": np.mean(np.where(both, -(u_w + u_l) / 2, 0.0)),
        "clipped": 0.0,
    }
    for name, value in oracle.items():
        assert logs[f"infopo/{name}"] == pytest.approx(value, abs=5e-4), name
    assert "infopo/mi_ceiling" not in logs


def test_a_prompt_inside_the_responses_is_found(tmp_path: Path) -> None:
    sides = ("chosen", "rejected")
    implicit = Dataset.from_list([{side: row["prompt"] + row[side] for side in sides} for row in pairs(4)])
    explicit = Dataset.from_list([extract_prompt(row) for row in implicit])
    assert explicit.column_names != implicit.column_names
    one, other = (ours(tmp_path, rows, reference=1, beta=0.02) for rows in (implicit, explicit))
    losses = [float(trainer.compute_loss(trainer.model, first_batch(trainer)).detach()) for trainer in (one, other)]
    assert losses[0] == losses[1] != 1.0


def test_mixed_losses_add_up_with_their_weights(tmp_path: Path) -> None:
    mixed = ours(
        tmp_path, reference=1, beta=0.05, loss_type=["infopo", "sft", "sigmoid"], loss_weights=[0.5, 0.3, 0.2]
    )
    alone = ours(tmp_path, reference=1, beta=0.05)
    theirs = host(tmp_path, reference=1, beta=0.05, loss_type=["sft", "sigmoid"], loss_weights=[0.3, 0.2])
    value, infopo, rest = (
        float(trainer.compute_loss(trainer.model, first_batch(trainer)).detach()) for trainer in (mixed, alone, theirs)
    )
    assert value == pytest.approx(0.5 * infopo + rest, abs=1e-5)
    assert mixed.args.loss_type == ["infopo", "sft", "sigmoid"], "the user's settings were changed"


# --- the weight column -----------------------------------------------------------------------------------------------


def test_weights_of_one_change_nothing(tmp_path: Path) -> None:
    plain, weighted = ours(tmp_path), ours(tmp_path, pairs(12).add_column("weight", [1.0] * 12))
    assert train(plain) == train(weighted)
    assert_same_weights(plain.model, weighted.model)


def test_a_weight_multiplies_its_pairs_loss(tmp_path: Path) -> None:
    rows = pairs(4)
    each = []
    for i in range(4):
        one = ours(tmp_path, rows.select([i]), reference=1, beta=0.05, per_device_train_batch_size=1)
        each.append(float(one.compute_loss(one.model, first_batch(one)).detach()))
    weights = [0.0, 0.5, 1.0, 3.0]
    trainer = ours(tmp_path, rows.add_column("weight", weights), reference=1, beta=0.05)
    loss = float(trainer.compute_loss(trainer.model, first_batch(trainer)).detach())
    assert loss == pytest.approx(np.dot(each, weights) / 4, abs=1e-5)
    trainer.model.eval()
    assert float(trainer.compute_loss(trainer.model, first_batch(trainer))) == pytest.approx(np.mean(each), abs=1e-5)
    metrics = ours(
        tmp_path, rows, reference=1, beta=0.05, kwargs={"eval_dataset": rows.add_column("weight", weights)}
    ).evaluate()
    assert metrics["eval_infopo/loss_weighted"] == pytest.approx(np.dot(each, weights) / 4, abs=1e-5)


# --- streams, evaluation, reference-free -----------------------------------------------------------------------------


def test_a_stream_trains_as_its_data_set_in_order(tmp_path: Path) -> None:
    rows = pairs(12).add_column("weight", [i / 4 for i in range(12)])
    listed = ours(tmp_path, rows, train_sampling_strategy="sequential")
    streamed = ours(tmp_path, rows.to_iterable_dataset())
    assert train(listed) == train(streamed)
    assert_same_weights(listed.model, streamed.model)


@pytest.mark.parametrize("precompute", [False, True])
def test_evaluation_reports_under_dpos_names_and_ours(precompute: bool, tmp_path: Path) -> None:
    rows = pairs(6, seed=5)
    settings = {"eval_strategy": "steps", "eval_steps": 1, "precompute_ref_log_probs": precompute}
    mine = ours(tmp_path, kwargs={"eval_dataset": {"one": rows, "two": rows.select(range(2))}}, **settings)
    theirs = host(tmp_path, kwargs={"eval_dataset": rows}, max_steps=0)
    train(mine)
    names = {name for logs in mine.state.log_history for name in logs}
    assert {f"eval_{key}_infopo/{name}" for key in ("one", "two") for name in ("mi", "chosen_delta")} <= names
    assert {"eval_rewards/margins", "eval_logps/chosen"} <= names  # the host's, of whichever set was last
    metrics = ours(tmp_path, kwargs={"eval_dataset": rows}, precompute_ref_log_probs=precompute).evaluate()
    assert metrics["eval_loss"] == pytest.approx(1.0, abs=1e-6)
    expected = theirs.evaluate()
    assert expected.keys() <= metrics.keys()


def test_reference_free_needs_no_second_model_and_no_second_forward(tmp_path: Path) -> None:
    trainer = ours(tmp_path, pairs(4), reference=None, reference_free=True, length_normalized=True, beta=1.0)
    assert trainer.ref_model is None
    calls, forward = [], trainer.model.forward

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return forward(*args, **kwargs)

    trainer.model.forward = counted
    trainer.model.train()
    loss = float(trainer.compute_loss(trainer.model, first_batch(trainer)).detach())
    assert len(calls) == 1
    means = {"chosen": [], "rejected": []}
    for row in pairs(4):
        for side, values in means.items():
            prompt, completion = tokens_of(row["prompt"], row[side])
            values.append(sum_logp(tiny_model(TOKENIZER), prompt, completion) / len(completion))
    assert loss == pytest.approx(-np.mean(means["chosen"]) + np.mean(np.exp(means["rejected"])), abs=1e-4)
    logs: dict[str, float] = {}
    trainer.log(logs)
    assert not {"infopo/mi", "infopo/mi_js", "infopo/chosen_delta"} & logs.keys()
    assert trainer.args.precompute_ref_log_probs is False
    losses = train(trainer)
    assert losses[-1] < losses[0]
    assert trainer.evaluate(pairs(4))["eval_loss"] < loss  # after training: no reference is missed
