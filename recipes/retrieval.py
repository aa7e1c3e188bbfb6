"""What the recipes on retrievers share beyond [`Recipe`]: texts in columns, BEIR folders, several data sets."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trl import DatasetMixtureConfig, ModelConfig

import hf_ext
from hf_ext.data.loading import first_rows, load_rows
from hf_ext.recipes.launch import Recipe, RecipeArguments, check_arguments, load_train_and_eval

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import Trainer, TrainingArguments

    from hf_ext.data.loading import AnyDataset

SOURCE_KEYS = ("path", "config", "split", "columns")


@dataclass
class RetrievalArguments(RecipeArguments):
    """
    [`RecipeArguments`] and where the texts are.

    Parameters:
        text_columns (`list[str]`, *optional*):
            Columns of the query, of its document and of further negatives, in that order. Ids stay beside them, other
            columns are left out.
        sources (`dict`, *optional*):
            Several data sets, each with a pool of its own: name to `path`, `config`, `split`, `columns`.
    """

    text_columns: list[str] | None = field(
        default=None,
        metadata={"help": "Columns of query, document and negatives, in that order; other columns but ids go."},
    )
    sources: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "Several data sets in place of dataset_name, each with a pool of its own: name to path, config, "
            "split, columns (as JSON on the command line)."
        },
    )

    def prepare_rows(self, rows: AnyDataset) -> AnyDataset:
        """
        Rows with the columns that are named.

        Raises:
            ValueError: if a column is missing.
        """
        return texts_of(rows, self.text_columns)

    def named_sources(self) -> dict[str, dict[str, Any]]:
        """
        `sources`, checked.

        Raises:
            ValueError: if it is no mapping of names to mappings with the known keys, or the text is no JSON.
        """
        try:
            sources = json.loads(self.sources) if isinstance(self.sources, str) else self.sources
        except (ValueError, RecursionError) as error:
            raise ValueError(f"sources is no JSON: {error}") from error
        if not isinstance(sources, dict) or not sources:
            raise ValueError(f"sources must map names to path, config, split and columns; found {sources!r:.80}")
        for name, source in sources.items():
            unknown = set(source) - set(SOURCE_KEYS) if isinstance(source, dict) else {"no mapping"}
            if unknown or "path" not in source:
                raise ValueError(
                    f"sources: {name!r} must be a mapping with 'path' and, if wanted, {', '.join(SOURCE_KEYS[1:])}"
                )
        return sources


def texts_of(rows: AnyDataset, columns: Sequence[str] | None) -> AnyDataset:
    """
    Rows with these columns of texts, in this order, and the ids and labels that lie beside them.

    Raises:
        ValueError: if a column is missing, or there are fewer than two.
    """
    if columns is None:
        return rows
    from hf_ext.data.exemplars.roles import is_id, is_negative, read_roles
    from hf_ext.data.sft_rows import column_names

    row_columns = column_names(rows)
    missing = [name for name in columns if name not in row_columns]
    if missing:
        raise ValueError(f"the dataset has no column {missing[0]!r}; it has {row_columns}")
    if len(columns) < 2:
        raise ValueError(f"text_columns needs a query's and a document's column, got {list(columns)}")
    beside = [name for name in row_columns if name not in columns and (is_id(name) or name in ("label", "labels"))]
    chosen = rows.select_columns([*columns, *beside])
    roles = read_roles(columns, columns)
    # The names say otherwise than the caller: new ones, for the trainer goes by names.
    new_names = {} if columns[:2] == [roles.query, roles.document] else {columns[0]: "query", columns[1]: "positive"}
    negatives = enumerate(columns[2:], start=1)
    new_names |= {name: f"negative_{number}" for number, name in negatives if not is_negative(name)}
    return chosen.rename_columns(new_names) if new_names else chosen


def is_beir(name: str) -> bool:
    """Whether a name is that of a folder in BEIR's form."""
    return (Path(name) / "qrels").is_dir()


