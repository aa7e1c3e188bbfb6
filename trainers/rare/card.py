"""The card of a retriever trained with exemplars; no row of the training data is on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hf_ext.guards.markdown import python_literal
from hf_ext.hub.cards import write_model_card
from hf_ext.trainers.base.card import settings_of

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


def base_of(trainer: Any) -> str | None:
    """Name or folder of the model that was trained, as far as it is known."""
    model = trainer.model
    named = getattr(model.model_card_data, "base_model", None)
    config = getattr(model[0], "config", None)
    return named or getattr(config, "name_or_path", None) or None


def facts_of(trainer: Any) -> dict[str, Any]:
    """Pools and lengths, and the last logged shares."""
    facts: dict[str, Any] = {}
    for name, pool in trainer.pools.items():
        facts[f"exemplars{f' of {name}' if name else ''}"] = f"{len(pool.store):,}"
    facts["longest query, tokens"] = trainer.max_query_tokens
    for entry in reversed(trainer.state.log_history):
        if "rare/augmented_share" in entry:
            facts |= {name: round(value, 4) for name, value in entry.items() if name.startswith("rare/")}
            break
    return facts


def card_of_retriever(
    trainer: Any,
    folder: str,
    *,
    model_name: str | None = None,
    dataset_name: str | None = None,
    tags: str | list[str] | None = None,
) -> None:
    """
    Write `README.md` into `folder`: licence, base model, method, paper, settings, pool.

    Args:
        trainer ([`RareTrainer`] or another of this folder):
            What was trained.
        folder (`str`):
            The folder of the saved model.
        model_name, dataset_name (`str`, *optional*), tags (`str` or `list[str]`, *optional*):
            As in `Trainer.create_model_card`.
    """
    encoder = trainer.encoder_class.__name__
    sparse = encoder == "SparseEncoder"
    name = model_name or trainer.args.hub_model_id or Path(folder).resolve().name
    usage = USAGE.format(encoder=encoder, model_name=python_literal(name))
    write_model_card(
        folder,
        method=trainer.method,
        base_model=base_of(trainer),
        license=trainer.args.model_license,
        settings=settings_of(trainer) | facts_of(trainer),
        dataset_name=dataset_name,
        tags=["sparse-encoder" if sparse else "sentence-transformers", "in-context-retrieval"]
        + ([tags] if isinstance(tags, str) else tags or []),
        model_name=name,
        usage=usage if sparse else usage + WITH_EXEMPLARS.format(model_name=python_literal(name)),
        task="feature-extraction" if sparse else None,
    )
