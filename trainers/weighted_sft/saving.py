"""What a trainer of ours saves and pushes: a stock folder with a card, and no pickle."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers import Trainer

from hf_ext.trainers.weighted_sft.card import card_of_trainer
from hf_ext.trainers.weighted_sft.push import prepare_repo, push_checkpoint, push_trainer

if TYPE_CHECKING:
    from concurrent.futures import Future

    from huggingface_hub import CommitInfo

    from hf_ext.evaluation.report import ForgettingReport


class SavesWithCard(Trainer):
    """
    Saving and pushing for a trainer whose class names its `method`; stands before the host trainer in its bases.

    Attributes:
        forgetting_report ([`ForgettingReport`], *optional*), forgetting_arm (`str`, *optional*):
            Set them before saving, and the card carries the table and the numbers of that arm.
    """

    method: str
    forgetting_report: ForgettingReport | None = None
    forgetting_arm: str | None = None

    def create_model_card(
        self, model_name: str | None = None, dataset_name: str | None = None, tags: str | list[str] | None = None
    ) -> None:
        """Write a card with licence, method, paper, settings and, once known, the forgetting table."""
        if self.is_world_process_zero():
            card_of_trainer(self, self.args.output_dir, model_name=model_name, dataset_name=dataset_name, tags=tags)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save model, tokenizer and card, no pickle; with `push_to_hub=True` then push them, as the host does."""
        super().save_model(output_dir, _internal_call=True)
        if self.is_world_process_zero():
            card_of_trainer(self, output_dir or self.args.output_dir)
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        create_pr: bool = False,
        **kwargs: Any,
    ) -> CommitInfo | Future | None:
        """
        Save into `output_dir`, then push it to `hub_model_id`: retried, never twice, without pickles or training rows.

        Args:
            commit_message, blocking, token, revision, private:
                As in [`~transformers.Trainer.push_to_hub`].
            create_pr (`bool`, *optional*, defaults to `False`):
                Whether to open a pull request instead of committing to `main`.
            **kwargs:
                For [`create_model_card`]: `model_name`, `dataset_name`, `tags`.

        Returns:
            `CommitInfo`, or a `Future` of it unless `blocking`; `None` on processes other than the main one.

        Raises:
            PushError: the push failed for good; the message says why and that everything is in `output_dir`.
        """
        return push_trainer(
            self,
            commit_message or "End of training",
            blocking=blocking,
            token=token,
            revision=revision,
            private=private,
            create_pr=create_pr,
            card=kwargs,
        )

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Make the repository `hub_model_id` unless it is there, with retries."""
        prepare_repo(self, token, private)

    def push_checkpoint(self, checkpoint: str) -> None:
        """Push a checkpoint's model beside training, as `hub_strategy` says; the states to resume from stay here."""
        push_checkpoint(self, checkpoint)
