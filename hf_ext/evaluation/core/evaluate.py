"""CORE of a model: tasks read, rows shared by processes, scored, written down as they come, and summed up."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from datasets import Dataset
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor import DTensor
from tqdm.auto import tqdm

from hf_ext._columns import ROW_INDEX
from hf_ext.data.provenance import tokenizer_hash, unwrapped, weights_hash
from hf_ext.evaluation.core.aggregate import Difference, mean_difference, paired_difference
from hf_ext.evaluation.core.generation import AnswerWriter
from hf_ext.evaluation.core.judges import AnswerJudge, OptionJudge, RowJudge
from hf_ext.evaluation.core.prompts import TextPrompt, categories_of, num_shots, row_order, text_prompts
from hf_ext.evaluation.core.records import RowRecord, RowRecords
from hf_ext.evaluation.core.report import VERSIONS, CoreReport, rows_of, task_result
from hf_ext.evaluation.core.scoring import AnswerScorer
from hf_ext.evaluation.core.task_files import TaskRows, load_tasks
from hf_ext.evaluation.core.tasks import CORE_TASKS, Protocol, check_choice
from hf_ext.evaluation.core.tokens import PromptTokens, TokenPrompt
from hf_ext.evaluation.models import Model, free_memory, loaded, ready
from hf_ext.guards.numbers import SIZE
from hf_ext.guards.runs import claimed_output
from hf_ext.guards.vocabulary import require_embedded
from hf_ext.guards.world import check_world_size

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["evaluate_core"]

REVISION = 1  # of prompts and losses: records of another one are not gone on with
CHUNK_ROWS = 512  # are tokenised and planned at a time: ten thousand ten-shot prompts would take gigabytes


def evaluate_core(
    model: Model | str | Path,
    tokenizer: PreTrainedTokenizerBase,
    data: str | Path,
    *,
    tasks: str | Sequence[str] = "available",
    protocol: Protocol = "foundry",
    max_rows: int | None = None,
    max_length: int = 2048,
    batch_tokens: int = 4096,
    against: Model | str | Path | CoreReport | None = None,
    autocast_dtype: torch.dtype | None = None,
    output_dir: str | Path | None = None,
    show_progress: bool = True,
) -> CoreReport:
    r"""
    Measure a causal language model on the tasks of DCLM's CORE.

    | type | a row is right if |
    |---|---|
    | multiple choice | the right option has the least mean cross-entropy a token, the first one on a tie |
    | schema | the same, over contexts before one continuation |
    | language modelling | every token of the answer is the likeliest one |
    | generation | what is written greedily begins with an accepted answer; in EXTENDED only |

    A task's accuracy $a$ is centred, $(a - b) / (1 - b)$ with $b$ what guessing gets, and CORE is the mean over 22
    tasks. The report has it by both of DCLM's tables of $b$, v1 and v2, and names a mean over fewer tasks otherwise.

    Under several processes each scores its share of the rows, and all get the whole report.

    Args:
        model (model, `str` or `Path`):
            A causal language model or `PeftModel`, as an object, a folder or a Hub name. Code of a repository is
            never run.
        tokenizer (`PreTrainedTokenizerBase`):
            The model's. No chat template is applied, to no model.
        data (`str` or `Path`):
            A folder with `tasks.json` and task files, or DCLM's evaluation bundle.
        tasks (`str` or `Sequence[str]`, *optional*, defaults to `"available"`):
            `"available"`: those of CORE's 22 that the folder has. `"core"`: all 22. `"all"`: every known task it has,
            those of EXTENDED too. Otherwise labels.
        protocol (`str`, *optional*, defaults to `"foundry"`):
            How a row is put to the model: `"foundry"`, as LLM Foundry does and DCLM's figures are, or `"nanochat"`.
        max_rows (`int`, *optional*):
            So many rows a task at most, the first ones in the protocol's order. Examples come from the whole file, so
            a row is asked alike whatever `max_rows` is.
        max_length (`int`, *optional*, defaults to `2048`):
            Tokens of a prompt with its answer, at most those that the model has positions for. Longer ones lose the
            beginning of their context; the report says how many.
        batch_tokens (`int`, *optional*, defaults to `4096`):
            Tokens of a batch. The result depends on it by rounding only.
        against (model, `str`, `Path` or [`CoreReport`], *optional*):
            Another model for the same tokenizer, measured on the same rows: the report has the paired differences. Or
            what an earlier call returned for it, so that one model is measured once beside many.
        autocast_dtype (`torch.dtype`, *optional*):
            Autocast of every forward. Faster; a row near a tie may fall to the other side.
        output_dir (`str` or `Path`, *optional*):
            Each row's result is written there as it comes. Called again with the same model, tokenizer and protocol,
            the evaluation goes on at the next row, whatever `tasks`, `max_rows`, `batch_tokens` and the number of
            processes are. The report is not: `.save(output_dir)` writes it.
        show_progress (`bool`, *optional*, defaults to `True`):
            Whether to show a progress bar with the time left, by characters of the prompts.

    Returns:
        [`CoreReport`]: `.score()`, `.to_markdown()`, `.save(folder)`, `.plot()`, `.eval_results()`, `.rows`.

    Raises:
        CoreIncomplete: if `tasks="core"` and the folder lacks some of them.
        RowError: if a row cannot be asked: gold out of range, an answer too long, a token that the model has no
            embedding for; the message names task, row and field.
        ValueError: if the model is no causal language model, if a word or a number is out of bounds, or if
            `output_dir` holds the results of something else.
        FloatingPointError: if a model gives a loss that is not finite; the message names task and row.

    Example:

    ```python
    >>> report = evaluate_core("out/sft", tokenizer, "core_eval", against="original", output_dir="out/core")
    >>> print(report)
    >>> report.save("out/core")
    ```

    Reference: Li et al. 2024, *DataComp-LM* (arXiv 2406.11794).
    """
    check_choice("protocol", protocol, Protocol)
    for name, number in (("max_rows", max_rows), ("max_length", max_length), ("batch_tokens", batch_tokens)):
        problem = None if number is None else SIZE.problem_of(number)
        if problem:
            raise ValueError(f"{name} {problem}.")
    check_world_size()
    evaluation = _Evaluation(
        tokenizer, load_tasks(data, tasks), protocol, max_rows, max_length, batch_tokens, autocast_dtype, show_progress
    )
    evaluation.check_tasks()
    folder = None if output_dir is None else Path(output_dir)
    with evaluation.holding(folder):
        measured = loaded(model, like=model)
        settings = evaluation.settings(measured, model, against)
        # now, and not after the model was measured: the report may be of other rows
        other_records = evaluation.records_in(against, settings) if isinstance(against, CoreReport) else None
        records = evaluation.records_of(measured, None if folder is None else folder / "records")
        if against is not None and not isinstance(against, CoreReport):
            like = model if isinstance(model, str | Path) else measured
            if measured is not model:  # loaded here; one model at a time
                del measured
                free_memory()
            rival = loaded(against, like=like)
            other_records = evaluation.records_of(rival, None if folder is None else folder / "against")
    return evaluation.report(records, other_records, settings)


@dataclass(frozen=True)
class _Place:
    """Where an evaluation writes, and whether this process does."""

    output_dir: Path
    should_save: bool


# --- one evaluation --------------------------------------------------------------------------------------------------


@dataclass
class _Evaluation:
    """Tasks and how they are asked, for one model or two."""

    tokenizer: PreTrainedTokenizerBase
    tasks: list[TaskRows]
    protocol: Protocol
    max_rows: int | None
    max_length: int
    batch_tokens: int
    autocast_dtype: torch.dtype | None
    show_progress: bool

    def __post_init__(self) -> None:
        self.processes: Any = PartialState()

    def check_tasks(self) -> None:
        """Refuse what the protocol does not ask."""
        written = [task_rows.task.label for task_rows in self.tasks if task_rows.task.type == "generation"]
        if written and self.protocol == "nanochat":
            raise ValueError(f"Protocol 'nanochat' asks no task of type 'generation': leave out {', '.join(written)}.")

    def holding(self, folder: Path | None) -> AbstractContextManager[None]:
        """The claim to the folder, by the process that begins runs there; refused, it is by all of them."""
        if folder is None:
            return nullcontext()
        return claimed_output(_Place(folder, self.processes.is_main_process))

    def settings(
        self, measured: Model, model: Model | str | Path, against: Model | str | Path | CoreReport | None
    ) -> dict[str, Any]:
        """What the report says of how it was measured."""
        return {
            "model": _name(model),
            "against": _name_of_other(against),
            "protocol": self.protocol,
            "max_length": self._length(measured),
            "max_rows": self.max_rows,
            "dtype": str(measured.dtype).removeprefix("torch."),
            "autocast_dtype": None if self.autocast_dtype is None else str(self.autocast_dtype).removeprefix("torch."),
        }

    def _length(self, model: Model) -> int:
        """Tokens of a prompt: at most the model's positions."""
        positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        return min(self.max_length, positions) if isinstance(positions, int) and positions > 0 else self.max_length

    # --- measuring ---

    def records_of(self, model: Model, folder: Path | None) -> dict[str, list[RowRecord]]:
        """Records of every task's rows by label, in the protocol's order; on every process."""
        if self.processes.num_processes > 1:
            _check_whole(model)
        model = unwrapped(model)
        _check_causal(model)
        identity = None if folder is None else self._identity(model)
        records = {}
        title = "CORE" if folder is None or folder.name == "records" else "CORE, the other model"
        total = sum(_weight(task_rows, self.max_rows) for task_rows in self.tasks)
        is_quiet = not (self.show_progress and self.processes.is_main_process)
        with ready(model), tqdm(total=total, desc=title, unit="char", unit_scale=True, disable=is_quiet) as bar:
            scorer = AnswerScorer(model, self.batch_tokens, self.autocast_dtype)
            for task_rows in self.tasks:
                bar.set_postfix_str(task_rows.task.label)
                task_folder = None if folder is None else folder / task_rows.task.label
                facts = {} if identity is None else {**identity, "task_file": task_rows.digest}
                store = RowRecords(task_folder, facts, self.processes, self.processes.process_index)
                self._score_task(model, scorer, task_rows, store, bar)
                order = row_order(task_rows, self.protocol)[: self.max_rows]
                records[task_rows.task.label] = [store.records[index] for index in order]
        return records

    def records_in(self, report: CoreReport, settings: dict[str, Any]) -> dict[str, list[RowRecord]]:
        """Records of the same rows, asked alike, of a report that was made before."""
        if report.rows is None:
            raise ValueError("The report `against` was read back without its rows: give one that evaluate_core made.")
        for name in ("protocol", "max_length", "autocast_dtype"):
            if report.settings.get(name) != settings[name]:
                raise ValueError(
                    f"The report `against` was made with {name}={report.settings.get(name)!r}, and now it is "
                    f"{settings[name]!r}: rows that are asked in two ways make no pair. Measure both with one {name}"
                    + (", which both models have positions for." if name == "max_length" else ".")
                )
        by_row = {(row["task"], row["row"], row["id"]): RowRecord(**row) for row in report.rows}
        records = {}
        for task_rows in self.tasks:
            label = task_rows.task.label
            rows = [task_rows.rows[index] for index in row_order(task_rows, self.protocol)[: self.max_rows]]
            missing = [row.index for row in rows if (label, row.index, row.id) not in by_row]
            if missing:
                raise ValueError(
                    f"The report `against` lacks {len(missing):,} of {len(rows):,} rows of {label!r}, such as row "
                    f"{missing[0]:,}: measure both models on the same rows."
                )
            records[label] = [by_row[label, row.index, row.id] for row in rows]
        return records

    def _identity(self, model: Model) -> dict[str, Any]:
        return {
            "revision": REVISION,
            "model": weights_hash(model),
            "tokenizer": tokenizer_hash(self.tokenizer, with_chat_template=False),
            "protocol": self.protocol,
            "max_length": self._length(model),
            "autocast_dtype": None if self.autocast_dtype is None else str(self.autocast_dtype),
        }

    def _score_task(
        self, model: Model, scorer: AnswerScorer, task_rows: TaskRows, store: RowRecords, bar: tqdm
    ) -> None:
        """Score the rows that are still to do; one process's error is raised by all of them."""
        share: list[RowRecord] = []
        error: Exception | None = None
        characters = _weight(task_rows, self.max_rows) / len(task_rows.rows[: self.max_rows])
        try:
            judge = self._judge(model, task_rows, scorer)
            for records, num_rows in self._scored(judge, task_rows, model, set(store.records)):
                store.add(records)
                share += records
                bar.update(num_rows * characters)
        except Exception as raised:
            error = raised
        if self.processes.num_processes > 1:
            for any_error in gather_object([error]):
                if any_error is not None:
                    raise any_error
            store.add(gather_object(share), is_ours=False)
        elif error is not None:
            raise error

    def _scored(
        self, judge: RowJudge, task_rows: TaskRows, model: Model, recorded: set[int]
    ) -> Iterator[tuple[list[RowRecord], int]]:
        """Records of this process's share, a batch at a time, with the number of rows, whosever they are, gone by."""
        for chunk in _chunks(text_prompts(task_rows, self.protocol, self.max_rows)):
            if all(prompt.row.index in recorded for prompt in chunk):
                yield [], len(chunk)
                continue
            # The whole chunk is planned, whatever is done of it: so a row is read in the same batch after a kill.
            tokens = judge.tokens(chunk)
            self._require_embedded(model, task_rows, tokens)
            for number, batch in enumerate(judge.plan(tokens)):
                missing = [tokens[place] for place in batch if tokens[place].row.index not in recorded]
                is_ours = number % self.processes.num_processes == self.processes.process_index
                yield judge(missing) if is_ours and missing else [], len(batch)

    def _judge(self, model: Model, task_rows: TaskRows, scorer: AnswerScorer) -> RowJudge:
        task = task_rows.task
        prompts = PromptTokens(self.tokenizer, task, self.protocol, self._length(model))
        if task.type != "generation":
            return OptionJudge(prompts, scorer)
        writer = AnswerWriter(
            model,
            self.tokenizer,
            is_reasoned=task.is_reasoned,
            max_new_tokens=prompts.longest_answer(task_rows),
            autocast_dtype=self.autocast_dtype,
        )
        return AnswerJudge(prompts, writer)

    def _require_embedded(self, model: Model, task_rows: TaskRows, tokens: list[TokenPrompt]) -> None:
        largest = [[max((max(ids, default=0) for ids in prompt.sequences), default=0)] for prompt in tokens]
        rows = Dataset.from_dict({"input_ids": largest, ROW_INDEX: [prompt.row.index for prompt in tokens]})
        require_embedded(rows, model, self.tokenizer, task_rows.task.label)

    # --- summing up ---

    def report(
        self,
        records: dict[str, list[RowRecord]],
        other_records: dict[str, list[RowRecord]] | None,
        settings: dict[str, Any],
    ) -> CoreReport:
        """The report of the rows; with another model's, the paired differences."""
        results = []
        differences: dict[str, dict[str, Difference]] = {version: {} for version in VERSIONS}
        for task_rows in self.tasks:
            task = task_rows.task
            of_task = records[task.label]
            all_categories = categories_of(task_rows, self.protocol)
            categories = None if all_categories is None else [all_categories[record.row] for record in of_task]
            if other_records is not None:
                correct = [record.correct for record in of_task]
                other_correct = [record.correct for record in other_records[task.label]]
                for version in VERSIONS:
                    differences[version][task.label] = paired_difference(
                        correct, other_correct, task.baseline(version), categories
                    )
            golds = [task_rows.rows[record.row].gold for record in of_task]
            shots = num_shots(task_rows, self.protocol)
            difference = differences["v2"].get(task.label)
            results.append(task_result(task.label, of_task, shots, categories, golds, difference))
        means: dict[str, Difference] = {}
        for name, of_version in differences.items():
            of_core = [difference for label, difference in of_version.items() if label in CORE_TASKS]
            if of_core:
                means[name] = mean_difference(of_core)
        return CoreReport(results, settings, means, rows_of(records))


