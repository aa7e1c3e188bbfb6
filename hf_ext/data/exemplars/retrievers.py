"""How exemplars are chosen for a query: BM25, vectors, both, at random, or always the same."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hf_ext.data.exemplars.rows import as_ids
from hf_ext.data.exemplars.text import WordSplitter, keyed_integers
from hf_ext.guards.extras import naming_extras
from hf_ext.guards.threads import torch_threads_kept

Encode: TypeAlias = Callable[[Sequence[str]], Any]
Ranked: TypeAlias = list[tuple[int, float]]

NUMBA_FROM = 20_000  # rows: below, NumPy answers in a few milliseconds, and numba's first search costs seconds
TIE_MARGIN = 16  # hits fetched beyond those wanted, so that a tie at the end seldom costs a second search
FUSION_CONSTANT = 60  # Cormack et al. 2009: 1 / (60 + rank)


class Pool(Protocol):
    """What a way to choose sees of an [`ExemplarStore`]."""

    @property
    def queries(self) -> list[str]:
        """The exemplars' queries, in the order of rows."""
        ...

    @property
    def vectors(self) -> NDArray[Any] | None:
        """Their vectors `(rows, dim)`, where the store carries them."""
        ...

    def __len__(self) -> int: ...

    def rows_of_id(self, identifier: str | int) -> Sequence[int]:
        """Rows with this id."""
        ...


class Ranker(Protocol):
    """A retriever that has seen its store."""

    def best(self, query: str, k: int, excluded: Collection[int], salt: str) -> Ranked:
        """At most `wanted` (row, score), best first, none of them in `excluded`; equal scores in the order of rows."""
        ...

    def similarity(self, rows: Sequence[int]) -> NDArray[np.float64]:
        """How alike the exemplars are, `(rows, rows)` in [-1, 1]; MMR keeps like ones apart."""
        ...


class Retriever(Protocol):
    """Settings of a way to choose; `ranker` builds the index. Frozen and picklable: it is part of a store's hash."""

    def ranker(self, store: Pool) -> Ranker:
        """Index the store's queries."""
        ...


def prepare(ranker: Ranker, queries: Sequence[str]) -> None:
    """Let a ranker that can see all queries of a search before it is asked for each (`ranker.prepare(queries)`)."""
    ready = getattr(ranker, "prepare", None)
    if ready is not None:
        ready(queries)


def _ranked(rows: NDArray[Any], scores: NDArray[Any], excluded: Collection[int]) -> Ranked:
    """Rows and their scores, the best first, equal ones in the order of rows, without those excluded."""
    order = np.lexsort((rows, -scores))
    pairs = zip(rows[order].tolist(), scores[order].tolist(), strict=True)
    return [(row, score) for row, score in pairs if row not in excluded]


@dataclass(frozen=True)
class Bm25Retriever:
    r"""
    BM25 in Lucene's formula, of the query against the exemplars' queries; only rows that share a word are found.

    $$\sum_{t \in q} \log\left(1 + \frac{N - n_t + 1/2}{n_t + 1/2}\right)
    \frac{f_{t,d}}{f_{t,d} + k_1 (1 - b + b\, |d| / \overline{|d|})}$$

    A word that the query repeats counts as often, as in Lucene. Scores are rounded to single precision, so that equal
    ones are equal, whatever the order of the sum.

    Args:
        k1 (`float`, *optional*, defaults to `0.9`):
            How soon repeats of a word stop counting (unitless). The default is that of Pyserini, which the paper used.
        b (`float`, *optional*, defaults to `0.4`):
            Share of the length normalisation, 0 to 1.
        splitter ([`WordSplitter`], *optional*):
            Text to words.
    """

    k1: float = 0.9
    b: float = 0.4
    splitter: WordSplitter = field(default_factory=WordSplitter)

    def __post_init__(self) -> None:
        if not (math.isfinite(self.k1) and self.k1 >= 0 and 0 <= self.b <= 1):
            raise ValueError(f"BM25 needs k1 >= 0 and b in [0, 1], got k1={self.k1!r}, b={self.b!r}.")

    def ranker(self, store: Pool) -> Ranker:
        """Index the queries: 3 to 5 seconds for 100,000; from 20,000 on with numba, compiled at the first search."""
        return _Bm25Ranker(self, store.queries)


