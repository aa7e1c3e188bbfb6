"""A store on disk: Parquet rows, safetensors vectors, `rare_config.json` with sizes and hashes. Never pickle."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import SafetensorError

from hf_ext.data.exemplars.retrievers import (
    Bm25Retriever,
    DenseRetriever,
    Encode,
    FixedRetriever,
    HybridRetriever,
    RandomRetriever,
    Retriever,
)
from hf_ext.data.exemplars.text import WordSplitter
from hf_ext.guards.disk import parquet_sink, replacing, write_whole, writing
from hf_ext.guards.inside import file_in, read_json
from hf_ext.guards.runs import claimed_folder, remove_leftovers
from hf_ext.guards.unpacked import text_batches

if TYPE_CHECKING:
    from numpy.typing import NDArray

logger = logging.getLogger(__name__)

CONFIG = "rare_config.json"
FILES = ("exemplars-*.parquet", "embeddings-*.safetensors")
FORMAT_VERSION = 1
OWN_KEYS = ("format_version", "store")
LIBRARIES = ("hf-ext", "bm25s", "pyarrow")
SUFFIXES = (".parquet", ".safetensors")
STORED = ("id", "query", "document", "document_key", "doc_id", "source", "negative")


def save_store(
    folder: Path,
    columns: Mapping[str, list[str | None]],
    vectors: NDArray[Any] | None,
    facts: Mapping[str, Any],
    config: Mapping[str, Any],
    rows_per_file: int,
) -> None:
    """[`ExemplarStore.save`]. Files bear their hash in the name: a new store never overwrites the old one's."""
    reserved = [key for key in OWN_KEYS if key in config]
    if reserved:
        raise ValueError(f"config must not hold {reserved[0]!r}: the store writes it.")
    table = pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})
    starts = range(0, table.num_rows, rows_per_file)
    files = []
    advice = "The folder's former store is as it was: free some space or choose another folder, and run again."
    # A folder is written by one process at a time: a second would remove the files that the first one names.
    with (
        claimed_folder(folder, waits=True),
        writing("the exemplars", folder, num_bytes=table.nbytes, advice=advice),
    ):
        for number, start in enumerate(starts):
            part = table.slice(start, rows_per_file)
            stem = f"exemplars-{number:05}-of-{len(starts):05}"
            files.append(_write(folder, stem, ".parquet", partial(_write_rows, part)))
        if vectors is not None:
            from safetensors.numpy import save_file

            tensors = {"embeddings": np.ascontiguousarray(vectors, dtype=np.float32)}
            files.append(_write(folder, "embeddings", ".safetensors", partial(save_file, tensors)))
        store = {**facts, "files": files, "versions": _versions()}
        text = _json({"format_version": FORMAT_VERSION, "store": store, **config})
        write_whole(folder / CONFIG, text)
        _remove_others(folder, {file["name"] for file in files})


def save_config(folder: Path, config: Mapping[str, Any]) -> None:
    """
    Write `rare_config.json` without a store; a store that was there is removed.

    Raises:
        DiskFullError: if there is no room.
        ValueError: as in [`ExemplarStore.save`].
    """
    text = _json({"format_version": FORMAT_VERSION, "store": None, **config})
    with claimed_folder(folder, waits=True), writing("the settings of the exemplars", folder):
        write_whole(folder / CONFIG, text)
        _remove_others(folder, set())


def _remove_others(folder: Path, file_names: set[str]) -> None:
    for pattern in FILES:
        for path in folder.glob(pattern):
            if path.name not in file_names:
                path.unlink()
    for pattern in ("exemplars-*", "embeddings*", CONFIG):
        remove_leftovers(folder, pattern)


def _write_rows(table: pa.Table, path: Path) -> None:
    with parquet_sink(path) as sink:
        pq.write_table(table, sink)


