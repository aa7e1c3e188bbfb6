"""Our steps inside a datatrove pipeline: documents, reasons and statistics are those of the steps by themselves."""

from __future__ import annotations

import pytest

pytest.importorskip("datatrove")

from datatrove.data import Document
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.writers import JsonlWriter

from hf_ext.data.curation.backends.datatrove import CurationFilter
from hf_ext.data.curation.deduplication.exact import ExactDeduplication
from hf_ext.data.curation.quality import GopherQuality
from tests.peers.steps import Shorten


def documents() -> list[Document]:
    texts = ["ab", "abc", "d" * 50, ""]
    return [Document(text=text, id=str(i), metadata={"url": f"u{i}"}) for i, text in enumerate(texts)]


def test_a_filter_keeps_rewrites_and_gives_the_reason():
    batch = documents()
    verdicts = CurationFilter([Shorten()]).filter_batch(batch)
    assert verdicts == [(False, "shorten:short"), True, True, (False, "shorten:empty")]
    assert [document.text for document in batch[1:3]] == ["abc", "d" * 40]
    assert batch[2].metadata == {"url": "u2", "length": 50}
    assert batch[0].metadata == {"url": "u0", "drop_value": 2.0, "drop_threshold": 3.0}
    assert CurationFilter([Shorten()]).filter(documents()[0]) == (False, "shorten:short")


def test_a_pipeline_writes_what_stays_and_what_goes_with_its_reason(tmp_path):
    import gzip
    import json

    step = CurationFilter(
        [Shorten(), GopherQuality(min_words=1, min_stop_words=0)], JsonlWriter(str(tmp_path / "out"))
    )
    pipeline = [documents(), step, JsonlWriter(str(tmp_path / "in"))]
    LocalPipelineExecutor(pipeline, logging_dir=str(tmp_path / "logs")).run()

    def rows(name: str) -> list[dict]:
        with gzip.open(tmp_path / name / "00000.jsonl.gz", "rt") as lines:
            return [json.loads(line) for line in lines]

    assert [row["id"] for row in rows("in")] == ["1"]  # a word of 40 letters is too long on average
    reasons = {row["id"]: row["metadata"]["filter_reason"] for row in rows("out")}
    assert reasons == {"0": "shorten:short", "2": "gopher_quality:mean_word_len", "3": "shorten:empty"}


def test_a_step_over_the_whole_set_is_refused():
    with pytest.raises(TypeError, match="ExactDeduplication needs every document"):
        CurationFilter([ExactDeduplication()])