class _Bm25Ranker:
    def __init__(self, settings: Bm25Retriever, texts: Sequence[str]) -> None:
        with naming_extras():
            from bm25s import BM25

        self.split = settings.splitter
        self.vocabulary: dict[str, int] = {}
        self.words = [[self.vocabulary.setdefault(w, len(self.vocabulary)) for w in self.split(t)] for t in texts]
        backend = "auto" if len(texts) >= NUMBA_FROM else "numpy"
        self.index = BM25(k1=settings.k1, b=settings.b, method="lucene", dtype="float64", backend=backend)
        self.select = self.index.backend  # else bm25s selects by jax where that is installed, in single precision
        if self.vocabulary:
            corpus = (self.words, self.vocabulary)
            self.index.index(corpus, create_empty_token=False, show_progress=False)

    def best(self, query: str, k: int, excluded: Collection[int], salt: str) -> Ranked:
        ids = [number for w in self.split(query) if (number := self.vocabulary.get(w)) is not None]
        size = len(self.words)
        fetch = min(size, k + len(excluded) + TIE_MARGIN)
        while ids and k:
            with torch_threads_kept():  # bm25s may search with numba
                hits = self.index.retrieve([ids], k=fetch, show_progress=False, backend_selection=self.select)
            scores = hits.scores[0].astype(np.float32)
            # What was not fetched scores at most as the last: of the rows that score the same, some may be missing.
            above = scores > (scores[-1] if fetch < size and scores[-1] > 0 else 0)
            ranked = _ranked(hits.documents[0][above], scores[above], excluded)
            if len(ranked) >= k or fetch == size or scores[-1] <= 0:
                return ranked[:k]
            fetch = min(size, 8 * fetch)
        return []

    def similarity(self, rows: Sequence[int]) -> NDArray[np.float64]:
        words = [set(self.words[row]) for row in rows]
        return np.array([[len(a & b) / len(a | b) if a or b else 1.0 for b in words] for a in words])


@dataclass(frozen=True)
class DenseRetriever:
    """
    Cosine similarity of vectors, of the query against the exemplars' queries.

    Args:
        encode (`Callable`):
            Texts to vectors `(texts, dim)`, as NumPy or anything that becomes it: `model.encode` on the plain query
            path. It is not saved with a store.
        name (`str`, *optional*, defaults to `""`):
            What tells one encoder from another: a hash of weights and query prompt. Stored vectors of another name are
            not used. It stands for `encode` in hashes.
    """

    encode: Encode
    name: str = ""

    def ranker(self, store: Pool) -> Ranker:
        """Encode the queries, unless the store carries their vectors."""
        vectors = store.vectors if store.vectors is not None else self.encode(store.queries)
        return _DenseRanker(self, as_vectors(vectors, len(store), "the exemplars' queries"))


class _DenseRanker:
    def __init__(self, settings: DenseRetriever, vectors: NDArray[np.float32]) -> None:
        self.encode = settings.encode
        self.vectors = vectors
        self.ready: dict[str, NDArray[np.float32]] = {}

    def prepare(self, queries: Sequence[str]) -> None:
        """Encode the queries of one search together: one by one they would fill no batch."""
        texts = list(dict.fromkeys(queries))
        vectors: Any = as_vectors(self.encode(texts), len(texts), "the queries") if texts else []
        self.ready = dict(zip(texts, vectors, strict=True))

    def best(self, query: str, k: int, excluded: Collection[int], salt: str) -> Ranked:
        if query not in self.ready:
            self.prepare([query])
        scores = self.vectors @ self.ready[query]
        fetch = min(len(scores), k + len(excluded))
        if fetch == 0:
            return []
        floor = np.partition(scores, -fetch)[-fetch]  # all that score as much or more: ties are not cut
        rows = np.flatnonzero(scores >= floor)
        return _ranked(rows, scores[rows], excluded)[:k]

    def similarity(self, rows: Sequence[int]) -> NDArray[np.float64]:
        chosen = self.vectors[list(rows)].astype(np.float64)
        return chosen @ chosen.T


