"""Whether a checkpoint is whole: a manifest written last, and checks of structure where there is none."""

from __future__ import annotations

import json
import os
import re
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_ext.guards.disk import flush, flush_folder, write_whole
from hf_ext.guards.inside import require_file, require_inside, require_path_inside
from hf_ext.guards.torch_files import torch_file_problem

SEAL_NAME = "hf_ext_checkpoint.json"
"""File that makes a folder a whole checkpoint: size and CRC-32 of every other file. It is written last."""

UNFINISHED = "checkpoint-is-incomplete.txt"  # transformers puts it there while it saves on SIGTERM
FORMAT_REVISION = 1
CHUNK = 8 * 1024**2
_NAME = re.compile(r"checkpoint-(\d+)")
_STATE = "trainer_state.json"
NEVER_LOADED = ("training_args.bin",)  # a pickle that transformers writes for people; nothing reads it back


class DamagedCheckpointError(ValueError):
    """A checkpoint cannot be used; the message names it, the file, the problem and what to do."""


@dataclass(frozen=True)
class Damage:
    """
    What is wrong with a checkpoint.

    Args:
        checkpoint (`Path`): its folder.
        file (`str`): the first file at fault, relative to it.
        problem (`str`): what is wrong with that file.
    """

    checkpoint: Path
    file: str
    problem: str

    def __str__(self) -> str:
        return f"{self.checkpoint}: {self.file} {self.problem}"


