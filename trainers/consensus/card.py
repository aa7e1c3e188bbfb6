"""The card of a classifier."""

from __future__ import annotations

from typing import Any

from torch.nn import Module

from hf_ext.guards.markdown import python_literal
from hf_ext.method import method_named
from hf_ext.trainers.base.card import TrainerCard

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


class ClassifierCard(TrainerCard):
    """
    The card of a classifier.

    On noisy labels: channel, what was chosen, accuracy read off noisy labels.
    """

    def write(self, folder: str, *, model_name: str | None = None, **names: Any) -> None:
        """Write `README.md` into `folder`; the recipe's name of the model is not that of the round's folder."""
        super().write(folder, model_name=model_name or self.trainer.card_name, **names)

    def base_model(self) -> str | None:
        """Name or folder of the model that was trained, as far as it is known."""
        model = self._model()
        config = getattr(model, "config", None)
        return getattr(model, "base_model_name", None) or getattr(config, "name_or_path", None) or None

    def settings(self) -> dict[str, Any]:
        """The recipe's facts (channel, strategy, estimate), its settings, the common ones: name to value."""
        return self.trainer.card_facts_of_run | super().settings()

    def tags(self, tags: list[str]) -> list[str]:
        """The tags of the caller after that of the method."""
        return [*method_named(self.trainer.method).card_tags, *tags]

    def usage(self, model_name: str) -> dict[str, Any]:
        """The pipeline of the model's task, or what a head of ours says of itself."""
        model = self._model()
        kind = next((end for end in TASKS if type(model).__name__.endswith(end)), None)
        task, example = TASKS[kind] if kind else (getattr(model, "hub_task", "text-classification"), '"Where is it?"')
        usage = getattr(model, "usage", USAGE)
        return {
            "usage": usage.format(task=task, model_name=python_literal(model_name), example=example),
            "task": task,
            "library": getattr(model, "hub_library", None),
        }

    def _model(self) -> Module:
        return self.trainer.accelerator.unwrap_model(self.trainer.model)
