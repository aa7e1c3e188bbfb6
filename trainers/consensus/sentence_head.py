"""A sentence-transformers encoder with a linear head, as a model that transformers' `Trainer` trains."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

USAGE = """\
```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer({model_name})
logits = model.encode([{example}])  # one number a class
print(logits.argmax(axis=1))
```

The classes' names, in order, are in `labels.json`."""


class SentenceHead(nn.Module):
    """
    A sentence encoder and a linear layer on its embedding: logits of `num_labels` classes.

    Saved, it is a stock sentence-transformers folder whose last module is the head: `SentenceTransformer(folder)`
    opens it, and `encode` gives the logits.

    Args:
        encoder (`SentenceTransformer`):
            Ends in pooling, or in normalisation, before which the head then stands.
        num_labels (`int`):
            Classes.
        label_names (`Sequence[str]`, *optional*):
            Their names, saved as `labels.json`.
        freeze_encoder (`bool`, *optional*, defaults to `False`):
            Whether the head alone is trained.

    Raises:
        ValueError: if the names are of another number than the classes.

    | input | shape |
    |---|---|
    | `input_ids`, `attention_mask` (and `token_type_ids`) | `(batch, seq_len)` |
    | output `logits` | `(batch, num_labels)` |

    Requirements: sentence-transformers (`pip install hf-ext[retrieval]`).
    """

    usage = USAGE
    hub_task = "text-classification"
    hub_library = "sentence-transformers"

    def __init__(
        self,
        encoder: SentenceTransformer,
        num_labels: int,
        label_names: Sequence[str] | None = None,
        freeze_encoder: bool = False,
    ) -> None:
        super().__init__()
        from sentence_transformers.sentence_transformer.modules import Dense, Normalize

        modules = [module for module in encoder if not isinstance(module, Normalize)]
        head = Dense(encoder.get_embedding_dimension(), num_labels, activation_function=nn.Identity())
        self.modules_in_order = nn.ModuleList([*modules, head])
        self.tokenizer = encoder.tokenizer
        self.label_names = list(label_names or map(str, range(num_labels)))
        if len(self.label_names) != num_labels:
            raise ValueError(
                f"label_names has {len(self.label_names)} names, num_labels is {num_labels}: give one each."
            )
        self.base_model_name = getattr(encoder.model_card_data, "base_model", None)
        if freeze_encoder:
            for module in modules:
                module.requires_grad_(False)

    @classmethod
    def from_pretrained(cls, name: str | Path, num_labels: int, **kwargs: Any) -> SentenceHead:
        """
        The encoder of that name or folder, with a fresh head drawn from torch's random state.

        Args:
            name (`str` or `Path`):
                As for `SentenceTransformer`.
            num_labels (`int`), **kwargs:
                As for the class; `revision` is the encoder's.
        """
        from sentence_transformers import SentenceTransformer

        from hf_ext.guards.models import loading_model

        revision = kwargs.pop("revision", None)
        with loading_model(name):
            encoder = SentenceTransformer(str(name), device="cpu", revision=revision)
        return cls(encoder, num_labels, **kwargs)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Logits of a batch, under `logits`."""
        features = {"input_ids": input_ids, "attention_mask": attention_mask}
        if token_type_ids is not None:
            features["token_type_ids"] = token_type_ids
        for module in self.modules_in_order:
            features = module(features)
        return {"logits": features["sentence_embedding"]}

    def train(self, mode: bool = True) -> SentenceHead:
        """As of any module; a frozen part stays in evaluation, so that its dropout adds no noise."""
        super().train(mode)
        for module in self.modules_in_order:
            if mode and not any(p.requires_grad for p in module.parameters()):
                module.eval()
        return self

    def save_pretrained(self, folder: str | Path) -> None:
        """Save a stock sentence-transformers folder, and the classes' names."""
        import json

        from sentence_transformers import SentenceTransformer

        model = SentenceTransformer(modules=list(self.modules_in_order), device=str(self._device()))
        model.save_pretrained(str(folder), create_model_card=False, safe_serialization=True)
        text = json.dumps(self.label_names, ensure_ascii=False, indent=1) + "\n"
        (Path(folder) / "labels.json").write_text(text, encoding="utf-8")

    def _device(self) -> torch.device:
        return next(self.parameters()).device
