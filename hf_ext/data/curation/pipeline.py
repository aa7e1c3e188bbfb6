"""`curate`: documents through a chain of steps, chunk by chunk, resumed after a kill, each drop with its reason."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from hf_ext._columns import ROW_INDEX, column_names
from hf_ext.data.curation.chunks import fitted, read_rows, schema_of
from hf_ext.data.curation.counts import CurationCounts
from hf_ext.data.curation.drop_ledger import FOLDER as DROPS_FOLDER
from hf_ext.data.curation.engine import CHUNKS_FOLDER, DATA_FOLDER, Curation, counts_of, publish
from hf_ext.data.curation.manifest import FILE_NAME as MANIFEST_NAME
from hf_ext.data.curation.manifest import read_manifest
from hf_ext.data.curation.running import Reading, run_chunk
from hf_ext.data.curation.sources import (
    CHUNK_ROWS,
    DatasetShard,
    FileShard,
    Shard,
    StreamShard,
    require_same_columns,
    shards_of,
)
from hf_ext.data.curation.steps import RowStep, SetStep, Step
from hf_ext.data.splits import with_split
from hf_ext.guards.disk import writing
from hf_ext.guards.runs import claimed_folder, refuse_strangers

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict, IterableDataset
    from transformers import PreTrainedTokenizerBase

__all__ = ["curate", "run_chunk"]

logger = logging.getLogger(__name__)

_REMEDY = "name another output"


def curate(
    dataset: Dataset | IterableDataset | DatasetDict | str | os.PathLike[str],
    steps: Sequence[Step],
    *,
    output: str | os.PathLike[str] | None = None,
    split: str = "train",
    id_column: str | None = None,
    source_column: str | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    on_bad_row: str = "raise",
    num_proc: int = 1,
    show_progress: bool = True,
) -> Dataset | IterableDataset | DatasetDict | CurationCounts:
    """
    Send documents through steps that drop, rewrite and deduplicate them.

    With `output` the result is a folder: `data/*.parquet`, which `load_dataset` opens, `drops/*.parquet`
    ([`DropLedger`]), `counts.json` ([`CurationCounts`]) and `manifest.json`. It is written in chunks of at most 1,000
    documents or 8 MB, kept below `.hf-ext-chunks`; the same call after a kill goes on behind the last of them, and
    after a change redoes what depends on it: of the files those that are others now, of the steps those from the first
    changed one on (its neighbours before it, up to a step over the whole set, included). That folder takes about as
    much room as the documents do after each step over the whole set; delete it when the result is final.

    Args:
        dataset (`Dataset`, `IterableDataset`, `DatasetDict`, `str` or `os.PathLike`):
            The documents; or a file, folder or pattern of files: `.parquet`, `.jsonl`, `.jsonl.gz`, `.jsonl.zst`,
            `.warc`, `.warc.gz`, in the order of their names.
        steps (`Sequence[RowStep | SetStep]`):
            The chain, such as [`dclm_baseline`] gives.
        output (`str` or `os.PathLike`, *optional*):
            A folder of its own. Without it the rows that are left are held in memory.
        split (`str`, *optional*, defaults to `"train"`):
            Split of a `DatasetDict` that is curated; without `output` the others stay as they are, with it they are
            left out.
        id_column (`str`, *optional*):
            Column of the documents' ids in the drop ledger; without one they are called `shard:row`.
        source_column (`str`, *optional*):
            Column by which drops are counted, such as a host or a crawl.
        tokenizer (`PreTrainedTokenizerBase`, *optional*):
            Counts the tokens after each step; without it words between white space are counted, which is faster.
        on_bad_row (`str`, *optional*, defaults to `"raise"`):
            `"raise"` stops at a row that is no document, or a line that cannot be read; `"drop"` writes it into the
            drop ledger. A broken record of a WARC file is always written down.
        num_proc (`int`, *optional*, defaults to 1):
            Processes. The result is the same for any number.
        show_progress (`bool`, *optional*, defaults to `True`):
            Whether to show a bar a phase.

    Returns:
        With `output` the [`CurationCounts`]; without it what was given, with the rows that are left.

    Raises:
        RowError: if a row is no document, with its shard and position.
        ValueError: if a setting or a shard cannot be used, or the folder holds something else.
        InUseError: if another process writes there.
        DiskFullError: if there is no room; the chunks so far are kept.
    """
    steps = _checked_steps(steps, on_bad_row, num_proc)
    reading = Reading(id_column, source_column, steps[-1].text_column, tokenizer)
    if id_column in {step.text_column for step in steps}:
        raise ValueError(f"id_column={id_column!r} is a column of documents; the drop ledger holds no text.")
    settings = (steps, reading, on_bad_row, num_proc, show_progress)
    if isinstance(dataset, str | os.PathLike):
        if output is None:
            raise ValueError("Files are curated into a folder: pass output=.")
        if Path(output).resolve().is_relative_to(Path(dataset).resolve()):
            raise ValueError(f"output {os.fspath(output)!r} lies in the folder that is read: {_REMEDY}.")
        files = shards_of(dataset, on_bad_row == "drop")
        _require_apart(files, Path(output))
        return _curated_into(Path(output), Curation([*files], *settings))
    rows: Any = dataset
    if isinstance(dataset, dict):
        if split not in dataset:
            raise ValueError(f"there is no split {split!r}; there are {sorted(dataset)}. Pass split=.")
        rows = dataset[split]
    is_stream = not hasattr(rows, "num_rows")
    shard = StreamShard(rows) if is_stream else DatasetShard(rows)
    if output is not None:
        return _curated_into(Path(output), Curation([shard], *settings))
    curated: Any = _curated_stream(rows, steps) if is_stream else _curated_rows(rows, Curation([shard], *settings))
    if not isinstance(dataset, dict):
        return curated
    return type(dataset)({**dataset, split: curated}) if is_stream else with_split(dataset, split, curated)


@dataclass(frozen=True)
class RunSteps:
    """A chain of row steps as one map-function that leaves rows out, for `IterableDataset.map(batched=True)`."""

    steps: tuple[RowStep, ...]

    def __call__(self, batch: dict[str, list], indices: list[int]) -> dict[str, list]:
        """The rows of a batch that are left."""
        result = run_chunk({**batch, ROW_INDEX: indices}, self.steps)
        unchanged = {name: [values[p] for p in result.positions] for name, values in batch.items()}
        columns = unchanged | result.columns
        return {name: values for name, values in columns.items() if name not in result.consumed}


def _curated_stream(rows: IterableDataset, steps: tuple[Step, ...]) -> IterableDataset:
    row_steps = tuple(step for step in steps if isinstance(step, RowStep))
    if len(row_steps) < len(steps):
        stranger = next(step for step in steps if isinstance(step, SetStep))
        raise ValueError(f"{type(stranger).__name__} needs all documents of a stream at once: pass output=.")
    names = column_names(rows)
    return rows.map(RunSteps(row_steps), batched=True, batch_size=CHUNK_ROWS, with_indices=True, remove_columns=names)


def _curated_rows(rows: Dataset, curation: Curation) -> Dataset:
    from datasets import Dataset
    from datasets.fingerprint import Hasher

    plan = curation.plan()
    with tempfile.TemporaryDirectory(prefix="hf-ext-curate-") as folder:
        with writing("the chunks", folder):
            stores = curation.run(Path(folder), plan)
        paths = list(stores[-1][0].paths())
        schema = schema_of(paths)
        table = pa.concat_tables([fitted(read_rows(path), schema) for path in paths])
        counts = counts_of(stores, curation.reading)
    _say(counts)
    info = rows.info.copy()
    info.features = None  # as the table has them
    return Dataset(table, info=info, split=rows.split, fingerprint=Hasher.hash(plan))


def _curated_into(output: Path, curation: Curation) -> CurationCounts:
    folder = output / CHUNKS_FOLDER
    advice = "The chunks so far are kept: free some space and run again."
    with claimed_folder(output, remedy=_REMEDY), writing("the curated rows", output, advice=advice):
        refuse_other_content(output)
        require_same_columns(curation.shards)
        plan = curation.plan()
        former = read_manifest(output)
        is_whole = all((output / name).is_dir() for name in (DATA_FOLDER, DROPS_FOLDER))
        if is_whole and former is not None and former.get("plan") == plan:
            logger.info("%s holds the result of this very curation already.", output)
            return CurationCounts.read(output)
        folder.mkdir(exist_ok=True)
        stores = curation.run(folder, plan)
        _require_unchanged(curation.shards, plan)
        counts = counts_of(stores, curation.reading)
        publish(output, stores, counts, plan)
    _say(counts)
    return counts


def refuse_other_content(output: Path) -> None:
    """
    Refuse a folder that holds something and is no curation's.

    Raises:
        ValueError: if it holds something else; the message names the first file.
    """
    if not (output / CHUNKS_FOLDER).is_dir() and not (output / MANIFEST_NAME).is_file():
        refuse_strangers(output / MANIFEST_NAME, f"{_REMEDY.capitalize()}.")


def _require_apart(shards: Sequence[FileShard], output: Path) -> None:
    """Refuse files that lie in the output, such as its own rows, which a pattern may match the next time."""
    for shard in shards:
        if shard.path.resolve().is_relative_to(output.resolve()):
            raise ValueError(f"shard {shard.name!r} lies in output {os.fspath(output)!r}: {_REMEDY}.")


def _require_unchanged(shards: Sequence[Shard], plan: dict[str, Any]) -> None:
    for shard, record in zip(shards, plan["shards"], strict=True):
        if isinstance(shard, FileShard) and shard.identity() != record["identity"]:
            raise ValueError(f"shard {shard.name!r} was changed while it was read. Run again: it is read anew.")


def _say(counts: CurationCounts) -> None:
    logger.info("Read %s documents, %s are left.", f"{counts.rows_read:,}", f"{counts.rows_kept:,}")
    if counts.rows_read == 0:
        logger.warning("There was no document to curate.")
    elif counts.rows_kept == 0:
        greediest = max(counts.steps, key=lambda step: step.rows_in - step.rows_out)
        logger.warning(
            "No document is left: step %r dropped %s of %s. Look at the report, or at the drop ledger.",
            greediest.name, f"{greediest.rows_in - greediest.rows_out:,}", f"{counts.rows_read:,}",
        )  # fmt: skip


def _checked_steps(steps: Sequence[Step], on_bad_row: str, num_proc: int) -> tuple[Step, ...]:
    if on_bad_row not in ("raise", "drop"):
        raise ValueError(f'on_bad_row must be "raise" or "drop", got {on_bad_row!r}.')
    if num_proc < 1:
        raise ValueError(f"num_proc must be at least 1, got {num_proc!r}.")
    strangers = [step for step in steps if not isinstance(step, RowStep | SetStep)]
    if strangers:
        raise ValueError(f"steps must be curation steps, such as GopherQuality(); got {strangers[0]!r:.80}.")
    if not steps:
        raise ValueError("steps is empty: pass at least one, or dclm_baseline().")
    if on_bad_row == "raise":
        return tuple(steps)
    return tuple(replace(step, on_bad_row="drop") for step in steps)
