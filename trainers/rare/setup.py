"""From a model, data sets and a configuration to pools, prompts, tasks and lengths: what the RARe trainers prepare."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
from datasets import Dataset, DatasetDict, IterableDataset
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer, SparseEncoder
from torch.nn import Module

from hf_ext._upstream.rows import AnyDataset
from hf_ext.data.exemplars import DenseRetriever, ExemplarStore, HybridRetriever
from hf_ext.data.exemplars.text import text_key
from hf_ext.guards.matches import MatchRule
from hf_ext.guards.retrieval_rows import check_retrieval_rows, match_rule_of
from hf_ext.trainers.rare.collator import ONE_DATASET
from hf_ext.trainers.rare.config import RareConfig, RareSparseConfig
from hf_ext.trainers.rare.pools import Pool, RetrievalColumns, find_columns, own_store

logger = logging.getLogger(__name__)

INSTRUCTION = "Instruct: {task}\nQuery: "
DOCUMENT_PROMPTS = ("document", "passage", "corpus")  # in the order of `encode_document`
Encoder: TypeAlias = SentenceTransformer | SparseEncoder
OneLoss: TypeAlias = Module | Callable[[Encoder], Module]
Loss: TypeAlias = OneLoss | Mapping[str, OneLoss]
Datasets = dict[str, AnyDataset]  # by name; the only one's name is ""


def by_name(dataset: AnyDataset | Datasets | None) -> Datasets:
    """A data set, or a dict of them, by name."""
    if dataset is None:
        return {}
    return dict(dataset) if isinstance(dataset, dict) else {ONE_DATASET: dataset}


def as_given(datasets: Datasets) -> AnyDataset | DatasetDict | None:
    """The way back: a `DatasetDict`, or the only data set."""
    if set(datasets) == {ONE_DATASET}:
        return datasets[ONE_DATASET]
    return DatasetDict(datasets) if datasets else None


@dataclass
class Prepared:
    """What [`prepare`] makes: pools by data set, the data sets numbered, prompts and tasks by column."""

    pools: dict[str, Pool] = field(default_factory=dict)
    train: Datasets = field(default_factory=dict)
    eval: Datasets = field(default_factory=dict)
    prompts: Any = None
    router_mapping: Any = None


def prepare(
    model: Encoder,
    args: RareConfig | RareSparseConfig,
    train: AnyDataset | Datasets,
    evaluation: AnyDataset | Datasets | None,
    exemplars: ExemplarStore | Mapping[str, ExemplarStore] | None,
    loss: Loss | None = None,
) -> Prepared:
    """
    Check rows, find columns, build pools, and fill prompts and tasks.

    Args:
        model (`SentenceTransformer` or `SparseEncoder`): its prompts are used where the configuration has none, and
            its vectors for dense choice.
        args ([`RareSettings`]): the configuration.
        train, evaluation (`Dataset`, `IterableDataset`, dict of them or `None`): raw rows.
        exemplars ([`ExemplarStore`] or a dict of them by data set, *optional*): pools; the training rows by default.
        loss (*optional*): what is trained by, or one a data set; the default reads no labels.

    Raises:
        ValueError: if a column is missing, a data set has no pool, or one store was given for several data sets.
        TypeError: if a column is not text, or a stream has no store.
        RowError: if a row cannot be trained on.
    """
    training = by_name(train)
    stores = _stores_by_name(exemplars, training)
    prepared = Prepared()
    columns: dict[str, RetrievalColumns] = {}
    rules: dict[str, MatchRule | None] = {}
    for name, dataset in training.items():
        columns[name], rules[name], prepared.train[name] = _checked(
            dataset, args, name or "train", loss_of(loss, name)
        )
    prepared.eval, columns = checked_evaluation(by_name(evaluation), args, columns, loss)
    are_several = isinstance(train, dict)
    prepared.prompts = args.prompts or _prompts(model, args.instruction, columns, are_several)
    for name, roles in columns.items():
        store = stores.get(name)
        own_rows = None
        if store is None:
            store, own_rows = own_store(prepared.train[name], roles, rules[name])
        prompt = query_prompt(prepared.prompts, name, roles.query)
        datasets = [rows[name] for rows in (prepared.train, prepared.eval) if name in rows]
        store = _with_retriever(
            store, model, args.example_retriever, prompt, roles.query, datasets, own_rows is not None
        )
        prepared.pools[name] = Pool(store, roles, prompt, own_rows)
    tasks = {
        name: {roles.query: "query"} | dict.fromkeys(roles.texts[1:], "document") for name, roles in columns.items()
    }
    prepared.router_mapping = args.router_mapping or (tasks if are_several else tasks.get(ONE_DATASET))
    return prepared


def _stores_by_name(
    exemplars: ExemplarStore | Mapping[str, ExemplarStore] | None, training: Datasets
) -> Mapping[str, ExemplarStore]:
    if exemplars is None:
        return {}
    if isinstance(exemplars, ExemplarStore):
        if set(training) != {ONE_DATASET}:
            raise ValueError(
                f"One store of exemplars for the data sets {sorted(training)}: each has a pool of its own. Pass "
                "exemplars={name: store}."
            )
        return {ONE_DATASET: exemplars}
    unknown = set(exemplars) - set(training)
    if unknown:
        raise ValueError(f"exemplars has a store for {sorted(unknown)[0]!r}, the data sets are {sorted(training)}.")
    return exemplars


def checked_evaluation(
    evaluation: Datasets,
    args: RareConfig | RareSparseConfig,
    columns: dict[str, RetrievalColumns],
    loss: Loss | None = None,
) -> tuple[Datasets, dict[str, RetrievalColumns]]:
    """
    Evaluation rows checked and numbered, and the columns by which they and the training rows are read.

    Raises:
        ValueError: if a data set has no pool, or its texts stand under other names than the training rows'.
    """
    columns = dict(columns)
    rows: Datasets = {}
    for name, dataset in evaluation.items():
        if len(columns) > 1 and name not in columns:
            raise ValueError(
                f"The evaluation data set {name or '(the only one)'!r} has no pool of exemplars: name it like one of "
                f"the training data sets, {sorted(columns)}."
            )
        pool_name = name if name in columns else next(iter(columns))
        roles, _, rows[name] = _checked(dataset, args, f"{name} eval".strip(), loss_of(loss, pool_name))
        columns[pool_name] = _read_alike(columns[pool_name], roles, f"{name} eval".strip())
    return rows, columns


def _read_alike(trained: RetrievalColumns, evaluated: RetrievalColumns, dataset_name: str) -> RetrievalColumns:
    """Columns by which the rows of both are read, with the ids of either kept from the model."""
    if (trained.query, trained.positive) != (evaluated.query, evaluated.positive):
        raise ValueError(
            f"The {dataset_name} dataset has its texts in {[evaluated.query, evaluated.positive]}, the training "
            f"dataset in {[trained.query, trained.positive]}: rename them with dataset.rename_columns."
        )
    return replace(trained, apart=tuple(dict.fromkeys((*trained.apart, *evaluated.apart))))


RANKING = re.compile("Ranking|Triplet|GIST|MegaBatch|GradCache")  # names of losses that read no labels


def loss_of(loss: Loss | None, name: str) -> OneLoss | None:
    """The loss of one data set, where there is one a data set."""
    return loss.get(name) if isinstance(loss, Mapping) else loss


def reads_labels(loss: OneLoss | None) -> bool:
    """Whether a loss of sentence-transformers (6.2) reads labels; the default does not, a wrapper as what it wraps."""
    innermost: Any = loss
    while isinstance(getattr(innermost, "loss", None), Module):
        innermost = innermost.loss
    name = getattr(innermost, "__name__", type(innermost).__name__)
    return loss is not None and RANKING.search(name) is None


def _checked(
    dataset: AnyDataset, args: RareConfig | RareSparseConfig, dataset_name: str, loss: OneLoss | None
) -> tuple[RetrievalColumns, MatchRule | None, AnyDataset]:
    """Columns of a data set, the rule of labels that the loss reads, and its rows checked and numbered."""
    if not isinstance(dataset, Dataset | IterableDataset):
        raise TypeError(f"The {dataset_name} dataset is a {type(dataset).__name__}; make one with Dataset.from_list.")
    columns = find_columns(
        dataset,
        query=args.query_column,
        positive=args.positive_column,
        id=args.id_column,
        doc_id=args.doc_id_column,
        dataset_name=dataset_name,
    )
    matches = match_rule_of(dataset, has_negatives=bool(columns.negatives))
    with_labels = reads_labels(loss)
    rows = check_retrieval_rows(
        dataset,
        columns.texts,
        matches=None if with_labels else matches,
        on_bad_row=args.on_bad_row,
        bad_rows_path=args.bad_rows_path,
        dataset_name=dataset_name,
    )
    return columns, matches if with_labels else None, rows


# --- prompts ---------------------------------------------------------------------------------------------------------


def query_prompt(prompts: str | dict[str, Any] | None, name: str, column: str) -> str:
    """The prompt of a data set's queries, as the host's collator resolves it."""
    if isinstance(prompts, dict) and name in prompts:
        prompts = prompts[name]
    if isinstance(prompts, dict):
        prompts = prompts.get(column, "")
    return prompts if isinstance(prompts, str) else ""


def _prompts(
    model: Encoder, instruction: str | dict[str, str] | None, columns: dict[str, RetrievalColumns], are_several: bool
) -> dict[str, Any] | None:
    """Prompts by column from the instruction, else from the model, which the host would not ask."""
    unknown = set(instruction if isinstance(instruction, dict) else ()) - set(columns)
    if unknown:
        raise ValueError(f"instruction names {sorted(unknown)[0]!r}, the data sets are {sorted(columns)}.")
    document_prompt = next((model.prompts[name] for name in DOCUMENT_PROMPTS if model.prompts.get(name)), "")
    prompts = {}
    for name, roles in columns.items():
        task = instruction.get(name) if isinstance(instruction, dict) else instruction
        prompt = INSTRUCTION.format(task=task) if task is not None else model.prompts.get("query") or ""
        by_column = {roles.query: prompt} | dict.fromkeys(roles.texts[1:], document_prompt)
        prompts[name] = {column: text for column, text in by_column.items() if text}
    if not any(prompts.values()):
        return None
    return prompts if are_several else prompts[ONE_DATASET]


def keep_prompts(model: Encoder, pools: Mapping[str, Pool]) -> None:
    """
    Write the queries' prompts into the model where it has none, so that `encode_query` reads what training wrote.

    Where data sets differ, each prompt goes under its data set's name: `encode_query(..., prompt_name=name)`.
    """
    prompts = {pool.prompt for pool in pools.values()}
    if len(prompts) == 1:
        (prompt,) = prompts
        if prompt and not model.prompts.get("query"):
            model.prompts["query"] = prompt
        elif prompt != model.prompts.get("query", ""):
            logger.warning(
                "Queries are trained with the prompt %r, and the model has %r for them: encode_query would use the "
                "latter. Set model.prompts['query'], or leave the prompts of the configuration out.",
                prompt, model.prompts.get("query", ""),
            )  # fmt: skip
        return
    for name, pool in pools.items():
        model.prompts.setdefault(name, pool.prompt)


# --- dense choice ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class KnownVectors:
    """
    Texts to vectors that were made before training: what a worker can hold, and what does not move with the weights.

    Args:
        rows (`dict[str, int]`): row by key of the text.
        vectors (array of shape `(texts, dim)`): of each text.
    """

    rows: dict[str, int]
    vectors: NDArray[np.float32]

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """
        Vectors of shape `(len(texts), dim)`.

        Raises:
            ValueError: if a text was not there before training.
        """
        unknown = next((text for text in texts if text_key(text) not in self.rows), None)
        if unknown is not None:
            raise ValueError(
                f"No vector was made before training for the query {unknown[:80]!r}: dense choice "
                "knows the rows the trainer was given. Pass the data set to the trainer, or choose by bm25."
            )
        return self.vectors[[self.rows[text_key(text)] for text in texts]]


def known_vectors(model: Encoder, texts: list[str], prompt: str) -> KnownVectors:
    """Vectors of the texts under the model as it is, each text once."""
    rows: dict[str, int] = {}
    distinct_texts: list[str] = []
    for text in texts:
        if rows.setdefault(text_key(text), len(distinct_texts)) == len(distinct_texts):
            distinct_texts.append(text)
    is_long = len(distinct_texts) > 10_000
    vectors = model.encode(distinct_texts, prompt=prompt, convert_to_numpy=True, show_progress_bar=is_long)
    return KnownVectors(rows, np.asarray(vectors, dtype=np.float32))


def _with_retriever(
    store: ExemplarStore,
    model: Encoder,
    choice: str,
    prompt: str,
    column: str,
    datasets: list[AnyDataset],
    holds_own_rows: bool,
) -> ExemplarStore:
    """The store with the configuration's retriever; one that was given keeps its own unless vectors are wanted."""
    if choice not in ("dense", "hybrid"):
        is_other = holds_own_rows and choice != "bm25"
        return ExemplarStore(store.given_columns(), retriever=choice) if is_other else store
    if not hasattr(model, "similarity") or type(model).__name__ == "SparseEncoder":
        raise ValueError(
            f"example_retriever={choice!r} needs a model with dense vectors, got {type(model).__name__}: choose bm25."
        )
    streams = [data for data in datasets if isinstance(data, IterableDataset)]
    if streams:
        raise TypeError(f"example_retriever={choice!r} needs all queries before training, not a stream: use bm25.")
    texts = [text for data in datasets for text in data.with_format(None)[column][:]]
    encode = known_vectors(model, [*store.queries, *texts], prompt)
    dense = DenseRetriever(encode, "the model before training")
    return ExemplarStore(store.given_columns(), retriever=dense if choice == "dense" else HybridRetriever(dense))


