"""Rows on their way into a host's preparation, whichever host it is. Touches no private name."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from datasets import Dataset, IterableDataset

from hf_ext._columns import NO_ROW

if TYPE_CHECKING:
    from trl import DPOConfig, KTOConfig, SFTConfig

AnyDataset: TypeAlias = Dataset | IterableDataset
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


__all__ = ["AnyDataset", "expecting_a_row", "tokenise_only", "unformatted"]
