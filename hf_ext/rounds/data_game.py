"""DCLM's game: one architecture and number of tokens, a model a treatment of the data and seed; resumed anywhere."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_ext.data.curation.decontaminate import Decontaminate
from hf_ext.data.curation.manifest import step_record, tokenizer_key
from hf_ext.data.curation.mixing import mix
from hf_ext.data.curation.ngram_index import NGramIndex, Record
from hf_ext.data.curation.packed import num_sequences
from hf_ext.data.curation.packing import COUNTS, pack
from hf_ext.data.curation.pipeline import curate
from hf_ext.data.loading import load_rows
from hf_ext.data.run_settings import begin_run, settings_of
from hf_ext.evaluation.core import evaluate_core
from hf_ext.evaluation.core.task_files import TaskRows, load_tasks
from hf_ext.guards.inside import read_json
from hf_ext.guards.row_errors import RowError
from hf_ext.guards.runs import RunFolder, claims_output
from hf_ext.rounds._rounds import train_from_newest
from hf_ext.rounds.game_report import GameReport, TreatmentResult

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from hf_ext.data.curation.steps import Step
    from hf_ext.trainers.pretraining.config import PretrainingConfig
    from hf_ext.trainers.pretraining.trainer import PretrainingTrainer

HELD_OUT = "held-out"


@dataclass(frozen=True)
class Treatment:
    """
    What is done with the documents before a model is trained on them.

    Args:
        name (`str`):
            Of its folder and its line in the report.
        steps (`tuple[Step, ...]`):
            Of a curation; none leaves the documents as they are.
        sources (`dict[str, Dataset]`), weights (`dict[str, float]`):
            Of a mixture in place of the game's documents.
    """

    name: str
    steps: tuple[Step, ...] = ()
    sources: Mapping[str, Dataset] = field(default_factory=dict)
    weights: Mapping[str, float] = field(default_factory=dict)

    def settings(self) -> dict[str, Any]:
        """What the documents that are left depend on, plain values."""
        steps = [step_record(step, step.name) for step in self.steps]
        return {"steps": json.dumps(steps, sort_keys=True, default=str), "weights": dict(self.weights)}


class DataGame:
    """
    The runs of one game.

    Args:
        treatments (`Sequence[Treatment]`):
            Two or more.
        documents, held_out (`Dataset`):
            With a column `text`: what is treated, and what no treatment sees and every model is measured on.
        tokenizer (`PreTrainedTokenizerBase`):
            Of every model.
        args ([`~hf_ext.PretrainingConfig`]):
            Of every training, with an architecture and a number of tokens; `seed` is the first one's.
        num_seeds (`int`):
            Models of a treatment, two or more.
        core_data (`str`, *optional*):
            Folder of DCLM's tasks: documents with a row of them in it are left out, and CORE is measured.
        core_max_rows (`int`, *optional*):
            First rows of each task to measure.
    """

    def __init__(
        self,
        treatments: Sequence[Treatment],
        documents: Dataset,
        held_out: Dataset,
        tokenizer: PreTrainedTokenizerBase,
        args: PretrainingConfig,
        *,
        num_seeds: int = 3,
        core_data: str | None = None,
        core_max_rows: int | None = None,
    ) -> None:
        from accelerate import PartialState

        self.treatments = treatments
        self.documents = documents
        self.held_out = held_out
        self.tokenizer = tokenizer
        self.args = args
        self.seeds = [args.seed + number for number in range(num_seeds)]
        self.core_data = core_data
        self.core_max_rows = core_max_rows
        self.state = PartialState()
        self.output = Path(args.output_dir)
        self.run_folder = RunFolder(self.output, "game.json", processes=self.state)
        tasks = [] if core_data is None else load_tasks(core_data, "all")
        self.task_digests = {entry.task.label: entry.digest for entry in tasks}
        self.decontaminate = () if core_data is None else (Decontaminate(index=index_of_tasks(tasks)),)

    @claims_output
    def run(self) -> GameReport:
        """
        Every training that is not finished, and the report.

        Raises:
            ValueError: if the game was begun with other settings or documents, or a treatment leaves too few.
        """
        settings = {
            **settings_of(self.args),
            "tokenizer": tokenizer_key(self.tokenizer),
            "treatments": {treatment.name: treatment.settings() for treatment in self.treatments},
            "core": {"max_rows": self.core_max_rows, **self.task_digests},
        }
        sources = {
            f"documents of {treatment.name}, {name}": rows
            for treatment in self.treatments
            for name, rows in treatment.sources.items()
        }
        begin_run(
            self.run_folder, settings, {"documents": self.documents, HELD_OUT: self.held_out, **sources}, parts="*"
        )
        held_out = self._packed(HELD_OUT, (), lambda: self.held_out)
        # All before the first training: a treatment that leaves too few documents is found now.
        shards = [self._treated(treatment) for treatment in self.treatments]
        for treatment, folder in zip(self.treatments, shards, strict=True):
            for seed in self.seeds:
                if self.run_folder.results(self._step(treatment, seed)) is None:
                    self._train(treatment, seed, folder, held_out)
        report = self._report()
        if self.state.is_main_process:
            report.save(self.output)
        self.state.wait_for_everyone()
        return report

    @property
    def _num_tokens(self) -> int:
        return self.args.max_steps * self.args.tokens_per_step

    @property
    def _shows(self) -> bool:
        return not self.args.disable_tqdm

    def _step(self, treatment: Treatment, seed: int) -> str:
        return f"{treatment.name}-seed-{seed}"

    def _treated(self, treatment: Treatment) -> Path:
        """The packed shards of what a treatment leaves."""

        def make_documents() -> Any:
            if not treatment.sources:
                return self.documents
            return mix(
                treatment.sources, treatment.weights, self._num_tokens, seed=self.args.seed, tokenizer=self.tokenizer
            )[0]

        return self._packed(treatment.name, (*self.decontaminate, *treatment.steps), make_documents)

    def _packed(self, name: str, steps: tuple[Step, ...], make_documents: Callable[[], Dataset]) -> Path:
        """The folder of packed shards of documents after the steps, made by the main process unless it is finished."""
        folder = self.output / name
        shards = folder / "shards"
        if self.state.is_main_process and not (shards / "data").exists():
            with _naming(name):
                documents = make_documents()
                if steps:
                    curate(documents, steps, output=folder / "documents", on_bad_row="drop", show_progress=self._shows)
                    documents = load_rows(str(folder / "documents"))
                pack(documents, self.tokenizer, shards, sequence_length=self.args.sequence_length, seed=self.args.seed)
        self.state.wait_for_everyone()
        num_sequences(shards)
        return shards

    def _train(self, treatment: Treatment, seed: int, shards: Path, held_out: Path) -> None:
        """One model: trained from its newest checkpoint, saved, measured, and marked as done."""
        from hf_ext.trainers.pretraining.trainer import PretrainingTrainer

        args = copy.copy(self.args)
        args.output_dir = str(self.output / treatment.name / f"seed-{seed}")
        args.seed = seed
        trainer = PretrainingTrainer(args=args, train_dataset=load_rows(str(shards)), processing_class=self.tokenizer)
        train_from_newest(trainer)
        results: dict[str, Any] = {"losses": trainer.sequence_losses(load_rows(str(held_out)))}
        if self.core_data is not None:
            results |= self._core(trainer)
        trainer.save_model()
        self.run_folder.mark_done(self._step(treatment, seed), results)
        self.state.wait_for_everyone()

    def _core(self, trainer: PretrainingTrainer) -> dict[str, Any]:
        folder = Path(trainer.args.output_dir) / "core"
        report = evaluate_core(
            trainer.accelerator.unwrap_model(trainer.model),
            self.tokenizer,
            str(self.core_data),
            max_rows=self.core_max_rows,
            output_dir=folder,
            show_progress=self._shows,
        )
        if self.state.is_main_process:
            report.save(folder)
        trainer.forgetting_report = report
        score = report.score()
        return {"core_name": score.name, "core": score.value, "core_error": score.standard_error}

    def _report(self) -> GameReport:
        treatments = []
        core_name = ""
        for treatment in self.treatments:
            counts = read_json(self.output / treatment.name / "shards" / COUNTS, subject="a record of packed shards")
            steps = [self.run_folder.results(self._step(treatment, seed)) or {} for seed in self.seeds]
            core_name = steps[0].get("core_name", "")
            num_tokens = counts["num_sequences"] * self.args.sequence_length
            treatments.append(
                TreatmentResult(
                    name=treatment.name,
                    num_documents=counts["num_documents"],
                    num_tokens=num_tokens,
                    epochs=self._num_tokens / num_tokens,
                    losses=[step["losses"] for step in steps],
                    cores=[step["core"] for step in steps if core_name],
                    core_errors=[step["core_error"] for step in steps if core_name],
                )
            )
        return GameReport(treatments, core_name, {"tokens": f"{self._num_tokens:,}", "seeds": len(self.seeds)})


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Begin messages with the set of documents that they are of."""
    try:
        yield
    except ValueError as error:
        message = f"{name}: {error}"
        if isinstance(error, RowError):
            raise RowError(message, error.row_index, error.column) from error
        raise ValueError(message) from error


def index_of_tasks(tasks: Sequence[TaskRows]) -> NGramIndex:
    """
    The index of all rows of tasks: each context, each answer, and each context with each answer.

    Args:
        tasks (`Sequence[TaskRows]`):
            From [`~hf_ext.evaluation.core.task_files.load_tasks`].

    Raises:
        ValueError: if no text of them is long enough.
    """
    return NGramIndex(
        Record(entry.task.label, row.id, text)
        for entry in tasks
        for row in entry.rows
        for text in dict.fromkeys([
            *row.contexts, *row.answers,
            *(f"{context} {answer}" for context in row.contexts for answer in row.answers),
        ])
    )  # fmt: skip
