"""The randomised rows of a push, and what else in it may say what their labels were."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hf_ext.data.relabeling.clean_columns import NoisyLabels, find_clean_columns
from hf_ext.data.relabeling.columns import IGNORED_LABEL
from hf_ext.data.relabeling.leaks import LabelLeakError, Leak
from hf_ext.data.relabeling.ledger import CHANNEL, EPSILON, TRUE_LABEL
from hf_ext.guards.row_text import shorten
from hf_ext.hub.same_rows import Ledger, SameRows, Sample, Tally, key_columns, ledger_mask, numbers_of
from hf_ext.hub.tables import RowTable, read_batches
from hf_ext.hub.text_tables import MARKED_UP

__all__ = ["Release", "unreadable"]

LABEL_NAMES = ("label", "labels", "y", "target", "class", "tag", "tags", "ner_tags", "intent")
_CLASSES = re.compile(r"-(\d+)-")


class Release:
    """The randomised rows of a push, table by table; then every table is held against them."""

    def __init__(self, public: set[str]) -> None:

        self.public = public
        self.ledger = Ledger()
        self.label: str | None = None
        self.names: Sequence[str] | None = None
        self.codes: dict[str, int] = {}  # of labels that are texts
        self.num_classes = 0
        self.has_prior = False
        self.places: dict[str, tuple[int, int]] = {}  # table to its first row and how many, where all are randomised
        self.name = ""
        self.same_rows: SameRows | None = None

    def add(self, table: RowTable, head: pa.Table) -> None:
        """
        Read the rows with a ledger, and refuse columns beside their labels.

        Raises:
            LabelLeakError: if a column gives the true label away.
        """

        label = _label_column(head, table, _num_classes(head))
        if label is not None:
            self.label = self.label or label
            self.names = self.names or _class_names(table, label)
        keys = key_columns(head, without=tuple(filter(None, [label, EPSILON, CHANNEL])))
        sample = Sample()
        rows = 0
        first = self.ledger.size
        for batch in read_batches(table):
            self._refuse_true_labels(table, batch, label)
            chosen = batch.filter(ledger_mask(batch))
            sample.add(chosen, np.arange(self.ledger.size, self.ledger.size + len(chosen)))
            labels, contrasts = self._labels_of(chosen, label)
            self.ledger.add(chosen, labels, contrasts, [key for key in keys if key in chosen.column_names])
            rows += len(batch)
        # only a table that is randomised as a whole can be compared line by line
        if self.ledger.size - first == rows:
            self.places[table.name] = (first, rows)
        if sample.size:
            self.name = self.name or table.name
            self._refuse_columns_beside(table, sample.table(), label)

    def _refuse_true_labels(self, table: RowTable, batch: pa.Table, label: str | None) -> None:

        if label is None or label in self.public or CHANNEL not in batch.column_names:
            return
        if TRUE_LABEL in batch.column(CHANNEL).to_pylist():
            raise _refusal(
                table.name, label, f"the ledger says {TRUE_LABEL!r}: these labels are not randomised", [label]
            )

    def _labels_of(self, rows: pa.Table, label: str | None) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Class of each row, below 0 where nobody knows or a row has several, and `p - q`, NaN where nobody knows."""
        contrasts = np.full(len(rows), np.nan)
        if label is None or label not in rows.column_names:
            return np.full(len(rows), -1, dtype=np.int64), contrasts
        column = rows.column(label)
        channels = [str(x) for x in rows.column(CHANNEL).to_pylist()] if CHANNEL in rows.column_names else None
        labels = self._codes_of(column)
        if EPSILON not in rows.column_names or _is_list(column):
            return labels, contrasts
        classes = _num_classes(rows) or len(self.names or ()) or int(labels.max(initial=1)) + 1
        self.num_classes = max(self.num_classes, classes)
        # randomised response: p - q = (1 - exp(-epsilon)) / (1 + (K - 1) exp(-epsilon)); beyond 700 exp is 0
        decay = np.exp(-np.minimum(numbers_of(rows.column(EPSILON), 0.0), 700.0))
        contrasts = (1 - decay) / (1 + (classes - 1) * decay)
        if channels is not None:
            self.has_prior |= any(channel.startswith("rr-prior") for channel in channels)
            # Labels made from predictions do not come out of the channel any more.
            contrasts[np.array(["+" in channel for channel in channels], dtype=bool)] = np.nan
        return labels, contrasts

    def _codes_of(self, column: pa.ChunkedArray) -> NDArray[np.int64]:

        if _is_list(column):  # below 0, and how many they are
            return np.array([-1 - len(value or ()) for value in column.to_pylist()], dtype=np.int64)
        numbers = numbers_of(column, np.nan)
        if np.isfinite(numbers).all():
            return numbers.astype(np.int64)
        texts = ["" if value is None else str(value) for value in column.to_pylist()]
        codes = np.array([self.codes.setdefault(text, len(self.codes)) for text in texts], dtype=np.int64)
        self.names = list(self.codes)
        return codes

    def _refuse_columns_beside(self, table: RowTable, rows: pa.Table, label: str | None) -> None:

        others = [name for name in rows.column_names if name not in (label, EPSILON, CHANNEL)]
        if label is not None and label in rows.column_names and _is_list(rows.column(label)):
            columns, noisy = self._tokens(rows, label, others)
        else:
            labels, contrasts = self._labels_of(rows, label)
            columns = {name: rows.column(name).to_pylist() for name in others}
            columns, noisy = self._known(columns, labels, contrasts)
        leaks = find_clean_columns(columns, noisy, public=self.public, label=label)
        if leaks:
            raise _refusal(
                table.name, leaks[0].column, leaks[0].how, list(dict.fromkeys(leak.column for leak in leaks))
            )

    def _known(
        self, columns: dict[str, list[Any]], labels: NDArray[np.int64], contrasts: NDArray[np.float64]
    ) -> tuple[dict[str, list[Any]], NoisyLabels | None]:
        """Rows whose label and channel are known, or all of them and no labels."""
        usable_rows = np.flatnonzero((labels >= 0) & np.isfinite(contrasts) & (contrasts > 0))
        if not len(usable_rows):
            return columns, None
        columns = {name: [values[i] for i in usable_rows.tolist()] for name, values in columns.items()}
        noisy = NoisyLabels(labels[usable_rows], contrasts[usable_rows], self.num_classes, self.names, self.has_prior)
        return columns, noisy

    def _tokens(
        self, rows: pa.Table, label: str, others: list[str]
    ) -> tuple[dict[str, list[Any]], NoisyLabels | None]:
        """The same for labels of tokens: columns with as many entries in every row, one after another."""
        labels = [value or [] for value in rows.column(label).to_pylist()]
        flat = np.array([entry for value in labels for entry in value], dtype=np.int64)
        columns: dict[str, list[Any]] = {}
        for name in others:
            values = rows.column(name).to_pylist()
            lengths_agree = all(
                isinstance(v, list) and len(v) == len(tags) for v, tags in zip(values, labels, strict=True)
            )
            columns[name] = [entry for value in values for entry in value] if lengths_agree else [None] * len(flat)
        classes = _num_classes(rows) or int(flat.max(initial=1)) + 1
        self.num_classes = max(self.num_classes, classes)
        # the ledger has the budget of a whole row: each of its labels got an equal part
        counts = np.array([sum(entry != IGNORED_LABEL for entry in value) for value in labels])
        row_epsilons = numbers_of(rows.column(EPSILON), 0.0) if EPSILON in rows.column_names else np.zeros(len(rows))
        decay = np.exp(-np.minimum(row_epsilons / np.maximum(counts, 1), 700.0))
        contrast = np.repeat((1 - decay) / (1 + (classes - 1) * decay), [len(value) for value in labels])
        usable_tokens = np.flatnonzero((flat >= 0) & (contrast > 0))
        if not len(usable_tokens):
            return columns, None
        columns = {name: [values[i] for i in usable_tokens.tolist()] for name, values in columns.items()}
        return columns, NoisyLabels(flat[usable_tokens], contrast[usable_tokens], classes, self.names, self.has_prior)

    def finish(self) -> None:
        """Sort the ledger, so that rows can be looked up in it."""
        self.same_rows = self.ledger.finish()

    def look_for_in(self, table: RowTable, has_ledger: bool) -> None:
        """
        Refuse a table that holds randomised rows without their ledger together with what may be their true label.

        Raises:
            LabelLeakError: if it does.
        """

        assert self.same_rows is not None
        tally = Tally()
        matched = Sample()
        in_order = Sample()
        rows = 0
        for batch in read_batches(table):
            if has_ledger:
                batch = batch.filter(~ledger_mask(batch))
            row = self.same_rows.look_up(batch, tally)
            hit = row >= 0
            matched.add(batch.filter(hit), row[hit])
            in_order.add(batch, np.arange(rows, rows + len(batch)))
            rows += len(batch)
        if tally.is_the_same(self.ledger.size, table.is_text):
            columns, noisy, _ = self._joined(matched.table(), matched.all_numbers())
            leaks = find_clean_columns(columns, noisy, public=self.public, label=self.label, position="elsewhere")
            leaks += [] if leaks else self._tokens_elsewhere(matched.table(), matched.all_numbers())
            if leaks:
                raise self._same_rows_elsewhere(table, leaks, tally, matched.table(), matched.all_numbers())
            if table.is_text and Path(table.name).suffix.lower() in MARKED_UP:
                raise unreadable(
                    table.name, "their ids stand in it, and its rows may go over several lines", self.name
                )
        elif in_order.size and not has_ledger:
            self._refuse_in_order(table, in_order, rows)

    def _joined(
        self, rows: pa.Table, numbers: NDArray[np.int64]
    ) -> tuple[dict[str, list[Any]], NoisyLabels | None, NDArray[np.int64]]:
        assert self.same_rows is not None
        columns = {name: rows.column(name).to_pylist() for name in rows.column_names}
        return (*self._known(columns, self.same_rows.labels[numbers], self.same_rows.contrasts[numbers]), numbers)

    def _tokens_elsewhere(self, rows: pa.Table, numbers: NDArray[np.int64]) -> list[Leak]:
        """Columns with one class number for each labelled token of rows whose tokens' labels are randomised."""
        assert self.same_rows is not None
        counts = (-1 - self.same_rows.labels[numbers]).tolist()
        leaks = []
        for name in rows.column_names:
            values = rows.column(name).to_pylist() if _is_list(rows.column(name)) else []
            classes = {IGNORED_LABEL, *range(self.num_classes)}
            if name not in self.public and any(counts) and self.num_classes and len(values) == len(counts):
                pairs = zip(values, counts, strict=True)
                if all(count == len(value or ()) and classes.issuperset(value or ()) for value, count in pairs):
                    leaks.append(Leak(name, "it holds a class number for each token", shorten(values[0])))
        return leaks

    def _refuse_in_order(self, table: RowTable, sample: Sample, rows: int) -> None:
        """Rows without any id, but as many as a table with a ledger has: line by line they may be the same."""
        for name, (first, count) in self.places.items():
            # a text may have a line of names on top, which is read as a row
            header = rows - count
            if header not in (0, 1):
                continue
            numbers = sample.all_numbers() - header
            chosen = np.flatnonzero(numbers >= 0)
            columns, noisy, _ = self._joined(sample.table().take(chosen), first + numbers[chosen])
            leaks = find_clean_columns(columns, noisy, public=self.public, position="in order") if noisy else []
            if leaks:
                reason = f"in the order of {name}, it {leaks[0].how}"
                raise _refusal(table.name, leaks[0].column, reason, [leaks[0].column])

    def _same_rows_elsewhere(
        self, table: RowTable, leaks: list[Leak], tally: Tally, rows: pa.Table, numbers: NDArray[np.int64]
    ) -> LabelLeakError:

        assert self.same_rows is not None
        key = self.same_rows.key_of(rows, numbers)
        values = rows.column(key).slice(0, 3).to_pylist() if key else []
        examples = f", such as {', '.join(shorten(value, 40) for value in values)}," if values else ""
        count = tally.ids + tally.same_texts
        every = ", ".join(repr(leak.column) for leak in leaks)
        ways = (
            f"Drop the column ({every}), these rows or the split"
            if table.name.startswith("split ")
            else f"Leave the file out with ignore=[{table.name!r}] or move it elsewhere"
        )
        return LabelLeakError(
            f"{table.name}, column {leaks[0].column!r}: {leaks[0].how}. {count:,} of its rows{examples} have no "
            f"ledger there, but their labels are randomised in {self.name}: pushing both gives the true ones away.\n"
            f"  {ways}. If the column is public anyway, pass public_columns=[{every}]; labels that were made from the "
            "noisy ones keep their ledger, the columns label_dp_epsilon and label_dp_channel.",
            leaks[0].column,
        )


