"""Rows for a recipe or a command: a Hub dataset, a folder or a single file, renamed to `prompt` and `completion`."""

from __future__ import annotations

import glob
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from hf_ext._columns import ROW_INDEX
from hf_ext.guards.inside import file_in, read_json, require_inside, require_links_inside, require_path_inside
from hf_ext.guards.models import first_line, loading_model
from hf_ext.guards.near_names import did_you_mean
from hf_ext.guards.unpacked import require_modest, require_shallow

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict
    from trl.scripts.utils import DatasetConfig

    AnyDataset: TypeAlias = Dataset | IterableDataset
    AnySplits: TypeAlias = DatasetDict | IterableDatasetDict

# Suffix of a local file -> the builder of `datasets.load_dataset`; each may be compressed with gzip.
FORMATS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv", ".txt": "text"}
_READERS = {*FORMATS.values(), "arrow"}  # paths of an entry of TRL's `datasets` whose `data_files` are local
_OTHER_FILES = (".warc", ".gz", ".zst")  # which curation reads, or with an ending that is mistyped, too
_REMOTE = ("hf://", "buckets/")  # as `datasets` (5.2) takes them


def file_format(name: str) -> str | None:
    """The `load_dataset` builder for a file of that name, or `None` where the suffix is not one of `FORMATS`."""
    return FORMATS.get(Path(name.removesuffix(".gz")).suffix)


def require_place(name: str) -> None:
    """
    Refuse a path at which nothing lies, before it is sought on the Hub for half a minute.

    A path begins with a dot or at the root, has more than one separator, or ends as the files do that are read; any
    other name may be one of the Hub's.

    Raises:
        ValueError: if there is nothing; the message has the names beside it that are nearly the same.
    """
    path = Path(name)
    is_file_name = file_format(name) is not None or name.endswith(_OTHER_FILES)
    is_path = is_file_name or name.startswith((".", "~")) or path.is_absolute() or len(path.parts) > 2
    if not is_path or name.startswith(_REMOTE) or path.exists():
        return
    absent = path
    while not absent.parent.exists() and absent.parent != absent:  # a drive that is not there has itself above it
        absent = absent.parent
    folder = absent.parent
    absence = "" if absent == path else f", for there is no {absent.name!r} in {str(folder)!r}"
    close_names = did_you_mean(absent.name, [other.name for other in folder.iterdir()] if folder.is_dir() else [])
    raise ValueError(
        f"dataset {name!r}: there is no such {'file' if is_file_name else 'folder'}{absence}{close_names}"
    )


def load_splits(
    name: str, config: str | None = None, streaming: bool = False, data_dir: str | None = None
) -> AnySplits:
    """
    Load every split of a dataset.

    Args:
        name (`str`):
            A file (`.jsonl`, `.json`, `.parquet`, `.csv`, `.txt`, also with `.gz`), which becomes the split `train`; a
            folder written by `save_to_disk`; a folder of data files; or the name of a Hub dataset.
        config (`str`, *optional*):
            Configuration of a Hub dataset; a file or a saved folder has none and takes no notice of it.
        streaming (`bool`, *optional*, defaults to `False`):
            Whether to stream.
        data_dir (`str`, *optional*):
            Folder inside a Hub dataset or a folder of data files; a file or a saved folder takes no notice of it.

    Raises:
        ValueError: if nothing can be loaded; the message has the name and the reason in a line.
    """
    from datasets import Dataset, DatasetDict, IterableDatasetDict, load_dataset, load_from_disk
    from datasets.exceptions import DatasetGenerationError

    path = Path(name)
    kind = file_format(name)
    require_place(name)
    if kind is None and path.suffix and path.is_file():  # without one it may be a name on the Hub as well
        raise ValueError(f"dataset {name!r} is a file of none of the kinds that are read: {', '.join(FORMATS)}")
    try:
        check_files(path, config, data_dir)
        if kind is not None:
            literal = glob.escape(str(path))  # `datasets` takes a pattern: `rows[12].jsonl` would be `rows1.jsonl`
            return load_dataset(kind, data_files={"train": literal}, streaming=streaming)
        if any((path / marker).is_file() for marker in ("state.json", "dataset_dict.json")):
            dataset = load_from_disk(str(path))
            splits = DatasetDict({"train": dataset}) if isinstance(dataset, Dataset) else dataset
            if not streaming:
                return splits
            return IterableDatasetDict({split: rows.to_iterable_dataset() for split, rows in splits.items()})
        return load_dataset(name, name=config, streaming=streaming, data_dir=data_dir)
    except Exception as error:  # readers raise what they like: BadZipFile, ArrowInvalid, EOFError, no connection...
        # how `datasets` (5.2) meets an empty JSON file, and Parquet without rows such as a curation that left none
        if isinstance(error, StopIteration) or "corresponds to no data" in str(error):
            raise ValueError(f"dataset {name!r} cannot be loaded: there is no row in it") from error
        # what went wrong while rows were read is behind a DatasetGenerationError that does not say it
        cause = error.__cause__ if isinstance(error, DatasetGenerationError) and error.__cause__ else error
        raise ValueError(f"dataset {name!r} cannot be loaded: {first_line(cause)}") from error


