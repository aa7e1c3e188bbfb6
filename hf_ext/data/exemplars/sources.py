"""Where exemplars come from: the columns of a dataset, the files of a BEIR folder."""

from __future__ import annotations

import gzip
import json
import logging
import zlib
from collections.abc import Container, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_ext.data.exemplars.roles import ColumnRoles, is_list_of_texts, is_negative, read_roles
from hf_ext.data.exemplars.rows import as_id, as_ids, some
from hf_ext.guards.unpacked import require_modest

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

QRELS_HEADER = ("query-id", "corpus-id", "score")
TREC_FIELDS = 4  # query, iteration, document, grade
TEXT_TYPES = ("string", "large_string")


def require_rows(dataset: object, caller: str) -> None:
    """
    Refuse what has no rows to index.

    Raises:
        TypeError: if it is no `Dataset`.
    """
    from datasets import Dataset

    if not isinstance(dataset, Dataset):
        raise TypeError(
            f"{caller} needs the rows of a Dataset, got {type(dataset).__name__}: a stream has no rows to index, and "
            "a dict has several splits. Build an ExemplarStore from a Dataset, and pass it as store."
        )


def text_columns(dataset: Dataset) -> list[str]:
    """Columns of strings, in order."""
    return [name for name, feature in dataset.features.items() if getattr(feature, "dtype", None) in TEXT_TYPES]


def roles_of(dataset: Dataset, **column_names: str | None) -> ColumnRoles:
    """
    The part of each column, [`read_roles`], of a dataset; `column_names` are those that the caller names, by part.

    Raises:
        TypeError: if a column that the caller names as query or document is not text.
        ValueError: if a column that the caller names is missing.
    """
    texts = text_columns(dataset)
    for name in filter(None, column_names.values()):
        if name not in dataset.column_names:
            raise ValueError(f"column {name!r} is missing; the dataset has {dataset.column_names}.")
    for name in filter(None, (column_names.get("query"), column_names.get("document"))):
        if name not in texts:
            raise TypeError(f"column {name!r} is not text but {dataset.features[name]}. Exemplars are pairs of texts.")
    return read_roles(dataset.column_names, texts, **column_names)


def pair_columns(dataset: Dataset, query: str | None = None, document: str | None = None) -> tuple[str, str]:
    """
    Names of the query's and the document's column.

    Raises:
        TypeError: if a column that the caller names is not text.
        ValueError: if it is missing, or there are no two text columns to choose from.
    """
    return pair_of(dataset, roles_of(dataset, query=query, document=document))


def pair_of(dataset: Dataset, roles: ColumnRoles) -> tuple[str, str]:
    """
    Names of the query's and the document's column.

    Raises:
        ValueError: if there are no two text columns to choose from.
    """
    if roles.query is None or roles.document is None:
        kinds = {name: str(feature) for name, feature in dataset.features.items()}
        lists = [name for name, feature in dataset.features.items() if is_list_of_texts(feature)]
        remedy = f" {lists[0]!r} is a list of texts: make a row of each." if lists else ""
        raise ValueError(f"A pool needs two text columns, a query and its document; the dataset has {kinds}.{remedy}")
    return roles.query, roles.document


def columns_of(dataset: Dataset, names: Mapping[str, str | None]) -> dict[str, Any]:
    """The store's columns from a dataset; `names` says where each one lies, `None` where it is to be found."""
    require_rows(dataset, "ExemplarStore.from_dataset")
    roles = roles_of(dataset, **{part: names[part] for part in ("query", "document", "id", "doc_id")})
    query, document = pair_of(dataset, roles)
    negative = names["negative"]
    if negative is not None and negative not in dataset.column_names:
        raise ValueError(f"column {negative!r} is missing; the dataset has {dataset.column_names}.")
    if negative is None:
        negative = next(filter(is_negative, roles.negatives), None)
    columns = {"id": roles.id, "doc_id": roles.doc_id, "negative": negative}
    for column in ("id", "doc_id"):
        name = columns[column]
        if name is not None and names[column] is None and not holds_ids(dataset.features[name]):
            columns[column] = None  # a list or a dict under such a name is no id; a number that is no integer is one
    require_matches(dataset, negative is not None)
    plain = dataset.with_format(None)
    rows: dict[str, Any] = {"query": plain[query][:], "document": plain[document][:]}
    for column, name in columns.items():
        if name is None:
            continue
        if is_list_of_texts(dataset.features[name]):
            raise TypeError(
                f"column {name!r} holds lists of texts, and an exemplar has one {column}. Choose one with "
                "dataset.map, or remove the column."
            )
        rows[column] = plain[name][:]
    return rows


