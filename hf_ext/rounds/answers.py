"""Answers sampled from the current policy, in shards that survive a kill, and the pairs made of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from tqdm.auto import tqdm

from hf_ext.data.backends.probe import PROBED_ROWS, probe_backend
from hf_ext.data.backends.protocol import RowRequest, row_seed, sample_checked
from hf_ext.data.sampling import end_ids
from hf_ext.guards.disk import write_whole

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from hf_ext.data.backends.protocol import SamplingBackend

Prompt: TypeAlias = str | list[dict[str, str]]
"""What the policy is asked: text, or messages."""


@dataclass(frozen=True)
class Sampling:
    """
    How answers are sampled: exactly from the policy at `temperature`, without any other filter or penalty.

    Args:
        seed (`int`): of the run.
        round (`int`): number of the round; with `seed` and the batch's number it seeds each batch.
        answers_per_question (`int`): at least 2.
        temperature (`float`): 1 is the policy itself.
        max_new_tokens (`int`): longest answer, in tokens.
        batch_size (`int`): answers sampled together.
        stop (`tuple[str, ...]`): texts at which an answer ends; neither they nor what follows belongs to it.
    """

    seed: int
    round: int
    answers_per_question: int
    temperature: float
    max_new_tokens: int
    batch_size: int
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Answer:
    """
    A sampled answer.

    Args:
        row (`int`): index of the question's row in the dataset.
        prompt (`str` or `list[dict]`): what the policy was asked.
        completion (`str`): what it answered.
        finished (`bool`): whether it ended by itself, and was not cut at `max_new_tokens`.
    """

    row: int
    prompt: Prompt
    completion: str
    finished: bool


def questions_of_round(num_rows: int, per_round: int | None, round_number: int, seed: int) -> list[int]:
    """
    Rows a round asks about: the next `per_round` of one shuffled order, which starts again at its end; all by default.

    Raises:
        ValueError: if there is no row, or `per_round` is larger than the dataset.
    """
    if num_rows == 0:
        raise ValueError("the dataset has no questions")
    if per_round is not None and not 1 <= per_round <= num_rows:
        raise ValueError(f"questions_per_round must lie between 1 and the dataset's {num_rows} rows, got {per_round}")
    order = np.random.default_rng(seed).permutation(num_rows)
    count = num_rows if per_round is None else per_round
    return [int(order[(round_number * count + i) % num_rows]) for i in range(count)]


def sample_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[tuple[int, Prompt]],
    sampling: Sampling,
    folder: Path,
    *,
    rank: int = 0,
    world: int = 1,
    autocast_dtype: torch.dtype | None = None,
    backend: SamplingBackend | None = None,
    show_progress: bool = True,
) -> None:
    """
    Sample every answer of a round into `folder`, one shard a batch; shards that are there are taken as they are.

    A shard's answers depend on the weights, `sampling` and its number alone, so a killed call ends in the same files.

    Args:
        model (`PreTrainedModel`), tokenizer (`PreTrainedTokenizerBase`):
            The policy; its generation configuration is replaced.
        questions (`Sequence[tuple[int, str | list[dict]]]`):
            Row index and prompt of each question.
        sampling ([`Sampling`]):
            Settings.
        folder (`Path`):
            Where the shards go; with several processes, one that all of them see.
        rank, world (`int`):
            This process and their number: they share the shards out.
        autocast_dtype (`torch.dtype`, *optional*):
            As in training.
        backend ([`SamplingBackend`], *optional*):
            An engine that samples in place of `generate`, once it has passed the probe on these questions. Its
            answers go on to their end, and are then cut at the texts of `stop`.
        show_progress (`bool`):
            Whether the first process shows a bar.

    Raises:
        BackendError: if the backend samples from another distribution than the policy's, or cannot sample.
    """
    tasks = [question for question in questions for _ in range(sampling.answers_per_question)]
    starts = range(0, len(tasks), sampling.batch_size)
    shards = [tasks[start : start + sampling.batch_size] for start in starts]
    missing = [number for number in range(rank, len(shards), world) if not shard_file(folder, number).is_file()]
    _set_generation(model, tokenizer, sampling)
    model.eval()
    if backend is not None and missing:
        probe_backend(
            backend,
            model,
            [_prompt_ids(tokenizer, prompt) for _, prompt in questions[:PROBED_ROWS]],
            eos_ids=end_ids(model, tokenizer),
            max_new_tokens=sampling.max_new_tokens,
            temperature=sampling.temperature,
            seed=seed_of(sampling.seed, sampling.round),
            autocast_dtype=autocast_dtype,
        )
    for number in tqdm(missing, unit="batch", desc="answers", disable=not show_progress or rank != 0):
        autocast = torch.autocast(model.device.type, autocast_dtype or torch.bfloat16, autocast_dtype is not None)
        if backend is not None:
            answers = _sample_with(backend, model, tokenizer, shards[number], sampling, number)
        else:
            with seeded(sampling.seed, sampling.round, number), torch.no_grad(), autocast:
                answers = _sample(model, tokenizer, shards[number], sampling)
        lines = "".join(json.dumps(asdict(answer), ensure_ascii=False) + "\n" for answer in answers)
        write_whole(shard_file(folder, number), lines)


def shard_file(folder: Path, number: int) -> Path:
    """File of a shard."""
    return folder / f"shard-{number:05d}.jsonl"


def read_answers(folder: Path) -> list[Answer]:
    """Every answer of a round, in order."""
    lines = [line for file in sorted(folder.glob("shard-*.jsonl")) for line in file.read_text("utf-8").split("\n")]
    return [Answer(**json.loads(line)) for line in lines if line]


@contextmanager
def seeded(*parts: int) -> Iterator[None]:
    """Global random state seeded from numbers, and put back afterwards."""
    with torch.random.fork_rng():
        torch.manual_seed(seed_of(*parts))
        yield


def seed_of(*parts: int) -> int:
    """One seed below 2**31 from several numbers."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0] % 2**31)


