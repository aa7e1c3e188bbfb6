"""Rows in memory as a folder to push: Parquet, report and card, in a folder that holds nothing else."""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_ext.data.media import estimated_bytes, write_parquet
from hf_ext.guards.disk import writing
from hf_ext.guards.runs import claimed_folder
from hf_ext.hub.files import files_that_could_go

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_ext.data.curation.report import CurationReport
    from hf_ext.data.pruning.report import PruneReport

__all__ = ["refuse_unlike", "splits_of", "write_rows_folder"]

logger = logging.getLogger(__name__)

PROBED_ROWS = 100
SHARD_BYTES = 500 * 1000**2
CARD = "README.md"
STAGING = "_data"  # everything is written there first; no push takes it along
REPORT = frozenset(
    f"report/{name}.{suffix}" for name in ("pruning", "curation") for suffix in ("json", "md", "html", "svg", "png")
)
_SPLIT_NAME = re.compile(r"\w+(\.\w+)*")  # what `datasets` takes for one, when it reads a repository


def splits_of(dataset: Dataset | Mapping[str, Dataset]) -> dict[str, Dataset]:
    """
    Rows by split, if `load_dataset` can read them back as such.

    Raises:
        TypeError: if the rows are not at hand, such as those of a stream.
        ValueError: if there is no split, one has no rows, or `datasets` does not take its name.
    """
    from datasets import Dataset, IterableDataset

    splits = dict(dataset) if isinstance(dataset, Mapping) else {"train": dataset}
    if not splits:
        raise ValueError("the dataset has no split: there is nothing to push.")
    for name, rows in splits.items():
        if isinstance(rows, IterableDataset):
            raise TypeError(
                f"split {name!r} is an IterableDataset, whose rows are not at hand. Pass "
                "Dataset.from_generator(lambda: iter(stream), features=stream.features), or write Parquet files and "
                "pass their folder."
            )
        if not isinstance(rows, Dataset):
            raise TypeError(
                f"push_dataset takes a Dataset, a DatasetDict, a store or a folder, not {type(rows).__name__}. Make a "
                "dataset with Dataset.from_list or Dataset.from_pandas."
            )
        if not isinstance(name, str) or not _SPLIT_NAME.fullmatch(name) or name == "all":
            raise ValueError(
                f"split {name!r}: load_dataset takes letters, digits, underscores and dots in between, and not 'all', "
                "which means every split. Rename it: DatasetDict({'new_name': rows, ...})."
            )
        if len(rows) == 0:
            raise ValueError(f"split {name!r} has no rows: there is nothing to push.")
    return splits


def refuse_unlike(splits: Mapping[str, Dataset]) -> None:
    """
    Refuse splits that `load_dataset` cannot read back beside each other.

    Raises:
        ValueError: if two names are one where case does not count, or columns differ.
    """
    by_folded_name: dict[str, str] = {}
    first = next(iter(splits))
    for name, rows in splits.items():
        other = by_folded_name.setdefault(name.casefold(), name)
        if other != name:
            raise ValueError(f"splits {other!r} and {name!r} are one file where case does not count: rename one.")
        expected = splits[first].features
        columns = [*expected, *(column for column in rows.features if column not in expected)]
        unlike = [column for column in columns if expected.get(column) != rows.features.get(column)]
        if unlike:
            column = unlike[0]
            feature, expected_feature = rows.features.get(column, "missing"), expected.get(column, "missing")
            raise ValueError(
                f"split {name!r}, column {column!r}: it is {feature}, in split {first!r} it is {expected_feature}. "
                "load_dataset reads splits of one schema only: add, cast or remove the column, or push each split to "
                "a repository of its own."
            )


