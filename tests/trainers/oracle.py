"""What the trainers' numbers must be: loops over documents, full logits, no batching, no code of the package."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass
class Document:
    """One document: ids, labels (-100 where not supervised) and one weight per token."""

    ids: list[int]
    labels: list[int]
    weights: list[float]


def document(
    ids: Sequence[int], labels: Sequence[int] | None = None, weight: float | Sequence[float] = 1.0
) -> Document:
    """A document; without labels every token is supervised, a number is every token's weight."""
    weights = [float(weight)] * len(ids) if isinstance(weight, int | float) else [float(w) for w in weight]
    return Document(list(ids), list(ids if labels is None else labels), weights)


@torch.no_grad()
def token_losses(model: Any, doc: Document) -> list[tuple[float, float]]:
    """(loss in nats, weight) of every supervised token, by a full log-softmax in float64 of the document alone."""
    was_training = model.training
    model.eval()
    log_probs = torch.log_softmax(model(torch.tensor([doc.ids])).logits[0].double(), dim=-1)
    model.train(was_training)
    found = []
    for t in range(1, len(doc.ids)):
        if doc.labels[t] != -100:
            found.append((-float(log_probs[t - 1, doc.labels[t]]), doc.weights[t]))
    return found


def step_loss(model: Any, docs: Sequence[Document], normalize: str = "weights", reduction: str = "token") -> float:
    """The loss of one optimiser step over these documents."""
    numerator = denominator = 0.0
    for doc in docs:
        losses = token_losses(model, doc)
        share = 1.0 / len(losses) if reduction == "row" and losses else 1.0
        for nll, weight in losses:
            numerator += share * weight * nll
            if normalize == "weights":
                denominator += share * weight
            else:
                denominator += share
    return numerator / denominator
