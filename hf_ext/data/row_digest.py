"""What rows hold, in a few letters a column: whether a run is resumed on the rows it was begun with, and where not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from types import CodeType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from datasets import Dataset, IterableDataset
from numpy.typing import NDArray

MOST_BLOCKS = 1024  # one short digest each: a change is placed in a row of small data, in a thousandth of large data
_DEEPEST = 4  # of functions inside functions
_PLAIN = (str, bytes, int, float, tuple, type(None))  # what a digest of code takes as it is
STREAMED = 1000  # rows of a stream that are read: it may have no end


def rows_digest(rows: Dataset | IterableDataset, rows_per_block: int | None = None) -> dict[str, Any]:
    """
    Digests of every column, in row order, from the content alone: files, chunks and history do not matter.

    Pictures and sound count by their bytes, a transform by its code. Of a stream the first 1,000 rows count.

    Args:
        rows (`Dataset` or `IterableDataset`):
            A million rows of 1 kB take about 2 seconds.
        rows_per_block (`int`, *optional*):
            Rows of a block; by default as many as give at most 1,024 blocks.

    Returns:
        `dict`, plain values for JSON: `count` (`None` of a stream), `columns` (name to digest), `transform`,
        `rows_per_block`, and `blocks` (a digest of each block of whole rows, which tells where two sets part).
    """
    count: int | None = None
    if isinstance(rows, IterableDataset):
        rows = Dataset.from_list(list(rows.take(STREAMED)), features=rows.features)
    else:
        count = len(rows)
    size = rows_per_block or max(1, -(-len(rows) // MOST_BLOCKS))
    # Names of classes, which the feature's text holds, belong to a column.
    columns = {name: _new(repr(rows.features[name])) for name in sorted(rows.column_names)}
    blocks = []
    for table in rows.with_format("arrow").iter(batch_size=size):
        block = _new("")
        for name, digest in columns.items():
            content = _new("")
            _feed(_embedded(table.column(name), rows.features[name]), content.update)
            digest.update(content.digest())
            block.update(content.digest())
        blocks.append(block.hexdigest()[:8])
    transform = rows.format["format_kwargs"].get("transform")
    return {
        "count": count,
        "columns": {name: digest.hexdigest() for name, digest in columns.items()},
        "transform": None if transform is None else code_digest(transform),
        "rows_per_block": size,
        "blocks": blocks,
    }


def rows_change(former: Mapping[str, Any], current: Mapping[str, Any], rows: Dataset | IterableDataset) -> str | None:
    """
    What is different about rows, in words, or `None`.

    Args:
        former (`Mapping`):
            What [`rows_digest`] gave of the former rows.
        current (`Mapping`):
            What it gave of `rows`.
        rows (`Dataset` or `IterableDataset`):
            The rows of now: where block sizes differ, they are read again.

    Returns:
        `str` or `None`: such as `first in row 12, column 'label'`.
    """
    names = ("count", "columns", "transform")
    if all(former[name] == current[name] for name in names):
        return None
    parts = []
    if former["count"] != current["count"]:
        parts.append(f"there were {_number(former)}, there are {_number(current)}")
    old_columns = former["columns"]
    columns = current["columns"]
    parts += [f"column {name!r} is gone" for name in old_columns if name not in columns]
    parts += [f"column {name!r} is new" for name in columns if name not in old_columns]
    changed = [name for name in columns if name in old_columns and old_columns[name] != columns[name]]
    if changed:
        several = "s" if len(changed) > 1 else ""
        place = f"column{several} {', '.join(map(repr, changed[:4]))}{' ...' if len(changed) > 4 else ''}"
        same_columns = old_columns.keys() == columns.keys()
        parts.append(f"first in {_first_difference(former, rows)}, {place}" if same_columns else place)
    if former["transform"] != current["transform"]:
        parts.append("their transform is another")
    return "; ".join(parts) or None


def _number(digest: Mapping[str, Any]) -> str:
    return "a stream" if digest["count"] is None else f"{digest['count']:,}"


def _first_difference(former: Mapping[str, Any], rows: Dataset | IterableDataset) -> str:
    """The first row, or block of rows, in which the sets part."""
    size = former["rows_per_block"]
    pairs = list(zip(former["blocks"], rows_digest(rows, size)["blocks"], strict=False))
    block = next((i for i, (old_digest, digest) in enumerate(pairs) if old_digest != digest), len(pairs))
    return f"row {block:,}" if size == 1 else f"rows {block * size:,} to {(block + 1) * size - 1:,}"


def code_digest(function: object, depth: int = 0) -> str:
    """
    Name and digest of a function's code, its defaults and what it closes over.

    Of what is closed over, numbers, texts, tuples and functions count; a list or an object may change while it runs.

    Args:
        function (`Callable`):
            Any; of one without Python code the name alone counts.
        depth (`int`, *optional*, defaults to 0):
            Of functions closed over by functions, which may name each other in a circle.
    """
    inner: Any = getattr(function, "__func__", function)
    name = f"{getattr(inner, '__module__', '')}.{getattr(inner, '__qualname__', type(inner).__qualname__)}"
    code = getattr(inner, "__code__", None)
    if code is None or depth > _DEEPEST:
        return name
    digest = _new("")
    _feed_code(code, digest.update)
    values = [*(inner.__defaults__ or ()), *sorted((inner.__kwdefaults__ or {}).items())]
    for cell in inner.__closure__ or ():
        with suppress(ValueError):  # an empty one: its variable is not set yet
            values.append(cell.cell_contents)
    plain = [_plain(value, depth) for value in values if isinstance(value, _PLAIN) or hasattr(value, "__code__")]
    digest.update(repr(plain).encode())
    return f"{name} {digest.hexdigest()[:12]}"


def _plain(value: object, depth: int) -> Any:
    if isinstance(value, tuple):
        return tuple(_plain(item, depth) for item in value if isinstance(item, _PLAIN) or hasattr(item, "__code__"))
    return code_digest(value, depth + 1) if hasattr(value, "__code__") else value


def _feed_code(code: CodeType, update: Callable[[bytes], object]) -> None:
    update(code.co_code)
    update(repr(code.co_names).encode())
    for constant in code.co_consts:
        if hasattr(constant, "co_code"):  # a function inside; its repr holds an address
            _feed_code(constant, update)
        elif isinstance(constant, frozenset):  # in the order of this process's string hashes
            update(repr(sorted(map(repr, constant))).encode())
        else:
            update(repr(constant).encode())


# --- Arrow -----------------------------------------------------------------------------------------------------------


def _new(head: str) -> Any:
    return xxhash.xxh3_128(head.encode())  # what `datasets` hashes with: ten times as fast as a cryptographic one


def _embedded(column: pa.ChunkedArray, feature: object) -> pa.Array:
    """A column as one array; files that it names, of pictures or sound, are read into it."""
    from datasets.features.features import require_storage_embed
    from datasets.table import embed_array_storage

    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):  # pyarrow keeps some types chunked
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], type=array.type)
    return embed_array_storage(array, feature) if require_storage_embed(feature) else array


def _feed(array: pa.Array, update: Callable[[Any], object]) -> None:
    """Hash what an array holds, and nothing of how it is stored: no offset, padding or value under a null."""
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    kind = array.type
    if pa.types.is_dictionary(kind):
        array = array.dictionary_decode()
        kind = array.type
    elif kind in (pa.string_view(), pa.binary_view()):
        array = array.cast(pa.large_binary())
        kind = array.type
    update(f"{len(array)} {array.null_count};".encode())
    if pa.types.is_null(kind):
        return
    if array.null_count:
        update(np.packbits(array.is_valid().to_numpy(zero_copy_only=False)))
        array = array.drop_null()
    if pa.types.is_struct(kind):
        for name, child in zip([field.name for field in kind], array.flatten(), strict=True):
            update(name.encode())
            _feed(child, update)
    elif pa.types.is_nested(kind):
        if not pa.types.is_fixed_size_list(kind):
            update(_lengths(pc.list_value_length(array)))
        _feed(array.flatten(), update)
    elif any(test(kind) for test in (pa.types.is_string, pa.types.is_binary)):
        _feed_text(array, np.int32, update)
    elif any(test(kind) for test in (pa.types.is_large_string, pa.types.is_large_binary)):
        _feed_text(array, np.int64, update)
    elif pa.types.is_boolean(kind):
        update(np.packbits(array.to_numpy(zero_copy_only=False)))
    elif hasattr(kind, "bit_width") and kind.bit_width % 8 == 0:
        width = kind.bit_width // 8
        _, values = array.buffers()
        update(memoryview(values)[array.offset * width : (array.offset + len(array)) * width] if len(array) else b"")
    else:  # views and the like
        update(repr(array.to_pylist()).encode())


def _lengths(lengths: pa.Array) -> NDArray[np.int64]:
    return np.ascontiguousarray(lengths.to_numpy(zero_copy_only=False), dtype=np.int64)


def _feed_text(array: pa.Array, width: type[np.integer], update: Callable[[Any], object]) -> None:
    update(_lengths(pc.binary_length(array)))
    if len(array) == 0:
        return
    _, offsets, content = array.buffers()
    ends = np.frombuffer(offsets, dtype=width)[[array.offset, array.offset + len(array)]]
    if content is not None:
        update(memoryview(content)[ends[0] : ends[1]])
