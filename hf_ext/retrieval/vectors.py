"""
From texts with exemplars to vectors: tokens that are not pooled, the blend with the bare query's vector, the cache.

Exemplars are read and not pooled: their tokens reach the query's through attention, and stay out of the mean. In no
published setting do an exemplar's tokens enter a mean: decoders pool the last token, LLM2Vec the query's own. A mean
over query and exemplars drowns the one in the other.

Nothing is added to the model's modules or files: a hook narrows the mask that the pooling module sees, in batches that
carry one. Without exemplars every vector is the host's own.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from sentence_transformers.sentence_transformer.modules import Pooling
from sentence_transformers.util import quantize_embeddings
from torch import Tensor, nn
from torch.nn.functional import normalize

from hf_ext.data.exemplars import Formatted, TokenCounter
from hf_ext.retrieval.augmenter import ONE_TOKEN

MASK = "exemplar_mask"  # of a batch, shaped like its token ids: 1 where a token is an exemplar's
_WHOLE_BATCH = "exemplar_pooling_saved"


class Body(str):
    """A query's text that remembers how many of its first characters are exemplars, also in another process."""

    prefix: int

    def __new__(cls, text: str, prefix: int = 0) -> Body:
        """Text and number of characters."""
        body = super().__new__(cls, text)
        body.prefix = prefix
        return body

    @classmethod
    def of(cls, text: Formatted) -> Body:
        """The body of a formatted query."""
        return cls(text.body, text.prefix)


def pooling_modules(model: nn.Module) -> list[Pooling]:
    """The modules of a model that pool more than one token."""
    return [module for module in model.modules() if isinstance(module, Pooling) and _modes(module) - ONE_TOKEN]


def _modes(module: Pooling) -> set[str]:
    modes = module.pooling_mode
    return {modes} if isinstance(modes, str) else set(modes)


def leave_exemplars_out(model: nn.Module) -> bool:
    """
    Let the model's pooling leave out the tokens that [`MASK`] marks.

    Returns:
        `bool`: whether there is anything to leave out: not where one token is pooled, nor where no module pools.
    """
    modules = pooling_modules(model)
    for module in modules:
        if _narrow not in module._forward_pre_hooks.values():  # the modules may be shared with another encoder
            module.register_forward_pre_hook(_narrow)
            module.register_forward_hook(_restore)
    return bool(modules)


def exemplar_mask(
    features: Mapping[str, Any], prompt: str, bodies: Sequence[str], prefixes: Sequence[int], counter: TokenCounter
) -> Tensor:
    """
    Which tokens of a tokenised batch are exemplars'.

    None where their places are not those of the text: chat messages are rewritten, and a static embedding has no rows.

    Args:
        features (`Mapping`):
            Padded on either side, or flattened with `cu_seq_lens_q`.
        prompt (`str`), bodies (`Sequence[str]`):
            What was tokenised: the one before each of the others.
        prefixes (`Sequence[int]`):
            Characters of each body that are exemplars.
        counter ([`TokenCounter`]):
            The model's tokenizer.

    Returns:
        int64, the shape of `input_ids`: `(rows, tokens)`, or `(1, tokens)` of a flattened batch.
    """
    ids = features["input_ids"]
    mask = torch.zeros(ids.shape, dtype=torch.int64)
    if ids.dim() != 2 or features.get("modality", "text") != "text":
        return mask.to(ids.device)
    flat = features.get("cu_seq_lens_q")
    starts = flat[:-1].tolist() if flat is not None else features["attention_mask"].int().argmax(dim=1).tolist()
    for row, (body, prefix, start) in enumerate(zip(bodies, prefixes, starts, strict=True)):
        if prefix:
            first, last = counter.span(prompt + body, len(prompt), len(prompt) + prefix)
            mask[0 if flat is not None else row, start + first : start + last] = 1
    return mask.to(ids.device)


