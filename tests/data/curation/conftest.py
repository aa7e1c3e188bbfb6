"""Real documents, and both ways of counting."""

from __future__ import annotations

import gzip
import importlib
import json

import pytest

from hf_ext.data.curation import words


@pytest.fixture(scope="session")
def text_docs(real_data):
    """The 600 documents of web_docs, with what DCLM's own mappers and datatrove said of each."""
    folder = real_data / "web_docs"
    with gzip.open(folder / "text_docs.jsonl.gz", "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    with gzip.open(folder / "peer_verdicts.jsonl.gz", "rt", encoding="utf-8") as lines:
        verdicts = {row["id"]: row for row in map(json.loads, lines)}
    return [row | verdicts[row["id"]] for row in rows]


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
