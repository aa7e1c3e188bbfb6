"""Preference pairs as single labelled responses, for the unpaired trainers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict
from trl import extract_prompt

__all__ = ["PairsToUnpaired", "pairs_to_unpaired"]

AnyData = TypeVar("AnyData", Dataset, IterableDataset, DatasetDict, IterableDatasetDict)

PAIR_COLUMNS = ("chosen", "rejected")


@dataclass(frozen=True)
class PairsToUnpaired:
    """
    One pair becomes two rows: the chosen response labelled true, then the rejected one labelled false.

    | column in | type | column out | type |
    |---|---|---|---|
    | `chosen`, `rejected` | string, or list of messages | `completion` | as they were |
    | | | `label` | bool |
    | any other (`prompt`, `weight`, ...) | any | the same | repeated in both rows |

    A batched map changes the number of rows, so the columns it consumes must be removed:
    `dataset.map(PairsToUnpaired(), batched=True, remove_columns=["chosen", "rejected"])`. [`pairs_to_unpaired`] does
    that, and extracts prompts.

    Relations: the rows of [`~trl.unpair_preference_dataset`] in another order. There all chosen responses of a *map
    batch* come before its rejected ones, so that the order depends on `batch_size`; here the two rows of a pair stay
    together.
    """

    revision: str = "1"  # changes whenever the output would: datasets hashes this object, not the code behind it

    def __call__(self, batch: dict[str, Any]) -> dict[str, list]:
        """Two rows for every pair of one batch."""
        _require_pairs(batch.keys())
        pairs = zip(batch["chosen"], batch["rejected"], strict=True)
        rows: dict[str, list] = {"completion": [response for pair in pairs for response in pair]}
        rows["label"] = [True, False] * (len(rows["completion"]) // 2)
        for name, values in batch.items():
            if name not in PAIR_COLUMNS:
                rows[name] = [value for value in values for _ in range(2)]
        return rows


def pairs_to_unpaired(dataset: AnyData, num_proc: int | None = None) -> AnyData:
    """
    Turn preference pairs into TRL's unpaired preference type: `prompt`, `completion`, `label`.

    Args:
        dataset (`Dataset`, `IterableDataset` or a dict of them):
            Pairs with `chosen` and `rejected`, standard or conversational. Where there is no `prompt`, the shared
            beginning of the two responses becomes it, as [`~trl.extract_prompt`] does.
        num_proc (`int`, *optional*):
            Processes of `map`; not for streams.

    Returns:
        As given, with two rows a pair, the chosen one first; other columns are in both. Half of the rows are good: the
        unpaired trainer's `positive_fraction` is 0.5.

    Raises:
        ValueError: `chosen` or `rejected` is missing.

    Example:

    ```python
    >>> pairs = Dataset.from_dict({"prompt": ["2 + 2 ="], "chosen": [" 4"], "rejected": [" 5"]})
    >>> pairs_to_unpaired(pairs)[:]
    {'prompt': ['2 + 2 =', '2 + 2 ='], 'completion': [' 4', ' 5'], 'label': [True, False]}
    ```
    """
    processes = {} if num_proc is None else {"num_proc": num_proc}
    if "prompt" not in _columns(dataset):
        dataset = dataset.map(extract_prompt, **processes)
    return dataset.map(PairsToUnpaired(), batched=True, remove_columns=list(PAIR_COLUMNS), **processes)


def _columns(dataset: Any) -> list[str]:
    split = next(iter(dataset.values())) if isinstance(dataset, dict) else dataset
    names = split.column_names or list(next(iter(split), {}))
    _require_pairs(names)
    return names


def _require_pairs(names: Iterable[str]) -> None:
    for name in PAIR_COLUMNS:
        if name not in names:
            raise ValueError(f"column {name!r} is missing; the rows have {list(names)}. Pairs need {PAIR_COLUMNS}.")
