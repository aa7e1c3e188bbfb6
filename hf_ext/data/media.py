"""Pictures, sound and film that lie in files: in what is written their bytes go along, and no path of this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_ext.guards.disk import parquet_sink

if TYPE_CHECKING:
    from datasets import Dataset

BATCH_ROWS = 100  # rows in memory, with their pictures, at a time; also a row group of the file, as in `datasets`


def media_columns(rows: Dataset) -> list[str]:
    """Columns whose values may lie in files of their own, at any depth of lists and structs."""
    from datasets.features.features import require_storage_embed

    return [name for name, feature in rows.features.items() if require_storage_embed(feature)]


def non_json_columns(rows: Dataset) -> list[str]:
    """Columns that JSON has no words for: pictures, sound, film, bytes, times and decimals, at any depth."""
    return [name for name, feature in rows.features.items() if not _is_json(feature)]


def _is_json(feature: object) -> bool:
    if isinstance(feature, dict):
        return all(_is_json(part) for part in feature.values())
    if isinstance(feature, list):
        return all(_is_json(part) for part in feature)
    inner = getattr(feature, "feature", None)  # of List, LargeList and Sequence
    if inner is not None:
        return _is_json(inner)
    kind = getattr(feature, "dtype", "")
    beyond = ("binary", "large_binary", "timestamp", "date", "time", "duration", "decimal")
    return not (hasattr(feature, "embed_storage") or str(kind).startswith(beyond))


def write_parquet(rows: Dataset, path: str | Path) -> None:
    """
    Write rows as [`~datasets.Dataset.to_parquet`] does, with the bytes of pictures, sound and film inside.

    Of a path only the file's name is left.

    Raises:
        FileNotFoundError: if a file that a row names is not there; the message says which row and column.
        OSError: if the system refuses; the disk is full, for example.
    """
    with parquet_sink(path) as sink:
        if not media_columns(rows):
            rows.to_parquet(sink)
            return
        import pyarrow.parquet as pq

        plain = rows.with_format("arrow")
        with pq.ParquetWriter(sink, rows.features.arrow_schema) as writer:
            for start in range(0, len(rows), BATCH_ROWS):
                writer.write_table(_embedded(plain, start))
                if sink.error is not None:
                    break


def estimated_bytes(rows: Dataset) -> int:
    """Bytes that rows take in memory once written by [`write_parquet`]; those of pictures from the first hundred."""
    if not media_columns(rows):
        return int(rows.data.nbytes * len(rows) / max(1, rows.data.num_rows))  # a selection shares its source's table
    sample = _embedded(rows.with_format("arrow"), 0)
    return int(sample.nbytes * len(rows) / max(1, sample.num_rows))


def _embedded(plain: Dataset, start: int) -> Any:
    from datasets.table import embed_table_storage

    table = plain[start : start + BATCH_ROWS]
    try:
        return embed_table_storage(table)
    except FileNotFoundError as error:
        for name in media_columns(plain):
            for index, value in enumerate(table[name].to_pylist()):
                path = value.get("path") if isinstance(value, dict) and value.get("bytes") is None else None
                if path is not None and "://" not in path and not Path(path).is_file():
                    raise FileNotFoundError(
                        f"row {start + index:,}, column {name!r}: its file {path!r} is not there any more. Bring it "
                        "back, or drop the row with dataset.filter."
                    ) from error
        raise
