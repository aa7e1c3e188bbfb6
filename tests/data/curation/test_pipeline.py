"""`curate` against a plain loop: the same rows, reasons and counts, whatever the source, the chunks and the kills."""

from __future__ import annotations

import gzip
import json
from collections import Counter

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value, load_dataset

from hf_ext.data.curation import sources
from hf_ext.data.curation.counts import CurationCounts
from hf_ext.data.curation.drop_ledger import DropLedger
from hf_ext.data.curation.pipeline import curate
from hf_ext.guards.row_errors import RowError
from tests.data.curation.chain import CHAIN, FirstLines, Words, documents, plainly

TEXTS = documents(400)
LEFT, GONE = plainly(TEXTS)
QUIET = {"show_progress": False}


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch, tmp_path):
    monkeypatch.setattr(sources, "CHUNK_ROWS", 30)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def rows_of(texts=TEXTS, first=0):
    ids = [f"d{row}" for row in range(first, first + len(texts))]
    return {"id": ids, "text": texts, "source": [f"s{row % 3}" for row in range(len(texts))]}


def lines_of(rows):
    return "".join(
        json.dumps(dict(zip(rows, values, strict=True))) + "\n" for values in zip(*rows.values(), strict=True)
    )


def shards(folder):
    """The documents in files of every kind, in the order of their names."""
    folder.mkdir()
    parts = [rows_of(TEXTS[first : first + 100], first) for first in range(0, 400, 100)]
    pq.write_table(pa.table(parts[0]), folder / "0 ü.parquet", row_group_size=45)
    (folder / "1").mkdir()
    (folder / "1" / "b ..x.jsonl").write_text(lines_of(parts[1]))
    (folder / "2.jsonl.gz").write_bytes(gzip.compress(lines_of(parts[2]).encode()))
    with pa.CompressedOutputStream(str(folder / "3.jsonl.zst"), "zstd") as file:
        file.write(lines_of(parts[3]).encode())
    (folder / "README.md").write_text("not a shard")
    return folder


def comparable(counts):
    """Counts without what differs from run to run: seconds and memory."""
    values = counts.to_dict() | {"peak_bytes": 0}
    for step in values["steps"]:
        step["seconds"] = 0
    return values


def everything(folder):
    """Rows, ledger and counts of a curated folder."""
    rows = load_dataset(str(folder), split="train")
    return rows.to_dict(), list(DropLedger.read(folder)), comparable(CurationCounts.read(folder))


def test_a_dataset_keeps_the_rows_that_a_plain_loop_keeps():
    curated = curate(Dataset.from_dict(rows_of()), CHAIN, **QUIET)
    assert curated["text"][:] == list(LEFT.values())
    assert curated["id"][:] == [f"d{row}" for row in LEFT]
    assert curated["num_words"][:] == [len(text.split()) for text in LEFT.values()]


@pytest.mark.parametrize("num_proc", [1, 2])
def test_a_folder_of_shards_of_every_kind_gives_rows_reasons_and_counts_of_a_plain_loop(tmp_path, num_proc):
    output = tmp_path / "out"
    columns = {"id_column": "id", "source_column": "source"}
    counts = curate(shards(tmp_path / "in"), CHAIN, output=output, num_proc=num_proc, **columns, **QUIET)
    rows, ledger, saved = everything(output)
    assert rows["text"] == list(LEFT.values())
    assert rows["id"] == [f"d{row}" for row in LEFT]
    assert {int(record.id[1:]): (record.step, record.rule) for record in ledger} == GONE
    assert [int(record.id[1:]) for record in ledger] == sorted(GONE)
    assert {(record.shard, record.row) for record in ledger if 100 <= int(record.id[1:]) < 200} == {
        ("1/b ..x.jsonl", row - 100) for row in GONE if 100 <= row < 200
    }
    assert saved == comparable(counts)
    assert (counts.rows_read, counts.rows_kept) == (400, len(LEFT))
    by_rule = {(step, rule.rule.name): rule.num_dropped for step, rule in counts.rules() if rule.num_dropped}
    assert by_rule == Counter(GONE.values()) == DropLedger.read(output).counts()
    assert counts.steps[-1].tokens_out == sum(len(text.split()) for text in LEFT.values())
    assert counts.steps[0].tokens_in == sum(len(text.split()) for text in TEXTS)
    assert sum(source.rows_read for source in counts.sources.values()) == 400
    for source, source_counts in counts.sources.items():
        steps = Counter(GONE[row][0] for row in GONE if row % 100 % 3 == int(source[1:]))
        assert source_counts.drops_by_step == steps
    through = [text.strip() for row, text in enumerate(TEXTS) if GONE.get(row, ("",))[0] != "words"]
    assert counts.steps[2].notes == {"lines": len({line for text in through for line in text.split("\n")})}


def test_every_value_that_came_to_a_rule_is_in_its_histogram(tmp_path):
    counts = curate(Dataset.from_dict(rows_of()), CHAIN[:1], output=tmp_path / "out", **QUIET)
    few = counts.steps[1].rules["few"]
    word_counts = [len(text.split()) for text in TEXTS if text.strip()]
    assert {entry.low: entry.count for entry in few.values.bins()} == Counter(word_counts)
    assert few.num_dropped == few.num_dropped_alone == few.values.num_beyond(few.rule)
    assert few.rule == Words().rules[0]


