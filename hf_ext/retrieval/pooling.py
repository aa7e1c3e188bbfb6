"""
Exemplars that are read and not pooled: their tokens reach the query's through attention, and stay out of the mean.

In no published setting do an exemplar's tokens enter a mean: decoders pool the last token, LLM2Vec the query's own. A
mean over query and exemplars drowns the one in the other.

Nothing is added to the model's modules or files: a hook narrows the mask that the pooling module sees, in batches that
carry one. Without exemplars every vector is the host's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from sentence_transformers.sentence_transformer.modules import Pooling
from torch import Tensor, nn

from hf_ext.data.exemplars import Formatted, TokenCounter
from hf_ext.retrieval.augmenter import ONE_TOKEN

MASK = "exemplar_mask"  # of a batch, shaped like its token ids: 1 where a token is an exemplar's
_SAVED = "exemplar_pooling_saved"


class Body(str):
    """A query's text that remembers how many of its first characters are exemplars, also in another process."""

    prefix: int

    def __new__(cls, text: str, prefix: int = 0) -> Body:
        """Text and number of characters."""
        made = super().__new__(cls, text)
        made.prefix = prefix
        return made

    @classmethod
    def of(cls, made: Formatted) -> Body:
        """The body of a formatted query."""
        return cls(made.body, made.prefix)


def pooling_modules(model: nn.Module) -> list[Pooling]:
    """The modules of a model that pool more than one token."""
    found = [module for module in model.modules() if isinstance(module, Pooling)]
    return [module for module in found if _modes(module) - ONE_TOKEN]


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
        kept = torch.nn.functional.pad(keep.cumsum(0), (1, 0))[starts.long()].to(starts.dtype)
        narrowed |= {"token_embeddings": features["token_embeddings"][:, keep], "cu_seq_lens_q": kept}
        if "seq_idx" in features:
            narrowed["seq_idx"] = features["seq_idx"][:, keep]
    else:
        narrowed["attention_mask"] = features["attention_mask"] * (1 - left_out)
    narrowed[_SAVED] = features
    return (narrowed, *arguments[1:])


def _restore(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> Any:
    """After pooling: the batch as it was, with the vectors."""
    before = output.pop(_SAVED, None) if isinstance(output, dict) else None
    return output if before is None else {**before, "sentence_embedding": output["sentence_embedding"]}
