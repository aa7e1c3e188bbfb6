"""The card of a saved model, from what its trainer knows."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from transformers import Trainer

from hf_ext.hub.cards import write_model_card
from hf_ext.method import Method, method_of_models, private_settings

# Facts of every run that a reader of the card asks for first.
COMMON = (
    "learning_rate",
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "lr_scheduler_type",
    "max_length",
    "packing",
    "seed",
)
HOSTS = ("trl.", "sentence_transformers.", "transformers.")


def card_settings(method: Method, config: type) -> list[str]:
    """
    The settings that a method's card shows: its host's that matter, its own, and those that every card shows.

    Args:
        method ([`~hf_ext.method.Method`]):
            The method.
        config (`type`):
            Its configuration, or one built on it.
    """
    host = next(base for base in config.__mro__ if base.__module__.startswith(HOSTS))
    stock = {field.name for field in fields(host)}
    own = method.card_settings or [field.name for field in fields(config) if field.name not in stock]
    # Neither places on the machine that trained, nor what the card says elsewhere.
    left_out = {*private_settings(), "model_license"}
    return [name for name in (*method.host_settings, *own, *COMMON) if name not in left_out]


class TrainerCard:
    """
    The card of a saved model, from what its trainer knows; a subclass tells more of its kind of model.

    Args:
        trainer ([`BaseTrainer`]):
            Its `forgetting_report` and `core_report`, where set, give the tables and the model-index entries.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer

    def write(
        self,
        folder: str,
        *,
        model_name: str | None = None,
        dataset_name: str | None = None,
        tags: str | list[str] | None = None,
    ) -> None:
        """
        Write `README.md` into `folder`: licence, base model, method, paper, settings, and what is known of the run.

        Args:
            folder (`str`):
                The folder of the saved model.
            model_name, dataset_name (`str`, *optional*), tags (`str` or `list[str]`, *optional*):
                As in `Trainer.create_model_card`.
        """
        trainer = self.trainer
        model_name = model_name or trainer.args.hub_model_id or Path(folder).resolve().name
        write_model_card(
            folder,
            method=trainer.method,
            base_model=self.base_model(),
            license=trainer.model_license,
            settings=self.settings(),
            dataset_name=dataset_name,
            report=trainer.forgetting_report,
            run=trainer.forgetting_run,
            core_report=trainer.core_report,
            tags=self.tags([tags] if isinstance(tags, str) else tags or []),
            model_name=model_name,
            **self.usage(model_name),
        )

    def base_model(self) -> str | None:
        """Name or folder of the model that was trained, as far as it is known."""
        return self.trainer.model.config.name_or_path or None

    def settings(self) -> dict[str, Any]:
        """The method's own settings, the common ones, the number of processes, what the run found: name to value."""
        args = self.trainer.args
        names = card_settings(method_of_models(self.trainer.method), type(args))
        values = {name: getattr(args, name) for name in names if hasattr(args, name)}
        settings = {name: getattr(value, "value", value) for name, value in values.items()}
        return settings | {"processes": self.trainer.accelerator.num_processes} | self.facts()

    def facts(self) -> dict[str, Any]:
        """Rows of the settings that only a finished run knows; the default knows none."""
        return {}

    def tags(self, tags: list[str]) -> list[str]:
        """The tags of the caller, and those of this kind of model."""
        return [*tags, *(self.trainer.model.model_tags or [])]

    def usage(self, model_name: str) -> dict[str, Any]:
        """What [`~hf_ext.hub.cards.write_model_card`] is told of the use: any of `usage`, `task` and `library`."""
        return {}
