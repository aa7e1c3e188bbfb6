"""The card of a retriever trained with exemplars; no row of the training data is on it."""

from __future__ import annotations

from typing import Any

from hf_ext.guards.markdown import python_literal
from hf_ext.trainers.base.card import TrainerCard

USAGE = """\
```python
from sentence_transformers import {encoder}

model = {encoder}({model_name})
queries = model.encode_query(["What does vitamin D do?"])
documents = model.encode_document(["Vitamin D helps the body take up calcium."])
print(model.similarity(queries, documents))
```"""

WITH_EXEMPLARS = """

That reads the bare query. With exemplars from a pool of your own (`pip install hf-ext[retrieval]`):

```python
from hf_ext import ExemplarStore, RareEncoder

model = RareEncoder({model_name}, exemplars=ExemplarStore.from_dataset(past_queries_with_documents))
queries = model.encode_query(["What does vitamin D do?"])
```"""


class RetrieverCard(TrainerCard):
    """The card of RARe's trainers: also pools, lengths, and how to read queries with exemplars."""

    def base_model(self) -> str | None:
        """Name or folder of the model that was trained, as far as it is known."""
        model = self.trainer.model
        name = getattr(model.model_card_data, "base_model", None)
        config = getattr(model[0], "config", None)
        return name or getattr(config, "name_or_path", None) or None

    def facts(self) -> dict[str, Any]:
        """Pools and lengths, and the shares that were logged last."""
        trainer = self.trainer
        facts: dict[str, Any] = {}
        for name, pool in trainer.pools.items():
            facts[f"exemplars{f' of {name}' if name else ''}"] = f"{len(pool.store):,}"
        facts["longest query, tokens"] = trainer.max_query_tokens
        for entry in reversed(trainer.state.log_history):
            if "rare/augmented_share" in entry:
                facts |= {name: round(value, 4) for name, value in entry.items() if name.startswith("rare/")}
                break
        return facts

    def tags(self, tags: list[str]) -> list[str]:
        """The tags of the caller after those of the encoder's kind."""
        return ["sparse-encoder" if self._is_sparse() else "sentence-transformers", "in-context-retrieval", *tags]

    def usage(self, model_name: str) -> dict[str, Any]:
        """How to encode bare queries and, with a dense encoder, queries with exemplars."""
        name = python_literal(model_name)
        usage = USAGE.format(encoder=self.trainer.encoder_class.__name__, model_name=name)
        if self._is_sparse():
            return {"usage": usage, "task": "feature-extraction"}
        return {"usage": usage + WITH_EXEMPLARS.format(model_name=name)}

    def _is_sparse(self) -> bool:
        return self.trainer.encoder_class.__name__ == "SparseEncoder"
