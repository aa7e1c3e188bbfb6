"""FLOW's arithmetic: scores against full logits, temperatures against numpy and scipy, weights in closed form."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from scipy.optimize import brentq
from trl import SFTConfig

from hf_ext.data.flow_arithmetic import effective_sample_size_ratio, temperature_of
from hf_ext.data.scoring import documents_of_tokens, score_rows, score_tokens
from hf_ext.data.weighting import (
    FlowWeights,
    add_flow_weights,
    add_original_losses,
    document_losses,
    flow_temperature,
    prepare_sft_rows,
)
from hf_ext.guards.rows import RowError
from hf_ext.trainers.weighted_sft import WeightedSFTConfig
from tests.tiny import tiny_model, tiny_prompt_completion_dataset, tiny_sentences, tiny_text_dataset
from tests.trainers.oracle import document, token_losses
from tests.trainers.runs import TOKENIZER, config_of

EOS = TOKENIZER.eos_token
LENGTH = 44


def scored(values: list[float], counts: list[int] | None = None) -> Dataset:
    counts = [1] * len(values) if counts is None else counts
    return Dataset.from_dict({"original_nll_sum": values, "original_num_tokens": counts})


def expected_scores(model: Any, rows: Dataset) -> list[tuple[float, int]]:
    """(nats, tokens) of every completion, by the loop over full logits; rows are cut at LENGTH."""
    found = []
    for row in rows:
        head = TOKENIZER(row["prompt"])["input_ids"]
        ids = TOKENIZER(row["prompt"] + row["completion"] + EOS)["input_ids"]
        n = next((i for i, (a, b) in enumerate(zip(head, ids, strict=False)) if a != b), len(head))
        losses = token_losses(model, document(ids[:LENGTH], ([-100] * n + ids[n:])[:LENGTH]))
        found.append((sum(nll for nll, _ in losses), len(losses)))
    return found


def short_and_long_rows() -> Dataset:
    """Eleven rows: some are cut at LENGTH, some fit beside another in a packed row."""
    return tiny_prompt_completion_dataset(11, seed=4).map(
        lambda row, i: {"prompt": "Why? ", "completion": "Because."} if i % 3 == 0 else row, with_indices=True
    )


# --- scores ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["raw", "prepared", "packed"])
def test_scores_are_the_full_logit_losses_of_each_document(layout: str, tmp_path: Any) -> None:
    model, rows = tiny_model(TOKENIZER), short_and_long_rows()
    args = config_of(WeightedSFTConfig, tmp_path, max_length=LENGTH, packing=layout == "packed")
    given_rows = rows if layout == "raw" else prepare_sft_rows(rows, TOKENIZER, args)
    out = add_original_losses(given_rows, model, TOKENIZER, args, batch_size=3, show_progress=False)
    if layout == "packed":
        assert len(out) < len(rows)
        flat = [
            triple
            for row in out
            for triple in zip(row["__hf_ext_row__"], row["original_nll_sum"], row["original_num_tokens"], strict=True)
        ]
    else:
        index = range(len(rows)) if layout == "raw" else out["__hf_ext_row__"]
        flat = list(zip(index, out["original_nll_sum"], out["original_num_tokens"], strict=True))
    expected = expected_scores(model, rows)
    longest = max(len(TOKENIZER(row["prompt"] + row["completion"])["input_ids"]) for row in rows)
    assert longest > LENGTH, "no row is cut: the test could not tell"
    assert sorted(i for i, _, _ in flat) == list(range(11))
    for i, nll, tokens in flat:
        assert tokens == expected[i][1]
        assert nll == pytest.approx(expected[i][0], abs=2e-5)


def test_raw_rows_keep_their_columns_and_their_order(tmp_path: Any) -> None:
    rows = tiny_prompt_completion_dataset(7).add_column("weight", [float(i + 1) for i in range(7)])
    args = config_of(WeightedSFTConfig, tmp_path, packing=True, shuffle_dataset=True)
    out = add_original_losses(rows, tiny_model(TOKENIZER), TOKENIZER, args, show_progress=False)
    assert out.column_names == [*rows.column_names, "original_nll_sum", "original_num_tokens"]
    assert out.remove_columns(["original_nll_sum", "original_num_tokens"]).to_dict() == rows.to_dict()


def test_scores_do_not_depend_on_batch_size_or_row_order(tmp_path: Any) -> None:
    model, rows = tiny_model(TOKENIZER), tiny_text_dataset(9)
    one = add_original_losses(rows, model, TOKENIZER, batch_size=1, show_progress=False)
    many = add_original_losses(rows.select(range(8, -1, -1)), model, TOKENIZER, batch_size=9, show_progress=False)
    assert one["original_nll_sum"][::-1] == pytest.approx(many["original_nll_sum"][:], abs=2e-5)


def test_rows_dropped_as_bad_are_left_out_and_the_rest_stay_aligned(tmp_path: Any) -> None:
    texts: list[Any] = tiny_sentences(8)
    model = tiny_model(TOKENIZER)
    whole = add_original_losses(Dataset.from_dict({"text": texts}), model, TOKENIZER, show_progress=False)
    texts[2] = None
    args = config_of(WeightedSFTConfig, tmp_path, max_length=512, on_bad_row="drop")
    out = add_original_losses(Dataset.from_dict({"text": texts}), model, TOKENIZER, args, show_progress=False)
    assert out["text"][:] == [t for t in texts if t is not None]
    keep = [0, 1, 3, 4, 5, 6, 7]
    assert out["original_nll_sum"][:] == pytest.approx([whole["original_nll_sum"][i] for i in keep], abs=2e-5)
    with pytest.raises(RowError, match="row 2"):
        add_original_losses(Dataset.from_dict({"text": texts}), model, TOKENIZER, show_progress=False)


def test_scoring_leaves_mode_gradients_and_forward_as_they_were() -> None:
    model = tiny_model(TOKENIZER, attention_dropout=0.5)
    model.train()
    twice = [
        add_original_losses(tiny_text_dataset(4), model, TOKENIZER, show_progress=False)["original_nll_sum"][:]
        for _ in range(2)
    ]
    assert twice[0] == twice[1], "dropout was on"
    assert model.training
    assert "forward" not in vars(model)
    assert all(p.grad is None for p in model.parameters())


ADAPTERS = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "modules_to_save": {"modules_to_save": ["norm"]},
}


@pytest.mark.parametrize("kind", ADAPTERS)
def test_adapters_are_off_exactly_while_scoring(kind: str) -> None:
    rows = tiny_text_dataset(6)
    before = add_original_losses(rows, tiny_model(TOKENIZER), TOKENIZER, show_progress=False)
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"], task_type="CAUSAL_LM", **ADAPTERS[kind])
    model = get_peft_model(tiny_model(TOKENIZER), config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    ids = torch.tensor([[5, 6, 7, 8]])
    assert (model(ids).logits - tiny_model(TOKENIZER)(ids).logits).abs().max() > 1e-3, "the adapter does nothing"
    after = add_original_losses(rows, model, TOKENIZER, show_progress=False)
    assert after["original_nll_sum"] == before["original_nll_sum"]


def test_a_streamed_dataset_has_no_median_and_is_refused() -> None:
    with pytest.raises(TypeError, match="Materialise the stream"):
        add_original_losses(tiny_text_dataset(4).to_iterable_dataset(), tiny_model(TOKENIZER), TOKENIZER)


def test_score_rows_of_some_indices_come_in_their_order() -> None:
    model, rows = tiny_model(TOKENIZER), prepare_sft_rows(tiny_text_dataset(6), TOKENIZER)
    every = score_rows(model, rows, pad_token_id=0, show_progress=False)
    some = score_rows(model, rows, pad_token_id=0, indices=[4, 1, 3], batch_size=2, show_progress=False)
    for (ours, n), i in zip(some, [4, 1, 3], strict=True):
        assert n == every[i][1]
        assert ours == pytest.approx(every[i][0], abs=2e-5)


@pytest.mark.parametrize("packing", [False, True])
def test_scores_of_tokens_are_the_full_logit_losses_and_add_up_to_those_of_documents(
    packing: bool, tmp_path: Any
) -> None:
    model, rows = tiny_model(TOKENIZER), short_and_long_rows()
    args = config_of(WeightedSFTConfig, tmp_path, max_length=LENGTH, packing=packing)
    prepared = prepare_sft_rows(rows, TOKENIZER, args)
    scores = score_tokens(model, prepared, pad_token_id=0, batch_size=3, show_progress=False)
    sums = documents_of_tokens(prepared, scores)
    expected = score_rows(model, prepared, pad_token_id=0, batch_size=3, show_progress=False)
    for (losses, flags), row, (ours, n), (theirs, m) in zip(scores, prepared, sums, expected, strict=True):
        assert len(losses) == len(flags) == len(row["input_ids"])
        assert n == m
        assert ours == pytest.approx(theirs, abs=1e-9)
        start = 0
        for length in row.get("seq_lengths") or [len(losses)]:
            part = slice(start, start + length)
            by_loop = token_losses(model, document(row["input_ids"][part], row["labels"][part]))
            supervised = np.array(flags[part], dtype=bool)
            assert np.array(losses[part])[supervised] == pytest.approx([nll for nll, _ in by_loop], abs=2e-5)
            start += length


# --- temperature -----------------------------------------------------------------------------------------------------

losses = st.lists(st.floats(0.01, 50.0), min_size=1, max_size=40)


@given(losses, st.data())
@settings(max_examples=200, deadline=None)
def test_median_rule_is_numpys_median_of_the_means(values: list[float], data: Any) -> None:
    counts = data.draw(st.lists(st.integers(1, 9), min_size=len(values), max_size=len(values)))
    sums = [v * n for v, n in zip(values, counts, strict=True)]
    assert temperature_of(np.divide(sums, counts)) == pytest.approx(float(np.median(np.divide(sums, counts))))


def test_flow_temperature_reads_the_columns_of_rows_and_of_packed_rows() -> None:
    assert flow_temperature(scored([2.0, 9.0, 4.0], [2, 3, 4])) == 1.0
    packed = Dataset.from_dict(
        {"original_nll_sum": [[2.0, 9.0], [0.0, 4.0]], "original_num_tokens": [[2, 3], [0, 4]]}
    )  # the fragment without a supervised token does not count
    assert flow_temperature(packed) == 1.0
    losses, counts = document_losses(packed)
    assert (losses.tolist(), counts.tolist()) == ([1.0, 3.0, 1.0], [2, 3, 4])


@pytest.mark.parametrize("share", [0.3, 0.5, 0.8, 0.95, 0.99])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_ess_rule_solves_for_its_share(share: float, seed: int) -> None:
    values = np.random.default_rng(seed).lognormal(0.5, 0.6, 101)

    def excess(log_tau: float) -> float:
        w = np.exp(-values / math.exp(log_tau))
        return w.sum() ** 2 / (len(w) * (w**2).sum()) - share

    expected = math.exp(brentq(excess, math.log(0.02), math.log(1e4), xtol=1e-13))
    tau = flow_temperature(scored(values.tolist()), f"ess:{share}")
    assert tau == pytest.approx(expected, rel=1e-9)
    assert effective_sample_size_ratio(np.exp(-values / tau)) == pytest.approx(share, abs=1e-9)


@pytest.mark.parametrize("rule", ["mean", "ess", "ess:", "ess:0", "ess:1", "ess:1.5", "ess:nan", "median:2", ""])
def test_unknown_rules_are_named(rule: str) -> None:
    with pytest.raises(ValueError, match=r"rule must be .median. or .ess:SHARE"):
        flow_temperature(scored([1.0, 2.0, 3.0]), rule)


def test_what_has_no_temperature_says_so() -> None:
    with pytest.raises(ValueError, match="median loss under the original model is 0"):
        flow_temperature(scored([0.0, 0.0, 1.0]))
    with pytest.raises(ValueError, match=r"cannot fall to 0\.5"):
        flow_temperature(scored([1.0, 1.0, 1.0, 2.0]), "ess:0.5")
    with pytest.raises(ValueError, match="dataset is empty"):
        flow_temperature(scored([]))
    with pytest.raises(ValueError, match="no column 'original_nll_sum'"):
        flow_temperature(tiny_text_dataset(3))


@pytest.mark.parametrize(("value", "count"), [(float("nan"), 1), (float("inf"), 1), (1.0, 0)])
def test_a_score_that_is_none_is_named_by_its_document(value: float, count: int) -> None:
    with pytest.raises(ValueError, match="document 1:"):
        flow_temperature(scored([1.0, value, 2.0], [1, count, 1]))


# --- weights ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 5, 101])
def test_the_median_row_weighs_one_over_e(n: int) -> None:
    values = np.random.default_rng(n).gamma(2.0, 1.0, n)
    out = add_flow_weights(scored(values.tolist()), weight_scale="none")
    assert out["weight"][int(np.argsort(values)[n // 2])] == pytest.approx(math.exp(-1), rel=1e-12)


def test_weights_in_closed_form_on_rows_and_packed_rows() -> None:
    flow = FlowWeights(2.0)
    assert flow({"original_nll_sum": [4.0, 9.0], "original_num_tokens": [2, 3]})["weight"] == pytest.approx(
        [math.exp(-1.0), math.exp(-1.5)]
    )
    packed = {
        "original_nll_sum": [[4.0, 0.0, 9.0]], "original_num_tokens": [[2, 0, 3]], "seq_lengths": [[3, 1, 2]],
    }  # fmt: skip
    (weights,) = flow(packed)["weight"]
    assert weights == pytest.approx([math.exp(-1.0)] * 3 + [0.0] + [math.exp(-1.5)] * 2)


@given(losses, st.floats(0.1, 10.0))
@settings(max_examples=200, deadline=None)
def test_weights_fall_with_the_loss_stay_in_unit_range_and_ignore_the_unit(values: list[float], unit: float) -> None:
    rows = scored(values)
    tau = flow_temperature(rows)
    weights = FlowWeights(tau)({**rows.to_dict()})["weight"]
    # exp(-745) is the smallest double: only rows beyond that many temperatures may have no weight left
    assert all((w > 0 or v / tau > 740) and w <= 1 for w, v in zip(weights, values, strict=True))
    order = np.argsort(values, kind="stable")
    assert all(weights[a] >= weights[b] for a, b in pairwise(order))
    other = scored([v * unit for v in values])  # nats or bits
    assert FlowWeights(flow_temperature(other))({**other.to_dict()})["weight"] == pytest.approx(weights, rel=1e-6)


def test_filling_replaces_a_column_and_a_stream_needs_a_number() -> None:
    rows = scored([1.0, 2.0, 3.0]).add_column("weight", [9.0, 9.0, 9.0])
    expected = np.exp([-0.5, -1, -1.5])
    assert add_flow_weights(rows)["weight"][:] == pytest.approx(expected / expected.mean())
    stream = rows.to_iterable_dataset()
    needs_the_whole: list[dict[str, Any]] = [{}, {"tau": 2.0}, {"tau": 2.0, "weight_scale": "none", "flow_floor": 0.1}]
    for settings_of_all in needs_the_whole:
        with pytest.raises(TypeError, match="Pass tau as a number and weight_scale='none'"):
            add_flow_weights(stream, **settings_of_all)
    streamed = list(add_flow_weights(stream, tau=2.0, weight_scale="none"))
    assert [row["weight"] for row in streamed] == add_flow_weights(rows, 2.0, weight_scale="none")["weight"][:]


@pytest.mark.parametrize("tau", [0.0, -1.0, float("nan"), float("inf")])
def test_a_temperature_that_is_none_is_refused(tau: float) -> None:
    with pytest.raises(ValueError, match="tau must be a positive, finite number"):
        FlowWeights(tau)


def test_prepared_rows_are_the_trainers_own(tmp_path: Any) -> None:
    from trl import SFTTrainer

    from tests.trainers.runs import build

    for packing in (False, True):
        settings = {"max_length": LENGTH, "packing": packing}
        rows = tiny_prompt_completion_dataset(12)
        theirs = build(SFTTrainer, config_of(SFTConfig, tmp_path, **settings), rows).train_dataset
        ours = prepare_sft_rows(rows, TOKENIZER, config_of(WeightedSFTConfig, tmp_path, **settings))
        for column in ("input_ids", "labels", *(["seq_lengths"] if packing else [])):
            assert ours[column] == theirs[column]
