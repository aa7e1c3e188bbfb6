"""Whole datasets: randomise their labels with every check, hash ids, carry a ledger over to true labels."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import ClassLabel, Dataset, DatasetDict, IterableDataset

from hf_ext.data.relabeling.columns import ClassColumn, class_column, row_error
from hf_ext.data.relabeling.keys import KeyRef, check_key
from hf_ext.data.relabeling.leaks import refuse_leaks
from hf_ext.data.relabeling.ledger import CHANNEL, EPSILON, NOTHING_SPENT, TRUE_LABEL, has_ledger, rounded_up
from hf_ext.data.relabeling.ledger import spent as spent_before
from hf_ext.data.relabeling.randomize import _IDS, RandomizedResponse
from hf_ext.data.relabeling.releases import RECORD_ENV, record_of, release_of
from hf_ext.data.relabeling.views import SHORT_BYTES
from hf_ext.data.splits import with_split
from hf_ext.guards.row_text import describe, plain

logger = logging.getLogger(__name__)

_RECORD = f"Without one a second release is not noticed: use KeyRef(file=...), or set {RECORD_ENV} to a file."
SAMPLE = 20_000  # rows that are enough to see whether a column gives the label away


def privatize(
    dataset: Dataset | DatasetDict | IterableDataset,
    mechanism: RandomizedResponse,
    *,
    split: str = "train",
    num_proc: int | None = None,
) -> Any:
    """
    Randomise the labels of a dataset, once, with every check that a single batch cannot make.

    | column in | type | column out | type |
    |---|---|---|---|
    | `label`, `id_column`, ... | see [`RandomizedResponse`] | `label` | noisy, of the same feature |
    | | | `label_dp_epsilon`, `label_dp_channel` | the ledger |

    Args:
        dataset (`Dataset`, `DatasetDict` or `IterableDataset`):
            Rows. Of a `DatasetDict` only `split` is randomised; the ledger of the others says that nothing was spent.
            Of a stream every batch is checked on its own, which cannot see an id that comes twice.
        mechanism ([`RandomizedResponse`]):
            Noise, key and columns.
        split (`str`, *optional*, defaults to `"train"`):
            Split of a `DatasetDict`; use another salt for a second one with the same ids.
        num_proc (`int`, *optional*):
            Processes of `map`; the result does not depend on it.

    Every release is entered into the record beside the key's file (`<file>.releases.jsonl`, or the file that
    `HF_EXT_LABEL_RECORD` names), two processes one after the other. The same release again is the same labels, and
    costs nothing. Streams and plain `map` are not recorded.

    Returns:
        The dataset with noisy labels. The true ones stay in the rows that were given, and in their cache: keep those.

    Raises:
        RowError: if a label lies outside 0..K-1, or an id is missing or not unique.
        ValueError: if the mechanism has more classes than the label column's `ClassLabel`, or the record is damaged or
            cannot be written.
        LabelLeakError: if another column gives the label away.
        PrivacyBudgetError: if the labels are randomised already; if the record holds another release of them, and the
            mechanism does not say `compose`; or if it holds other labels under the same ids and the same noise.
        TypeError: if it is no dataset.
    """
    if isinstance(dataset, DatasetDict):
        if split not in dataset:
            raise ValueError(f"no split {split!r}; there are {list(dataset)}.")
        noisy_rows = privatize(dataset[split], mechanism, num_proc=num_proc)
        return with_split(dataset, split, noisy_rows, NOTHING_SPENT)
    if isinstance(dataset, IterableDataset):
        mechanism.check_features(dataset.features)
        logger.warning("No record is kept of what is drawn from a stream. %s", _RECORD)
        return dataset.map(mechanism, batched=True)
    if not isinstance(dataset, Dataset):
        raise TypeError(f"privatize needs a Dataset, IterableDataset or DatasetDict, got {type(dataset).__name__}.")
    batch, classes = _check_rows(dataset, mechanism)
    if mechanism.after is not None:  # made from noisy labels: nothing is spent
        return _mapped(dataset, mechanism, num_proc)
    with record_of(mechanism.key) as record:
        if record is None:
            logger.warning("No record is kept of this release, whose key is in an environment variable. %s", _RECORD)
            return _mapped(dataset, mechanism, num_proc)
        likely = None if mechanism.prior_column is None else _likely(dataset, mechanism)
        release = release_of(mechanism, list(mechanism.messages(batch, classes)), classes, likely)
        spent_in_record = record.check(release)
        if spent_in_record.any() and mechanism.compose:
            dataset = _with_recorded(dataset, classes.sums(spent_in_record))
        noisy_rows = _mapped(dataset, mechanism, num_proc)
        record.enter(release)  # before anybody sees the labels
    return noisy_rows


def _mapped(dataset: Dataset, mechanism: RandomizedResponse, num_proc: int | None) -> Dataset:
    decoded = {name: f for name, f in dataset.features.items() if getattr(f, "decode", False)}
    for name, feature in decoded.items():  # a map that looks through the columns would decode every picture
        dataset = dataset.cast_column(name, dataclasses.replace(feature, decode=False))
    noisy_rows = dataset.map(mechanism, batched=True, num_proc=num_proc, desc="Randomising labels")
    for name, feature in decoded.items():
        noisy_rows = noisy_rows.cast_column(name, feature)
    return noisy_rows


def _likely(dataset: Dataset, mechanism: RandomizedResponse) -> Iterator[bytes]:
    """The classes that the prior of each label lets through, a batch in memory at a time."""
    columns = [name for name in (mechanism.label, mechanism.prior_column) if name in dataset.column_names]
    for batch in dataset.with_format(None).select_columns(columns).iter(batch_size=1000):
        likely = mechanism.likely(batch, class_column(batch, mechanism.label, mechanism.num_classes))
        assert likely is not None
        yield from likely.encoded()


def _with_recorded(dataset: Dataset, spent_in_record: np.ndarray) -> Dataset:
    """Rows whose ledger says at least what the record does."""
    stated, channels = spent_before(_ledger(dataset), len(dataset))
    if (stated >= spent_in_record * (1 - 1e-6)).all():
        return dataset
    values = np.maximum(stated, spent_in_record)
    names = [name or (TRUE_LABEL if value > 0 else "") for name, value in zip(channels, values, strict=True)]
    return _with_ledger(dataset, values, names)


def _ledger(rows: Dataset) -> dict[str, list[Any]]:
    return {name: rows.with_format(None)[name][:] for name in (EPSILON, CHANNEL) if name in rows.column_names}


def _with_ledger(dataset: Dataset, values: np.ndarray, channels: list[str]) -> Dataset:
    rows = dataset.remove_columns([name for name in (EPSILON, CHANNEL) if name in dataset.column_names])
    return rows.add_column(EPSILON, rounded_up(values)).add_column(CHANNEL, channels)


def _check_rows(dataset: Dataset, mechanism: RandomizedResponse) -> tuple[dict[str, Any], ClassColumn]:
    """What a single batch does not show; returns the ids with the labels, and the labels as classes."""
    rows = dataset.with_format(None)
    for name, content in ((mechanism.label, "labels"), (mechanism.id_column, "ids, to which the noise is tied")):
        if name not in rows.column_names:
            raise ValueError(f"no column {name!r} with the {content}; the rows have {rows.column_names}. {_IDS}")
    mechanism.check_features(rows.features)
    batch = {mechanism.id_column: rows[mechanism.id_column][:], mechanism.label: rows[mechanism.label][:]}
    classes = class_column(batch, mechanism.label, mechanism.num_classes)
    if not mechanism.compose:
        mechanism.ledger_after(batch | _ledger(rows), classes, len(rows))
    mechanism.messages(batch, classes)
    if classes.lengths is None:
        public = (*mechanism.public_columns, EPSILON, CHANNEL, *filter(None, [mechanism.prior_column]))
        chosen = sample_of(len(rows))
        columns = arrow_columns(rows, chosen, without=(mechanism.label, *public))
        names = class_names(rows, mechanism.label)
        refuse_leaks(columns, mechanism.label, labels=classes.flat[chosen], names=names, public=public)
        _warn_of_order(classes.flat)
    return batch, classes


def _warn_of_order(labels: np.ndarray) -> None:
    if len(labels) < 100:
        return
    share = np.bincount(labels) / len(labels)
    chance = float((share**2).sum())
    share_alike = float((labels[1:] == labels[:-1]).mean())
    if chance < 0.9 and share_alike > chance + 0.9 * (1 - chance):
        logger.warning(
            "%.0f %% of the rows have the label of the row before: the order of the rows gives the labels away. "
            "Shuffle them before anyone sees them: dataset.shuffle(seed=...).",
            100 * share_alike,
        )


def sample_of(rows: int) -> np.ndarray:
    """Indices of at most `SAMPLE` rows, spread at random, the same ones every time."""
    if rows <= SAMPLE:
        return np.arange(rows)
    return np.sort(np.random.default_rng(0).choice(rows, SAMPLE, replace=False))


def class_names(rows: Dataset, label: str) -> list[str] | None:
    """Names of a `ClassLabel`, if the column is one."""
    feature = rows.features.get(label)
    return list(feature.names) if isinstance(feature, ClassLabel) else None


def arrow_columns(rows: Dataset, chosen: np.ndarray, without: tuple[str, ...] = ()) -> dict[str, list[Any]]:
    """
    Columns as stored, without decoding pictures or sound: numbers, texts, lists; the fields of a struct by path.

    Long bytes are left out: a picture that comes twice is a feature.
    """
    names = [name for name in rows.column_names if name not in without]
    if not names:
        return {}
    table = rows.select_columns(names).with_format("arrow")[chosen.tolist()]
    values_of: dict[str, list[Any]] = {}
    for name in names:
        column = table.column(name)
        for path, part in flattened(name, column):
            values_of[path] = part.to_pylist()
    return values_of


def flattened(name: str, column: pa.ChunkedArray) -> list[tuple[str, Any]]:
    """A column, or those of a struct's fields by path; without pictures and sound."""
    kind = column.type.storage_type if isinstance(column.type, pa.ExtensionType) else column.type
    if isinstance(column.type, pa.ExtensionType):
        column = pa.chunked_array([chunk.storage for chunk in column.chunks], type=kind)
    if pa.types.is_struct(kind):
        parts = zip(kind, column.flatten(), strict=True)
        return [part for field, part in parts for part in flattened(f"{name}.{field.name}", part)]
    if pa.types.is_null(kind):
        return []
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        longest = pc.max(pc.binary_length(column)).as_py() or 0
        return [] if longest > SHORT_BYTES else [(name, column)]
    return [(name, column)]