def _refusal(table: str, column: str, reason: str, columns: list[str]) -> LabelLeakError:

    every = ", ".join(map(repr, columns))
    return LabelLeakError(
        f"{table}, column {column!r}: {reason}. The labels of these rows are randomised, and pushing it "
        "would give the true ones away.\n"
        f"  Drop it with dataset.remove_columns([{every}]), hash ids with HashColumn, or, if it is public "
        f"anyway or a prediction made from the noisy labels alone, pass public_columns=[{every}].",
        column,
    )


def unreadable(name: str, problem: str, ledger: str) -> LabelLeakError:
    """The error for a file beside a ledger that cannot be read."""
    return LabelLeakError(
        f"{name} may hold the true labels of rows that are randomised in {ledger}, and cannot be looked into: "
        f"{problem}.\n"
        f"  Leave it out with ignore=[{name!r}], or write its rows as Parquet, CSV or JSON lines.",
        name,
    )


def _num_classes(rows: pa.Table) -> int:
    """K, as the names of the channels say; 0 where they do not or do not agree."""
    if CHANNEL not in rows.column_names:
        return 0
    channels = {str(name) for name in rows.column(CHANNEL).unique().to_pylist() if name}
    classes = {int(part) for name in channels for part in _CLASSES.findall(name)[:1]}
    return classes.pop() if len(classes) == 1 else 0


