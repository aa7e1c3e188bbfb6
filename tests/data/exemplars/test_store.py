"""The pool: where its rows come from, what is refused, and files that are checked when they come back."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict, Features, IterableDataset, Value
from safetensors.numpy import save_file

from hf_ext.data.exemplars import (
    Bm25Retriever,
    DenseRetriever,
    Exclude,
    ExemplarStore,
    FixedRetriever,
    HybridRetriever,
    RandomRetriever,
    RareFormatter,
    Target,
    TokenCounter,
    WordSplitter,
)
from hf_ext.data.exemplars.files import read_config
from hf_ext.data.exemplars.text import keyed_integers, keyed_uniform, normalize, text_key
from tests.tiny import tiny_tokenizer

pytest.importorskip("bm25s")

ROWS = {
    "id": ["q0", "q1", "q2"],
    "query": ["red cats", "red dogs", "grey gnus"],
    "document": ["on cats", "on dogs", "on gnus"],
    "doc_id": ["d0", "d1", None],
    "negative": ["on tax", None, None],
}
COLUMNS = ("id", "query", "document", "doc_id", "source", "negative")


def columns_of(store: ExemplarStore) -> dict[str, list]:
    return {name: store.column(name) for name in COLUMNS}


def encode(texts) -> np.ndarray:
    """Lengths and vowels: a vector of three numbers."""
    return np.array([[len(text), text.count("e"), 1.0] for text in texts], dtype=np.float32)


# --- rows ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        ({"query": ["a"]}, ValueError, "column 'document' is missing"),
        ({"query": [], "document": []}, ValueError, "The pool is empty"),
        ({"query": ["a", "b"], "document": ["c"]}, ValueError, "'document' has 1 values, 'query' has 2"),
        ({"query": ["a", None], "document": ["c", "d"]}, TypeError, r"row 1, column 'query': .* None. Drop the row"),
        ({"query": ["a"], "document": [3]}, TypeError, r"row 0, column 'document': .* int '3'. Exemplars are text"),
        ({"query": ["a", "b"], "document": ["c", " \n"]}, ValueError, "row 1, column 'document': the text is blank"),
        ({"query": ["a"], "document": ["x" * 1_000_001]}, ValueError, "1,000,001 characters, more than 1,000,000"),
        ({"query": ["a"], "document": ["\ud800"]}, ValueError, "half a surrogate pair"),
        ({"query": ["a"], "document": ["b"], "source": [1]}, TypeError, "column 'source'"),
    ],
)
def test_rows_that_cannot_serve_are_refused_with_row_and_column(rows, error, message):
    with pytest.raises(error, match=message):
        ExemplarStore(rows)


def test_a_pool_beyond_the_limit_is_refused(monkeypatch):
    monkeypatch.setattr("hf_ext.data.exemplars.rows.MOST_ROWS", 2)
    with pytest.raises(ValueError, match=r"The pool has 3 rows, more than 2\. Take a sample"):
        ExemplarStore(ROWS)


def test_rows_without_ids_are_numbered_and_missing_columns_are_none():
    store = ExemplarStore({"query": ["a", "b"], "document": ["c", "d"], "source": [None, None]})
    assert store.column("id") == ["0", "1"]
    assert store.column("source") == [None, None]
    assert store.exemplar(1, 2.5).document == "d"
    assert list(store.rows_of_id("1")) == [1]
    assert "2 exemplars" in repr(store)


# --- datasets and BEIR folders ---------------------------------------------------------------------------------------


def test_columns_are_found_by_name_then_by_order():
    named = Dataset.from_dict({"note": ["n"], "positive": ["p"], "question": ["q"], "id": [7]})
    store = ExemplarStore.from_dataset(named, source="mine")
    assert (store.queries, store.column("document"), store.column("id")) == (["q"], ["p"], ["7"])
    assert store.column("source") == ["mine"]
    ordered = ExemplarStore.from_dataset(Dataset.from_dict({"a": ["1st"], "b": ["2nd"], "c": ["3rd"]}))
    assert (ordered.queries, ordered.column("document")) == (["1st"], ["2nd"])
    told = ExemplarStore.from_dataset(
        Dataset.from_dict({"a": ["1st"], "b": ["2nd"], "c": ["3rd"], "k": ["x"]}).with_format("numpy"),
        query_column="c", document_column="a", negative_column="b", doc_id_column="k",
    )  # fmt: skip
    assert (told.queries, told.column("negative"), told.column("doc_id")) == (["3rd"], ["2nd"], ["x"])


@pytest.mark.parametrize(
    ("dataset", "options", "error", "message"),
    [
        (Dataset.from_dict({"query": ["a"], "n": [1]}), {}, ValueError, "needs two text columns"),
        (Dataset.from_dict({"query": [1], "document": ["b"]}), {"query_column": "query"}, TypeError, "is not text"),
        (Dataset.from_dict({"query": ["a"], "document": ["b"]}), {"id_column": "key"}, ValueError, "'key' is missing"),
        (
            Dataset.from_dict({"query": ["a"], "document": ["b"]}).to_iterable_dataset(),
            {},
            TypeError,
            "no rows to index",
        ),
        (
            DatasetDict({"train": Dataset.from_dict({"q": ["a"], "d": ["b"]})}),
            {},
            TypeError,
            "a dict has several splits",
        ),
        (
            Dataset.from_dict(
                {"query": [], "document": []}, Features({"query": Value("string"), "document": Value("string")})
            ),
            {},
            ValueError,
            "The pool is empty",
        ),
    ],
)
def test_datasets_without_pairs_of_texts_are_refused(dataset, options, error, message):
    with pytest.raises(error, match=message):
        ExemplarStore.from_dataset(dataset, **options)


def beir(folder, packed: bool):
    (folder / "qrels").mkdir()
    texts = {
        "queries": [{"_id": "1", "text": "one"}, {"_id": "2", "text": "two"}, {"_id": "3", "text": "three"}],
        "corpus": [{"_id": "a", "title": "A", "text": "apple"}, {"_id": "b", "title": "", "text": "ball"}],
    }
    for name, rows in texts.items():
        content = "".join(json.dumps(row) + "\n" for row in rows).encode()
        if packed:
            (folder / f"{name}.jsonl.gz").write_bytes(gzip.compress(content))
        else:
            (folder / f"{name}.jsonl").write_bytes(content)
    rows = "2\tb\t1\n1\tb\t1\n2\ta\t2\n3\ta\t0\n"
    (folder / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\n" + rows)
    return folder


@pytest.mark.parametrize("packed", [False, True])
def test_a_beir_folder_gives_its_judged_pairs_best_first(tmp_path, packed):
    store = ExemplarStore.from_beir(beir(tmp_path, packed))
    pairs = list(zip(store.column("id"), store.queries, store.column("document"), store.column("doc_id"), strict=True))
    assert pairs == [("2", "two", "A apple", "a"), ("2", "two", "ball", "b"), ("1", "one", "ball", "b")]
    assert store.column("source") == [tmp_path.name] * 3
    assert ExemplarStore.from_beir(tmp_path, query_ids={"1"}).column("id") == ["1"]
    assert ExemplarStore.from_beir(tmp_path, min_grade=2).column("doc_id") == ["a"]


def test_a_beir_folder_that_is_not_whole_says_what_is_missing(tmp_path):
    beir(tmp_path, False)
    with pytest.raises(FileNotFoundError, match=r"test.tsv is missing; the splits of .* are \['train'\]"):
        ExemplarStore.from_beir(tmp_path, "test")
    with pytest.raises(ValueError, match="no pair of grade 9 or more in split 'train', so the pool is empty"):
        ExemplarStore.from_beir(tmp_path, min_grade=9)
    (tmp_path / "qrels" / "bad.tsv").write_text("query-id\tcorpus-id\tscore\n1\tnobody\t1\n")
    with pytest.raises(ValueError, match=r"does not hold: 'nobody' \(1 missing in corpus.jsonl\)\. No pair"):
        ExemplarStore.from_beir(tmp_path, "bad")
    (tmp_path / "qrels" / "none.tsv").write_text("a\tb\n1\t2\n")
    with pytest.raises(ValueError, match="no BEIR file"):
        ExemplarStore.from_beir(tmp_path, "none")
    (tmp_path / "queries.jsonl").write_text('{"_id": "1", "text": "one"}\n{"text": "no id"}\n')
    with pytest.raises(ValueError, match="queries, line 2: expected an object with '_id' and 'text'"):
        ExemplarStore.from_beir(tmp_path)


@pytest.mark.real
def test_real_claims_mostly_have_their_gold_among_their_neighbours_and_exclusion_removes_all_of_it(real_data):
    """The paper's protocol on scifact: 62.3 % of the 300 public test claims; here the 200 of the local split."""
    folder = real_data / "retrieval" / "scifact"
    store = ExemplarStore.from_beir(folder)
    queries = dict(zip(store.column("id"), store.queries, strict=True))
    gold = {}
    for query, document in zip(store.column("id"), store.column("doc_id"), strict=True):
        gold.setdefault(query, set()).add(document)
    texts, targets = list(queries.values()), [Target(id=name) for name in queries]

    def leak(exclude: Exclude) -> float:
        found = store.search(texts, 5, targets=targets, exclude=exclude)
        return float(
            np.mean([bool(gold[n] & {h.doc_id for h in hits}) for n, hits in zip(queries, found, strict=True)])
        )

    assert leak(Exclude(same_positive=False)) > 0.5
    assert leak(Exclude()) == 0


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows_per_file", [1, 2, 250_000])
def test_a_saved_pool_comes_back_whole(tmp_path, rows_per_file):
    store = ExemplarStore(ROWS, retriever=Bm25Retriever(1.2, 0.7, WordSplitter(("the",))))
    store.save(tmp_path, config={"mine": {"k": 3}}, rows_per_file=rows_per_file)
    again = ExemplarStore.load(tmp_path)
    assert columns_of(again) == columns_of(store)
    assert again == store
    assert again.content_hash == store.content_hash
    assert again.search(["red"]) == store.search(["red"])
    config = read_config(tmp_path)
    assert config["mine"] == {"k": 3}
    assert config["store"]["rows"] == 3
    assert len(config["store"]["files"]) == -(-3 // rows_per_file)
    assert {path.suffix for path in tmp_path.iterdir()} == {".parquet", ".json"}
    assert pq.read_table(tmp_path / config["store"]["files"][0]["name"]).column_names[:3] == [
        "id",
        "query",
        "document",
    ]


@pytest.mark.parametrize(
    "retriever",
    [RandomRetriever(7), FixedRetriever(("q2", "q0")), DenseRetriever(encode, "v1"),
     HybridRetriever(DenseRetriever(encode, "v1"), Bm25Retriever(k1=2.0), 7)],
    ids=lambda retriever: type(retriever).__name__,
)  # fmt: skip
def test_every_way_to_choose_is_written_down(tmp_path, retriever):
    vectors = encode(ROWS["query"]) if isinstance(retriever, DenseRetriever) else None
    ExemplarStore(ROWS, retriever=retriever, vectors=vectors).save(tmp_path)
    again = ExemplarStore.load(tmp_path, encode=encode, encoder_name="v1")
    assert again.retriever == retriever
    if vectors is not None:
        np.testing.assert_array_equal(again.vectors, vectors)
    if isinstance(retriever, DenseRetriever | HybridRetriever):
        with pytest.raises(ValueError, match=r"pass encode=model\.encode"):
            ExemplarStore.load(tmp_path)


def test_a_retriever_of_ones_own_must_be_passed_again(tmp_path):
    class Own:
        def ranker(self, store):
            raise NotImplementedError

    ExemplarStore(ROWS, retriever=Own()).save(tmp_path)
    with pytest.raises(ValueError, match=r"a retriever of its own \(.*Own\): pass retriever="):
        ExemplarStore.load(tmp_path)
    assert ExemplarStore.load(tmp_path, retriever=RandomRetriever()).retriever == RandomRetriever()


def edit(folder, change) -> None:
    path = folder / "rare_config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


def other_rows(folder) -> None:
    """Rows changed, with their hash: only the hash of the content tells."""
    import hashlib

    name = read_config(folder)["store"]["files"][0]["name"]
    table = pq.read_table(folder / name)
    pq.write_table(table.set_column(1, "query", pa.array(["x", "y", "z"])), folder / name)
    digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    edit(folder, lambda c: c["store"]["files"][0].update(sha256=digest))


def flip_a_byte(folder) -> None:
    path = next(folder.glob("*.parquet"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (flip_a_byte, ValueError, r"has hash .*the file was changed or damaged"),
        (other_rows, ValueError, "the rows are not those that were saved"),
        (
            lambda f: edit(f, lambda c: c.update(format_version=2)),
            ValueError,
            "format version 2; this hf-ext reads up to 1",
        ),
        (lambda f: edit(f, lambda c: c.update(format_version="1")), ValueError, "format version '1'"),
        (lambda f: edit(f, lambda c: c["store"].update(rows=10**9)), ValueError, "more than max_rows"),
        (
            lambda f: edit(f, lambda c: c["store"]["files"][0].update(name="../x.parquet")),
            ValueError,
            "no file that a store has",
        ),
        (
            lambda f: edit(f, lambda c: c["store"]["files"][0].update(name="x.pkl")),
            ValueError,
            "no file that a store has",
        ),
        (lambda f: edit(f, lambda c: c.update(store=None)), FileNotFoundError, "but no exemplars"),
        (lambda f: next(f.glob("*.parquet")).unlink(), FileNotFoundError, "the store is incomplete"),
        (lambda f: (f / "rare_config.json").unlink(), FileNotFoundError, "rare_config.json is missing"),
        (lambda f: (f / "rare_config.json").write_text("{"), ValueError, "is not a configuration"),
    ],
)
def test_a_damaged_pool_is_refused_with_its_reason(tmp_path, damage, error, message):
    ExemplarStore(ROWS).save(tmp_path)
    damage(tmp_path)
    with pytest.raises(error, match=message):
        ExemplarStore.load(tmp_path)


def outside(f) -> None:
    """The file of rows is a link to one of the same content elsewhere."""
    path = next(f.glob("*.parquet"))
    path.rename(f.parent / path.name)
    path.symlink_to(f.parent / path.name)


def pipe(f) -> None:
    path = next(f.glob("*.parquet"))
    path.unlink()
    os.mkfifo(path)


def vectors_of_two_rows(f) -> None:
    import hashlib

    save_file({"embeddings": np.ones((2, 4), np.float32)}, f / "embeddings-0.safetensors")
    digest = hashlib.sha256((f / "embeddings-0.safetensors").read_bytes()).hexdigest()
    edit(f, lambda c: c["store"]["files"].append({"name": "embeddings-0.safetensors", "sha256": digest}))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (outside, "is a link that leads out of"),
        (pipe, "is a named pipe"),
        (
            lambda f: edit(f, lambda c: c["store"]["files"][0].update(name="/etc/x.parquet")),
            "no file that a store has",
        ),
        (lambda f: edit(f, lambda c: c["store"]["files"][0].update(name=["x"])), "no file that a store has"),
        (lambda f: edit(f, lambda c: c["store"].update(files="x")), "is not a configuration"),
        (lambda f: edit(f, lambda c: c["store"].update(rows="3")), "is not a configuration"),
        (lambda f: edit(f, lambda c: c["store"].update(retriever={"kind": "bm25"})), "'retriever' is none that"),
        (lambda f: edit(f, lambda c: c["store"].update(retriever={"kind": "fixed", "ids": 3})), "'retriever' is none"),
        (lambda f: (f / "rare_config.json").write_text("[" * 10**5), "is not a configuration .* nested too deeply"),
        (vectors_of_two_rows, r"float32 of shape \(2, 4\); expected a vector of floats for each of the 3 exemplars"),
    ],
)
def test_a_pool_from_elsewhere_is_held_to_its_folder_and_its_form(tmp_path, harm, message):
    ExemplarStore(ROWS).save(tmp_path / "store")
    harm(tmp_path / "store")
    with pytest.raises(ValueError, match=message):
        ExemplarStore.load(tmp_path / "store")