@dataclass(frozen=True)
class HashColumn:
    """
    Replace a column's values by keyed hashes, 32 hexadecimal digits each: ids that no longer tell the class.

    | column in | type | column out | type |
    |---|---|---|---|
    | `column` | str or int | `column` | str |

    Equal values stay equal. Without the key a hash cannot be tried out on guesses, as a plain one can.

    Args:
        column (`str`):
            The column.
        key ([`KeyRef`]):
            Where the key is. It may be the one of the noise: the hashes are independent of it.

    Raises:
        RowError: if a value is neither text nor integer.
        ValueError: if there is no such column, or no key.
    """

    column: str
    key: KeyRef
    revision: str = "1"  # changes whenever the output would: datasets hashes this object, not the code behind it

    def __post_init__(self) -> None:
        check_key(self.key)

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[str]]:
        """Hashes of one batch."""
        if self.column not in batch:
            raise ValueError(f"no column {self.column!r}; the rows have {', '.join(map(repr, batch))}.")
        start = hashlib.blake2b(key=self.key.read(), digest_size=16, person=b"hf-ext id hash")
        hashes = []
        for i, value in enumerate(batch[self.column]):
            value = plain(value)
            if isinstance(value, bool) or not isinstance(value, str | int):
                problem = f"expected a text or an integer, found {describe(value)}"
                raise row_error(batch, i, self.column, problem, "Fill it, or drop the row with dataset.filter.")
            state = start.copy()
            state.update(str(value).encode())
            hashes.append(state.hexdigest())
        return {self.column: hashes}


