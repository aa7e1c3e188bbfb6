"""Prompts as token ids: where the answer of each option begins, and what had to be cut to fit the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hf_ext.evaluation.core.prompts import REASONING_DELIMITER, TextPrompt
from hf_ext.evaluation.core.task_files import CoreRow, TaskRows
from hf_ext.evaluation.core.tasks import CoreTask, Protocol
from hf_ext.guards.row_errors import RowError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["PromptTokens", "TokenPrompt", "common_length", "needs_space"]

EXTRA_REASONING_TOKENS = 10  # LLM Foundry's, beyond the longest solution of the file


@dataclass(frozen=True)
class TokenPrompt:
    """
    A row as token ids.

    Args:
        row ([`CoreRow`]):
            The row.
        sequences (`list[list[int]]`):
            Context and answer of each option.
        starts (`list[int]`):
            Where each answer begins; at the end of a sequence whose option has no token to score.
        characters (`list[int]`):
            Length of each option's own text.
        is_truncated (`bool`):
            Whether a context was cut from the left.
    """

    row: CoreRow
    sequences: list[list[int]]
    starts: list[int]
    characters: list[int]
    is_truncated: bool


def common_length(sequences: Sequence[list[int]]) -> int:
    """Tokens that all sequences begin with."""
    # in lexical order: what the first and the last share, those between share too
    first = min(sequences)
    last = max(sequences)
    pairs = enumerate(zip(first, last, strict=False))
    return next((place for place, (one, other) in pairs if one != other), min(len(first), len(last)))


def needs_space(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether an answer is tokenised with a space in front: where `" a"` is one token, as LLM Foundry asks."""
    return len(tokenizer(" a", add_special_tokens=False)["input_ids"]) == 1


