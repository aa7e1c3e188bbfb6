"""What a curation depends on, in plain values: the manifest that says what may be kept of an earlier run."""

from __future__ import annotations

import dataclasses
import json
import os
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from hf_ext.data.curation.running import Reading
from hf_ext.data.curation.steps import Step

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FILE_NAME = "manifest.json"
FORMAT = 2  # of the chunks on the disk and of the counts in them


def key_of(*parts: object) -> str:
    """A short name for plain values, the same in every process."""
    return xxhash.xxh3_128(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:20]


def step_record(step: Step, name: str) -> dict[str, Any]:
    """
    What the output of a step depends on.

    Args:
        step ([`RowStep`] or [`SetStep`]):
            The step.
        name (`str`):
            As the drop ledger has it.

    Returns:
        `dict`, plain values for JSON: its class, every field with its revision, and the versions it names.
    """
    kind = f"{type(step).__module__}.{type(step).__qualname__}"
    fields = {field.name: _plain(getattr(step, field.name)) for field in dataclasses.fields(step)}
    return {"name": name, "class": kind, "fields": fields, "versions": dict(step.versions)}


def reading_record(reading: Reading) -> dict[str, Any]:
    """What the names and counts of documents depend on."""
    tokenizer = None if reading.tokenizer is None else tokenizer_key(reading.tokenizer)
    return {
        "format": FORMAT,
        "unicode": unicodedata.unidata_version,
        "id_column": reading.id_column,
        "source_column": reading.source_column,
        "text_column": reading.text_column,
        "tokenizer": tokenizer,
    }


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a folder, `None` where there is none or it is damaged: everything is then done again."""
    try:
        values = json.loads((folder / FILE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return values if isinstance(values, dict) else None


def tokenizer_key(tokenizer: PreTrainedTokenizerBase) -> str:
    """What decides how a tokenizer cuts texts, hashed."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    content = backend.to_str() if backend is not None else json.dumps(sorted(tokenizer.get_vocab().items()))
    return key_of(type(tokenizer).__name__, content)


def _plain(value: object) -> Any:
    """A field's value as JSON has it; of what JSON has not, a digest."""
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return [_plain(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted(map(str, value))
    if isinstance(value, np.ndarray):
        digest = xxhash.xxh3_128_hexdigest(np.ascontiguousarray(value).tobytes())
        return [str(value.dtype), list(value.shape), digest]
    fingerprint = getattr(value, "fingerprint", None)  # as a classifier or an index has
    if isinstance(fingerprint, str):
        return fingerprint
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {"class": type(value).__qualname__, **fields}
    from datasets.fingerprint import Hasher

    return Hasher.hash(value)