def beir_rows(folder: str, split: str) -> Dataset:
    """
    The judged pairs of a BEIR folder: `query`, `positive`, `id`, `doc_id`.

    Raises:
        ValueError: if there is no such split, or a file of the folder cannot be read.
    """
    from datasets import Dataset

    from hf_ext.data.exemplars.sources import beir_pairs

    try:
        pairs = beir_pairs(Path(folder), split, None, 1)
    except FileNotFoundError as error:
        raise ValueError(str(error)) from error
    sources = {"query": "query", "positive": "document", "id": "id", "doc_id": "doc_id"}
    return Dataset.from_dict({name: pairs[source] for name, source in sources.items()})


@dataclass(frozen=True)
class RetrievalRecipe(Recipe[RetrievalArguments]):
    """A launchable method on pairs of query and document."""

    arguments: type[RetrievalArguments] = RetrievalArguments

    def check(
        self,
        script_args: RetrievalArguments,
        training_args: TrainingArguments,
        model_args: ModelConfig,
        dataset_args: DatasetMixtureConfig,
    ) -> None:
        """Refuse now what would fail, or be ignored, after a long run."""
        if model_args.load_in_4bit or model_args.load_in_8bit:
            raise ValueError("load_in_4bit and load_in_8bit are not read by this recipe: leave them out")
        if script_args.sources is None:
            check_arguments(script_args, training_args, model_args, dataset_args)
            return
        if script_args.dataset_name is not None:
            raise ValueError("give either dataset_name or sources; both were given")
        names = sorted(script_args.named_sources())
        script_args.dataset_name = ", ".join(names)  # for the check, and the card
        check_arguments(script_args, training_args, model_args, dataset_args)

    def before_loading(self, training_args: TrainingArguments, model_args: ModelConfig) -> None:
        """Nothing: the model is loaded in [`make_trainer`]."""

    def load(
        self, script_args: RetrievalArguments, training_args: TrainingArguments, dataset_args: DatasetMixtureConfig
    ) -> tuple[AnyDataset | dict[str, AnyDataset], AnyDataset | None]:
        """
        Rows of a file, a Hub dataset, a BEIR folder, or of several `sources` by name.

        Raises:
            ValueError: if a dataset, split or column is missing.
        """
        if script_args.sources is not None:
            if script_args.wants_held_out(training_args):
                raise ValueError("with sources there are no evaluation rows: set eval_strategy to no")
            return {
                name: self._of_source(source, script_args) for name, source in script_args.named_sources().items()
            }, None
        name = script_args.dataset_name
        if name is None or not is_beir(name):
            return load_train_and_eval(script_args, training_args, dataset_args)
        rows = beir_rows(name, script_args.dataset_train_split)
        held_out = None
        if script_args.wants_held_out(training_args):
            held_out = beir_rows(name, script_args.dataset_test_split)
            held_out = first_rows(held_out, script_args.max_eval_rows)
        return first_rows(rows, script_args.max_train_rows), held_out

    def _of_source(self, source: dict[str, Any], script_args: RetrievalArguments) -> AnyDataset:
        path = source["path"]
        split = source.get("split", script_args.dataset_train_split)
        if is_beir(path):
            rows = beir_rows(path, split or script_args.dataset_train_split)
        else:
            rows = texts_of(load_rows(path, config=source.get("config"), split=split), source.get("columns"))
        return first_rows(rows, script_args.max_train_rows)

    def make_trainer(
        self, model: str, training_args: TrainingArguments, model_args: ModelConfig, **rows: AnyDataset | None
    ) -> Trainer:
        """The trainer of the encoder `model`, with the adapter that the arguments ask for."""
        from trl import get_peft_config

        trainer = getattr(hf_ext, self.method.trainer)
        kwargs = {"dtype": model_args.dtype, "attn_implementation": model_args.attn_implementation}
        encoder = trainer.encoder_class(
            model,
            revision=model_args.model_revision,
            model_kwargs={name: value for name, value in kwargs.items() if value is not None},
            device="cpu" if training_args.use_cpu else None,
        )
        adapter = get_peft_config(model_args)
        if adapter is not None:
            adapter.task_type = "FEATURE_EXTRACTION"  # whatever the command line's default: no head is trained
        return trainer(encoder, training_args, peft_config=adapter, **rows)
