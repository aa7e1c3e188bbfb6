"""FLOW as a trainer: it scores what it trains on, keeps the scores, and equals its parts put together by hand."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from trl import SFTConfig, SFTTrainer

from hf_ext.data.weighting import add_flow_weights, add_original_losses, prepare_sft_rows
from hf_ext.trainers.flow import FlowSFTConfig, FlowSFTTrainer
from hf_ext.trainers.flow import trainer as flow_module
from hf_ext.trainers.weighted_sft import WeightedSFTConfig, WeightedSFTTrainer
from tests.tiny import tiny_model, tiny_text_dataset
from tests.trainers.oracle import document, token_losses
from tests.trainers.runs import TOKENIZER, assert_same_weights, build, config_of, logged, train, weights_of

EOS = TOKENIZER.eos_token
N, LENGTH = 20, 40
LAYOUTS: dict[str, dict[str, Any]] = {
    "padded": {"max_length": LENGTH},
    "packed": {"max_length": LENGTH, "packing": True},
    "shuffled": {"max_length": LENGTH, "shuffle_dataset": True},
    "padding_free": {"max_length": None, "padding_free": True},
}


def rows(n: int = N) -> Dataset:
    """Rows of an even count and clearly different losses: every other one repeats a word."""
    texts = tiny_text_dataset(n, seed=2)["text"]
    return Dataset.from_dict({"text": [t if i % 2 else " ".join(["apples"] * (3 + i)) for i, t in enumerate(texts)]})


def losses_of(dataset: Dataset, length: int | None = LENGTH) -> list[list[float]]:
    """Token losses of every row under the original model, by the loop over full logits."""
    model = tiny_model(TOKENIZER)
    docs = [document(TOKENIZER(text + EOS)["input_ids"][:length]) for text in dataset["text"]]
    return [[nll for nll, _ in token_losses(model, doc)] for doc in docs]


def means_of(dataset: Dataset, length: int | None = LENGTH) -> np.ndarray:
    return np.array([np.mean(losses) for losses in losses_of(dataset, length)])


def weights_by_hand(dataset: Dataset, length: int | None = LENGTH, tau: float | None = None) -> np.ndarray:
    """FLOW's weights, at the median unless told, over their mean over the tokens."""
    losses = losses_of(dataset, length)
    means = np.array([np.mean(one) for one in losses])
    weights = np.exp(-means / (np.median(means) if tau is None else tau))
    return weights / np.average(weights, weights=[len(one) for one in losses])


def flow_run(tmp_path: Path, dataset: Dataset | None = None, **settings: Any) -> tuple[Any, list[float]]:
    settings = {"max_length": LENGTH} | settings
    trainer = build(
        FlowSFTTrainer, config_of(FlowSFTConfig, tmp_path, **settings), rows() if dataset is None else dataset
    )
    return trainer, train(trainer)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_documents_weight_is_flows_at_the_median_over_the_mean_of_the_tokens(
    layout: str, tmp_path: Path
) -> None:
    trainer, _ = flow_run(tmp_path, max_steps=1, **LAYOUTS[layout])
    means = means_of(rows(), LAYOUTS[layout]["max_length"])
    tau = float(np.median(means))
    assert trainer.flow_statistics["flow/tau"] == pytest.approx(tau, rel=1e-6)
    seen = {}
    for row in trainer.train_dataset:
        if layout == "packed":
            ends = np.cumsum(row["seq_lengths"])
            for i, start, end in zip(row["__hf_ext_row__"], [0, *ends], ends, strict=False):
                assert len(set(row["weight"][start:end])) == 1
                seen[i] = row["weight"][start]
        else:
            seen[row["__hf_ext_row__"]] = row["weight"]
    assert sorted(seen) == list(range(N))
    expected = weights_by_hand(rows(), LAYOUTS[layout]["max_length"])
    assert [seen[i] for i in range(N)] == pytest.approx(expected.tolist(), rel=1e-5)


