"""One run of the demo: tune the original model one way, measure what it gained and forgot, write that down."""

from __future__ import annotations

import gc
import logging
import shutil
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import transformers
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.trainer_callback import ProgressCallback, TrainerState
from transformers.training_args import TrainingArguments
from trl import SFTConfig, SFTTrainer

from hf_ext.data.context_free import ContextFreeStore, generate_context_free
from hf_ext.data.flow_arithmetic import effective_sample_size_ratio
from hf_ext.data.weighting import add_flow_weights, add_original_losses
from hf_ext.demo.settings import ANCHORED, FLOW_TAU, RUNS, DemoSettings
from hf_ext.demo.tasks import house_rows
from hf_ext.evaluation.forgetting import forgetting_report
from hf_ext.evaluation.report import ForgettingReport
from hf_ext.guards.runs import RunFolder
from hf_ext.trainers.context_free import ContextFreeSFTConfig, ContextFreeSFTTrainer
from hf_ext.trainers.flow import FlowSFTConfig, FlowSFTTrainer

FRESH_SEED = 1_000_003
"""Added to the seed of the samples that the evaluation uses: never those that a run was trained on."""


@dataclass(frozen=True)
class Workplace:
    """
    Where a demo keeps its things, and the data that all runs share.

    Args:
        settings ([`DemoSettings`]): sizes and seed.
        demo_folder ([`~hf_ext.guards.runs.RunFolder`]): of the whole demo.
        original (`Path`): folder of the original model.
    """

    settings: DemoSettings
    demo_folder: RunFolder
    original: Path

    @property
    def output(self) -> Path:
        """The folder of the whole demo."""
        return self.demo_folder.folder

    @property
    def train_rows(self) -> Dataset:
        """The target rows that every run trains on."""
        return house_rows(self.settings.num_rows, seed=self.settings.seed, split="train")

    @property
    def held_out_rows(self) -> Dataset:
        """Target rows about other goods, for the evaluation."""
        return house_rows(self.settings.num_held_out, seed=self.settings.seed, split="held_out")

    def store(self, for_evaluation: bool) -> ContextFreeStore:
        """Context-free rows: those for training, or fresh ones for the evaluation."""
        return ContextFreeStore(self.output / "samples" / ("fresh" if for_evaluation else "train"))

    def run_folder(self, run: str) -> Path:
        """The folder of a run."""
        return self.output / "runs" / run

    def load(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The original model in float32, and its tokenizer."""
        model = AutoModelForCausalLM.from_pretrained(self.original, dtype=torch.float32)
        return model, AutoTokenizer.from_pretrained(self.original)

    def sample(self) -> None:
        """Draw both sets of context-free rows from the original model; a finished set is not drawn again."""
        model, tokenizer = self.load()
        settings = self.settings
        for for_evaluation, num_tokens in ((False, settings.context_free_tokens), (True, settings.fresh_tokens)):
            purpose = "the evaluation (fresh)" if for_evaluation else "training"
            print(f"Context-free rows for {purpose}", flush=True)
            generate_context_free(
                model,
                tokenizer,
                num_tokens,
                output_dir=self.output / "samples" / ("fresh" if for_evaluation else "train"),
                max_new_tokens=settings.max_new_tokens,
                batch_size=32,
                seed=settings.seed + FRESH_SEED * for_evaluation,
                autocast_dtype=torch.bfloat16 if settings.bf16 else None,
            )


@dataclass(frozen=True)
class RunRecord:
    """What a run left behind: its report, FLOW's effective sample size, and how long it took."""

    report: ForgettingReport
    ess_ratio: float | None
    seconds: float


def read_record(place: Workplace, run: str) -> RunRecord | None:
    """The record of a finished run; `None` where it is still to do."""
    values = place.demo_folder.results(f"runs/{run}/result")
    if values is None or (run in ANCHORED and not (place.run_folder(run) / "model").is_dir()):
        return None
    return RunRecord(ForgettingReport.from_dict(values["report"]), values["ess_ratio"], values["seconds"])


def train_and_measure(place: Workplace, run: str) -> RunRecord:
    """Do one run, unless it is done; the models of anchored runs are kept in `runs/<run>/model`."""
    record = read_record(place, run)
    if record is not None:
        print(f"{RUNS[run]}: finished earlier, read from {place.run_folder(run) / 'result.json'}", flush=True)
        return record
    start = time.monotonic()
    folder = place.run_folder(run)
    shutil.rmtree(folder, ignore_errors=True)  # what a stopped run left
    ess_ratio = _train(place, run, folder / "model")
    gc.collect()  # the trained model and its optimiser go before two models are loaded to measure
    tokenizer = AutoTokenizer.from_pretrained(place.original)
    report = forgetting_report(
        place.original,
        {RUNS[run]: folder / "model"},
        tokenizer,
        target=place.held_out_rows,
        context_free=place.store(for_evaluation=True),
        groups="hard",
        autocast_dtype=torch.bfloat16 if place.settings.bf16 else None,
    )
    shutil.rmtree(folder / "trainer", ignore_errors=True)  # the host's arguments and logs
    if run not in ANCHORED:  # half a gigabyte that nobody is told of
        shutil.rmtree(folder / "model")
    seconds = round(time.monotonic() - start, 1)
    values = {
        "run": run,
        "settings": place.settings.to_dict(),
        "report": report.to_dict(),
        "ess_ratio": ess_ratio,
        "seconds": seconds,
    }
    place.demo_folder.mark_done(f"runs/{run}/result", values)
    return RunRecord(report, ess_ratio, seconds)


def _train(place: Workplace, run: str, folder: Path) -> float | None:
    """Train, save the model into `folder` and return FLOW's ESS/n where the run has weights."""
    trainer, ess_ratio = _trainer(place, run)
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(TrainingBar(f"training {RUNS[run]}"))
    trainer.train()
    trainer.model.save_pretrained(folder)
    trainer.processing_class.save_pretrained(folder)
    return getattr(trainer, "flow_statistics", {}).get("flow/ess_ratio", ess_ratio)


def _trainer(place: Workplace, run: str) -> tuple[SFTTrainer, float | None]:
    """The run's trainer: same rows, steps and learning rate for each, and no setting beside but its method's."""
    model, tokenizer = place.load()
    rows = place.train_rows
    ess_ratio = None
    common: dict[str, Any] = {"model": model, "processing_class": tokenizer}
    if run == "sft":
        return SFTTrainer(args=_config(SFTConfig, place, run), train_dataset=rows, **common), None
    if run == "flow":
        args = _config(FlowSFTConfig, place, run, tau=FLOW_TAU)
        return FlowSFTTrainer(args=args, train_dataset=rows, **common), None
    args = _config(ContextFreeSFTConfig, place, run)
    if run == "both":
        args.normalize = "tokens"  # as FLOW divides
        rows = add_flow_weights(add_original_losses(rows, model, tokenizer, args), tau=FLOW_TAU)
        ess_ratio = effective_sample_size_ratio(np.asarray(rows["weight"]))
    else:
        rows = rows.add_column("weight", [1.0] * len(rows))  # said outright, else the trainer remarks on its absence
    store = place.store(for_evaluation=False)
    return ContextFreeSFTTrainer(args=args, train_dataset=rows, context_free_dataset=store, **common), ess_ratio


def _config(config: type[SFTConfig], place: Workplace, run: str, **method: Any) -> Any:
    settings = place.settings
    return config(
        output_dir=str(place.run_folder(run) / "trainer"),
        use_cpu=True,
        bf16=settings.bf16,
        max_steps=settings.max_steps,
        per_device_train_batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        warmup_steps=settings.warmup_steps,
        gradient_checkpointing=False,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        seed=settings.seed,
        dataloader_pin_memory=False,
        disable_tqdm=False,  # else every log line is printed; our own bar replaces the host's
        **method,
    )


class TrainingBar(ProgressCallback):
    """The host's progress bar with a title and the last loss; the host prints a line at every log instead."""

    def __init__(self, title: str) -> None:
        super().__init__()
        self.title = title

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, *rest: Any, **kwargs: Any) -> None:
        """Open the bar."""
        super().on_train_begin(args, state, *rest, **kwargs)
        self.training_bar.set_description(self.title)

    def on_log(self, args: TrainingArguments, state: TrainerState, *rest: Any, **kwargs: Any) -> None:
        """Show the loss."""
        logs = kwargs.get("logs") or {}
        if "loss" in logs:
            self.training_bar.set_postfix(loss=f"{float(logs['loss']):.3f}", refresh=False)


@contextmanager
def quiet_hosts() -> Iterator[None]:
    """Inside, the host libraries show no progress bars and nothing below an error; their settings come back after."""
    bars = transformers.utils.logging.is_progress_bar_enabled()
    maps = datasets.are_progress_bars_disabled()
    loggers = [logging.getLogger(name) for name in ("transformers", "datasets", "trl", "accelerate")]
    levels = [logger.level for logger in loggers]
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|trl|accelerate)\.")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if bars:
            transformers.utils.logging.enable_progress_bar()
        if not maps:
            datasets.enable_progress_bars()
