"""Rows on their way into a host's preparation, whichever host it is. Touches no private name."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import torch
from datasets import Dataset, IterableDataset

from hf_ext._columns import NO_ROW

if TYPE_CHECKING:
    from trl import DPOConfig, KTOConfig, SFTConfig

AnyDataset: TypeAlias = Dataset | IterableDataset
AnyDatasets: TypeAlias = AnyDataset | dict[str, AnyDataset]
Config = TypeVar("Config", bound="SFTConfig | DPOConfig | KTOConfig")


@contextmanager
def expecting_a_row() -> Iterator[None]:
    """Inside, the host looks into a data set, and meets a StopIteration where a stream has nothing to show."""
    try:
        yield
    except StopIteration as error:
        raise ValueError(NO_ROW) from error


def unformatted(dataset: AnyDataset) -> AnyDataset:
    """The rows as plain Python values: a `with_format("torch")` would turn lists into tensors on the way."""
    if isinstance(dataset, Dataset):
        return dataset if dataset.format["type"] in (None, "custom") else dataset.with_format(None)
    return dataset.with_format(None)


def tokenise_only(args: Config) -> Config:
    """A copy of `args` under which TRL tokenises and labels rows, but neither truncates, filters nor shuffles."""
    neutral = copy.copy(args)
    neutral.max_length = None
    neutral.shuffle_dataset = False
    return neutral


@dataclass
class CarriesColumns:
    """
    A collator around another that knows nothing of some numeric columns: they are taken out, stacked, and put beside.

    Args:
        collator (`Callable`):
            The host's, or the user's own.
        columns (`tuple[str, ...]`):
            One number a row each.
    """

    collator: Callable[[list[dict[str, Any]]], dict[str, Any]]
    columns: tuple[str, ...]

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Collate rows; a column that they do not have is left out."""
        values = {name: torch.as_tensor([row[name] for row in rows]) for name in self.columns if name in rows[0]}
        host_rows = [{name: value for name, value in row.items() if name not in self.columns} for row in rows]
        return {**self.collator(host_rows), **values}


__all__ = ["AnyDataset", "AnyDatasets", "CarriesColumns", "expecting_a_row", "tokenise_only", "unformatted"]