@pytest.mark.parametrize("layout", ["padded", "packed"])
@pytest.mark.parametrize("tau", ["median", "ess:0.5", "1.25"])
def test_it_equals_the_weighted_trainer_on_weights_filled_by_hand(layout: str, tau: str, tmp_path: Path) -> None:
    settings = LAYOUTS[layout] | {"per_device_train_batch_size": 2, "per_device_eval_batch_size": 1}
    flow, losses = flow_run(tmp_path / "flow", tau=tau, **settings)
    args = config_of(WeightedSFTConfig, tmp_path / "hand", normalize="tokens", **settings)
    given_rows = prepare_sft_rows(rows(), TOKENIZER, args) if layout == "packed" else rows()  # as they are trained on
    scored = add_original_losses(given_rows, tiny_model(TOKENIZER), TOKENIZER, args, batch_size=1, show_progress=False)
    by_hand = build(WeightedSFTTrainer, args, add_flow_weights(scored, float(tau) if tau[0] == "1" else tau))
    assert any(not torch.equal(v, weights_of(tiny_model(TOKENIZER))[k]) for k, v in weights_of(flow.model).items())
    assert losses == train(by_hand)  # to the last bit: one row a forward
    assert_same_weights(flow.model, by_hand.model)


def test_equal_losses_make_flow_plain_sft(tmp_path: Path) -> None:
    same = Dataset.from_dict({"text": ["Ada counts 5 apples at home."] * 8})
    flow, losses = flow_run(tmp_path / "flow", same)
    stock = build(SFTTrainer, config_of(SFTConfig, tmp_path / "sft", max_length=LENGTH), same)
    assert losses == pytest.approx(train(stock), abs=1e-6)
    theirs = weights_of(stock.model)
    for name, value in weights_of(flow.model).items():
        assert (value - theirs[name]).abs().max() < 1e-6
    unequal, _ = flow_run(tmp_path / "unequal")
    control = build(SFTTrainer, config_of(SFTConfig, tmp_path / "control", max_length=LENGTH), rows())
    train(control)
    gap = max((v - weights_of(control.model)[k]).abs().max() for k, v in weights_of(unequal.model).items())
    assert gap > 1e-4, "unequal losses change nothing either: the test could not fail"


def test_a_share_on_rows_of_like_loss_trains_as_the_same_weights_by_hand(tmp_path: Path) -> None:
    """There tau is so small that exp(-loss / tau) is beyond float32: only ratios are left, and they decide the run."""
    texts = [f"Ada counts 5 apples at home. Ben sells 9 drums. {i}" for i in range(10, 10 + N)]
    like = Dataset.from_dict({"text": texts})
    means = means_of(like)
    flow, losses = flow_run(tmp_path / "flow", like, tau="ess:0.5", normalize="weights")
    tau = flow.flow_statistics["flow/tau"]
    assert means.min() / tau > 87, "no weight vanishes: the rows are not alike enough"
    weights = np.exp(-(means - means.min()) / tau)
    assert weights.sum() ** 2 / (N * (weights**2).sum()) == pytest.approx(0.5, abs=1e-3)
    args = config_of(WeightedSFTConfig, tmp_path / "hand", max_length=LENGTH)
    by_hand = build(WeightedSFTTrainer, args, like.add_column("weight", (1000 * weights).tolist()))
    assert losses == pytest.approx(train(by_hand), rel=1e-3)
    assert len({round(loss, 3) for loss in losses}) == len(losses), "nothing is learned"


# --- metrics ---------------------------------------------------------------------------------------------------------


