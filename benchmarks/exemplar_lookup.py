"""
What does a look-up of exemplars cost, and is its order that of BM25?

A pool of 100,000 queries: sentences of real abstracts and questions (scifact's whole corpus, pubmedqa, boolq; joined
halves of them until there are enough), 23 words on average. Queries are other sentences of the same sources. One call
of `ExemplarStore.search` for one query is timed, tokenising, exclusion (own id, same text, same positive) and the five
exemplars included, after the index is built and numba compiled; the median of all queries, over repeats. Beside it:
the same with 10,000 rows, all queries in one call, a scorer of every document in plain NumPy, and the build, in
CPU seconds too, which a busy machine leaves alone. The order of the ten best is compared with that scorer's, which
applies Lucene's formula to every document.

Last line, one JSON object:
  benchmark
  ms_per_query            median of a single search at 100,000 exemplars, bm25s with numba        (goal <= 1)
  ms_per_query_p95        95th percentile
  ms_per_query_10k        the same with 10,000 exemplars
  ms_per_query_batch      per query, 1,000 queries in one call, at 100,000
  ms_per_query_brute      NumPy over posting lists, without bm25s, at 100,000
  index_seconds           build at 100,000, tokenising and numba's compilation included; wall time
  index_cpu_seconds       the same, time of the processor
  order_equal             share of queries whose ten best are the brute-force scorer's        (goal 1)

    python benchmarks/exemplar_lookup.py            # a few minutes
    python benchmarks/exemplar_lookup.py --quick    # 2,000 rows, not the claim
"""

from __future__ import annotations

import re
import time
from collections import Counter
from typing import Any

import numpy as np
from common import data_folder, finish, parser
from numpy.typing import NDArray
from tqdm.auto import tqdm

from hf_ext.data.exemplars import Exclude, ExemplarStore, Target, WordSplitter
from hf_ext.data.exemplars.sources import read_lines, with_title

K = 5
SIZE, SMALL, ASKED, REPEATS = 100_000, 10_000, 1_000, 3
ORDER_CHECKED = 200
RULES = Exclude(self_id=True, same_text=True, same_positive=True, negatives=False)


