"""Task files of a folder: looked up by label, read row by row, every row checked and named where it is wrong."""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_ext.evaluation.core.aggregate import CoreIncomplete
from hf_ext.evaluation.core.tasks import CORE_TASKS, TASKS, CoreTask
from hf_ext.guards.inside import file_in, read_json
from hf_ext.guards.row_errors import RowError
from hf_ext.guards.row_text import describe, shorten
from hf_ext.guards.unpacked import require_modest, require_shallow

__all__ = ["CoreRow", "TaskRows", "load_tasks", "task_files"]

MANIFEST = "tasks.json"
BUNDLE_FOLDERS = ("", "eval_data", "local_data")  # where DCLM's bundle and nanochat's keep the folders of task files
_FIXES = "Fix the row in the file, or leave the task out with `tasks`."


@dataclass(frozen=True)
class CoreRow:
    """
    A checked row of a task file, its texts as they stand there.

    Args:
        index (`int`):
            Position in the file, from 0.
        id (`str`):
            The file's own, or label and position.
        contexts (`tuple[str, ...]`):
            What stands before an answer: one text, or an option each of a schema.
        answers (`tuple[str, ...]`):
            Options of a multiple choice, the accepted answers of a generation, one text otherwise.
        gold (`int`, *optional*):
            The right option; `None` where there are none.
        category (`str`, *optional*):
            Where the task has them.
        reasoning (`str`, *optional*):
            The chain of thought of a generation.
    """

    index: int
    id: str
    contexts: tuple[str, ...]
    answers: tuple[str, ...]
    gold: int | None = None
    category: str | None = None
    reasoning: str | None = None


@dataclass(frozen=True)
class TaskRows:
    """
    A task and its rows.

    Args:
        task (`CoreTask`):
            How it is asked.
        rows (`list[CoreRow]`):
            In file order, which decides what examples a row is shown.
        digest (`str`):
            SHA-256 of the file's unpacked content.
    """

    task: CoreTask
    rows: list[CoreRow]
    digest: str


def load_tasks(data: str | Path, tasks: str | Sequence[str] = "available") -> list[TaskRows]:
    """
    The wanted tasks of a folder, with their rows.

    Args:
        data (`str` or `Path`):
            A folder with `tasks.json`, `{task: {"file": name, "type": type, "dclm_labels": [{"label": label}, ...]}}`,
            or DCLM's evaluation bundle. Files are JSON lines, packed with gzip or not.
        tasks (`str` or `Sequence[str]`, *optional*, defaults to `"available"`):
            `"available"`: those of CORE that the folder has. `"core"`: all 22. `"all"`: every known task it has, those
            of EXTENDED too. Otherwise labels.

    Raises:
        CoreIncomplete: if `tasks="core"` and the folder lacks some.
        RowError: if a row cannot be used; the message names task, row and field.
        ValueError: if the folder holds no task, a label is unknown or not there, or a file cannot be read.
    """
    files = task_files(data)
    labels = _wanted(tasks, files, data)
    return [_read(TASKS[label], files[label]) for label in labels]


def task_files(data: str | Path) -> dict[str, Path]:
    """
    Label to task file, of the known labels that a folder has.

    Raises:
        ValueError: if the folder is none, holds no task file, or its manifest cannot be used.
    """
    folder = Path(data)
    if not folder.is_dir():
        raise ValueError(
            f"data={str(data)!r} is no folder; give the one with {MANIFEST}, or DCLM's evaluation bundle."
        )
    files = _of_manifest(folder) if (folder / MANIFEST).exists() else _of_bundle(folder)
    if not files:
        raise ValueError(
            f"{folder} holds no task file: neither {MANIFEST} nor DCLM's bundle, such as {TASKS['copa'].file}."
        )
    return files


def _of_manifest(folder: Path) -> dict[str, Path]:
    manifest = folder / MANIFEST
    files = {}
    for name, entry in read_json(manifest, subject="a list of tasks").items():
        try:
            labels = [item["label"] for item in entry["dclm_labels"]]
            file_name, task_type = entry["file"], entry["type"]
        except (KeyError, TypeError) as error:
            raise ValueError(f"{manifest}: {name!r} lacks file, type or dclm_labels ({error}).") from error
        for label in labels:
            if not isinstance(label, str) or label not in TASKS:
                continue  # another benchmark's: its prompt is not known
            if label in files:
                raise ValueError(f"{manifest}: {label!r} is there twice, the second time under {name!r}.")
            if task_type != TASKS[label].type:
                raise ValueError(
                    f"{manifest}: {name!r} has the type {task_type!r}; {label!r} is of type {TASKS[label].type!r}."
                )
            files[label] = file_in(folder, file_name, manifest)
    return files