def _is_list(column: pa.ChunkedArray) -> bool:
    return any(test(column.type) for test in (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list))


def _label_column(head: pa.Table, table: RowTable, num_classes: int) -> str | None:
    """The column of the noisy labels: by name, as the only `ClassLabel`, or the first with class numbers."""
    from datasets import ClassLabel

    if "label" in head.column_names:
        return "label"
    classes = [name for name, feature in (table.features or {}).items() if isinstance(feature, ClassLabel)]
    if len(classes) == 1 and classes[0] in head.column_names:
        return classes[0]
    label_name = next((name for name in LABEL_NAMES if name in head.column_names), None)
    if label_name is not None or not num_classes:
        return label_name
    return next((name for name in head.column_names if _holds_classes(head.column(name), num_classes)), None)


def _holds_classes(column: pa.ChunkedArray, num_classes: int) -> bool:

    if _is_list(column):
        return False
    numbers = numbers_of(column, np.nan)
    is_whole = bool(np.isfinite(numbers).all()) and bool((numbers == np.rint(numbers)).all())
    return is_whole and numbers.min() >= 0 and num_classes / 2 <= numbers.max() < num_classes


def _class_names(table: RowTable, label: str) -> list[str] | None:
    from datasets import ClassLabel

    feature = (table.features or {}).get(label)
    feature = getattr(feature, "feature", feature)
    return list(feature.names) if isinstance(feature, ClassLabel) else None
