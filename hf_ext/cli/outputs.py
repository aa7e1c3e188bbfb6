"""Where a verb writes: checked before the work begins, held for this process, and nothing in it lost."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

from hf_ext.cli.options import option
from hf_ext.guards.locks import is_lock
from hf_ext.guards.runs import claimed_file, claimed_folder

if TYPE_CHECKING:
    from hf_ext.guards.reports import SavedReport

ROW_SUFFIXES = ("", ".parquet", ".jsonl")
# Options that name a file or folder which is read, or which is written beside the output.
INPUT_OPTIONS = (
    "dataset", "target", "general_text", "beir", "store", "exemplars", "model", "reference", "original", "encoder",
    "key_file", "config", "context_free", "positives", "negatives", "classifier", "index", "benchmark", "candidate",
    "items", "compare",
)  # fmt: skip
RESUMED_OPTIONS = ("cache_dir", "resume_path")
_SAVED_DATASET = ("dataset_info.json", "state.json")


def add_output_options(
    parser: argparse._ActionsContainer, description: str, required: bool = False, metavar: str | None = None
) -> None:
    """Add `--output`, whose help is `description`, and `--overwrite`."""
    option(parser, "--output", required=required, metavar=metavar, help=description)
    option(parser, "--overwrite", action="store_true", help="replace what is there; never something that is read")


@contextmanager
def rows_output(options: argparse.Namespace, report: Sequence[str] | None = None) -> Iterator[Path]:
    """
    The place of `--output` for rows, a file or a folder, held for this process; and that of `--report`.

    Args:
        options (`argparse.Namespace`):
            With `output`, `overwrite` and any of `report`, `INPUT_OPTIONS` and `RESUMED_OPTIONS`.
        report (`Sequence[str]`, *optional*):
            Names of the files of `--report` where that is a folder; without them it is a file.

    Raises:
        ValueError: if the suffix is another, something there may not be replaced, or the place is one that is read.
        InUseError: if another process writes there.
        NotWritableError: if it cannot be written.
    """
    output = Path(options.output)
    if output.suffix not in ROW_SUFFIXES:
        raise ValueError(f"--output {str(output)!r}: give a .parquet or .jsonl file, or a folder without a suffix")
    _refuse_what_is_read(options, "output")
    if output.suffix:
        _refuse_file(options, "output")
    else:
        _refuse_folder(options, "output", _SAVED_DATASET, "a dataset that save_to_disk wrote")
    with ExitStack() as claims:
        claims.enter_context(claimed_file(output))
        if getattr(options, "report", None) is not None:
            _refuse_what_is_read(options, "report")
            if _same(Path(options.report), output):
                raise ValueError(f"--report {options.report!r} is the --output itself; name another")
            if _is_inside(Path(options.report), output):  # the folder of rows is put in its place as a whole
                raise ValueError(
                    f"--report {options.report!r} lies in the --output, which is to hold the rows alone; name another"
                )
            if report is None:
                _refuse_file(options, "report")
                claims.enter_context(claimed_file(Path(options.report)))
            else:
                _refuse_files_in(options, "report", report)
                claims.callback(_remove_if_empty, Path(options.report))  # the claims make it, and the work may fail
                for name in report:
                    claims.enter_context(claimed_file(Path(options.report) / name))
        yield output


@contextmanager
def file_output(options: argparse.Namespace, name: str = "output") -> Iterator[Path]:
    """
    The place of an option that names a file to write, held for this process.

    Raises:
        ValueError: if something is there and `--overwrite` is not given, or it is a place that is read.
        InUseError: if another process writes there.
        NotWritableError: if it cannot be written.
    """
    path = Path(getattr(options, name))
    _refuse_what_is_read(options, name)
    _refuse_file(options, name)
    with claimed_file(path):
        yield path


@contextmanager
def store_output(
    options: argparse.Namespace, marks: Sequence[str], content: str, files: Sequence[str] = ()
) -> Iterator[Path]:
    """
    The folder of `--output`: new, empty, or with `--overwrite` one that holds all of `marks`; held for this process.

    Hidden files and those that match `files` may be what a killed process left before its marks: they count as none.

    Raises:
        ValueError: if something else is there, or it is a place that is read.
        InUseError: if another process writes there.
        NotWritableError: if it cannot be written.
    """
    folder = Path(options.output)
    _refuse_what_is_read(options, "output")
    _refuse_folder(options, "output", marks, content, files)
    with claimed_folder(folder):
        yield folder


@contextmanager
def resumed_output(options: argparse.Namespace) -> Iterator[Path]:
    """
    The folder of `--output` for work that goes on where it stopped and looks itself at what is there; held meanwhile.

    Raises:
        ValueError: if it is a file, or a place that is read.
        InUseError: if another process writes there.
        NotWritableError: if it cannot be written.
    """
    folder = Path(options.output)
    _refuse_what_is_read(options, "output")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--output {str(folder)!r} is a file, and a folder is to be written; name another")
    for name in ("save", "save_index"):
        value = getattr(options, name, None)
        if value is not None and (_same(Path(value), folder) or _is_inside(Path(value), folder)):
            raise ValueError(f"--{_hyphened(name)} {value!r} lies in the --output; name a place beside it")
    with claimed_folder(folder):
        yield folder


def check_folder_output(options: argparse.Namespace, name: str, marks: Sequence[str], content: str) -> None:
    """
    Refuse the folder of an option where something else is, or without `--overwrite` `content`, of which `marks` tell.

    Raises:
        ValueError: if something is there that may not be replaced, or it is a place that is read.
    """
    _refuse_what_is_read(options, name)
    _refuse_folder(options, name, marks, content)


@contextmanager
def report_output(options: argparse.Namespace, files: Sequence[str]) -> Iterator[Path]:
    """
    The folder of `--report` where nothing else is written, held for this process.

    Raises:
        ValueError: if one of its files is there and `--overwrite` is not given, or the place is one that is read.
        InUseError: if another process writes there.
        NotWritableError: if it cannot be written.
    """
    folder = Path(options.report)
    check_files(options, "report", files)
    with claimed_folder(folder):
        yield folder


def require_folder(output: str | None) -> None:
    """Refuse a report's place now, and not after everything is measured."""
    if output is not None and Path(output).exists() and not Path(output).is_dir():
        raise ValueError(f"--output {output!r} is a file, and a folder is to be written; name another")


