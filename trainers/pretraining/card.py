"""The card of a pretrained model."""

from __future__ import annotations

from typing import Any

from hf_ext.trainers.base.card import TrainerCard
from hf_ext.trainers.pretraining.architecture import num_parameters


class PretrainingCard(TrainerCard):
    """The card of a pretrained model: its size, and the tokens that it saw."""

    def facts(self) -> dict[str, Any]:
        """Parameters, and tokens of the steps so far."""
        trainer = self.trainer
        total, _ = num_parameters(trainer.accelerator.unwrap_model(trainer.model))
        return {
            "parameters": f"{total:,}",
            "tokens": f"{trainer.state.global_step * trainer.args.tokens_per_step:,}",
        }
