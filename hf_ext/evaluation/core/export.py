"""CORE's tasks for lm-evaluation-harness: the prompts as text, and a YAML file a task, which needs no network."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from hf_ext.evaluation.core.prompts import TextPrompt, text_prompts
from hf_ext.evaluation.core.task_files import TaskRows, load_tasks
from hf_ext.guards.disk import replacing, writing
from hf_ext.guards.numbers import SIZE
from hf_ext.guards.runs import claimed_file

__all__ = ["EXPORT_TAG", "export_lm_eval"]

EXPORT_TAG = "dclm_core"
"""What `lm_eval --tasks` takes for all of the tasks in a folder."""

# What lm_eval (0.4.13) makes of each type, and the columns that it reads: a column's name stands for its value, so no
# text of a row is ever read as a template.
_CHOICE = {
    "output_type": "multiple_choice",
    "doc_to_text": "context",
    "doc_to_choice": "choices",
    "doc_to_target": "gold",
    "target_delimiter": " ",
}
# A text that is a number makes it compare contexts before one continuation; it counts characters of the contexts then,
# so its acc_norm would say nothing.
_SCHEMA = _CHOICE | {"doc_to_text": "gold", "doc_to_choice": "contexts", "doc_to_target": "continuation"}
_LANGUAGE = {"output_type": "loglikelihood", "doc_to_text": "context", "doc_to_target": "continuation"}
SETTINGS: dict[str, tuple[dict[str, str], tuple[str, ...]]] = {
    "multiple_choice": (_CHOICE, ("acc", "acc_norm")),
    "schema": (_SCHEMA, ("acc",)),
    "language_modeling": (_LANGUAGE, ("acc",)),
}


def export_lm_eval(
    data: str | Path,
    folder: str | Path,
    *,
    tasks: str | Sequence[str] = "available",
    max_rows: int | None = None,
) -> list[str]:
    """
    Write CORE's tasks as tasks of lm-evaluation-harness, which then gives the same log-likelihoods.

    The prompts are protocol `foundry`'s, examples in front. Run it in `folder`, where it looks for the rows:

        lm_eval --model hf --model_args pretrained=MODEL --include_path . --tasks dclm_core

    | its figure | ours |
    |---|---|
    | `acc` of a multiple choice or schema | `summed_accuracy`: it chooses by summed loss, not by loss a token |
    | `acc_norm` of a multiple choice | `character_accuracy` |
    | `acc` of language modelling | `accuracy` |

    It tokenises context and answer as one text, with a space between, and cuts a prompt at the model's own length; we
    tokenise them apart, as LLM Foundry does. Where a tokenizer joins the two in another way a row's figures differ;
    with one for which `" a"` is more than one token, of bytes or characters, those of every row do, for LLM Foundry,
    and so we, then put no space before an answer.

    Args:
        data (`str` or `Path`):
            As in [`evaluate_core`].
        folder (`str` or `Path`):
            Where the files go: `dclm_<label>.yaml` and `.jsonl` of each task. Absent, or empty.
        tasks (`str` or `Sequence[str]`, *optional*, defaults to `"available"`), max_rows (`int`, *optional*):
            As in [`evaluate_core`].

    Returns:
        `list[str]`: the names of the tasks.

    Raises:
        ValueError: if the folder holds something, or a task is to be written by the model (type `generation`), which
            has no log-likelihood to compare.
        RowError: if a row cannot be used.
        DiskFullError: if there is no room; nothing is left in `folder`.
    """
    problem = None if max_rows is None else SIZE.problem_of(max_rows)
    if problem is not None:
        raise ValueError(f"max_rows {problem}.")
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} holds something; name a folder that is empty or not there.")
    loaded_tasks = load_tasks(data, tasks)
    generation_labels = [task_rows.task.label for task_rows in loaded_tasks if task_rows.task.type not in SETTINGS]
    if generation_labels:
        raise ValueError(
            f"{', '.join(generation_labels)}: the answer is written by the model; leave such tasks out of `tasks`."
        )
    with writing("the tasks", folder), claimed_file(folder), replacing(folder) as temporary:
        temporary.mkdir()
        for task_rows in loaded_tasks:
            name = f"dclm_{task_rows.task.label}"
            settings = yaml.safe_dump(_settings(name, task_rows), sort_keys=False, allow_unicode=True)
            (temporary / f"{name}.yaml").write_text(settings, encoding="utf-8")
            with (temporary / f"{name}.jsonl").open("w", encoding="utf-8") as file:
                file.writelines(json.dumps(row) + "\n" for row in _rows(task_rows, max_rows))
    return [f"dclm_{task_rows.task.label}" for task_rows in loaded_tasks]


def _settings(name: str, task_rows: TaskRows) -> dict[str, Any]:
    columns, metrics = SETTINGS[task_rows.task.type]
    return {
        "task": name,
        "tag": [EXPORT_TAG],
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": f"{name}.jsonl"}},
        "test_split": "test",
        **columns,
        "num_fewshot": 0,  # the examples are part of the context
        "metric_list": [{"metric": metric, "aggregation": "mean", "higher_is_better": True} for metric in metrics],
        "metadata": {"version": 1.0, "shots": task_rows.task.shots, "protocol": "foundry"},
    }


def _rows(task_rows: TaskRows, max_rows: int | None) -> Iterator[dict[str, Any]]:
    for prompt in text_prompts(task_rows, "foundry", max_rows):
        yield {"id": prompt.row.id, "row": prompt.row.index, **_columns(task_rows, prompt)}


def _columns(task_rows: TaskRows, prompt: TextPrompt) -> dict[str, Any]:
    contexts = [prompt.shots_text + context for context in prompt.contexts]
    # the space is the delimiter's; of an answer that begins with one, it is that one
    answers = [answer.removeprefix(" ") for answer in prompt.answers]
    if task_rows.task.type == "multiple_choice":
        return {"context": contexts[0], "choices": answers, "gold": prompt.row.gold}
    if task_rows.task.type == "schema":
        return {"contexts": contexts, "continuation": answers[0], "gold": prompt.row.gold}
    return {"context": contexts[0], "continuation": f" {answers[0]}"}
