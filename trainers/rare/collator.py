"""Batches whose queries carry exemplars: drawn, searched and written while the batch is put together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from sentence_transformers.sentence_transformer.data_collator import SentenceTransformerDataCollator
from torch import Tensor

from hf_ext.data.exemplars import ExampleDraw, Exclude, Formatted, RareFormatter, TokenCounter, augment
from hf_ext.guards.rows import ROW_INDEX
from hf_ext.retrieval.vectors import MASK, exemplar_mask
from hf_ext.trainers.rare.pools import Pool

COUNTS = "rare_counts"  # of a batch, int64 of shape (rows, 4): wanted, shown, dropped, without a hit
ONE_DATASET = ""  # the name of the only data set, where it has none


@dataclass
class RareDataCollator(SentenceTransformerDataCollator):
    """
    Show queries exemplars of their own data set, then collate as the host does.

    The rows themselves stay as they are: samplers, cache and card see the plain text. Which query is shown how many
    exemplars depends on the seed, the epoch, the data set and the query's text alone, so that batches are the same
    under any number of workers and after a resume.

    Args:
        pools (`dict[str, Pool]`):
            Pool by data set; the only one's name is `""`.
        formatter ([`RareFormatter`]):
            The text.
        tokenizer ([`TokenCounter`], *optional*):
            Of the model; needed where the formatter has budgets.
        draw ([`ExampleDraw`]):
            How many exemplars.
        exclude ([`Exclude`]):
            Which ones a row is not shown.
        min_score (`float`, *optional*):
            Floor of the retriever's score.
        epoch (`Tensor`, *optional*):
            Epoch in shared memory, int64 of shape `(1,)`, which reaches workers that live already.
        resample (`bool`):
            Whether the draws change with the epoch.
        pool_examples (`bool`):
            Whether batches come without the mask that keeps exemplars' tokens out of a pooled vector.
        preprocess_fn, valid_label_columns, router_mapping, prompts, max_length:
            As in [`~sentence_transformers.base.data_collator.BaseDataCollator`].

    Besides the host's keys a batch holds `rare_counts`, int64 of shape `(rows, 4)`: exemplars wanted, shown, dropped
    for lack of tokens, and 1 where the search found none at all; `__hf_ext_row__`, int64 of shape `(rows,)`, where the
    rows have it; and, where exemplars are not pooled, `{query column}_exemplar_mask`, int64 of the shape of its ids.
    """

    pools: dict[str, Pool] = field(default_factory=dict, repr=False)
    formatter: RareFormatter = field(default_factory=RareFormatter)
    tokenizer: TokenCounter | None = field(default=None, repr=False)
    draw: ExampleDraw = field(default_factory=ExampleDraw)
    exclude: Exclude = field(default_factory=Exclude)
    min_score: float | None = None
    epoch: Tensor = field(default_factory=lambda: torch.zeros(1, dtype=torch.int64).share_memory_(), repr=False)
    resample: bool = True
    pool_examples: bool = True

    def for_evaluation(self) -> RareDataCollator:
        """The same with draws that do not change from epoch to epoch, so that evaluations can be compared."""
        pools = {name: replace(pool, own_rows=None) for name, pool in self.pools.items()}  # other rows, other numbers
        return replace(self, pools=pools, epoch=torch.full((1,), -1, dtype=torch.int64), resample=True)

    def set_epoch(self, epoch: int) -> None:
        """Draw for this epoch from now on, in every worker."""
        self.epoch.fill_(epoch)

    def pool_of(self, name: str) -> Pool:
        """
        The pool of a data set; where there is but one, it serves all.

        Raises:
            ValueError: if there is none of that name.
        """
        if len(self.pools) == 1:
            return next(iter(self.pools.values()))
        if name not in self.pools:
            raise ValueError(
                f"No pool of exemplars for the data set {name!r}; there are {sorted(self.pools)}. Evaluation data "
                "sets need the names of the training data sets, or exemplars={name: store}."
            )
        return self.pools[name]

    def augment(self, rows: Sequence[dict[str, Any]], name: str = ONE_DATASET) -> tuple[list[Formatted], list[int]]:
        """
        Queries of one data set with their exemplars, and how many of these each was to get.

        Args:
            rows (`Sequence[dict]`): raw rows.
            name (`str`): of the data set.
        """
        pool = self.pool_of(name)
        queries = [row[pool.columns.query] for row in rows]
        salt = f"{int(self.epoch) if self.resample else 0}/{name}"
        counts = [self.draw.count(query, salt) for query in queries]
        texts = augment(
            pool.store,
            self.formatter,
            queries,
            tokenizer=self.tokenizer,
            prompt=pool.prompt,
            draw=self.draw,
            targets=pool.targets(rows),
            exclude=self.exclude,
            salt=salt,
            min_score=self.min_score,
        )
        return texts, counts

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        """Augment the queries of one batch, all of one data set, and collate."""
        if not features:
            return {}
        name = features[0].get("dataset_name", ONE_DATASET)
        columns = self.pool_of(name).columns
        apart = {*columns.apart, ROW_INDEX}
        texts, counts = self.augment(features, name)
        rows = [
            {column: value for column, value in row.items() if column not in apart} | {columns.query: text.body}
            for row, text in zip(features, texts, strict=True)
        ]
        batch = super().__call__(rows)
        if not self.pool_examples and any(text.prefix for text in texts):
            self._mark(batch, columns.query, self.pool_of(name).prompt, texts)
        batch[COUNTS] = torch.tensor(
            [
                (count, len(text.shown), text.dropped, int(count > 0 and not text.shown and not text.dropped))
                for count, text in zip(counts, texts, strict=True)
            ]
        )
        if ROW_INDEX in features[0]:
            batch[ROW_INDEX] = torch.tensor([row[ROW_INDEX] for row in features])
        return batch

    def _mark(self, batch: dict[str, Any], column: str, prompt: str, texts: Sequence[Formatted]) -> None:
        """Tell the pooling which tokens of the queries are exemplars'."""
        if self.tokenizer is None:
            raise ValueError("pool_examples=False needs the model's tokenizer.")
        features = {
            key.removeprefix(f"{column}_"): value for key, value in batch.items() if key.startswith(f"{column}_")
        }
        bodies = [text.body for text in texts]
        prefixes = [text.prefix for text in texts]
        batch[f"{column}_{MASK}"] = exemplar_mask(features, prompt, bodies, prefixes, self.tokenizer)
