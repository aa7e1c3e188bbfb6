"""A line a row as rows come, so that a killed evaluation goes on at the next one."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hf_ext.guards.disk import append_whole, drop_half_line, writing
from hf_ext.guards.runs import Processes, RunFolder

__all__ = ["RowRecord", "RowRecords"]

_PATTERN = "rows-*.jsonl"


@dataclass(frozen=True)
class RowRecord:
    """
    What came of a row; no text of it.

    Args:
        task (`str`):
            Label.
        row (`int`):
            Position in the task file, from 0.
        id (`str`):
            The file's.
        losses (`list[float]`):
            Of each option's answer, nats, summed over its tokens; empty for a generation.
        tokens (`list[int]`):
            Of each answer; 0: the option could not be scored.
        characters (`list[int]`):
            Of each option's own text.
        pick (`int`, *optional*):
            The option with the least loss a token; `None` where there are no options, or none could be scored.
        correct (`bool`):
            Whether the row counts as right.
        truncated (`bool`):
            Whether its prompt was cut from the left.
    """

    task: str
    row: int
    id: str
    losses: list[float]
    tokens: list[int]
    characters: list[int]
    pick: int | None
    correct: bool
    truncated: bool


class RowRecords:
    """
    The records of one task under one model, in memory or in a folder.

    Each process appends to a file of its own and reads all of them, so their number may change from run to run.

    Args:
        folder (`Path`, *optional*):
            `None` keeps nothing.
        identity (`Mapping`):
            What the records depend on: the weights, the tokenizer, the task file, the protocol.
        processes ([`Processes`]):
            Of the run.
        number (`int`):
            Of this process.

    Raises:
        ValueError: if the folder holds records of another identity, or damaged ones.
    """

    def __init__(self, folder: Path | None, identity: Mapping[str, Any], processes: Processes, number: int) -> None:
        self.folder = folder
        self.records: dict[int, RowRecord] = {}
        if folder is None:
            return
        self.path = folder / f"rows-{number:05}.jsonl"
        RunFolder(folder, processes=processes).begin(identity)
        drop_half_line(self.path)
        processes.wait_for_everyone()  # no file ends in half a line before another process reads it
        for path in sorted(folder.glob(_PATTERN)):
            for record in _read(path):
                self.records[record.row] = record
        processes.wait_for_everyone()  # and none grows meanwhile

    def add(self, records: Iterable[RowRecord], *, is_ours: bool = True) -> None:
        """
        Keep records; those of this process are appended to its file, in one piece.

        Raises:
            DiskFullError: if there is no room; what was appended before is whole.
        """
        records = list(records)
        if self.folder is not None and is_ours and records:
            lines = "".join(json.dumps(asdict(record)) + "\n" for record in records)
            advice = "Free some space and run again: it goes on at the next row."
            with writing("the rows' results", self.path, advice=advice):
                append_whole(self.path, [lines.encode()])
        self.records.update((record.row, record) for record in records)


def _read(path: Path) -> list[RowRecord]:
    # Behind the last line end stands what another process, killed, did not finish.
    lines = path.read_bytes().split(b"\n")[:-1]
    records = []
    for number, line in enumerate(lines):
        try:
            records.append(_record(json.loads(line)))
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"{path}, line {number + 1:,}, is no row's result ({error}). Remove the file, and its rows are scored "
                "again."
            ) from error
    return records


def _record(values: dict[str, Any]) -> RowRecord:
    record = RowRecord(**values)
    sizes = {len(record.losses), len(record.tokens), len(record.characters)}
    kinds = (type(record.row), type(record.correct), type(record.truncated))
    numbers = [*record.losses, *record.tokens, *record.characters]
    if kinds != (int, bool, bool) or len(sizes) > 1 or not all(map(math.isfinite, numbers)):
        raise ValueError("a field of another kind")
    return record
