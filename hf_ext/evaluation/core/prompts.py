"""What a model reads for a row, byte for byte: as LLM Foundry asks, which DCLM's figures are from, or as nanochat."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hf_ext.evaluation.core.task_files import CoreRow, TaskRows
from hf_ext.evaluation.core.tasks import CoreTask, Protocol

__all__ = ["REASONING_DELIMITER", "TextPrompt", "categories_of", "num_shots", "row_order", "text_prompts"]

FOUNDRY_SEED = 1234  # one generator a task, which goes on from row to row
NANOCHAT_SEED = 1234  # plus the position: one generator a row
NANOCHAT_ORDER_SEED = 1337
QUESTION = "Q: "
REASONING_DELIMITER = " #### "


@dataclass(frozen=True)
class TextPrompt:
    """
    A row as text.

    Args:
        row ([`CoreRow`]):
            The row, with its position, id and gold.
        shots_text (`str`):
            Solved examples, or an empty string.
        contexts (`tuple[str, ...]`):
            What follows them: one text, or an option each of a schema.
        answers (`tuple[str, ...]`):
            What is scored behind it, without the space that a tokenizer may need in front: an option each of a
            multiple choice, one text otherwise.
    """

    row: CoreRow
    shots_text: str
    contexts: tuple[str, ...]
    answers: tuple[str, ...]

    @property
    def options(self) -> list[tuple[str, str]]:
        """Context and answer of each option."""
        return [(context, answer) for context in self.contexts for answer in self.answers]


def num_shots(task_rows: TaskRows, protocol: Protocol) -> int:
    """Examples each row gets: fewer than the task's where the file, or its smallest category, has too few others."""
    sizes = [len(part) for part in _parts(task_rows, protocol)]
    return min(task_rows.task.shots, min(sizes) - 1)


def categories_of(task_rows: TaskRows, protocol: Protocol) -> list[str] | None:
    """The category of each row, in file order, where the protocol takes the mean over them; nanochat knows none."""
    if protocol == "nanochat" or not task_rows.task.has_categories:
        return None
    return [row.category or "" for row in task_rows.rows]


def row_order(task_rows: TaskRows, protocol: Protocol) -> list[int]:
    """Positions in the file in the protocol's order: the file's own, or nanochat's, which is shuffled."""
    order = list(range(len(task_rows.rows)))
    if protocol == "nanochat":
        random.Random(NANOCHAT_ORDER_SEED).shuffle(order)
    return order


def text_prompts(
    task_rows: TaskRows, protocol: Protocol = "foundry", max_rows: int | None = None
) -> Iterator[TextPrompt]:
    """
    Prompts of a task's first rows, in the protocol's order; examples come from the whole file.

    Args:
        task_rows ([`TaskRows`]):
            The task, its rows as they stand in the file.
        protocol (`str`, *optional*, defaults to `"foundry"`):
            `"foundry"` or `"nanochat"`.
        max_rows (`int`, *optional*):
            So many rows at most.

    Reference: Li et al. 2024 (arXiv 2406.11794), whose evaluator is LLM Foundry 0.6 to 0.8.
    """
    order = row_order(task_rows, protocol)[:max_rows]
    rows = task_rows.rows
    task = task_rows.task
    if protocol == "nanochat":
        whole_order = row_order(task_rows, protocol)
        for position, index in enumerate(order):
            examples = [rows[whole_order[place]] for place in _nanochat_draw(len(rows), task.shots, position)]
            yield _nanochat_prompt(task, rows[index], examples)
        return
    draws: dict[int, list[int]] = {}
    for part in _parts(task_rows, protocol):
        wanted = sum(index < len(order) for index in part)  # rows of a part are asked in file order
        for place, drawn in enumerate(_foundry_draws(len(part), task.shots, wanted)):
            draws[part[place]] = [part[other] for other in drawn]
    for index in order:
        yield _foundry_prompt(task, rows[index], [rows[other] for other in draws[index]])


