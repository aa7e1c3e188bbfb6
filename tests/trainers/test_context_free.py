"""The KL anchor as a trainer: target loss plus lambda times the loss on the original model's own samples."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model

from hf_ext.data.context_free import ContextFreeStore, generate_context_free
from hf_ext.data.weighting import add_flow_weights, add_original_losses
from hf_ext.guards.finite import NonFiniteError
from hf_ext.trainers.context_free import ContextFreeSFTConfig, ContextFreeSFTTrainer
from hf_ext.trainers.context_free.row_stream import RowStream
from hf_ext.trainers.weighted_sft import WeightedSFTConfig, WeightedSFTTrainer
from tests.tiny import tiny_model, tiny_text_dataset, tiny_tokenizer
from tests.trainers.oracle import Document, document, step_loss, token_losses
from tests.trainers.runs import (
    TOKENIZER,
    Snapshot,
    assert_same_weights,
    build,
    config_of,
    logged,
    train,
    weights_of,
)

EOS = TOKENIZER.eos_token
WEIGHTS = [0.5, 2.0, 1.0, 0.25, 3.0, 0.0, 1.5, 0.75]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ContextFreeStore:
    folder = tmp_path_factory.mktemp("context_free") / "store"
    return generate_context_free(
        tiny_model(TOKENIZER), TOKENIZER, 150, output_dir=folder, max_new_tokens=14, batch_size=8, show_progress=False
    )


def rows() -> Dataset:
    return tiny_text_dataset(8).add_column("weight", WEIGHTS)


def target_documents() -> list[Document]:
    texts = tiny_text_dataset(8)["text"]
    ids = [TOKENIZER(text + EOS)["input_ids"][:64] for text in texts]
    return [document(row, None, weight) for row, weight in zip(ids, WEIGHTS, strict=True)]


def stored_documents(store: ContextFreeStore, length: int = 64) -> list[Document]:
    return [document(row["input_ids"][:length], row["labels"][:length]) for row in store.to_dataset()]


def run(store: Any, tmp_path: Path, dataset: Dataset | None = None, **changes: Any) -> tuple[Any, list[float]]:
    args = config_of(ContextFreeSFTConfig, tmp_path, **changes)
    dataset = rows() if dataset is None else dataset
    trainer = build(ContextFreeSFTTrainer, args, dataset, context_free_dataset=store)
    return trainer, train(trainer)


def one_step(store: ContextFreeStore, **changes: Any) -> dict[str, Any]:
    """Two micro-batches that see every target row and every stored row once."""
    half = len(store.to_dataset()) // 2
    return {
        "max_steps": 1, "learning_rate": 0.0, "gradient_accumulation_steps": 2, "context_free_batch_size": half,
    } | changes  # fmt: skip


LAYOUTS: dict[str, dict[str, Any]] = {
    "padded": {},
    "padding_free": {"padding_free": True, "max_length": None},
    "cut": {"max_length": 8},
    "tokens": {"normalize": "tokens"},
    "rows": {"reduction": "row"},
}


@pytest.mark.parametrize("kl_weight", [1.0, 0.3])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_loss_is_target_plus_lambda_times_context_free(
    layout: str, kl_weight: float, store: ContextFreeStore, tmp_path: Path
) -> None:
    changes = LAYOUTS[layout]
    trainer, (loss,) = run(store, tmp_path, **one_step(store, kl_weight=kl_weight, **changes))
    length = changes.get("max_length") or 64
    target = [document(d.ids[:length], d.labels[:length], d.weights[:length]) for d in target_documents()]
    expected_target = step_loss(
        trainer.model, target, changes.get("normalize", "weights"), changes.get("reduction", "token")
    )
    anchor = step_loss(trainer.model, stored_documents(store, length), "tokens", "token")
    assert loss == pytest.approx(expected_target + kl_weight * anchor, abs=5e-6)
    assert logged(trainer, "loss/target") == pytest.approx([expected_target], abs=5e-6)
    assert logged(trainer, "loss/context_free") == pytest.approx([anchor], abs=5e-6)


def test_gradient_is_that_of_the_sum(store: ContextFreeStore, tmp_path: Path) -> None:
    rate = 0.5
    changes = one_step(store, kl_weight=0.7, learning_rate=rate, max_grad_norm=0.0)
    trainer, _ = run(store, tmp_path, **changes)
    model, docs = tiny_model(TOKENIZER), stored_documents(store)
    import torch

    total = torch.zeros(())
    for group, factor in ((target_documents(), 1.0), (docs, 0.7)):
        numerator, denominator = torch.zeros(()), 0.0
        for doc in group:
            log_probs = torch.log_softmax(model(torch.tensor([doc.ids])).logits[0], -1)
            for t in range(1, len(doc.ids)):
                if doc.labels[t] != -100:
                    numerator = numerator - doc.weights[t] * log_probs[t - 1, doc.labels[t]]
                    denominator += doc.weights[t]
        total = total + factor * numerator / denominator
    total.backward()
    moved = dict(trainer.model.named_parameters())
    for name, value in model.named_parameters():
        expected = value.detach() - rate * value.grad
        torch.testing.assert_close(moved[name].detach(), expected, atol=2e-5, rtol=0)


def test_lambda_zero_is_the_weighted_trainer_bit_for_bit(store: ContextFreeStore, tmp_path: Path) -> None:
    trainer, losses = run(store, tmp_path / "a", kl_weight=0.0)
    parent = build(WeightedSFTTrainer, config_of(WeightedSFTConfig, tmp_path / "b"), rows())
    assert losses == train(parent)
    assert_same_weights(trainer.model, parent.model)
    _, others = run(store, tmp_path / "c", kl_weight=1.0)
    assert losses != others


def doubled(store: ContextFreeStore, folder: Path) -> ContextFreeStore:
    """The same rows twice, as a store."""
    shutil.copytree(store.path, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    shards = []
    for i, shard in enumerate(manifest["shards"] * 2):
        name = f"copy-{i}.arrow"
        shutil.copy(folder / shard["file"], folder / name)
        shards.append(shard | {"file": name})
    (folder / "manifest.json").write_text(json.dumps(manifest | {"shards": shards}))
    return ContextFreeStore(folder)


def test_doubling_the_store_leaves_the_expected_loss_as_it_was(store: ContextFreeStore, tmp_path: Path) -> None:
    n = len(store.to_dataset())
    once, twice = store, doubled(store, tmp_path / "doubled")
    assert len(twice.to_dataset()) == 2 * n
    means, anchors = [], []
    for name, source, steps in (("a", once, n), ("b", twice, 2 * n)):  # two passes of two rows a step; one of them
        trainer, losses = run(
            source, tmp_path / name, learning_rate=0.0, max_steps=steps, logging_steps=steps,
            context_free_batch_size=2, per_device_train_batch_size=8,
        )  # fmt: skip
        means.append(np.mean(losses))
        anchors += logged(trainer, "loss/context_free")
        assert logged(trainer, "context_free/epoch")[-1] > 0
    assert anchors[0] == pytest.approx(anchors[1], abs=1e-5)
    assert means[0] == pytest.approx(means[1], abs=0.03)  # a mean of ratios over few rows differs a little


def test_flow_and_context_free_together(store: ContextFreeStore, tmp_path: Path) -> None:
    plain = tiny_text_dataset(8)
    scored = add_original_losses(plain, tiny_model(TOKENIZER), TOKENIZER, show_progress=False)
    trainer, (loss,) = run(store, tmp_path, add_flow_weights(scored), **one_step(store))
    model = trainer.model
    ids = [TOKENIZER(text + EOS)["input_ids"][:64] for text in plain["text"]]
    means = [np.mean([nll for nll, _ in token_losses(model, document(one))]) for one in ids]
    weighted = [document(one, None, float(np.exp(-m / np.median(means)))) for one, m in zip(ids, means, strict=True)]
    expected = step_loss(model, weighted) + step_loss(model, stored_documents(store))
    assert loss == pytest.approx(expected, abs=5e-6)


# --- the logged divergence -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("padding_free", [False, True])
def test_the_divergence_is_zero_while_the_model_is_the_original(
    padding_free: bool, store: ContextFreeStore, tmp_path: Path
) -> None:
    layout = {"padding_free": True, "max_length": None} if padding_free else {}
    trainer, _ = run(store, tmp_path, learning_rate=0.0, **layout)
    for name in ("k1", "k3"):
        values = logged(trainer, f"kl_original_to_new/{name}")
        assert len(values) == 4
        assert max(abs(value) for value in values) < 1e-6


def test_the_divergence_after_training_is_that_of_a_loop(store: ContextFreeStore, tmp_path: Path) -> None:
    moved = tiny_model(TOKENIZER)
    trainer, _ = run(store, tmp_path / "a", kl_weight=0.1, max_steps=3)
    # one more step at rate 0 over the whole store, from the trained model but with the original's samples
    store_free = ContextFreeStore(store.path)
    object.__setattr__(store_free, "check_model", lambda model: None)
    args = config_of(ContextFreeSFTConfig, tmp_path / "b", **one_step(store))
    probe = build(ContextFreeSFTTrainer, args, rows(), model=trainer.model, context_free_dataset=store_free)
    train(probe)
    k1, k3, tokens = 0.0, 0.0, 0
    for doc in stored_documents(store):
        pairs = zip(token_losses(moved, doc), token_losses(probe.model, doc), strict=True)
        for (old, _), (new, _) in pairs:
            log_ratio = old - new  # log new - log original
            k1 -= log_ratio
            k3 += np.exp(log_ratio) - 1 - log_ratio
            tokens += 1
    assert logged(probe, "kl_original_to_new/k1") == pytest.approx([k1 / tokens], abs=1e-5)
    assert logged(probe, "kl_original_to_new/k3") == pytest.approx([k3 / tokens], abs=1e-5)
    assert k3 / tokens > 1e-3


def test_the_anchor_holds_the_model_near_the_original(store: ContextFreeStore, tmp_path: Path) -> None:
    def drift(kl_weight: float) -> float:
        trainer, _ = run(
            store, tmp_path / str(kl_weight), kl_weight=kl_weight, max_steps=30, learning_rate=0.2,
            context_free_batch_size=len(store.to_dataset()),
        )  # fmt: skip
        return step_loss(trainer.model, stored_documents(store))

    assert drift(1.0) < drift(0.0)


# --- the stream ------------------------------------------------------------------------------------------------------


@given(st.integers(1, 60), st.integers(0, 10), st.integers(0, 2**31 - 1))
@settings(max_examples=200, deadline=None)
def test_every_epoch_of_the_stream_is_a_permutation(num_rows: int, epoch: int, seed: int) -> None:
    for block_rows in (None, 7):
        rows_of_epoch = RowStream(num_rows, seed, block_rows).rows(epoch * num_rows, num_rows)
        assert sorted(rows_of_epoch) == list(range(num_rows))


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 8), st.integers(0, 2**31 - 1))
@settings(max_examples=200, deadline=None)
def test_blocks_that_are_added_leave_the_order_before_them(blocks: int, more: int, size: int, seed: int) -> None:
    order = RowStream(blocks * size, seed, size).rows(0, blocks * size)
    assert RowStream((blocks + more) * size, seed, size).rows(0, blocks * size) == order
    assert [row // size for row in order] == [position // size for position in range(blocks * size)]


@given(
    st.integers(1, 40), st.lists(st.tuples(st.integers(0, 300), st.integers(0, 20)), max_size=8), st.integers(0, 99)
)
@settings(max_examples=200, deadline=None)
def test_the_stream_is_a_pure_function_of_the_position(num_rows: int, reads: list, seed: int) -> None:
    whole = RowStream(num_rows, seed).rows(0, 330)
    stream = RowStream(num_rows, seed)
    for start, count in reads:  # in any order, with repeats
        assert stream.rows(start, count) == whole[start : start + count]


def test_the_stream_moves_with_its_seed_and_its_epoch_and_leaves_the_global_state() -> None:
    before = np.random.get_state()[1].copy()  # noqa: NPY002  # the legacy state is what must not move
    one = RowStream(50, 1).rows(0, 100)
    assert one[:50] != one[50:]
    assert one != RowStream(50, 2).rows(0, 100)
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002


@pytest.mark.parametrize("data_seed", [None, 0, 3])
def test_data_seed_orders_the_stored_rows_whatever_the_seed_and_zero_is_one_too(
    data_seed: int | None, store: ContextFreeStore, tmp_path: Path
) -> None:
    args = config_of(ContextFreeSFTConfig, tmp_path, seed=7, data_seed=data_seed, context_free_batch_size=5)
    trainer = build(ContextFreeSFTTrainer, args, rows(), context_free_dataset=store)
    batch = trainer.draw_batches([{}])[0]["context_free"]
    order = np.random.default_rng((7 if data_seed is None else data_seed, 0)).permutation(len(store.to_dataset()))
    assert batch["__hf_ext_row__"][:, -1].tolist() == order[:5].tolist()


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_a_context_free_log_probability_that_is_not_finite_stops_the_step_and_names_the_stored_rows(
    value: float, store: ContextFreeStore, tmp_path: Path
) -> None:
    snapshot = Snapshot()
    args = config_of(ContextFreeSFTConfig, tmp_path, context_free_batch_size=2)
    trainer = build(ContextFreeSFTTrainer, args, rows(), context_free_dataset=store, callbacks=[snapshot])
    spoilt_row = RowStream(len(trainer.context_free_dataset), args.seed).rows(0, 2)[1]
    forward = trainer.model.forward

    def spoil(*positional: Any, **kwargs: Any) -> Any:
        outputs = forward(*positional, **kwargs)
        is_stored = outputs.log_probs.shape[0] == 2  # a micro-batch of the target has four rows
        if is_stored:
            outputs.log_probs = outputs.log_probs.clone()
            outputs.log_probs[1, 0] = value
        return outputs

    trainer.model.forward = spoil
    with pytest.raises(NonFiniteError, match="context-free log-probability") as stopped:
        trainer.train()
    assert stopped.value.row_indices == [spoilt_row]
    for name, weight in weights_of(trainer.model).items():
        assert torch.equal(weight, snapshot.weights[name]), f"{name} moved in the step that was stopped"


# --- refusals --------------------------------------------------------------------------------------------------------


def test_a_store_from_other_weights_or_another_tokenizer_is_refused(store: ContextFreeStore, tmp_path: Path) -> None:
    args = config_of(ContextFreeSFTConfig, tmp_path)
    with pytest.raises(ValueError, match="was sampled from other weights"):
        build(ContextFreeSFTTrainer, args, rows(), model=tiny_model(TOKENIZER, seed=9), context_free_dataset=store)
    other = tiny_tokenizer()
    other.add_special_tokens({"bos_token": "<|im_start|>"})
    with pytest.raises(ValueError, match="made with another tokenizer"):
        ContextFreeSFTTrainer(
            tiny_model(TOKENIZER), args, train_dataset=rows(), processing_class=other, context_free_dataset=store
        )


def test_no_store_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="generate_context_free"):
        build(ContextFreeSFTTrainer, config_of(ContextFreeSFTConfig, tmp_path), rows())
    with pytest.raises(FileNotFoundError, match="no context-free store"):
        build(ContextFreeSFTTrainer, config_of(ContextFreeSFTConfig, tmp_path), rows(), context_free_dataset=tmp_path)


@pytest.mark.parametrize("given_as", ["path", "string", "config"])
def test_the_store_may_be_given_by_its_folder(given_as: str, store: ContextFreeStore, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"context_free_path": str(store.path)} if given_as == "config" else {}
    source = {"path": Path(store.path), "string": str(store.path), "config": None}[given_as]
    trainer, _ = run(source, tmp_path, max_steps=1, **changes)
    assert len(trainer.context_free_dataset) == len(store.to_dataset())


@pytest.mark.parametrize(
    ("field", "value"),
    [("kl_weight", -1.0), ("kl_weight", float("nan")), ("kl_weight", float("inf")), ("context_free_batch_size", 0)],
)
def test_settings_that_make_no_sense_are_refused(field: str, value: float, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=field):
        config_of(ContextFreeSFTConfig, tmp_path, **{field: value})


def test_evaluation_is_on_the_target_alone(store: ContextFreeStore, tmp_path: Path) -> None:
    args = config_of(ContextFreeSFTConfig, tmp_path)
    trainer = build(ContextFreeSFTTrainer, args, rows(), eval_dataset=tiny_text_dataset(4), context_free_dataset=store)
    parent = build(
        WeightedSFTTrainer, config_of(WeightedSFTConfig, tmp_path), rows(), eval_dataset=tiny_text_dataset(4)
    )
    assert trainer.evaluate()["eval_loss"] == parent.evaluate()["eval_loss"]


def test_the_store_is_checked_against_model_and_tokenizer_before_the_host_changes_them(
    store: ContextFreeStore, tmp_path: Path
) -> None:
    """By `eos_token`, and by another tokenizer's template, whose tokens the host adds and resizes embeddings for."""
    folder, other = tmp_path / "model", tmp_path / "other"
    tiny_model(TOKENIZER).save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    donor = tiny_tokenizer()
    donor.add_special_tokens({"eos_token": "<|turn_end|>"})
    donor.save_pretrained(other)
    # With and without what the user loaded, and with what an earlier trainer has changed in the user's hand.
    given = tiny_tokenizer()
    for changes in ({"eos_token": "<|im_start|>"}, {"chat_template_path": str(other)}):
        for model, tokenizer in ((tiny_model(TOKENIZER), given), (str(folder), None)):
            args = config_of(ContextFreeSFTConfig, tmp_path / "run", max_steps=1, model_init_kwargs={}, **changes)
            trainer = ContextFreeSFTTrainer(
                model, args, train_dataset=rows(), processing_class=tokenizer, context_free_dataset=store
            )
            trainer.train()
            ends = trainer.processing_class.eos_token, trainer.model.get_input_embeddings().num_embeddings
            assert ends == (("<|im_start|>", 384) if "eos_token" in changes else ("<|turn_end|>", 448))
            assert trainer.args.model_init_kwargs == {}


