"""What of a folder may leave for the Hub: no secret, no link out of it, no pickle, nothing to resume from."""

from __future__ import annotations

import glob
import logging
import os
from collections.abc import Iterable, Iterator
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from hf_ext.hub.credentials import LABEL_KEY, any_of, find_credential, is_secret_name
from hf_ext.hub.pickles import is_pickle
from hf_ext.hub.retry import PushError

__all__ = ["files_that_could_go", "files_to_push", "matches", "strings"]

logger = logging.getLogger(__name__)

# Names of files and folders at any depth, without case; a slash at the end: only of folders.
LEFTOVERS = (
    ".git", ".hg", ".svn", ".cache", ".*_cache/", ".venv", "__pycache__", ".ipynb_checkpoints", ".ds_store", ".idea/",
    ".vscode/", "node_modules/", ".hf-ext*", "*.lock", "*.tmp", "*~", "*.sw[op]", ".#*", "#*#", "cache-*.arrow",
    "_saving/", "_push-*/", "_data/",
)  # fmt: skip
STATES = (
    "checkpoint-*/", "bad_rows*.jsonl", "fresh_samples/", "training_args.json", "trainer_state.json",
    "hf_ext_checkpoint.json",
)  # fmt: skip
# Of a model's run: what it knows of every row. A dataset may well be called so.
ROWS = (
    "original_losses/", "context_free/", "rounds/", "folds/", "round-[0-9]*/", "consensus.json", "online.json",
    "answers/", "answers*.jsonl", "pairs*.jsonl", "predictions/", "predictions*.jsonl", "partition.json",
    "partition.md", "mixture_datasets.yaml", "states-*.safetensors", "*.arrow", "wandb/",
)  # fmt: skip

LINK = "links to folders, to nothing or to somewhere else"
PICKLE = "pickles, which run code when loaded, or named like them"
NAMED_SO = "named like secrets"
STAYS = "leftovers, states and rows of a run"
UNDERSCORE = "at the top and begin with an underscore, as what is private does; rename what should go"

_STAYS = {"dataset": any_of((*LEFTOVERS, *STATES)), "model": any_of((*LEFTOVERS, *STATES, *ROWS))}


def files_to_push(folder: str | Path, ignore: str | Iterable[str] = (), repo_type: str = "model") -> dict[str, Path]:
    """
    Files of a folder that may go to the Hub, by their path inside it.

    Left out, at any depth, are files named like secrets, links out of the folder and pickles (a warning names them);
    what tools leave behind, checkpoints and bad rows; and, of a model, stores, predictions and answers, row by row.
    `ignore` comes on top of that.

    Args:
        folder (`str` or `Path`):
            The folder; it is only read.
        ignore (`str` or `Iterable[str]`, *optional*):
            More patterns of files to leave out, as in [`matches`].
        repo_type (`str`, *optional*, defaults to `"model"`):
            `"model"` or `"dataset"`.

    Returns:
        `dict[str, Path]`: path inside the folder, with slashes, to the file.

    Raises:
        NotADirectoryError: if there is no such folder.
        PushError: if a file that would go holds a key or a token.
        ValueError: if nothing is left to push.
    """
    patterns = strings(ignore, "ignore")
    root = Path(folder).expanduser().resolve()
    if not root.is_dir():
        raise NotADirectoryError(f"{folder} is no folder: save the model or the dataset first, then push it.")
    files: dict[str, Path] = {}
    staying: dict[str, list[str]] = {}
    for name, path, reason in _entries(root, repo_type):
        if matches(name, patterns):
            continue
        if reason is None and is_pickle(path):
            reason = PICKLE
        if reason is None:
            files[name] = path
        else:
            staying.setdefault(reason, []).append(name)
    for reason, names in staying.items():
        level = logging.INFO if reason == STAYS else logging.WARNING
        logger.log(level, "Not pushed from %s: %s (%s).", folder, ", ".join(names), reason)
    if not files:
        raise ValueError(
            f"Nothing to push in {folder}: it has no file besides pickles, what stays here and what 'ignore' names."
        )
    for name, path in files.items():
        _refuse_credential(name, path, folder)
    return files


def files_that_could_go(folder: Path) -> list[str]:
    """Paths of a dataset's files whose names do not keep them here; their content is not read."""
    return [name for name, _, reason in _entries(folder, "dataset") if reason is None]


