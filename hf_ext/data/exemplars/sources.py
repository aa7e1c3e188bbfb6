"""Where exemplars come from: the columns of a dataset, the files of a BEIR folder."""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from hf_ext.guards.unpacked import require_modest

QUERY_NAMES = ("query", "anchor", "question", "sentence1")
DOCUMENT_NAMES = ("document", "positive", "answer", "passage", "context", "sentence2")
ID_NAMES = ("id", "_id", "doc_id", "query_id", "row_index")


def require_rows(dataset: Any, what: str) -> None:
    """
    Refuse what has no rows to index.

    Raises:
        TypeError: not a `Dataset`.
    """
    from datasets import Dataset

    if not isinstance(dataset, Dataset):
        raise TypeError(
            f"{what} needs the rows of a Dataset, got {type(dataset).__name__}: a stream has no rows to index, and a "
            "dict has several splits. Build an ExemplarStore from a Dataset, and pass it as store."
        )


def text_columns(dataset: Any) -> list[str]:
    """Columns of strings, in order."""
    return [name for name, feature in dataset.features.items() if getattr(feature, "dtype", None) in _STRINGS]


_STRINGS = ("string", "large_string")


def pair_columns(dataset: Any, query: str | None = None, document: str | None = None) -> tuple[str, str]:
    """
    Names of the query's and the document's column.

    Raises:
        TypeError: the column that was named is not text.
        ValueError: it is missing, or there are no two text columns to choose from.
    """
    texts = text_columns(dataset)
    for name in filter(None, (query, document)):
        if name not in dataset.column_names:
            raise ValueError(f"column {name!r} is missing; the dataset has {dataset.column_names}.")
        if name not in texts:
            raise TypeError(f"column {name!r} is not text but {dataset.features[name]}. Exemplars are pairs of texts.")
    free = [name for name in texts if name not in (query, document, *ID_NAMES)]
    query = query or next((name for name in QUERY_NAMES if name in free), next(iter(free), None))
    free = [name for name in free if name != query]
    document = document or next((name for name in DOCUMENT_NAMES if name in free), next(iter(free), None))
    if query is None or document is None:
        kinds = {name: str(feature) for name, feature in dataset.features.items()}
        raise ValueError(f"A pool needs two text columns, a query and its document; the dataset has {kinds}.")
    return query, document


def columns_of(dataset: Any, names: Mapping[str, str | None]) -> dict[str, Any]:
    """The store's columns from a dataset; `names` says where each one lies, `None` where it is to be found."""
    require_rows(dataset, "ExemplarStore.from_dataset")
    query, document = pair_columns(dataset, names["query"], names["document"])
    plain = dataset.with_format(None)
    rows: dict[str, Any] = {"query": plain[query][:], "document": plain[document][:]}
    for column in ("id", "doc_id", "negative"):
        name = names[column]
        if name is not None and name not in dataset.column_names:
            raise ValueError(f"column {name!r} is missing; the dataset has {dataset.column_names}.")
        if name is None and column in dataset.column_names and column not in (query, document):
            name = column
        if name is not None:
            values = plain[name][:]
            whole = column != "negative" and all(isinstance(value, int) for value in values)
            rows[column] = [str(value) for value in values] if whole else values
    return rows


def beir_pairs(folder: Path, split: str, query_ids: Collection[str] | None, min_grade: int) -> dict[str, Any]:
    """The judged pairs of a BEIR folder as a store's columns."""
    judged = [row for row in read_qrels(folder, split) if row[2] >= min_grade]
    if query_ids is not None:
        kept = set(query_ids)
        judged = [row for row in judged if row[0] in kept]
    if not judged:
        raise ValueError(
            f"{folder} has no pair of grade {min_grade} or more in split {split!r}, so the pool is empty."
        )
    first: dict[str, int] = {}
    for place, (query, _, _) in enumerate(judged):
        first.setdefault(query, place)
    judged.sort(key=lambda row: (first[row[0]], -row[2]))
    queries = {row["_id"]: row["text"] for row in read_lines(folder, "queries")}
    wanted = {document for _, document, _ in judged}
    documents = {row["_id"]: with_title(row) for row in read_lines(folder, "corpus") if row["_id"] in wanted}
    for what, known, number in (("queries", queries, 0), ("corpus", documents, 1)):
        missing = [row[number] for row in judged if row[number] not in known]
        if missing:
            raise ValueError(
                f"{folder}: the qrels of {split!r} name {missing[0]!r}, which {what}.jsonl does not hold."
            )
    return {
        "id": [query for query, _, _ in judged],
        "doc_id": [document for _, document, _ in judged],
        "query": [queries[query] for query, _, _ in judged],
        "document": [documents[document] for _, document, _ in judged],
    }


def with_title(row: Mapping[str, str]) -> str:
    """Title and text of a BEIR document, without a leading space where there is no title."""
    return f"{row.get('title') or ''} {row['text']}".strip()


def read_qrels(folder: Path, split: str) -> list[tuple[str, str, int]]:
    """
    (query id, document id, grade) of a split.

    Raises:
        FileNotFoundError: there is no such split; the message lists those there are.
        ValueError: the file is not a BEIR qrels file.
    """
    path = folder / "qrels" / f"{split}.tsv"
    if not path.is_file():
        there = sorted(file.stem for file in (folder / "qrels").glob("*.tsv"))
        raise FileNotFoundError(f"{path} is missing; the splits of {folder.name} are {there}.")
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    try:
        return [(row["query-id"], row["corpus-id"], int(row["score"])) for row in rows]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is no BEIR file: it needs 'query-id', 'corpus-id' and an integer 'score'."
        ) from error


def read_lines(folder: Path, name: str) -> Iterator[dict[str, str]]:
    """
    Objects of `<name>.jsonl` or `<name>.jsonl.gz`.

    Raises:
        FileNotFoundError: neither is there.
        ValueError: a line is not JSON, or lacks `_id` or `text`.
    """
    plain, packed = folder / f"{name}.jsonl", folder / f"{name}.jsonl.gz"
    if not plain.is_file() and not packed.is_file():
        raise FileNotFoundError(f"{plain} is missing, and so is {packed.name}.")
    path = plain if plain.is_file() else packed
    require_modest(path)
    number = 0
    with plain.open("rb") if path is plain else gzip.open(packed, "rb") as file:
        try:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield _beir_row(line, name, number)
        except (EOFError, OSError, zlib.error) as error:  # no gzip, or cut short
            raise ValueError(f"{path} cannot be unpacked after line {number:,}: {error}. Fetch it again.") from error


def _beir_row(line: bytes, name: str, number: int) -> dict[str, str]:
    try:
        row = json.loads(line)
        row["_id"], row["text"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{name}, line {number:,}: expected an object with '_id' and 'text'.") from error
    return row