def test_a_trained_adapter_is_refused_and_its_own_resumed_run_is_not(store: ContextFreeStore, tmp_path: Path) -> None:
    lora = LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM")
    changes = {"save_strategy": "steps", "save_steps": 2}

    def trainer_of(model: Any, **more: Any) -> Any:
        args = config_of(ContextFreeSFTConfig, tmp_path / "run", **(changes | more))
        return build(ContextFreeSFTTrainer, args, rows(), model=model, context_free_dataset=store)

    trainer = trainer_of(get_peft_model(tiny_model(TOKENIZER), lora), max_steps=2)
    trainer.train()
    trainer.train()  # again: the anchor is what it was
    with pytest.raises(ValueError, match=r"trained already.*merge_and_unload"):
        trainer_of(trainer.model).train()
    trainer_of(get_peft_model(tiny_model(TOKENIZER), lora)).train(resume_from_checkpoint=True)
    trainer_of(trainer.model, kl_weight=0.0).train()


@pytest.mark.parametrize("changes", [{"max_steps": 12}, {"max_steps": -1, "num_train_epochs": 6}])
def test_a_topped_up_store_is_never_seen_twice_and_the_next_run_finds_it(
    changes: dict[str, Any], store: ContextFreeStore, tmp_path: Path
) -> None:
    copy = ContextFreeStore(shutil.copytree(store.path, tmp_path / "store"))
    before = copy.to_dataset()[:]
    trainer, losses = run(copy, tmp_path / "out", context_free_top_up=True, context_free_batch_size=6, **changes)
    topped = copy.to_dataset()
    drawn = 6 * trainer.state.global_step
    assert len(before["input_ids"]) < drawn <= len(topped)
    assert topped[: len(before["input_ids"])] == before
    assert logged(trainer, "context_free/epoch")[-1] == pytest.approx(drawn / len(topped))
    again, same_losses = run(copy, tmp_path / "again", context_free_top_up=True, context_free_batch_size=6, **changes)
    assert copy.to_dataset()[:] == topped[:]
    assert same_losses == losses
    assert_same_weights(again.model, trainer.model)


