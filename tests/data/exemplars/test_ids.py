"""Ids are one text wherever they come from: strings as they are, integers as their digits, nothing else."""

from __future__ import annotations

import json
import logging
import pickle

import numpy as np
import pytest
from datasets import Dataset

from hf_ext.data.exemplars import (
    NOTHING_EXCLUDED,
    Exclude,
    ExemplarStore,
    FixedRetriever,
    Target,
    add_in_context_examples,
)
from hf_ext.data.exemplars.rows import as_id, as_ids
from hf_ext.data.exemplars.sources import read_qrels, texts_by_id

QUERIES = ["calm kite", "calm lamp", "calm reed"]
SELF_ALONE = Exclude(same_text=False, same_positive=False, negatives=False)


def pool(**columns) -> ExemplarStore:
    return ExemplarStore({"query": QUERIES, "document": ["a", "b", "c"], **columns})


def shown(store: ExemplarStore, **search) -> list[str | None]:
    return [hit.document for hit in store.search(["calm tent"], 3, **search)[0]]


@pytest.mark.parametrize(
    ("value", "text"), [("007", "007"), (" a ", " a "), (7, "7"), (np.int64(7), "7"), (np.str_("q"), "q"), (-1, "-1")]
)
def test_text_is_kept_and_an_integer_becomes_its_digits(value, text):
    assert as_id(value, "here") == text
    assert type(as_id(value, "here")) is str


@pytest.mark.parametrize("value", [None, True, np.True_, 7.0, np.float64(7), float("nan"), b"q", ["q"], {"id": 1}])
def test_what_is_no_id_is_refused_with_its_place(value):
    with pytest.raises(TypeError, match=r"^here: an id is a string or an integer, found"):
        as_id(value, "here")


@pytest.mark.parametrize(
    "ids",
    [
        [0, 1],
        (0, "1"),
        {0, 1},
        {0: "x", 1: "y"},
        np.array([0, 1]),
        np.array(["0", "1"]),
        range(2),
        (i for i in (0, 1)),
    ],
)
def test_every_kind_of_collection_excludes_the_same_exemplars(ids):
    store = pool(id=["0", "1", "2"])
    assert shown(store, exclude_ids=ids) == ["c"]


def test_a_single_id_is_one_id_and_never_its_letters():
    store = pool(id=["q10", "q", 10])
    assert shown(store, exclude_ids="q10") == ["b", "c"]
    assert shown(store, exclude_ids=10) == ["a", "b"]
    assert shown(store, exclude_ids=None) == ["a", "b", "c"]
    assert as_ids("q10", "here") == ["q10"]
    assert FixedRetriever("q10").ids == ("q10",)
    fixed = ExemplarStore(
        {"query": QUERIES, "document": ["a", "b", "c"], "id": [5, 6, 7]}, retriever=FixedRetriever([7, 5])
    )
    assert shown(fixed) == ["c", "a"]
    for wrong in ([None], [1.0], b"q10", 1.0, object()):
        with pytest.raises(TypeError, match=r"^exclude_ids: "):
            store.search(["calm tent"], 3, exclude_ids=wrong)


def test_a_target_names_its_exemplar_by_integer_or_text():
    store = pool(id=[4, 5, 6], doc_id=[np.int32(1), None, 3])
    assert store.column("id") == ["4", "5", "6"]
    assert store.column("doc_id") == ["1", None, "3"]
    for name in (5, "5", np.int16(5)):
        assert shown(store, targets=[Target(id=name)]) == ["a", "c"]
    assert shown(store, targets=[Target(doc_id=3)]) == ["a", "b"]
    assert shown(store, targets=[Target(row=0)], exclude=SELF_ALONE) == ["b", "c"]
    assert Target(negatives="trap").negatives == ("trap",)
    with pytest.raises(TypeError, match=r"Target\(id=\).*bool 'True'"):
        Target(id=True)
    with pytest.raises(TypeError, match=r"row 1, column 'id': .* float '2\.0'"):
        pool(id=[1, 2.0, 3])


def test_a_column_of_integers_with_holes_has_no_id_there():
    rows = Dataset.from_dict({"id": [3, None, 5], "query": QUERIES, "document": ["a", "b", "c"]})
    store = ExemplarStore.from_dataset(rows)
    assert store.column("id") == ["3", None, "5"]
    assert shown(store, exclude_ids=["None"]) == ["a", "b", "c"]


def test_row_numbers_stay_known_as_such_through_copies_and_files(tmp_path):
    numbered, named = pool(), pool(id=[0, 1, 2])
    assert (numbered.column("id"), numbered.content_hash) == (named.column("id"), named.content_hash)
    for store, is_numbered in ((numbered, True), (named, False)):
        store.save(tmp_path)
        copies = [
            ExemplarStore.load(tmp_path),
            pickle.loads(pickle.dumps(store)),
            ExemplarStore(store.given_columns()),
        ]
        assert [copy.numbered for copy in (store, *copies)] == [is_numbered] * 4
        assert {copy.content_hash for copy in copies} == {store.content_hash}
    config = json.loads((tmp_path / "rare_config.json").read_text())
    del config["store"]["numbered"]  # a pool from before that was written down
    (tmp_path / "rare_config.json").write_text(json.dumps(config))
    assert ExemplarStore.load(tmp_path).numbered