def carry_ledger(private: Dataset, released: Dataset, id_column: str = "id", *, add: bool = False) -> Dataset:
    """
    Write what a release has spent beside the true labels, for a second draw with `compose=True`.

    Args:
        private (`Dataset`):
            Rows with true labels.
        released (`Dataset`):
            Rows that were released, with a ledger. Of releases made one from another with `compose=True` the last,
            whose ledger holds the sum.
        id_column (`str`, *optional*, defaults to `"id"`):
            The same in both.
        add (`bool`, *optional*, defaults to `False`):
            Add to a ledger that the private rows have already: for a second release that was made without it.

    Returns:
        `Dataset`: the private rows; `label_dp_epsilon` is that of the release (0 for rows that were not in it), and
        `label_dp_channel` says that the label is the true one.

    Raises:
        ValueError: if `released` has no ledger, there are no ids, or `private` has a ledger and `add` is not set.
    """
    for name, rows, kind in ((id_column, private, "private"), (id_column, released, "released")):
        if name not in rows.column_names:
            raise ValueError(f"the {kind} rows have no column {name!r}; they have {rows.column_names}.")
    if not {EPSILON, CHANNEL} <= set(released.column_names):
        raise ValueError(f"the released rows have no ledger ({EPSILON!r}, {CHANNEL!r}): nothing was spent on them.")
    rows = released.with_format(None)
    epsilon_of = dict(zip(map(str, rows[id_column]), (x or 0.0 for x in rows[EPSILON]), strict=True))
    values = np.array([epsilon_of.get(str(i), 0.0) for i in private.with_format(None)[id_column]], dtype=np.float64)
    if has_ledger(private.column_names):
        if not add:
            raise ValueError(
                "the private rows have a ledger already. If the release was made from them with compose=True, its own "
                "ledger holds the sum: carry it to rows without one. If it was made apart, pass add=True."
            )
        values += spent_before(_ledger(private), len(private))[0]
    return _with_ledger(private, values, [TRUE_LABEL if value > 0 else "" for value in values])
