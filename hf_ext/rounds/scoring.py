"""What scores an answer in the online recipe: a verifier, ours or the user's, or a reward model."""

from __future__ import annotations

import importlib
import inspect
import math
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from hf_ext.data.run_settings import file_hash
from hf_ext.rounds.answers import Prompt

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

Verifier = Callable[[Prompt, str, dict[str, Any]], float]
"""`(prompt, completion, row) -> float`: the score of an answer, larger is better; `row` is the dataset's whole row."""

ScoredAnswer: TypeAlias = tuple[Prompt, str, dict[str, Any]]
Scorer = Callable[[Sequence[ScoredAnswer]], list[float]]
"""From (prompt, completion, row) of several answers to their scores."""

# A sign counts where it touches its number and no number stands before it: "5 - 3" and "5-3" have no minus three.
NUMBER = re.compile(
    r"(?:(?<![\d)])(?<![\d)]\s)(?P<sign>[-+\u2212]))?(?:[$€£]\s?)?"
    r"(?P<whole>\d{1,3}(?:,\d{3})+(?!\d)|\d+)?(?P<part>\.\d+)?(?:\s?/\s?(?P<below>\d+))?",
    re.ASCII,
)
LONGEST_NUMBER = 200  # characters; what a model that repeats a digit for ever writes is no number
MARK = re.compile(r"####([^\n]*)")


def final_number(text: str) -> Fraction | None:
    """
    The number a solution ends in: after its first `####` that has one on its line, else the last number of the text.

    Signs, thousands' commas, currency signs, units, decimals and fractions are understood: `#### -1,250.50 dollars`.

    Returns:
        `Fraction`, or `None` where there is no number.
    """
    for line in MARK.findall(text):
        marked = _numbers(line)
        if marked:
            return marked[0]
    numbers = _numbers(text)
    return numbers[-1] if numbers else None


def _numbers(text: str) -> list[Fraction]:
    values = []
    for match in NUMBER.finditer(text):
        if (match["whole"] is None and match["part"] is None) or len(match[0]) > LONGEST_NUMBER:
            continue
        below = int(match["below"] or 1)
        value = Fraction((match["whole"] or "0").replace(",", "") + (match["part"] or "")) / (below or 1)
        values.append(-value if match["sign"] in ("-", "\u2212") else value)
    return values


def gsm8k(prompt: Prompt, completion: str, row: dict[str, Any]) -> float:
    """
    Whether a solution ends in the number of the row's `answer` (GSM8K: `... #### 24`): 1.0 or 0.0.

    Raises:
        ValueError: if the row's `answer` has no number.
    """
    gold = final_number(str(row.get("answer") or ""))
    if gold is None:
        raise ValueError(f"verifier gsm8k needs a column 'answer' that ends in a number, found {row.get('answer')!r}")
    return float(final_number(completion) == gold)


VERIFIERS: dict[str, Verifier] = {"gsm8k": gsm8k}


def load_verifier(name: str) -> Verifier:
    """
    A verifier by name, or a function of your own as `module:function`, from the working folder or the Python path.

    Raises:
        ValueError: if there is no such verifier, module or function.
    """
    if name in VERIFIERS:
        return VERIFIERS[name]
    module, colon, function = name.partition(":")
    if not (module and colon and function):
        raise ValueError(
            f"verifier {name!r} is none of {sorted(VERIFIERS)}; name a function of your own as module:function"
        )
    try:
        with _working_folder_importable():
            verifier = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"verifier {name!r} cannot be imported: {error}") from error
    if not callable(verifier):
        raise ValueError(f"verifier {name!r} is no function but a {type(verifier).__name__}")
    return verifier


def verifier_digest(name: str) -> str | None:
    """
    Digest of the file that a verifier of one's own stands in, by which a run knows that it is the same.

    Returns:
        `str`, or `None` for ours and where there is no such file.
    """
    if name in VERIFIERS:
        return None
    source = inspect.getsourcefile(inspect.unwrap(load_verifier(name)))
    return None if source is None else file_hash(Path(source))


@contextmanager
def _working_folder_importable() -> Iterator[None]:
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def verifier_scorer(name: str) -> Scorer:
    """A scorer that calls the verifier of that name; it refuses what is not a finite number."""
    verifier = load_verifier(name)

    def scores(answers: Sequence[ScoredAnswer]) -> list[float]:
        return [_checked(verifier(*answer), name, answer[1]) for answer in answers]

    return scores


def _checked(score: object, name: str, completion: str) -> float:
    try:
        value = float(score)  # type: ignore[arg-type]  # what is no number is what this finds out
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"verifier {name!r} must return a finite number, gave {score!r} for {completion[:80]!r}")
    return value


def reward_scorer(name: str, *, batch_size: int, max_length: int | None, device: torch.device) -> Scorer:
    """
    A scorer that reads a sequence-classification model: its one logit, or of two labels the second's log-odds.

    Args:
        name (`str`): a folder or a Hub name; its own tokenizer and chat template are used.
        batch_size (`int`): answers a forward.
        max_length (`int`, *optional*): longest text, in tokens; the beginning is cut, so that the answer stays.
        device (`torch.device`): where it runs.

    Raises:
        ValueError: if it cannot be loaded, has no tokenizer that pads, or has more than two labels.
    """
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from hf_ext.guards.models import loading_model

    with loading_model(name, "reward model"):
        tokenizer = AutoTokenizer.from_pretrained(name, truncation_side="left", trust_remote_code=False)
        model = AutoModelForSequenceClassification.from_pretrained(name, dtype=torch.float32, trust_remote_code=False)
        model = model.to(device).eval()
    if model.config.num_labels > 2:
        raise ValueError(f"reward model {name!r} has {model.config.num_labels} labels; a score needs one, or two")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model.config.pad_token_id = tokenizer.pad_token_id

    @torch.no_grad()
    def scores(answers: Sequence[ScoredAnswer]) -> list[float]:
        texts = [_joined(tokenizer, prompt, completion) for prompt, completion, _ in answers]
        values: list[float] = []
        for start in range(0, len(texts), batch_size):
            batch = tokenizer(
                texts[start : start + batch_size],
                padding=True,
                truncation=max_length is not None,
                max_length=max_length,
                return_tensors="pt",
            ).to(device)
            logits = model(**batch).logits.float()  # (rows, 1) or (rows, 2)
            values += (logits[:, -1] - (logits[:, 0] if logits.shape[1] == 2 else 0)).tolist()
        broken = [value for value in values if not math.isfinite(value)]
        if broken:
            raise ValueError(f"reward model {name!r} gave a score that is not finite: {broken[0]}; check its weights")
        return values

    return scores


def _joined(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, completion: str) -> str:
    if isinstance(prompt, str):
        return prompt + completion
    messages = [*prompt, {"role": "assistant", "content": completion}]
    if tokenizer.chat_template is not None:
        return tokenizer.apply_chat_template(messages, tokenize=False)
    return "\n\n".join(message["content"] for message in messages)
