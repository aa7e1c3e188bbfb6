"""Context distillation: a student reads the bare query and gives the vector that its teacher gives with exemplars."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
from datasets import Dataset
from numpy.typing import ArrayLike, NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import EmbedDistillLoss
from torch import Tensor
from torch.nn import Module

from hf_ext._upstream.retrieval import SentenceTransformerTrainerHooks
from hf_ext.data.exemplars import ExampleDraw, ExemplarStore, TokenCounter, augment
from hf_ext.data.exemplars.sources import require_matches
from hf_ext.guards.rows import ROW_INDEX
from hf_ext.retrieval.encoder import RareEncoder
from hf_ext.retrieval.vectors import Body
from hf_ext.trainers.base.trainer import BaseTrainer
from hf_ext.trainers.rare.card import RetrieverCard
from hf_ext.trainers.rare.collator import ONE_DATASET
from hf_ext.trainers.rare.config import RareConfig
from hf_ext.trainers.rare.pools import Pool, find_columns, own_store
from hf_ext.trainers.rare.setup import Loss, prepare, query_prompt, set_lengths


def context_targets(
    teacher: SentenceTransformer,
    dataset: Dataset,
    store: ExemplarStore | None = None,
    *,
    args: RareConfig | None = None,
    prompt: str = "",
    weight: float = 1.0,
    batch_size: int = 32,
) -> Dataset:
    r"""
    Rows to distil from: texts, and the teacher's vectors of them.

    | column in | type | column out | type |
    |---|---|---|---|
    | query, document | string | the same, first | string |
    | | | `label` | list of two vectors: of the query with exemplars, of the document |

    Args:
        teacher (`SentenceTransformer`):
            Trained with exemplars.
        dataset (`Dataset`):
            Pairs; the columns are found as [`RareTrainer`] finds them.
        store ([`ExemplarStore`], *optional*):
            The pool; the rows themselves by default.
        args ([`RareConfig`], *optional*):
            How exemplars are chosen, excluded and written; every query is shown `n_examples`.
        prompt (`str`, *optional*):
            Of the teacher's queries.
        weight (`float`, *optional*, defaults to `1.0`):
            $w$ in [0, 1]: the query's vector is $(1 - w)$ times that of the bare query and $w$ times that with
            exemplars, to length one.
        batch_size (`int`, *optional*, defaults to `32`):
            Texts of one forward.

    Raises:
        ValueError: if `weight` is out of range, or a column is missing.
    """
    if not 0 <= weight <= 1:
        raise ValueError(f"weight is the share of the vector with exemplars and lies in [0, 1], got {weight!r}.")
    args = args if args is not None else RareConfig(output_dir="unused")
    columns = find_columns(
        dataset,
        query=args.query_column,
        positive=args.positive_column,
        id=args.id_column,
        doc_id=args.doc_id_column,
    )
    plain = dataset.with_format(None)
    if ROW_INDEX not in plain.column_names:
        plain = plain.add_column(ROW_INDEX, list(range(len(plain))))
    store_rows = None
    if store is None:
        require_matches(plain)
        store, store_rows = own_store(plain, columns)
    texts = _with_exemplars(teacher, plain, Pool(store, columns, prompt, store_rows), args)
    reader = RareEncoder.from_model(teacher)  # without a pool: it reads what it is given, exemplars marked
    queries = plain[columns.query][:]
    documents = plain[columns.positive][:]
    options: dict[str, Any] = {"batch_size": batch_size, "convert_to_numpy": True, "show_progress_bar": False}
    query_vectors = reader.encode_query(texts, prompt=prompt, **options)
    if weight < 1:
        query_vectors = weight * query_vectors + (1 - weight) * reader.encode_query(queries, prompt=prompt, **options)
    document_vectors = teacher.encode_document(documents, **options)
    pairs = np.stack([to_length_one(query_vectors), to_length_one(document_vectors)], axis=1)  # (rows, 2, dim)
    return Dataset.from_dict({columns.query: queries, columns.positive: documents, "label": pairs.tolist()})


def to_length_one(vectors: ArrayLike) -> NDArray[np.float32]:
    """Rows of `(texts, dim)` over their length."""
    array = np.asarray(vectors, dtype=np.float32)
    return array / np.maximum(np.linalg.norm(array, axis=1, keepdims=True), np.finfo(np.float32).tiny)


def _with_exemplars(teacher: SentenceTransformer, rows: Dataset, pool: Pool, args: RareConfig) -> list[str]:
    length = set_lengths(teacher, args.max_query_tokens, args.max_document_tokens)
    formatter = args.formatter(length)
    texts = augment(
        pool.store,
        formatter,
        rows[pool.columns.query][:],
        tokenizer=TokenCounter(teacher.tokenizer) if formatter.has_budget else None,
        prompt=pool.prompt,
        draw=ExampleDraw(args.n_examples, "fixed", 1.0, args.seed),
        targets=pool.targets(list(rows)),
        exclude=args.exclusion(),
        min_score=args.min_example_score,
    )
    return [text.body if args.pool_examples else Body.of(text) for text in texts]


class ContextDistillationTrainer(BaseTrainer, SentenceTransformerTrainerHooks):
    """
    Train a student to give, for a bare query, the vector its teacher gives with exemplars.

    What exemplars cost at inference, a search and a query many times as long, is gone. Documents keep the teacher's
    vectors: an index of them stays good as far as `label` is met.

    Args:
        model (`SentenceTransformer`):
            The student; a copy of the teacher is a good start.
        args ([`RareConfig`], *optional*):
            Training, and how exemplars are chosen and written.
        train_dataset (`Dataset`):
            Pairs of query and document.
        teacher (`SentenceTransformer`):
            Trained by [`RareTrainer`].
        exemplars ([`ExemplarStore`], *optional*):
            The pool; the rows themselves by default.
        weight (`float`, *optional*, defaults to `1.0`):
            As in [`context_targets`].
        **kwargs:
            As in [`~sentence_transformers.SentenceTransformerTrainer`].

    Reference: Snell et al. 2022, *Learning by Distilling Context* (arXiv 2209.15189), for language models; its loss is
    `EmbedDistillLoss`, cosine.
    """

    method = "rare"
    config_class = RareConfig
    card_class = RetrieverCard
    encoder_class = SentenceTransformer

    def __init__(
        self,
        model: SentenceTransformer,
        args: RareConfig | None = None,
        train_dataset: Dataset | None = None,
        *,
        teacher: SentenceTransformer,
        exemplars: ExemplarStore | None = None,
        weight: float = 1.0,
        loss: Loss | None = None,
        **kwargs: Any,
    ) -> None:
        if train_dataset is None:
            raise ValueError("ContextDistillationTrainer needs a train_dataset: pairs of query and document.")
        args = copy.copy(self.own_config(args, "contextdistillation_output"))
        self.max_query_tokens = set_lengths(model, args.max_query_tokens, args.max_document_tokens)
        prepared = prepare(teacher, args, train_dataset, None, exemplars)
        self.pools = prepared.pools
        columns = prepared.pools[ONE_DATASET].columns
        prompt = query_prompt(prepared.prompts, ONE_DATASET, columns.query)
        rows = context_targets(
            teacher, prepared.train[ONE_DATASET], exemplars, args=args, prompt=prompt, weight=weight,
            batch_size=args.per_device_eval_batch_size,
        )  # fmt: skip
        args.prompts = prepared.prompts
        args.router_mapping = prepared.router_mapping
        if prompt and not model.prompts.get("query"):
            model.prompts["query"] = prompt
        super().__init__(model=model, args=args, train_dataset=rows, loss=loss or EmbedDistillLoss(model), **kwargs)

    def compute_loss(
        self,
        model: Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Any:
        """The host's loss; a value that is not finite stops before the step."""
        result = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        loss = result[0] if return_outputs else result
        self.guard("loss", loss)
        return result


__all__ = ["ContextDistillationTrainer", "context_targets"]
