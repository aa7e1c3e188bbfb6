"""Retrieval with exemplars, measured so that memory and generalisation can be told apart."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np
from torch import Tensor

from hf_ext.data.exemplars import Exclude, Exemplar, ExemplarStore, Target
from hf_ext.data.exemplars.rows import as_id, as_ids, some
from hf_ext.data.exemplars.text import text_key
from hf_ext.guards.extras import naming_extras
from hf_ext.retrieval.augmenter import EncoderSettings

with naming_extras():
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

    from hf_ext.retrieval.encoder import RareEncoder

__all__ = ["RareInformationRetrievalEvaluator", "graded_ndcg"]

logger = logging.getLogger(__name__)

# A query must not see itself, as in BEIR. Exemplars with its answer stay: in use nobody knows the answer either.
ITSELF = Exclude(self_id=True, same_text=True, same_positive=False, negatives=False)


def graded_ndcg(ranking: Sequence[str], grades: Mapping[str, float], k: int) -> float:
    r"""
    nDCG@k with linear gains, as trec_eval has it: $\sum_i g_i / \log_2(i + 1)$ over that of the ideal ranking.

    Args:
        ranking (`Sequence[str]`):
            Document ids, best first.
        grades (`Mapping[str, float]`):
            Of the judged documents; those of 0 or less, and unjudged ones, gain nothing.
        k (`int`):
            Length of the ranking that counts.
    """
    gains = [max(0.0, grades.get(name, 0.0)) for name in ranking[:k]]
    ideal = sorted((grade for grade in grades.values() if grade > 0), reverse=True)[:k]
    return _dcg(gains) / _dcg(ideal)


def texts_by_id(texts: Mapping[Any, Any], name: str) -> dict[str, Any]:
    """
    Texts by ids as [`as_id`] has them.

    Raises:
        TypeError: if an id is neither text nor an integer, or if `texts` is no mapping.
        ValueError: if two ids are the same, as 7 and `"7"` are.
    """
    if not isinstance(texts, Mapping):
        raise TypeError(f"{name} maps ids to texts, got {type(texts).__name__}.")
    text_by_id: dict[str, Any] = {}
    for key, text in texts.items():
        identifier = as_id(key, name)
        if identifier in text_by_id:
            raise ValueError(f"{name} holds the id {identifier!r} twice, as a string and as an integer.")
        text_by_id[identifier] = text
    return text_by_id


def require_texts(texts: Mapping[str, Any], name: str) -> None:
    """
    Refuse what no encoder reads: a missing text, and a document as BEIR's loader has it, title and text apart.

    Raises:
        TypeError: if there is one; the message has its id.
    """
    for identifier, text in texts.items():
        if text is None or (isinstance(text, Mapping) and "title" in text):
            remedy = "leave it out" if text is None else "join its title and text into one string"
            raise TypeError(f"{name}[{identifier!r}] is no text but {type(text).__name__}: {remedy}.")


def grades_by_id(relevant_docs: Mapping[Any, Any]) -> dict[str, dict[str, float]]:
    """
    Grades of the judged documents of each query, from sets, lists or single ids of relevant ones too.

    Raises:
        TypeError: if an id is neither text nor an integer, or if a grade is no number.
        ValueError: if two ids are the same, or if a grade is not finite.
    """
    grades: dict[str, dict[str, float]] = {}
    for query, judged in texts_by_id(relevant_docs, "relevant_docs").items():
        place = f"relevant_docs[{query!r}]"
        if not isinstance(judged, Mapping):
            grades[query] = dict.fromkeys(as_ids(judged, place), 1.0)
            continue
        grades[query] = {}
        for document, grade in texts_by_id(judged, place).items():
            if isinstance(grade, str) or not hasattr(grade, "__float__"):
                raise TypeError(f"{place}: the grade of {document!r} is no number but {grade!r}.")
            if not math.isfinite(grade):
                raise ValueError(f"{place}: the grade of {document!r} is {grade!r}, and must be finite.")
            grades[query][document] = float(grade)
    return grades


def _dcg(gains: Sequence[float]) -> float:
    return float(sum(gain / np.log2(place + 2) for place, gain in enumerate(gains)))


class RareInformationRetrievalEvaluator(InformationRetrievalEvaluator):
    """
    [`~sentence_transformers.sentence_transformer.evaluation.InformationRetrievalEvaluator`] for models that read
    exemplars, with graded judgements.

    Beside the parent's metrics, whose nDCG becomes graded, and with a pool (the evaluator's, or the model's own):

    | metric | |
    |---|---|
    | `plain_ndcg@k`, `plain_mrr@k`, `plain_recall@k` | the same model on the bare queries |
    | `copy_ndcg@k` | the documents of the shown exemplars as the ranking, nearest first: no model at all |
    | `leaked_share` | queries with a relevant document among the shown exemplars |
    | `leaked_ndcg@k`, `clean_ndcg@k` | over those queries, and over the others; left out where there are none |
    | `copied_wrong_share` | queries whose first hit is a shown document that is not relevant |
    | `augmented_share` | queries that were shown any exemplar |
    | `ms_per_query`, `plain_ms_per_query` | search and forward, wall time; the index is built before |

    A gain on the leaked queries is memory: welcome in a search log, worthless for a new question. A document whose id
    equals the query's is no hit, as in BEIR (ArguAna, Quora), unless it is judged relevant; and an exemplar with the
    query's own id or text is not shown. A pool without ids of its own is compared by text alone.

    Averages are over the queries with a relevant document. A relevant document that is not in the corpus is never
    found and stays in the ideal ranking and in recall's denominator, as in sentence-transformers and BEIR: a query
    whose relevant documents are all missing scores 0. Judgements of 0 or less make nothing relevant. What is missing
    is counted in one warning.

    All of it goes into the model's card. It works in `SequentialEvaluator`, during training on the model that is being
    trained, and as `information_retrieval_class` of a `NanoBEIREvaluator`.

    Args:
        queries, corpus (`dict[str, str]`):
            Texts by id; an integer counts as its digits.
        relevant_docs (`dict[str, set[str]]` or `dict[str, dict[str, float]]`):
            Relevant documents of a query, or their grades.
        exemplars ([`ExemplarStore`], *optional*):
            Pool to show from. By default the model's own, where it is a [`RareEncoder`].
        settings ([`EncoderSettings`], *optional*):
            How; needed with `exemplars` where they are not the defaults.
        exclude ([`Exclude`], *optional*):
            What a query is not shown.
        ignore_identical_ids (`bool`, *optional*, defaults to `True`):
            Whether a document with the query's id, which is not judged relevant, is no hit: as in BEIR. `False` counts
            it, as MTEB does for most tasks: for queries and documents that are numbered apart.
        **kwargs:
            As in the parent.

    Raises:
        ValueError: if no query has a relevant document, or if all judged queries or relevant documents are missing.
        TypeError: if an id is neither text nor an integer.
    """

    def __init__(
        self,
        queries: dict[str, str],
        corpus: dict[str, str],
        relevant_docs: Mapping[str, Any],
        *args: Any,
        exemplars: ExemplarStore | None = None,
        settings: EncoderSettings | None = None,
        exclude: Exclude = ITSELF,
        ignore_identical_ids: bool = True,
        **kwargs: Any,
    ) -> None:
        queries = texts_by_id(queries, "queries")
        corpus = texts_by_id(corpus, "corpus")
        require_texts(queries, "queries")
        require_texts(corpus, "corpus")
        self.grades = grades_by_id(relevant_docs)
        relevant = {q: {doc for doc, grade in judged.items() if grade > 0} for q, judged in self.grades.items()}
        super().__init__(queries, corpus, relevant, *args, **kwargs)
        self._warn_of_missing_texts(set(queries), set(corpus))
        self.ignore_identical_ids = ignore_identical_ids
        self.exemplars = exemplars
        self.settings = settings
        self.exclude = exclude
        self.shown_exemplars: list[list[Exemplar]] = []
        self.rankings: dict[str, list[list[str]]] = {}
        self._pool: ExemplarStore | None = None
        self._bare = False
        self._seconds: dict[bool, float] = {}

    def _warn_of_missing_texts(self, queries: set[str], corpus: set[str]) -> None:
        """Count judgements of unknown texts in one warning; refuse what leaves nothing to measure."""
        judged = [name for name, documents in self.relevant_docs.items() if documents]
        unasked = [name for name in judged if name not in queries]
        if not self.queries_ids:
            if unasked:
                raise ValueError(
                    f"None of the {len(judged):,} judged queries, such as {some(judged)}, is among the "
                    f"{len(queries):,} queries, such as {some(sorted(queries))}. Are their ids of one kind?"
                )
            raise ValueError("No query has a relevant document, so there is nothing to measure.")
        relevant = {doc: None for name in self.queries_ids for doc in sorted(self.relevant_docs[name])}
        unknown = [doc for doc in relevant if doc not in corpus]
        if len(unknown) == len(relevant):
            raise ValueError(
                f"None of the {len(relevant):,} relevant documents, such as {some(relevant)}, is among the "
                f"{len(corpus):,} of the corpus, such as {some(sorted(corpus))}. Are both of one version of the data?"
            )
        parts = []
        if unasked:
            parts.append(f"{len(unasked):,} of {len(judged):,} judged queries are not in queries: {some(unasked)}")
        if unknown:
            empty = sum(corpus.isdisjoint(self.relevant_docs[name]) for name in self.queries_ids)
            parts.append(
                f"{len(unknown):,} of {len(relevant):,} relevant documents are not in corpus: {some(unknown)}; they "
                f"count as not found, and {empty:,} of {len(self.queries_ids):,} queries, with no other, score 0"
            )
        if parts:
            logger.warning("Missing: %s.", ". ".join(parts))

    # --- what is encoded -------------------------------------------------------------------------------------------

    def _encoder(self, model: SentenceTransformer) -> RareEncoder | None:
        """The model as one that shows exemplars, if there are any to show."""
        if self.exemplars is not None:
            settings = self.settings or (model.settings if isinstance(model, RareEncoder) else None)
            return RareEncoder.from_model(model, self.exemplars, settings)
        return model if isinstance(model, RareEncoder) and model.exemplars is not None else None

    def embed_inputs(
        self,
        model: SentenceTransformer,
        sentences: str | Sequence[str],
        encode_fn_name: str | None = None,
        **kwargs: Any,
    ) -> Any:
        """Vectors, as the parent's; of queries with exemplars, what was shown is kept, and the time."""
        if encode_fn_name != "query" or not isinstance(model, RareEncoder) or self._pool is None:
            return super().embed_inputs(model, sentences, encode_fn_name, **kwargs)
        started = time.perf_counter()
        if self._bare:
            vectors = super().embed_inputs(model, sentences, encode_fn_name, examples=False, **kwargs)
        else:
            # A pool's default ids are row numbers: the query named "3" is not its row 3.
            targets = None if self._pool.numbered else [Target(id=name) for name in self.queries_ids]
            vectors, self.shown_exemplars = super().embed_inputs(
                model,
                sentences,
                encode_fn_name,
                examples=True,
                return_examples=True,
                targets=targets,
                exclude=self.exclude,
                **kwargs,
            )
        self._seconds[self._bare] = time.perf_counter() - started
        return vectors

    def compute_all_metrics(
        self,
        model: SentenceTransformer,
        corpus_model: SentenceTransformer | None = None,
        corpus_embeddings: Tensor | None = None,
        output_path: str | None = None,
    ) -> Any:
        """The parent's, once with exemplars and once without; documents are encoded once."""
        encoder = self._encoder(model)
        self._pool = encoder.exemplars if encoder is not None else None
        self.shown_exemplars = []
        if encoder is None or self._pool is None:
            with self._one_hit_more():
                return super().compute_all_metrics(model, corpus_model, corpus_embeddings, output_path)
        self._pool.search(self.queries[:1], 1)  # builds the index: no part of the time of a query
        if corpus_embeddings is None:
            corpus_embeddings = self.embed_inputs(
                corpus_model or model,
                self.corpus,
                encode_fn_name="document",
                prompt_name=self.corpus_prompt_name,
                prompt=self.corpus_prompt,
            )
        with self._one_hit_more(), encoder.no_examples():
            self._bare = True  # read by `embed_inputs`, which the parent calls without a word about exemplars
            try:
                plain = super().compute_all_metrics(encoder, corpus_model, corpus_embeddings)
            finally:
                self._bare = False
        with self._one_hit_more():
            scores: Any = super().compute_all_metrics(encoder, corpus_model, corpus_embeddings, output_path)
        for name, metrics in scores.items():
            for metric in ("ndcg@k", "mrr@k", "recall@k"):
                metrics[f"plain_{metric}"] = plain[name][metric]
            metrics |= self._of_exemplars(self.rankings[name])
        return scores

    @contextmanager
    def _one_hit_more(self) -> Iterator[None]:
        """Inside, a ranking is one longer than any metric needs: its query's own document will leave it."""
        map_at_k = self.map_at_k
        longest = max(*self.mrr_at_k, *self.ndcg_at_k, *self.accuracy_at_k, *self.precision_recall_at_k, *map_at_k)
        # The parent (sentence-transformers 6.2) keeps as many hits of a query as its largest k asks for.
        self.map_at_k = [*map_at_k, longest + 1]
        self.rankings = {}
        try:
            yield
        finally:
            self.map_at_k = map_at_k

    # --- metrics ---------------------------------------------------------------------------------------------------

    def compute_metrics(self, queries_result_list: list[Any]) -> Any:
        """The parent's over rankings without the query's own document, unless it is relevant; nDCG graded."""
        struck = [
            name if self.ignore_identical_ids and name not in self.relevant_docs[name] else None
            for name in self.queries_ids
        ]
        ranked = [
            [hit for hit in hits if hit["corpus_id"] != itself]
            for itself, hits in zip(struck, queries_result_list, strict=True)
        ]
        scores = super().compute_metrics(ranked)
        # The k that `_one_hit_more` added is nobody's metric.
        scores["map@k"].pop(self.map_at_k[-1])
        rankings = [
            [hit["corpus_id"] for hit in sorted(hits, key=lambda hit: (-hit["score"], hit["corpus_id"]))]
            for hits in ranked
        ]
        scores["ndcg@k"] = {k: float(np.mean(self._ndcg(rankings, k))) for k in self.ndcg_at_k}
        self.rankings[list(self.score_functions)[len(self.rankings)]] = rankings  # the parent keeps their order
        return scores

    def _ndcg(self, rankings: Sequence[Sequence[str]], k: int) -> list[float]:
        """Of each query."""
        return [
            graded_ndcg(ranking, self.grades[name], k)
            for name, ranking in zip(self.queries_ids, rankings, strict=True)
        ]

    @cached_property
    def _corpus_keys(self) -> dict[str, str]:
        keys: dict[str, str] = {}
        for name, text in zip(self.corpus_ids, self.corpus, strict=True):
            keys.setdefault(text_key(text), name)
        return keys

    def _shown_documents(self) -> list[list[str]]:
        """Corpus ids of the documents that each query was shown, nearest first, each once."""
        corpus, pool = set(self.corpus_ids), self._pool
        hashes = pool.column("document_key") if pool is not None else []
        documents = []
        for exemplars in self.shown_exemplars:
            names: list[str] = []
            for exemplar in exemplars:
                by_text = self._corpus_keys.get(str(hashes[exemplar.row]))  # of the whole text, however it was cut
                name = exemplar.doc_id if exemplar.doc_id in corpus else by_text
                if name is not None and name not in names:
                    names.append(name)
            documents.append(names)
        return documents

    def _of_exemplars(self, rankings: list[list[str]]) -> dict[str, dict[Any, float]]:
        documents = self._shown_documents()
        relevant = [self.relevant_docs[name] for name in self.queries_ids]
        leaked = np.array([bool(answers & set(names)) for answers, names in zip(relevant, documents, strict=True)])
        wrong = [
            bool(ranking) and ranking[0] in names and ranking[0] not in answers
            for ranking, names, answers in zip(rankings, documents, relevant, strict=True)
        ]
        metrics: dict[str, dict[Any, float]] = {
            "copy_ndcg@k": {k: float(np.mean(self._ndcg(documents, k))) for k in self.ndcg_at_k},
            "leaked_share": {0: float(leaked.mean())},
            "copied_wrong_share": {0: float(np.mean(wrong))},
            "augmented_share": {0: float(np.mean([bool(names) for names in self.shown_exemplars]))},
            "ms_per_query": {0: 1000 * self._seconds[False] / len(self.queries)},
            "plain_ms_per_query": {0: 1000 * self._seconds[True] / len(self.queries)},
        }
        for name, chosen in (("leaked", leaked), ("clean", ~leaked)):
            if chosen.any():
                ndcg = {k: np.array(self._ndcg(rankings, k))[chosen] for k in self.ndcg_at_k}
                metrics[f"{name}_ndcg@k"] = {k: float(values.mean()) for k, values in ndcg.items()}
        return metrics

    @property
    def description(self) -> str:
        """Its title in the card."""
        return "Information Retrieval with exemplars"

    def get_config_dict(self) -> dict[str, Any]:
        """The parent's, with what decides the numbers."""
        config = super().get_config_dict()
        if self._pool is not None:
            config["exemplars"] = len(self._pool)
        return config
