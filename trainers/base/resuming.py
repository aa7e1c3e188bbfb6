"""Going on after an interruption: one checkpoint for all processes, SIGTERM, and folders that change at once."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_jit_checkpoint import JITCheckpointCallback
from transformers.trainer_utils import SaveStrategy

from hf_ext.guards.checkpoints import DamagedCheckpointError, choose_newest, require_whole

logger = logging.getLogger(__name__)

SIGTERM_STATUS = 143  # 128 + 15, as a shell reports a process that ended by SIGTERM


# --- which checkpoint ------------------------------------------------------------------------------------------------


def agreed_checkpoint(trainer: Trainer, resume_from: str | bool) -> str:
    """
    The whole checkpoint to resume from, the same on every process.

    One process a machine reads the files: they may be large, and machines may not share a disk.

    Raises:
        DamagedCheckpointError: if the checkpoint named is damaged, or none is whole.
        ValueError: if there is no checkpoint, or machines hold different ones.
    """
    verdict = _examined(trainer.args.output_dir, resume_from) if trainer.is_local_process_zero() else None
    verdicts = [entry for entry in gather_object([verdict]) if entry is not None]
    for entry in verdicts:
        if entry["error"] is not None:
            raise entry["error"]
    names = {entry["name"] for entry in verdicts}
    if len(names) > 1:
        raise ValueError(
            f"The newest whole checkpoint is not the same on every machine: {sorted(names)}. Copy one to all, and "
            "name it in resume_from_checkpoint."
        )
    return str(Path(trainer.args.output_dir) / names.pop()) if resume_from is True else str(resume_from)


def _examined(folder: str, resume_from: str | bool) -> dict[str, Any]:
    """Name of the checkpoint to resume from, or the error that says why there is none: every process must get it."""
    try:
        if resume_from is not True:
            warning = require_whole(str(resume_from), folder)
            if warning is not None:
                logger.warning(warning)
            return {"name": str(resume_from), "error": None}
        checkpoint, damages = choose_newest(folder)
        for damage in damages:
            logger.warning(f"Damaged checkpoint not used: {damage}. Resuming from {checkpoint} instead.")
        return {"name": checkpoint.name, "error": None}
    except (DamagedCheckpointError, ValueError) as error:
        return {"name": None, "error": error}


# --- SIGTERM ---------------------------------------------------------------------------------------------------------


class StoppedBySigterm(SystemExit):
    """Raised out of `train` after a SIGTERM, once the checkpoint is whole; its exit status is 143."""

    def __init__(self) -> None:
        super().__init__(SIGTERM_STATUS)


class StopOnSigterm(JITCheckpointCallback):
    """
    Checkpoint and stop after a SIGTERM, where a resumed run goes on exactly as if there had been none.

    The host's callback saves as soon as it can: before an evaluation that is due, or between a step's forward and its
    update, when the random numbers of that step are spent. This one asks for an ordinary save, at the end of a step
    (after what is due there), and all processes agree on the step.
    """

    def __init__(self) -> None:
        super().__init__()
        self.is_stopping = False

    @classmethod
    def take_over(cls, trainer: Trainer) -> StopOnSigterm:
        """
        Put one in the place of the host's own, with its signal handler.

        Raises:
            ValueError: if `save_strategy="best"`, under which an evaluation decides whether anything is saved.
        """
        host_callback = trainer.pop_callback(JITCheckpointCallback)
        if trainer.args.save_strategy == SaveStrategy.BEST:
            # The host has set its signal handler, and sets it back at the end of training. Left there, the process
            # and every worker forked from it would ignore SIGTERM.
            host_callback.on_train_end(trainer.args, trainer.state, trainer.control)
            raise ValueError(
                f"{type(trainer).__name__} does not support enable_jit_checkpoint with save_strategy='best', under "
                "which an evaluation decides whether anything is saved: use 'steps', 'epoch' or 'no'."
            )
        callback = cls()
        callback.trainer = host_callback.trainer
        callback.jit_manager = host_callback.jit_manager
        trainer.add_callback(callback)
        return callback

    def exit_if_stopped(self) -> None:
        """
        End the process after a training that was stopped.

        Raises:
            StoppedBySigterm: if it was.
        """
        if self.is_stopping:
            self.is_stopping = False
            step = self.trainer.state.global_step
            logger.warning(
                f"SIGTERM: stopped after step {step}; checkpoint-{step} in {self.trainer.args.output_dir} is whole. "
                "The same command with resume_from_checkpoint=True goes on from there."
            )
            raise StoppedBySigterm

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Nothing: a step that has begun is finished."""

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Nothing: a step that has begun is finished."""

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop here if it is asked for; at an epoch's last step the epoch's end comes first, and saves."""
        if self._is_asked():
            self.is_stopping = True
            control.should_training_stop = True
            control.should_save = control.should_save or not float(state.epoch).is_integer()

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Save at the end of an epoch; in its middle, where the loop was left, all is done."""
        self.is_stopping = self.is_stopping or self._is_asked()
        if not self.is_stopping:
            return
        control.should_training_stop = True
        control.should_save = float(state.epoch).is_integer()
        control.should_evaluate = control.should_evaluate and control.should_save

    def _is_asked(self) -> bool:
        if self.is_stopping:
            return True
        accelerator = self.trainer.accelerator
        flag = torch.tensor([self.jit_manager.is_checkpoint_requested], dtype=torch.int32, device=accelerator.device)
        return bool(accelerator.gather(flag).any())


# --- folders ---------------------------------------------------------------------------------------------------------


def size_of(folder: Path) -> int:
    """Bytes of every file below `folder`."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