def _parts(task_rows: TaskRows, protocol: Protocol) -> list[list[int]]:
    """Positions of the rows that are each other's examples: of all, or of one category."""
    categories = categories_of(task_rows, protocol)
    if categories is None:
        return [list(range(len(task_rows.rows)))]
    parts: dict[str, list[int]] = {}
    for index, category in enumerate(categories):
        parts.setdefault(category, []).append(index)
    return list(parts.values())


# --- LLM Foundry -----------------------------------------------------------------------------------------------------


def _foundry_draws(num_rows: int, shots: int, count: int) -> Iterator[list[int]]:
    """Positions of the examples of the first `count` rows."""
    rng = random.Random(FOUNDRY_SEED)
    shots = min(shots, num_rows - 1)
    for position in range(count):
        drawn = set(rng.sample(range(num_rows), shots))
        if position in drawn:
            drawn.remove(position)
            other = rng.choice(range(num_rows))
            while other in drawn or other == position:
                other = rng.choice(range(num_rows))
            drawn.add(other)
        yield list(drawn)  # in the set's own order, which for these integers is the same in every CPython


def _foundry_prompt(task: CoreTask, row: CoreRow, examples: Sequence[CoreRow]) -> TextPrompt:
    shots_text = "\n".join(_foundry_example(task, example) for example in examples)
    line_end = "\n" if shots_text else ""
    if task.type == "schema":
        # Options are entries of a list, which are not stripped; without examples no delimiter is added.
        delimiter = task.delimiter.rstrip() if shots_text else ""
        contexts = tuple(f"{line_end}{option}{delimiter}" for option in row.contexts)
    else:
        question = QUESTION if task.is_reasoned else ""
        contexts = (f"{line_end}{question}{row.contexts[0].strip()}{task.delimiter}".rstrip(),)
    is_list = task.type == "multiple_choice"
    answers = row.answers if is_list else tuple(answer.strip() for answer in row.answers[:1])
    return TextPrompt(row, shots_text, contexts, answers)


def _foundry_example(task: CoreTask, row: CoreRow) -> str:
    if task.type == "schema":
        return f"{row.contexts[row.gold or 0]}{task.delimiter}{row.answers[0].strip()}"
    if task.type == "multiple_choice":
        answer = row.answers[row.gold or 0]
    elif task.is_reasoned:
        answer = f"{(row.reasoning or '').strip()}{REASONING_DELIMITER}{row.answers[0].strip()}"
    else:
        answer = row.answers[0].strip()
    question = QUESTION if task.is_reasoned else ""
    return f"{question}{row.contexts[0].strip()}{task.delimiter}{answer}"


# --- nanochat --------------------------------------------------------------------------------------------------------


def _nanochat_draw(num_rows: int, shots: int, position: int) -> list[int]:
    rng = random.Random(NANOCHAT_SEED + position)
    # A sample depends on the number of candidates alone, so the row itself need not be taken out of a list of them.
    drawn = rng.sample(range(num_rows - 1), min(shots, num_rows - 1))
    return [place + (place >= position) for place in drawn]


def _nanochat_prompt(task: CoreTask, row: CoreRow, examples: Sequence[CoreRow]) -> TextPrompt:
    shots_text = "".join(_nanochat_example(task, example) for example in examples)
    strip = str.strip if task.type == "language_modeling" else str
    contexts = tuple(f"{strip(context)}{task.delimiter}" for context in row.contexts)
    return TextPrompt(row, shots_text, contexts, row.answers)


def _nanochat_example(task: CoreTask, row: CoreRow) -> str:
    if task.type == "schema":
        return f"{row.contexts[row.gold or 0]}{task.delimiter}{row.answers[0]}\n\n"
    if task.type == "multiple_choice":
        return f"{row.contexts[0]}{task.delimiter}{row.answers[row.gold or 0]}\n\n"
    return f"{row.contexts[0].strip()}{task.delimiter}{row.answers[0]}\n\n"
