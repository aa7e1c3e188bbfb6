"""Vectors, labels and scores of a dataset's rows as arrays; a bad row is named by index, column and excerpt."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn

import numpy as np

from hf_ext.data.vectors.rows import FloatArray
from hf_ext.guards.disk import replacing, writing
from hf_ext.guards.row_text import excerpt_of
from hf_ext.guards.rows import RowError
from hf_ext.guards.runs import claimed_file

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

logger = logging.getLogger(__name__)

BATCH_ROWS = 1000  # rows read from Arrow at a time
IN_MEMORY = 256 * 2**20  # bytes of vectors that are gathered in memory; more go to a memory-mapped file
_LABEL_RULE = "Give the row a label, or drop it with dataset.filter."
_RULE = "Fix the row, or drop it with dataset.filter."


def refuse_row(row: Mapping[str, Any], index: int, column: str, problem: str, remedy: str = _RULE) -> NoReturn:
    """Raise a [`~hf_ext.guards.rows.RowError`] for row `index`."""
    raise RowError(f"row {index:,}, column {column!r}: {problem}.\n  {excerpt_of(row, column, 'text')}\n  {remedy}",
                   index, column)  # fmt: skip


def cache_folder(cache_dir: str | Path | None) -> Path:
    """Folder of vectors on disk: `cache_dir`, or `hf_ext_pruning` in the cache of `datasets`. It may be deleted."""
    import datasets

    return Path(cache_dir) if cache_dir is not None else Path(datasets.config.HF_DATASETS_CACHE) / "hf_ext_pruning"


def column_vectors(
    dataset: Dataset, column: str, cache_dir: str | Path | None = None
) -> tuple[np.ndarray, tuple[str, ...]]:
    """
    The vectors of a column, shape `(n, d)` float32.

    A column that lies in one piece is not copied: a view of Arrow's memory, or of the file it is mapped from. Several
    pieces are gathered: in memory up to 256 MiB, else in a file under `cache_dir`, named by the dataset's fingerprint
    and memory-mapped.

    Args:
        dataset (`Dataset`):
            With `column`: lists of floats, all of one length. float64 and float16 are cast once, with a note.
        column (`str`):
            Its name.
        cache_dir (`str` or `Path`, *optional*):
            See [`cache_folder`].

    Returns:
        `tuple[np.ndarray, tuple[str, ...]]`: the vectors, and notes about what was done to them.

    Raises:
        ValueError: if there is no such column, or it does not hold lists of floats.
        RowError: if a row has no vector, or one of another length.
    """
    if column not in dataset.column_names:
        raise ValueError(
            f"The dataset has no column {column!r} (it has {dataset.column_names}). Name the column of the vectors "
            "with column=, or pass encoder= to compute them."
        )
    first = dataset.with_format("arrow")[:1].column(column)
    kind = _value_type(first.type, column)
    notes = () if kind == "float" else (f"column {column!r} cast from {kind} to float32",)
    d = len(first[0]) if first[0].is_valid else 0
    chunk = _one_piece(dataset, column)
    if chunk is not None and not notes:
        return arrow_vectors(chunk, column, 0, d, dataset.with_format(None).__getitem__), notes
    n = len(dataset)
    blocks = _blocks(dataset, column, d)
    if n * d * 4 <= IN_MEMORY:
        values = np.empty((n, d), dtype=np.float32)
        start = 0
        for block in blocks:
            values[start : start + len(block)] = block
            start += len(block)
        return values, notes
    from datasets.fingerprint import Hasher

    key = Hasher.hash([dataset._fingerprint, column])
    path = cache_folder(cache_dir) / f"column-{key}.npy"

    def gather() -> None:
        logger.info("Gathering %s vectors of column %r in %s.", f"{n:,}", column, path)
        with (
            writing("the vectors", path, num_bytes=n * d * 4),
            replacing(path) as temporary,
            temporary.open("wb") as file,
        ):
            header(file, n, d)
            for block in blocks:
                file.write(np.ascontiguousarray(block, dtype=np.float32).data)

    return cached_vectors(path, n, gather), notes


def cached_vectors(path: Path, n: int, fill: Callable[[], object]) -> np.ndarray:
    """
    The `n` vectors in a file, memory-mapped; `fill` writes it where it is missing or not whole.

    Of several processes that need the file at once one fills it, and the others wait for that.
    """
    vectors = _mapped(path, n)
    if vectors is None:
        with claimed_file(path, waits=True):
            vectors = _mapped(path, n)  # the process that was waited for may have filled it
            if vectors is None:
                fill()
                vectors = _mapped(path, n)
    if vectors is None:
        raise ValueError(f"{path} does not hold the {n:,} vectors that were written to it. Delete it and run again.")
    return vectors


def _mapped(path: Path, n: int) -> np.ndarray | None:
    """The vectors of a file that is as long as its head says, or `None`."""
    if not path.is_file():
        return None
    try:
        vectors = np.lib.format.open_memmap(path, mode="r")
    except (ValueError, OSError, EOFError) as error:  # cut, or no such file
        logger.warning("%s cannot be read (%s): its vectors are computed again.", path, error)
        return None
    fits_rows = vectors.ndim == 2 and len(vectors) == n and vectors.dtype == np.float32
    # A copy that was cut short has the right head: only its length tells.
    if not fits_rows or path.stat().st_size != vectors.offset + vectors.nbytes:
        logger.warning("%s does not hold the %s vectors of these rows: they are computed again.", path, f"{n:,}")
        return None
    return vectors


def header(file: BinaryIO, n: int, d: int) -> None:
    """Write the head of a `.npy` file of shape `(n, d)` float32; the numbers follow."""
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (n, d)})


def _one_piece(dataset: Dataset, column: str) -> pa.Array | None:
    """The column as one Arrow array, where that takes no copy."""
    if dataset._indices is not None:  # selected or shuffled rows: Arrow would have to gather them
        return None
    chunks = [chunk for chunk in dataset.data.column(column).chunks if len(chunk)]
    return chunks[0] if len(chunks) == 1 else None


def _value_type(kind: pa.DataType, column: str) -> str:
    import pyarrow as pa

    if isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
        raise ValueError(
            f"Column {column!r} holds {kind}, not vectors. Name a column of float lists, or pass encoder= to compute "
            "vectors from text or images."
        )
    if not (pa.types.is_floating(kind.value_type) or pa.types.is_null(kind.value_type)):  # null: lists without numbers
        raise ValueError(
            f"Column {column!r} holds lists of {kind.value_type}, not floating point vectors. Pass embeddings, or "
            "cast the column to float32 if these numbers are coordinates."
        )
    return str(kind.value_type)


def _blocks(dataset: Dataset, column: str, d: int) -> Iterator[np.ndarray]:
    start = 0
    for table in dataset.select_columns(column).with_format("arrow").iter(batch_size=BATCH_ROWS):
        for chunk in table.column(column).chunks:
            yield arrow_vectors(chunk, column, start, d, dataset.with_format(None).__getitem__)
            start += len(chunk)


def arrow_vectors(
    chunk: pa.Array, column: str, first: int, d: int, row_at: Callable[[int], Mapping[str, Any]]
) -> np.ndarray:
    """
    An Arrow array of lists as `(rows, d)`, a view where its type allows it.

    Args:
        chunk (`pyarrow.Array`):
            Lists of floats.
        column (`str`), first (`int`):
            The column, and the number of the array's first row, for errors.
        d (`int`):
            Numbers that every list must have.
        row_at (`Callable`):
            Number of a row -> the row, for errors.

    Raises:
        RowError: if a row has no vector, or one of another length.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    def refuse(place: int, problem: str) -> NoReturn:
        refuse_row(row_at(first + place), first + place, column, problem)

    if chunk.null_count:
        refuse(int(np.flatnonzero(chunk.is_null().to_numpy(zero_copy_only=False))[0]), "there is no vector (None)")
    if not pa.types.is_fixed_size_list(chunk.type):
        lengths = pc.list_value_length(chunk).to_numpy(zero_copy_only=False)
        ragged = np.flatnonzero(lengths != d)
        if len(ragged):
            refuse(int(ragged[0]), f"the vector has {lengths[ragged[0]]} numbers, that of row 0 has {d}")
    if d == 0:
        refuse(0, "the vector has no numbers")
    values = chunk.flatten()  # unlike `.values`, without the numbers of rows outside of a slice
    if values.null_count:
        place = int(np.flatnonzero(values.is_null().to_numpy(zero_copy_only=False))[0])
        refuse(place // d, f"dimension {place % d} is None")
    return values.to_numpy(zero_copy_only=False).reshape(-1, d)


def batch_vectors(
    values: list, column: str, first: int, width: int | None, row_at: Callable[[int], Mapping[str, Any]]
) -> np.ndarray:
    """
    Vectors of a batch of Python values, `(rows, d)` float32; arguments and errors as of [`arrow_vectors`].

    Args:
        width (`int`, *optional*):
            Numbers of the vectors in earlier batches.
    """
    import pyarrow as pa

    chunk = pa.array(values)
    if not pa.types.is_null(chunk.type):  # null: no row of the batch has a vector
        _value_type(chunk.type, column)
    return arrow_vectors(chunk, column, first, width or len(values[0] or ()), row_at).astype(np.float32)


def label_values(dataset: Dataset, column: str) -> list[Any]:
    """
    The label of every row; the names of a `ClassLabel`.

    Raises:
        ValueError: if there is no such column, or its values are lists or dictionaries.
        RowError: if a row has no label.
    """
    if column not in dataset.column_names:
        raise ValueError(f"by={column!r}: the dataset has no such column (it has {dataset.column_names}).")
    values = _plain(dataset, column)
    names = class_names(dataset.features, column)
    check_labels(values, names, column, 0, dataset.with_format(None).__getitem__)
    return values if names is None else [names[value] for value in values]


def class_names(features: Mapping[str, Any] | None, column: str) -> list[str] | None:
    """Names of a `ClassLabel`; `None` of another column, and of a stream that does not tell its features."""
    from datasets import ClassLabel

    feature = (features or {}).get(column)
    return feature.names if isinstance(feature, ClassLabel) else None


def check_labels(
    labels: Sequence[Any],
    names: list[str] | None,
    column: str,
    first: int,
    row_at: Callable[[int], Mapping[str, Any]],
) -> None:
    """
    Refuse values that are no labels; `names` are those of a `ClassLabel`, `first` is the number of the first row.

    Raises:
        ValueError: if a value is a list or a dictionary.
        RowError: if a row has no label.
    """
    for index, label in enumerate(labels, first):
        if isinstance(label, (list, dict)):
            raise ValueError(f"by={column!r}: the column holds {type(label).__name__}s, not one label a row.")
        problem = None
        if label is None or label != label:
            problem = f"there is no label ({label!r})"
        elif names is not None and not 0 <= label < len(names):
            problem = f"there is no label ({label!r}: the column's classes are 0 to {len(names) - 1})"
        if problem is not None:
            refuse_row(row_at(index), index, column, problem, _LABEL_RULE)


def score_values(dataset: Dataset, column: str) -> FloatArray:
    """
    The score of every row, float64.

    Raises:
        ValueError: if there is no such column, or it does not hold numbers.
        RowError: if a row has no finite score.
    """
    if column not in dataset.column_names:
        raise ValueError(f"score_column={column!r}: the dataset has no such column (it has {dataset.column_names}).")
    values = _plain(dataset, column)
    try:
        scores = np.array([np.nan if value is None else value for value in values], dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"score_column={column!r} holds {dataset.features[column]}, not one number a row.") from error
    if scores.ndim != 1:
        raise ValueError(f"score_column={column!r} holds {dataset.features[column]}, not one number a row.")
    bad_rows = np.flatnonzero(~np.isfinite(scores))
    if len(bad_rows):
        index = int(bad_rows[0])
        refuse_row(dataset.with_format(None)[index], index, column, f"the score is {values[index]!r}")
    return scores


def _plain(dataset: Dataset, column: str) -> list[Any]:
    """A column as Python values, read through Arrow."""
    tables = dataset.select_columns(column).with_format("arrow").iter(batch_size=10_000)
    return [value for table in tables for value in table.column(column).to_pylist()]
