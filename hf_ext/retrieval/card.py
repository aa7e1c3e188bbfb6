"""The card of an encoder with exemplars: the pool, and how the repository is used with and without it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sentence_transformers.sentence_transformer.model_card import SentenceTransformerModelCardData

from hf_ext.guards.markdown import Markdown, code, escape, python_literal

START = "<!-- exemplars: start -->"
END = "<!-- exemplars: end -->"
TAGS = ("sentence-transformers", "sentence-similarity", "feature-extraction", "dense", "rare", "in-context-retrieval")


@dataclass
class RareModelCardData(SentenceTransformerModelCardData):
    """Card data of sentence-transformers, with the tags `rare` and `in-context-retrieval`."""

    tags: list[str] = field(default_factory=lambda: list(TAGS))


def section(model: Any) -> str:
    """Markdown on the exemplars of a [`RareEncoder`]: numbers and usage, never a row's text."""
    settings = model.effective_settings()
    name = python_literal(model.model_card_data.model_id or "user/model")
    size = f"{len(model.exemplars):,}" if model.exemplars is not None else "none"
    formatter = settings.formatter
    rows: dict[str, Any] = {
        "exemplars": Markdown(f"{size}, {code(model.exemplars_source or 'exemplars/')}"),
        "licence of the exemplars": settings.provenance.get("license", "unknown"),
        "shown to a query": settings.k,
        "chosen by": "none" if model.exemplars is None else type(model.exemplars.retriever).__name__,
        "tokens of a query, an exemplar's query, its document": (
            f"{formatter.max_tokens}, {formatter.max_example_query_tokens}, {formatter.max_example_document_tokens}"
        ),
        "share of the vector that comes from the text with exemplars": settings.example_weight,
        "tokens of exemplars enter a pooled vector": "yes" if settings.pool_examples else "no",
        "score of the nearest exemplar below which the query is read bare": settings.floor,
    }
    rows |= {f"training: {key}": value for key, value in settings.training.items()}
    rows |= {f"exemplars: {key}": value for key, value in settings.provenance.items() if key != "license"}
    table = "\n".join(f"| {escape(key)} | {escape(value)} |" for key, value in rows.items())
    return f"""\
{START}
## Exemplars

Queries may be read with *exemplars*, past queries with their documents. Three ways to use this repository:

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer({name})  # the bare query; nothing else to install
```

```python
from hf_ext import RareEncoder  # pip install hf-ext[retrieval]

model = RareEncoder({name})  # finds exemplars and reads them with the query
vectors, shown = model.encode_query(["a question"], return_examples=True)
```

```python
from hf_ext import QueryAugmenter  # strings only, for an endpoint that encodes

texts = QueryAugmenter.from_pretrained({name})(["a question"])
```

| | |
|---|---|
{table}

Whoever can change the exemplars can move the vector of every query near them: trust their owner as you trust that of
the weights.
{END}"""


def with_section(text: str, model: Any) -> str:
    """A card's text with the section in place: the old one replaced, else at the end."""
    if START in text and END in text:
        beginning, _, remainder = text.partition(START)
        return beginning + section(model) + remainder.partition(END)[2]
    return text.rstrip("\n") + "\n\n" + section(model) + "\n"
