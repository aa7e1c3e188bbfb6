"""The file of a matching under way, so that a killed one continues to the same picks."""

from __future__ import annotations

import hashlib
import io
import json
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from hf_ext.data.vectors.rows import BLOCK_ROWS, Rows
from hf_ext.guards.disk import write_whole, writing
from hf_ext.guards.runs import changed_settings, refuse_changes
from hf_ext.guards.unpacked import npz_arrays


class Saved:
    """
    What every group has got so far, written whole every `every` seconds.

    Args:
        path (`str` or `Path`, *optional*):
            The file; `None`: nothing is kept.
        rows (`Rows`):
            What is matched.
        settings (`dict`):
            All else that the picks depend on: plain values and arrays.
        every (`float`):
            Seconds from one writing to the next.

    Raises:
        ValueError: if the file is of other rows or settings, or is no such file.
    """

    def __init__(self, path: str | Path | None, rows: Rows, settings: dict[str, Any], every: float) -> None:
        self.path = None if path is None else Path(path)
        if not every >= 0:
            raise ValueError(f"save_every must be a number of seconds from 0, got {every}.")
        self.every = every
        self.groups: dict[str, dict[str, Any]] = {}
        self.lock = threading.Lock()  # groups are matched on several threads
        self.last_time = time.monotonic()
        if self.path is not None:
            self.settings = json.dumps(settings, sort_keys=True, default=_array_hash)
            self.identity = _identity(rows, self.settings)
            if self.path.exists():
                self._read(self.path)

    def _read(self, path: Path) -> None:
        try:
            arrays = npz_arrays(path)
            identity = str(arrays["identity"])
            # The version before wrote no settings beside the identity: what differs is then not known by name.
            former_settings = dict(json.loads(str(arrays.get("settings", self.settings))))
            for name, values in arrays.items():
                if "/" in name:
                    group, field = name.split("/", 1)
                    self.groups.setdefault(group, {})[field] = values
        except (ValueError, KeyError, TypeError, OSError, RecursionError) as error:
            raise ValueError(
                f"{path} is no file of a matching under way ({error}). Give another resume_path."
            ) from error
        if identity != self.identity:
            changes = changed_settings(former_settings, json.loads(self.settings))
            refuse_changes(path, changes or ["other rows or settings"], "give another resume_path")

    def __call__(self, group: str, fields: dict[str, np.ndarray], write_now: bool = False) -> None:
        """Keep a group's fields; write the file when it is time."""
        if self.path is None:
            return
        with self.lock:
            self.groups[group] = fields
            if write_now or time.monotonic() - self.last_time >= self.every:
                self._write(self.path)
                self.last_time = time.monotonic()

    def _write(self, path: Path) -> None:
        arrays = {f"{group}/{name}": value for group, fields in self.groups.items() for name, value in fields.items()}
        buffer = io.BytesIO()
        np.savez(buffer, identity=np.array(self.identity), settings=np.array(self.settings), **arrays)
        with writing("the picks so far", path, advice="The earlier file is intact: free some space and run again."):
            write_whole(path, buffer.getvalue())

    def finish(self) -> None:
        """Remove the file: the matching is done."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def _identity(rows: Rows, settings: str) -> str:
    """Hash of the settings and of every row."""
    digest = xxhash.xxh3_128(settings.encode())
    digest.update(str(rows.values.shape).encode())
    for start in range(0, len(rows.values), BLOCK_ROWS):  # lengths alone would not do: those of unit rows are all 1
        digest.update(np.ascontiguousarray(rows.values[start : start + BLOCK_ROWS]).data)
    return digest.hexdigest()


def _array_hash(value: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