def test_a_stream_is_curated_as_it_comes_and_into_a_folder_alike(tmp_path):
    stream = Dataset.from_dict(rows_of()).to_iterable_dataset()
    row_steps = (CHAIN[0], CHAIN[2])
    expected = curate(Dataset.from_dict(rows_of()), row_steps, **QUIET)
    assert list(curate(stream, row_steps)) == list(expected)
    with pytest.raises(ValueError, match="FirstLines needs all documents of a stream at once: pass output="):
        curate(stream, CHAIN)
    curate(stream, CHAIN, output=tmp_path / "out", **QUIET)
    assert everything(tmp_path / "out")[0]["text"] == list(LEFT.values())


def test_of_a_dataset_dict_the_named_split_alone_is_curated(tmp_path):
    splits = DatasetDict(train=Dataset.from_dict(rows_of()), test=Dataset.from_dict(rows_of(["a"])))
    curated = curate(splits, CHAIN, **QUIET)
    assert curated["train"]["text"][:] == list(LEFT.values())
    assert curated["test"]["text"][:] == ["a"]
    assert curated["test"].features == curated["train"].features
    with pytest.raises(ValueError, match=r"no split 'dev'; there are \['test', 'train'\]"):
        curate(splits, CHAIN, split="dev")


def test_features_of_columns_that_no_step_touches_are_kept():
    features = Features(text=Value("string"), label=ClassLabel(names=["no", "yes"]), day=Value("date32"))
    rows = {"text": ["a b c", "a"], "label": [1, 0], "day": [None, None]}
    curated = curate(Dataset.from_dict(rows, features=features), [Words()], **QUIET)
    assert curated.features == features | {"num_words": Value("int64")}
    assert curated["label"][:] == [1]


def test_a_row_that_is_no_document_is_named_with_its_shard_or_written_down(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a b c"}\n\n{"text": 7}\n{"text": "d e f"}\n')
    with pytest.raises(RowError, match=r"shard 'a\.jsonl', row 1, column 'text': expected a string, found") as raised:
        curate(tmp_path / "a.jsonl", [Words()], output=tmp_path / "out", **QUIET)
    assert raised.value.row_index == 1
    counts = curate(tmp_path / "a.jsonl", [Words()], output=tmp_path / "out", on_bad_row="drop", **QUIET)
    ledger = [(record.id, record.row, record.step, record.rule) for record in DropLedger.read(tmp_path / "out")]
    assert ledger == [("a.jsonl:1", 1, "words", "error:int")]
    assert (counts.rows_read, counts.rows_kept) == (3, 2)


def test_a_line_that_cannot_be_read_is_named_or_written_down(tmp_path):
    lines = [b'{"text": "a b c"}', b'{"text": [1', b"[]", b'{"text": "\xff"}', b"[" * 100_000, b'{"text": "d e f"}']
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    with pytest.raises(RowError, match=r"shard 'a\.jsonl', row 1: Expecting ',' delimiter.*\n.*on_bad_row=\"drop\""):
        curate(tmp_path / "a.jsonl", [Words()], output=tmp_path / "out", **QUIET)
    counts = curate(tmp_path / "a.jsonl", [Words()], output=tmp_path / "out", on_bad_row="drop", **QUIET)
    ledger = [(record.row, record.step, record.rule) for record in DropLedger.read(tmp_path / "out")]
    kinds = ("JSONDecodeError", "ValueError", "UnicodeDecodeError", "RecursionError")
    assert ledger == [(row, "read", f"error:{kind}") for row, kind in enumerate(kinds, 1)]
    assert (counts.rows_read, counts.rows_kept) == (6, 2)


def test_a_step_over_the_set_alone_reads_and_names_what_is_no_document(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a b"}\n{"text": null}\n{"text": "a b"}\n')
    with pytest.raises(RowError, match=r"shard 'a\.jsonl', row 1, column 'text'"):
        curate(tmp_path / "a.jsonl", [FirstLines()], output=tmp_path / "out", **QUIET)
    curate(tmp_path / "a.jsonl", [FirstLines()], output=tmp_path / "out", on_bad_row="drop", **QUIET)
    ledger = [(record.row, record.step, record.rule) for record in DropLedger.read(tmp_path / "out")]
    assert ledger == [(1, "first_lines", "error:NoneType"), (2, "first_lines", "repeated")]


def test_the_bars_name_the_steps_and_know_how_many_documents_are_left(tmp_path, capsys):
    curate(Dataset.from_dict({"text": TEXTS}), CHAIN, output=tmp_path / "out")
    lines = capsys.readouterr().err.replace("\r", "\n").split("\n")
    left = [step.rows_out for step in CurationCounts.read(tmp_path / "out").steps]
    bars = (
        ("1 of 3: words", len(TEXTS)),
        ("2 of 3: first_lines, features", left[1]),
        ("2 of 3: first_lines", left[1]),
        ("3 of 3: words_2", left[2]),
    )
    for title, total in bars:
        assert [line for line in lines if line.startswith(f"{title}: 100%") and f"{total}/{total} [" in line], title


def test_the_bar_of_files_says_which_of_them_is_read(tmp_path, capsys):
    folder = shards(tmp_path / "in")
    curate(folder, [Words()], output=tmp_path / "out")
    assert "file 4 of 4" in capsys.readouterr().err
