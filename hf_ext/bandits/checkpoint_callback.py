"""The best checkpoint of a run, chosen and loaded at the end of training."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import broadcast_object_list, gather_object
from numpy.typing import ArrayLike
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import is_deepspeed_zero3_enabled

from hf_ext._upstream.checkpoints import load_checkpoint
from hf_ext.bandits.checkpoints import select_best, whole_checkpoints_in
from hf_ext.bandits.likelihood import ModelLosses
from hf_ext.bandits.selection import Selection
from hf_ext.evaluation.models import ready
from hf_ext.evaluation.rows import rows_to_score

if TYPE_CHECKING:
    from transformers import Trainer

__all__ = ["CheckpointSelectionCallback"]

logger = logging.getLogger(__name__)


class CheckpointSelectionCallback(TrainerCallback):
    """
    Chooses between a run's checkpoints when training ends, by [`select_best`], and loads the winner into the model.

    `load_best_model_at_end` compares means that were measured once, on all rows, at every evaluation. This measures at
    the end alone, pairs the checkpoints by item, drops those that are refuted, and says how sure the choice is. Where
    nothing can be told, the one that leads is loaded, and the log says so. It needs no evaluation in training and has
    the last word where `load_best_model_at_end` is set too. What training left is a candidate where it was saved:
    hosts save the last step with `save_strategy="steps"`.

    The report is written to `output_dir/selection`; `trainer.forgetting_report = callback.selection` puts it on the
    card of a trainer of hf-ext. A run that a SIGTERM stopped chooses nothing, for it is to go on. Under several
    processes each measures on its own, and what the first one chose is loaded by all.

    Args:
        trainer (`Trainer`):
            Of any host.
        items (`Sequence` or `Dataset`):
            The pool. Without `evaluate` held-out rows of any TRL SFT data type.
        evaluate (`Callable`, *optional*):
            From the model, with a checkpoint's weights and in evaluation mode, and some items to a number for each. By
            default the loss of a causal language model, where lower is better.
        **settings:
            Further arguments of [`select_best`]: `confidence`, `greater_is_better` (with `evaluate`), `budget`,
            `batch_size`, `seed`.

    Attributes:
        selection ([`~hf_ext.bandits.selection.Selection`], *optional*):
            What came of it.

    Raises:
        ValueError: if the trainer shards its parameters (FSDP, ZeRO 3), if `greater_is_better` is given without
            `evaluate`, or at the end as in [`select_best`], or if the processes see different checkpoints.

    Example:

    ```python
    >>> trainer.add_callback(CheckpointSelectionCallback(trainer, held_out))
    >>> trainer.train()
    ```
    """

    def __init__(
        self,
        trainer: Trainer,
        items: Sequence[Any],
        evaluate: Callable[[Any, Any], ArrayLike] | None = None,
        **settings: Any,
    ) -> None:
        if trainer.is_fsdp_enabled or is_deepspeed_zero3_enabled():
            raise ValueError(
                "The parameters are sharded, and each process reads rows of its own: choose between the saved "
                "checkpoints instead, by hf-ext eval select."
            )
        if evaluate is None and "greater_is_better" in settings:
            raise ValueError("greater_is_better is of `evaluate`: without it lower losses are better.")
        self.trainer = trainer
        self.items = items
        self.evaluate = evaluate
        self.settings = settings
        self.selection: Selection | None = None

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Choose and load; the host has loaded its own best checkpoint before, if it was to."""
        # After a SIGTERM there is little time, and the run is to go on: on all processes, as they stop together.
        if any(getattr(callback, "is_stopping", False) for callback in self.trainer.callback_handler.callbacks):
            return
        self.trainer.accelerator.wait_for_everyone()  # the process that saves may be at it still
        checkpoints = whole_checkpoints_in(str(args.output_dir))
        # one of a later step is of a run before, which was longer
        candidates = {path.name: path for path in checkpoints if _step_of(path) <= state.global_step}
        if any(list(candidates) != names for names in gather_object([list(candidates)])):
            raise ValueError(
                f"The processes do not find the same checkpoints in {args.output_dir}: write it where all of them "
                "read, or choose later, by hf-ext eval select."
            )
        if len(candidates) < 2:
            logger.warning(
                "Nothing to choose from: %d whole checkpoint(s) in %s. The weights stay as they are; save more often, "
                "or with a larger save_total_limit.",
                len(candidates),
                args.output_dir,
            )
            return
        selection = self._selection(args, candidates)
        (name,) = broadcast_object_list([selection.name])
        self._load(candidates[name])
        state.best_global_step = _step_of(candidates[name])
        state.best_metric = None  # that of another metric, and maybe of another checkpoint
        self.selection = selection
        logger.info("%s", selection.verdict())
        if args.should_save:
            selection.save(Path(str(args.output_dir)) / "selection", plot=False)

    def _selection(self, args: TrainingArguments, candidates: dict[str, Path]) -> Selection:
        trainer = self.trainer
        settings: dict[str, Any] = {"items": self.items, "show_progress": not args.disable_tqdm} | self.settings
        measure = self.evaluate
        if measure is None:
            measure = self._losses(args)
            settings |= {"items": range(len(measure.rows.ids)), "greater_is_better": False}
        model = trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)
        loaded_path: Path | None = None

        def evaluate(checkpoint: Path, items: Any) -> ArrayLike:
            nonlocal loaded_path
            if checkpoint != loaded_path:
                self._load(checkpoint)
                loaded_path = checkpoint
            with ready(model), torch.no_grad():
                return measure(model, items)

        return select_best(candidates, evaluate, **settings)

    def _losses(self, args: TrainingArguments) -> ModelLosses:
        from trl import SFTConfig

        trainer = self.trainer
        tokenizer: Any = getattr(trainer.processing_class, "tokenizer", trainer.processing_class)
        config = args if isinstance(args, SFTConfig) else None
        max_length = getattr(args, "max_length", None) or 1024
        rows = rows_to_score(trainer.model, tokenizer, self.items, None, None, config, max_length)
        return ModelLosses(rows["target"], tokenizer, args.per_device_eval_batch_size)

    def _load(self, checkpoint: Path) -> None:
        load_checkpoint(self.trainer, str(checkpoint))


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])
