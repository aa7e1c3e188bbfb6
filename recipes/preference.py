"""What the recipes on preferences share beyond [`Recipe`]: the columns of pairs and of single labelled responses."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from trl import DatasetMixtureConfig, ModelConfig

from hf_ext.data.loading import take_columns
from hf_ext.data.preference import pairs_to_unpaired
from hf_ext.recipes.launch import Recipe, RecipeArguments

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

    def prepare_rows(self, rows: Any) -> Any:
        """
        Rows with `chosen`, `rejected` and, where there is one, `prompt`.

        Raises:
            ValueError: a column is missing, or a text is no dialogue.
        """
        if self.dialogues:
            if self.prompt_column is not None or self.prompt_template is not None:
                raise ValueError("dialogues takes the prompt from the texts: leave prompt_column and prompt_template")
            columns = {"chosen": self.chosen_column or "chosen", "rejected": self.rejected_column or "rejected"}
            rows = take_columns(rows, columns)
            return rows.map(DialoguesToMessages(), batched=True, remove_columns=list(columns))
        named = {"prompt": self.prompt_column, "chosen": self.chosen_column, "rejected": self.rejected_column}
        return _renamed(rows, named, self.prompt_template, required=("chosen", "rejected"))


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

    def prepare_rows(self, rows: Any) -> Any:
        """
        Rows with `prompt`, `completion` and `label`; of pairs, two a pair.

        Raises:
            ValueError: a column is missing.
        """
        from hf_ext.data.sft_rows import column_names

        if {"chosen", "rejected"} <= set(column_names(rows)) and self.completion_column is None:
            rows = pairs_to_unpaired(rows)
        named = {"prompt": self.prompt_column, "completion": self.completion_column, "label": self.label_column}
        return _renamed(rows, named, self.prompt_template, required=("prompt", "completion", "label"))


def _renamed(rows: Any, named: dict[str, str | None], template: str | None, required: Sequence[str]) -> Any:
    """Rows as they are where nothing is named; else a column that is not named keeps its name, if it is needed."""
    if template is None and not any(named.values()):
        return rows
    from hf_ext.data.sft_rows import column_names

    there = column_names(rows)
    columns = {new: old or new for new, old in named.items() if old or new in required or new in there}
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
        ValueError: a text does not begin with a turn, has only one, or does not end with the assistant's; or nothing
            is shared.
    """

    revision: str = "1"  # changes whenever the output would: datasets hashes this object, not the code behind it

    def __call__(self, batch: dict[str, list]) -> dict[str, list]:
        """Split one batch."""
        rows = [self._split(*pair) for pair in zip(batch["chosen"], batch["rejected"], strict=True)]
        return {name: [row[i] for row in rows] for i, name in enumerate(("prompt", "chosen", "rejected"))}

    def _split(self, chosen: Any, rejected: Any) -> tuple[list, list, list]:
        one, other = messages_of(chosen), messages_of(rejected)
        # at least one message is left on each side, also where the two are equal
        most = min(len(one), len(other)) - 1
        shared = next((i for i in range(most) if one[i] != other[i]), most)
        if shared == 0:
            raise ValueError(
                f"chosen and rejected begin with different turns: {_excerpt(chosen)}, {_excerpt(rejected)}"
            )
        return one[:shared], one[shared:], other[shared:]


def messages_of(dialogue: Any) -> list[dict[str, str]]:
    """
    The messages of `"\\n\\nHuman: ...\\n\\nAssistant: ..."`, white space around each left out.

    Raises:
        ValueError: the text does not begin with a turn, has only one, or does not end with the assistant's.
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


def _excerpt(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:76] + "...'"


@dataclass(frozen=True)
class PreferenceRecipe(Recipe):
    """A launchable method on pairs (DPO's data) or, with [`UnpairedArguments`], on labelled responses (KTO's)."""

    arguments: type[RecipeArguments] = PairArguments

    def check(
        self, script_args: Any, training_args: Any, model_args: ModelConfig, dataset_args: DatasetMixtureConfig
    ) -> None:
        """Refuse now what would fail, or be ignored, after a long run."""
        super().check(script_args, training_args, model_args, dataset_args)
        if training_args.precompute_ref_log_probs and script_args.dataset_streaming:
            raise ValueError(
                "precompute_ref_log_probs needs a dataset that can be read again, and a stream cannot: set "
                "dataset_streaming or precompute_ref_log_probs to false"
            )
