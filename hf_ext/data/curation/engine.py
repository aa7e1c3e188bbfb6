"""A curation in a folder: phase by phase what is not on the disk yet, put together to the result at the end."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from tqdm.auto import tqdm

from hf_ext.data.curation.chunks import (
    ChunkStore,
    count_rows,
    end_if_written,
    fitted,
    read_counts,
    read_drops,
    read_rows,
    schema_of,
    write_shards,
)
from hf_ext.data.curation.counts import FILE_NAME as COUNTS_NAME
from hf_ext.data.curation.counts import CurationCounts, StepCounts
from hf_ext.data.curation.drop_ledger import FOLDER as DROPS_FOLDER
from hf_ext.data.curation.drop_ledger import SCHEMA as DROPS_SCHEMA
from hf_ext.data.curation.manifest import FILE_NAME as MANIFEST_NAME
from hf_ext.data.curation.manifest import key_of, reading_record, step_record
from hf_ext.data.curation.phases import RowPhase, SetPhase, decision_tasks, pairs_of, phases_of, reading_tasks
from hf_ext.data.curation.running import Reading, step_names
from hf_ext.data.curation.sources import Shard
from hf_ext.data.curation.steps import Notes, Step
from hf_ext.data.curation.workers import Task, peak_bytes, run_tasks
from hf_ext.guards.disk import flush, flush_folder, write_whole

CHUNKS_FOLDER = ".hf-ext-chunks"  # no push takes `.hf-ext*` along, and `datasets` reads no hidden folder
DATA_FOLDER = "data"
_STAGING = "publishing"
_NOTES_SUFFIX = ".notes.json"


@dataclass(frozen=True)
class Curation:
    """
    A curation, in whatever folder.

    Args:
        shards (`list[Shard]`):
            What is curated.
        steps (`tuple[Step, ...]`):
            The chain.
        reading ([`Reading`]):
            How documents are named and counted.
        on_bad_row (`str`):
            `"raise"` or `"drop"`.
        num_proc (`int`):
            Processes.
        show_progress (`bool`):
            Whether to show a bar a phase.
    """

    shards: list[Shard]
    steps: tuple[Step, ...]
    reading: Reading
    on_bad_row: str
    num_proc: int
    show_progress: bool

    def plan(self) -> dict[str, Any]:
        """All that the result depends on, in plain values for the manifest."""
        pairs = zip(self.steps, step_names(self.steps), strict=True)
        return {
            **reading_record(self.reading),
            "on_bad_row": self.on_bad_row,
            "steps": [step_record(step, name) for step, name in pairs],
            "shards": [{"name": shard.name, "identity": shard.identity()} for shard in self.shards],
        }

    def run(self, folder: Path, plan: dict[str, Any]) -> list[list[ChunkStore]]:
        """
        Do what is not on the disk yet.

        Args:
            folder (`Path`):
                Of the chunks.
            plan (`dict`):
                What [`plan`] gave.

        Returns:
            `list[list[ChunkStore]]`: for each phase the chunks of every shard.
        """
        phases = phases_of(self.steps, step_names(self.steps), self.reading)
        settings = {name: value for name, value in plan.items() if name not in ("steps", "shards")}
        records = {record["name"]: record for record in plan["steps"]}
        keys = [key_of(settings, shard) for shard in plan["shards"]]
        stores: list[list[ChunkStore]] = []
        for number, phase in enumerate(phases):
            if isinstance(phase, SetPhase):
                keys = [key_of(keys, records[phase.name], position) for position in range(len(keys))]
            else:
                keys = [key_of(key, [records[name] for name in phase.names]) for key in keys]
            stores.append([ChunkStore(folder / key, s.name) for key, s in zip(keys, self.shards, strict=True)])
            label = f"{number + 1} of {len(phases)}: {_title(phase)}"
            if isinstance(phase, SetPhase):
                self._decide(phase, stores[-2], stores[-1], folder / f"features-{key_of(keys)}", label)
            elif number == 0:
                pairs = zip(self.shards, stores[0], strict=True)
                sizes = [shard.num_rows() for shard in self.shards]
                total = None if None in sizes else sum(size or 0 for size in sizes)
                num_read = sum(store.num_read() for store in stores[0])
                self._run(
                    phase.read, (task for pair in pairs for task in reading_tasks(*pair)), label, total, num_read
                )
            else:
                tasks = [pair for pair in pairs_of(*stores[-2:]) if end_if_written(pair[-1]) is None]
                self._run(phase.go_on, tasks, label, _total_rows(tasks))
        return stores

    def _decide(
        self, phase: SetPhase, former: list[ChunkStore], stores: list[ChunkStore], folder: Path, label: str
    ) -> None:
        if _notes_file(stores).is_file() and all(store.is_whole() for store in stores):  # one may be damaged since
            return
        folder.mkdir(exist_ok=True)
        pairs = list(pairs_of(former, stores))
        features = [folder / f"{target.parent.name}-{target.name}.parquet" for _, _, target in pairs]
        tasks = [
            (source, shard, table)
            for (source, shard, _), table in zip(pairs, features, strict=True)
            if not table.is_file()
        ]
        self._run(phase.write_features, tasks, f"{label}, features", _total_rows(tasks))
        notes: Notes = {}
        total = _total_rows(pair for pair in pairs if end_if_written(pair[-1]) is None)
        self._run(phase.apply, decision_tasks(phase.step, features, pairs, notes), label, total)
        write_whole(_notes_file(stores), json.dumps({"step": phase.name, "notes": notes}) + "\n")

    def _run(
        self, function: Callable[..., int], tasks: Iterable[Task], label: str, total: int | None, initial: int = 0
    ) -> None:
        hidden = not self.show_progress
        with tqdm(desc=label, total=total, initial=initial, unit="row", disable=hidden) as bar:
            run_tasks(function, self._naming_files(tasks, bar), self.num_proc, bar.update)

    def _naming_files(self, tasks: Iterable[Task], bar: tqdm) -> Iterator[Task]:
        """The tasks; the bar names the file of the last one taken: not every file says how many documents it has."""
        numbers = {shard.name: number for number, shard in enumerate(self.shards, 1)}
        for task in tasks:
            if len(numbers) > 1:
                bar.set_postfix_str(f"file {numbers[task[1]]:,} of {len(numbers):,}", refresh=False)
            yield task


def _title(phase: RowPhase | SetPhase) -> str:
    """The steps of a phase, for people."""
    if isinstance(phase, SetPhase):
        return phase.name
    names = phase.names or ("reading",)
    return names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"


def _total_rows(tasks: Iterable[Task]) -> int:
    """Rows of the chunks that tasks begin with."""
    return sum(count_rows(task[0]) for task in tasks)


def _notes_file(stores: Sequence[ChunkStore]) -> Path:
    """What a step over the whole set says of it, beside the chunks of the first shard."""
    return stores[0].folder.with_suffix(_NOTES_SUFFIX)


def publish(output: Path, stores: list[list[ChunkStore]], counts: CurationCounts, plan: dict[str, Any]) -> None:
    """
    Put the chunks together and the result in place, the manifest last: with it the result is whole.

    Args:
        output (`Path`):
            The folder; the caller holds it.
        stores (`list[list[ChunkStore]]`):
            What [`Curation.run`] gave.
        counts ([`CurationCounts`]):
            What [`counts_of`] gave of them.
        plan (`dict`):
            What [`Curation.plan`] gave.
    """
    folder = output / CHUNKS_FOLDER
    staging = folder / _STAGING
    shutil.rmtree(staging, ignore_errors=True)
    last = [path for store in stores[-1] for path in store.paths()]
    schema = schema_of(last)
    tables = (table for path in last if len(table := fitted(read_rows(path), schema)))
    num_rows = write_shards(staging / DATA_FOLDER, "train-{number:05d}-of-{total:05d}.parquet", tables, schema)
    drops = (table for table in _drops(stores) if len(table))
    num_drops = write_shards(staging / DROPS_FOLDER, "drops-{number:05d}.parquet", drops, DROPS_SCHEMA)
    if num_rows + num_drops != counts.rows_read or num_rows != counts.rows_kept:
        raise RuntimeError(
            f"{counts.rows_read:,} documents were read, but {num_rows:,} are left and {num_drops:,} in the drop "
            f"ledger: a fault of hf-ext. Delete {folder} and run again."
        )
    manifest = {"plan": plan, "rows_read": counts.rows_read, "rows_kept": num_rows}
    for name, values in ((COUNTS_NAME, counts.to_dict()), (MANIFEST_NAME, manifest)):
        # all in ASCII: half a surrogate pair, as a source's name may have, is no UTF-8
        (staging / name).write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    flush(staging)
    # From here on nothing is written, so that a full disk leaves the former result whole.
    (output / MANIFEST_NAME).unlink(missing_ok=True)
    for name in (DATA_FOLDER, DROPS_FOLDER, COUNTS_NAME, MANIFEST_NAME):
        if (output / name).is_dir():  # a folder with something in it is not replaced
            os.replace(output / name, staging / f"former-{name}")
        os.replace(staging / name, output / name)
    flush_folder(output)
    in_use = {store.folder.name for phase_stores in stores for store in phase_stores}
    for path in folder.iterdir():
        if path.is_dir() and path.name not in in_use:
            shutil.rmtree(path)
        elif path.name.removesuffix(_NOTES_SUFFIX) not in in_use:
            path.unlink()


def _drops(stores: list[list[ChunkStore]]) -> Iterator[pa.Table]:
    """The drop ledger in the order of the documents: a table for each chunk, of all phases."""
    for shard_stores in zip(*stores, strict=True):
        for paths in zip(*(store.paths() for store in shard_stores), strict=True):
            yield pa.concat_tables([read_drops(path) for path in paths]).sort_by("row")


def counts_of(stores: list[list[ChunkStore]], reading: Reading) -> CurationCounts:
    """What was counted in the chunks of all phases."""
    counts = CurationCounts(reading.unit)
    for phase_stores in stores:
        for store in phase_stores:
            for path in store.paths():
                counts.merge(read_counts(path))
        if _notes_file(phase_stores).is_file():
            values = json.loads(_notes_file(phase_stores).read_text(encoding="utf-8"))
            counts.merge(CurationCounts(steps=[StepCounts(values["step"], notes=values["notes"])]))
    counts.peak_bytes = max(counts.peak_bytes, peak_bytes())
    return counts