def checkpoints_in(folder: str | os.PathLike[str]) -> list[Path]:
    """Folders `checkpoint-N` in `folder`, the newest (largest `N`) first."""
    root = Path(folder)
    if not root.is_dir():
        return []
    folders = [path for path in root.iterdir() if _NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(folders, key=lambda path: int(path.name.rpartition("-")[2]), reverse=True)


def is_sealed(checkpoint: str | os.PathLike[str]) -> bool:
    """Whether the checkpoint was finished: it has a manifest."""
    return (Path(checkpoint) / SEAL_NAME).is_file()


def unseal(checkpoint: str | os.PathLike[str]) -> None:
    """Mark a checkpoint as unfinished, before anything is written into it."""
    (Path(checkpoint) / SEAL_NAME).unlink(missing_ok=True)


def seal(checkpoint: str | os.PathLike[str]) -> None:
    """
    Flush a finished checkpoint to the disk, then write its manifest: from here on it counts as whole.

    Every file below the folder is covered, whichever process wrote it, so all of them must have finished.

    Raises:
        OSError: if the disk is full, or a file cannot be read back.
    """
    root = Path(checkpoint)
    with ThreadPoolExecutor(max_workers=4) as pool:  # zlib lets other threads run
        names = _files(root)
        facts = dict(zip(names, pool.map(lambda name: _flushed_facts(root / name), names), strict=True))
    # a file's name is an entry of its folder, which a power cut may lose too
    for folder in {root, root.parent, *((root / name).parent for name in names)}:
        flush_folder(folder)
    values = {"format_revision": FORMAT_REVISION, "files": facts}
    # No line end: a manifest cut anywhere is no JSON. The check finds a changed letter in a name or number.
    write_whole(root / SEAL_NAME, json.dumps({**values, "check": _check(values)}, indent=1))


def find_damage(checkpoint: str | os.PathLike[str]) -> Damage | None:
    """
    The first thing wrong with a checkpoint, or `None`.

    With a manifest every file is compared by size and CRC-32: any cut, any single changed bit. Without one (a stock
    trainer's) only the structure is checked: JSON parses, safetensors and torch files are as long as they say.
    """
    root = Path(checkpoint)
    if not root.is_dir():
        return Damage(root, ".", "is missing: there is no such folder")
    return _differs_from_manifest(root) if is_sealed(root) else _is_malformed(root)


def find_missing_state(checkpoint: str | os.PathLike[str]) -> Damage | None:
    """What a run needs in order to go on exactly, and the checkpoint does not hold, or `None`."""
    root = Path(checkpoint)
    if not (root / _STATE).is_file():
        return Damage(root, _STATE, "is missing: the save did not finish, or this is no trainer's checkpoint")
    if any(root.glob("global_step*")):  # DeepSpeed keeps everything in there
        return None
    for pattern, name in (
        ("*optimizer*", "optimizer.pt"),
        ("scheduler.pt", "scheduler.pt"),
        ("rng_state*", "rng_state.pth"),
    ):
        if not any(root.glob(pattern)):
            return Damage(root, name, "is missing (deleted, or left out by save_only_model=True)")
    return None


def newest_whole(folder: str | os.PathLike[str]) -> tuple[Path | None, list[Damage]]:
    """
    The newest checkpoint in `folder` that was finished and is undamaged.

    Returns:
        `tuple[Path | None, list[Damage]]`: the checkpoint, and what is wrong with each newer one.
    """
    damages: list[Damage] = []
    for checkpoint in checkpoints_in(folder):
        damage = _cannot_resume(checkpoint) if is_sealed(checkpoint) else _unfinished(checkpoint)
        if damage is None:
            return checkpoint, damages
        damages.append(damage)
    return None, damages


def choose_newest(folder: str | os.PathLike[str]) -> tuple[Path, list[Damage]]:
    """
    The checkpoint to resume from when none is named.

    Returns:
        `tuple[Path, list[Damage]]`: the newest whole checkpoint, and what is wrong with each newer one.

    Raises:
        ValueError: if there is no checkpoint.
        DamagedCheckpointError: if there are some and none is whole.
    """
    checkpoint, damages = newest_whole(folder)
    if checkpoint is not None:
        return checkpoint, damages
    if not damages:
        raise ValueError(f"There is no checkpoint in {folder} to resume from. Train without resume_from_checkpoint.")
    raise DamagedCheckpointError(
        f"No checkpoint in {folder} is whole. {'; '.join(map(str, damages))}. Train again without "
        f"resume_from_checkpoint{_hint(damages)}."
    )


def require_whole(checkpoint: str | os.PathLike[str], folder: str | os.PathLike[str]) -> str | None:
    """
    Refuse to resume from a damaged checkpoint that was named.

    Args:
        checkpoint (`str` or `os.PathLike`):
            The checkpoint's folder.
        folder (`str` or `os.PathLike`):
            The run's output folder: others are looked for beside the checkpoint, then there.

    Returns:
        `str` or `None`: a warning where only the structure could be checked.

    Raises:
        DamagedCheckpointError: if it is damaged; the message names checkpoint, file, problem and the newest whole one.
    """
    damage = _cannot_resume(checkpoint)
    if damage is None:
        if is_sealed(checkpoint):
            return None
        return (
            f"{checkpoint} has no {SEAL_NAME} (a stock trainer's, or the save was interrupted at its very end): its "
            "files have the right structure, but their content could not be checked."
        )
    other = newest_whole(Path(checkpoint).parent)[0] or newest_whole(folder)[0]
    remedy = "No other checkpoint there is whole: train again without resume_from_checkpoint"
    if other is not None:
        remedy = f"The newest whole checkpoint is {other}: pass that as resume_from_checkpoint, or true to find it"
    raise DamagedCheckpointError(f"Cannot resume from checkpoint {damage}. {remedy}.")


def _cannot_resume(checkpoint: str | os.PathLike[str]) -> Damage | None:
    return find_damage(checkpoint) or find_missing_state(checkpoint) or find_foreign(checkpoint)


def find_foreign(checkpoint: str | os.PathLike[str]) -> Damage | None:
    """A file that no trainer saves: a link out of the folder, a torch file that would run code or is packed."""
    root = Path(checkpoint)
    for path in sorted(root.iterdir()):
        if path.is_dir():
            continue
        problem = None
        try:
            require_inside(require_file(path), root)
        except (ValueError, FileNotFoundError) as error:
            return Damage(root, path.name, f"is not what was saved: {error}")
        if path.suffix in (".pt", ".pth", ".bin") and path.name not in NEVER_LOADED:
            problem = torch_file_problem(path)
        if problem is not None:
            return Damage(root, path.name, problem)
    return None


def _unfinished(checkpoint: Path) -> Damage:
    return Damage(checkpoint, SEAL_NAME, "is missing: the save did not finish, or a stock trainer saved it")


def _hint(damages: list[Damage]) -> str:
    """For checkpoints of a stock trainer: named, they are taken after a check of their structure."""
    for damage in damages:
        if damage.file == SEAL_NAME and _cannot_resume(damage.checkpoint) is None:
            return f", or name {damage.checkpoint}, whose files at least have the right structure"
    return ""


# --- with a manifest -------------------------------------------------------------------------------------------------


def _files(root: Path) -> list[str]:
    """Relative names of the files a manifest covers, in a fixed order."""
    excluded_names = (SEAL_NAME, UNFINISHED)
    return sorted(
        path.relative_to(root).as_posix()
        for path in root.rglob("*")
        if path.is_file() and path.name not in excluded_names and path.suffix != ".tmp"
    )


def _facts(path: Path) -> dict[str, Any]:
    check = 0
    size = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            check = zlib.crc32(chunk, check)
            size += len(chunk)
    return {"size": size, "crc32": f"{check:08x}"}


def _flushed_facts(path: Path) -> dict[str, Any]:
    facts = _facts(path)  # read first, while the pages are in memory
    flush(path)
    return facts


def _check(values: dict[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(values, sort_keys=True).encode()):08x}"


def _read_manifest(root: Path) -> dict[str, dict[str, Any]] | Damage:
    try:
        values = json.loads((root / SEAL_NAME).read_text(encoding="utf-8"))
        check = values.pop("check")
        files = values["files"]
        revision = values["format_revision"]
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):  # a decoding error is a ValueError
        return Damage(root, SEAL_NAME, "is damaged: it is not the JSON that was written")
    if check != _check(values):
        return Damage(root, SEAL_NAME, "is damaged: its content is not what was written")
    if revision != FORMAT_REVISION:
        return Damage(root, SEAL_NAME, f"has format {revision!r}, of a newer hf-ext: update hf-ext")
    return files