def holds_ids(feature: object) -> bool:
    """Whether the values of a column may be taken for ids: not those of a list or a dict."""
    return isinstance(getattr(feature, "dtype", None), str)


def require_matches(dataset: Dataset, has_negatives: bool = False) -> None:
    """
    Refuse rows whose label says that query and document do not match: each would be shown as an example.

    Raises:
        RowError: if there is such a row; the message names it, and the filter that leaves it out.
    """
    from hf_ext.guards.retrieval_rows import check_matches, match_rule_of

    rule = match_rule_of(dataset, has_negatives)
    if rule is not None:
        check_matches(dataset, rule)


def beir_pairs(folder: Path, split: str, query_ids: Iterable[Any] | None, min_grade: int) -> dict[str, Any]:
    """The judged pairs of a BEIR folder as a store's columns; judgements of unknown texts are counted in a warning."""
    judgements = [row for row in read_qrels(folder, split) if row[2] >= min_grade]
    if query_ids is not None:
        wanted_queries = set(as_ids(query_ids, "query_ids"))
        unknown = sorted(wanted_queries - {query for query, _, _ in judgements})
        judgements = [row for row in judgements if row[0] in wanted_queries]
        if unknown and judgements:
            logger.warning(
                "%s: %s of the %s query_ids have no pair of grade %s or more in split %r, such as %s.", folder.name,
                f"{len(unknown):,}", f"{len(wanted_queries):,}", min_grade, split, some(unknown),
            )  # fmt: skip
    if not judgements:
        raise ValueError(
            f"{folder} has no pair of grade {min_grade} or more in split {split!r}, so the pool is empty."
        )
    first_place: dict[str, int] = {}
    for place, (query, _, _) in enumerate(judgements):
        first_place.setdefault(query, place)
    judgements.sort(key=lambda row: (first_place[row[0]], -row[2]))  # queries as in the file, best grades first
    queries = texts_by_id(folder, "queries", {query for query, _, _ in judgements})
    documents = texts_by_id(folder, "corpus", {document for _, document, _ in judgements})
    complete = [row for row in judgements if row[0] in queries and row[1] in documents]
    if len(complete) < len(judgements):
        missing_ids = {
            "queries.jsonl": dict.fromkeys(query for query, _, _ in judgements if query not in queries),
            "corpus.jsonl": dict.fromkeys(document for _, document, _ in judgements if document not in documents),
        }
        summary = " and ".join(
            f"{some(ids)} ({len(ids):,} missing in {name})" for name, ids in missing_ids.items() if ids
        )
        message = f"{folder}: the qrels of {split!r} name texts that the folder does not hold: {summary}."
        if not complete:
            raise ValueError(f"{message} No pair is left: are the files of one version of the data?")
        logger.warning("%s %s of %s pairs are left out.", message, len(judgements) - len(complete), len(judgements))
    return {
        "id": [query for query, _, _ in complete],
        "doc_id": [document for _, document, _ in complete],
        "query": [queries[query] for query, _, _ in complete],
        "document": [documents[document] for _, document, _ in complete],
    }


def texts_by_id(folder: Path, name: str, ids: Container[str] | None = None) -> dict[str, str]:
    """
    Texts of `queries.jsonl` or `corpus.jsonl` by id, titles of documents before them.

    Args:
        folder (`Path`): of the data set.
        name (`str`): `"queries"` or `"corpus"`.
        wanted (`Container[str]`, *optional*): ids to keep; all by default.

    Raises:
        ValueError: if an id stands for two texts, or as in [`read_lines`].
    """
    texts: dict[str, str] = {}
    for row in read_lines(folder, name):
        identifier = row["_id"]
        if ids is not None and identifier not in ids:
            continue
        text = with_title(row) if name == "corpus" else row["text"]
        if texts.setdefault(identifier, text) != text:
            raise ValueError(
                f"{folder / name}.jsonl: the id {identifier!r} stands for two texts, {texts[identifier][:80]!r} and "
                f"{text[:80]!r}. Remove one, or give it an id of its own."
            )
    return texts