def print_report(report: SavedReport, folder: Path | None, *, as_json: bool) -> None:
    """Print a report as JSON, or as Markdown with the folder that it was written to, if any."""
    if as_json:
        print(json.dumps(report.to_dict(), indent=2))
        return
    print(report.to_markdown())
    if folder is not None:
        print(f"report: {folder}")


def check_files(options: argparse.Namespace, name: str, files: Sequence[str]) -> None:
    """
    Refuse the folder of an option where without `--overwrite` one of the files is, or that is read.

    Raises:
        ValueError: if one of its files is there and `--overwrite` is not given, or the place is one that is read.
    """
    _refuse_what_is_read(options, name)
    _refuse_files_in(options, name, files)


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


# --- what may not be there -------------------------------------------------------------------------------------------


def _refuse_what_is_read(options: argparse.Namespace, name: str) -> None:
    """Refuse an output that is, holds, or lies among what the command reads."""
    output = Path(getattr(options, name))
    if not output.name or output.name == "..":
        raise ValueError(f"--{name} {str(output)!r} names no file or folder; give it a name of its own")
    options_read = [(other, getattr(options, other, None)) for other in (*INPUT_OPTIONS, *RESUMED_OPTIONS)]
    for other, value in [
        (o, v) for o, values in options_read for v in (values if isinstance(values, list) else [values])
    ]:
        if not isinstance(value, str) or not Path(value).exists():  # a Hub name, or nothing yet
            if other in RESUMED_OPTIONS and isinstance(value, str) and _same(Path(value), output):
                raise ValueError(f"--{name} {str(output)!r} is the --{_hyphened(other)} too; name another")
            continue
        source = Path(value)
        label = f"--{_hyphened(other)} {value!r}"
        if _same(source, output):
            raise ValueError(f"--{name} {str(output)!r} is the {label} itself, which would be lost; name another")
        if output.is_dir() and _is_inside(source, output) and name == "output":
            raise ValueError(f"--{name} {str(output)!r} holds the {label}, which would be lost; name another")
        if other in ("dataset", "target", "beir") and source.is_dir() and _is_inside(output, source):
            raise ValueError(
                f"--{name} {str(output)!r} lies in the {label}, whose rows it would be among the next time; name "
                "another"
            )


def _same(path: Path, other: Path) -> bool:
    """Whether two paths are one place: by another spelling, a link or a hard link too."""
    if path.exists() and other.exists():
        return path.samefile(other)  # by inode, so that a hard link and another case of letters count too
    return path.resolve() == other.resolve()


def _is_inside(path: Path, folder: Path) -> bool:
    return folder.resolve() in path.resolve().parents


def _refuse_file(options: argparse.Namespace, name: str) -> None:
    path = Path(getattr(options, name))
    if path.is_dir():
        raise ValueError(f"--{name} {str(path)!r} is a folder, and a file is to be written; name another")
    if path.exists() and not path.is_file():
        raise ValueError(f"--{name} {str(path)!r} is no ordinary file; name another")
    if (path.exists() or path.is_symlink()) and not options.overwrite:
        raise ValueError(f"--{name} {str(path)!r} is there already; name another, or pass --overwrite to replace it")


def _refuse_folder(
    options: argparse.Namespace, name: str, marks: Sequence[str], content: str, files: Sequence[str] = ()
) -> None:
    path = Path(getattr(options, name))
    if path.exists() and not path.is_dir():
        raise ValueError(f"--{name} {str(path)!r} is a file, and a folder is to be written; name another")
    if path.is_symlink():  # it would be the link that the new folder replaces, and the old rows would stay
        raise ValueError(f"--{name} {str(path)!r} is a link; name the folder itself, or another")
    if not path.is_dir():
        return
    is_marked = all((path / mark).is_file() for mark in marks)
    if not is_marked and all(_is_leftover(inner.name, files) for inner in path.iterdir()):
        return
    if not is_marked:
        raise ValueError(f"--{name} {str(path)!r} is a folder with something in it; name another")
    if not options.overwrite:
        raise ValueError(
            f"--{name} {str(path)!r} holds {content} already; name another, or pass --overwrite to replace it"
        )


def _is_leftover(name: str, files: Sequence[str]) -> bool:
    is_ours = is_lock(name) or (name.startswith(".") and name.endswith(".tmp"))
    return is_ours or any(fnmatch(name, pattern) for pattern in files)


def _refuse_files_in(options: argparse.Namespace, name: str, names: Sequence[str]) -> None:
    folder = Path(getattr(options, name))
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--{name} {str(folder)!r} is a file, and a folder is to be written; name another")
    existing_files = [file for file in names if (folder / file).exists()]
    if existing_files and not options.overwrite:
        raise ValueError(
            f"--{name} {str(folder)!r} holds {existing_files[0]} already; name another, or pass --overwrite to "
            "replace it"
        )


def _hyphened(name: str) -> str:
    return name.replace("_", "-")