def _set_generation(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sampling: Sampling) -> None:
    """Ancestral sampling: a fresh configuration, for `generate` fills what is left out from the checkpoint's."""
    from transformers import GenerationConfig

    model_ends = getattr(model.generation_config, "eos_token_id", None)
    model_ends = model_ends if isinstance(model_ends, list) else [model_ends]
    ends = sorted({int(token) for token in [tokenizer.eos_token_id, *model_ends] if token is not None})
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else ends[0] if ends else 0
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=sampling.temperature,
        top_k=0,
        top_p=1.0,
        max_new_tokens=sampling.max_new_tokens,
        eos_token_id=ends or None,
        pad_token_id=pad,
        stop_strings=list(sampling.stop) or None,
    )


def _sample(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tasks: Sequence[tuple[int, Prompt]], sampling: Sampling
) -> list[Answer]:
    prompts = [_prompt_ids(tokenizer, prompt) for _, prompt in tasks]
    longest = max(map(len, prompts))
    pad = model.generation_config.pad_token_id
    ids = torch.tensor([[pad] * (longest - len(prompt)) + prompt for prompt in prompts], device=model.device)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=model.device)
    stop_kwargs = {"tokenizer": tokenizer} if sampling.stop else {}  # transformers finds stop strings by it
    sampled = model.generate(input_ids=ids, attention_mask=mask, **stop_kwargs)[:, longest:].tolist()
    ends = set(model.generation_config.eos_token_id or [])
    return [
        _answer(tokenizer, *task, prompt, tokens, ends, sampling.stop)
        for task, prompt, tokens in zip(tasks, prompts, sampled, strict=True)
    ]