def _of_bundle(folder: Path) -> dict[str, Path]:
    files = {}
    for label, task in TASKS.items():
        places = [folder / inner / (task.file + ending) for inner in BUNDLE_FOLDERS for ending in ("", ".gz")]
        path = next((place for place in places if place.is_file()), None)
        if path is not None:
            files[label] = path
    return files


def _wanted(tasks: str | Sequence[str], files: Mapping[str, Path], data: str | Path) -> list[str]:
    missing = [label for label in CORE_TASKS if label not in files]
    if tasks == "core":
        if missing:
            raise CoreIncomplete(missing, f"{data} does not have them; tasks='available' measures the others.")
        return list(CORE_TASKS)
    if tasks == "available":
        if len(missing) == len(CORE_TASKS):
            raise ValueError(f"{data} holds none of CORE's tasks; tasks='all' measures what it has.")
        return [label for label in CORE_TASKS if label in files]
    if tasks == "all":
        return [label for label in TASKS if label in files]
    labels = [tasks] if isinstance(tasks, str) else list(tasks)
    for label in labels:
        if label not in TASKS:
            raise ValueError(f"{label!r} is no task of DCLM's evaluation; {data} has {', '.join(sorted(files))}.")
        if label not in files:
            raise ValueError(f"{data} has no file for {label!r}; it has {', '.join(sorted(files))}.")
    if not labels:
        raise ValueError("tasks is empty: name at least one.")
    return list(dict.fromkeys(labels))


# --- rows ------------------------------------------------------------------------------------------------------------


def _read(task: CoreTask, path: Path) -> TaskRows:
    require_modest(path)
    require_shallow(path)
    digest = hashlib.sha256()
    rows: list[CoreRow] = []
    for line in _lines(path):
        digest.update(line)
        if line.strip():
            rows.append(_row(task, len(rows), line))
    if not rows:
        raise ValueError(f"task {task.label!r}: {path} has no row.")
    return TaskRows(task, rows, digest.hexdigest())


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            yield from file
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} cannot be read: {error}.") from error


def _row(task: CoreTask, index: int, line: bytes) -> CoreRow:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise _error(task, index, "line", f"it is no JSON ({error})", line.decode("utf-8", "replace")) from error
    if not isinstance(values, dict):
        raise _error(task, index, "line", f"expected an object, found {describe(values)}", values)
    fields = _Fields(task, index, values)
    gold: int | None = None
    contexts: tuple[str, ...]
    answers: tuple[str, ...]
    if task.type == "multiple_choice":
        contexts = (fields.text("query"),)
        answers = fields.texts("choices")
        gold = fields.gold(len(answers))
    elif task.type == "schema":
        contexts = fields.texts("context_options")
        answers = (fields.text("continuation"),)
        gold = fields.gold(len(contexts))
    elif task.type == "language_modeling":
        contexts = (fields.text("context"),)
        answers = (fields.text("continuation"),)
    else:
        contexts = (fields.text("context"),)
        answers = (fields.text("answer"), *(fields.texts("aliases") if values.get("aliases") else ()))
    identifier = values.get("id")
    return CoreRow(
        index,
        f"{task.label}-{index}" if identifier is None else str(identifier),
        contexts,
        answers,
        gold,
        fields.text("category") if task.has_categories else None,
        fields.text("chain_of_thought") if task.is_reasoned else None,
    )


@dataclass(frozen=True)
class _Fields:
    """The fields of one row, each of the type that the task needs."""

    task: CoreTask
    index: int
    values: dict[str, Any]

    def text(self, name: str) -> str:
        value = self.values.get(name)
        if not isinstance(value, str):
            raise self._error(name, f"expected a string, found {describe(value)}")
        return self._encodable(name, value)

    def texts(self, name: str) -> tuple[str, ...]:
        value = self.values.get(name)
        if not (isinstance(value, list) and value and all(isinstance(text, str) for text in value)):
            raise self._error(name, f"expected a list of strings, found {describe(value)}")
        return tuple(self._encodable(name, text) for text in value)

    def _encodable(self, name: str, text: str) -> str:
        """The text, which a tokenizer reads as UTF-8: JSON can spell half of a character."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise self._error(name, f"expected text, found half of a character ({error.reason})") from None
        return text

    def gold(self, count: int) -> int:
        value = self.values.get("gold")
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._error("gold", f"expected the right option's position, an integer, found {describe(value)}")
        if not 0 <= value < count:
            raise self._error("gold", f"expected a position from 0 to {count - 1}, found {value}")
        return value

    def _error(self, name: str, problem: str) -> RowError:
        return _error(self.task, self.index, name, problem, self.values)


def _error(task: CoreTask, index: int, column: str, problem: str, row: object) -> RowError:
    message = f"task {task.label!r}, row {index:,}, field {column!r}: {problem}.\n  {shorten(row)}\n  {_FIXES}"
    return RowError(message, index, column)
