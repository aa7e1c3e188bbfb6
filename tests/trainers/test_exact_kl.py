"""The KL at each prefix in place of sampled tokens: its value by a loop in float64, no gradient at the original."""

from __future__ import annotations

import contextlib
import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from torch import Tensor
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaForCausalLM,
)

from hf_ext._upstream.divergence import last_hidden_states
from hf_ext.data.context_free import ContextFreeStore
from hf_ext.guards.finite import NonFiniteError
from hf_ext.trainers.context_free import ContextFreeSFTConfig, ContextFreeSFTTrainer
from hf_ext.trainers.context_free.original import OriginalModel
from tests.conformance.registry import with_store
from tests.tiny import tiny_model, tiny_text_dataset
from tests.trainers.runs import TOKENIZER, Snapshot, assert_same_weights, build, config_of, logged, train

LORA = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
HEAD_TOO = LoraConfig(
    r=4, target_modules=["q_proj"], modules_to_save=["lm_head", "embed_tokens"], task_type="CAUSAL_LM"
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ContextFreeStore:
    return with_store(tmp_path_factory.mktemp("exact"))["context_free_dataset"]


def trainer_of(store: ContextFreeStore, folder: Path, *, model: Any = None, lora: Any = None, **changes: Any) -> Any:
    """Each step sees the whole store, in two micro-batches."""
    half = len(store.to_dataset()) // 2
    fields = {"max_steps": 3, "gradient_accumulation_steps": 2, "context_free_batch_size": half, "kl": "exact"}
    args = config_of(ContextFreeSFTConfig, folder, **(fields | changes))
    extra = {} if lora is None else {"peft_config": lora}
    return build(ContextFreeSFTTrainer, args, tiny_text_dataset(8), model=model, context_free_dataset=store, **extra)


def probabilities(model: Any, ids: list[int]) -> Tensor:
    """Next-token probabilities after each prefix, `(len(ids), vocab_size)`, by the model's own forward, in float64."""
    was_training = model.training
    model.eval()
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].double()
    model.train(was_training)
    return logits.softmax(-1)


def kl_by_loop(original: Any, new: Any, store: ContextFreeStore, top_k: int | None = None) -> float:
    """Mean KL(original || new) over the supervised positions of a store; of a lump of all but `top_k` tokens."""
    values = []
    for row in store.to_dataset():
        pairs = zip(probabilities(original, row["input_ids"]), probabilities(new, row["input_ids"]), strict=True)
        for label, (p, q) in zip([*row["labels"][1:], -100], pairs, strict=True):
            if label == -100:
                continue
            if top_k is not None:
                order = p.argsort(descending=True)
                p, q = (torch.cat([x[order[:top_k]], x[order[top_k:]].sum()[None]]) for x in (p, q))
            values.append(float((p * (p / q).log()).sum()))
    return sum(values) / len(values)


def trained_until_the_last_step(trainer: Any) -> Any:
    """Train, and return the model as it was before the last step, which the last log line is of."""
    snapshot = Snapshot()
    trainer.add_callback(snapshot)
    train(trainer)
    model = copy.deepcopy(trainer.model)
    vars(model.get_base_model() if hasattr(model, "get_base_model") else model).pop("forward", None)
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.copy_(snapshot.weights[name])
    return model


