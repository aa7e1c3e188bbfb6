"""What a training step showed of its sources, brought back to the mixture; and the mixture's part in checkpoints."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_ext.bandits.mixture import SideObservationMixture

KEY = "hf_ext.mixture"  # in `state.stateful_callbacks`; `on_save` comes when a checkpoint is sealed already


class MixtureFeedbackCallback(TrainerCallback):
    """
    Tells a mixture what its micro-batches have earned, and restores it where a training goes on from a checkpoint.

    [`with_mixture`] adds one to its trainers.

    Args:
        mixture ([`SideObservationMixture`]):
            The mixture that the rows are drawn from.

    Attributes:
        alignments (`list[float]`):
            Cosine of the angle between each micro-batch's gradient and the target's, in the step that was observed
            last.
    """

    def __init__(self, mixture: SideObservationMixture) -> None:
        self.mixture = mixture
        self.alignments: list[float] = []
        self._rewards: list[float] = []

    def observe(self, rewards: list[float]) -> None:
        """Rewards of the micro-batches of the step that is being taken; the same on every process."""
        self._rewards = rewards

    def save(self, state: TrainerState) -> None:
        """Put the mixture into the state that the next checkpoint holds."""
        state.stateful_callbacks[KEY] = self.mixture.state_dict()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """
        Begin anew, or go on with what a checkpoint holds.

        Raises:
            ValueError: if the checkpoint is of a training without a mixture, or of one with other sources or settings.
        """
        self._rewards = []
        stored = (state.stateful_callbacks or {}).get(KEY)
        if stored is not None:
            self.mixture.load_state_dict(stored)
        elif state.global_step > 0:
            raise ValueError(
                "The checkpoint is of a training without a mixture: which rows came before is not known. Start anew "
                "from its weights, without resuming."
            )
        else:
            self.mixture.begin()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Tell the mixture what was observed in the step that has just been taken."""
        self.mixture.num_trained = state.global_step * self.mixture.batches_per_step
        if self._rewards:
            self.mixture.tell(state.global_step - 1, self._rewards)
            self._rewards = []
