"""Real documents, and both ways of counting."""

from __future__ import annotations

import importlib

import pytest

from hf_ext.data.curation import words
from tests.data.curation import documents


@pytest.fixture(scope="session")
def text_docs(real_data):
    """The 600 documents of web_docs, with what DCLM's own mappers and datatrove said of each."""
    return documents.text_docs(real_data)


@pytest.fixture(params=["kernel", "plain"])
def counters(request, monkeypatch):
    """Each way of counting in turn, in every step."""
    if request.param == "kernel":
        pytest.importorskip("numba")
    module = importlib.import_module(f"hf_ext.data.curation.{request.param}")
    for name in ("words", "quality", "repetition", "lines"):
        monkeypatch.setattr(importlib.import_module(f"hf_ext.data.curation.{name}"), "counters", lambda: module)
    assert words.counters() is module
    return module
