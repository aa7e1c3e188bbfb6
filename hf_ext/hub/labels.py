"""Randomised labels on their way to the Hub: no clean ones beside them, and a word in the card on what they cost."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["check_label_privacy", "check_label_privacy_of_files", "label_privacy_facts"]

# A column of such a name beside a ledger is taken for the clean label, whatever it holds.
_CLEAN = re.compile(
    r"((true|clean|gold|golden|real|original|orig|correct)_?(labels?|class|classes|tags?|target|y))"
    r"|((labels?|class|classes|tags?|target|y)_?(true|clean|gold|golden|real|original|orig|correct))"
    r"|gold|ground_?truth|unnoised_labels?"
)
# Made from the noisy labels and the features alone: post-processing may agree with the truth as well as it can.
_POST_PROCESSED = ("pred", "probs", "label_probs", "pred_is_out_of_fold", "weight", "fold", "prune_rank", "row_index")
CLEAN_SHARE = 0.9  # of the association that a clean label has with its noisy copy


def check_label_privacy(splits: Mapping[str, Dataset], public_columns: Sequence[str] = ()) -> None:
    """
    Refuse to push clean labels beside randomised ones.

    A column is taken for the clean label by its name (`label_true`, `gold`, ...), or because it goes with the noisy
    label as closely as only the true one does: among rows with the same value, two noisy labels are equal as often as
    the channel allows at most. Rows without a ledger are not looked at.

    Args:
        splits (`Mapping[str, Dataset]`):
            Split to its rows.
        public_columns (`Sequence[str]`, *optional*):
            Columns that may stay, because they are public anyway.

    Raises:
        LabelLeakError: naming split, column and what to do.
    """
    from hf_ext.data.relabeling.leaks import LabelLeakError
    from hf_ext.data.relabeling.ledger import has_ledger

    for split, rows in splits.items():
        if not has_ledger(rows.column_names):
            continue
        found = _clean_columns(rows, set(public_columns))
        if found:
            column, how = found[0]
            every = ", ".join(repr(name) for name, _ in found)
            raise LabelLeakError(
                f"split {split!r}, column {column!r}: {how}. The labels of these rows are randomised, and pushing it "
                "would give the true ones away.\n"
                f"  Drop it with dataset.remove_columns([{every}]), hash ids with HashColumn, or, if it is public "
                f"anyway, pass public_columns=[{every}].",
                column,
            )


def _clean_columns(rows: Dataset, public: set[str]) -> list[tuple[str, str]]:
    from hf_ext.data.relabeling.columns import class_column
    from hf_ext.data.relabeling.leaks import find_leaks
    from hf_ext.data.relabeling.ledger import CHANNEL, EPSILON, TRUE_LABEL
    from hf_ext.data.relabeling.privatize import arrow_columns, class_names, sample_of

    found = [
        (name, "its name says that it is the clean label")
        for name in rows.column_names
        if _CLEAN.fullmatch(name.casefold()) and name not in public
    ]
    plain = rows.with_format(None)
    channels = [str(name) for name in plain[CHANNEL]] if CHANNEL in rows.column_names else []
    label = _label_column(rows)
    if TRUE_LABEL in channels and label is not None and label not in public:
        found.append((label, f"the ledger says {TRUE_LABEL!r}: these labels are not randomised"))
    chosen = sample_of(len(rows))
    channels = [channels[i] for i in chosen] if channels else []
    if label is None or not channels or any("+" in name or name == TRUE_LABEL for name in channels):
        return found
    labels = class_column({label: plain[label][chosen.tolist()]}, label)
    if labels.lengths is not None:
        return found
    epsilon = max(float(x or 0.0) for x in plain[EPSILON][chosen.tolist()]) if EPSILON in rows.column_names else 0.0
    limits = _limits(channels, epsilon, labels.flat)
    if limits is None:
        return found
    named = {name for name, _ in found}
    without = (label, EPSILON, CHANNEL, *_POST_PROCESSED, *public, *named)
    columns = arrow_columns(rows, chosen, without)
    names = class_names(rows, label)
    leaks = find_leaks(columns, label, labels.flat, names=names, public=public, determined=limits[0], named=limits[1])
    return found + [(leak.column, f"{leak.how}, as closely as the true label does") for leak in leaks]


def _label_column(rows: Dataset) -> str | None:
    from datasets import ClassLabel

    if "label" in rows.column_names:
        return "label"
    classes = [name for name, feature in rows.features.items() if isinstance(feature, ClassLabel)]
    return classes[0] if len(classes) == 1 else None


def _limits(channels: list[str], epsilon: float, labels: np.ndarray) -> tuple[float, float] | None:
    """How closely the true label goes with this noisy one, and how often it is equal; `None` where nobody knows."""
    from hf_ext.data.relabeling.channel import RRChannel

    classes = {int(part) for name in set(channels) for part in re.findall(r"-(\d+)-", name)}
    if len(classes) != 1 or not epsilon > 0:
        return None
    channel = RRChannel(epsilon, classes.pop())
    same = channel.p**2 + (channel.num_classes - 1) * channel.q**2
    counts = np.bincount(labels)
    chance = float((counts * (counts - 1)).sum() / max(len(labels) * (len(labels) - 1), 1))
    closeness = (same - chance) / (1 - chance) if chance < 1 else 0.0
    if closeness <= 0:  # one class is so common that the noise hides nothing in it
        return None
    return CLEAN_SHARE * closeness, 0.5 * channel.p


def check_label_privacy_of_files(files: Iterable[Path], public_columns: Sequence[str] = ()) -> None:
    """
    [`check_label_privacy`] on Parquet, JSON-lines and Arrow files, of which only those with a ledger are read.

    Raises:
        LabelLeakError: as there; the file stands in place of the split.
    """
    from hf_ext.data.relabeling.ledger import has_ledger

    for path in files:
        names = _columns_of(path)
        if names is not None and has_ledger(names):
            check_label_privacy({path.name: _rows_of(path)}, public_columns)


def _columns_of(path: Path) -> list[str] | None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if path.suffix == ".parquet":
            return list(pq.read_schema(path).names)
        if path.suffix == ".arrow":
            with pa.memory_map(str(path)) as source:
                return list(pa.ipc.open_stream(source).schema.names)
        if path.suffix in (".jsonl", ".ndjson"):
            with path.open(encoding="utf-8") as file:
                row = json.loads(file.readline() or "null")
            return list(row) if isinstance(row, dict) else None
    except (pa.ArrowInvalid, OSError, ValueError):
        return None  # not what its name says: no rows of ours
    return None


def _rows_of(path: Path) -> Dataset:
    import pyarrow as pa
    import pyarrow.json
    import pyarrow.parquet as pq
    from datasets import Dataset
    from datasets.table import InMemoryTable

    if path.suffix == ".parquet":
        table = pq.read_table(path)
    elif path.suffix == ".arrow":
        with pa.memory_map(str(path)) as source:
            table = pa.ipc.open_stream(source).read_all()
    else:
        table = pyarrow.json.read_json(path)
    return Dataset(InMemoryTable(table))


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

    epsilons: list[float] = []
    channels: list[str] = []
    without = 0
    for rows in splits.values():
        plain = rows.with_format(None)
        spent = [float(x or 0.0) for x in plain[EPSILON]] if EPSILON in rows.column_names else [0.0] * len(rows)
        epsilons += [x for x in spent if x > 0]
        without += sum(x <= 0 for x in spent)
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
        ("channels", ", ".join(f"`{name}`" for name in sorted(set(channels)))),
        ("rows with randomised labels", f"{len(epsilons):,}"),
    ]
    if without:
        facts.append(("rows whose labels are not randomised", f"{without:,}"))
    if public_columns:
        facts.append(("columns said to be public anyway", ", ".join(f"`{name}`" for name in public_columns)))
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
    return f"{kind}, then relabelled from a model's predictions (`{mode}`)" if mode else kind
