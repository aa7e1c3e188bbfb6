"""Randomised labels on their way to the Hub: no clean ones in the push, and a word in the card on what they cost."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

from hf_ext.guards.markdown import Markdown, code
from hf_ext.hub.tables import RowTable

__all__ = ["check_label_privacy", "check_label_privacy_of_files", "label_privacy_facts"]


def check_label_privacy(splits: Mapping[str, Dataset], public_columns: Sequence[str] = ()) -> None:
    """
    Refuse to push clean labels of rows whose labels are randomised, beside them or in another split.

    A column is taken for the clean label by its name (`label_true`, `gold`, ...), or because it goes with the noisy
    label as closely as only the true one does ([`~hf_ext.data.relabeling.clean_columns`]). Rows without a ledger that
    are the same rows, by id or by text, are looked at as if they stood beside the noisy label. Where no row has a
    ledger nothing is looked at.

    Args:
        splits (`Mapping[str, Dataset]`):
            Split to its rows.
        public_columns (`Sequence[str]`, *optional*):
            Columns that may stay, because they are public anyway.

    Raises:
        LabelLeakError: if a column gives labels away; the message names split, column, rows and what to do.
    """
    from hf_ext.hub.tables import table_of_rows

    _check([table_of_rows(f"split {name!r}", rows) for name, rows in splits.items()], public_columns)


def check_label_privacy_of_files(
    files: Mapping[str, Path] | Iterable[Path], public_columns: Sequence[str] = ()
) -> None:
    """
    [`check_label_privacy`] on all files of a push, of which those with rows are read: see [`~hf_ext.hub.tables`].

    Args:
        files (`Mapping[str, Path]`):
            Name in the push to the file.
        public_columns (`Sequence[str]`, *optional*):
            Columns that may stay, because they are public anyway.

    Raises:
        LabelLeakError: if a column gives labels away, or a file beside a ledger holds rows and cannot be read.
    """
    from hf_ext.hub.tables import UnreadableError, tables_in

    paths = files if isinstance(files, Mapping) else {path.name: path for path in files}
    tables: list[RowTable] = []
    closed: list[tuple[str, str]] = []
    for name, path in paths.items():
        try:
            tables += tables_in(name, path)
        except UnreadableError as error:
            closed.append((name, str(error)))
    _check(tables, public_columns, closed)


def _check(tables: list[RowTable], public_columns: Sequence[str], closed: Sequence[tuple[str, str]] = ()) -> None:
    from hf_ext.data.relabeling.ledger import has_ledger
    from hf_ext.hub.files import strings
    from hf_ext.hub.releases import Release, unreadable
    from hf_ext.hub.tables import UnreadableError, read_batches

    public = set(strings(public_columns, "public_columns"))
    closed = list(closed)
    heads: dict[int, pa.Table] = {}

    def has_randomised_rows(number: int) -> bool:
        # a schema says it without reading; of texts the first batch must be read
        columns = tables[number].columns
        if columns is None:
            columns = heads[number].column_names if read_head(number) else ()
        return has_ledger(columns)

    def read_head(number: int) -> bool:
        try:
            head = next(read_batches(tables[number]), None)
        except UnreadableError as error:
            closed.append((tables[number].name, str(error)))
            return False
        if head is not None:
            heads[number] = head
        return head is not None

    with_ledger = [number for number in range(len(tables)) if has_randomised_rows(number)]
    if not with_ledger:
        return
    # there is a ledger, so every table is looked into: a file that cannot be read is refused below
    for number in range(len(tables)):
        if number not in heads and tables[number].columns is not None:
            read_head(number)
    with_ledger = [number for number in with_ledger if number in heads]
    if closed:
        raise unreadable(*closed[0], tables[with_ledger[0]].name if with_ledger else "another file")
    released = Release(public)
    for number in with_ledger:
        released.add(tables[number], heads[number])
    released.finish()
    for number in heads:
        released.look_for_in(tables[number], number in with_ledger)


def label_privacy_facts(splits: Mapping[str, Dataset], public_columns: Sequence[str] = ()) -> list[tuple[str, str]]:
    """
    What a card says of randomised labels, name to value; empty where no row has a ledger.

    Args:
        splits (`Mapping[str, Dataset]`):
            Split to its rows.
        public_columns (`Sequence[str]`, *optional*):
            Columns that were said to be public.
    """
    from hf_ext.data.relabeling.ledger import CHANNEL, EPSILON
    from hf_ext.hub.files import strings

    public_columns = strings(public_columns, "public_columns")
    epsilons: list[float] = []
    channels: list[str] = []
    without = 0
    for rows in splits.values():
        plain = rows.with_format(None)
        row_epsilons = [float(x or 0.0) for x in plain[EPSILON]] if EPSILON in rows.column_names else [0.0] * len(rows)
        epsilons += [x for x in row_epsilons if x > 0]
        without += sum(x <= 0 for x in row_epsilons)
        channels += [str(name) for name in plain[CHANNEL] if name] if CHANNEL in rows.column_names else []
    if not epsilons and not channels:
        return []
    low, high = min(epsilons, default=0.0), max(epsilons, default=0.0)
    classes = sorted({int(part) for name in channels for part in re.findall(r"-(\d+)-", name)})
    facts = [
        ("epsilon", f"{high:.6g} nats" if low == high else f"{low:.6g} to {high:.6g} nats, by row"),
        ("unit", "the label of one row (all labels of its tokens, if it has several)"),
        ("classes", ", ".join(map(str, classes)) or "not said"),
        ("mechanism", "; ".join(sorted({_mechanism(name) for name in channels})) or "not said"),
        ("channels", Markdown(", ".join(map(code, sorted(set(channels)))))),
        ("rows with randomised labels", f"{len(epsilons):,}"),
    ]
    if without:
        facts.append(("rows whose labels are not randomised", f"{without:,}"))
    if public_columns:
        facts.append(("columns said to be public anyway", Markdown(", ".join(map(code, public_columns)))))
    return facts


def _mechanism(name: str) -> str:
    from hf_ext.data.relabeling.ledger import TRUE_LABEL

    channel, _, mode = name.partition("+")
    if channel == TRUE_LABEL:
        return "none: these are the true labels"
    kinds = {
        "rr-then-rr": "randomised response, twice in a row",
        "rr-prior": "randomised response over the classes that a public prior makes likely",
        "rr": "randomised response",
    }
    kind = next((text for prefix, text in kinds.items() if channel.startswith(prefix + "-")), "not said")
    return f"{kind}, then relabelled from a model's predictions ({mode})" if mode else kind