def write_rows_folder(
    splits: Mapping[str, Dataset],
    folder: Path,
    card: dict[str, Any],
    report: PruneReport | CurationReport | None = None,
    overwrite_card: bool = False,
) -> None:
    """
    Write rows as `data/*.parquet` with their report and card; the same rows may be there from a call that was killed.

    Args:
        splits (`Mapping[str, Dataset]`):
            As from [`splits_of`].
        folder (`Path`):
            Made if it is not there; otherwise it holds nothing that would be pushed along.
        card (`dict`):
            Arguments of [`~hf_ext.hub.cards.write_dataset_card`].
        report ([`PruneReport`] or [`CurationReport`], *optional*):
            Written to `report/`, without the rows that were dropped.
        overwrite_card (`bool`, *optional*, defaults to `False`):
            Whether a card there is replaced; one that hf-ext did not write is refused otherwise, and what somebody
            added to one that it wrote is kept.

    Raises:
        FileExistsError: if the folder holds other files, or other rows.
        InUseError: if another process writes there.
    """
    from hf_ext.hub.cards import write_dataset_card

    with claimed_folder(folder, remedy="pass folder= another one"):
        _refuse_other_files(folder, report is not None, overwrite_card)
        _warn_of_paths(splits)
        staging = folder / STAGING
        shutil.rmtree(staging, ignore_errors=True)  # of a call that was killed
        clean_up = lambda: shutil.rmtree(staging, ignore_errors=True)  # noqa: E731  named for what it does, twice
        try:
            with writing("the rows", folder):
                (staging / "data").mkdir(parents=True)
                for name, rows in splits.items():
                    _write_split(rows, staging / "data", name)
                if report is not None:
                    report.without_dropped_rows().save(staging / "report")
                if (folder / CARD).is_file() and not overwrite_card:
                    shutil.copyfile(folder / CARD, staging / CARD)
                # last, so that a card is only where the rows are whole
                write_dataset_card(staging, **card)
                _publish(staging, folder)
        finally:
            clean_up()


def _write_split(rows: Dataset, folder: Path, name: str) -> None:
    # rounded up
    shards = min(len(rows), max(1, -(-estimated_bytes(rows) // SHARD_BYTES)))
    for index in range(shards):
        part = rows.shard(shards, index, contiguous=True)
        write_parquet(part, folder / f"{name}-{index:05d}-of-{shards:05d}.parquet")


def _warn_of_paths(splits: Mapping[str, Dataset]) -> None:
    """Texts are pushed as they are; those that are paths of files here are mostly there by mistake."""
    for name, rows in splits.items():
        texts = [column for column, feature in rows.features.items() if getattr(feature, "dtype", "") == "string"]
        first = rows.with_format(None).select_columns(texts)[:PROBED_ROWS] if texts else {}
        for column, values in first.items():
            place = next((text for text in values if text and os.path.isabs(text) and os.path.exists(text)), None)
            if place is not None:
                logger.warning(
                    "Split %r, column %r holds paths of this machine, such as %.80r, which are published with it. "
                    "Drop it with dataset.remove_columns(%r) unless that is meant.",
                    name, column, place, [column],
                )  # fmt: skip


def _refuse_other_files(folder: Path, has_report: bool, overwrite_card: bool) -> None:
    from hf_ext.hub.front_matter import names_in, read_card

    is_ours = overwrite_card or "hf-ext" in names_in(read_card(folder / CARD).metadata.get("tags"))
    expected = ({CARD} if is_ours else set()) | (REPORT if has_report else set())
    others = [name for name in files_that_could_go(folder) if name not in expected and not name.startswith("data/")]
    if others:
        listing = ", ".join(others[:5]) + (f" and {len(others) - 5:,} more" if len(others) > 5 else "")
        card = " overwrite_card=True replaces the card." if others == [CARD] else ""
        raise FileExistsError(
            f"{folder} holds files that would be pushed along with the rows, or overwritten; nothing was written "
            f"or sent. Pass folder= a new one; or, to push that folder as it is, push_dataset({str(folder)!r}, "
            f"...).{card} The files: {listing}."
        )


def _publish(staging: Path, folder: Path) -> None:
    """Move what is whole to its place, the card last; rows that are there already must be the same, byte for byte."""
    data = folder / "data"
    if data.exists() and not _hold_the_same(staging / "data", data):
        raise FileExistsError(
            f"{folder} holds a dataset already: push that one, push_dataset({str(folder)!r}, ...), or pass folder= "
            "another one."
        )
    if not data.exists():
        (staging / "data").rename(data)
    for path in sorted(_changed_report(staging / "report", folder / "report")):
        (folder / "report").mkdir(exist_ok=True)
        path.replace(folder / "report" / path.name)
    (staging / CARD).replace(folder / CARD)


def _changed_report(new_folder: Path, old_folder: Path) -> list[Path]:
    """The report's files to replace: none if its numbers are the same, for a plot is never the same bytes twice."""
    paths = list(new_folder.glob("*"))
    if not paths or not all((old_folder / path.name).is_file() for path in paths):
        return paths
    numbers = [path for path in paths if path.suffix == ".json"]
    return [] if all(path.read_bytes() == (old_folder / path.name).read_bytes() for path in numbers) else paths


def _hold_the_same(new_folder: Path, old_folder: Path) -> bool:
    from filecmp import cmp

    names = {path.relative_to(new_folder) for path in new_folder.rglob("*")}
    if names != {path.relative_to(old_folder) for path in old_folder.rglob("*")}:
        return False
    return all(cmp(new_folder / name, old_folder / name, shallow=False) for name in names)
