"""Query vectors between the bare query's and that of its text with exemplars."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sentence_transformers.util import quantize_embeddings
from torch import Tensor
from torch.nn.functional import normalize


def blend(plain: Tensor, shown: Tensor, weight: float) -> Tensor:
    r"""
    Vectors between two: direction of $(1 - w)\,\hat p + w\,\hat s$, length $(1 - w)\,|p| + w\,|s|$.

    Args:
        plain, shown (`torch.Tensor` of shape `(queries, dim)`):
            Of the bare queries, and of their texts with exemplars. Unit vectors give unit vectors.
        weight (`float`):
            $w$ in [0, 1], the share of `shown`.
    """
    sizes = (1 - weight) * plain.norm(dim=-1, keepdim=True) + weight * shown.norm(dim=-1, keepdim=True)
    mixed = (1 - weight) * normalize(plain, dim=-1) + weight * normalize(shown, dim=-1)
    return normalize(mixed, dim=-1) * sizes


def as_asked(vectors: Tensor, precision: str, kwargs: dict[str, Any]) -> Any:
    """Vectors in the form that the parent would give them."""
    as_tensor = kwargs.get("convert_to_tensor", False)
    as_numpy = kwargs.get("convert_to_numpy", True) and not as_tensor
    if precision != "float32":
        packed = quantize_embeddings(vectors.float().cpu().numpy(), precision=precision)
        return torch.from_numpy(np.asarray(packed)) if as_tensor else packed
    if as_tensor:
        return vectors
    return vectors.float().cpu().numpy() if as_numpy else list(vectors)
