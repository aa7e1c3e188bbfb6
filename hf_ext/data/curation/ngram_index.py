"""The word n-grams of benchmarks, each with the row that has it: what a training set is searched for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from hf_ext.data.curation.hashing import Hashes, hashes_from, ngram_hashes
from hf_ext.data.curation.normalised_text import normalised
from hf_ext.guards.disk import parquet_sink, replacing, writing
from hf_ext.guards.inside import require_file
from hf_ext.guards.numbers import Bounds
from hf_ext.guards.runs import claimed_file
from hf_ext.guards.unpacked import text_batches

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

_SETTINGS = b"hf-ext n-gram index"
_SPARSE = 64  # places of the table of beginnings for each n-gram
_MOST_BITS = 26  # 64 MB
_LENGTH = Bounds(int, 2, 100, "a whole number from 2 to 100")


class Record(NamedTuple):
    """A text of a benchmark: the name of the benchmark, its row, and the text."""

    task: str
    row: str
    text: str


class Span(NamedTuple):
    """
    Words of a document that are a benchmark's.

    Args:
        start, end (`int`):
            Characters of the document as it was given.
        task, row (`str`):
            Whose they are; of several rows the first of the index.
        num_ngrams (`int`):
            N-grams that matched in there.
    """

    start: int
    end: int
    task: str
    row: str
    num_ngrams: int


class NGramIndex:
    """
    The word n-grams of benchmarks, each with the row that has it.

    A hash finds an n-gram, its text confirms it: what is reported is in the benchmark, word for word.

    Args:
        records (`Iterable[Record]`):
            Texts of the benchmarks.
        ngram (`int`, *optional*, defaults to 13):
            Words of an n-gram.
        shortest (`int`, *optional*, defaults to 8):
            Words of the shortest record that is looked for: one with fewer than `ngram` is one n-gram as a whole,
            one with fewer than this is left out, for it would be found everywhere.

    Attributes:
        num_too_short (`int`):
            Records that were left out.
        fingerprint (`str`):
            The same for indexes that find the same.

    Raises:
        ValueError: if no record is long enough, or a number is out of bounds.

    Reference: Brown et al. 2020, *Language Models are Few-Shot Learners* (arXiv 2005.14165), appendix C, for word
    13-grams without case and punctuation.
    """

    def __init__(self, records: Iterable[Record], *, ngram: int = 13, shortest: int = 8) -> None:
        for name, number in (("ngram", ngram), ("shortest", shortest)):
            problem = _LENGTH.problem_of(number)
            if problem is not None:
                raise ValueError(f"{name} {problem}.")
        if shortest > ngram:
            raise ValueError(f"shortest must be at most ngram, got {shortest} and {ngram}.")
        self.ngram = ngram
        self.shortest = shortest
        self.records = list(dict.fromkeys(records))  # a row whose columns say the same has it once
        self.num_too_short = 0
        self._index()
        digest = hashlib.sha256(json.dumps([ngram, shortest]).encode())
        for record in self.records:
            digest.update(json.dumps(record).encode())
        # made here, not when it is asked for: a pickled index must not depend on whether it was
        self.fingerprint = digest.hexdigest()[:32]
        if not len(self.hashes):
            raise ValueError(
                f"None of {len(self.records):,} records has {shortest} words: there is nothing to look for. Name more "
                "columns, or pass shortest=."
            )

    def _index(self) -> None:
        """Sort the n-grams by their hashes, of equal ones the first alone."""
        self.texts: list[str] = []
        hashes = [np.zeros(0, np.uint64)]
        spans = [np.zeros((0, 2), np.int32)]
        sources = [np.zeros(0, np.int32)]
        texts = [normalised(record.text) for record in self.records]
        lengths = [min(len(text.hashes), self.ngram) for text in texts]
        self.lengths = sorted({length for length in lengths if length >= self.shortest})
        prefixes = [np.zeros(0, np.uint64)]
        for number, (text, length) in enumerate(zip(texts, lengths, strict=True)):
            self.texts.append(text.words(0, len(text.hashes)))
            if length < self.shortest:
                self.num_too_short += 1
                continue
            hashes.append(ngram_hashes(text.hashes, length))
            offsets = np.cumsum([0, *(text.bounds[:, 1] - text.bounds[:, 0] + 1)])
            spans.append(np.stack([offsets[:-length], offsets[length:]], axis=1).astype(np.int32))
            sources.append(np.full(len(hashes[-1]), number, np.int32))
            prefixes.append(ngram_hashes(text.hashes, self.lengths[0])[: len(hashes[-1])])
        self.hashes = np.concatenate(hashes)
        self.spans = np.concatenate(spans)
        self.sources = np.concatenate(sources)
        order = np.argsort(self.hashes, kind="stable")
        is_first = np.ones(len(order), dtype=bool)
        for place in np.flatnonzero(np.diff(self.hashes[order]) == 0).tolist():
            is_first[place + 1] = self._ngram(order[place]) != self._ngram(order[place + 1])
        order = order[is_first]
        self.hashes = self.hashes[order]
        self.spans = self.spans[order]
        self.sources = self.sources[order]
        # One look at a table tells of nearly every position of a document that no n-gram, of any length, begins there.
        num_bits = min(_MOST_BITS, (_SPARSE * len(order)).bit_length())
        self.shift = np.uint64(64 - num_bits)
        self.begins = np.zeros(2**num_bits, dtype=bool)
        self.prefixes = np.unique(np.concatenate(prefixes))
        self.begins[self.prefixes >> self.shift] = True

    def _ngram(self, place: int) -> str:
        start, end = self.spans[place].tolist()
        return self.texts[self.sources[place]][start:end]

    @classmethod
    def from_dataset(
        cls,
        dataset: Dataset | IterableDataset | Iterable[Mapping[str, Any]],
        columns: Sequence[str],
        *,
        task: str,
        id_column: str | None = None,
        ngram: int = 13,
        shortest: int = 8,
    ) -> NGramIndex:
        """
        The index of a benchmark.

        Each text in a column is looked for by itself, and so is the row as a whole: its texts joined, with each item
        of a list in turn, such as a question with each of its choices.

        Args:
            dataset (`Dataset`, `IterableDataset` or rows):
                The benchmark; all of its rows are kept.
            columns (`Sequence[str]`):
                Its questions, contexts and answers: texts, numbers, or lists and mappings of them.
            task (`str`):
                Its name, for the drop ledger.
            id_column (`str`, *optional*):
                Column of the rows' ids; their positions by default.
            ngram, shortest:
                As of [`NGramIndex`].

        Raises:
            ValueError: if a column is missing, or no record is long enough.
        """
        return cls(_records(dataset, columns, task, id_column), ngram=ngram, shortest=shortest)

    @classmethod
    def joined(cls, indexes: Sequence[NGramIndex]) -> NGramIndex:
        """
        One index of several benchmarks; of an n-gram that two have, the first is named.

        Raises:
            ValueError: if they are of different lengths, or there is none.
        """
        lengths = {(index.ngram, index.shortest) for index in indexes}
        if len(lengths) != 1:
            raise ValueError(f"The indexes must be of one ngram and shortest, got {sorted(lengths)}.")
        ngram, shortest = lengths.pop()
        return cls((record for index in indexes for record in index.records), ngram=ngram, shortest=shortest)

    def __len__(self) -> int:
        """Distinct n-grams."""
        return len(self.hashes)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, NGramIndex) and other.fingerprint == self.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __reduce__(self) -> tuple[Any, tuple[str, int, int]]:
        # datasets hashes the pickle, in which a text or a type that two parts share stands once: of equal indexes it
        # must be the same, so the index is made again from one text
        return _restored, (json.dumps(self.records), self.ngram, self.shortest)

    def __repr__(self) -> str:
        return f"NGramIndex({self.fingerprint!r}, {len(self):,} n-grams of {self.ngram} words)"

    def find(self, text: str) -> list[Span]:
        """The spans of a text that are in a benchmark, in their order; spans that overlap are one."""
        document = normalised(text)
        num_words = len(document.hashes)
        prefixes = ngram_hashes(document.hashes, self.lengths[0])
        candidates = np.flatnonzero(self.begins[prefixes >> self.shift])
        candidates = candidates[_are_in(prefixes[candidates], self.prefixes)[0]]
        if not len(candidates):
            return []
        matches: list[tuple[int, int, int]] = []  # first word, last word, record
        for length in self.lengths:
            starts = candidates[candidates <= num_words - length]
            is_known, places = _are_in(hashes_from(document.hashes, starts, length), self.hashes)
            for number in np.flatnonzero(is_known).tolist():
                start = int(starts[number])
                record = self._record_of(document.words(start, start + length), int(places[number]))
                if record is not None:
                    matches.append((start, start + length - 1, record))
        spans: list[Span] = []
        last_word = -1
        for start, end, record in sorted(matches):
            if start > last_word:
                task, row, _ = self.records[record]
                spans.append(Span(int(document.starts[start]), 0, task, row, 0))
            last_word = max(last_word, end)
            spans[-1] = spans[-1]._replace(end=int(document.ends[last_word]), num_ngrams=spans[-1].num_ngrams + 1)
        return spans

    def _record_of(self, ngram: str, place: int) -> int | None:
        """The record with that very n-gram, among those with its hash."""
        value = self.hashes[place]
        while place < len(self.hashes) and self.hashes[place] == value:
            if self._ngram(place) == ngram:
                return int(self.sources[place])
            place += 1
        return None

    def save(self, path: str | Path) -> Path:
        """
        Write the records as a Parquet file, which [`NGramIndex.load`] reads; it has the benchmarks' texts in it.

        Raises:
            DiskFullError: if there is no room; a file that was there is intact.
        """
        path = Path(path)
        settings = json.dumps({"ngram": self.ngram, "shortest": self.shortest}).encode()
        columns = [pa.array(column, pa.string()) for column in zip(*self.records, strict=True)]
        schema = pa.schema([(name, pa.string()) for name in Record._fields], metadata={_SETTINGS: settings})
        table = pa.table(columns, schema=schema)
        with (
            writing("the index", path),
            claimed_file(path),
            replacing(path) as temporary,
            parquet_sink(temporary) as sink,
        ):
            pq.write_table(table, sink, compression="zstd")
        return path

    @classmethod
    def load(cls, path: str | Path) -> NGramIndex:
        """
        Read what [`NGramIndex.save`] wrote.

        Raises:
            FileNotFoundError: if there is no file.
            ValueError: if it is no index, or damaged.
        """
        path = require_file(path)
        records: list[Record] = []
        for batch in text_batches(path, Record._fields):
            records += [Record(*map(str, values)) for values in zip(*batch.columns.values(), strict=True)]
        try:
            settings = json.loads((pq.read_schema(path).metadata or {})[_SETTINGS])
            return cls(records, ngram=settings["ngram"], shortest=settings["shortest"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is not an index of n-grams: {type(error).__name__}: {error}.") from error


def _restored(records: str, ngram: int, shortest: int) -> NGramIndex:
    return NGramIndex((Record(*fields) for fields in json.loads(records)), ngram=ngram, shortest=shortest)


def _are_in(hashes: Hashes, sorted_hashes: Hashes) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.intp]]:
    """Which hashes are among sorted ones, and where the first equal one stands."""
    places = np.searchsorted(sorted_hashes, hashes)
    places[places == len(sorted_hashes)] = 0
    return sorted_hashes[places] == hashes, places


def _records(dataset: Any, columns: Sequence[str], task: str, id_column: str | None) -> Iterator[Record]:
    for number, row in enumerate(dataset):
        for name in (*columns, *([] if id_column is None else [id_column])):
            if name not in row:
                raise ValueError(f"{task}: row {number:,} has no column {name!r}; it has {sorted(row)}.")
        row_id = str(number if id_column is None else row[id_column])
        fields = [list(_strings(row[name])) for name in columns]
        common = [texts[0] for texts in fields if len(texts) == 1]
        items = [text for texts in fields if len(texts) > 1 for text in texts]
        for text in (*common, *items):
            yield Record(task, row_id, text)
        if len(common) > 1 and not items:
            yield Record(task, row_id, " ".join(common))
        for item in items if common else ():
            yield Record(task, row_id, " ".join([*common, item]))


def _strings(value: object) -> Iterator[str]:
    """The texts and numbers in a value, whatever lists and mappings they are in."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for item in value:
            yield from _strings(item)
    elif value is not None:
        yield str(value)
