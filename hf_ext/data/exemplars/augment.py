"""From a query to the text a retriever reads: draw, search, format; and the same as a callable for `Dataset.map`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from hf_ext.data.exemplars.formatter import Formatted, RareFormatter
from hf_ext.data.exemplars.rows import EVERY_RULE, Exclude, Target, as_id
from hf_ext.data.exemplars.sources import pair_columns, require_rows
from hf_ext.data.exemplars.store import ExemplarStore
from hf_ext.data.exemplars.text import TokenCounter, keyed_integers, keyed_uniform

AnyData = TypeVar("AnyData")


@dataclass(frozen=True)
class ExampleDraw:
    """
    How many exemplars a query is shown.

    The draw depends on `seed`, a salt (epoch, data set) and the query's text alone: the same in any worker, in any
    batch, and after a resume.

    Args:
        k (`int`, *optional*, defaults to `5`):
            Exemplars of a query.
        k_mode (`str`, *optional*, defaults to `"fixed"`):
            `"fixed"`, or `"uniform"`: any number from 0 to `k`, so that one model serves any of them.
        rate (`float`, *optional*, defaults to `0.7`):
            Share of the queries that are shown exemplars at all. The others keep the model good without any; in the
            paper 0.7 cost nothing.
        seed (`int`, *optional*, defaults to `0`):
            Of the draws.
    """

    k: int = 5
    k_mode: str = "fixed"
    rate: float = 0.7
    seed: int = 0

    def __post_init__(self) -> None:
        if self.k < 0 or self.k_mode not in ("fixed", "uniform") or not 0 <= self.rate <= 1:
            raise ValueError(
                "ExampleDraw needs k >= 0, k_mode 'fixed' or 'uniform' and rate in [0, 1], got "
                f"k={self.k!r}, k_mode={self.k_mode!r}, rate={self.rate!r}."
            )

    def count(self, query: str, salt: str = "") -> int:
        """Exemplars wanted for this query."""
        if keyed_uniform("rate", self.seed, salt, query) >= self.rate:
            return 0
        if self.k_mode == "fixed":
            return self.k
        return keyed_integers(1, "k", self.seed, salt, query)[0] % (self.k + 1)


ALWAYS_FIVE = ExampleDraw(rate=1.0)


def augment(
    store: ExemplarStore,
    formatter: RareFormatter,
    queries: Sequence[str],
    *,
    tokenizer: object = None,
    prompt: str = "",
    draw: ExampleDraw = ALWAYS_FIVE,
    targets: Sequence[Target | None] | None = None,
    exclude: Exclude = EVERY_RULE,
    salt: str = "",
    **search: Any,
) -> list[Formatted]:
    """
    Draw, search and format: what the map callable, the collator and the encoder all do.

    Args:
        store ([`ExemplarStore`]):
            The pool.
        formatter ([`RareFormatter`]):
            The text.
        queries (`Sequence[str]`):
            Targets, without instruction.
        tokenizer (*optional*):
            The model's, where the formatter has budgets.
        prompt (`str`, *optional*):
            Of the model's queries; it is not part of what comes back.
        draw ([`ExampleDraw`], *optional*):
            How many exemplars; always five by default.
        targets, exclude (*optional*):
            As in [`ExemplarStore.search`].
        salt (`str`, *optional*):
            Of the draws: epoch and data set.
        **search:
            `exclude_ids`, `min_score`, `mmr`.

    Returns:
        `list[Formatted]`: one a query.
    """
    counter = formatter.counter(tokenizer)
    counts = [draw.count(query, salt) for query in queries]
    hits = store.search(queries, counts, targets=targets, exclude=exclude, salt=salt, **search)
    return [
        formatter(query, exemplars, prompt=prompt, tokenizer=counter)
        for query, exemplars in zip(queries, hits, strict=True)
    ]


@dataclass(frozen=True)
class AddInContextExamples:
    """
    Write exemplars into the query column: [`add_in_context_examples`] as a callable for `map(batched=True)`.

    | column in | type | column out | type |
    |---|---|---|---|
    | `query_column` | string | the same | string: exemplars, then the query |
    | `positive_column`, `id_column`, `doc_id_column`, `negative_columns` (optional) | string | `shown_column` (optional) | string: JSON list of the shown exemplars' ids, nearest first |

    Any number of processes and any batch size give the same rows.

    Args:
        store ([`ExemplarStore`]):
            The pool. Its fingerprint is that of its rows.
        formatter ([`RareFormatter`]):
            The text.
        tokenizer ([`TokenCounter`], *optional*):
            Of the model that will read the rows; needed where the formatter has budgets.
        prompt, draw, exclude, salt (*optional*):
            As in [`augment`].
        query_column (`str`, *optional*, defaults to `"query"`):
            Column that is rewritten.
        positive_column, id_column, doc_id_column (`str`, *optional*):
            What the rules of `exclude` compare. Ids are not compared with the row numbers of a pool that has no ids.
        negative_columns (`tuple[str, ...]`, *optional*):
            Documents the query is trained to avoid.
        shown_column (`str`, *optional*):
            Column to list the shown ids in; none by default, because trainers read every column as text.
    """  # noqa: E501 (a table row)

    store: ExemplarStore
    formatter: RareFormatter = field(default_factory=RareFormatter)
    tokenizer: TokenCounter | None = None
    prompt: str = ""
    draw: ExampleDraw = ALWAYS_FIVE
    exclude: Exclude = field(default_factory=Exclude)
    salt: str = ""
    query_column: str = "query"
    positive_column: str | None = None
    id_column: str | None = None
    doc_id_column: str | None = None
    negative_columns: tuple[str, ...] = ()
    shown_column: str | None = None
    revision: str = "2"  # changes whenever the output would: datasets hashes this object, not the code behind it

    def __post_init__(self) -> None:
        self.formatter.counter(self.tokenizer)  # refuses budgets without a tokenizer now, not in a worker

    def __call__(self, batch: dict[str, list], rows: Sequence[int] | None = None) -> dict[str, list]:
        """Augmented queries of one batch; `rows` are its places in the store, where that is made of these rows."""
        queries = list(batch[self.query_column])
        texts = augment(
            self.store,
            self.formatter,
            queries,
            tokenizer=self.tokenizer,
            prompt=self.prompt,
            draw=self.draw,
            targets=self._targets(batch, [None] * len(queries) if rows is None else rows),
            exclude=self.exclude,
            salt=self.salt,
        )
        columns: dict[str, list] = {self.query_column: [text.body for text in texts]}
        if self.shown_column is not None:
            # As text: a first batch of empty lists would give the column a type that later ids do not fit.
            id_lists = [[exemplar.id for exemplar in text.shown] for text in texts]
            columns[self.shown_column] = [json.dumps(ids, ensure_ascii=False) for ids in id_lists]
        return columns

    def _targets(self, batch: dict[str, list], rows: Sequence[int | None]) -> list[Target]:
        def values(name: str | None) -> Sequence[Any]:
            return [None] * len(rows) if name is None else batch[name]

        def ids(name: str | None) -> list[str | None]:
            return [None if value is None else as_id(value, f"column {name!r}") for value in values(name)]

        id_column = None if self.store.numbered else self.id_column
        negatives = [batch[name] for name in self.negative_columns]
        facts = zip(ids(id_column), values(self.positive_column), ids(self.doc_id_column), rows, strict=True)
        return [
            Target(id_, positive, doc_id, tuple(column[i] for column in negatives), row)
            for i, (id_, positive, doc_id, row) in enumerate(facts)
        ]


def add_in_context_examples(
    dataset: AnyData,
    store: ExemplarStore | None = None,
    *,
    tokenizer: object = None,
    formatter: RareFormatter | None = None,
    query_column: str | None = None,
    positive_column: str | None = None,
    split: str = "train",
    num_proc: int | None = None,
    **settings: Any,
) -> AnyData:
    """
    Write exemplars into the query column of a dataset: for other trainers, and to look at what RARe shows.

    [`RareTrainer`] needs no such step: it augments batch by batch, draws afresh each epoch and keeps the rows short.

    Args:
        dataset (`Dataset`, `DatasetDict` or `IterableDataset`):
            Rows with a query and, for training, its positive document. Of a dict only `split` is rewritten.
        store ([`ExemplarStore`], *optional*):
            The pool; the dataset's own rows by default. A stream has none, so it needs one.
        tokenizer (*optional*):
            Of the model that will read the rows. Without one, the formatter must have no budgets.
        formatter ([`RareFormatter`], *optional*):
            The text. By default the paper's, without budgets where there is no tokenizer.
        query_column, positive_column (`str`, *optional*):
            Found as [`ExemplarStore.from_dataset`] finds them.
        split (`str`, *optional*, defaults to `"train"`):
            Split of a `DatasetDict` that is rewritten, and the pool where `store` is not given.
        num_proc (`int`, *optional*):
            Processes of `map`; not for streams.
        **settings:
            Of [`AddInContextExamples`].

    Returns:
        The dataset, its query column rewritten.

    Raises:
        TypeError: if an `IterableDataset` comes without `store`, or a column is not text.
        ValueError: if a column or the split is missing.

    Example:

    ```python
    >>> pairs = Dataset.from_dict({"query": ["red cats", "red dogs"], "positive": ["on cats", "on dogs"]})
    >>> add_in_context_examples(pairs)["query"][0]
    'Query: red dogs\\nPositive Document: on dogs\\n\\nQuery: red cats'
    ```
    """
    if isinstance(dataset, dict):
        if split not in dataset:
            raise ValueError(f"split {split!r} is missing; the dataset has {list(dataset)}.")
        options = {"query_column": query_column, "positive_column": positive_column, "num_proc": num_proc, **settings}
        rewritten = add_in_context_examples(dataset[split], store, tokenizer=tokenizer, formatter=formatter, **options)
        return type(dataset)({**dataset, split: rewritten})
    if store is None:
        require_rows(dataset, "add_in_context_examples without a store")
    rows: Any = dataset
    if query_column is None or positive_column is None:
        if rows.features is None:
            raise ValueError("The stream does not tell its columns: pass query_column and positive_column.")
        query_column, positive_column = pair_columns(rows, query_column, positive_column)
    pool_is_dataset = store is None
    if store is None:
        ids = {name: settings.get(name) for name in ("id_column", "doc_id_column")}
        store = ExemplarStore.from_dataset(rows, query_column=query_column, document_column=positive_column, **ids)
    if formatter is None:
        limits = ("max_tokens", "max_example_query_tokens", "max_example_document_tokens")
        unlimited: dict[str, Any] = dict.fromkeys(limits) if tokenizer is None else {}
        formatter = RareFormatter(**unlimited)
    add = AddInContextExamples(
        store,
        formatter,
        formatter.counter(tokenizer),
        query_column=query_column,
        positive_column=positive_column,
        **settings,
    )
    map_options: dict[str, Any] = {} if num_proc is None else {"num_proc": num_proc}  # a stream's map takes none
    if pool_is_dataset:
        map_options["with_indices"] = True  # so that a row without an id is not shown itself
    return rows.map(add, batched=True, **map_options)