# --- the model -------------------------------------------------------------------------------------------------------


def read_texts_as_they_are(model: Encoder, text_only: bool) -> None:
    """
    Keep a base model with a chat template from turning texts into chat messages, or warn that it does.

    sentence-transformers makes the prompt a system turn there, so that no exemplar stands where training put it.
    """
    module = model[0]
    config = getattr(module, "modality_config", {})
    if "message" not in config:
        return
    if not text_only or "text" not in config:
        logger.warning(
            "The base model has a chat template: sentence-transformers turns queries and documents into chat messages "
            "and the instruction into a system turn. %s",
            "Set text_only=True to read texts as they are." if "text" in config else "It reads nothing else.",
        )
        return
    module.modality_config = {"text": config["text"]}
    module.input_formatter.supported_modalities = ["text"]
    logger.warning(
        "The base model has a chat template. It is left out, so that texts are read as they are, here and where the "
        "saved model is loaded. text_only=False keeps it."
    )


def set_lengths(model: Encoder, max_query_tokens: int | None, max_document_tokens: int | None) -> int | None:
    """
    Give the model its length for queries and for documents, which are saved with it.

    Returns:
        `int`, *optional*: the longest query; `None` where the model has no limit.

    Raises:
        ValueError: if a length is more than the model's table of positions.
    """
    module = model[0]
    table = getattr(getattr(module, "config", None), "max_position_embeddings", None)
    lengths = {"query_length": max_query_tokens, "document_length": max_document_tokens}
    for name, length in lengths.items():
        if length is None:
            continue
        if isinstance(table, int) and 0 < table < length:
            raise ValueError(
                f"{name}={length:,} tokens are more than the model's {table:,} positions. Lower max_"
                f"{name.removesuffix('_length')}_tokens, or show fewer or shorter exemplars."
            )
        if hasattr(module, name):
            setattr(module, name, length)
        else:
            logger.warning("%s has no %s: its texts are cut at max_seq_length.", type(module).__name__, name)
    length = max_query_tokens or getattr(module, "query_length", None) or model.max_seq_length
    return int(length) if length is not None and length < 1e9 else None