def check_files(path: Path, config: str | None, data_dir: str | None) -> None:
    """Refuse, by its name, a local file that lies outside of the folder given, is none, or would fill the memory."""
    if path.is_dir():
        for marker in ("state.json", "dataset_dict.json"):
            if (path / marker).exists():
                _check_saved(path, path, marker)
                return
        require_links_inside(path)
        from datasets import load_dataset_builder

        data_files = load_dataset_builder(str(path), name=config, data_dir=data_dir).config.data_files or {}
        for file in {str(file) for files in data_files.values() for file in files}:
            if "://" not in file:
                require_inside(file, path)
                _check_file(Path(file))
    elif file_format(path.name) is not None:
        _check_file(path)


def check_part(part: DatasetConfig) -> None:
    """
    Refuse local files of an entry of TRL's `datasets`, as [`check_files`] does; `data_files` may be patterns.

    Raises:
        ValueError: if a pattern matches nothing, or the name of a file is one that matches another; the message has
            how to write it.
        FileNotFoundError: if a file is not there.
    """
    check_files(Path(part.path), part.name, part.data_dir)
    files = part.data_files or []
    groups = [files] if isinstance(files, str) else list(files.values()) if isinstance(files, dict) else files
    names = [name for group in groups for name in ([group] if isinstance(group, str) else group)]
    for name in names if part.path in _READERS else ():  # of a folder or of the Hub: its own files
        if "://" in name:
            continue
        matches = glob.glob(name, recursive=True) if glob.has_magic(name) else [name]
        if not matches and Path(name).exists():
            raise ValueError(
                f"data_files {name!r} is a pattern, which that file does not match: {glob.escape(name)!r}"
            )
        if not matches:
            raise ValueError(f"data_files {name!r} match nothing")
        for match in matches:
            check_files(Path(match), part.name, part.data_dir)


def _check_file(path: Path) -> None:
    require_modest(path)
    if file_format(path.name) == "json":
        require_shallow(path)


def _check_saved(path: Path, root: Path, marker: str) -> None:
    """What `save_to_disk` wrote: its lists of splits and of files name nothing outside of it."""
    values = read_json(file_in(root, str((path / marker).relative_to(root)), root), subject=f"a {marker} of datasets")
    if marker == "dataset_dict.json":
        names = values.get("splits")
        for split in names if isinstance(names, list) else [names]:
            require_path_inside(split, path / marker)
            _check_saved(path / split, root, "state.json")
        return
    files = values.get("_data_files")
    for file in files if isinstance(files, list) else [files]:
        name = file.get("filename") if isinstance(file, dict) else file
        require_path_inside(name, path / marker)
        file_in(root, str((path / str(name)).relative_to(root)), path / marker)
    for other in (f"{marker}", "dataset_info.json"):
        if (path / other).exists():
            read_json(path / other, subject=f"a {other} of datasets")


def load_rows(
    name: str, *, config: str | None = None, split: str | None = None, streaming: bool = False
) -> AnyDataset:
    """
    One split of [`load_splits`]; the only one where `split` is not given.

    Raises:
        ValueError: if there is no such split, or there are several and none was named.
    """
    return pick_split(load_splits(name, config, streaming), split, name)


def pick_split(splits: AnySplits, split: str | None, name: str) -> AnyDataset:
    """The split of that name, or the only one where `split` is `None`; `name` is the dataset's, for the message."""
    if split is None and len(splits) == 1:
        return next(iter(splits.values()))
    if split not in splits:
        problem = "has several splits; name one of" if split is None else f"has no split {split!r}; it has"
        raise ValueError(f"dataset {name!r} {problem} {sorted(splits)}")
    return splits[split]