def _write(folder: Path, stem: str, suffix: str, write: Callable[[Path], None]) -> dict[str, Any]:
    """Write a file under a temporary name, then under one with its hash."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{stem}.{os.getpid()}.unnamed.tmp"
    try:
        write(temporary)
        digest = _sha256(temporary)
        size = temporary.stat().st_size
        name = f"{stem}-{digest[:12]}{suffix}"
        with replacing(folder / name) as path:
            temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)
    return {"name": name, "bytes": size, "sha256": digest}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _json(config: Mapping[str, Any]) -> str:
    try:
        return json.dumps(config, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise ValueError(f"config cannot be written as JSON: {error}") from error


def _versions() -> dict[str, str]:
    versions = {}
    for name in LIBRARIES:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions


def read_config(folder: str | Path) -> dict[str, Any]:
    """
    `rare_config.json` of a folder: the store's own keys and what [`ExemplarStore.save`] was given as `config`.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is not JSON, has a higher format version, or holds facts of a store that `save` never writes.
    """
    path = Path(folder) / CONFIG
    if not path.exists():
        raise FileNotFoundError(f"{folder} holds no exemplars: {CONFIG} is missing. ExemplarStore.save writes it.")
    config = read_json(path, subject="a configuration that ExemplarStore.save wrote")
    revision = config.get("format_version")
    if not isinstance(revision, int) or not 1 <= revision <= FORMAT_VERSION:
        raise ValueError(
            f"{path} has format version {revision!r}; this hf-ext reads up to {FORMAT_VERSION}. Upgrade it, or save "
            "the exemplars again with ExemplarStore.save."
        )
    described = config.get("store")
    if described is not None and not _is_described(described):
        raise ValueError(f"{path} is not a configuration that ExemplarStore.save wrote.")
    return config


def _is_described(store: object) -> bool:
    """Whether every fact of a store that is read has the type it was saved with."""
    kinds = {"rows": int, "content_hash": str, "retriever": dict, "files": list}
    return (
        isinstance(store, dict)
        and all(isinstance(store.get(name), kind) for name, kind in kinds.items())
        and all(isinstance(file, dict) and isinstance(file.get("sha256"), str) for file in store["files"])
        and isinstance(store["retriever"].get("kind"), str)
    )


class SavedStore(NamedTuple):
    """What the files of a store hold: the rows, how they are searched, and the hash that they were saved with."""

    columns: dict[str, list[Any]]
    retriever: Retriever
    vectors: NDArray[Any] | None
    content_hash: str


def read_store(
    folder: Path,
    retriever: Retriever | None,
    encode: Encode | None,
    encoder_name: str,
    *,
    max_rows: int,
    max_bytes: int,
) -> SavedStore:
    """What [`ExemplarStore.load`] makes a store of; arguments and errors as there."""
    described = read_config(folder)["store"]
    if described is None:
        raise FileNotFoundError(f"{folder} holds the settings of exemplars, but no exemplars.")
    if described["rows"] > max_rows:
        raise ValueError(f"{folder} has {described['rows']:,} exemplars, more than max_rows={max_rows:,}.")
    paths = _checked_files(folder, described["files"], max_bytes)
    columns = _read_rows([path for path in paths if path.suffix == ".parquet"], max_rows, max_bytes)
    vectors = None
    for path in paths:
        if path.suffix == ".safetensors":
            vectors = _read_vectors(path, len(columns["query"]))
    if _is_numbered(described, columns["id"]):
        del columns["id"]
    stale = False
    if retriever is None:
        try:
            retriever, stale = retriever_of(described["retriever"], encode, encoder_name)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{folder / CONFIG}: 'retriever' is none that ExemplarStore.save wrote.") from error
    if stale and vectors is not None:
        logger.warning("%s: the stored vectors are of another encoder and are left aside; made again.", folder)
        vectors = None
    return SavedStore(columns, retriever, vectors, described["content_hash"])


def _is_numbered(described: Mapping[str, Any], ids: list[Any]) -> bool:
    """Whether ids are the rows' numbers because none were given; older stores do not say, but show it."""
    is_numbered = described.get("numbered")
    if isinstance(is_numbered, bool):
        return is_numbered
    return all(name == str(row) for row, name in enumerate(ids))