def matches(name: str, patterns: Iterable[str]) -> bool:
    """
    Whether one of the patterns, as in `fnmatch`, is for the path `name`, or for a folder that it is in.

    A pattern that ends in a slash or begins with `**/` is looked for at any depth: `logs/` is every folder `logs`.
    """
    folders = [folder.as_posix() for folder in PurePosixPath(name).parents][:-1]
    for pattern in patterns:
        plain = pattern.removeprefix("./").removeprefix("**/").strip("/")
        places = folders if pattern.endswith("/") else [name, *folders]
        anywhere = pattern.startswith("**/") or (pattern.endswith("/") and not pattern.startswith(("/", "./")))
        if any(fnmatch(place, plain) or (anywhere and fnmatch(place, f"*/{plain}")) for place in places):
            return True
    return False


def strings(value: str | Iterable[str] | None, argument: str) -> tuple[str, ...]:
    """
    A list of texts as somebody passes it: one text is one entry, and no list of letters.

    Raises:
        TypeError: if something in it is no text.
    """
    entries = () if value is None else (value,) if isinstance(value, str) else tuple(value)
    wrong = [entry for entry in entries if not isinstance(entry, str)]
    if wrong:
        raise TypeError(f"{argument} takes a text or a list of texts; {wrong[0]!r} is none.")
    return entries


def _entries(root: Path, repo_type: str) -> Iterator[tuple[str, Path, str | None]]:
    """Every file below `root` with the reason why it stays, if any; a folder that stays is named and not entered."""
    for parent, folder_names, file_names in os.walk(root, onerror=_raise):
        parent_path = Path(parent)
        inside = "" if parent_path == root else f"{parent_path.relative_to(root).as_posix()}/"
        if repo_type == "model" and inside and any(name.endswith(".arrow") for name in file_names):
            folder_names.clear()  # a store or a saved dataset: its manifest says nothing without it
            yield inside, parent_path, STAYS
            continue
        for name in sorted(folder_names):
            reason = LINK if (parent_path / name).is_symlink() else _reason(f"{name}/", repo_type, at_top=not inside)
            if reason is not None:
                folder_names.remove(name)
                yield f"{inside}{name}/", parent_path / name, reason
        folder_names.sort()
        for name in sorted(file_names):
            path = parent_path / name
            reason = _reason(name, repo_type, at_top=not inside)
            if path.is_symlink():
                reason = reason or _link_reason(path, root, repo_type)
            elif not path.is_file():
                continue  # a socket or a pipe
            yield inside + name, path, reason


def _raise(error: OSError) -> None:
    raise error  # os.walk alone would pass over a folder that it cannot read


def _reason(name: str, repo_type: str, at_top: bool = False) -> str | None:
    """Why a file stays, or a folder with a slash behind its name."""
    if is_secret_name(name):
        return NAMED_SO
    if _STAYS["model" if repo_type == "model" else "dataset"].match(name.casefold()) is not None:
        return STAYS
    return UNDERSCORE if at_top and name.startswith("_") else None


def _link_reason(link: Path, root: Path, repo_type: str) -> str | None:
    """A link may point into the folder, at what may go itself; or, from the Hub's cache, at its own blobs."""
    try:
        target = link.resolve(strict=True)
    except (OSError, RuntimeError):  # to nothing; in a circle
        return LINK
    if not target.is_file():
        return LINK
    if root.parent.name == "snapshots" and target.is_relative_to(root.parent.parent / "blobs"):
        return None
    if not target.is_relative_to(root):
        return LINK
    inside = target.relative_to(root)
    names = [f"{parent.name}/" for parent in inside.parents if parent.name] + [inside.name]
    return next(filter(None, (_reason(name, repo_type) for name in names)), None)


def _refuse_credential(name: str, path: Path, folder: str | Path) -> None:
    credential = find_credential(path)
    if credential is None:
        return
    checksum = " If it is a checksum, write the name of its file beside it." if credential.kind == LABEL_KEY else ""
    raise PushError(
        f"{folder} was not pushed: {name}, {credential.place}, holds {credential.kind}. Take it out of the file, or "
        f"leave the file out with ignore={glob.escape(name)!r}. If it ever was where others can read it, have it "
        f"replaced.{checksum}"
    )
