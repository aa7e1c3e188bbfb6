"""FLOW's floor, annealing, sources, tokens, streams: each against weights computed by a loop, or another trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from trl import SFTConfig, SFTTrainer

from hf_ext import SideObservationMixture, with_mixture
from hf_ext.trainers.flow import FlowSFTConfig, FlowSFTTrainer
from hf_ext.trainers.weighted_sft import WeightedSFTConfig, WeightedSFTTrainer
from tests.tiny import tiny_model
from tests.trainers.mixture.sources import SIZES, sources, target
from tests.trainers.runs import TOKENIZER, assert_same_weights, build, config_of, logged, train
from tests.trainers.test_flow import LENGTH, N, losses_of, rows, weights_by_hand

SHARP = {"tau": 0.15, "max_length": LENGTH}


def flow(tmp_path: Path, dataset: Any = None, **changes: Any) -> Any:
    args = config_of(FlowSFTConfig, tmp_path, **(SHARP | changes))
    return build(FlowSFTTrainer, args, rows() if dataset is None else dataset)


# --- floor -----------------------------------------------------------------------------------------------------------


def test_no_weight_is_below_the_floor_and_their_mean_over_tokens_is_one(tmp_path: Path) -> None:
    trainer = flow(tmp_path, flow_floor=0.3, max_steps=1)
    train(trainer)
    weights = np.array(trainer.train_dataset["weight"])
    assert weights_by_hand(rows(), tau=0.15).min() < 0.2, "the floor lifts nothing"
    assert weights.min() == 0.3
    tokens = [len(losses) for losses in losses_of(rows())]
    assert np.average(weights, weights=tokens) == pytest.approx(1, rel=1e-9)
    assert trainer.flow_statistics["flow/negligible"] == 0


# --- annealing -------------------------------------------------------------------------------------------------------

STEPS = 8


@pytest.mark.parametrize("normalize", ["tokens", "weights"])
@pytest.mark.parametrize("reduction", ["token", "row"])
@pytest.mark.parametrize("share", [0.5, 1.0])
def test_weights_go_to_one_in_a_straight_line_over_the_last_share_of_the_steps(
    share: float, reduction: str, normalize: str, tmp_path: Path
) -> None:
    """Annealed weights are linear in the share of ones, and the steps at rate 0 are those of one model."""
    settings: dict[str, Any] = {
        "flow_anneal": share, "reduction": reduction, "normalize": normalize, "learning_rate": 0.0,
        "max_steps": STEPS, "train_sampling_strategy": "sequential", "weight_scale": "none",
    }  # fmt: skip
    trainer = flow(tmp_path, **settings)
    trainer.check_result = lambda: None  # that nothing has moved
    losses = train(trainer)
    token_nll = losses_of(rows())
    weights = np.exp(-np.array([np.mean(one) for one in token_nll]) / 0.15)
    for step in range(STEPS):
        of_ones = max(0.0, (step / STEPS - (1 - share)) / share)
        chosen = [(4 * step + i) % N for i in range(4)]
        mixed = {i: (1 - of_ones) * weights[i] + of_ones for i in chosen}
        size = {i: len(token_nll[i]) if reduction == "row" else 1 for i in chosen}
        total = sum(mixed[i] * sum(token_nll[i]) / size[i] for i in chosen)
        counted = {i: len(token_nll[i]) / size[i] * (mixed[i] if normalize == "weights" else 1) for i in chosen}
        assert losses[step] == pytest.approx(total / sum(counted.values()), rel=1e-4), step
    expected = [max(0.0, (step / STEPS - (1 - share)) / share) for step in range(STEPS)]
    assert logged(trainer, "flow/anneal") == pytest.approx(expected, abs=1e-3)


def test_an_annealed_run_resumes_to_the_same_weights(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"flow_anneal": 0.75, "max_steps": 6, "save_strategy": "steps", "save_steps": 3}
    whole = flow(tmp_path / "a", **settings)
    losses = train(whole)
    resumed = flow(tmp_path / "a", **settings)
    assert train(resumed, resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-3")) == losses[3:]
    assert_same_weights(resumed.model, whole.model)


def test_the_weighted_loss_of_rows_held_out_knows_their_weights_while_training_anneals(tmp_path: Path) -> None:
    held_out = rows().select(range(4)).add_column("weight", [0.0, 2.0, 1.0, 0.5])
    reports = []
    for anneal in (0.0, 0.5):
        args = config_of(FlowSFTConfig, tmp_path / str(anneal), flow_anneal=anneal, normalize="weights", **SHARP)
        reports.append(build(FlowSFTTrainer, args, rows(), eval_dataset=held_out).evaluate())
    for name in ("eval_loss", "eval_loss_weighted"):
        assert reports[0][name] == pytest.approx(reports[1][name], rel=1e-6)


# --- tokens ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", [{}, {"packing": True}])
def test_every_token_is_weighed_by_its_own_loss_and_the_median_of_all(layout: dict, tmp_path: Path) -> None:
    trainer = flow(tmp_path, tau="median", flow_level="token", max_steps=1, **layout)
    train(trainer)
    losses = losses_of(rows())
    every = np.concatenate(losses)
    tau = float(np.median(every))
    assert trainer.flow_statistics["flow/tau"] == pytest.approx(tau, rel=1e-5)
    mean = np.exp(-every / tau).mean()
    seen = 0
    for row in trainer.train_dataset:
        index, lengths = row["__hf_ext_row__"], row.get("seq_lengths") or [len(row["input_ids"])]
        ends = np.cumsum(lengths)
        for i, start, end in zip(np.atleast_1d(index), [0, *ends], ends, strict=False):
            expected = np.exp(-np.array(losses[i]) / tau) / mean
            assert row["weight"][start] == 0, "the first token is predicted from nothing"
            assert row["weight"][start + 1 : end] == pytest.approx(expected.tolist(), rel=1e-4)
            seen += 1
    assert seen == N


def test_tokens_train_as_the_weighted_trainer_on_lists_by_hand(tmp_path: Path) -> None:
    trainer = flow(tmp_path / "flow", flow_level="token", flow_floor=0.2)
    losses = train(trainer)
    prepared = trainer.train_dataset.select_columns(["input_ids", "weight"])
    args = config_of(WeightedSFTConfig, tmp_path / "hand", normalize="tokens", max_length=LENGTH)
    by_hand = build(WeightedSFTTrainer, args, prepared)
    assert losses == pytest.approx(train(by_hand), abs=1e-6)
    stock = build(SFTTrainer, config_of(SFTConfig, tmp_path / "sft", max_length=LENGTH), rows())
    assert max(abs(np.subtract(losses, train(stock)))) > 1e-2


def test_scores_of_tokens_and_of_documents_are_kept_apart(tmp_path: Path) -> None:
    cache = {"original_cache_dir": str(tmp_path / "cache"), "max_steps": 1}
    for level in ("row", "token", "token"):
        train(flow(tmp_path / "out", flow_level=level, **cache))
    assert len(list((tmp_path / "cache").glob("*.safetensors"))) == 2


# --- sources ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", [{}, {"packing": True}, {"flow_level": "token"}])
def test_every_source_has_a_median_and_a_mean_of_its_own(layout: dict, tmp_path: Path) -> None:
    dataset = rows().add_column("kind", ["repeated", "plain"] * (N // 2))
    trainer = flow(tmp_path, dataset, tau="median", source_column="kind", max_steps=1, **layout)
    train(trainer)
    losses = losses_of(rows())
    units = losses if layout == {"flow_level": "token"} else [[np.mean(one)] for one in losses]
    for kind, first in (("repeated", 0), ("plain", 1)):
        median = np.median(np.concatenate(units[first::2]))
        assert trainer.flow_statistics[f"flow/tau/{kind}"] == pytest.approx(median, rel=1e-5)
        weights = []
        for row in trainer.train_dataset:
            index = np.repeat(row["__hf_ext_row__"], row.get("seq_lengths") or [len(row["input_ids"])])
            supervised = np.array(row["labels"]) != -100
            starts = np.cumsum([0, *(row.get("seq_lengths") or [len(index)])[:-1]])
            supervised[starts] = False
            weights += np.broadcast_to(row["weight"], index.shape)[supervised & (index % 2 == first)].tolist()
        assert np.mean(weights) == pytest.approx(1, rel=1e-6)


def test_a_missing_source_is_named_before_anything_is_scored(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no column 'kind' for source_column"):
        flow(tmp_path, source_column="kind")
    dataset = rows().add_column("kind", ["a", "b", "a", None, *["b"] * (N - 4)])
    with pytest.raises(ValueError, match="row 3, column 'kind'"):
        flow(tmp_path, dataset, source_column="kind")


def named_mixture() -> SideObservationMixture:
    """A mixture whose rows say which source they are of."""
    named = {name: part.add_column("kind", [name] * len(part)) for name, part in sources().items()}
    held_out = target().add_column("kind", ["held_out"] * len(target()))
    return SideObservationMixture(named, held_out, reward_every=2, target_rows=8, seed=3)


def test_packed_rows_of_a_mixture_or_prepared_before_have_no_known_source(tmp_path: Path) -> None:
    prepared = flow(tmp_path / "a", packing=True).train_dataset
    trainer = flow(tmp_path / "b", prepared, packing=True)
    trainer.args.source_column = "kind"
    with pytest.raises(ValueError, match=r"Packing has dropped the column 'kind'.*Train without packing"):
        trainer.train()
    args = config_of(FlowSFTConfig, tmp_path / "c", packing=True, source_column="kind", max_steps=1)
    trainer = build(with_mixture(FlowSFTTrainer), args, None, mixture=named_mixture())
    with pytest.raises(ValueError, match=r"Packing has dropped the column 'kind'.*a mixture draws"):
        trainer.train()


def test_a_mixtures_sources_are_weighed_apart_without_packing(tmp_path: Path) -> None:
    args = config_of(FlowSFTConfig, tmp_path, source_column="kind", max_steps=2, flow_anneal=0.5)
    trainer = build(with_mixture(FlowSFTTrainer), args, None, mixture=named_mixture())
    trainer.train()
    assert {name for name in trainer.flow_statistics if name.startswith("flow/tau/")} == {
        f"flow/tau/{name}" for name in SIZES
    }


# --- streams ---------------------------------------------------------------------------------------------------------

STREAMED: dict[str, dict[str, Any]] = {
    "rows": {},
    "packed": {"packing": True, "max_length": 96},
    "padding_free": {"padding_free": True, "max_length": None},
    "tokens": {"flow_level": "token"},
    "floor": {"flow_floor": 0.3, "weight_scale": "none"},
    "annealed": {"flow_anneal": 1.0},
    "weights": {"normalize": "weights", "reduction": "row"},
    "median": {"tau": "median"},
}


@pytest.mark.parametrize("case", STREAMED)
def test_a_stream_whose_sample_is_all_of_it_trains_as_the_dataset(case: str, tmp_path: Path) -> None:
    settings = {"train_sampling_strategy": "sequential", "max_steps": 3} | STREAMED[case]
    known = flow(tmp_path / "known", **settings)
    streamed = flow(tmp_path / "streamed", rows().to_iterable_dataset(), tau_rows=N, **settings)
    assert train(streamed) == pytest.approx(train(known), rel=3e-6)
    assert streamed.flow_statistics == pytest.approx(known.flow_statistics, rel=1e-5)
    for one, two in zip(streamed.model.parameters(), known.model.parameters(), strict=True):
        assert (one - two).abs().max() < 1e-5
    hardest = [logged(trainer, "loss/hardest_decile") for trainer in (streamed, known)]
    assert hardest[0] == pytest.approx(hardest[1], rel=1e-4)


def test_tau_is_that_of_a_sample_of_the_beginning_and_stays(tmp_path: Path) -> None:
    trainer = flow(tmp_path, rows().to_iterable_dataset(), tau="median", tau_rows=1, max_steps=2)
    train(trainer)
    means = [np.mean(one) for one in losses_of(rows())]
    assert min(abs(trainer.flow_statistics["flow/tau"] - mean) for mean in means[:10]) < 1e-4, "of one of the first 10"
    rule = trainer._stream.rule
    train(trainer)
    assert trainer._stream.rule is rule


def test_adapters_are_off_while_a_batch_is_scored_and_no_copy_is_made(tmp_path: Path) -> None:
    from peft import LoraConfig

    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    settings = SHARP | {"max_steps": 3, "train_sampling_strategy": "sequential", "learning_rate": 1.0}
    runs = []
    for name, dataset in (("known", rows()), ("streamed", rows().to_iterable_dataset())):
        args = config_of(FlowSFTConfig, tmp_path / name, tau_rows=N, **settings)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            trainer = build(FlowSFTTrainer, args, dataset, peft_config=lora)
        runs.append(train(trainer))
    assert runs[1] == pytest.approx(runs[0], rel=3e-6)
    assert trainer._stream.original is trainer.accelerator.unwrap_model(trainer.model)


def test_a_stream_goes_on_from_a_checkpoint_with_the_same_model_and_settings_alone(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "tau_rows": 2}
    whole = flow(tmp_path / "a", rows().to_iterable_dataset(), **settings)
    losses = train(whole)
    checkpoint = str(tmp_path / "a" / "checkpoint-2")

    resumed = flow(tmp_path / "a", rows().to_iterable_dataset(), **settings)
    assert train(resumed, resume_from_checkpoint=checkpoint) == losses[2:]
    assert_same_weights(resumed.model, whole.model)

    other_tau = flow(tmp_path / "b", rows().to_iterable_dataset(), **(settings | {"tau": 0.2}))
    with pytest.raises(ValueError, match="but tau differs from the first run's"):
        train(other_tau, resume_from_checkpoint=checkpoint)
    args = config_of(FlowSFTConfig, tmp_path / "c", **(SHARP | settings))
    trained = build(FlowSFTTrainer, args, rows().to_iterable_dataset(), model=tiny_model(TOKENIZER, seed=1))
    with pytest.raises(ValueError, match="but model differs from the first run's"):
        train(trained, resume_from_checkpoint=checkpoint)

    known = flow(tmp_path / "d", **settings)
    train(known)
    streamed = flow(tmp_path / "d", rows().to_iterable_dataset(), **settings)
    with pytest.raises(ValueError, match="holds no weights of FLOW on a stream"):
        train(streamed, resume_from_checkpoint=str(tmp_path / "d" / "checkpoint-2"))


def test_sources_of_a_stream_are_refused(tmp_path: Path) -> None:
    dataset = rows().add_column("kind", ["a", "b"] * (N // 2))
    with pytest.raises(ValueError, match="source_column is for a Dataset"):
        flow(tmp_path, dataset.to_iterable_dataset(), source_column="kind")


@pytest.mark.parametrize(
    ("name", "value"),
    [("weight_scale", "sum"), ("flow_level", "word"), ("flow_floor", 1.0), ("flow_anneal", 1.1), ("tau_rows", 0)],
)
def test_settings_that_are_none_are_refused_by_name(name: str, value: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"^{name} must be"):
        config_of(FlowSFTConfig, tmp_path, **{name: value})
