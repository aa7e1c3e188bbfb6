"""Mixtures with drawn coefficients, and a folder of one on a tiny encoder."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import LlamaModel

from hf_ext.moe.modeling_moe import MoEForSequenceClassification
from hf_ext.moe.parameters import MixtureParameters, MixtureShape
from tests.moe.problems import SHAPES, normal
from tests.tiny import tiny_model, tiny_tokenizer


def mixture_of(name: str, d: int = 6, seed: int = 0) -> MixtureParameters:
    """A mixture of a shape in `SHAPES`, on features that are neither centred nor scaled; exact in float32."""
    shape: MixtureShape = SHAPES[name]
    free = normal(1, shape.gate_rows + shape.expert_rows, d + 1, seed=seed)
    rows = shape.expand(free)[0].float().double()
    variance = None
    if shape.num_variances:
        variance = (0.5 + normal(shape.num_variances, seed=seed + 1).abs()).expand(shape.num_experts)
    return MixtureParameters(
        gate=rows[: shape.num_experts],
        experts=rows[shape.num_experts :].unflatten(0, (shape.num_experts, shape.num_outputs)),
        variance=variance,
        mean=torch.arange(d).double() / 8,
        scale=1 + torch.arange(d).double() / 4,
        expert_type=shape.expert_type,
    )


def tiny_encoder() -> LlamaModel:
    """The body of a random Llama with 32 hidden units."""
    return tiny_model(tiny_tokenizer()).model


def saved_folder(folder: Path) -> Path:
    """A saved mixture of three softmax experts on the tiny encoder's last token, with its tokenizer."""
    labels = {number: f"c{number}" for number in range(4)}
    mixture = mixture_of("softmax", d=32)
    model = MoEForSequenceClassification.from_mixture(mixture, tiny_encoder(), pooling="last", id2label=labels)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder
