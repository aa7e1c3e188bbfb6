"""From prompts of a task to records of its rows: options are compared, or an answer is written."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

from hf_ext.evaluation.core.generation import AnswerWriter
from hf_ext.evaluation.core.prompts import TextPrompt
from hf_ext.evaluation.core.records import RowRecord
from hf_ext.evaluation.core.scoring import AnswerScorer, OptionLosses
from hf_ext.evaluation.core.tokens import PromptTokens, TokenPrompt

__all__ = ["AnswerJudge", "OptionJudge", "RowJudge", "least"]


def least(losses: Sequence[float], tokens: Sequence[int], sizes: Sequence[int]) -> int | None:
    """
    The first option with the least loss by size, among those that have a token; `None` where none has.

    Args:
        losses (`Sequence[float]`):
            Nats, summed over each answer.
        tokens (`Sequence[int]`):
            Of each answer.
        sizes (`Sequence[int]`):
            What to divide by: tokens, characters, or 1. An option of a token but no character is divided by 1.
    """
    scorable = [option for option, count in enumerate(tokens) if count > 0]
    return min(scorable, key=lambda option: losses[option] / max(1, sizes[option]), default=None)


class RowJudge(ABC):
    """
    Says of the rows of one task which are right.

    Args:
        prompts ([`PromptTokens`]):
            Of the task.
    """

    def __init__(self, prompts: PromptTokens) -> None:
        self.prompts = prompts
        self.label = prompts.task.label

    @abstractmethod
    def tokens(self, prompts: Sequence[TextPrompt]) -> list[TokenPrompt]:
        """What the model reads of each prompt."""

    @abstractmethod
    def plan(self, prompts: Sequence[TokenPrompt]) -> list[list[int]]:
        """Positions of the prompts that are judged together."""

    @abstractmethod
    def __call__(self, prompts: Sequence[TokenPrompt]) -> list[RowRecord]:
        """A record for each."""


class OptionJudge(RowJudge):
    """
    Compares the losses of options, or asks whether the one answer is the likeliest text.

    Args:
        prompts ([`PromptTokens`]):
            Of the task.
        scorer ([`AnswerScorer`]):
            Of the model.
    """

    def __init__(self, prompts: PromptTokens, scorer: AnswerScorer) -> None:
        super().__init__(prompts)
        self.scorer = scorer

    def tokens(self, prompts: Sequence[TextPrompt]) -> list[TokenPrompt]:
        """Context and answer of each option."""
        return self.prompts(prompts)

    def plan(self, prompts: Sequence[TokenPrompt]) -> list[list[int]]:
        """As the scorer plans."""
        return self.scorer.plan(prompts)

    def __call__(self, prompts: Sequence[TokenPrompt]) -> list[RowRecord]:
        """
        A record for each.

        Raises:
            FloatingPointError: if a loss is not finite; the message names task, row and option.
        """
        return [self._record(*pair) for pair in zip(prompts, self.scorer(prompts), strict=True)]

    def _record(self, prompt: TokenPrompt, scored: OptionLosses) -> RowRecord:
        row = prompt.row
        for option, loss in enumerate(scored.losses):
            if not math.isfinite(loss):
                raise FloatingPointError(
                    f"task {self.label!r}, row {row.index:,} ({row.id}): the loss of option {option} is {loss}."
                )
        pick = None if row.gold is None else least(scored.losses, scored.tokens, scored.tokens)
        return RowRecord(
            task=self.label,
            row=row.index,
            id=row.id,
            losses=scored.losses,
            tokens=scored.tokens,
            characters=prompt.characters,
            pick=pick,
            correct=scored.is_greedy[0] if row.gold is None else pick == row.gold,
            truncated=prompt.is_truncated,
        )


class AnswerJudge(RowJudge):
    """
    Has the model write each answer, one at a time.

    Args:
        prompts ([`PromptTokens`]):
            Of the task.
        writer ([`AnswerWriter`]):
            Of the model.
    """

    def __init__(self, prompts: PromptTokens, writer: AnswerWriter) -> None:
        super().__init__(prompts)
        self.writer = writer

    def tokens(self, prompts: Sequence[TextPrompt]) -> list[TokenPrompt]:
        """The context of each, cut so that an answer fits behind it."""
        return self.prompts.contexts(prompts, self.writer.max_new_tokens)

    def plan(self, prompts: Sequence[TokenPrompt]) -> list[list[int]]:
        """Every row on its own."""
        return [[position] for position in range(len(prompts))]

    def __call__(self, prompts: Sequence[TokenPrompt]) -> list[RowRecord]:
        """A record for each."""
        return [
            RowRecord(
                task=self.label,
                row=prompt.row.index,
                id=prompt.row.id,
                losses=[],
                tokens=[],
                characters=[],
                pick=None,
                correct=self.writer(prompt),
                truncated=prompt.is_truncated,
            )
            for prompt in prompts
        ]
