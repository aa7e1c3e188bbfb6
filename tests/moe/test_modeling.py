"""The model against the mixture it stores, and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, LlamaForCausalLM, Trainer, TrainingArguments

from hf_ext.losses.moe_likelihood import moe_nll
from hf_ext.moe.configuration_moe import MoEConfig
from hf_ext.moe.modeling_moe import MoEForSequenceClassification, pooled
from tests.moe.models import mixture_of, saved_folder, tiny_encoder
from tests.moe.problems import SHAPES, rows_of
from tests.tiny import tiny_tokenizer

every_shape = pytest.mark.parametrize("name", SHAPES)


def model_of(name: str, **config: object) -> MoEForSequenceClassification:
    return MoEForSequenceClassification.from_mixture(mixture_of(name), symmetric=SHAPES[name].symmetric, **config)


def rows(name: str, n: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    X, y = rows_of(SHAPES[name], n=n, d=6)
    return X.float(), y.float() if y.is_floating_point() else y


@every_shape
def test_logits_loss_and_responsibilities_are_the_mixtures(name: str) -> None:
    mixture = mixture_of(name)
    X, y = rows(name)
    out = model_of(name)(embeddings=X, labels=y)
    responsibilities, log_likelihood = mixture.posterior(X, y.double() if y.is_floating_point() else y)
    torch.testing.assert_close(out.logits.double(), mixture.predict(X), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(out.loss.double(), -log_likelihood.mean(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(out.log_responsibilities.exp().double(), responsibilities, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["softmax", "logistic", "logistic symmetric"])
def test_cross_entropy_of_the_logits_is_the_loss(name: str) -> None:
    X, y = rows(name)
    out = model_of(name)(embeddings=X, labels=y)
    torch.testing.assert_close(torch.nn.functional.cross_entropy(out.logits, y), out.loss)


@every_shape
def test_a_saved_model_comes_back_with_the_same_bits(name: str, tmp_path: Path) -> None:
    model = model_of(name)
    model.save_pretrained(tmp_path)
    again = MoEForSequenceClassification.from_pretrained(tmp_path)
    X, y = rows(name)
    before = model(embeddings=X, labels=y)
    after = again(embeddings=X, labels=y)
    assert torch.equal(before.logits, after.logits)
    assert torch.equal(before.loss, after.loss)
    assert again.config.problem_type == ("regression" if "linear" in name else "single_label_classification")
    assert again.mixture_parameters().gate.shape == mixture_of(name).gate.shape


def test_the_encoder_keeps_its_weights_and_is_frozen(tmp_path: Path) -> None:
    encoder = tiny_encoder()
    ids = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    expected = encoder(ids, attention_mask=mask).last_hidden_state[:, -1].detach()
    saved_folder(tmp_path)
    model = MoEForSequenceClassification.from_pretrained(tmp_path).train()
    torch.testing.assert_close(model.features(input_ids=ids, attention_mask=mask), expected, rtol=0, atol=1e-6)
    assert not model.encoder.training
    assert MoEForSequenceClassification.from_pretrained(tmp_path, freeze_encoder=False).train().encoder.training
    model(input_ids=ids, attention_mask=mask, labels=torch.tensor([0, 3])).loss.backward()
    with_gradient = {name for name, weight in model.named_parameters() if weight.grad is not None}
    assert with_gradient == {
        f"mixture.{part}" for part in ("gate.weight", "gate.bias", "experts.weight", "experts.bias")
    }


def test_an_encoder_that_was_loaded_is_stored_with_the_same_bits(tmp_path: Path) -> None:
    tiny_encoder().save_pretrained(tmp_path)
    model = MoEForSequenceClassification.from_mixture(mixture_of("softmax", d=32), AutoModel.from_pretrained(tmp_path))
    for name, weight in tiny_encoder().state_dict().items():
        assert torch.equal(model.encoder.state_dict()[name], weight)


def test_an_encoder_that_is_not_frozen_is_trained() -> None:
    config = {"freeze_encoder": False, "pooling": "mean", "normalize": True}
    model = MoEForSequenceClassification.from_mixture(mixture_of("softmax", d=32), tiny_encoder(), **config)
    ids = torch.tensor([[5, 6, 7, 8]])
    assert float(model.features(input_ids=ids).detach().norm()) == pytest.approx(1, abs=1e-6)
    model.train()(input_ids=ids, labels=torch.tensor([0])).loss.backward()
    assert model.encoder.training
    assert model.encoder.embed_tokens.weight.grad.abs().sum() > 0


def test_pooling_takes_no_padding_on_either_side() -> None:
    hidden = torch.arange(24.0).view(2, 4, 3)
    for mask, first, last in (([1, 1, 0, 0], 0, 1), ([0, 0, 1, 1], 2, 3)):
        both = torch.tensor([mask, mask])
        assert torch.equal(pooled(hidden, both, "cls"), hidden[:, first])
        assert torch.equal(pooled(hidden, both, "last"), hidden[:, last])
        assert torch.equal(pooled(hidden, both, "mean"), (hidden[:, first] + hidden[:, last]) / 2)


@pytest.mark.parametrize("kind", ["loaded", "autocast"])
def test_in_bfloat16_the_mixture_itself_stays_exact(kind: str, tmp_path: Path) -> None:
    model = model_of("softmax")
    X, y = rows("softmax")
    expected = model(embeddings=X).logits
    if kind == "loaded":
        model.save_pretrained(tmp_path)
        model = MoEForSequenceClassification.from_pretrained(tmp_path, dtype=torch.bfloat16)
        assert model.mixture.scale.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16, enabled=kind == "autocast"):
        torch.testing.assert_close(model(embeddings=X, labels=y).logits, expected)


def test_whatever_the_default_type_a_new_mixture_is_in_float32() -> None:
    torch.set_default_dtype(torch.float16)
    try:
        model = MoEForSequenceClassification.from_mixture(mixture_of("linear"))
    finally:
        torch.set_default_dtype(torch.float32)
    assert {value.dtype for value in model.mixture.state_dict().values()} == {torch.float32}


def test_a_stock_trainer_trains_and_evaluates_it(tmp_path: Path) -> None:
    X, y = rows("softmax", n=64)
    data = [{"embeddings": x.tolist(), "labels": int(label)} for x, label in zip(X, y, strict=True)]
    torch.manual_seed(0)
    model = MoEForSequenceClassification(MoEConfig(input_dim=6, num_experts=3, num_labels=4))
    args = TrainingArguments(
        str(tmp_path), max_steps=20, learning_rate=0.1, per_device_train_batch_size=64, report_to=[],
        lr_scheduler_type="constant", use_cpu=True, save_strategy="no",
    )  # fmt: skip
    trainer = Trainer(model, args, train_dataset=data, eval_dataset=data)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before - 0.3
    out = trainer.predict(data)
    assert out.predictions.shape == (64, 4)
    with torch.no_grad():
        loss = moe_nll(*model.mixture(X), y).mean()
    assert out.metrics["test_loss"] == pytest.approx(float(loss), abs=1e-5)


def test_peft_adapts_the_encoder_and_trains_the_mixture() -> None:
    peft = pytest.importorskip("peft")
    model = MoEForSequenceClassification.from_mixture(mixture_of("softmax", d=32), tiny_encoder())
    config = peft.LoraConfig(task_type="SEQ_CLS", target_modules=["q_proj"], modules_to_save=["mixture"])
    adapted = peft.get_peft_model(model, config).train()
    ids = torch.tensor([[5, 6, 7, 8]])
    adapted(input_ids=ids, labels=torch.tensor([1])).loss.backward()
    moved = [name for name, weight in adapted.named_parameters() if weight.grad is not None and weight.grad.any()]
    assert any("lora_B" in name for name in moved)
    assert any("mixture" in name and "gate" in name for name in moved)


def test_fewer_experts_make_the_model_smaller(tmp_path: Path) -> None:
    model = model_of("softmax")
    smaller = mixture_of("softmax").without([1])
    model.set_mixture(smaller)
    model.save_pretrained(tmp_path)
    again = MoEForSequenceClassification.from_pretrained(tmp_path)
    X, _ = rows("softmax")
    assert again.config.num_experts == 2
    torch.testing.assert_close(again(embeddings=X).logits.double(), smaller.predict(X), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="make a model with from_mixture"):
        model.set_mixture(mixture_of("logistic"))


@pytest.mark.parametrize(
    ("name", "field", "message"),
    [
        ("logistic", {"symmetric": True}, "not opposite"),
        ("linear, two numbers, own variances", {"shared_variance": True}, "variances differ"),
    ],
)
def test_a_mixture_that_the_model_could_not_store_is_refused(name: str, field: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MoEForSequenceClassification.from_mixture(mixture_of(name), **field)


def test_permuted_experts_are_the_same_model() -> None:
    mixture = mixture_of("softmax")
    order = [2, 0, 1]
    permuted = replace(mixture, gate=mixture.gate[order], experts=mixture.experts[order])
    X, _ = rows("softmax")
    first = MoEForSequenceClassification.from_mixture(mixture)(embeddings=X)
    second = MoEForSequenceClassification.from_mixture(permuted)(embeddings=X)
    torch.testing.assert_close(first.logits, second.logits)
    torch.testing.assert_close(first.router_logits[:, order], second.router_logits)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": [0, 4, 1]}, r"the label of row 1 is 4, not a class from 0 to 3"),
        ({"labels": [0, 1, -100]}, r"row 2 is -100.*Drop rows of -100"),
        ({"labels": [0.5, 1, 2]}, r"the label of row 0 is 0.5"),
        ({"labels": [0, 1]}, r"one label for each of 3 rows"),
        ({"nan": (1, 4)}, r"embeddings is nan in row 1, column 4"),
        ({"width": 5}, r"embeddings \(3, 5\) must be \(batch, 6\)"),
        ({"ids": True}, r"no encoder: pass embeddings of shape \(batch, 6\)"),
    ],
    ids=str,
)
def test_bad_input_is_named(change: dict, message: str) -> None:
    embeddings = torch.zeros(3, change.get("width", 6))
    if "nan" in change:
        embeddings[change["nan"]] = float("nan")
    inputs = {"input_ids": torch.ones(3, 2, dtype=torch.long)} if "ids" in change else {"embeddings": embeddings}
    with pytest.raises(ValueError, match=message):
        model_of("softmax")(**inputs, labels=torch.tensor(change.get("labels", [0, 1, 2])))


@pytest.mark.parametrize("labels", [[0.0, float("inf")], [[0.0, 1.0], [2.0, 3.0]]], ids=["inf", "wide"])
def test_bad_numbers_of_linear_experts_are_named(labels: list) -> None:
    with pytest.raises(ValueError, match=r"labels is inf in row 1, column 0|must hold 1 numbers a row"):
        model_of("linear")(embeddings=torch.zeros(2, 6), labels=torch.tensor(labels))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"symmetric": True, "num_experts": 3, "expert_type": "linear"}, "symmetric=True means two"),
        ({"expert_type": "logistic", "num_labels": 3}, "logistic experts have 2 classes"),
        ({"expert_type": "rbf"}, "is not one of linear, logistic, softmax"),
        ({"num_experts": 0}, "num_experts"),
        ({"input_dim": 0}, "input_dim"),
        ({"pooling": "max"}, "pooling='max' is not one of"),
        ({"problem_type": "regression"}, "that of softmax experts is 'single_label_classification'"),
        ({"encoder_config": {"hidden_size": 8}}, "no model_type"),
    ],
    ids=str,
)
def test_fields_that_do_not_go_together_are_refused(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MoEConfig(**fields)


def test_a_model_with_a_language_head_is_no_encoder() -> None:
    model = LlamaForCausalLM(tiny_encoder().config)
    with pytest.raises(ValueError, match=r"is a LlamaForCausalLM.*AutoModel loads \(LlamaModel\)"):
        MoEForSequenceClassification.from_mixture(mixture_of("softmax", d=32), model)


def test_the_tokenizer_of_the_folder_is_that_of_the_encoder(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    text = "the red fox"
    assert AutoTokenizer.from_pretrained(saved_folder(tmp_path))(text) == tiny_tokenizer()(text)