def as_vectors(vectors: ArrayLike, count: int, subject: str) -> NDArray[np.float32]:
    """
    Vectors of length one, `(count, dim)`.

    Raises:
        ValueError: if they have another shape, or one of their values is not finite.
    """
    array = np.asarray(vectors, dtype=np.float32)
    if array.ndim != 2 or len(array) != count or not np.isfinite(array).all():
        raise ValueError(
            f"The vectors of {subject} must be finite, one a text: expected shape ({count}, dim), found {array.shape}."
        )
    norms = np.linalg.norm(array, axis=1, keepdims=True)
    return array / np.maximum(norms, np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class HybridRetriever:
    """
    BM25 and vectors joined by rank: each gives `1 / (60 + rank)`, so that neither's scale counts.

    Args:
        dense ([`DenseRetriever`]):
            The vectors' side.
        bm25 ([`Bm25Retriever`], *optional*):
            The words' side.
        depth (`int`, *optional*, defaults to `100`):
            Hits of each side that are joined; more where more exemplars are wanted.

    Reference: Cormack, Clarke and Buettcher 2009, *Reciprocal Rank Fusion*.
    """

    dense: DenseRetriever
    bm25: Bm25Retriever = field(default_factory=Bm25Retriever)
    depth: int = 100

    def ranker(self, store: Pool) -> Ranker:
        """Index both ways."""
        return _HybridRanker(self, store)


class _HybridRanker:
    def __init__(self, settings: HybridRetriever, store: Pool) -> None:
        self.sides = (settings.bm25.ranker(store), settings.dense.ranker(store))
        self.depth = settings.depth

    def prepare(self, queries: Sequence[str]) -> None:
        """Encode the queries of one search together."""
        prepare(self.sides[1], queries)

    def best(self, query: str, k: int, excluded: Collection[int], salt: str) -> Ranked:
        joined: dict[int, float] = {}
        for side in self.sides:
            for rank, (row, _) in enumerate(side.best(query, max(k, self.depth), excluded, salt), start=1):
                joined[row] = joined.get(row, 0.0) + 1 / (FUSION_CONSTANT + rank)
        return sorted(joined.items(), key=lambda hit: (-hit[1], hit[0]))[:k]

    def similarity(self, rows: Sequence[int]) -> NDArray[np.float64]:
        return self.sides[1].similarity(rows)


class _Unscored:
    """Rankers whose order says nothing about likeness."""

    def similarity(self, rows: Sequence[int]) -> NDArray[np.float64]:
        raise ValueError("mmr weighs scores, and random and fixed exemplars have none. Choose bm25, dense or hybrid.")


@dataclass(frozen=True)
class RandomRetriever:
    """
    Exemplars drawn without regard to the query's meaning: the control that any other choice must beat.

    Which ones depends on `seed`, the search's `salt` and the query's text alone. Scores are 0.

    Args:
        seed (`int`, *optional*, defaults to `0`):
            Of the draws.
    """

    seed: int = 0

    def ranker(self, store: Pool) -> Ranker:
        """Nothing to index."""
        return _RandomRanker(self.seed, len(store))


class _RandomRanker(_Unscored):
    def __init__(self, seed: int, size: int) -> None:
        self.seed = seed
        self.size = size

    def best(self, query: str, k: int, excluded: Collection[int], salt: str) -> Ranked:
        """Lazy Fisher-Yates: each row that may be shown is equally likely, none comes twice."""
        num_left = self.size
        row_at: dict[int, int] = {}  # places whose row was swapped; at all others stands the row of that number
        hits: Ranked = []
        while num_left and len(hits) < k:
            for number in keyed_integers(min(num_left, 2 * k), "exemplars", self.seed, salt, query, num_left):
                place = number % num_left
                row = row_at.get(place, place)
                num_left -= 1
                row_at[place] = row_at.get(num_left, num_left)
                if row not in excluded and len(hits) < k:
                    hits.append((row, 0.0))
        return hits


@dataclass(frozen=True)
class FixedRetriever:
    """
    The same exemplars for every query, as bge-en-icl shows them; a causal model can keep them in its cache.

    Args:
        ids (`tuple[str, ...]`, *optional*):
            Ids of the exemplars, nearest to the query first. The store's first ones by default.

    Raises:
        TypeError: if an id is neither text nor an integer.
    """

    ids: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "ids", tuple(as_ids(self.ids, "FixedRetriever(ids=)")))

    def ranker(self, store: Pool) -> Ranker:
        """
        Look the ids up.

        Raises:
            ValueError: if an id is not in the store.
        """
        rows = [row for identifier in self.ids for row in store.rows_of_id(identifier)]
        missing = [identifier for identifier in self.ids if not store.rows_of_id(identifier)]
        if missing:
            raise ValueError(f"The store has no exemplar with id {missing[0]!r} ({len(missing)} of the fixed ids).")
        return _FixedRanker(rows if self.ids else range(len(store)))