class PromptTokens:
    """
    From prompts of one task to token ids.

    Args:
        tokenizer (`PreTrainedTokenizerBase`):
            The model's. No chat template is applied.
        task ([`CoreTask`]):
            The task.
        protocol (`str`):
            `"foundry"`: examples, question and answer are tokenised apart, the first with the tokenizer's special
            tokens. `"nanochat"`: the whole text is, behind a beginning token, and the answer begins where the options
            part, or where they agree to the end (schema).
        max_length (`int`):
            Tokens of context and answer together; contexts are cut from the left.

    Raises:
        ValueError: if the protocol needs a beginning token and the tokenizer has neither that nor an end token.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, task: CoreTask, protocol: Protocol, max_length: int
    ) -> None:
        self.tokenizer = tokenizer
        self.task = task
        self.protocol = protocol
        self.max_length = max_length
        self.space = " " if needs_space(tokenizer) else ""
        self.beginning = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        if protocol == "nanochat" and self.beginning is None:
            raise ValueError("Protocol 'nanochat' begins every prompt with a token that this tokenizer does not have.")

    def __call__(self, prompts: Sequence[TextPrompt]) -> list[TokenPrompt]:
        """
        Token ids of every prompt.

        Raises:
            RowError: if an answer does not fit `max_length`, has no token that is needed, or has none before it.
        """
        tokenise = self._foundry if self.protocol == "foundry" else self._nanochat
        return [self._fitted(prompt, *options) for prompt, options in zip(prompts, tokenise(prompts), strict=True)]

    def contexts(self, prompts: Sequence[TextPrompt], room: int) -> list[TokenPrompt]:
        """Contexts alone, as generation reads them, cut to leave `room` tokens to the answer."""
        ids = [preamble + question for preamble, question in self._preambles_and_questions(prompts)]
        most = self.max_length - room
        for prompt, context in zip(prompts, ids, strict=True):
            if most < 1 or not context:
                raise self._error(prompt.row, "context", f"max_length={self.max_length} leaves no token of context")
        return [
            TokenPrompt(prompt.row, [context[-most:]], [min(len(context), most)], [0], len(context) > most)
            for prompt, context in zip(prompts, ids, strict=True)
        ]

    def longest_answer(self, task_rows: TaskRows) -> int:
        """Tokens that a generation may have: as many as the longest solution of the file, and ten where it reasons."""
        texts = [answer for row in task_rows.rows for answer in row.answers]
        if self.task.is_reasoned:
            texts = [
                f"{row.reasoning}{REASONING_DELIMITER}{answer}" for row in task_rows.rows for answer in row.answers
            ]
        longest = max(map(len, self._ids(texts, add_special_tokens=True)))
        return max(1, longest) + (EXTRA_REASONING_TOKENS if self.task.is_reasoned else 0)

    def _ids(self, texts: Sequence[str], *, add_special_tokens: bool) -> list[list[int]]:
        # `verbose`: a prompt beyond the tokenizer's own length is cut here, and counted
        return self.tokenizer(
            list(texts), add_special_tokens=add_special_tokens, return_attention_mask=False, verbose=False
        )["input_ids"]

    # --- by protocol: sequences and starts of every prompt ---

    def _preambles_and_questions(self, prompts: Sequence[TextPrompt]) -> list[tuple[list[int], list[int]]]:
        preambles = self._ids([prompt.shots_text for prompt in prompts], add_special_tokens=True)
        questions = self._ids([prompt.contexts[0] for prompt in prompts], add_special_tokens=False)
        return [(self._without_end(ids), question) for ids, question in zip(preambles, questions, strict=True)]

    def _without_end(self, ids: list[int]) -> list[int]:
        """Without the end token that some tokenizers add; one alone stays, for it begins the prompt."""
        return ids[:-1] if len(ids) > 1 and ids[-1] == self.tokenizer.eos_token_id else ids

    def _foundry(self, prompts: Sequence[TextPrompt]) -> list[tuple[list[list[int]], list[int]]]:
        preambles = self._ids([prompt.shots_text for prompt in prompts], add_special_tokens=True)
        contexts = iter(self._ids([text for prompt in prompts for text in prompt.contexts], add_special_tokens=False))
        answers = iter(
            self._ids([self._spaced(text) for prompt in prompts for text in prompt.answers], add_special_tokens=False)
        )
        options = []
        for prompt, preamble in zip(prompts, preambles, strict=True):
            beginnings = [self._without_end(preamble) + next(contexts) for _ in prompt.contexts]
            endings = [next(answers) for _ in prompt.answers]
            pairs = [(beginning, ending) for beginning in beginnings for ending in endings]
            options.append(([first + last for first, last in pairs], [len(first) for first, _ in pairs]))
        return options

    def _spaced(self, answer: str) -> str:
        return answer if answer.startswith(" ") else self.space + answer

    def _nanochat(self, prompts: Sequence[TextPrompt]) -> list[tuple[list[list[int]], list[int]]]:
        texts = [f"{prompt.shots_text}{context}{answer}" for prompt in prompts for context, answer in prompt.options]
        if self.task.type == "language_modeling":  # where the answer begins is found with the context alone
            texts = [
                text
                for prompt, whole in zip(prompts, texts, strict=True)
                for text in (f"{prompt.shots_text}{prompt.contexts[0]}".rstrip(), whole)
            ]
        ids = iter([[int(self.beginning or 0), *tokens] for tokens in self._ids(texts, add_special_tokens=False)])
        options = []
        for prompt in prompts:
            if self.task.type == "language_modeling":
                context, whole = next(ids), next(ids)
                options.append(([whole], [common_length([context, whole])]))
                continue
            sequences = [next(ids) for _ in prompt.options]
            if self.task.type == "schema":
                common = common_length([sequence[::-1] for sequence in sequences])
                # the beginning token is nobody's answer, even where all options are one text
                starts = [max(1, len(sequence) - common) for sequence in sequences]
            else:
                starts = [common_length(sequences)] * len(sequences)
            options.append((sequences, starts))
        return options

    # --- what fits ---

    def _fitted(self, prompt: TextPrompt, sequences: list[list[int]], starts: list[int]) -> TokenPrompt:
        """Cut from the left to `max_length`, an option at a time, as both protocols do."""
        field = "choices" if self.task.type == "multiple_choice" else "continuation"
        cut_sequences = []
        cut_starts = []
        is_truncated = False
        for sequence, start in zip(sequences, starts, strict=True):
            length = len(sequence) - start
            if length >= self.max_length:
                raise self._error(
                    prompt.row,
                    field,
                    f"an answer of {length:,} tokens leaves no room within max_length={self.max_length}",
                )
            if length == 0 and self.task.type == "language_modeling":
                raise self._error(prompt.row, field, "the answer has no token under this tokenizer")
            if length and start == 0:
                raise self._error(prompt.row, field, "no token stands before the answer, so nothing predicts it")
            surplus = max(0, len(sequence) - self.max_length)
            is_truncated = is_truncated or surplus > 0
            cut_sequences.append(sequence[surplus:])
            cut_starts.append(start - surplus)
        lengths = [len(answer) for _, answer in prompt.options]
        return TokenPrompt(prompt.row, cut_sequences, cut_starts, lengths, is_truncated)

    def _error(self, row: CoreRow, field: str, problem: str) -> RowError:
        place = f"task {self.task.label!r}, row {row.index:,} ({row.id}), field {field!r}"
        remedy = "Fix the row in the file, or leave the task out with `tasks`."
        return RowError(f"{place}: {problem}. {remedy}", row.index, field)