def test_the_row_itself_is_not_shown_where_its_own_rows_are_the_pool_and_only_that_rule_is_on():
    rows = Dataset.from_dict({"key": [2, 1, 0], "query": QUERIES, "positive": ["a", "b", "c"]})
    made = add_in_context_examples(rows, exclude=SELF_ALONE, shown_column="shown")
    assert [sorted(json.loads(ids)) for ids in made["shown"]] == [["1", "2"], ["0", "2"], ["0", "1"]]
    # ids of the rows are not the row numbers of a pool without ids
    foreign = add_in_context_examples(rows, pool(), exclude=SELF_ALONE, id_column="key", shown_column="shown")
    assert [sorted(json.loads(ids)) for ids in foreign["shown"]] == [["0", "1", "2"]] * 3
    ours = add_in_context_examples(
        rows, pool(id=[2, 1, 0]), exclude=SELF_ALONE, id_column="key", shown_column="shown"
    )  # fmt: skip
    assert [sorted(json.loads(ids)) for ids in ours["shown"]] == [["0", "1"], ["0", "2"], ["1", "2"]]


# --- BEIR files ------------------------------------------------------------------------------------------------------


def beir(folder, queries, documents, qrels):
    """Write a folder: texts by id, and the lines of `qrels/test.tsv`."""
    (folder / "qrels").mkdir(parents=True)
    for name, texts in (("queries", queries), ("corpus", documents)):
        lines = [json.dumps({"_id": key, "title": "", "text": text}) + "\n" for key, text in texts]
        (folder / f"{name}.jsonl").write_text("".join(lines))
    (folder / "qrels" / "test.tsv").write_text(qrels)
    return folder


HEADER = "query-id\tcorpus-id\tscore\n"
JUDGED = [("10", "7", 1), ("11", "8", 2)]


@pytest.mark.parametrize(
    "qrels",
    [
        HEADER + "10\t7\t1\n11\t8\t2\n",
        "corpus-id\tscore\tquery-id\r\n7\t1.0\t10\r\n8\t2\t11\r\n",
        "10\t7\t1\n11\t8\t2\n",
        "\ufeff" + HEADER + "10\t7\t1\n\n11\t8\t2\n",
        "10 0 7 1\n11 0 8 2\n",
        "10\t0\t7\t1\n11\tQ0\t8\t2\n",
    ],
)
def test_qrels_are_read_with_a_header_without_one_and_as_trec_writes_them(tmp_path, qrels):
    folder = beir(tmp_path, [(10, "one"), ("11", "two")], [(7, "kite"), (8, "lamp")], qrels)
    assert read_qrels(folder, "test") == JUDGED
    store = ExemplarStore.from_beir(folder, "test", query_ids=[10, np.int64(11)])
    assert (store.column("id"), store.column("doc_id")) == (["10", "11"], ["7", "8"])
    assert ExemplarStore.from_beir(folder, "test", query_ids="11").queries == ["two"]


def test_leading_zeros_and_spaces_of_an_id_survive(tmp_path):
    folder = beir(tmp_path, [("007", "one"), (" a b", "two")], [("01", "x"), (1, "y")], "007\t01\t1\n a b\t1\t1\n")
    store = ExemplarStore.from_beir(folder, "test")
    assert (store.column("id"), store.column("document")) == (["007", " a b"], ["x", "y"])


@pytest.mark.parametrize("value", [None, True, 7.5, ["a"]])
def test_a_line_whose_id_is_no_id_is_named(tmp_path, value):
    folder = beir(tmp_path, [("1", "one")], [("a", "x"), (value, "y")], "1\ta\t1\n")
    with pytest.raises(ValueError, match=r"corpus, line 2, '_id': an id is a string or an integer"):
        texts_by_id(folder, "corpus")


def test_an_id_with_two_texts_is_refused_and_a_pair_judged_twice_is_counted(tmp_path, caplog):
    folder = beir(
        tmp_path, [("1", "one")], [(7, "x"), ("7", "x"), ("8", "y"), (8, "z")], "1\t7\t1\n1\t7\t0\n1\t7\t2\n"
    )
    with caplog.at_level(logging.WARNING):
        assert read_qrels(folder, "test") == [("1", "7", 2)]
    assert len(caplog.records) == 1
    assert "judges 2 pairs twice" in caplog.text
    assert ExemplarStore.from_beir(folder, "test").column("document") == ["x"]
    with pytest.raises(ValueError, match="the id '8' stands for two texts, 'y' and 'z'"):
        texts_by_id(folder, "corpus")


def test_judgements_of_missing_texts_are_counted_once_and_refused_where_all_are(tmp_path, caplog):
    qrels = HEADER + "1\ta\t1\n1\tx\t1\n2\ta\t1\n3\ty\t1\n"
    folder = beir(tmp_path / "some", [("1", "one"), ("3", "three")], [("a", "kite")], qrels)
    with caplog.at_level(logging.WARNING):
        store = ExemplarStore.from_beir(folder, "test", query_ids=["1", "2", "3", "9"])
    assert (store.column("id"), store.column("doc_id")) == (["1"], ["a"])
    assert len(caplog.records) == 2
    assert "1 of the 4 query_ids have no pair of grade 1 or more in split 'test', such as '9'" in caplog.text
    assert "'2' (1 missing in queries.jsonl) and 'x', 'y' (2 missing in corpus.jsonl)" in caplog.text
    assert "3 of 4 pairs are left out" in caplog.text
    with pytest.raises(ValueError, match="No pair is left: are the files of one version"):
        ExemplarStore.from_beir(beir(tmp_path / "none", [("1", "one")], [("d1", "x")], "1\t1\t1\n"), "test")


def test_nothing_is_excluded_by_an_id_that_no_exemplar_has():
    assert shown(pool(id=["a", "b", "c"]), exclude_ids=["A", 0], exclude=NOTHING_EXCLUDED) == ["a", "b", "c"]