def _narrow(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """Before pooling: the batch as if the exemplars' tokens were none."""
    features = arguments[0]
    left_out = features.get(MASK)
    if left_out is None:
        return None
    narrowed = dict(features)
    if "cu_seq_lens_q" in features:
        keep = left_out.reshape(-1) == 0
        starts = features["cu_seq_lens_q"]
        new_starts = torch.nn.functional.pad(keep.cumsum(0), (1, 0))[starts.long()].to(starts.dtype)
        narrowed |= {"token_embeddings": features["token_embeddings"][:, keep], "cu_seq_lens_q": new_starts}
        if "seq_idx" in features:
            narrowed["seq_idx"] = features["seq_idx"][:, keep]
    else:
        narrowed["attention_mask"] = features["attention_mask"] * (1 - left_out)
    narrowed[_WHOLE_BATCH] = features
    return (narrowed, *arguments[1:])


def _restore(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> Any:
    """After pooling: the batch as it was, with the vectors."""
    if not isinstance(output, dict):
        return output
    features = output.pop(_WHOLE_BATCH, None)
    return output if features is None else {**features, "sentence_embedding": output["sentence_embedding"]}


def blend(bare: Tensor, augmented: Tensor, weight: float) -> Tensor:
    r"""
    Vectors between two: direction of $(1 - w)\,\hat b + w\,\hat a$, length $(1 - w)\,|b| + w\,|a|$.

    Args:
        bare, augmented (`torch.Tensor` of shape `(queries, dim)`):
            $b$ of the bare queries, and $a$ of their texts with exemplars. Unit vectors give unit vectors.
        weight (`float`):
            $w$ in [0, 1], the share of `augmented`.
    """
    lengths = (1 - weight) * bare.norm(dim=-1, keepdim=True) + weight * augmented.norm(dim=-1, keepdim=True)
    directions = (1 - weight) * normalize(bare, dim=-1) + weight * normalize(augmented, dim=-1)
    return normalize(directions, dim=-1) * lengths


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


class VectorCache:
    """
    The vectors last used, by the text that was encoded.

    The text holds the exemplars, so another pool, other settings or another exclusion is another key; the caller adds
    what else decides a vector.

    Args:
        size (`int`): vectors that are kept; 0 is none.
    """

    def __init__(self, size: int = 0) -> None:
        self.size = size
        self.entries: OrderedDict[bytes, Any] = OrderedDict()
        self.hits = 0

    def clear(self) -> None:
        """Forget everything."""
        self.entries.clear()

    def vectors(self, texts: list[str], state: str, encode: Callable[[list[str]], Any]) -> Any:
        """
        Vectors of the texts; those not kept are encoded in one call, each text once.

        Args:
            texts (`list[str]`): what the model reads, less the prompt.
            state (`str`): all else that decides the vectors.
            encode (`Callable`): texts to `(texts, dim)`, or a list.
        """
        keys = [hashlib.blake2b(f"{state}\0{text}".encode("utf-8", "surrogatepass")).digest() for text in texts]
        missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in self.entries}
        self.hits += len(texts) - len(missing)
        new_vectors = encode(list(missing.values())) if missing or not texts else []
        vector_of = dict(zip(missing, new_vectors, strict=True))
        for key in keys:
            if key in self.entries:
                self.entries.move_to_end(key)  # the least lately used entry stands first, and goes first
                vector_of[key] = self.entries[key]
        rows = [vector_of[key] for key in keys]
        for key in missing:
            self.entries[key] = vector_of[key]
        while len(self.entries) > self.size:
            self.entries.popitem(last=False)
        return _joined(rows, new_vectors) if texts else new_vectors


def _joined(rows: list[Any], new_vectors: Any) -> Any:
    """Rows in the form that `encode` gives."""
    if isinstance(rows[0], torch.Tensor):
        as_list = isinstance(new_vectors, list) and len(new_vectors) > 0
        return rows if as_list else torch.stack(rows)
    return np.stack(rows)
