"""CORE of a model in training, each time the trainer evaluates."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import is_deepspeed_zero3_enabled

from hf_ext.evaluation.core.evaluate import evaluate_core
from hf_ext.evaluation.core.report import CoreReport

if TYPE_CHECKING:
    from transformers import Trainer

__all__ = ["CoreCallback"]

logger = logging.getLogger(__name__)


class CoreCallback(TrainerCallback):
    """
    Measures CORE of the model that a trainer trains, each time it evaluates (`eval_strategy`, `eval_steps`).

    The scores of both versions and their standard errors go into the log, and so to `report_to`, and into the metrics
    of the evaluation, so that `metric_for_best_model="eval_core16_v2"` works. The report is written to
    `output_dir/core/step-N`; on a trainer of hf-ext it goes into the card of what is saved at that step.

    Training is what it is without the callback, to the bit: nothing is drawn and the model is put back as it was.

    Args:
        trainer (`Trainer`):
            Of any host, whose model is a causal language model. Its `processing_class` is the tokenizer.
        data (`str` or `Path`), max_rows (`int`, *optional*, defaults to `20`):
            As in [`evaluate_core`]. 20 rows of 16 tasks are about 220,000 tokens to read.
        **settings:
            Further arguments of [`evaluate_core`]: `tasks`, `protocol`, `max_length`, `batch_tokens`, `against`,
            `autocast_dtype`.

    Attributes:
        report ([`CoreReport`], *optional*):
            The last one.

    Raises:
        ValueError: if the trainer shards its parameters (FSDP, ZeRO 3): measure what it saved, by `hf-ext eval core`.

    Example:

    ```python
    >>> trainer.add_callback(CoreCallback(trainer, "core_eval", max_rows=50))
    >>> trainer.train()
    ```
    """

    def __init__(self, trainer: Trainer, data: str | Path, *, max_rows: int | None = 20, **settings: Any) -> None:
        if trainer.is_fsdp_enabled or is_deepspeed_zero3_enabled():
            raise ValueError(
                "The parameters are sharded, and each process reads rows of its own: measure a saved model instead, "
                "by hf-ext eval core."
            )
        self.trainer = trainer
        self.data = data
        self.settings = {"max_rows": max_rows, **settings}
        self.report: CoreReport | None = None
        self._measured_step: int | None = None

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """A step has moved the weights: what was measured is no longer theirs."""
        self._show(None)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Measure, log and write; once a step, where there are several evaluation sets."""
        if self.report is None or self._measured_step != state.global_step:
            self.report = self._measured(args)
            self._measured_step = state.global_step
            values = _values(self.report)
            if args.should_save:
                self.report.save(self._folder(args, state.global_step), plot=False)
            self.trainer.log(dict(values))
        self._show(self.report)
        if metrics is not None:
            metrics.update(_values(self.report))  # the trainer looks for its metric_for_best_model there

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """The report of the weights that are left: those of the last step, or of the best one."""
        best_step = state.best_global_step if args.load_best_model_at_end else None
        if best_step is None or best_step == state.global_step:
            return
        try:
            self._show(CoreReport.load(self._folder(args, best_step)))
        except (OSError, ValueError) as error:
            logger.warning("The CORE report of the best step, %d, cannot be read: %s", best_step, error)
            self._show(None)

    def _measured(self, args: TrainingArguments) -> CoreReport:
        trainer = self.trainer
        processing_class = trainer.processing_class
        return evaluate_core(
            trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False),
            getattr(processing_class, "tokenizer", processing_class),
            self.data,
            show_progress=not args.disable_tqdm,
            **self.settings,
        )

    def _show(self, report: CoreReport | None) -> None:
        """For the card, which a trainer of hf-ext writes of it."""
        if hasattr(self.trainer, "core_report"):
            self.trainer.core_report = report

    @staticmethod
    def _folder(args: TrainingArguments, step: int) -> Path:
        return Path(str(args.output_dir)) / "core" / f"step-{step}"


def _values(report: CoreReport) -> dict[str, float]:
    """What is logged: without a task of CORE, the accuracy of each task."""
    scores = report.scores()
    if not scores:
        return {f"eval_{result.label}_accuracy": result.accuracy for result in report.tasks}
    return {f"eval_{score.name}": score.value for score in scores.values()} | {
        f"eval_{score.name}_standard_error": score.standard_error for score in scores.values()
    }
