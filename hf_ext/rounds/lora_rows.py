"""Rows of a mixture of language models: tokenised, supervised on the completion, each with a prompt for the gate."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

from datasets import Dataset
from torch import Tensor

from hf_ext.data.problem_rows import PROBLEM, drop_problem_rows
from hf_ext.data.sft_rows import prepare_sft_rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from hf_ext.trainers.moe_lora.config import LoraMixtureConfig

PROMPT_LENGTH = "__hf_ext_prompt_length__"


@dataclass(frozen=True)
class ScoredRows:
    """
    Prepared rows with what does not change from round to round.

    Args:
        rows (`Dataset`):
            `input_ids`, `labels`, `__hf_ext_row__` and the prompt's length.
        embeddings (`torch.Tensor` of shape `(n, d)`):
            Of the prompts, under the base model.
        num_tokens (`torch.Tensor` of shape `(n,)`):
            Supervised tokens, float64.
    """

    rows: Dataset
    embeddings: Tensor
    num_tokens: Tensor


def mixture_sft_rows(
    dataset: Dataset, tokenizer: PreTrainedTokenizerBase, args: LoraMixtureConfig, dataset_name: str
) -> Dataset:
    """
    The rows that adapters are trained on and scored with, in their order.

    Args:
        dataset (`Dataset`):
            With `prompt` and `completion`.
        tokenizer (`PreTrainedTokenizerBase`), args ([`LoraMixtureConfig`]):
            As in training.
        dataset_name (`str`):
            For messages.

    Returns:
        `Dataset`: `input_ids`, `labels`, `__hf_ext_row__`, `__hf_ext_prompt_length__`.

    Raises:
        RowError: if a row is malformed, has no prompt, or no supervised token is left after truncation.
        TypeError: if the rows are a stream.
        ValueError: if a column is missing, or there are weights already.
    """
    if not isinstance(dataset, Dataset):
        raise TypeError(
            f"LoraMixtureTrainer needs a Dataset, got {type(dataset).__name__}: responsibilities belong to rows by "
            "number. Materialise the stream, for example with Dataset.from_generator."
        )
    if "weight" in dataset.column_names:
        raise ValueError(
            f"The {dataset_name} dataset has a 'weight' column, and LoraMixtureTrainer fills that column itself: "
            "remove it."
        )
    missing = [name for name in ("prompt", "completion") if name not in dataset.column_names]
    if missing:
        raise ValueError(
            f"The {dataset_name} dataset has no column {missing[0]!r} (it has {dataset.column_names}): the gate reads "
            "the prompt, the experts the completion. Rename or split your columns."
        )
    args = copy.copy(args)
    args.shuffle_dataset = False  # a training's own affair
    rows = dataset.select_columns(["prompt", "completion"])
    rows = prepare_sft_rows(rows, tokenizer, args, dataset_name=dataset_name)
    lengths = [next(i for i, label in enumerate(labels) if label != -100) for labels in rows["labels"]]
    problem = "prompt: it has no token, and the gate routes a row by its prompt"
    rows = rows.add_column(PROMPT_LENGTH, lengths)
    rows = rows.add_column(PROBLEM, ["" if length else problem for length in lengths])
    return drop_problem_rows(rows, args.on_bad_row, args.bad_rows_path, dataset_name, "has no row left with a prompt.")
