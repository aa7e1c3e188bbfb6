"""The pool of exemplars: (query, document) pairs that are searched for those a query is shown."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_ext.data.exemplars.retrievers import Encode, Ranker, Retriever, most_diverse, prepare, retriever_named
from hf_ext.data.exemplars.rows import (
    COLUMNS,
    EVERY_RULE,
    MOST_ROWS,
    Exclude,
    Exemplar,
    Target,
    as_id,
    as_ids,
    checked,
)  # fmt: skip
from hf_ext.data.exemplars.text import text_key

if TYPE_CHECKING:
    from datasets import Dataset
    from numpy.typing import NDArray

    from hf_ext.data.exemplars.formatter import RareFormatter

MMR_CANDIDATES = 4  # times the exemplars wanted


class ExemplarStore:
    """
    A pool of (query, document) pairs and a way to search it.

    | column | type | |
    |---|---|---|
    | `query`, `document` | string | what is shown; neither may be blank |
    | `id` | string or integer, optional | of the query; several rows may share one. The row's number by default |
    | `doc_id` | string or integer, optional | of the document |
    | `source` | string, optional | of the pair: a data set, a language, a date |
    | `negative` | string, optional | a document that does not answer the query |

    Ids are compared as text, everywhere: an integer becomes its digits, a string stays as it is. Where no ids were
    given, the rows' numbers serve in `exclude_ids` and [`Target`], and are never compared with another data set's ids.

    The index is built at the first search, and again in every process the store is sent to; it is not saved. A store
    does not change: filter the rows and build another.

    Args:
        rows (`Mapping[str, Sequence]`):
            The columns above.
        retriever (`str` or `Retriever`, *optional*, defaults to `"bm25"`):
            `"bm25"`, `"dense"`, `"hybrid"`, `"random"`, `"fixed"`, or an object with `ranker(store)`.
        encode (`Callable`, *optional*):
            Texts to vectors, for `"dense"` and `"hybrid"`.
        vectors (array of shape `(rows, dim)`, *optional*):
            The queries' vectors where they are known; `encode` makes them otherwise.

    Raises:
        ValueError: if there are no rows, or more than 1,000,000; if a column is missing or has another length; if a
            text is blank or too long (the message names the row).
        TypeError: if a column is not text, or an id is neither text nor an integer.

    Attributes:
        numbered (`bool`): whether ids are the rows' numbers, because none were given.
    """

    def __init__(
        self,
        rows: Mapping[str, Sequence[Any]],
        *,
        retriever: str | Retriever = "bm25",
        encode: Encode | None = None,
        vectors: NDArray[Any] | None = None,
    ) -> None:
        columns = checked(rows)
        self.numbered = "id" not in columns
        columns.setdefault("id", [str(row) for row in range(len(columns["query"]))])
        self._columns = columns
        self.retriever = retriever_named(retriever, encode)
        self.vectors = vectors

    @classmethod
    def from_dataset(
        cls,
        dataset: Dataset,
        *,
        query_column: str | None = None,
        document_column: str | None = None,
        id_column: str | None = None,
        doc_id_column: str | None = None,
        negative_column: str | None = None,
        source: str | None = None,
        **options: Any,
    ) -> ExemplarStore:
        """
        A pool from the rows of a dataset.

        Args:
            dataset (`Dataset`):
                Pairs, or triplets.
            query_column, document_column (`str`, *optional*):
                By default the first of `query`, `anchor`, `question`, `sentence1` and the first of `document`,
                `positive`, `answer`, `passage`, `context`, `sentence2`; else the first and second text column that is
                no id.
            id_column, doc_id_column, negative_column (`str`, *optional*):
                Other columns to keep; `id` and `doc_id` are kept where they are.
            source (`str`, *optional*):
                Written to every row.
            **options:
                Of the store: `retriever`, `encode`, `vectors`.

        Raises:
            TypeError: if `dataset` is an `IterableDataset`, which has no rows to index, or a column is not text.
            ValueError: if a column is missing, or as in the constructor.
        """
        from hf_ext.data.exemplars.sources import columns_of

        names = {"query": query_column, "document": document_column, "id": id_column, "doc_id": doc_id_column}
        rows = columns_of(dataset, names | {"negative": negative_column})
        if source is not None:
            rows["source"] = [source] * len(dataset)
        return cls(rows, **options)

    @classmethod
    def from_beir(
        cls,
        folder: str | Path,
        split: str = "train",
        *,
        query_ids: Iterable[str | int] | None = None,
        min_grade: int = 1,
        source: str | None = None,
        **options: Any,
    ) -> ExemplarStore:
        """
        A pool from a BEIR folder: `corpus.jsonl`, `queries.jsonl` (or `.jsonl.gz`), `qrels/<split>.tsv`.

        One exemplar a judged pair, the highest grades of a query first. The document is title and text, joined by a
        space where there is a title.

        Args:
            folder (`str` or `Path`):
                Of the data set.
            split (`str`, *optional*, defaults to `"train"`):
                Name of the qrels file. A pool from a test split shows the answers.
            query_ids (`Iterable[str]`, *optional*):
                Queries to keep; all by default. One that the split does not judge is warned of.
            min_grade (`int`, *optional*, defaults to `1`):
                Lowest grade that counts as a positive.
            source (`str`, *optional*):
                Written to every row; the folder's name by default.
            **options:
                Of the store: `retriever`, `encode`, `vectors`.

        Raises:
            FileNotFoundError: if a file is missing.
            ValueError: if no pair is left, a line is no row, or an id stands for two texts. Judgements of texts that
                the folder does not hold are left out, and counted in a warning.
        """
        from hf_ext.data.exemplars.sources import beir_pairs

        rows = beir_pairs(Path(folder), split, query_ids, min_grade)
        rows["source"] = [source or Path(folder).name] * len(rows["query"])
        return cls(rows, **options)

    def __len__(self) -> int:
        return len(self._columns["query"])

    def __repr__(self) -> str:
        return f"ExemplarStore({len(self):,} exemplars, {type(self.retriever).__name__})"

    @property
    def queries(self) -> list[str]:
        """The exemplars' queries, in the order of rows."""
        return self._columns["query"]

    def column(self, name: str) -> list[str | None]:
        """A column; optional ones that are missing are all `None`."""
        return self._columns.get(name) or [None] * len(self)

    def given_columns(self) -> dict[str, list[Any]]:
        """The columns that another store of the same rows is made from: without ids where none were given."""
        return {name: values for name, values in self._columns.items() if name != "id" or not self.numbered}

    def exemplar(self, row: int, score: float = 0.0) -> Exemplar:
        """The exemplar of a row."""
        return Exemplar(row, score, **{name: values[row] for name, values in self._columns.items() if name in COLUMNS})

    def rows_of_id(self, identifier: str | int) -> Sequence[int]:
        """Rows with this id."""
        return self._rows_by["id"].get(as_id(identifier, "rows_of_id"), ())

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 of the rows in their order: what caches and stores are keyed by, never a name."""
        return hashlib.sha256(self._blob).hexdigest()

    @cached_property
    def _blob(self) -> bytes:
        return json.dumps(self._columns, ensure_ascii=False, sort_keys=True).encode()

    @cached_property
    def _ranker(self) -> Ranker:
        return self.retriever.ranker(self)

    @cached_property
    def _rows_by(self) -> dict[str, dict[str | None, list[int]]]:
        names = {"id": "id", "doc_id": "doc_id", "document": "document_key"}
        columns = {by: self.column(name) for by, name in names.items()}
        columns["query"] = [text_key(query) for query in self.queries]
        rows_by: dict[str, dict[str | None, list[int]]] = {}
        for by, values in columns.items():
            rows = rows_by.setdefault(by, {})
            for row, value in enumerate(values):
                if value is not None:
                    rows.setdefault(value, []).append(row)
        return rows_by

    def __getstate__(self) -> dict[str, Any]:
        # Rows as one string of bytes: the same whatever the process, so datasets' fingerprints hold. No index.
        state = {"rows": self._blob, "numbered": self.numbered}
        return state | {"retriever": self.retriever, "vectors": self.vectors}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._columns = json.loads(state["rows"])
        self.numbered = state["numbered"]
        self.retriever = state["retriever"]
        self.vectors = state["vectors"]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ExemplarStore):
            return NotImplemented
        return self.content_hash == other.content_hash and self.retriever == other.retriever

    def __hash__(self) -> int:
        return hash(self.content_hash)

    def excluded_rows(self, query: str, target: Target, exclude: Exclude) -> set[int]:
        """Rows that the rules keep from a query."""
        by = self._rows_by
        rows: set[int] = set()
        same_text = by["query"].get(text_key(query), []) if exclude.same_text or exclude.same_positive else []
        if exclude.same_text:
            rows.update(same_text)
        if exclude.self_id:
            rows.update(() if target.id is None else by["id"].get(target.id, ()))
            rows.update(() if target.row is None else (target.row,))
        if exclude.same_positive:
            keys = {self._columns["document_key"][row] for row in same_text}
            keys |= {text_key(target.positive)} if target.positive is not None else set()
            for key in keys:
                rows.update(by["document"].get(key, ()))
            names = {self.column("doc_id")[row] for row in same_text} if "doc_id" in self._columns else set()
            for name in names | {target.doc_id}:
                rows.update(by["doc_id"].get(name, ()))
        if exclude.negatives:
            for negative in target.negatives:
                rows.update(by["document"].get(text_key(negative), ()))
        return rows

    def search(
        self,
        queries: Sequence[str],
        k: int | Sequence[int] = 5,
        *,
        targets: Sequence[Target | None] | None = None,
        exclude: Exclude = EVERY_RULE,
        exclude_ids: Iterable[str | int] = (),
        min_score: float | None = None,
        mmr: float | None = None,
        salt: str = "",
    ) -> list[list[Exemplar]]:
        """
        The exemplars each query is shown, nearest first, no pair twice.

        Args:
            queries (`Sequence[str]`):
                Target queries, without instruction.
            k (`int` or one a query, *optional*, defaults to `5`):
                Exemplars wanted; fewer come where the pool has no more.
            targets (one [`Target`] or `None` a query, *optional*):
                What is known of them.
            exclude ([`Exclude`], *optional*):
                Rules; all on. At inference `NOTHING_EXCLUDED` lets a query see its own past.
            exclude_ids (`Iterable[str]`, *optional*):
                Ids that no query is shown; integers count as their digits, a single string as one id.
            min_score (`float`, *optional*):
                Floor of the retriever's score. BM25 scores are not comparable between pools.
            mmr (`float`, *optional*):
                $\\lambda$ in [0, 1] of maximal marginal relevance over the `4 k` nearest: below 1, an exemplar that is
                like one already taken gives way. Likeness is cosine, or for BM25 the share of common words.
            salt (`str`, *optional*):
                Changes what `random` draws: epoch and data set.

        Returns:
            `list[list[Exemplar]]`: a list a query; empty where nothing is near.

        Raises:
            TypeError: if `queries` is one string, or an id is neither text nor an integer.
            ValueError: if `targets` or `k` is not one a query, or `mmr` is out of range.
        """
        if isinstance(queries, str):
            raise TypeError("queries must be a list of texts; search([query]) takes one.")
        counts = [k] * len(queries) if isinstance(k, int) else list(k)
        targets = [None] * len(queries) if targets is None else list(targets)
        if not len(counts) == len(targets) == len(queries):
            raise ValueError(
                f"{len(queries)} queries need as many targets and k, got {len(targets)} and {len(counts)}."
            )
        if mmr is not None and not 0 <= mmr <= 1:
            raise ValueError(f"mmr weighs the score against likeness and lies in [0, 1], got {mmr!r}.")
        rows_of_ids = {row for name in as_ids(exclude_ids, "exclude_ids") for row in self.rows_of_id(name)}
        prepare(self._ranker, [query for query, count in zip(queries, counts, strict=True) if count > 0])
        hit_lists = []
        for query, target, count in zip(queries, targets, counts, strict=True):
            excluded = rows_of_ids | self.excluded_rows(query, target or Target(), exclude)
            hits = self._distinct(query, count if mmr is None else MMR_CANDIDATES * count, excluded, salt)
            if min_score is not None:
                hits = [hit for hit in hits if hit[1] >= min_score]
            if mmr is not None and hits:
                hits = most_diverse(hits, self._ranker.similarity([row for row, _ in hits]), count, mmr)
            hit_lists.append([self.exemplar(row, score) for row, score in hits])
        return hit_lists

    def _distinct(self, query: str, k: int, excluded: set[int], salt: str) -> list[tuple[int, float]]:
        """The ranker's best, less pairs whose texts came already."""
        fetch = k
        while fetch > 0:
            hits = self._ranker.best(query, fetch, excluded, salt)
            first_of_pair: dict[tuple[str, str], tuple[int, float]] = {}
            for row, score in hits:
                first_of_pair.setdefault((self.queries[row], self._columns["document_key"][row]), (row, score))
            if len(first_of_pair) >= k or len(hits) < fetch:
                return list(first_of_pair.values())[:k]
            fetch *= 2
        return []

    def clipped(self, formatter: RareFormatter, tokenizer: object) -> ExemplarStore:
        """
        The same pool with documents and negatives cut to what `formatter` would show, so that it is small to keep.

        Exclusion by document still compares the whole texts: their hashes stay.
        """
        columns = self.given_columns()
        columns["document"] = formatter.clip_documents(self._columns["document"], tokenizer)
        if "negative" in columns:
            columns["negative"] = formatter.clip_documents(self._columns["negative"], tokenizer)
        return ExemplarStore(columns, retriever=self.retriever, vectors=self.vectors)

    def save(
        self, folder: str | Path, *, config: Mapping[str, Any] | None = None, rows_per_file: int = 250_000
    ) -> None:
        """
        Write the pool as Parquet files and `rare_config.json`, with hashes; never pickle, and no index.

        The exemplars are training text in clear: whoever reads the folder reads them. A stop at any moment leaves the
        folder's former store, or the new one.

        Args:
            folder (`str` or `Path`):
                New, empty, or a store to replace.
            config (`Mapping`, *optional*):
                More for `rare_config.json`: formatter, settings, provenance, licence. It must be JSON.
            rows_per_file (`int`, *optional*, defaults to `250_000`):
                Rows of one Parquet file.

        Raises:
            DiskFullError: if there is no room.
            ValueError: if `config` cannot be written as JSON, or holds `format_version` or `store`.
        """
        from hf_ext.data.exemplars.files import STORED, describe, save_store

        facts = {"rows": len(self), "numbered": self.numbered, "content_hash": self.content_hash}
        facts["retriever"] = describe(self.retriever)
        columns = {name: self.column(name) for name in STORED}
        save_store(Path(folder), columns, self.vectors, facts, config or {}, rows_per_file)

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        retriever: Retriever | None = None,
        encode: Encode | None = None,
        encoder_name: str = "",
        max_rows: int = MOST_ROWS,
        max_bytes: int = 2**30,
    ) -> ExemplarStore:
        """
        Read what [`save`] wrote, checked: format version, sizes, hashes.

        Args:
            folder (`str` or `Path`):
                With `rare_config.json`.
            retriever (`Retriever`, *optional*):
                Another way to choose than the one saved; needed where that was an object of your own.
            encode (`Callable`, *optional*):
                Texts to vectors, where the store was saved as dense or hybrid.
            encoder_name (`str`, *optional*):
                [`DenseRetriever`]'s name of that encoder; stored vectors of another are left aside, with a warning.
            max_rows, max_bytes (`int`, *optional*):
                Largest store to read, in rows and in bytes, packed and unpacked.

        Raises:
            FileNotFoundError: if there is no store, or one of its files is missing.
            ValueError: if the format version is higher, a hash is wrong, a file lies outside the folder, the store is
                larger than the limits, or a file unpacks to more than 200 times its size (and 256 MiB).
        """
        from hf_ext.data.exemplars.files import read_store

        stored = read_store(Path(folder), retriever, encode, encoder_name, max_rows=max_rows, max_bytes=max_bytes)
        store = cls(stored.columns, retriever=stored.retriever, vectors=stored.vectors)
        if store.content_hash != stored.content_hash:
            raise ValueError(
                f"{folder}: the rows are not those that were saved (hash of the content). Save the store again."
            )
        return store