def test_statistics_are_logged_once_and_right(tmp_path: Path) -> None:
    trainer, _ = flow_run(tmp_path)
    w = np.exp(-means_of(rows()) / np.median(means_of(rows())))
    expected = {
        "flow/tau": float(np.median(means_of(rows()))),
        "flow/ess_ratio": w.sum() ** 2 / (N * (w**2).sum()),
        "flow/easiest_decile_share": np.sort(w)[-2:].sum() / w.sum(),
        "flow/negligible": 0,
    }
    for name, value in expected.items():
        assert logged(trainer, name) == pytest.approx([value], rel=1e-6)
        assert name in trainer.state.log_history[0]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_hardest_decile_loss_is_the_plain_mean_on_the_hardest_tenth(layout: str, tmp_path: Path) -> None:
    settings = LAYOUTS[layout] | {"per_device_train_batch_size": N, "max_steps": 1, "learning_rate": 0.0}
    trainer, _ = flow_run(tmp_path, **settings)
    losses = losses_of(rows(), LAYOUTS[layout]["max_length"])
    hardest = np.argsort([np.mean(one) for one in losses])[-2:]
    expected = np.mean(np.concatenate([losses[i] for i in hardest]))
    assert logged(trainer, "loss/hardest_decile") == pytest.approx([expected], abs=2e-5)


def test_nearly_equal_weights_are_warned_about(tmp_path: Path, caplog: Any) -> None:
    with caplog.at_level(logging.WARNING, logger="hf_ext"):
        flow_run(tmp_path / "hot", tau="1000", max_steps=1)
    assert "nearly equal" in caplog.text
    assert "because tau=1000 is large against the differences of the rows' losses" in caplog.text
    assert "tau='ess:0.8'" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="hf_ext"):
        flow_run(tmp_path / "same", dataset=rows().select([0] * 4), max_steps=1)
    assert "because the rows' losses under the original model are alike." in caplog.text
    assert "ess:" not in caplog.text, "no tau gives weights of unlike size to rows of one loss"
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="hf_ext"):
        trainer, _ = flow_run(tmp_path / "cold", tau="ess:0.9", max_steps=1)
    assert trainer.flow_statistics["flow/ess_ratio"] == pytest.approx(0.9, abs=1e-6)
    assert not caplog.text


# --- the cache -------------------------------------------------------------------------------------------------------


def no_scoring(*args: Any, **kwargs: Any) -> Any:
    raise AssertionError("scored again")


def test_a_second_trainer_reads_the_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = {"original_cache_dir": str(tmp_path / "cache")}
    first, losses = flow_run(tmp_path / "a", **cache)
    monkeypatch.setattr(flow_module, "score_rows", no_scoring)
    second, again = flow_run(tmp_path / "b", **cache)
    assert losses == again
    assert_same_weights(first.model, second.model)
    assert len(list((tmp_path / "cache").iterdir())) == 1
    other_tau, _ = flow_run(tmp_path / "c", tau="ess:0.9", **cache)  # scores are kept, not weights
    assert other_tau.flow_statistics["flow/tau"] != first.flow_statistics["flow/tau"]


@pytest.mark.filterwarnings("ignore:bf16 is set with use_cpu")
@pytest.mark.parametrize("change", ["model", "rows", "max_length", "packing", "autocast"])
def test_other_models_rows_lengths_and_precisions_get_a_file_of_their_own(change: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"original_cache_dir": str(tmp_path / "cache"), "max_steps": 1, "max_length": LENGTH}
    flow_run(tmp_path / "a", **settings)
    model, dataset = tiny_model(TOKENIZER), rows()
    if change == "model":
        model = tiny_model(TOKENIZER, seed=1)
    elif change == "rows":
        dataset = rows().map(lambda row, i: {"text": row["text"] + ("!" if i == 7 else "")}, with_indices=True)
    else:
        settings |= {"max_length": {"max_length": 16}, "packing": {"packing": True}, "autocast": {"bf16": True}}[
            change
        ]
    trainer = build(FlowSFTTrainer, config_of(FlowSFTConfig, tmp_path / "b", **settings), dataset, model=model)
    train(trainer)
    assert len(list((tmp_path / "cache").glob("*.safetensors"))) == 2


def test_the_default_cache_lies_under_the_output_folder(tmp_path: Path) -> None:
    flow_run(tmp_path, max_steps=1)
    assert len(list((tmp_path / "original_losses").glob("*.safetensors"))) == 1