def sentences(size: int, asked: int) -> tuple[list[str], list[str]]:
    """Texts of the pool and of the queries: distinct sentences of the real sets, then the same with words swapped."""
    found: dict[str, None] = {}
    for task in ("scifact", "pubmedqa", "boolq"):
        folder = data_folder() / "retrieval" / task
        for row in read_lines(folder, "corpus"):
            for sentence in re.split(r"(?<=[.!?])\s+", with_title(row)):
                if 5 <= len(sentence.split()) <= 60:
                    found.setdefault(sentence)
        for row in read_lines(folder, "queries"):
            found.setdefault(row["text"])
    texts = list(found)
    rng = np.random.default_rng(0)
    rng.shuffle(texts)
    questions, pool = texts[:asked], texts[asked:]
    while len(pool) < size:
        left, right = (pool[int(i)].split() for i in rng.integers(0, len(pool), 2))
        made = " ".join(left[: len(left) // 2] + right[len(right) // 2 :])
        if made not in found and len(made.split()) > 3:
            found.setdefault(made)
            pool.append(made)
    return pool[:size], questions


def store_of(pool: list[str]) -> ExemplarStore:
    """The pool; a document serves three queries, as in scifact, so that exclusion has work to do."""
    rows = {"query": pool, "document": [f"abstract number {i // 3} of the pool" for i in range(len(pool))]}
    return ExemplarStore(rows | {"id": [f"q{i}" for i in range(len(pool))]})


def times(store: ExemplarStore, queries: list[str], targets: list[Target], repeats: int) -> NDArray[np.float64]:
    """Milliseconds of single searches, `(repeats, queries)`."""
    for query in queries[:3]:
        store.search([query], K)
    spent = np.zeros((repeats, len(queries)))
    for repeat in range(repeats):
        for i, (query, target) in enumerate(zip(queries, targets, strict=True)):
            started = time.perf_counter()
            store.search([query], K, targets=[target], exclude=RULES)
            spent[repeat, i] = 1000 * (time.perf_counter() - started)
    return spent


class BruteForce:
    """Lucene's formula over posting lists, every document that holds a word scored, in double precision."""

    def __init__(self, texts: list[str], k1: float = 0.9, b: float = 0.4) -> None:
        self.split = WordSplitter()
        counts = [Counter(self.split(text)) for text in texts]
        lengths = np.array([sum(count.values()) for count in counts], dtype=np.float64)
        self.size, mean = len(texts), lengths.mean()
        rows: dict[str, list[int]] = {}
        terms: dict[str, list[int]] = {}
        for row, count in enumerate(counts):
            for word, times_ in count.items():
                rows.setdefault(word, []).append(row)
                terms.setdefault(word, []).append(times_)
        self.postings = {}
        for word, there in rows.items():
            at, tf = np.array(there), np.array(terms[word], dtype=np.float64)
            idf = np.log(1 + (self.size - len(at) + 0.5) / (len(at) + 0.5))
            self.postings[word] = (at, idf * tf / (tf + k1 * (1 - b + b * lengths[at] / mean)))

    def best(self, query: str, k: int) -> list[int]:
        """Rows of the `k` best scores, equal ones (in single precision) in their order."""
        scores = np.zeros(self.size)
        for word in self.split(query):
            if word in self.postings:
                rows, gains = self.postings[word]
                scores[rows] += gains
        rounded = scores.astype(np.float32)
        order = np.lexsort((np.arange(self.size), -rounded))[:k]
        return [int(row) for row in order if rounded[row] > 0]


def main() -> None:
    """Measure and write."""
    options = parser(__doc__ or "", "exemplar_lookup").parse_args()
    size, small, asked = (2_000, 500, 50) if options.quick else (SIZE, SMALL, ASKED)
    pool, queries = sentences(size, asked)
    # Half of the queries are rows of the pool: those must not find themselves.
    queries = [pool[7 * i] if i % 2 else query for i, query in enumerate(queries)]
    targets = [Target(id=f"q{7 * i}") if i % 2 else Target() for i in range(len(queries))]
    started, started_cpu = time.perf_counter(), time.process_time()
    store = store_of(pool)
    store.search(queries[:1], 1)
    index_seconds, index_cpu = time.perf_counter() - started, time.process_time() - started_cpu
    rows: dict[str, Any] = {"words": float(np.mean([len(WordSplitter()(text)) for text in pool]))}
    single = times(store, queries, targets, REPEATS)
    batch = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        store.search(queries, K, targets=targets, exclude=RULES)
        batch.append(1000 * (time.perf_counter() - started) / len(queries))
    fewer = times(store_of(pool[:small]), queries, [Target()] * len(queries), REPEATS)
    brute = BruteForce(pool)
    checked = queries[: min(ORDER_CHECKED, len(queries))]
    started = time.perf_counter()
    expected = [brute.best(query, 10) for query in tqdm(checked, desc="brute force")]
    brute_ms = 1000 * (time.perf_counter() - started) / len(checked)
    nothing = Exclude(False, False, False, False)
    found = [[hit.row for hit in hits] for hits in store.search(checked, 10, exclude=nothing)]
    equal = [a == b for a, b in zip(found, expected, strict=True)]
    rows |= {
        "single_ms": np.median(single, axis=0).round(4).tolist(),
        "small_ms": np.median(fewer, axis=0).round(4).tolist(),
        "medians_of_repeats": np.median(single, axis=1).round(4).tolist(),
        "batch_ms": [round(value, 4) for value in batch],
        "brute_ms": round(brute_ms, 3),
        "order_equal": equal,
        "index_seconds": round(index_seconds, 2),
        "index_cpu_seconds": round(index_cpu, 2),
        "exemplars": size,
        "backend": store._ranker.index.backend,  # type: ignore[attr-defined]
    }
    finish(options, {"rows": rows}, headline(rows))


def headline(rows: dict[str, Any]) -> dict[str, Any]:
    """From the rows."""
    return {
        "benchmark": "exemplar_lookup",
        "ms_per_query": round(float(np.median(rows["single_ms"])), 3),
        "ms_per_query_p95": round(float(np.quantile(rows["single_ms"], 0.95)), 3),
        "ms_per_query_10k": round(float(np.median(rows["small_ms"])), 3),
        "ms_per_query_batch": round(float(np.median(rows["batch_ms"])), 3),
        "ms_per_query_brute": rows["brute_ms"],
        "index_seconds": rows["index_seconds"],
        "index_cpu_seconds": rows["index_cpu_seconds"],
        "order_equal": float(np.mean(rows["order_equal"])),
    }


if __name__ == "__main__":
    main()