@dataclass(frozen=True)
class RenamedColumns:
    """
    Fill columns of one name from columns of another; several may swap names.

    | column in | type | column out | type |
    |---|---|---|---|
    | the second of each pair of `columns` | any | the first of the pair | the same |
    | what becomes `prompt` | str, or list of messages | `prompt` | the same, inside `prompt_template` if given |
    """

    columns: tuple[tuple[str, str], ...]
    prompt_template: str | None = None
    revision: str = "1"  # changes whenever the output would: datasets hashes this object, not the code behind it

    def __call__(self, batch: dict[str, list]) -> dict[str, list]:
        """Fill one batch."""
        filled = {name: batch[source] for name, source in self.columns}
        if self.prompt_template is not None:
            # A prompt that is no string is left for the row check, which names the row.
            wrap = lambda p: self.prompt_template.replace("{prompt}", p) if isinstance(p, str) else p  # noqa: E731
            filled["prompt"] = [wrap(prompt) for prompt in filled["prompt"]]
        return filled


def rename_columns(
    dataset: AnyDataset, prompt_column: str | None, completion_column: str | None, prompt_template: str | None = None
) -> AnyDataset:
    """
    Prompt-completion rows from two columns of any names; `weight` stays, other columns are left out.

    Args:
        dataset (`Dataset` or `IterableDataset`):
            Rows; taken as they are when neither column is named.
        prompt_column, completion_column (`str`, *optional*):
            Both or none.
        prompt_template (`str`, *optional*):
            Text around a string prompt, with `{prompt}` where it goes, such as `"Question: {prompt}\\nAnswer: "`.

    Raises:
        ValueError: if only one column is named, a column is missing, or the template has no `{prompt}`.
    """
    if prompt_column is None and completion_column is None and prompt_template is None:
        return dataset
    if prompt_column is None or completion_column is None:
        raise ValueError(
            "prompt_column and completion_column go together, and prompt_template needs both; got "
            f"prompt_column={prompt_column!r}, completion_column={completion_column!r}"
        )
    return take_columns(dataset, {"prompt": prompt_column, "completion": completion_column}, prompt_template)


def take_columns(dataset: AnyDataset, columns: dict[str, str], prompt_template: str | None = None) -> AnyDataset:
    """
    Rows with the keys of `columns`, each filled from the column it names; `weight` stays, other columns go.

    Args:
        dataset (`Dataset` or `IterableDataset`):
            Rows.
        columns (`dict[str, str]`):
            New name to old one.
        prompt_template (`str`, *optional*):
            Text around a string prompt, with `{prompt}` where it goes; needs a new column `prompt`.

    Raises:
        ValueError: if a column is missing, or the template has no `{prompt}` or no prompt to go around.
    """
    if prompt_template is not None and "{prompt}" not in prompt_template:
        raise ValueError(f"prompt_template={prompt_template!r} has no {{prompt}} in it")
    if prompt_template is not None and "prompt" not in columns:
        raise ValueError("prompt_template goes around a column 'prompt', and the rows have none; name prompt_column")
    from hf_ext.data.sft_rows import column_names

    names = column_names(dataset)
    for column in columns.values():
        if column not in names:
            raise ValueError(f"the dataset has no column {column!r}; it has {names}")
    beside = [name for name in ("weight", ROW_INDEX) if name in names and name not in columns]
    renamed = dataset.map(RenamedColumns(tuple(columns.items()), prompt_template), batched=True)
    return renamed.select_columns([*columns, *beside])


def first_rows(dataset: AnyDataset, count: int | None) -> AnyDataset:
    """The first `count` rows, or all; `ValueError` where `count` is below 1."""
    if count is None:
        return dataset
    if count < 1:
        raise ValueError(f"the number of rows to take must be at least 1, got {count}")
    return dataset.select(range(min(count, len(dataset)))) if hasattr(dataset, "num_rows") else dataset.take(count)


def check_model_name(name: str | None, revision: str | None = None, trust_remote_code: bool = False) -> str:
    """
    Check that a model's config can be read, and the tokenizer of a folder, before anything long starts.

    Raises:
        ValueError: if it cannot; the message has the name and the reason in a line.
    """
    if not name:
        raise ValueError("no model given: pass --model_name_or_path, a folder or the name of a Hub model")
    from transformers import AutoConfig, AutoTokenizer

    with loading_model(name):
        AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code)
    if any((Path(name) / file).is_file() for file in ("tokenizer.json", "tokenizer_config.json")):
        with loading_model(name, "tokenizer"):
            AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
    return name