def _sample_with(
    backend: SamplingBackend,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[tuple[int, Prompt]],
    sampling: Sampling,
    shard: int,
) -> list[Answer]:
    prompts = [_prompt_ids(tokenizer, prompt) for _, prompt in tasks]
    ends = end_ids(model, tokenizer)
    requests = [
        RowRequest(tuple(prompt), sampling.max_new_tokens, row_seed(sampling.seed, sampling.round, shard, place))
        for place, prompt in enumerate(prompts)
    ]
    vocab_size = model.config.get_text_config().vocab_size
    rows = sample_checked(backend, requests, sampling.temperature, ends, vocab_size)
    return [
        _answer(tokenizer, *task, prompt, list(row.ids), set(ends), sampling.stop)
        for task, prompt, row in zip(tasks, prompts, rows, strict=True)
    ]


def _prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> list[int]:
    if isinstance(prompt, str):
        return tokenizer(prompt)["input_ids"]
    return tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)["input_ids"]


def _answer(
    tokenizer: PreTrainedTokenizerBase,
    row: int,
    prompt: Prompt,
    prompt_ids: list[int],
    tokens: list[int],
    ends: set[int],
    stop: Sequence[str],
) -> Answer:
    end = next((i for i, token in enumerate(tokens) if token in ends), None)
    answer_ids = tokens if end is None else tokens[:end]
    # Decoded behind its prompt: some tokenizers drop a space at the beginning of a text.
    prompt_text = tokenizer.decode(prompt_ids, skip_special_tokens=True)
    text = tokenizer.decode(prompt_ids + answer_ids, skip_special_tokens=True)
    if text.startswith(prompt_text):
        text = text[len(prompt_text) :]
    else:
        text = tokenizer.decode(answer_ids, skip_special_tokens=True)
    cuts = [text.index(word) for word in stop if word in text]
    text = text[: min(cuts)] if cuts else text
    return Answer(row, prompt, text, end is not None or bool(cuts))


def form_pairs(
    answers: Sequence[Answer], scores: Sequence[float], margin: float = 0.0
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """
    A pair a question: its best finished answer against its worst, if their scores differ by more than `margin`.

    Args:
        answers (`Sequence[Answer]`), scores (`Sequence[float]`):
            Of any number of questions; those of one question have one `row`.
        margin (`float`):
            At least 0.

    Returns:
        `tuple`: rows with `prompt`, `chosen`, `rejected` (messages where the prompt is messages), `row`,
        `chosen_score`, `rejected_score`; and counts: `pairs`, `ties` (scores within the margin), `unfinished` (only a
        cut answer scored higher: it is never chosen) and `empty` (fewer than two answers with text).
    """
    questions: dict[int, list[tuple[Answer, float]]] = {}
    for answer, score in zip(answers, scores, strict=True):
        questions.setdefault(answer.row, []).append((answer, score))
    rows: list[dict[str, Any]] = []
    counts = {"pairs": 0, "ties": 0, "unfinished": 0, "empty": 0}
    for group in questions.values():
        usable = [entry for entry in group if entry[0].completion.strip()]
        if len(usable) < 2:
            counts["empty"] += 1
            continue
        # One text is one answer, the finished one first: a reward model's scores of it differ in the last digits.
        usable = list({e[0].completion: e for e in sorted(usable, key=lambda e: e[0].finished)}.values())
        worst = min(usable, key=lambda entry: entry[1])
        finished = [entry for entry in usable if entry[0].finished]
        best = max(finished, key=lambda entry: entry[1], default=worst)
        if best[1] - worst[1] > margin:
            rows.append(_pair(best, worst))
            counts["pairs"] += 1
        elif max(score for _, score in usable) - worst[1] > margin:
            counts["unfinished"] += 1
        else:
            counts["ties"] += 1
    return rows, counts


def _pair(best: tuple[Answer, float], worst: tuple[Answer, float]) -> dict[str, Any]:
    sides: list[Any] = [entry[0].completion for entry in (best, worst)]
    if not isinstance(best[0].prompt, str):
        sides = [[{"role": "assistant", "content": text}] for text in sides]
    return {
        "row": best[0].row,
        "prompt": best[0].prompt,
        "chosen": sides[0],
        "rejected": sides[1],
        "chosen_score": best[1],
        "rejected_score": worst[1],
    }
