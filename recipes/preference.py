"""What the recipes on preferences share beyond [`Recipe`]: the columns of pairs and of single labelled responses."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from trl import DatasetMixtureConfig, ModelConfig

from hf_ext.data.loading import take_columns
from hf_ext.data.preference import pairs_to_unpaired
from hf_ext.recipes.launch import Arguments, Recipe, RecipeArguments

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from hf_ext.data.loading import AnyDataset

TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):[ ]?")
ROLES = {"Human": "user", "Assistant": "assistant"}


@dataclass
class PairArguments(RecipeArguments):
    """
    [`RecipeArguments`] and the columns of preference pairs.

    Parameters:
        chosen_column, rejected_column (`str`, *optional*):
            Columns renamed to `chosen` and `rejected`. Where one is named, other columns but `weight` are left out.
        dialogues (`bool`, *optional*, defaults to `False`):
            Whether both hold a whole dialogue as one text, `"\\n\\nHuman: ...\\n\\nAssistant: ..."`, as HH-RLHF does.
    """

    chosen_column: str | None = field(default=None, metadata={"help": "Column to use as 'chosen'."})
    rejected_column: str | None = field(default=None, metadata={"help": "Column to use as 'rejected'."})
    dialogues: bool = field(
        default=False,
        metadata={
            "help": r"chosen and rejected are whole dialogues as text, '\n\nHuman: ...\n\nAssistant: ...' as in "
            "HH-RLHF: make messages of them, the part they share becoming the prompt."
        },
    )

    def prepare_rows(self, rows: AnyDataset) -> AnyDataset:
        """
        Rows with `chosen`, `rejected` and, where there is one, `prompt`.

        Raises:
            ValueError: if a column is missing, or a text is no dialogue.
        """
        if self.dialogues:
            if self.prompt_column is not None or self.prompt_template is not None:
                raise ValueError("dialogues takes the prompt from the texts: leave prompt_column and prompt_template")
            columns = {"chosen": self.chosen_column or "chosen", "rejected": self.rejected_column or "rejected"}
            rows = take_columns(rows, columns)
            return rows.map(DialoguesToMessages(), batched=True, remove_columns=list(columns))
        column_of = {"prompt": self.prompt_column, "chosen": self.chosen_column, "rejected": self.rejected_column}
        return _renamed(rows, column_of, self.prompt_template, required=("chosen", "rejected"))


@dataclass
class UnpairedArguments(RecipeArguments):
    """
    [`RecipeArguments`] and the columns of single responses with a label.

    Parameters:
        completion_column, label_column (`str`, *optional*):
            Columns renamed to `completion` and `label` (true: good). Where one is named, other columns but `weight`
            are left out. Pairs with `chosen` and `rejected` are split into labelled rows.
    """

    completion_column: str | None = field(default=None, metadata={"help": "Column to use as 'completion'."})
    label_column: str | None = field(default=None, metadata={"help": "Column to use as 'label': true means good."})

    def prepare_rows(self, rows: AnyDataset) -> AnyDataset:
        """
        Rows with `prompt`, `completion` and `label`; of pairs, two a pair.

        Raises:
            ValueError: if a column is missing.
        """
        from hf_ext.data.sft_rows import column_names

        if {"chosen", "rejected"} <= set(column_names(rows)) and self.completion_column is None:
            rows = pairs_to_unpaired(rows)
        column_of = {"prompt": self.prompt_column, "completion": self.completion_column, "label": self.label_column}
        return _renamed(rows, column_of, self.prompt_template, required=("prompt", "completion", "label"))


def _renamed(
    rows: AnyDataset, column_of: dict[str, str | None], template: str | None, required: Sequence[str]
) -> AnyDataset:
    """Rows as they are where no column is named; else one that is not named keeps its name, if it is needed."""
    if template is None and not any(column_of.values()):
        return rows
    from hf_ext.data.sft_rows import column_names

    needed_names = {*required, *column_names(rows)}
    columns = {name: column or name for name, column in column_of.items() if column or name in needed_names}
    return take_columns(rows, columns, template)


@dataclass(frozen=True)
class DialoguesToMessages:
    r"""
    Make messages of pairs of dialogues written as one text; the turns both begin with become the prompt.

    | column in | type | column out | type |
    |---|---|---|---|
    | `chosen`, `rejected` | str, `"\n\nHuman: ...\n\nAssistant: ..."` | the same | messages after the prompt |
    | | | `prompt` | messages |

    Raises:
        ValueError: if a text does not begin with a turn, has only one, or does not end with the assistant's; or if
            nothing is shared.
    """

    revision: str = "1"  # changes whenever the output would: datasets hashes this object, not the code behind it

    def __call__(self, batch: dict[str, list]) -> dict[str, list]:
        """Split one batch."""
        rows = [self._split(*pair) for pair in zip(batch["chosen"], batch["rejected"], strict=True)]
        return {name: [row[i] for row in rows] for i, name in enumerate(("prompt", "chosen", "rejected"))}

    def _split(self, chosen: str, rejected: str) -> tuple[list, list, list]:
        chosen_messages = messages_of(chosen)
        rejected_messages = messages_of(rejected)
        # at least one message is left on each side, also where the two are equal
        most = min(len(chosen_messages), len(rejected_messages)) - 1
        num_shared = next((i for i in range(most) if chosen_messages[i] != rejected_messages[i]), most)
        if num_shared == 0:
            raise ValueError(
                f"chosen and rejected begin with different turns: {_excerpt(chosen)}, {_excerpt(rejected)}"
            )
        return chosen_messages[:num_shared], chosen_messages[num_shared:], rejected_messages[num_shared:]


def messages_of(dialogue: str) -> list[dict[str, str]]:
    """
    The messages of `"\\n\\nHuman: ...\\n\\nAssistant: ..."`, white space around each left out.

    Raises:
        ValueError: if the text does not begin with a turn, has only one, or does not end with the assistant's.
    """
    turns = list(TURN.finditer(dialogue)) if isinstance(dialogue, str) else []
    if len(turns) < 2 or turns[0].start() != 0 or turns[-1][1] != "Assistant":
        raise ValueError(
            "expected a dialogue '\\n\\nHuman: ...\\n\\nAssistant: ...' that ends with the assistant, found "
            f"{_excerpt(dialogue)}. Turn dialogues off, or filter such rows."
        )
    ends = [*(turn.start() for turn in turns[1:]), len(dialogue)]
    return [
        {"role": ROLES[turn[1]], "content": dialogue[turn.end() : end].strip()}
        for turn, end in zip(turns, ends, strict=True)
    ]


def _excerpt(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:76] + "...'"


@dataclass(frozen=True)
class PreferenceRecipe(Recipe[Arguments]):
    """A launchable method on pairs (DPO's data) or, with [`UnpairedArguments`], on labelled responses (KTO's)."""

    def check(
        self,
        script_args: Arguments,
        training_args: TrainingArguments,
        model_args: ModelConfig,
        dataset_args: DatasetMixtureConfig,
    ) -> None:
        """Refuse now what would fail, or be ignored, after a long run."""
        super().check(script_args, training_args, model_args, dataset_args)
        if training_args.precompute_ref_log_probs and script_args.dataset_streaming:
            raise ValueError(
                "precompute_ref_log_probs needs a dataset that can be read again, and a stream cannot: set "
                "dataset_streaming or precompute_ref_log_probs to false"
            )