def test_an_oversize_pool_is_refused_packed_and_unpacked(tmp_path):
    same = {"query": ["a"] * 20_000, "document": ["b" * 100] * 20_000}  # packs to next to nothing
    ExemplarStore(same, retriever="random").save(tmp_path)
    size = sum(path.stat().st_size for path in tmp_path.glob("*.parquet"))
    with pytest.raises(ValueError, match="more than max_bytes"):
        ExemplarStore.load(tmp_path, max_bytes=size - 1)
    with pytest.raises(ValueError, match="unpacks to more than"):
        ExemplarStore.load(tmp_path, max_bytes=size + 1000)
    with pytest.raises(ValueError, match="more than max_rows=19,999"):
        ExemplarStore.load(tmp_path, max_rows=19_999)


def test_what_cannot_be_written_is_said_and_the_former_pool_stays(tmp_path):
    first = ExemplarStore(ROWS)
    first.save(tmp_path)
    other = ExemplarStore({"query": ["new"], "document": ["row"]})
    for config, message in (({"store": 1}, "must not hold 'store'"), ({"x": object()}, "cannot be written as JSON")):
        with pytest.raises(ValueError, match=message):
            other.save(tmp_path, config=config)
        assert ExemplarStore.load(tmp_path) == first
    other.save(tmp_path)
    assert ExemplarStore.load(tmp_path) == other
    assert len(list(tmp_path.glob("*.parquet"))) == 1  # the former one is gone


