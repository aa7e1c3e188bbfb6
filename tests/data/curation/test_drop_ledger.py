"""The drop ledger gives back what was written, and says why a document went."""

from __future__ import annotations

from collections import Counter

import pyarrow.parquet as pq
import pytest

from hf_ext.data.curation.drop_ledger import DropLedger, DropRecord, drop_table

RECORDS = [
    DropRecord("a", "x.jsonl", 0, "gopher_quality", "word_count", 3.0, 50.0),
    DropRecord("b", "x.jsonl", 4, "gopher_quality", "empty"),
    DropRecord("a", "y ü/..z.jsonl", 2, "bloom", "duplicate", 0.9, 0.8, "b"),
]


@pytest.fixture
def ledger(tmp_path):
    (tmp_path / "drops").mkdir()
    pq.write_table(drop_table(RECORDS[:2]), tmp_path / "drops" / "drops-00000.parquet")
    pq.write_table(drop_table(RECORDS[2:]), tmp_path / "drops" / "drops-00001.parquet")
    return DropLedger.read(tmp_path)


def test_a_ledger_gives_back_its_records_in_order(ledger):
    assert list(ledger) == RECORDS
    assert len(ledger) == 3


def test_every_document_of_an_id_is_explained(ledger):
    assert ledger.explain("a") == [RECORDS[0], RECORDS[2]]
    assert ledger.explain("c") == []


def test_counts_are_those_of_the_records(ledger):
    assert ledger.counts() == Counter((record.step, record.rule) for record in RECORDS)


def test_a_folder_without_a_ledger_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no drop ledger"):
        DropLedger.read(tmp_path)
