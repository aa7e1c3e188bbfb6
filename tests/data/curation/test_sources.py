"""Shards of every kind, damaged ones and odd names too: chunks depend on the content alone, and nothing is lost."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import re
import sys
from itertools import chain

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, load_dataset

from hf_ext.data.curation import sources
from hf_ext.data.curation.counts import CurationCounts
from hf_ext.data.curation.deduplication import BloomDeduplication, ExactDeduplication, MinHashDeduplication
from hf_ext.data.curation.drop_ledger import DropLedger
from hf_ext.data.curation.extract import HtmlToText
from hf_ext.data.curation.pipeline import curate
from hf_ext.data.curation.quality import GopherQuality
from hf_ext.data.curation.sources import DatasetShard, StreamShard, shards_of
from hf_ext.data.curation.warc import read_warc
from tests.data.curation.chain import FirstLines, Words
from tests.data.curation.test_pipeline import QUIET, lines_of, rows_of

TEXTS = [f"document {row} " + "x" * (row * 37 % 211) for row in range(230)]


def plain(chunk):
    """Chunk as plain values."""
    rows = chunk.rows.to_pydict() if isinstance(chunk.rows, pa.Table) else chunk.rows
    return rows["text"], chunk.row_numbers, chunk.end


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "jsonl.gz", "dataset", "stream"])
def test_chunks_are_the_same_wherever_reading_begins(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(sources, "CHUNK_ROWS", 60)
    monkeypatch.setattr(sources, "CHUNK_BYTES", 5000)
    path = tmp_path / f"a.{kind}"
    if kind == "parquet":
        pq.write_table(pa.table({"text": TEXTS}), path, row_group_size=70)
    elif kind.startswith("jsonl"):
        content = lines_of({"text": TEXTS}).encode()
        path.write_bytes(gzip.compress(content) if kind.endswith("gz") else content)
    dataset = Dataset.from_dict({"text": TEXTS})
    in_memory = {"dataset": DatasetShard(dataset), "stream": StreamShard(dataset.to_iterable_dataset())}
    shard = in_memory[kind] if kind in in_memory else shards_of(path, False)[0]
    chunks = [plain(chunk) for chunk in shard.chunks(0)]
    assert list(chain.from_iterable(texts for texts, _, _ in chunks)) == TEXTS
    assert list(chain.from_iterable(rows for _, rows, _ in chunks)) == list(range(230))
    for texts, _, end in chunks[:-1]:
        sizes = np.cumsum([len(text) for text in texts])
        assert len(texts) == 60 or sizes[-1] >= 5000 > sizes[-2]
        assert [plain(chunk) for chunk in shard.chunks(end)] == [later for later in chunks if later[2] > end]


def test_a_chunk_goes_to_another_process_without_the_rows_around_it(tmp_path):
    texts = ["x" * 1_000_000] * 40  # nine fill a chunk
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet")
    for shard in (DatasetShard(Dataset.from_dict({"text": texts})), *shards_of(tmp_path, False)):
        chunks = list(shard.chunks(0))
        assert [chunk.rows.num_rows for chunk in chunks] == [9, 9, 9, 9, 4]
        assert all(len(pickle.dumps(chunk)) < 9_100_000 for chunk in chunks)


def test_surrogates_and_nul_and_a_line_of_twenty_megabytes_are_documents(tmp_path):
    long = "a word " * 3_000_000
    texts = ["half \ud83d of a pair", "\0 and a word", long]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    curate(tmp_path / "a.jsonl", [FirstLines()], output=tmp_path / "out", **QUIET)
    rows = load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    assert rows["text"][:] == ["half \ufffd of a pair", "\0 and a word", long]


@pytest.mark.real
@pytest.mark.parametrize("num_proc", [1, 2])
def test_pages_of_a_warc_file_are_texts_and_a_broken_record_costs_that_record_alone(tmp_path, real_data, num_proc):
    content = (real_data / "web_docs" / "sample.warc.gz").read_bytes()
    starts = [match.start() for match in re.finditer(rb"\x1f\x8b\x08", content)]
    damaged = bytearray(content)
    damaged[starts[50] + 200 : starts[50] + 260] = bytes(60)
    (tmp_path / "a.warc.gz").write_bytes(damaged)
    steps = [HtmlToText(), GopherQuality()]
    counts = curate(tmp_path / "a.warc.gz", steps, output=tmp_path / "out", id_column="id", num_proc=num_proc, **QUIET)
    ledger = list(DropLedger.read(tmp_path / "out"))
    assert (counts.rows_read, counts.steps[0].rows_out) == (120, 119)
    assert [record.row for record in ledger if record.step == "read"] == [50]
    assert ledger[0].id.startswith("urn:uuid:")
    rows = load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    pages = list(read_warc(real_data / "web_docs" / "sample.warc.gz"))
    judgement = HtmlToText().judge({name: [page[name] for page in pages] for name in ("html", "charset")})
    texts = {page["id"]: text for page, text in zip(pages, judgement.columns["text"], strict=True)}
    assert rows["text"][:] == [texts[document_id] for document_id in rows["id"]]
    assert {*rows["id"]} | {record.id for record in ledger} >= {page["id"] for page in pages} - {pages[50]["id"]}
    assert counts.steps[1].tokens_in is None
    assert counts.rows_kept > 60


def test_a_column_that_some_rows_lack_is_null_there(tmp_path):
    lines = ['{"text": "a b"}', '{"text": "c d", "n": 1}', '{"n": 2.5, "text": "e f"}', '{"text": "g h", "m": null}']
    for number, line in enumerate(lines):
        (tmp_path / f"{number}.jsonl").write_text(line)
    curate(str(tmp_path / "[0-9].jsonl"), [Words()], output=tmp_path / "out", **QUIET)
    rows = load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    assert rows["text"][:] == ["a b", "c d", "e f", "g h"]
    assert rows["n"][:] == [None, 1.0, 2.5, None]
    assert rows["m"][:] == [None] * 4


def test_shards_whose_columns_do_not_go_together_are_named(tmp_path):
    pq.write_table(pa.table({"text": ["a b"], "url": ["u"]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"text": ["a b"]}), tmp_path / "b.parquet")
    with pytest.raises(ValueError, match=r"'a\.parquet' and 'b\.parquet' have other columns: 'url' is in one alone"):
        curate(tmp_path, [Words()], output=tmp_path.with_suffix(".out"), **QUIET)
    (tmp_path / "c.jsonl").write_text('{"text": "a b", "n": 1}\n{"text": "a b", "n": "one"}\n')
    with pytest.raises(ValueError, match=r"shard 'c\.jsonl', column 'n': values of types that do not go together"):
        curate(tmp_path / "c.jsonl", [Words()], output=tmp_path / "c", **QUIET)
    (tmp_path / "d.jsonl").write_text('{"text": "a b", "n": [1]}\n')
    (tmp_path / "c.jsonl").write_text('{"text": "a b", "n": 1}\n')
    with pytest.raises(ValueError, match=r"types do not go together: .*n.*Give the column one type in every shard"):
        curate(tmp_path / "*.jsonl", [Words()], output=tmp_path / "d", **QUIET)


@pytest.mark.parametrize(("name", "content"), [
    ("cut.jsonl.gz", gzip.compress(b'{"text": "a b"}\n' * 5000)[:-20]),
    ("none.jsonl.gz", b'{"text": "a b"}\n'),
    ("none.jsonl.zst", b'{"text": "a b"}\n'),
    ("cut.parquet", b"PAR1 and no more"),
])  # fmt: skip
def test_a_damaged_shard_is_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"shard {name!r} is damaged or not what its name says: .+mend or remove"):
        curate(tmp_path, [Words()], output=tmp_path.with_suffix(".out"), **QUIET)


def test_a_shard_that_disappears_is_named_and_the_others_go_on_without_it(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text('{"text": "a b"}\n')
    shards = shards_of(tmp_path, False)
    (tmp_path / "b.jsonl").unlink()
    with pytest.raises(ValueError, match=r"shard 'b\.jsonl' cannot be read: .*is missing"):
        shards[1].identity()
    with pytest.raises(ValueError, match=r"shard 'b\.jsonl' is damaged or not .*No such file"):
        list(shards[1].chunks(0))
    assert curate(tmp_path, [Words()], output=tmp_path.with_suffix(".out"), **QUIET).rows_kept == 1


def test_places_without_a_shard_are_refused(tmp_path):
    for place in (tmp_path / "missing", tmp_path, tmp_path / "*.parquet"):
        with pytest.raises(ValueError, match="is no file, no folder with files in it, and no pattern"):
            shards_of(place, False)
    (tmp_path / "README.md").touch()
    (tmp_path / ".hidden.jsonl").touch()
    with pytest.raises(ValueError, match=r"holds no file that is read: \.parquet, \.jsonl"):
        shards_of(tmp_path, False)
    (tmp_path / "a.jsonl").touch()
    with pytest.raises(ValueError, match="lies in the folder that is read: name another output"):
        curate(tmp_path, [Words()], output=tmp_path / "out")
    pattern = str(tmp_path / "**" / "*")
    curate(pattern, [Words()], output=tmp_path / "out", **QUIET)
    with pytest.raises(ValueError, match=r"shard 'out/data/train-00000.* lies in output '.*out': name another output"):
        curate(pattern, [Words()], output=tmp_path / "out", **QUIET)
    with pytest.raises(ValueError, match="Files are curated into a folder: pass output="):
        curate(tmp_path, [Words()])


@pytest.mark.skipif(sys.platform != "linux", reason="names of any bytes, which Linux has")
def test_names_of_any_bytes_are_told_apart(tmp_path):
    names = [b"a\xff.jsonl", b"a\xfe.jsonl", "ü\n|.jsonl".encode(), b"[x] ; rm -rf.jsonl"]
    folder = tmp_path / "[pages] *"
    folder.mkdir()
    for name in names:
        with open(os.path.join(os.fsencode(folder), name), "w") as file:
            file.write('{"text": "a"}\n{"text": "a b"}\n')
    curate(folder, [Words()], output=tmp_path / "out ..", **QUIET)
    ledger = {(record.id, record.shard) for record in DropLedger.read(tmp_path / "out ..")}
    shards = {r"a\xff.jsonl", r"a\xfe.jsonl", "ü\n|.jsonl", "[x] ; rm -rf.jsonl"}
    assert ledger == {(f"{shard}:0", shard) for shard in shards}


def test_shards_and_datasets_without_rows_pass_and_no_row_left_is_a_warning(tmp_path, caplog):
    (tmp_path / "a.jsonl").touch()
    (tmp_path / "b.jsonl").write_text('{"text": "a"}\n')
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "c.parquet")
    counts = curate(tmp_path, [Words(), FirstLines(), Words()], output=tmp_path.with_suffix(".out"), **QUIET)
    assert (counts.rows_read, counts.rows_kept) == (1, 0)
    assert "No document is left: step 'words' dropped 1 of 1" in caplog.text
    assert counts.to_dict() == CurationCounts.read(tmp_path.with_suffix(".out")).to_dict()
    curate(tmp_path / "a.jsonl", [Words()], output=tmp_path / "out", **QUIET)
    assert "There was no document to curate" in caplog.text
    assert len(DropLedger.read(tmp_path / "out")) == 0
    empty = Dataset.from_dict({"text": ["a"], "n": [1]}).select([])
    assert curate(empty, [Words(), FirstLines()], **QUIET).column_names == ["text", "n"]
    assert len(curate(Dataset.from_dict({"text": ["a"], "n": [1]}), [Words()], **QUIET)) == 0


def test_where_every_document_goes_the_steps_over_the_set_have_nothing_to_decide(tmp_path):
    steps = [Words(), ExactDeduplication(), MinHashDeduplication(min_similarity=0.5), BloomDeduplication()]
    rows = Dataset.from_dict({"text": ["a", "b"], "n": [1, 2]})
    counts = curate(rows, steps, output=tmp_path / "out", **QUIET)
    assert [(step.name, step.rows_in) for step in counts.steps[2:]] == [("exact", 0), ("minhash", 0), ("bloom", 0)]
    assert len(DropLedger.read(tmp_path / "out")) == 2
    (file,) = (tmp_path / "out/data").iterdir()
    assert pq.read_schema(file).names == ["text", "n", "num_words"]
    assert pq.read_metadata(file).num_row_groups == 0  # an empty one is more than `datasets` can read


def test_texts_that_are_stored_as_views_are_read_from_files_and_datasets(tmp_path):
    views = pa.table({"text": pa.array(["a b", "a", "c d"], pa.string_view()), "n": [1, 2, 3]})
    pq.write_table(views, tmp_path / "views.parquet")
    curate(tmp_path / "views.parquet", [Words()], output=tmp_path / "out", **QUIET)
    rows = {"text": ["a b", "c d"], "n": [1, 3], "num_words": [2, 2]}
    assert load_dataset(str(tmp_path / "out"), split="train").to_dict() == rows
    assert curate(Dataset(views), [Words()], **QUIET).to_dict() == rows


def test_half_a_surrogate_pair_in_an_id_and_a_source_is_written_as_replaced(tmp_path):
    lines = [{"text": text, "id": f"\ud800{text}", "host": "\udfff"} for text in ("a", "a b", "a  b", "a b")]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    steps = [Words(), ExactDeduplication(id_column="id")]
    counts = curate(
        tmp_path / "a.jsonl", steps, output=tmp_path / "out", id_column="id", source_column="host", **QUIET
    )
    ledger = DropLedger.read(tmp_path / "out")
    assert [(drop.id, drop.detail) for drop in ledger] == [("\ufffda", None), ("\ufffda b", "\ufffda b")]
    assert [drop.rule for drop in ledger.explain("\ud800a")] == ["few"]
    assert counts.sources["\ufffd"].rows_read == 4


def test_ids_that_repeat_are_all_explained_and_wrong_columns_are_refused(tmp_path):
    rows = Dataset.from_dict({"text": ["a", "b", "a b"], "id": [7, 7, None]})
    curate(rows, [Words()], output=tmp_path / "out", id_column="id", **QUIET)
    assert [(record.id, record.row) for record in DropLedger.read(tmp_path / "out").explain("7")] == [
        ("7", 0),
        ("7", 1),
    ]
    with pytest.raises(ValueError, match=r"id_column='key' is no column of shard 'rows'; it has \['id', 'text'\]"):
        curate(rows, [Words()], output=tmp_path / "a", id_column="key", **QUIET)
    with pytest.raises(ValueError, match=r"Words needs a column 'body'; this dataset has \['id', 'text'\]"):
        curate(rows, [Words(text_column="body")], **QUIET)
    with pytest.raises(ValueError, match="source_column='host' is no column"):
        curate(rows, [Words()], output=tmp_path / "b", source_column="host", **QUIET)
    with pytest.raises(ValueError, match="id_column='text' is a column of documents; the drop ledger holds no text"):
        curate(rows, [Words()], id_column="text", **QUIET)


@pytest.mark.parametrize(("settings", "message"), [
    ({"steps": []}, "steps is empty"),
    ({"steps": ["words"]}, "steps must be curation steps"),
    ({"num_proc": 0}, "num_proc must be at least 1"),
    ({"on_bad_row": "skip"}, 'on_bad_row must be "raise" or "drop"'),
])  # fmt: skip
def test_settings_out_of_bounds_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        curate(Dataset.from_dict(rows_of(["a b"])), **{"steps": [Words()], **settings})