class _FixedRanker(_Unscored):
    def __init__(self, rows: Sequence[int]) -> None:
        self.rows = rows

    def best(self, query: str, k: int, excluded: Collection[int], salt: str) -> Ranked:
        allowed = (row for row in self.rows if row not in excluded)
        return [(row, 0.0) for row in islice(allowed, k)]


def retriever_named(name: str | Retriever, encode: Encode | None = None) -> Retriever:
    """
    The retriever a name stands for: `bm25`, `dense`, `hybrid`, `random`, `fixed`; any other object is one already.

    Raises:
        ValueError: if the name is unknown, or `dense` or `hybrid` comes without `encode`.
    """
    if not isinstance(name, str):
        return name
    if name in ("dense", "hybrid"):
        if encode is None:
            raise ValueError(
                f"retriever={name!r} needs encode=..., texts to vectors: model.encode of the plain query."
            )
        dense = DenseRetriever(encode)
        return dense if name == "dense" else HybridRetriever(dense)
    simple: dict[str, Callable[[], Retriever]] = {
        "bm25": Bm25Retriever,
        "random": RandomRetriever,
        "fixed": FixedRetriever,
    }
    if name not in simple:
        raise ValueError(f"retriever must be bm25, dense, hybrid, random or fixed, got {name!r}.")
    return simple[name]()


def most_diverse(hits: Ranked, similarity: NDArray[np.float64], k: int, relevance: float) -> Ranked:
    r"""
    Maximal marginal relevance: one by one, the hit with the largest $\lambda\, s_i - (1 - \lambda) \max_j sim_{ij}$.

    Args:
        hits (list of (row, score)):
            Candidates, best first.
        similarity (`NDArray` of shape `(hits, hits)`):
            How alike they are.
        wanted (`int`):
            How many to take.
        relevance (`float`):
            $\lambda$ in [0, 1]: 1 keeps the order of the scores, 0 looks at likeness only. The best score counts as 1.

    Reference: Carbonell and Goldstein 1998.
    """
    top = max((score for _, score in hits), default=1.0) or 1.0
    scores = np.array([score / top for _, score in hits])
    selection: list[int] = []
    candidates = list(range(len(hits)))
    while candidates and len(selection) < k:
        nearest = [max((similarity[i, j] for j in selection), default=0.0) for i in candidates]
        gains = [relevance * scores[i] - (1 - relevance) * near for i, near in zip(candidates, nearest, strict=True)]
        selection.append(candidates.pop(int(np.argmax(gains))))
    return [hits[i] for i in selection]
