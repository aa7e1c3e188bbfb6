"""Answers that a model writes, compared with the accepted ones: tasks of EXTENDED, none of CORE."""

from __future__ import annotations

import re
import string
from collections.abc import Iterable
from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from hf_ext.evaluation.core.prompts import QUESTION, REASONING_DELIMITER
from hf_ext.evaluation.core.task_files import CoreRow
from hf_ext.evaluation.core.tokens import TokenPrompt
from hf_ext.evaluation.models import Model

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["AnswerWriter", "begins_with_answer"]

STOPS = ("\n\n", QUESTION.rstrip())
_APART = str.maketrans(dict.fromkeys(string.punctuation + "‘’´`", " "))


def begins_with_answer(text: str, answers: Iterable[str], *, is_reasoned: bool) -> bool:
    """
    Whether what a model wrote begins with an accepted answer, once case, punctuation, articles and spaces are evened.

    This is LLM Foundry's exact match, of DCLM's figures: a base model writes on behind its answer. So 36 passes for 3,
    and any text for an answer that is an article alone.

    Args:
        text (`str`):
            Written behind the prompt. With `is_reasoned` it ends where the next question would begin, and the answer
            stands behind the last ` #### `.
        answers (`Iterable[str]`):
            The accepted ones.
        is_reasoned (`bool`):
            Whether a chain of thought stands before the answer.
    """
    if is_reasoned:
        text = re.split("|".join(map(re.escape, STOPS)), text)[0].rpartition(REASONING_DELIMITER)[2]
    return _evened(text).startswith(tuple(map(_evened, answers)))


def _evened(text: str) -> str:
    words = re.sub(r"\b(a|an|the)\b", " ", text.lower().translate(_APART)).split()
    return " ".join(words)


class _RefuseNaN(LogitsProcessor):
    """Stops at logits that are no numbers: the likeliest of them would pass for an answer."""

    def __init__(self, row: CoreRow) -> None:
        self.row = row

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if scores.isnan().any():
            raise FloatingPointError(f"row {self.row.index:,} ({self.row.id}): the logits of its answer are NaN.")
        return scores


class AnswerWriter:
    """
    Writes the answers of one generation task, greedily.

    Args:
        model (model):
            In evaluation mode.
        tokenizer (`PreTrainedTokenizerBase`):
            With an end token.
        is_reasoned (`bool`):
            Of the task.
        max_new_tokens (`int`):
            Longest answer.
        autocast_dtype (`torch.dtype`, *optional*):
            Autocast of every forward.

    Raises:
        ValueError: if the tokenizer has no end token: then every answer would run on.
    """

    def __init__(
        self,
        model: Model,
        tokenizer: PreTrainedTokenizerBase,
        *,
        is_reasoned: bool,
        max_new_tokens: int,
        autocast_dtype: torch.dtype | None = None,
    ) -> None:
        if tokenizer.eos_token_id is None:
            raise ValueError("A generation task needs a tokenizer with an end token; this one has none.")
        self.model = model
        self.tokenizer = tokenizer
        self.is_reasoned = is_reasoned
        self.max_new_tokens = max_new_tokens
        self.autocast_dtype = autocast_dtype
        self.device = model.get_input_embeddings().weight.device
        pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        # All in a configuration of its own: that of an instruction-tuned model samples, and punishes repetition.
        self.settings = GenerationConfig(
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            repetition_penalty=1.0,
            no_repeat_ngram_size=0,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=pad,
            stop_strings=list(STOPS) if is_reasoned else None,
        )

    @torch.no_grad()
    def __call__(self, prompt: TokenPrompt) -> bool:
        """
        Whether the model's answer to a prompt is right.

        Raises:
            FloatingPointError: if the model's logits are NaN; the message names the row.
        """
        ids = torch.tensor(prompt.sequences, device=self.device)  # (1, context)
        dtype = self.autocast_dtype
        with nullcontext() if dtype is None else torch.autocast(self.device.type, dtype=dtype):
            written = self.model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                generation_config=self.settings,
                logits_processor=LogitsProcessorList([_RefuseNaN(prompt.row)]),
                tokenizer=self.tokenizer,  # for the stop strings
            )
        text = self.tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True)
        return begins_with_answer(text, prompt.row.answers, is_reasoned=self.is_reasoned)
