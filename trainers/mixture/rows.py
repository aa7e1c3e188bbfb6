"""Rows of several sources as one dataset: drawn by a sampler, numbered through, none of them the target's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xxhash
from datasets import Dataset, concatenate_datasets
from torch.utils.data import Sampler

from hf_ext._columns import ROW_INDEX
from hf_ext._upstream.rows import unformatted
from hf_ext.bandits.mixture import SideObservationMixture


class MixtureSampler(Sampler[int]):
    """
    Positions of rows in the sources one after another, micro-batch by micro-batch as the mixture draws them.

    An epoch is as many rows as the sources have, filled up to whole optimiser steps.

    Args:
        mixture ([`SideObservationMixture`]):
            Laid out for the training; its `first_step` says with which step an iteration begins.
    """

    def __init__(self, mixture: SideObservationMixture) -> None:
        self.mixture = mixture
        self.offsets = np.cumsum([0, *mixture.sizes[:-1]])
        rows_per_step = mixture.rows_per_batch * mixture.batches_per_step
        self.steps_per_epoch = -(-sum(mixture.sizes) // rows_per_step)

    def __len__(self) -> int:
        return self.steps_per_epoch * self.mixture.batches_per_step * self.mixture.rows_per_batch

    def __iter__(self) -> Iterator[int]:
        batches = self.steps_per_epoch * self.mixture.batches_per_step
        # A resumed run skips what it has behind it: of an epoch that was begun everything is given once more.
        first = self.mixture.first_step // self.steps_per_epoch * batches
        for batch in range(first, first + batches):
            source, rows = self.mixture.rows_of(batch)
            yield from (rows + self.offsets[source]).tolist()


@dataclass(frozen=True)
class ShiftRowIndex:
    """
    Rows of a source numbered after those of the sources before it, so that a number names one row.

    | column in | type | column out | type |
    |---|---|---|---|
    | `__hf_ext_row__` | int, or list of int a token | `__hf_ext_row__` | the same, plus `offset` |
    """

    offset: int
    revision: str = "1"  # changes whenever the output would: datasets hashes this object, not the code behind it

    def __call__(self, batch: dict[str, list]) -> dict[str, list]:
        """Number the rows of one batch."""
        values = batch[ROW_INDEX]
        shift = self.offset
        return {ROW_INDEX: [(np.asarray(value) + shift).tolist() for value in values]}


def concatenated(sources: Mapping[str, Dataset]) -> Dataset:
    """
    Sources one after another.

    Raises:
        ValueError: if a column is of unlike types; the message names it, and two sources.
    """
    try:
        return concatenate_datasets(list(sources.values()))
    except ValueError as error:
        first, *_ = sources
        types = sources[first].features
        for name, rows in sources.items():
            for column, feature in rows.features.items():
                if column in types and feature != types[column]:
                    raise ValueError(
                        f"column {column!r} is {types[column]} in source {first!r} and {feature} in source {name!r}. "
                        "Make them alike, for instance with Dataset.cast_column, or remove the column."
                    ) from error
        raise


def joined(sources: Mapping[str, Dataset], raw_sizes: list[int]) -> Dataset:
    """
    Prepared sources one after another.

    Args:
        sources (`dict[str, Dataset]`):
            Prepared rows, which may be numbered in `__hf_ext_row__`.
        raw_sizes (`list[int]`):
            Rows of each as it was given.

    Raises:
        ValueError: if a column is of unlike types; the message names it, and two sources.
    """
    offsets = np.cumsum([0, *raw_sizes[:-1]]).tolist()
    numbered = {
        name: rows.map(ShiftRowIndex(offset), batched=True) if offset and ROW_INDEX in rows.column_names else rows
        for (name, rows), offset in zip(sources.items(), offsets, strict=True)
    }
    return concatenated(numbered)


def refuse_target_rows(sources: dict[str, Dataset], target: Dataset) -> None:
    """
    Refuse a target of which a row is trained on: it is to tell what helps with rows that are not.

    Raises:
        ValueError: if a row of the target is in a source; the message names both rows and says how many there are.
    """
    columns = sorted(target.column_names)
    places = {digest: row for row, digest in enumerate(_digests(target, columns))}
    for name, rows in sources.items():
        repeats = [(row, places[digest]) for row, digest in enumerate(_digests(rows, columns)) if digest in places]
        if repeats:
            row, target_row = repeats[0]
            raise ValueError(
                f"Row {target_row:,} of the target is row {row:,} of source {name!r}, and {len(repeats):,} rows of "
                "that source are in the target: it must be held out. Take them out of one of the two."
            )


def _digests(rows: Dataset, columns: list[str]) -> Iterator[int]:
    for batch in unformatted(rows).select_columns(columns).iter(batch_size=1000):
        values: Any = zip(*(batch[name] for name in columns), strict=True)
        for row in values:
            yield xxhash.xxh3_64_intdigest(repr(row).encode("utf-8", "surrogatepass"))
