"""Models and rows of recipes of classifiers, by what is classified: texts, sentences, tokens, pictures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trl import ModelConfig

from hf_ext.data.pictures import PictureCollator
from hf_ext.guards.models import loading_model

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_ext.trainers.consensus.config import ConsensusConfig
    from hf_ext.trainers.weighted_classification.config import WeightedConfig

IGNORED = -100
# What is classified -> its column by default.
KINDS = {"text": "text", "sentence": "text", "tokens": "tokens", "image": "image"}


class Inputs:
    """
    What turns rows into a trainer's, and makes the model.

    Args:
        script_args, training_args, model_args: the parsed arguments.
        rows (`Dataset`): the training rows, which tell the classes.

    Raises:
        ValueError: if a column, the number of classes or the model is missing.
    """

    def __init__(
        self, script_args: Any, training_args: ConsensusConfig | WeightedConfig, model_args: ModelConfig, rows: Dataset
    ) -> None:
        from hf_ext.data.relabeling.class_names import check_class_count
        from hf_ext.rounds.consensus_rows import class_names_of, label_column_of, labels_of
        from hf_ext.trainers.consensus.labels import checked_rows

        self.script = script_args
        self.args = training_args
        self.model_args = model_args
        self.rows = rows
        self.column = script_args.input_column or KINDS[script_args.kind]
        if self.column not in rows.column_names:
            raise ValueError(
                f"the dataset has no column {self.column!r}; it has {rows.column_names}: see input_column"
            )
        self.label = label_column_of(rows, training_args.label_column)
        self.names = class_names_of(rows, self.label)
        num_classes = getattr(training_args, "num_classes", None)  # a setting of consensus alone
        check_class_count(num_classes, rows.features[self.label], "num_classes", self.label)
        stated_classes = num_classes or (len(self.names) if self.names else None)
        self.classes = stated_classes or int(labels_of(rows, self.label).flat.max(initial=-1)) + 1
        checked_rows(rows, self.classes, "training", (self.label,))
        if hasattr(training_args, "num_classes"):
            training_args.num_classes = self.classes
        if script_args.kind == "image":
            training_args.remove_unused_columns = False  # the collator reads the picture
        self.processor = self._processor()

    def _processor(self) -> Any:
        from transformers import AutoImageProcessor, AutoTokenizer

        name, revision = self.model_args.model_name_or_path, self.model_args.model_revision
        kind = AutoImageProcessor if self.script.kind == "image" else AutoTokenizer
        with loading_model(name, "picture processor of" if self.script.kind == "image" else "tokenizer of"):
            return kind.from_pretrained(name, revision=revision, trust_remote_code=False)

    def model(self) -> Any:
        """A fresh model with a head of as many classes."""
        import transformers

        from hf_ext.trainers.consensus import SentenceHead

        name, revision = self.model_args.model_name_or_path, self.model_args.model_revision
        if self.script.kind == "sentence":
            return SentenceHead.from_pretrained(
                name,
                self.classes,
                label_names=self.names and self.names[: self.classes],
                freeze_encoder=self.script.freeze_encoder,
                revision=revision,
            )
        heads = {"text": "SequenceClassification", "tokens": "TokenClassification", "image": "ImageClassification"}
        names = (self.names or [])[: self.classes] or [f"LABEL_{i}" for i in range(self.classes)]
        with loading_model(name):
            return getattr(transformers, f"AutoModelFor{heads[self.script.kind]}").from_pretrained(
                name,
                revision=revision,
                trust_remote_code=False,
                dtype=self.model_args.dtype or "float32",
                attn_implementation=self.model_args.attn_implementation,
                num_labels=self.classes,
                id2label=dict(enumerate(names)),
                label2id={label: i for i, label in enumerate(names)},
                ignore_mismatched_sizes=True,  # a head of other classes is replaced
            )

    def prepare(self, rows: Dataset) -> Dataset:
        """
        Rows as the trainer reads them; the ledger and ids stay beside.

        Raises:
            ValueError: if the label's `ClassLabel` is not that of the training rows.
        """
        from hf_ext.trainers.consensus.labels import same_eval_names

        same_eval_names(self.rows, rows, (self.label,))  # tokenising leaves the names of tokens' labels behind
        if self.script.kind == "image":
            return rows
        if self.script.kind == "tokens":
            encode: Any = TokenisedWords(self.processor, self.column, self.label, self.script.max_length)
            replaced_columns = [self.column] + ([self.label] if self.label != "labels" else [])
            self.args.label_column = "labels"
            return rows.map(encode, batched=True, remove_columns=replaced_columns, desc="Tokenising")
        if self.label not in ("label", "labels"):  # the names that collators know
            rows = rows.rename_column(self.label, "label")
            self.args.label_column = "label"
        encode = TokenisedTexts(self.processor, self.column, self.script.max_length)
        return rows.map(encode, batched=True, desc="Tokenising")

    def trainer_arguments(self) -> dict[str, Any]:
        """Tokenizer or processor, and the collator that goes with it."""
        from transformers import DataCollatorForTokenClassification, DataCollatorWithPadding

        if self.script.kind == "image":
            collator: Any = PictureCollator(self.processor, self.column, self.label)
        elif self.script.kind == "tokens":
            collator = DataCollatorForTokenClassification(self.processor)
        else:
            collator = DataCollatorWithPadding(self.processor)
        return {"processing_class": self.processor, "data_collator": collator}


@dataclass(frozen=True)
class TokenisedTexts:
    """
    Tokenise a column of texts.

    | column in | type | column out | type |
    |---|---|---|---|
    | `column` | str | the tokenizer's, such as `input_ids` | lists of int |
    """

    tokenizer: Any
    column: str
    max_length: int
    revision: str = "1"  # changes whenever the output would: datasets hashes this object, not the code behind it

    def __call__(self, batch: dict[str, list]) -> dict[str, Any]:
        """One batch."""
        for i, text in enumerate(batch[self.column]):
            if not isinstance(text, str):
                raise ValueError(
                    f"row {i} of a batch, column {self.column!r}: expected a string, found {type(text).__name__}. Fix "
                    "or drop it with dataset.filter."
                )
        return dict(self.tokenizer(batch[self.column], truncation=True, max_length=self.max_length))


@dataclass(frozen=True)
class TokenisedWords:
    """
    Tokenise lists of words; a word's label goes to its first token, -100 to the others.

    | column in | type | column out | type |
    |---|---|---|---|
    | `column` | list of str | the tokenizer's | lists of int |
    | `label` | list of int, one a word | `labels` | list of int, one a token |
    """

    tokenizer: Any
    column: str
    label: str
    max_length: int
    revision: str = "1"  # changes whenever the output would: datasets hashes this object, not the code behind it

    def __call__(self, batch: dict[str, list]) -> dict[str, Any]:
        """One batch."""
        encoded = self.tokenizer(
            batch[self.column], is_split_into_words=True, truncation=True, max_length=self.max_length
        )
        labels = []
        for i, word_labels in enumerate(batch[self.label]):
            num_words = len(batch[self.column][i])
            if len(word_labels) != num_words:
                raise ValueError(
                    f"row {i} of a batch: {num_words} words in {self.column!r}, {len(word_labels)} labels in "
                    f"{self.label!r}: give one a word."
                )
            words = encoded.word_ids(i)
            is_first = [
                word is not None and word != former for word, former in zip(words, [None, *words], strict=False)
            ]
            labels.append(
                [word_labels[word] if first else IGNORED for word, first in zip(words, is_first, strict=True)]
            )
        return {**encoded, "labels": labels}