def test_a_topped_up_run_does_not_depend_on_the_shards_of_a_longer_one_and_goes_on_into_them(
    store: ContextFreeStore, tmp_path: Path
) -> None:
    """Killed, and resumed when another run has added rows, or with more steps, it sees each row once."""
    changes = {"context_free_top_up": True, "context_free_batch_size": 6, "save_strategy": "steps", "save_steps": 4}
    long, short = (ContextFreeStore(shutil.copytree(store.path, tmp_path / name)) for name in ("long", "short"))
    whole, long_losses = run(long, tmp_path / "a", max_steps=12, **changes)
    alone, losses = run(short, tmp_path / "b", max_steps=4, **changes)
    beside, same_losses = run(long, tmp_path / "c", max_steps=4, **changes)
    assert len(short.to_dataset()) < len(long.to_dataset())
    assert losses == same_losses == long_losses[:4]
    assert_same_weights(alone.model, beside.model)
    args = config_of(ContextFreeSFTConfig, tmp_path / "b", max_steps=12, **changes)
    resumed = build(ContextFreeSFTTrainer, args, rows(), context_free_dataset=short)
    assert train(resumed, resume_from_checkpoint=True) == long_losses[4:]
    assert_same_weights(resumed.model, whole.model)
    assert sorted(resumed._stream.rows(0, 72)) == sorted(set(resumed._stream.rows(0, 72)))


def test_a_run_that_draws_no_row_samples_none(store: ContextFreeStore, tmp_path: Path) -> None:
    before = store.to_dataset()[:]
    run(store, tmp_path, max_steps=50, context_free_top_up=True, context_free_batch_size=8, kl_weight=0.0)
    assert store.to_dataset()[:] == before


def test_a_store_of_other_weights_is_not_topped_up(store: ContextFreeStore, tmp_path: Path) -> None:
    args = config_of(ContextFreeSFTConfig, tmp_path, context_free_top_up=True, max_steps=50)
    with pytest.raises(ValueError, match="sampled from other weights"):
        build(ContextFreeSFTTrainer, args, rows(), model=tiny_model(TOKENIZER, 1), context_free_dataset=store)
