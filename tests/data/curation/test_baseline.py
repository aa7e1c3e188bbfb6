"""The chain of DCLM-Baseline, step by step and on real texts."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace

import pytest

from hf_ext.data.curation.baseline import dclm_baseline
from hf_ext.data.curation.deduplication.bloom import BloomDeduplication
from hf_ext.data.curation.deduplication.exact import ExactDeduplication
from hf_ext.data.curation.drop_ledger import DropLedger
from hf_ext.data.curation.pipeline import curate


def test_the_steps_come_in_the_order_of_dclm(tmp_path):
    (tmp_path / "domains.txt").write_text("bad.com\n")
    lists = {"domains": str(tmp_path / "domains.txt")}
    names = ["extract", "url", "remove_urls", "language", "gopher_quality", "gopher_repetition", "line_rules"]
    steps = dclm_baseline(extract=True, bloom=BloomDeduplication(), classifier=ExactDeduplication(), **lists)
    assert [step.name for step in steps] == [*names, "bloom", "exact"]
    assert [step.name for step in dclm_baseline(language=None)] == [names[2], *names[4:]]
    literal = dclm_baseline(extract=True, replicate_bugs=True, **lists)
    differing = [step for step in literal if hasattr(step, "replicate_bugs")]
    assert all(step.replicate_bugs for step in differing)
    assert [replace(step, replicate_bugs=False) if step in differing else step for step in literal] == [*steps[:7]]


@pytest.mark.real
def test_real_texts_that_dclm_keeps_are_kept_but_two_of_upper_case(tmp_path, real_data):
    folder = real_data / "web_docs"
    steps = dclm_baseline(language=None, replicate_bugs=True)
    counts = curate(folder / "text_docs.jsonl.gz", steps, output=tmp_path, id_column="id", show_progress=False)
    assert (counts.rows_read, counts.rows_kept) == (600, 540)
    with gzip.open(folder / "peer_verdicts.jsonl.gz") as file:
        verdicts = [json.loads(line) for line in file]
    ledger = list(DropLedger.read(tmp_path))
    upper_case = {record.id for record in ledger if record.rule == "uppercase_lines"}
    assert len(upper_case) == 2
    assert {record.id for record in ledger} - upper_case == {row["id"] for row in verdicts if row["dclm"] is not None}
