"""What every method in rounds does: go on with a training, and push what came of the last."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_ext.guards.checkpoints import newest_whole
from hf_ext.hub.push import push_folder

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo
    from transformers import Trainer

    from hf_ext.trainers.consensus.config import ConsensusConfig
    from hf_ext.trainers.infopo.config import InfoPOConfig
    from hf_ext.trainers.moe_lora.config import LoraMixtureConfig

logger = logging.getLogger(__name__)


def train_from_newest(trainer: Trainer) -> None:
    """Train from the newest whole checkpoint in the trainer's `output_dir`, or from the start where there is none."""
    checkpoint, damages = newest_whole(trainer.args.output_dir)
    for damage in damages:
        logger.warning("Damaged checkpoint not used: %s.", damage)
    trainer.accelerator.wait_for_everyone()  # all have looked before one trains on and removes what it finds old
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))


def repo_name(args: ConsensusConfig | InfoPOConfig | LoraMixtureConfig) -> str:
    """Name of the result on the Hub: `hub_model_id`, or that of the folder."""
    return args.hub_model_id or Path(args.output_dir).absolute().name


def push_result(folder: Path, args: ConsensusConfig | InfoPOConfig | LoraMixtureConfig, **kwargs: Any) -> CommitInfo:
    """
    Push the model in `folder` as the arguments of training say; the card on the Hub is merged with its own.

    Args:
        folder (`Path`):
            What is pushed.
        args ([`ConsensusConfig`], [`InfoPOConfig`] or [`LoraMixtureConfig`]):
            Their `hub_model_id`, `hub_token`, `hub_private_repo` and `model_license` count.
        **kwargs:
            As in [`~hf_ext.hub.push.push_folder`]; they come before what `args` say.

    Raises:
        PushError: if the Hub did not take it.
    """
    defaults = {
        "token": args.hub_token,
        "private": args.hub_private_repo,
        "merge_card": True,
        "license": args.model_license,
    }
    return push_folder(folder, repo_name(args), **(defaults | kwargs))