def test_clipped_documents_are_short_and_exclusion_still_knows_the_whole(tmp_path):
    tokenizer = tiny_tokenizer()
    long = "Ada counts 12 apples at home. " * 20
    store = ExemplarStore({"query": ["one cat", "two cat"], "document": [long, long + "!"], "negative": [long, None]})
    clipped = store.clipped(RareFormatter(max_example_document_tokens=8), tokenizer)
    assert TokenCounter(tokenizer).count(clipped.column("document")[0]) <= 8
    assert clipped.column("negative") == [clipped.column("document")[0], None]
    clipped.save(tmp_path)
    again = ExemplarStore.load(tmp_path)
    assert [hit.row for hit in again.search(["cat"], 5, targets=[Target(positive=long)])[0]] == [1]


# --- hashes and keys -------------------------------------------------------------------------------------------------


def test_the_hash_follows_the_rows_alone():
    assert ExemplarStore(ROWS, retriever="random").content_hash == ExemplarStore(ROWS).content_hash
    changed = ROWS | {"query": ["red cats", "red dogs", "grey gnu"]}
    assert ExemplarStore(changed).content_hash != ExemplarStore(ROWS).content_hash
    assert ExemplarStore(ROWS) != ExemplarStore(ROWS, retriever="random")
    assert hash(pickle.loads(pickle.dumps(ExemplarStore(ROWS)))) == hash(ExemplarStore(ROWS))
    assert ExemplarStore(ROWS) != 3


