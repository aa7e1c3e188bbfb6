"""The card of a classifier trained on noisy labels."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hf_ext.guards.markdown import python_literal
from hf_ext.hub.cards import write_model_card
from hf_ext.trainers.base.card import COMMON

if TYPE_CHECKING:
    from hf_ext.trainers.consensus.trainer import NoisyLabels

# Class name of the model ends in -> task on the Hub, arguments of the pipeline, an input.
TASKS = {
    "ForSequenceClassification": ("text-classification", '"Where is my card?"'),
    "ForTokenClassification": ("token-classification", '"Ada lives in London."'),
    "ForImageClassification": ("image-classification", '"picture.png"'),
}
USAGE = """\
```python
from transformers import pipeline

classify = pipeline("{task}", model={model_name})
print(classify({example}))
```"""
OWN = ("mode", "round_loss", "budget", "rounds", "cross_fit", "reinit")


def card_of_classifier(
    trainer: NoisyLabels,
    folder: str,
    *,
    model_name: str | None = None,
    dataset_name: str | None = None,
    tags: str | list[str] | None = None,
) -> None:
    """
    Write `README.md` into `folder`: licence, base model, paper, channel, what was chosen, accuracy from noisy labels.

    Args:
        trainer ([`NoisyLabels`]):
            Its `card_facts_of_run` are the recipe's facts: channel, strategy, estimate.
        folder (`str`):
            The folder of the saved model.
        model_name, dataset_name (`str`, *optional*), tags (`str` or `list[str]`, *optional*):
            As in `Trainer.create_model_card`.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    kind = next((end for end in TASKS if type(model).__name__.endswith(end)), None)
    task, example = TASKS[kind] if kind else (getattr(model, "hub_task", "text-classification"), '"Where is it?"')
    name = model_name or trainer.card_name or trainer.args.hub_model_id or Path(folder).resolve().name
    usage = getattr(model, "usage", USAGE).format(task=task, model_name=python_literal(name), example=example)
    config = getattr(model, "config", None)
    own = {name: getattr(trainer.args, name) for name in (*OWN, *COMMON) if hasattr(trainer.args, name)}
    settings = {key: getattr(value, "value", value) for key, value in own.items()}
    write_model_card(
        folder,
        method="consensus",
        base_model=getattr(model, "base_model_name", None) or getattr(config, "name_or_path", None) or None,
        license=getattr(trainer.args, "model_license", None),
        settings=trainer.card_facts_of_run | settings | {"processes": trainer.accelerator.num_processes},
        dataset_name=dataset_name,
        tags=["label-noise", *([tags] if isinstance(tags, str) else tags or [])],
        model_name=name,
        usage=usage,
        task=task,
        library=getattr(model, "hub_library", None),
    )
