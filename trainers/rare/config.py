"""Configuration of RARe, for dense and for sparse encoders."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from sentence_transformers import SentenceTransformerTrainingArguments, SparseEncoderTrainingArguments

from hf_ext.data.exemplars import ExampleDraw, Exclude, RareFormatter
from hf_ext.trainers.base.config import HostArguments, RowSettings, check_choice

RULES = ("self", "same_text", "same_positive", "negatives")
RETRIEVERS = ("bm25", "dense", "hybrid", "random", "fixed")


@dataclass
class RareSettings(HostArguments):
    """
    The fields that [`RareConfig`] and [`RareSparseConfig`] share; stands before the host's arguments.

    Parameters:
        n_examples (`int`, *optional*, defaults to `5`):
            Exemplars that a query is shown, at most.
        n_examples_mode (`str`, *optional*, defaults to `"fixed"`):
            `"fixed"`, or `"uniform"`: any number from 0 to `n_examples`.
        example_rate (`float`, *optional*, defaults to `0.7`):
            Share of the queries that are shown any. 1.0 is the paper's retriever track.
        example_retriever (`str`, *optional*, defaults to `"bm25"`):
            How exemplars are chosen: `"bm25"`, `"dense"`, `"hybrid"`, `"random"` or `"fixed"`.
        example_order (`str`, *optional*, defaults to `"nearest_last"`):
            `"nearest_last"` puts the nearest exemplar next to the query; or `"nearest_first"`.
        min_example_score (`float`, *optional*):
            Exemplars of a lower retriever score are not shown.
        exclude (`list[str]`, *optional*, defaults to all of `RULES`):
            What a row is not shown: `"self"`, `"same_text"`, `"same_positive"`, `"negatives"`.
        resample_each_epoch (`bool`, *optional*, defaults to `True`):
            Whether the draws change from epoch to epoch.
        max_query_tokens (`int`, *optional*):
            Longest query with its exemplars and instruction. By default what the model takes.
        max_document_tokens (`int`, *optional*):
            Longest document. By default what the model takes.
        max_example_query_tokens (`int`, *optional*, defaults to `64`):
            Of an exemplar's query.
        max_example_document_tokens (`int`, *optional*, defaults to `128`):
            Of an exemplar's document.
        instruction (`str` or `dict[str, str]`, *optional*):
            Task, or one a data set (or the same as JSON): queries get the prompt `Instruct: {task}\\nQuery: `, where
            `prompts` is not set.
        query_column, positive_column, id_column, doc_id_column (`str`, *optional*):
            Columns of every data set; found where they are not given.
        loss_scale (`float`, *optional*, defaults to `50.0`):
            Inverse temperature of the default loss.
        mini_batch_num_tokens (`int`, *optional*, defaults to `16384`):
            Tokens of one forward of the default loss.
        text_only (`bool`, *optional*, defaults to `True`):
            Read texts as they are, where the base model has a chat template.
    """

    n_examples: int = field(
        default=5, metadata={"help": "Exemplars that a query is shown, at most; the paper's is 5."}
    )
    n_examples_mode: str = field(
        default="fixed",
        metadata={
            "help": "'fixed' shows n_examples; 'uniform' any number from 0 to n_examples, so that one model serves "
            "any of them.",
            "choices": ["fixed", "uniform"],
        },
    )
    example_rate: float = field(
        default=0.7,
        metadata={
            "help": "Share of the queries that are shown exemplars. The rest keeps the model good without any, at no "
            "cost in the paper; 1.0 is the paper's retriever track and may destroy that mode."
        },
    )
    example_retriever: str = field(
        default="bm25",
        metadata={
            "help": "How exemplars are chosen from the data set's own rows: 'bm25'; 'dense', with the model's vectors "
            "of the plain queries before training; 'hybrid' of both; 'random' and 'fixed' are controls.",
            "choices": list(RETRIEVERS),
        },
    )
    example_order: str = field(
        default="nearest_last",
        metadata={
            "help": "'nearest_last' puts the nearest exemplar next to the query; or 'nearest_first'.",
            "choices": ["nearest_last", "nearest_first"],
        },
    )
    min_example_score: float | None = field(
        default=None,
        metadata={
            "help": "Exemplars of a lower retriever score are not shown. BM25 scores are not comparable between pools."
        },
    )
    exclude: list[str] = field(
        default_factory=lambda: list(RULES),
        metadata={
            "help": "What a row is not shown: the exemplar of its own id ('self'), of its own text ('same_text'), "
            "with its positive document ('same_positive': otherwise copying is taught), with one of its negatives."
        },
    )
    resample_each_epoch: bool = field(
        default=True, metadata={"help": "Draw rows and numbers of exemplars afresh in each epoch."}
    )
    max_query_tokens: int | None = field(
        default=None,
        metadata={
            "help": "Longest query, instruction and exemplars included, in tokens; the target itself is never cut. "
            "Default: the model's length."
        },
    )
    max_document_tokens: int | None = field(
        default=None, metadata={"help": "Longest document in tokens. Default: the model's length."}
    )
    max_example_query_tokens: int | None = field(
        default=64, metadata={"help": "Tokens that are kept of an exemplar's query."}
    )
    max_example_document_tokens: int | None = field(
        default=128, metadata={"help": "Tokens that are kept of an exemplar's document."}
    )
    instruction: dict[str, str] | str | None = field(
        default=None,
        metadata={
            "help": "The task in words, or one a data set, as JSON: queries get 'Instruct: {task}\\nQuery: '. "
            "Not used where prompts is set."
        },
    )
    query_column: str | None = field(default=None, metadata={"help": "Default: the first text column."})
    positive_column: str | None = field(default=None, metadata={"help": "Default: the second text column."})
    id_column: str | None = field(
        default=None, metadata={"help": "Column with the query's id. Default: 'id' or 'query_id', where there is one."}
    )
    doc_id_column: str | None = field(
        default=None, metadata={"help": "Column with the positive's id. Default: 'doc_id', where there is one."}
    )
    loss_scale: float = field(
        default=50.0, metadata={"help": "Inverse temperature of the default loss; the paper's are 50 and 100."}
    )
    mini_batch_num_tokens: int = field(
        default=16384,
        metadata={
            "help": "Tokens of one forward of the default loss, padding included. Memory follows it and not the batch."
        },
    )
    text_only: bool = field(
        default=True,
        metadata={
            "help": "Where the base model has a chat template, read texts as they are: otherwise the instruction "
            "would become a system turn, and queries and documents chat messages."
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.draw()
        self.exclusion()
        if isinstance(self.instruction, str) and self.instruction.startswith("{"):
            try:
                self.instruction = json.loads(self.instruction)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"instruction begins like JSON and is none: {error}") from error
        check_choice(self, "example_retriever", RETRIEVERS)
        # sentence-transformers 6.2 shuffles by `seed` and never reads the other.
        if self.data_seed not in (None, self.seed):
            raise ValueError(
                f"data_seed={self.data_seed} has no effect: sentence-transformers shuffles by seed. Set that."
            )
        self.formatter(512 if self.max_query_tokens is None else self.max_query_tokens)

    def draw(self) -> ExampleDraw:
        """How many exemplars a query is shown."""
        return ExampleDraw(self.n_examples, self.n_examples_mode, self.example_rate, self.seed)

    def exclusion(self) -> Exclude:
        """The rules as the store reads them."""
        unknown = [name for name in self.exclude if name not in RULES]
        if unknown:
            raise ValueError(f"exclude knows {', '.join(RULES)}, got {unknown[0]!r}.")
        chosen = set(self.exclude)
        return Exclude("self" in chosen, "same_text" in chosen, "same_positive" in chosen, "negatives" in chosen)

    def formatter(self, max_tokens: int | None) -> RareFormatter:
        """The text, in at most `max_tokens` tokens."""
        return RareFormatter(
            order=self.example_order,
            max_tokens=max_tokens,
            max_example_query_tokens=self.max_example_query_tokens,
            max_example_document_tokens=self.max_example_document_tokens,
        )


@dataclass
class RareConfig(RowSettings, RareSettings, SentenceTransformerTrainingArguments):
    """
    Configuration of [`RareTrainer`]: [`~sentence_transformers.SentenceTransformerTrainingArguments`], the fields of
    [`RareSettings`] and [`RowSettings`], and one more.

    `batch_sampler="no_duplicates"` keeps a row's positive from being another row's negative; it compares the texts as
    they stand in the data set.

    Parameters:
        pool_examples (`bool`, *optional*, defaults to `False`):
            Whether the exemplars' tokens enter the mean (or maximum) that a query's vector is. By default they are
            read and left out of it. Models that pool the first or the last token are the same either way.
    """

    pool_examples: bool = field(
        default=False,
        metadata={
            "help": "Whether exemplars' tokens enter the mean that a query's vector is; by default the query's own "
            "tokens read them and they are left out. True for endpoints that encode finished strings."
        },
    )


@dataclass
class RareSparseConfig(RowSettings, RareSettings, SparseEncoderTrainingArguments):
    """Configuration of [`RareSparseTrainer`]: [`~sentence_transformers.SparseEncoderTrainingArguments`] and RARe's."""