def test_resuming_takes_the_first_runs_scores_and_stops_without_them(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"save_strategy": "steps", "save_steps": 2}
    whole, losses = flow_run(tmp_path / "a", **settings)
    checkpoint = str(tmp_path / "a" / "checkpoint-2")

    resumed = build(FlowSFTTrainer, config_of(FlowSFTConfig, tmp_path / "a", max_length=LENGTH, **settings), rows())
    assert train(resumed, resume_from_checkpoint=checkpoint) == losses[2:]
    assert_same_weights(resumed.model, whole.model)

    lost = build(FlowSFTTrainer, config_of(FlowSFTConfig, tmp_path / "b", max_length=LENGTH, **settings), rows())
    with pytest.raises(ValueError, match="Resuming, but the losses under the original model are not in") as stopped:
        train(lost, resume_from_checkpoint=checkpoint)
    assert "start again without resume_from_checkpoint" in str(stopped.value)


def test_a_damaged_cache_is_named(tmp_path: Path) -> None:
    cache = {"original_cache_dir": str(tmp_path / "cache")}
    flow_run(tmp_path / "a", max_steps=1, **cache)
    (file,) = (tmp_path / "cache").iterdir()
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(ValueError, match="damaged") as found:
        flow_run(tmp_path / "b", **cache)
    assert str(file) in str(found.value)
    assert "Delete the file" in str(found.value)


# --- adapters --------------------------------------------------------------------------------------------------------

ADAPTERS: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "modules_to_save": {"modules_to_save": ["norm"]},
}


def with_adapter(tmp_path: Path, **settings: Any) -> Any:
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", **settings)
    args = config_of(FlowSFTConfig, tmp_path, max_length=LENGTH, max_steps=2, learning_rate=1.0)
    return build(FlowSFTTrainer, args, rows(), peft_config=lora)


@pytest.mark.parametrize("kind", ADAPTERS)
def test_scores_are_the_base_models_under_adapters(kind: str, tmp_path: Path) -> None:
    trainer = with_adapter(tmp_path, **ADAPTERS[kind])
    train(trainer)
    assert trainer.flow_statistics["flow/tau"] == pytest.approx(float(np.median(means_of(rows()))), rel=1e-6)


@pytest.mark.parametrize("kind", ["pissa", "olora"])
def test_initialisers_that_rewrite_the_base_are_refused(kind: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the base model is not the original one"):
        train(with_adapter(tmp_path, init_lora_weights=kind))


def test_a_trained_adapter_is_refused(tmp_path: Path) -> None:
    trainer = with_adapter(tmp_path)
    with torch.no_grad():
        for name, value in trainer.model.named_parameters():
            if "lora_B" in name:
                value.add_(0.5)
    with pytest.raises(ValueError, match="merge_and_unload"):
        train(trainer)


# --- refusals --------------------------------------------------------------------------------------------------------


def test_rows_that_carry_weights_are_refused(tmp_path: Path) -> None:
    args = config_of(FlowSFTConfig, tmp_path)
    weighted = rows().add_column("weight", [1.0] * N)
    for dataset in (weighted, weighted.to_iterable_dataset()):
        with pytest.raises(ValueError, match="FlowSFTTrainer fills that column itself"):
            build(FlowSFTTrainer, args, dataset)


@pytest.mark.parametrize("tau", ["mean", "0", "-1", "nan", "inf", 0.0])
def test_temperatures_that_are_none_are_refused_by_the_config(tau: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="tau must be"):
        config_of(FlowSFTConfig, tmp_path, tau=tau)


def test_tau_may_be_given_as_a_number(tmp_path: Path) -> None:
    trainer, _ = flow_run(tmp_path, tau=2.5, max_steps=1)
    assert trainer.flow_statistics["flow/tau"] == 2.5
    assert trainer.train_dataset["weight"][:] == pytest.approx(weights_by_hand(rows(), tau=2.5).tolist(), rel=1e-5)
