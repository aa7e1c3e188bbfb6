"""The card of a trainer of the weighted family, from what the trainer knows."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

from hf_ext.hub.cards import write_model_card

if TYPE_CHECKING:
    from hf_ext.trainers.base.trainer import BaseTrainer

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
HOSTS = ("trl.", "sentence_transformers.")
# Places on the machine that trained, and what the card says elsewhere.
LEFT_OUT = ("original_cache_dir", "bad_rows_path", "context_free_path", "model_license")


def own_settings(config: type) -> list[str]:
    """Fields of a method's config that its host library's has not."""
    host = next(base for base in config.__mro__ if base.__module__.startswith(HOSTS))
    stock = {field.name for field in fields(host)}
    return [field.name for field in fields(config) if field.name not in stock and field.name not in LEFT_OUT]


def settings_of(trainer: BaseTrainer) -> dict[str, Any]:
    """The method's own settings, the common ones, the number of processes, what the run found: name to value."""
    own = own_settings(type(trainer.args))
    names = [name for name in (*getattr(trainer, "card_settings", ()), *own, *COMMON) if hasattr(trainer.args, name)]
    values = {name: getattr(trainer.args, name) for name in names}
    facts = {name: getattr(value, "value", value) for name, value in values.items()}
    return facts | {"processes": trainer.accelerator.num_processes} | getattr(trainer, "card_facts", dict)()


def card_of_trainer(
    trainer: BaseTrainer,
    folder: str,
    *,
    model_name: str | None = None,
    dataset_name: str | None = None,
    tags: str | list[str] | None = None,
) -> None:
    """
    Write `README.md` into `folder`: licence, base model, method, paper, settings, and the forgetting table once known.

    Args:
        trainer ([`BaseTrainer`]):
            Its `forgetting_report`, if set, gives the table and the model-index entries.
        folder (`str`):
            The folder of the saved model.
        model_name, dataset_name (`str`, *optional*), tags (`str` or `list[str]`, *optional*):
            As in `Trainer.create_model_card`.
    """
    tags = [tags] if isinstance(tags, str) else tags or []
    write_model_card(
        folder,
        method=trainer.method,
        base_model=trainer.model.config.name_or_path or None,
        license=trainer.args.model_license,
        settings=settings_of(trainer),
        dataset_name=dataset_name,
        report=trainer.forgetting_report,
        run=trainer.forgetting_run,
        tags=[*tags, *trainer.model.model_tags] if trainer.model.model_tags else tags,
        model_name=model_name or trainer.args.hub_model_id,
    )
