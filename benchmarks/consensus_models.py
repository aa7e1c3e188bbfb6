"""Small classifiers of the consensus benchmark, many trained at once: a step of them all is a few batched products."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from hf_ext.losses.label_noise import forward_corrected_nll, soft_nll

BATCH, HIDDEN = 128, 64
BETAS, EPS = (0.9, 0.999), 1e-8


@dataclass(frozen=True)
class Spec:
    """
    A kind of model and how long it is trained.

    Args:
        kind (`str`): `linear`, `mlp` (64 hidden units) or `cnn` (two strided convolutions of 28 x 28 pictures).
        classes (`int`): number of classes.
        epochs (`float`): of a round on all rows.
        rate (`float`): Adam's first learning rate; it falls to 0 along a line.
    """

    kind: str
    classes: int
    epochs: float
    rate: float


def fresh(spec: Spec, width: int, seeds: Sequence[int]) -> list[Tensor]:
    """Initial weights, one model a seed along the first axis; the same seed gives the same weights."""
    if spec.kind == "cnn":
        shapes = [(8, 1, 5, 5), (16, 8, 3, 3), (16 * 7 * 7, spec.classes)]
    else:
        sizes = [width, *([HIDDEN] if spec.kind == "mlp" else []), spec.classes]
        shapes = list(pairwise(sizes))
    weights: list[Tensor] = []
    for number, shape in enumerate(shapes):
        fan_in = math.prod(shape[1:]) if len(shape) == 4 else shape[0]
        scale = math.sqrt(2 / fan_in) if number + 1 < len(shapes) else math.sqrt(1 / fan_in)
        models = [torch.randn(shape, generator=torch.Generator().manual_seed(seed + 1)) * scale for seed in seeds]
        outputs = shape[0] if len(shape) == 4 else shape[1]
        weights += [torch.stack(models), torch.zeros(len(seeds), 1, outputs)]
    return [value.requires_grad_() for value in weights]


def logits_of(x: Tensor, weights: Sequence[Tensor], spec: Spec) -> Tensor:
    """`x` of shape `(models, batch, width)` to logits of shape `(models, batch, classes)`."""
    models, batch = x.shape[:2]
    layers = list(zip(weights[::2], weights[1::2], strict=True))
    if spec.kind == "cnn":
        x = x.reshape(models, batch, 28, 28).transpose(0, 1)  # (batch, models, 28, 28): a group of channels a model
        for kernel, bias in layers[:-1]:
            flat = kernel.reshape(-1, *kernel.shape[2:])
            x = F.relu(F.conv2d(x, flat, bias.reshape(-1), stride=2, padding=kernel.shape[-1] // 2, groups=models))
        x = x.reshape(batch, models, -1).transpose(0, 1)
        layers = layers[-1:]
    for number, (matrix, bias) in enumerate(layers):
        x = torch.baddbmm(bias, x, matrix)
        x = x if number + 1 == len(layers) else F.relu(x)
    return x


def batches_of(rows: Sequence[np.ndarray], steps: int, seeds: Sequence[int]) -> Tensor:
    """Row numbers of every step, shape `(models, steps * BATCH)`: whole shuffled passes one after the other."""
    drawn = np.empty((len(rows), steps * BATCH), np.int64)
    for model, (own, seed) in enumerate(zip(rows, seeds, strict=True)):
        rng = np.random.default_rng([seed, 1])
        passes = [own[rng.permutation(len(own))] for _ in range(-(-steps * BATCH // len(own)))]
        drawn[model] = np.concatenate(passes)[: steps * BATCH]
    return torch.from_numpy(drawn)


def fit(
    x: Tensor,
    targets: Sequence[np.ndarray],
    rows: Sequence[np.ndarray],
    epochs: Sequence[float],
    spec: Spec,
    seeds: Sequence[int],
    channel: tuple[float, float] | None = None,
) -> list[Tensor]:
    """
    Train several models side by side, each on its own rows, labels and number of epochs.

    Args:
        x: features of all rows, shape `(rows, width)`.
        targets: for each model labels of shape `(rows,)`, or distributions of shape `(rows, classes)`.
        rows: for each model the numbers of the rows it sees.
        epochs: for each model how often it sees them.
        spec: kind, classes and learning rate.
        seeds: of initial weights and batches.
        channel: p and q; the loss is then corrected for that channel.

    Returns:
        `list[Tensor]`: weights, one model along the first axis.
    """
    lengths = [max(1, round(e * len(own) / BATCH)) for e, own in zip(epochs, rows, strict=True)]
    weights = fresh(spec, x.shape[1], seeds)
    moments = [(torch.zeros_like(value), torch.zeros_like(value)) for value in weights]
    labels = torch.stack([torch.from_numpy(target) for target in targets])
    drawn, each = batches_of(rows, max(lengths), seeds), torch.arange(len(rows))[:, None]
    own_steps = torch.tensor(lengths, dtype=torch.float32)
    for step in range(max(lengths)):
        now = drawn[:, step * BATCH : (step + 1) * BATCH]
        logits, given = logits_of(x[now], weights, spec), labels[each, now]
        if given.ndim == 3:
            loss = soft_nll(logits, given, denominator=BATCH)
        else:
            loss = forward_corrected_nll(logits, given, channel or (1.0, 0.0), denominator=BATCH)
        gradients = torch.autograd.grad(loss, weights)  # of a sum over models: each gets its own
        rate = spec.rate * torch.clamp(1 - step / own_steps, min=0)  # 0 for a model that has had its steps
        adam(weights, gradients, moments, rate, step + 1)
    return [value.detach() for value in weights]


@torch.no_grad()
def adam(
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor],
    moments: Sequence[tuple[Tensor, Tensor]],
    rate: Tensor,
    step: int,
) -> None:
    """Adam's step with a learning rate for each model."""
    for value, gradient, (first, second) in zip(weights, gradients, moments, strict=True):
        first.lerp_(gradient, 1 - BETAS[0])
        second.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
        scale = (second / (1 - BETAS[1] ** step)).sqrt_().add_(EPS)
        value -= rate.reshape(-1, *[1] * (value.ndim - 1)) * (first / (1 - BETAS[0] ** step)) / scale


@torch.no_grad()
def predicted(x: Tensor, weights: Sequence[Tensor], spec: Spec) -> np.ndarray:
    """Distributions, float32 of shape `(models, rows, classes)`."""
    models = weights[0].shape[0]
    found = [
        torch.softmax(logits_of(part[None].expand(models, -1, -1), weights, spec), dim=-1) for part in x.split(2000)
    ]
    return torch.cat(found, dim=1).numpy()
