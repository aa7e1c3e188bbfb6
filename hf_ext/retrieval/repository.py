"""Exemplars in a repository: `exemplars/` beside a model's files, or a dataset repository at a commit. No torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from hf_ext.data.exemplars import ExemplarStore
from hf_ext.data.exemplars.files import CONFIG, FILES, read_config, save_config
from hf_ext.data.exemplars.retrievers import Encode
from hf_ext.guards.inside import file_in, require_path_inside

FOLDER = "exemplars"
PATTERNS = (CONFIG, *FILES)
SETTINGS = "rare"  # this key and the next stand in `rare_config.json` beside the store's own
SOURCE = "exemplars"


@dataclass(frozen=True)
class Where:
    """A model's folder, or its id on the Hub with the commit and how to get at it."""

    name: str
    revision: str | None = None
    token: bool | str | None = None
    cache_folder: str | None = None
    local_files_only: bool = False


class PoolFound(NamedTuple):
    """
    What a repository says of exemplars.

    Attributes:
        settings (`dict`): how they are used, as [`EncoderSettings.to_dict`] wrote it.
        store ([`ExemplarStore`], *optional*): the pool; `None` where the repository holds the settings alone.
        source (`str`, *optional*): the dataset repository and commit that the pool comes from.
    """

    settings: Mapping[str, Any]
    store: ExemplarStore | None
    source: str | None = None


def file_of(source: Where, name: str, folder: str = "") -> Path | None:
    """
    Path of one file of a repository, fetched if need be; `None` if it is not there.

    Raises:
        ValueError: if the path leads out of the repository.
    """
    require_path_inside(name, source.name)
    if folder:
        require_path_inside(folder, source.name)
    local = Path(source.name)
    if local.is_dir():
        return file_in(local, str(Path(folder, name)), local) if (local / folder / name).exists() else None
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.utils import EntryNotFoundError, LocalEntryNotFoundError

    try:
        path = hf_hub_download(
            source.name,
            name,
            subfolder=folder or None,
            revision=source.revision,
            token=source.token,
            cache_dir=source.cache_folder,
            local_files_only=source.local_files_only,
            library_name="hf-ext",
        )
    except LocalEntryNotFoundError:
        if source.local_files_only or constants.HF_HUB_OFFLINE:
            return None  # nothing of this name was ever fetched
        raise  # the network failed: to go on without exemplars would change the vectors in silence
    except EntryNotFoundError:
        return None
    return Path(path)


def read_exemplars(
    model: Where,
    exemplars: ExemplarStore | str | Path | None = None,
    *,
    encode: Encode | None = None,
    encoder_name: Callable[[], str] | None = None,
) -> PoolFound | None:
    """
    Settings and pool of a model's repository.

    Args:
        where ([`Where`]):
            The repository, pinned to the commit of its weights.
        exemplars ([`ExemplarStore`], `str` or `Path`, *optional*):
            Another pool than the repository's: a store, its folder, or `"user/dataset@revision"`.
        encode, encoder_name (*optional*):
            As in [`ExemplarStore.load`]; the name is asked for only where vectors are searched.

    Returns:
        [`PoolFound`], or `None` where the repository has no exemplars and no others are named.
    """
    path = file_of(model, CONFIG, FOLDER) if model.name else None  # without a name the model is in memory
    config = {} if path is None else read_config(path.parent)
    settings = config.get(SETTINGS, {})
    if isinstance(exemplars, ExemplarStore):
        return PoolFound(settings, exemplars)
    if exemplars is not None:
        return PoolFound(settings, *open_source(str(exemplars), model, encode=encode, encoder_name=encoder_name))
    if path is None:
        return None
    if config.get("store") is not None:
        if not Path(model.name).is_dir():
            for file in config["store"]["files"]:
                file_of(model, file["name"], FOLDER)
        return PoolFound(settings, _load(path.parent, config, encode, encoder_name))
    source = config.get(SOURCE)
    if source is None:
        return PoolFound(settings, None)
    return PoolFound(settings, *open_source(source, model, encode=encode, encoder_name=encoder_name))


def _load(
    folder: Path, config: dict[str, Any], encode: Encode | None, encoder_name: Callable[[], str] | None
) -> ExemplarStore:
    by_vectors = config["store"]["retriever"]["kind"] in ("dense", "hybrid")
    name = encoder_name() if by_vectors and encoder_name is not None else ""  # a hash of all weights: not for BM25
    return ExemplarStore.load(folder, encode=encode, encoder_name=name)


def open_source(
    source: str, access: Where, *, encode: Encode | None = None, encoder_name: Callable[[], str] | None = None
) -> tuple[ExemplarStore, str | None]:
    """
    The pool that a source names, and the source pinned to its commit.

    Args:
        source (`str`):
            A folder that [`ExemplarStore.save`] wrote, or `"user/dataset"`, `"user/dataset@revision"`.
        where ([`Where`]):
            For token, cache and whether the network may be used.

    Raises:
        FileNotFoundError: if there are no exemplars.
    """
    folder = Path(source)
    pinned_source = None
    if not folder.is_dir():
        folder, pinned_source = _fetched(source, access)
    if not (folder / CONFIG).is_file() and (folder / FOLDER / CONFIG).is_file():
        folder = folder / FOLDER
    config = read_config(folder)
    if config.get("store") is None:
        raise FileNotFoundError(f"{source} holds the settings of exemplars, but no exemplars.")
    return _load(folder, config, encode, encoder_name), pinned_source


def _fetched(source: str, access: Where) -> tuple[Path, str]:
    from huggingface_hub import snapshot_download

    name, _, revision = source.partition("@")
    if name.count("/") != 1:
        raise FileNotFoundError(f"{source!r} is neither a folder with exemplars nor 'user/dataset@revision'.")
    folder = Path(
        snapshot_download(
            name,
            repo_type="dataset",
            revision=revision or None,
            token=access.token,
            cache_dir=access.cache_folder,
            local_files_only=access.local_files_only,
            allow_patterns=[*PATTERNS, *(f"{FOLDER}/{pattern}" for pattern in PATTERNS)],
            library_name="hf-ext",
        )
    )
    return folder, f"{name}@{folder.name}"  # a snapshot's folder bears the commit's name


def write_exemplars(
    folder: str | Path, store: ExemplarStore | None, settings: Mapping[str, Any], source: str | None = None
) -> None:
    """
    Write `exemplars/` into a model's folder: rows and settings, or the settings alone.

    Args:
        folder (`str` or `Path`):
            Of the model.
        store ([`ExemplarStore`], *optional*):
            The pool to keep there.
        settings (`Mapping`):
            How it is used: [`EncoderSettings.to_dict`].
        source (`str`, *optional*):
            Where the pool lies, if it is not kept there.
    """
    config = {SETTINGS: dict(settings)}
    if store is None:
        save_config(Path(folder) / FOLDER, config | {SOURCE: source})
    else:
        store.save(Path(folder) / FOLDER, config=config)