def _differs_from_manifest(root: Path) -> Damage | None:
    manifest = _read_manifest(root)
    if isinstance(manifest, Damage):
        return manifest
    for name in manifest:
        try:
            require_path_inside(name, SEAL_NAME)
        except ValueError as error:
            return Damage(root, SEAL_NAME, f"is not what was written: {error}")
    for name, facts in manifest.items():  # sizes first: they cost nothing
        if not (root / name).is_file():
            return Damage(root, name, f"is missing; it was saved with {facts['size']:,} bytes")
        size = (root / name).stat().st_size
        if size != facts["size"]:
            return Damage(root, name, f"has {size:,} bytes; it was saved with {facts['size']:,}")
    with ThreadPoolExecutor(max_workers=4) as pool:
        current_facts = list(pool.map(lambda name: _facts(root / name), manifest))
    for name, facts in zip(manifest, current_facts, strict=True):
        if facts != manifest[name]:
            return Damage(root, name, "has the right length but not the content that was saved (CRC-32 differs)")
    return None


# --- without one -----------------------------------------------------------------------------------------------------


def _is_malformed(root: Path) -> Damage | None:
    if (root / UNFINISHED).is_file():
        return Damage(root, UNFINISHED, "is there: the save was interrupted")
    for name in _files(root):
        problem = _malformed(root / name)
        if problem is not None:
            return Damage(root, name, problem)
    return None


def _malformed(path: Path) -> str | None:
    """What is wrong with a file's structure, by its kind; `None` for kinds without one."""
    size = path.stat().st_size
    if path.suffix == ".safetensors":
        return _malformed_safetensors(path, size)
    if path.suffix in (".pt", ".pth", ".bin") and path.name != "training_args.bin":
        return None if zipfile.is_zipfile(path) else f"is cut short: {size:,} bytes that are no torch file"
    if path.suffix == ".json":
        return _malformed_json(path, size)
    return None


def _malformed_json(path: Path, size: int) -> str | None:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return f"is cut short: {size:,} bytes that are no JSON"
    except RecursionError:
        return "is nested too deeply to be read"
    if path.name.endswith(".index.json") and isinstance(values, dict):
        weights = values.get("weight_map", {})
        if not isinstance(weights, dict) or not all(isinstance(name, str) for name in weights.values()):
            return "has no 'weight_map' of names of files"
        for name in set(weights.values()):
            try:
                require_path_inside(name, path.name)
            except ValueError as error:
                return f"is not what was saved: {error}"
        missing = {name for name in weights.values() if not (path.parent / name).is_file()}
        return f"names {min(missing)}, which is missing" if missing else None
    return None


def _malformed_safetensors(path: Path, size: int) -> str | None:
    # the format: 8 bytes with the length of the header, the header as JSON, the tensors up to its largest offset
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        text = file.read(length) if size >= 8 and length <= size else b""
    try:
        entries = json.loads(text)
        ends = [int(entry["data_offsets"][1]) for name, entry in entries.items() if name != "__metadata__"]
    except (ValueError, LookupError, AttributeError, TypeError, RecursionError):
        return f"is cut short: {size:,} bytes without a whole header"
    expected = 8 + length + max(ends, default=0)
    return None if size == expected else f"has {size:,} bytes; its header says {expected:,}"
