"""What the original model says at every token of fixed rows, on disk: training then needs no forward of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hf_ext.data.original_cache import cache_file
from hf_ext.guards.disk import replacing, writing
from hf_ext.guards.inside import require_file

REVISION = "1"  # changes whenever the states would
SHARD_TOKENS = 65_536


class OriginalStates:
    """
    Tensors with a line a token, in shards `states-*.safetensors` of whole rows.

    Their names hold a hash of the facts they depend on: another model, precision or other rows get other files. A
    shard is written whole, so that a killed run goes on with those that are missing.

    Args:
        folder (`str` or `Path`):
            Where they lie; one folder may hold those of several models.
        facts (`dict`):
            Model hash, dtype, rows hash and what else they depend on.
        lengths (`Sequence[int]`):
            Tokens of each row.
        shard_tokens (`int`, *optional*):
            Tokens a shard, or those of one row where it is longer.
    """

    def __init__(
        self, folder: str | Path, facts: dict[str, Any], lengths: Sequence[int], shard_tokens: int = SHARD_TOKENS
    ) -> None:
        self.folder = Path(folder)
        self.facts = {**facts, "states_revision": REVISION, "shard_tokens": shard_tokens}
        self.lengths = np.asarray(lengths, dtype=np.int64)
        self._shard_tokens = shard_tokens
        self._readers: dict[int, Any] = {}

    @cached_property
    def shards(self) -> list[range]:
        """The rows of each shard."""
        borders = [0]
        tokens = 0
        for row, length in enumerate(self.lengths.tolist()):
            if row > borders[-1] and tokens + length > self._shard_tokens:
                borders.append(row)
                tokens = 0
            tokens += length
        return [range(*pair) for pair in zip(borders, [*borders[1:], len(self.lengths)], strict=True)]

    @cached_property
    def _name(self) -> str:
        return cache_file(self.folder, self.facts).stem

    def path(self, shard: int) -> Path:
        """The file of a shard."""
        return self.folder / f"states-{self._name}-{shard:05d}.safetensors"

    def missing(self) -> list[int]:
        """Shards that are not there yet."""
        return [shard for shard in range(len(self.shards)) if not self.path(shard).exists()]

    def write(self, shard: int, states: dict[str, Tensor]) -> None:
        """
        Write a shard.

        Args:
            shard (`int`):
                Its number.
            states (`dict[str, torch.Tensor]`):
                By name, each of shape `(tokens of its rows, ...)`.

        Raises:
            DiskFullError: if there is no room for it.
        """
        tensors = {name: values.contiguous().cpu() for name, values in states.items()}
        num_bytes = sum(values.nbytes for values in tensors.values())
        advice = "Free some space, or set original_cache_dir to another disk, and run again: it goes on from here."
        path = self.path(shard)
        with (
            writing("states of the original model", path, num_bytes=num_bytes, advice=advice),
            replacing(path) as temporary,
        ):
            save_file(tensors, temporary, metadata={"facts": json.dumps(self.facts, sort_keys=True)})

    def read(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """
        The states of rows, one row after the other.

        Args:
            rows (`Sequence[int]`):
                Their numbers, in any order.

        Returns:
            `dict[str, torch.Tensor]`: by name, each of shape `(tokens of these rows, ...)`.

        Raises:
            FileNotFoundError: if a shard is missing.
            ValueError: if a shard is damaged; the message says to delete it.
        """
        parts: dict[str, list[Tensor]] = {}
        starts = [rows_of_shard.start for rows_of_shard in self.shards]
        for row in rows:
            shard = int(np.searchsorted(starts, row, side="right")) - 1
            start = int(self.lengths[starts[shard] : row].sum())
            reader = self._reader(shard)
            for name in reader.keys():  # noqa: SIM118 - no mapping
                values = reader.get_slice(name)[start : start + int(self.lengths[row])]
                parts.setdefault(name, []).append(values)
        return {name: torch.cat(values) for name, values in parts.items()}

    def _reader(self, shard: int) -> Any:
        if shard not in self._readers:
            path = require_file(self.path(shard))
            tokens = int(self.lengths[self.shards[shard]].sum())
            try:
                reader = safe_open(path, framework="pt")
                shapes = [reader.get_slice(name).get_shape() for name in reader.keys()]  # noqa: SIM118
                if not shapes or any(shape[0] != tokens for shape in shapes):
                    raise ValueError(f"they are not of {tokens:,} tokens")
            except (SafetensorError, OSError, ValueError, IndexError) as error:
                raise ValueError(
                    f"The states of the original model in {path} are damaged ({error}). Delete the file and run "
                    "again: they are then computed again."
                ) from error
            self._readers[shard] = reader
        return self._readers[shard]
