"""RARe's trainers: retrievers that learn to read exemplars before the query."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from sentence_transformers import SentenceTransformer, SparseEncoder
from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss
from torch import Tensor
from torch.nn import Module
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_ext._upstream.retrieval import (
    RetrievalTrainerHooks,
    SentenceTransformerTrainerHooks,
    SparseEncoderTrainerHooks,
)
from hf_ext._upstream.rows import AnyDataset
from hf_ext.data.exemplars import ExemplarStore, TokenCounter
from hf_ext.guards.rows import ROW_INDEX
from hf_ext.retrieval.repository import write_exemplars
from hf_ext.retrieval.vectors import leave_exemplars_out
from hf_ext.trainers.base.trainer import BaseTrainer
from hf_ext.trainers.rare.card import RetrieverCard
from hf_ext.trainers.rare.collator import COUNTS, ONE_DATASET, RareDataCollator
from hf_ext.trainers.rare.config import RareConfig, RareSparseConfig
from hf_ext.trainers.rare.setup import (
    Datasets,
    Encoder,
    Loss,
    as_given,
    checked_evaluation,
    keep_prompts,
    prepare,
    read_texts_as_they_are,
    set_lengths,
)

if TYPE_CHECKING:
    from peft import PeftConfig

    from hf_ext.retrieval import EncoderSettings, RareEncoder

logger = logging.getLogger(__name__)

ROWS_TO_SHOW = 50  # of a data set, until one that is shown exemplars has been found to print
CHARACTERS_TO_SHOW = 4000


class TellEpoch(TrainerCallback):
    """Tells the collator the epoch, in every worker, before its first batch is drawn."""

    def __init__(self, collator: RareDataCollator) -> None:
        self.collator = collator

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Set the epoch: whole ones are behind us, after a resume in the middle of one too."""
        self.collator.set_epoch(int(state.epoch or 0))