def _checked_files(folder: Path, files: list[dict[str, Any]], max_bytes: int) -> list[Path]:
    """Paths of the store's files: inside the folder, not too large, with the hashes written down."""
    paths = []
    for file in files:
        name = file.get("name")
        if not isinstance(name, str) or Path(name).name != name or Path(name).suffix not in SUFFIXES:
            raise ValueError(f"{folder / CONFIG} names {name!r}, which is no file that a store has.")
        try:
            paths.append(file_in(folder, name, folder / CONFIG))
        except FileNotFoundError:
            raise FileNotFoundError(
                f"{folder / name} is missing: the store is incomplete. Fetch or save it again."
            ) from None
    size = sum(path.stat().st_size for path in paths)
    if size > max_bytes:
        raise ValueError(f"{folder} holds {size:,} bytes of exemplars, more than max_bytes={max_bytes:,}.")
    for path, file in zip(paths, files, strict=True):
        digest = _sha256(path)
        if digest != file["sha256"]:
            raise ValueError(
                f"{path} has hash {digest[:12]}..., {CONFIG} says {file['sha256'][:12]}...: the file was changed or "
                "damaged. Fetch or save the store again."
            )
    return paths


def _read_rows(paths: list[Path], max_rows: int, max_bytes: int) -> dict[str, list[Any]]:
    """Columns of all files, counted as they unpack: a small file may hold a great deal."""
    columns: dict[str, list[Any]] = {name: [] for name in STORED}
    size = 0
    for path in paths:
        for batch in text_batches(path, STORED):
            size += batch.num_bytes
            for name, values in batch.columns.items():
                columns[name] += values
            if len(columns["query"]) > max_rows or size > max_bytes:
                raise ValueError(
                    f"{path.parent}, with {path.name}, unpacks to more than max_rows={max_rows:,} or "
                    f"max_bytes={max_bytes:,}."
                )
    optional = ("doc_id", "source", "negative")
    return {n: v for n, v in columns.items() if n not in optional or any(value is not None for value in v)}


def _read_vectors(path: Path, num_rows: int) -> np.ndarray:
    from safetensors.numpy import load_file

    try:
        vectors = load_file(path)["embeddings"]
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} holds no vectors of exemplars: {error}. Save the store again.") from error
    if vectors.ndim != 2 or len(vectors) != num_rows or vectors.dtype.kind != "f":
        raise ValueError(
            f"{path} holds {vectors.dtype} of shape {vectors.shape}; expected a vector of floats for each of the "
            f"{num_rows:,} exemplars. Save the store again."
        )
    return vectors


def describe(retriever: Retriever) -> dict[str, Any]:
    """A retriever as JSON: its kind and its settings; a callable of one's own is named only."""
    if isinstance(retriever, Bm25Retriever):
        return {"kind": "bm25", "method": "lucene", **dataclasses.asdict(retriever)}
    if isinstance(retriever, DenseRetriever):
        return {"kind": "dense", "name": retriever.name}
    if isinstance(retriever, HybridRetriever):
        sides = {"dense": describe(retriever.dense), "bm25": describe(retriever.bm25)}
        return {"kind": "hybrid", "depth": retriever.depth, **sides}
    if isinstance(retriever, RandomRetriever):
        return {"kind": "random", "seed": retriever.seed}
    if isinstance(retriever, FixedRetriever):
        return {"kind": "fixed", "ids": list(retriever.ids)}
    return {"kind": "own", "class": type(retriever).__qualname__}


def retriever_of(described: Mapping[str, Any], encode: Encode | None, encoder_name: str) -> tuple[Retriever, bool]:
    """The retriever that [`describe`] wrote down, and whether stored vectors are of another encoder than `encode`."""
    kind = described["kind"]
    if kind == "bm25":
        words = tuple(described["splitter"]["stop_words"])
        return Bm25Retriever(described["k1"], described["b"], WordSplitter(words)), False
    if kind == "random":
        return RandomRetriever(described["seed"]), False
    if kind == "fixed":
        return FixedRetriever(tuple(described["ids"])), False
    if kind not in ("dense", "hybrid"):
        raise ValueError(
            f"The store was saved with a retriever of its own ({described.get('class', kind)}): pass retriever=."
        )
    if encode is None:
        raise ValueError(f"The store searches by vectors ({kind}): pass encode=model.encode to load it.")
    side = described if kind == "dense" else described["dense"]
    dense = DenseRetriever(encode, encoder_name)
    stale = side["name"] != encoder_name
    if kind == "dense":
        return dense, stale
    bm25, _ = retriever_of(described["bm25"], None, "")
    return HybridRetriever(dense, bm25, described["depth"]), stale  # type: ignore[arg-type]