def _chunks(prompts: Iterator[TextPrompt]) -> Iterator[list[TextPrompt]]:
    chunk: list[TextPrompt] = []
    for prompt in prompts:
        chunk.append(prompt)
        if len(chunk) == CHUNK_ROWS:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _weight(task_rows: TaskRows, max_rows: int | None) -> float:
    """Characters that a model reads of a task, about: what the time left is reckoned by."""
    lengths = [sum(map(len, row.contexts)) / len(row.contexts) for row in task_rows.rows]
    answers = [sum(map(len, row.answers)) for row in task_rows.rows]
    mean_context = sum(lengths) / len(lengths)
    mean_answer = sum(answers) / len(answers)
    count = len(task_rows.rows[:max_rows])
    return count * (mean_context * (1 + task_rows.task.shots) + mean_answer)


def _check_causal(model: Model) -> None:
    # Of a BART's files transformers makes the decoder alone, which never wrote without the encoder.
    architectures: list[str] = getattr(model.config, "architectures", None) or [type(model).__name__]
    is_of_two_halves = getattr(type(model.config), "is_encoder_decoder", False)
    is_half = is_of_two_halves and type(model).__name__ not in architectures
    if getattr(model.config, "is_encoder_decoder", False) or is_half:
        raise ValueError(
            f"{type(model).__name__} has an encoder and a decoder; CORE is of causal language models, which read the "
            "prompt and its answer as one text."
        )
    if model.get_output_embeddings() is None:
        raise ValueError(f"{type(model).__name__} has no language-model head; load it with AutoModelForCausalLM.")


def _check_whole(model: Model) -> None:
    """Refuse a model of which each process holds a part: its forwards wait for each other, and rows are shared."""
    is_sharded = any(
        isinstance(parameter.data, DTensor) or hasattr(parameter, "ds_id") for parameter in model.parameters()
    )
    if is_sharded or any(isinstance(module, FullyShardedDataParallel) for module in model.modules()):
        raise ValueError(
            f"{type(model).__name__} is sharded over the processes, which share the rows, so each needs all of it. "
            "Measure a saved checkpoint, loaded whole by each process."
        )


def _name_of_other(against: Model | str | Path | CoreReport | None) -> str | None:
    if isinstance(against, CoreReport):
        return str(against.settings["model"])
    return None if against is None else _name(against)


def _name(model: Model | str | Path) -> str:
    name = model if isinstance(model, str | Path) else getattr(model.config, "_name_or_path", "")
    if not name:
        return type(model).__name__
    return Path(name).name if Path(name).exists() else str(name)  # where a folder lies is nobody's business
