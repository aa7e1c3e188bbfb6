"""Exemplars for RARe: the pool, the ways to choose from it, the text a retriever reads. Imports no torch."""

from __future__ import annotations

from hf_ext.data.exemplars.augment import (
    AddInContextExamples,
    ExampleDraw,
    add_in_context_examples,
    augment,
)
from hf_ext.data.exemplars.formatter import Formatted, RareFormatter
from hf_ext.data.exemplars.retrievers import (
    Bm25Retriever,
    DenseRetriever,
    FixedRetriever,
    HybridRetriever,
    RandomRetriever,
)
from hf_ext.data.exemplars.rows import NOTHING_EXCLUDED, Exclude, Exemplar, Target
from hf_ext.data.exemplars.store import ExemplarStore
from hf_ext.data.exemplars.text import TokenCounter, WordSplitter

__all__ = [
    "NOTHING_EXCLUDED",
    "AddInContextExamples",
    "Bm25Retriever",
    "DenseRetriever",
    "ExampleDraw",
    "Exclude",
    "Exemplar",
    "ExemplarStore",
    "FixedRetriever",
    "Formatted",
    "HybridRetriever",
    "RandomRetriever",
    "RareFormatter",
    "Target",
    "TokenCounter",
    "WordSplitter",
    "add_in_context_examples",
    "augment",
]
