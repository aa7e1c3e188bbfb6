"""The record of releases: what was drawn from true labels under a key, so that no second draw is made unseen."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub.utils import WeakFileLock
from numpy.typing import NDArray

from hf_ext.data.relabeling.columns import IGNORED_LABEL, ClassColumn
from hf_ext.data.relabeling.keys import KeyRef, encoded, uniforms
from hf_ext.data.relabeling.ledger import PrivacyBudgetError
from hf_ext.data.relabeling.randomize import RandomizedResponse
from hf_ext.guards.disk import append_whole, flush, is_disk_full, write_whole, writing

RECORD_ENV = "HF_EXT_LABEL_RECORD"
SUFFIX = ".releases.jsonl"
ENTRY = np.dtype([("row", "<u8"), ("label", "<u8")])
"""A label in the record: keyed hashes of what its noise is tied to, and of that with the true class."""

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Release:
    """
    One draw from true labels.

    Args:
        mechanism ([`RandomizedResponse`]):
            The draw.
        draw (`str`):
            Names the noise: two releases with the same give the same noisy label for the same id and label.
        entries (array of shape `(labels,)` of `ENTRY`):
            The labels, in the order of the rows.
        classes (array of shape `(labels,)`):
            The true classes.
    """

    mechanism: RandomizedResponse
    draw: str
    entries: NDArray[Any]
    classes: NDArray[np.int64]


def release_of(
    mechanism: RandomizedResponse, messages: list[bytes], classes: ClassColumn, likely: Iterator[bytes] | None
) -> Release:
    """
    What the record holds of a draw.

    Args:
        mechanism ([`RandomizedResponse`]):
            The draw.
        messages (`list[bytes]`):
            What the noise of each label is tied to.
        classes ([`ClassColumn`]):
            The true labels.
        likely (`Iterator[bytes]`, *optional*):
            Under a prior, the classes that it lets through, for each label.
    """
    key = mechanism.key.read()
    labels = classes.flat[classes.flat != IGNORED_LABEL]
    name_of = {label: encoded(label) for label in np.unique(labels).tolist()}
    entries = np.empty(len(labels), dtype=ENTRY)
    entries["row"] = uniforms(key, encoded("hf-ext record, row"), messages)[:, 0]
    pairs = (message + name_of[label] for message, label in zip(messages, labels.tolist(), strict=True))
    entries["label"] = uniforms(key, encoded("hf-ext record, label"), pairs)[:, 0]
    draw = mechanism.channel_id
    if likely is not None:
        # The sum does not depend on the order of the rows, as the noise does not.
        parts = uniforms(key, encoded("hf-ext record, prior"), map(bytes.__add__, messages, likely))
        first, second = parts.sum(axis=0, dtype=np.uint64).tolist()
        draw += f"/{first:016x}{second:016x}"
    return Release(mechanism, draw, entries, labels)


def record_path(key: KeyRef) -> Path | None:
    """
    Where the releases under a key are recorded: `$HF_EXT_LABEL_RECORD`, or beside the file of the key.

    Returns:
        `Path`, or `None`: the key is in an environment variable, and no file is named.
    """
    path = os.environ.get(RECORD_ENV)
    if path:
        return Path(path)
    # Links to one key lead to one record.
    return None if key.file is None else Path(os.path.realpath(key.file) + SUFFIX)


@contextmanager
def record_of(key: KeyRef) -> Iterator[ReleaseRecord | None]:
    """
    The record of releases under a key, locked: another process that releases waits for this one to end.

    Yields:
        [`ReleaseRecord`], or `None`: there is no place for one.

    Raises:
        ValueError: if the place cannot be written.
    """
    path = record_path(key)
    if path is None:
        yield None
        return
    with ExitStack() as stack:
        with _sentence(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(WeakFileLock(f"{path}.lock"))
        yield ReleaseRecord(path, key.key_id)


@contextmanager
def _sentence(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if is_disk_full(error):
            raise
        raise ValueError(
            f"The record of releases {str(path)!r} cannot be used: {error.strerror or error}. It holds what was spent "
            f"on each label; set {RECORD_ENV} to the file of another place, which must stay the same for this key."
        ) from error


class ReleaseRecord:
    """
    Releases under a key: a JSON line each in `path`, and 16 bytes a label in `path` with `.rows` behind it.

    Args:
        path (`Path`):
            Of the lines. It need not be there.
        key_id (`str`):
            Of the key; lines of other keys are passed over, since their hashes cannot be compared.
    """

    def __init__(self, path: Path, key_id: str) -> None:
        self.path = path
        self.rows = path.with_name(path.name + ".rows")
        self.key_id = key_id

    def check(self, release: Release) -> FloatArray:
        """
        What other releases have spent on each label of this one, in nats, shape `(labels,)`.

        Rows are the same where their ids are and their labels agree: by more than half of the way from chance to
        always. Other rows that are numbered alike do not count.

        Raises:
            PrivacyBudgetError: if there are other labels under this draw's ids; or if the labels were released
                otherwise, and the draw does not say `compose`.
            ValueError: if the record is damaged.
        """
        epsilons = np.zeros(len(release.entries))
        repeated = np.zeros(len(release.entries), dtype=bool)
        last = None
        for line, entries in self._releases():
            rows, places = _shared(release.entries["row"], entries["row"])
            equal = release.entries["label"][rows] == entries["label"][places]
            if line["draw"] == release.draw:
                if not equal.all():
                    raise PrivacyBudgetError(_edited(self.path, line, int((~equal).sum()), len(release.entries)))
                repeated[rows] = True
            elif len(rows) and _agree(equal, release.classes[rows]):
                epsilons[rows] += line["epsilon"]
                last = line
        is_new = (epsilons > 0) & ~repeated
        if is_new.any() and not release.mechanism.compose:
            assert last is not None
            most = float(epsilons[is_new].max())
            raise PrivacyBudgetError(
                f"{int(is_new.sum()):,} of {len(epsilons):,} labels were released before under this key: the record "
                f"{str(self.path)!r} holds epsilon {most:g}, last {_named(last)}. A second release adds up to "
                f"{most + release.mechanism.epsilon:g}: say compose=True (--compose) if that is meant. The same "
                "release again has the same salt, epsilon, column and prior. Other rows that are only numbered alike "
                "need ids of their own."
            )
        return epsilons

    def enter(self, release: Release) -> None:
        """
        Add a release, whole or not at all; labels that are there with the same draw are not added twice.

        Raises:
            DiskFullError: if there is no room.
            ValueError: if the place cannot be written, or the record is damaged.
        """
        entries = release.entries[np.argsort(release.entries["row"])]
        lines = self._lines()
        for line, former_entries in self._releases():
            if line["draw"] == release.draw:
                entries = entries[~np.isin(entries["row"], former_entries["row"])]
        if not len(entries):
            return
        line = {
            "release": len(lines) + 1,
            "key": self.key_id,
            "epsilon": float(release.mechanism.epsilon),
            "salt": release.mechanism.salt,
            "column": release.mechanism.label,
            "channel": release.mechanism.channel_id,
            "draw": release.draw,
            "labels": len(entries),
            "hash_of_rows": _digest(entries["row"]),
            "hash_of_true_labels": _digest(entries["label"]),
        }
        text = "".join(json.dumps(entry) + "\n" for entry in [*lines, line])
        end = sum(entry["labels"] for entry in lines) * ENTRY.itemsize
        with _sentence(self.path), writing("the record of releases", self.path):
            if self._size() > end:
                os.truncate(self.rows, end)  # what a killed process left; its line was never written
            append_whole(self.rows, [entries.tobytes()])
            flush(self.rows)
            write_whole(self.path, text)

    def _size(self) -> int:
        return self.rows.stat().st_size if self.rows.exists() else 0

    def _lines(self) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        with _sentence(self.path):
            text = self.path.read_text(encoding="utf-8", errors="replace")
        lines = []
        for number, entry in enumerate(text.splitlines(), 1):
            try:
                line = json.loads(entry)
                lines.append({**line, "labels": int(line["labels"]), "epsilon": float(line["epsilon"])})
                _ = (line["key"], line["draw"], line["hash_of_rows"], line["hash_of_true_labels"])
            except (ValueError, TypeError, KeyError) as error:
                raise self._damaged(f"line {number} is no release") from error
        return lines

    def _releases(self) -> Iterator[tuple[dict[str, Any], NDArray[Any]]]:
        """Lines of this key, with the labels of each, sorted by row."""
        start = 0
        lines = self._lines()
        if sum(line["labels"] for line in lines) * ENTRY.itemsize > self._size():
            raise self._damaged(f"{str(self.rows)!r} is missing or too short")
        for number, line in enumerate(lines, 1):
            count = line["labels"]
            if line["key"] == self.key_id:
                with _sentence(self.rows):
                    entries = np.fromfile(self.rows, dtype=ENTRY, count=count, offset=start * ENTRY.itemsize)
                hashes = (_digest(entries["row"]), _digest(entries["label"]))
                if hashes != (line["hash_of_rows"], line["hash_of_true_labels"]):
                    raise self._damaged(f"{str(self.rows)!r} does not hold the labels of line {number}")
                yield line, entries
            start += count

    def _damaged(self, problem: str) -> ValueError:
        return ValueError(
            f"The record of releases {str(self.path)!r} is damaged: {problem}. Bring both files back from a copy: "
            "without them nobody knows what was spent on the labels."
        )


def _digest(values: NDArray[Any]) -> str:
    return hashlib.blake2b(values.tobytes(), digest_size=16).hexdigest()


def _shared(rows: NDArray[np.uint64], former_rows: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Places of the rows that are in both; `recorded` is sorted."""
    place = np.minimum(np.searchsorted(former_rows, rows), max(len(former_rows) - 1, 0))
    indices = np.flatnonzero(former_rows[place] == rows) if len(former_rows) else np.empty(0, dtype=np.int64)
    return indices, place[indices]


def _agree(equal: NDArray[np.bool_], classes: NDArray[np.int64]) -> bool:
    """Whether labels are equal too often for those of other rows."""
    shares = np.bincount(classes) / len(classes)
    chance = float((shares**2).sum())
    return float(equal.mean()) >= (1 + chance) / 2


def _named(line: dict[str, Any]) -> str:
    return f"with salt {line['salt']!r} and epsilon {line['epsilon']:g} from column {line['column']!r}"


def _edited(path: Path, line: dict[str, Any], changed: int, labels: int) -> str:
    return (
        f"{changed:,} of {labels:,} labels differ from those that were released {_named(line)} under the same ids "
        f"(record {str(path)!r}): both would get the same noise, which shows where they differ. If they were edited, "
        "give the release another salt, with compose=True (--compose), and the budgets add up; if these are other "
        "rows, another salt; if they are the noisy labels of that release, another draw is not needed: it would "
        "change nothing."
    )
