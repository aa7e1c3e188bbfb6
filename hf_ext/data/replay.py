"""Rows of real text as an anchor: replay, in the form of a context-free store."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import torch
from datasets import Dataset
from torch import Tensor

from hf_ext.data.context_free_store import SCHEMA, ContextFreeStore, Shard, dtype_of, grow, short_name
from hf_ext.data.provenance import as_original, model_hash, original_model, tokenizer_hash
from hf_ext.data.sampling import end_ids, start_ids
from hf_ext.data.trained_adapters import require_untouched_adapters
from hf_ext.guards.row_errors import RowError

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

ROWS_PER_SHARD = 256


def store_replay(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    texts: Dataset | Sequence[str],
    *,
    output_dir: str | Path,
    max_length: int = 128,
    batch_size: int = 32,
    start: str | Sequence[int] = "bos",
    autocast_dtype: torch.dtype | None = None,
    show_progress: bool = True,
) -> ContextFreeStore:
    r"""
    Write real texts as a store: what context-free rows stand in for, where a share of the old data is at hand.

    [`ContextFreeSFTTrainer`] takes it like any other, so that `kl_weight` means the same. The rows are not samples of
    the original model $p$: their loss pulls towards the texts' own distribution, `kl_original_to_new/k1` is only the
    change of their loss, and `k3` no divergence. `kl="exact"` is one, on these texts' prefixes.

    Args:
        model (`PreTrainedModel` or `PeftModel`):
            The model before tuning, on its device, on every process; it gives `sampled_logps`.
        tokenizer (`PreTrainedTokenizerBase`):
            Its tokenizer.
        texts (`Dataset` with a column `text`, or a sequence of `str`):
            Old data. No end token is added.
        output_dir (`str` or `Path`):
            Folder of the store: new, or of the same texts and settings. The store holds these texts.
        max_length (`int`, *optional*, defaults to `128`):
            Tokens of a text that are kept, the start not counted.
        batch_size (`int`, *optional*, defaults to `32`):
            Rows a forward.
        start (`str` or list of `int`, *optional*, defaults to `"bos"`):
            What every row begins with: `"bos"`, `"separator"`, a text, or token ids.
        autocast_dtype (`torch.dtype`, *optional*):
            Autocast of the forward, as in training.
        show_progress (`bool`, *optional*, defaults to `True`):
            Whether the main process shows a progress bar.

    Returns:
        [`ContextFreeStore`]: the complete store.

    Raises:
        RowError: if a text is not a string, or has no token.
        ValueError: if an argument is out of range, there is no text, or the folder holds something else.

    Reference: the baseline of real data of *Context-Free Synthetic Data Mitigates Forgetting* (arXiv 2505.13811).
    """
    for name, value in (("max_length", max_length), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value!r}.")
    require_untouched_adapters(model)
    first = start_ids(model, tokenizer, start, max_length)
    rows = _ids_of(tokenizer, texts, max_length)
    settings = {
        "model_hash": model_hash(model),
        "tokenizer_hash": tokenizer_hash(tokenizer, with_chat_template=False),
        "eos_ids": end_ids(model, tokenizer),
        "seed": None,
        "batch_size": batch_size,
        "max_new_tokens": max_length,
        "dtype": dtype_of(model),
        "autocast_dtype": None if autocast_dtype is None else short_name(autocast_dtype),
        "start_ids": first,
        "starts": None,
        "kind": "replay",
        "temperature": 1.0,
        "rows_hash": hashlib.sha256(json.dumps(rows).encode()).hexdigest(),
    }
    num_tokens = sum(map(len, rows))
    scorer = _scorer(model, first, rows, batch_size, autocast_dtype)
    return grow(Path(output_dir), settings, ROWS_PER_SHARD, model, num_tokens, lambda manifest: scorer, show_progress)


def _ids_of(tokenizer: PreTrainedTokenizerBase, texts: Dataset | Sequence[str], max_length: int) -> list[list[int]]:
    if isinstance(texts, Dataset):
        if "text" not in texts.column_names:
            raise ValueError(f"texts has no column 'text'; it has {texts.column_names}.")
        texts = texts.with_format(None)["text"][:]
    rows = []
    for index, text in enumerate(texts):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"][:max_length] if isinstance(text, str) else []
        if not ids:
            raise RowError(
                f"row {index:,}, column 'text': expected a text of at least one token, found {str(text)[:80]!r}.\n"
                "  Drop the row with dataset.filter.",
                index,
                "text",
            )
        rows.append(list(ids))
    if not rows:
        raise ValueError("There is no text to replay: the rows are empty.")
    return rows


def _scorer(
    model: nn.Module, first: list[int], rows: list[list[int]], batch_size: int, autocast_dtype: torch.dtype | None
) -> Shard:
    """Return what makes the shard of a number: its texts, with their log-probabilities under the original model."""
    base = original_model(model)
    device = next(base.parameters()).device

    def score(number: int, on_tokens: Callable[[int], Any]) -> pa.Table:
        shard = rows[number * ROWS_PER_SHARD : (number + 1) * ROWS_PER_SHARD]
        columns: dict[str, list[Any]] = {name: [] for name in SCHEMA.names}
        autocast = nullcontext() if autocast_dtype is None else torch.autocast(device.type, dtype=autocast_dtype)
        with as_original(model), torch.no_grad(), autocast:
            for place in range(0, len(shard), batch_size):
                batch = shard[place : place + batch_size]
                for ids, logps in zip(batch, _log_probs(base, first, batch, device), strict=True):
                    columns["input_ids"].append(first + ids)
                    columns["labels"].append([-100] * len(first) + ids)
                    columns["sampled_logps"].append([0.0] * len(first) + logps)
                    columns["finish"].append("length")
                    on_tokens(len(ids))
        return pa.table(columns, schema=SCHEMA)

    return score


def _log_probs(model: nn.Module, first: list[int], batch: list[list[int]], device: torch.device) -> list[list[float]]:
    """Log-probability of every token but the start's, a list a row."""
    ids = [torch.tensor(first + row) for row in batch]
    padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True).to(device)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in ids], batch_first=True).to(device)
    logits: Tensor = model(input_ids=padded, attention_mask=mask, use_cache=False).logits[:, len(first) - 1 : -1]
    logps = logits.float().log_softmax(dim=-1).gather(-1, padded[:, len(first) :, None])[..., 0]
    return [row_logps[: len(row)].tolist() for row_logps, row in zip(logps, batch, strict=True)]