class RareMethod(BaseTrainer, RetrievalTrainerHooks):
    """
    What RARe's trainers share; stands before the hooks of their host.

    The exemplars of a [`~hf_ext.retrieval.RareEncoder`] are neither saved nor pushed by the trainer.

    Attributes:
        pools (`dict[str, Pool]`): exemplars by data set; the only one's name is `""`.
    """

    config_class: ClassVar[type[Any]]
    encoder_class: ClassVar[type[Any]]
    method = "rare"
    card_class = RetrieverCard
    data_collator_class = RareDataCollator

    def __init__(
        self,
        model: Encoder | str | None = None,
        args: TrainingArguments | None = None,
        train_dataset: AnyDataset | Datasets | None = None,
        eval_dataset: AnyDataset | Datasets | None = None,
        loss: Loss | None = None,
        *,
        exemplars: ExemplarStore | Mapping[str, ExemplarStore] | None = None,
        peft_config: PeftConfig | None = None,
        data_collator: Callable | None = None,
        **kwargs: Any,
    ) -> None:
        name = type(self).__name__
        args = self.own_config(args, f"{name.removesuffix('Trainer').lower()}_output")
        args = copy.copy(args)  # filled in below, and not for the caller
        encoder = self._encoder(model)
        if train_dataset is None:
            raise ValueError(f"{name} needs a train_dataset: its rows are trained on, and are the pool of exemplars.")
        if data_collator is not None:
            raise TypeError(
                f"{name} puts exemplars into batches with a data collator of its own: leave data_collator out."
            )
        if peft_config is not None:
            encoder.add_adapter(peft_config)
        read_texts_as_they_are(encoder, args.text_only)
        self.max_query_tokens = set_lengths(encoder, args.max_query_tokens, args.max_document_tokens)
        self.pool_examples = getattr(args, "pool_examples", True) or not leave_exemplars_out(encoder)
        prepared = prepare(encoder, args, train_dataset, eval_dataset, exemplars, loss)
        self.pools = prepared.pools
        self.given_loss = loss
        args.prompts = prepared.prompts
        args.router_mapping = prepared.router_mapping
        keep_prompts(encoder, prepared.pools)
        evaluation = as_given(prepared.eval) if prepared.eval else eval_dataset
        super().__init__(
            model=encoder,
            args=args,
            train_dataset=as_given(prepared.train),
            eval_dataset=evaluation,
            loss=loss,
            **kwargs,
        )
        self.add_callback(TellEpoch(self.data_collator))
        if getattr(encoder, "save_exemplars", False):
            encoder.save_exemplars = False
            logger.info(
                "What this trainer saves and pushes holds no rows of the exemplars, which are training text in clear. "
                "model.push_to_hub(..., include_exemplars=True) publishes them."
            )

    @classmethod
    def _encoder(cls, model: Encoder | str | None) -> Encoder:
        if isinstance(model, str):
            return cls.encoder_class(model)
        if model is None:
            raise ValueError(f"{cls.__name__} needs a model: {cls.encoder_class.__name__}(...), or its name.")
        if isinstance(model, cls.encoder_class):
            return model
        class_name = type(model).__name__
        reasons = {
            "CrossEncoder": "It reads query and document together, so exemplars would be read again for every "
            "candidate. Train the retriever before it, and leave the CrossEncoder as it is.",
            "MultiVectorEncoder": "Every token of an exemplar would have a vector of its own and score in MaxSim, "
            "which needs a mask that sentence-transformers does not have.",
            "SparseEncoder": "Use RareSparseTrainer.",
            "SentenceTransformer": "Use RareTrainer.",
        }
        kind = next((base.__name__ for base in type(model).__mro__ if base.__name__ in reasons), class_name)
        raise TypeError(
            f"{cls.__name__} does not train a {class_name}. {reasons.get(kind, 'Pass a SentenceTransformer.')}"
        )

    # --- batches ---------------------------------------------------------------------------------------------------

    def get_data_collator(
        self, model: Encoder, args: RareConfig | RareSparseConfig, processing_class: Any = None
    ) -> RareDataCollator:
        """The collator that writes exemplars; the host asks for it while it is being made."""
        formatter = args.formatter(self.max_query_tokens)
        return self.data_collator_class(
            preprocess_fn=model.preprocess,
            router_mapping=args.router_mapping,
            prompts=args.prompts,
            pools=self.pools,
            formatter=formatter,
            tokenizer=TokenCounter(model.tokenizer) if formatter.has_budget or not self.pool_examples else None,
            pool_examples=self.pool_examples,
            draw=args.draw(),
            exclude=args.exclusion(),
            min_score=args.min_example_score,
            resample=args.resample_each_epoch,
        )

    def should_dataset_name_column_be_added(
        self, dataset: AnyDataset | Datasets, args: RareConfig | RareSparseConfig, loss: Loss
    ) -> bool:
        """Always where there are several: the collator finds a row's pool by it."""
        return isinstance(dataset, dict)

    def get_eval_dataloader(self, eval_dataset: AnyDataset | Datasets | None = None) -> Any:
        """The host's, with draws that are the same at every evaluation; rows given to `evaluate` are checked first."""
        training_collator = self.data_collator
        collator = training_collator
        features = getattr(eval_dataset, "features", None) or {}
        if len(self.pools) == 1 and eval_dataset is not None and features and ROW_INDEX not in features:
            columns = {name: pool.columns for name, pool in self.pools.items()}
            rows, columns = checked_evaluation({ONE_DATASET: eval_dataset}, self.args, columns, self.given_loss)
            eval_dataset = rows[ONE_DATASET]
            pools = {name: replace(pool, columns=columns[name]) for name, pool in self.pools.items()}
            collator = replace(collator, pools=pools)
        self.data_collator = collator.for_evaluation()
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.data_collator = training_collator

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as the host does, after one formatted query of each data set was printed."""
        for name in self.pools:
            self.accelerator.print(self.first_query(name))
        return super().train(*args, **kwargs)

    def first_query(self, name: str = ONE_DATASET) -> str:
        """
        The first query of a data set that is shown exemplars, as the model reads it, with a line above it.

        Args:
            name (`str`, *optional*): of the data set; not needed where there is one.
        """
        dataset = self.train_dataset[name] if isinstance(self.train_dataset, dict) else self.train_dataset
        rows = [row for row, _ in zip(dataset, range(ROWS_TO_SHOW), strict=False)]
        texts, _ = self.data_collator.augment(rows, name)
        first = next((text for text in texts if text.shown), texts[0])
        body = self.data_collator.pool_of(name).prompt + first.body
        excerpt = body if len(body) <= CHARACTERS_TO_SHOW else body[:CHARACTERS_TO_SHOW] + " ..."
        title = f"First query with exemplars{f' of {name}' if name else ''} ({len(first.shown)} shown)"
        return f"--- {title} ---\n{excerpt}\n---"

    # --- loss ------------------------------------------------------------------------------------------------------

    def compute_loss(
        self,
        model: Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Any:
        """
        The host's loss, once the batch is counted.

        Raises:
            NonFiniteError: if the loss is a NaN or an infinity; the rows of the batch are named.
        """
        counts = inputs.pop(COUNTS, None)
        rows = inputs.pop(ROW_INDEX, None)
        if counts is not None:
            self._count(counts)
        result = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        loss = result[0] if return_outputs else result
        self.guard("loss", loss, rows)
        return result

    def _count(self, counts: Tensor) -> None:
        num_wanted, num_shown, num_dropped, num_empty = counts.unbind(dim=1)
        self.add_ratio("rare/augmented_share", num_shown > 0, torch.ones_like(num_shown))
        self.add_ratio("rare/shown", num_shown, num_shown > 0)
        self.add_ratio("rare/dropped_by_budget", num_dropped, num_wanted)
        self.add_ratio("rare/empty_hits", num_empty, num_wanted > 0)


class RareTrainer(RareMethod, SentenceTransformerTrainerHooks):
    """
    Train an embedding model to use in-context examples: RARe.

    Queries are shown exemplars, past queries with their documents, in front of them; documents never are. The loss is
    the host's, Cached multiple negatives ranking by default, whose memory follows a budget of tokens.

    Args:
        model (`SentenceTransformer` or `str`):
            The encoder, or its name.
        args ([`RareConfig`], *optional*):
            Settings; the host's own arguments get the defaults of RARe.
        train_dataset (`Dataset`, `DatasetDict` or `IterableDataset`):
            A query and its document first, hard negatives after them. Of several data sets each has a pool of its own.
        eval_dataset (*optional*):
            The same; of several, with the names of the training data sets.
        loss (*optional*):
            Any loss of the host for such columns.
        exemplars ([`ExemplarStore`] or `dict[str, ExemplarStore]`, *optional*):
            The pool, or one a data set. By default the training rows; a stream needs one.
        peft_config (`LoraConfig`, *optional*):
            Train an adapter.
        **kwargs:
            As in [`~sentence_transformers.SentenceTransformerTrainer`]: `evaluator`, `callbacks`, `optimizers`.

    Raises:
        TypeError: if the model is a CrossEncoder or a multi-vector model, a column holds no text, or a stream comes
            without a store.
        ValueError: if a column is missing, or a setting does not fit the model.
        RowError: if a row has no text.

    Logs `rare/augmented_share` (of queries), `rare/shown` (exemplars of an augmented query), `rare/dropped_by_budget`
    (of the exemplars wanted) and `rare/empty_hits` (of the queries that were to get any).

    Reference: Tejaswi et al. 2024, *RARe: Retrieval Augmented Retrieval with In-Context Examples* (arXiv 2410.20088).
    """

    config_class = RareConfig
    encoder_class = SentenceTransformer

    def to_encoder(
        self, name: str = ONE_DATASET, *, example_weight: float = 1.0, floor: float | None = None
    ) -> RareEncoder:
        """
        The trained model as it is to be used: with the pool, the text and the prompt of training.

        It shares the model's modules. What its `save_pretrained` writes opens in plain `SentenceTransformer` too.

        Args:
            name (`str`, *optional*):
                Of the data set whose pool it gets; not needed where there is one.
            example_weight (`float`, *optional*, defaults to `1.0`), floor (`float`, *optional*):
                Blend and gate, as in [`EncoderSettings`]: choose them on held-out queries.
        """
        from hf_ext.retrieval import RareEncoder

        args = self.args
        pool = self.data_collator.pool_of(name)
        settings = replace(self.encoder_settings(), example_weight=example_weight, floor=floor)
        model = self.accelerator.unwrap_model(self.model)
        encoder = RareEncoder.from_model(model, pool.store, settings)
        if args.example_retriever in ("dense", "hybrid"):  # in training the vectors were those of known texts
            encoder.exemplars = ExemplarStore(
                pool.store.given_columns(), retriever=args.example_retriever, encode=encoder.encode_plain
            )
        if pool.prompt:
            encoder.prompts["query"] = pool.prompt
        return encoder

    def encoder_settings(self) -> EncoderSettings:
        """How queries were shown exemplars in training, as [`RareEncoder`] takes it."""
        from hf_ext.retrieval import EncoderSettings

        args = self.args
        return EncoderSettings(
            k=args.n_examples,
            formatter=self.data_collator.formatter,
            min_score=args.min_example_score,
            pool_examples=args.pool_examples,
            training={"example_rate": args.example_rate, "exclude": list(args.exclude)},
        )

    def write_card(self, folder: str, **names: Any) -> None:
        """Write the card of a retriever, and for `RareEncoder` the settings of its exemplars, without any row."""
        super().write_card(folder, **names)
        sources = (getattr(self.model, name, None) for name in ("exemplars", "exemplars_source"))
        if all(source is None for source in sources):  # a RareEncoder with a pool writes its own
            write_exemplars(folder, None, self.encoder_settings().to_dict())

    def get_default_loss(self, model: SentenceTransformer) -> Module:
        """In-batch negatives over cosine, in mini-batches of a budget of tokens, over all processes."""
        return CachedMultipleNegativesRankingLoss(
            model,
            scale=self.args.loss_scale,
            mini_batch_num_tokens=self.args.mini_batch_num_tokens,
            gather_across_devices=self.args.world_size > 1,
        )


class RareSparseTrainer(RareMethod, SparseEncoderTrainerHooks):
    """
    [`RareTrainer`] for a [`~sentence_transformers.SparseEncoder`], through the same collator.

    Its default loss is the host's. With max pooling an exemplar's words become words of the query, as in
    pseudo-relevance feedback, and the regulariser works against that: log how many are active.
    """

    config_class = RareSparseConfig
    encoder_class = SparseEncoder