WAYS: dict[str, dict[str, Any]] = {
    "full": {},
    "lora": {"lora": LORA},
    "trained head": {"lora": HEAD_TOO},
    "padding-free": {"padding_free": True, "max_length": None},
    "on disk": {"original_cache_dir": "states"},
    "on disk, lora": {"original_cache_dir": "states", "lora": LORA},
    "on disk, padding-free": {"original_cache_dir": "states", "padding_free": True, "max_length": None},
    "checkpointed activations": {"activation_checkpointing": True},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("top_k", [None, 5])
def test_the_kl_of_a_step_is_that_of_a_loop_in_float64(
    way: str, top_k: int | None, store: ContextFreeStore, tmp_path: Path
) -> None:
    changes = dict(WAYS[way])
    if "original_cache_dir" in changes:
        changes["original_cache_dir"] = str(tmp_path / "states")
    changes["learning_rate"] = 2.0 if "lora" in changes else 0.3
    if top_k is not None:
        changes |= {"kl": "topk", "kl_top_k": top_k}
    trainer = trainer_of(store, tmp_path, kl_weight=0.5, **changes)
    new = trained_until_the_last_step(trainer)
    expected = kl_by_loop(tiny_model(TOKENIZER), new, store, top_k)
    assert expected > 1e-3
    value = logged(trainer, f"kl_original_to_new/{trainer.args.kl}")[-1]
    assert value == pytest.approx(expected, rel=1e-3, abs=2e-6)
    loss = next(entry["loss"] for entry in reversed(trainer.state.log_history) if "loss" in entry)
    assert loss == pytest.approx(logged(trainer, "loss/target")[-1] + 0.5 * value, abs=2e-4)  # the log rounds


@pytest.mark.parametrize("kl", ["exact", "topk"])
@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_at_the_original_the_divergence_and_each_of_its_gradients_are_exactly_zero(
    kl: str, lora: Any, store: ContextFreeStore, tmp_path: Path
) -> None:
    trainer = trainer_of(store, tmp_path, lora=lora, kl=kl)
    trainer.before_training(None)
    (drawn,) = trainer.draw_batches([{}])
    batch = drawn["context_free"]
    with last_hidden_states(trainer.model) as states:
        trainer.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    divergence = trainer.original.divergence(states[-1], batch)
    divergence.sum().backward()
    assert torch.equal(divergence, torch.zeros_like(divergence))
    gradients = [value.grad for value in trainer.model.parameters() if value.requires_grad]
    assert any(gradient is not None for gradient in gradients)
    assert all(not gradient.any() for gradient in gradients if gradient is not None)


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_the_first_step_is_that_without_an_anchor_bit_for_bit_whatever_its_weight(
    lora: Any, store: ContextFreeStore, tmp_path: Path
) -> None:
    def after_one_step(**changes: Any) -> Any:
        torch.manual_seed(0)
        trainer = trainer_of(store, tmp_path, lora=lora, max_steps=1, **changes)
        train(trainer)
        return trainer.model

    plain = after_one_step(kl_weight=0.0)
    assert_same_weights(after_one_step(kl_weight=1000.0), plain)
    assert_same_weights(after_one_step(kl_weight=1000.0, kl="topk"), plain)
    with pytest.raises(AssertionError, match="parameters differ"):  # the noise of sampled tokens
        assert_same_weights(after_one_step(kl_weight=1.0, kl="sampled"), plain)


def test_fewer_tokens_told_apart_never_measure_more(store: ContextFreeStore, tmp_path: Path) -> None:
    """On the same weights: each run trains at the same rate with no say for the anchor."""

    def measured(**changes: Any) -> float:
        trainer = trainer_of(store, tmp_path, kl_weight=1e-12, **changes)
        train(trainer)
        return logged(trainer, f"kl_original_to_new/{trainer.args.kl}")[-1]

    exact = measured()
    by_k = [measured(kl="topk", kl_top_k=k) for k in (1, 4, 32, len(TOKENIZER))]
    assert by_k == sorted(by_k)
    assert 0 < by_k[0] < by_k[2] < exact
    assert by_k[-1] == pytest.approx(exact, rel=1e-3)


def test_the_exact_anchor_holds_the_model_closer_than_the_sampled_one(store: ContextFreeStore, tmp_path: Path) -> None:
    original = tiny_model(TOKENIZER)
    drift = {}
    for kl in ("sampled", "exact"):
        trainer = trainer_of(store, tmp_path / kl, kl=kl, max_steps=20, learning_rate=0.2, context_free_batch_size=2)
        train(trainer)
        drift[kl] = kl_by_loop(original, trainer.model, store)
    assert drift["exact"] < drift["sampled"]


# --- heads -----------------------------------------------------------------------------------------------------------

SMALL = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 16, "initializer_range": 0.3, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
HEADS: dict[str, Any] = {
    "soft cap": lambda: Gemma2ForCausalLM(Gemma2Config(**SMALL, final_logit_softcapping=3.0)),
    "multiplied": lambda: CohereForCausalLM(CohereConfig(**SMALL, logit_scale=0.25)),
    "divided": lambda: GraniteForCausalLM(GraniteConfig(**SMALL, logits_scaling=4.0)),
    "untied": lambda: tiny_model(64, tie_word_embeddings=False),
}


@pytest.mark.parametrize("top_k", [None, 64])
@pytest.mark.parametrize("head", HEADS)
def test_heads_that_scale_or_bend_their_logits_give_the_kl_of_the_models_own(head: str, top_k: int | None) -> None:
    torch.manual_seed(3)
    new = HEADS[head]().float()
    original = copy.deepcopy(new).eval()
    held = OriginalModel(new, contextlib.nullcontext, top_k)
    with torch.no_grad():
        for value in new.parameters():
            value.add_(0.05 * torch.randn_like(value))
    ids = torch.randint(3, 64, (2, 9))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    with last_hidden_states(new) as states:
        new(**{name: batch[name] for name in ("input_ids", "attention_mask")})
    divergence = held.divergence(states[-1], batch)
    p, q = (torch.stack([probabilities(model, row.tolist())[:-1] for row in ids]) for model in (original, new))
    expected = (p * (p / q).log()).sum(-1).flatten()
    assert expected.mean() > 1e-3
    torch.testing.assert_close(divergence.detach().double(), expected, rtol=1e-3, atol=5e-6)
    divergence.sum().backward()
    assert new.get_output_embeddings().weight.grad.any()


class Doubling(LlamaForCausalLM):
    """A model that doubles its logits and says so nowhere."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)
        output.logits = 2 * output.logits
        return output


def test_logits_that_the_head_does_not_tell_are_refused_by_name() -> None:
    model = Doubling(tiny_model(TOKENIZER).config)
    with pytest.raises(ValueError, match=r"Doubling changes its logits .* Use kl='sampled'"):
        OriginalModel(model, contextlib.nullcontext)


# --- refusals --------------------------------------------------------------------------------------------------------


def test_what_the_exact_kl_cannot_do_is_refused_with_a_remedy(store: ContextFreeStore, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"torch_compile with kl='exact'.*use kl='sampled'"):
        trainer_of(store, tmp_path, torch_compile=True)
    with pytest.raises(ValueError, match=r"kl_top_k=5000 is more than the 384 tokens of the vocabulary"):
        trainer_of(store, tmp_path, kl="topk", kl_top_k=5000).train()
    biased = LoraConfig(r=4, target_modules=["q_proj"], bias="all", task_type="CAUSAL_LM")
    trainer = trainer_of(store, tmp_path, lora=biased)
    base = trainer.model.get_base_model()
    base.model.norm.weight.requires_grad_(True)
    with pytest.raises(ValueError, match=r"'model.norm.weight' is trained beside the adapter.*use kl='sampled'"):
        trainer.train()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"kl": "reverse"}, "kl must be one of"),
        ({"kl_top_k": 0}, "kl_top_k must be"),
        ({"original_cache_dir": "x"}, "original_cache_dir keeps"),
        ({"kl_budget": 0.1, "kl_weight": 1.0}, "kl_budget=0.1 and kl_weight=1.0 are both set"),
        ({"kl_budget": 0.0}, "kl_budget must be finite and above 0"),
        ({"kl_budget": float("inf")}, "kl_budget must be finite and above 0"),
    ],
    ids=str,
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=words):
        config_of(ContextFreeSFTConfig, tmp_path, **settings)


def test_the_weight_is_one_unless_something_else_is_said(tmp_path: Path) -> None:
    assert config_of(ContextFreeSFTConfig, tmp_path).kl_weight == 1.0
    assert config_of(ContextFreeSFTConfig, tmp_path, kl_budget=0.1).kl_weight is None


def test_a_divergence_that_is_not_finite_stops_the_step_and_names_the_stored_rows(
    store: ContextFreeStore, tmp_path: Path
) -> None:
    trainer = trainer_of(store, tmp_path, context_free_batch_size=2)
    compared = OriginalModel.divergence

    def spoilt(self: OriginalModel, hidden: Tensor, batch: dict[str, Any]) -> Tensor:
        values = compared(self, hidden, batch).clone()
        values[0] = float("nan")
        return values

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OriginalModel, "divergence", spoilt)
        with pytest.raises(NonFiniteError, match="KL") as stopped:
            trainer.train()
    assert stopped.value.row_indices == [trainer._stream.rows(0, 1)[0]]
