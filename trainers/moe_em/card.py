"""The card of a mixture of experts."""

from __future__ import annotations

from typing import Any

from hf_ext.guards.markdown import python_literal
from hf_ext.trainers.base.card import TrainerCard
from hf_ext.trainers.moe_em import METHOD

TEXT_USAGE = """\
```python
import hf_ext  # transformers knows this kind of model from here on
from transformers import pipeline

predict = pipeline("text-classification", model={model_name})
print(predict("Where is my card?"))
```

`encoder/` in this repository is the encoder alone, which opens without hf-ext."""
FEATURE_USAGE = """\
```python
import hf_ext  # transformers knows this kind of model from here on
import torch
from transformers import AutoModelForSequenceClassification

model = AutoModelForSequenceClassification.from_pretrained({model_name})
print(model(embeddings=torch.zeros(1, model.config.input_dim)).logits)
```"""


class MixtureCard(TrainerCard):
    """The card of a mixture: its encoder, what the fit came to, and how the rows are divided."""

    def base_model(self) -> str | None:
        """Name or folder of the encoder, as far as it is known."""
        encoder = self.trainer.model.encoder
        return None if encoder is None else encoder.config.name_or_path or None

    def facts(self) -> dict[str, Any]:
        """Experts and, of a fit, what it came to."""
        facts: dict[str, Any] = {"expert_type": self.trainer.model.config.expert_type}
        result = self.trainer.fit_result
        if result is None:
            return facts
        return facts | {
            "iterations": f"{result.iterations:,}",
            "passes over the rows, of all restarts": f"{result.passes:,.1f}",
            "stopped by": result.stop_reason,
            "ridge of the fit": f"{result.ridge:g}",
            "nats a row on the training rows": f"{result.nll:.4f}",
            "share of each expert": ", ".join(f"{share:.1%}" for share in result.shares.tolist()),
        }

    def tags(self, tags: list[str]) -> list[str]:
        """The tags of the caller after that of the method."""
        return [*METHOD.card_tags, *tags]

    def usage(self, model_name: str) -> dict[str, Any]:
        """The stock pipeline, or without a tokenizer the model on features."""
        name = python_literal(model_name)
        if self.trainer.model.encoder is None or not hasattr(self.trainer.processing_class, "get_vocab"):
            return {"usage": FEATURE_USAGE.format(model_name=name)}
        return {"usage": TEXT_USAGE.format(model_name=name)}