def with_title(row: Mapping[str, str]) -> str:
    """Title and text of a BEIR document, without a leading space where there is no title."""
    return f"{row.get('title') or ''} {row['text']}".strip()


def read_qrels(folder: Path, split: str) -> list[tuple[str, str, int]]:
    """
    (query id, document id, grade) of a split, each pair once.

    The file is BEIR's: `query-id`, `corpus-id` and `score` with tabs between them, under that header or none; or
    TREC's, `query-id 0 corpus-id score`, without one.

    Raises:
        FileNotFoundError: if there is no such split; the message lists those there are.
        ValueError: if the file is no qrels file.
    """
    path = folder / "qrels" / f"{split}.tsv"
    if not path.is_file():
        splits = sorted(file.stem for file in (folder / "qrels").glob("*.tsv"))
        raise FileNotFoundError(f"{path} is missing; the splits of {folder.name} are {splits}.")
    with path.open(encoding="utf-8-sig", newline="") as file:
        lines = [fields for line in file if (fields := _fields(line))]
    places = (0, 1, 2)
    first_row = 1
    if lines and set(QRELS_HEADER) <= set(lines[0]):
        query_place, document_place, grade_place = map(lines[0].index, QRELS_HEADER)
        places = (query_place, document_place, grade_place)
        first_row = 2
        lines = lines[1:]
    elif lines and len(lines[0]) == TREC_FIELDS:
        places = (0, 2, 3)
    grades: dict[tuple[str, str], int] = {}
    contradictions: list[str] = []
    for number, fields in enumerate(lines, start=first_row):
        try:
            query, document, grade = (fields[place] for place in places)
            score = _grade(grade)
        except (IndexError, ValueError) as error:
            raise ValueError(
                f"{path} is no BEIR file: it needs 'query-id', 'corpus-id' and an integer 'score'; row {number:,} is "
                f"{' '.join(fields)[:80]!r}."
            ) from error
        if grades.get((query, document), score) != score:
            contradictions.append(f"{query} {document}")
        grades[query, document] = score
    if contradictions:
        logger.warning(
            "%s judges %s pairs twice and not alike, such as %s: the last judgement counts, as in BEIR.",
            path, f"{len(contradictions):,}", some(contradictions),
        )  # fmt: skip
    return [(query, document, grade) for (query, document), grade in grades.items()]


def _fields(line: str) -> list[str]:
    """Of a line of qrels: between tabs, so that ids may hold spaces; between spaces where there is no tab (TREC)."""
    line = line.rstrip("\r\n")
    return line.split("\t") if "\t" in line else line.split()


def _grade(text: str) -> int:
    """A whole number, however it is written: `2` or `2.0`."""
    number = float(text)
    if not number.is_integer():
        raise ValueError(f"{text!r} is no whole number")
    return int(number)


def read_lines(folder: Path, name: str) -> Iterator[dict[str, str]]:
    """
    Objects of `<name>.jsonl` or `<name>.jsonl.gz`.

    Raises:
        FileNotFoundError: if neither is there.
        ValueError: if a line is not JSON, its `_id` is neither text nor an integer, or its `text` is no string.
    """
    plain = folder / f"{name}.jsonl"
    packed = folder / f"{name}.jsonl.gz"
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
        identifier = row["_id"]
        text = row["text"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{name}, line {number:,}: expected an object with '_id' and 'text'.") from error
    if not isinstance(text, str):
        raise ValueError(f"{name}, line {number:,}: 'text' is no string but {type(text).__name__} {str(text)[:80]!r}.")
    try:
        return row | {"_id": as_id(identifier, f"{name}, line {number:,}, '_id'")}
    except TypeError as error:
        raise ValueError(str(error)) from error