def test_texts_compare_by_letters_alone():
    assert normalize(" Ｆｕｌｌ \n WIDTH ") == "full width"
    assert text_key("STRASSE  x") == text_key("straße x ")
    assert text_key("a b") != text_key("ab")


def test_keyed_numbers_are_uniform_and_do_not_depend_on_the_process():
    from scipy.stats import kstest

    drawn = [keyed_uniform("rate", i, "text") for i in range(3000)]
    assert kstest(drawn, "uniform").pvalue > 1e-3
    assert len(set(keyed_integers(100, "x"))) == 100
    assert keyed_integers(3, "x") == keyed_integers(100, "x")[:3]
    code = "from hf_ext.data.exemplars.text import keyed_integers; print(keyed_integers(9, 'k', 1, 'é'))"
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", code], env=os.environ | {"PYTHONHASHSEED": seed}, capture_output=True, text=True,
            check=True,
        )  # fmt: skip
        assert done.stdout.strip() == str(keyed_integers(9, "k", 1, "é"))


def test_the_package_imports_no_torch():
    code = "import sys, hf_ext.data.exemplars; assert not {'torch', 'transformers', 'datasets'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_streams_have_no_rows():
    stream = IterableDataset.from_generator(lambda: iter([{"query": "a", "document": "b"}]))
    with pytest.raises(TypeError, match=r"got IterableDataset: .* Build an ExemplarStore from a Dataset"):
        ExemplarStore.from_dataset(stream)
