"""What any row-wise callable here must do. A new one joins with one line in `CALLABLES`."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import pickle
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value, concatenate_datasets
from datasets.fingerprint import Hasher

from hf_ext.data.curation import (
    Decontaminate,
    GopherQuality,
    GopherRepetition,
    HtmlToText,
    LanguageFilter,
    LineRules,
    NGramIndex,
    QualityClassifier,
    QualityFilter,
    RemoveUrls,
    UrlRules,
)
from hf_ext.data.curation.classifier import ClassifierReport
from hf_ext.data.exemplars import AddInContextExamples, ExampleDraw, ExemplarStore, RareFormatter
from hf_ext.data.preference import ExtractPrompt, PairsToUnpaired
from hf_ext.data.relabeling import HashColumn, KeyRef, RandomizedResponse, RRChannel
from hf_ext.data.sft_rows import RowIndexOfDocuments, SpreadOverTokens, TruncateRows
from hf_ext.data.vectors.embedding import EmbedRows
from hf_ext.data.weighting import FlowWeights
from hf_ext.guards.rows import AddRowIndex
from hf_ext.guards.tokens import RemovePadding
from hf_ext.moe.predict import MoEPredict
from hf_ext.trainers.context_free.trainer import CutRows
from hf_ext.trainers.mixture.rows import ShiftRowIndex
from tests.pages import pages

N = 25
TEXTS = {"kind", "words", "text", "prompt", "completion", "chosen", "rejected", "query", "positive", "id", "shown"} | {
    "__hf_ext_problem__"
}
TEXTS |= {"label_dp_channel", "other", "html", "drop_reason", "contamination", "url", "language"}


def tokens(seed: int = 0, with_list_weights: bool = False) -> dict[str, list]:
    rng = np.random.default_rng(seed)
    ids = [rng.integers(5, 300, int(n)).tolist() for n in rng.integers(2, 12, N)]
    weight = (
        [[w / 8 for w in row] for row in ids] if with_list_weights else rng.integers(0, 9, N).astype(float).tolist()
    )
    return {"input_ids": ids, "labels": ids, "weight": weight, "__hf_ext_row__": list(range(100, 100 + N))}


def scores() -> dict[str, list]:
    rng = np.random.default_rng(1)
    return {
        "original_nll_sum": rng.gamma(2.0, 3.0, N).tolist(),
        "original_num_tokens": rng.integers(1, 9, N).tolist(),
    }


def sampled() -> dict[str, list]:
    ids = tokens(3)["input_ids"]
    return {"input_ids": ids, "labels": ids, "sampled_logps": [[-i / 64 for i in row] for row in ids]}


def packed_scores() -> dict[str, list]:
    rng = np.random.default_rng(2)
    counts = [rng.integers(1, 6, int(n)).tolist() for n in rng.integers(1, 5, N)]
    return {
        "original_nll_sum": [[2.0 * n + 0.25 for n in row] for row in counts],
        "original_num_tokens": counts,
        "seq_lengths": [[n + 1 for n in row] for row in counts],
    }


def packed_index() -> dict[str, list]:
    lengths = packed_scores()["seq_lengths"]
    return {
        "seq_lengths": lengths,
        "__hf_ext_row__": [[10 * i for i, n in enumerate(row) for _ in range(n)] for row in lengths],
    }


def pairs() -> dict[str, list]:
    return {
        "prompt": [f"question {i}" for i in range(N)],
        "chosen": [f"yes {i}" for i in range(N)],
        "rejected": [f"no {i}" for i in range(N)],
        "weight": [i / 8 for i in range(N)],
    }


def whole_pairs() -> dict[str, list]:
    """The prompt stands at the beginning of both responses."""
    return {"chosen": [f"question {i}? yes" for i in range(N)], "rejected": [f"question {i}? no" for i in range(N)]}


def padded() -> dict[str, list]:
    """Rows of 4 tokens, of which 1 to 4 are none of the padding."""
    return {
        "input_ids": [[i, i + 1, i + 2, i + 3] for i in range(N)],
        "attention_mask": [[1] * (i % 4 + 1) + [0] * (3 - i % 4) for i in range(N)],
        "weight": [[0.5, 1.0, 1.5, 2.0] for _ in range(N)],
    }


def questions() -> dict[str, list]:
    return {
        "query": [f"question {i % 7} of {i}" for i in range(N)],
        "positive": [f"answer {i}" for i in range(N)],
        "id": [f"q{i}" for i in range(N)],
    }


def with_exemplars() -> AddInContextExamples:
    """Chosen by BM25 from the rows themselves; on half of them, up to 3."""
    rows = questions()
    pool = ExemplarStore({"query": rows["query"], "document": rows["positive"], "id": rows["id"]})
    text = RareFormatter(max_tokens=None, max_example_query_tokens=None, max_example_document_tokens=None)
    draw = ExampleDraw(3, "uniform", 0.5)
    columns = {"positive_column": "positive", "id_column": "id", "shown_column": "shown"}
    return AddInContextExamples(pool, text, draw=draw, **columns)


os.environ["HF_EXT_CONFORMANCE_KEY"] = hashlib.sha256(b"conformance").hexdigest()  # for the workers too
KEY = KeyRef(env="HF_EXT_CONFORMANCE_KEY")


def labelled(with_tokens: bool = False, **more: list) -> dict[str, list]:
    rng = np.random.default_rng(4)
    labels: list[Any] = rng.integers(0, 5, N).tolist()
    if with_tokens:
        labels = [[-100, *rng.integers(0, 5, int(n)).tolist()] for n in rng.integers(1, 6, N)]
    return {"id": [f"row {i}" for i in range(N)], "label": labels} | more


def with_ledger() -> dict[str, list]:
    return labelled(label_dp_epsilon=[2.0] * N, label_dp_channel=["true-label"] * N)


def priors() -> dict[str, list]:
    return labelled(prior=np.random.default_rng(5).dirichlet(np.ones(5), N).tolist())


def letters(texts: list[str]) -> np.ndarray:
    """An encoder that counts: vectors of shape `(b, 3)`."""
    return np.array([[len(text), text.count("1"), 0.5] for text in texts], dtype=np.float32)


def web_texts() -> dict[str, list]:
    """Articles, and at the end texts that rules drop."""
    return {"text": [*pages().values()][-N:]}


def web_pages() -> dict[str, list]:
    return {"html": [f"<html><body><main><p>{text}</p></main></body></html>" for text in web_texts()["text"]]}


def web_addresses() -> dict[str, list]:
    return {"url": [*pages()][-N:]}


def features() -> dict[str, list]:
    rng = np.random.default_rng(6)
    return {"embeddings": rng.normal(size=(N, 6)).tolist(), "label": rng.integers(0, 4, N).tolist()}


MIXTURE = "tests/moe/mixture"  # as below: three softmax experts on six features
DOMAIN_LIST = "tests/data/curation/domains.txt"  # from the root: its path is hashed


def classifier() -> QualityClassifier:
    """A drawn one: to fit one would compile the features' code wherever tests are collected."""
    statistics = np.array([np.zeros(12), np.ones(12), np.zeros(12)])
    coefficients = np.random.default_rng(7).normal(size=1024).astype(np.float32)
    report = ClassifierReport(8, 4, 0.5, 0.5, 0.5, [])
    return QualityClassifier(coefficients, statistics, 0.0, 2, 0, "", report)


def benchmark() -> NGramIndex:
    """The beginning of the articles."""
    rows = [{"question": text[:200]} for text in web_texts()["text"][:3]]
    return NGramIndex.from_dataset(rows, ["question"], task="beginnings")


@dataclass(frozen=True)
class Entry:
    """A callable, the columns it reads, a field whose change must show in the fingerprint, a module that it needs."""

    name: str
    make: Any
    columns: dict[str, list]
    other: dict[str, Any]
    kwargs: dict[str, Any] = dataclasses.field(default_factory=lambda: {"batched": True})
    module: str = "datasets"

    @property
    def parameter(self) -> Any:
        """For `parametrize`: skipped where the module is not installed, as beside the oldest and newest hosts."""
        is_missing = find_spec(self.module) is None
        return pytest.param(self, id=self.name, marks=pytest.mark.skipif(is_missing, reason=f"without {self.module}"))


# One line a callable.
CALLABLES = [
    Entry("FlowWeights", FlowWeights(2.0), scores(), {"tau": 2.5, "shift": 1.0, "floor": 0.1}),
    Entry("FlowWeights_packed", FlowWeights(2.0), packed_scores(), {"tau": 2.5}),
    Entry("TruncateRows", TruncateRows(5), tokens(), {"max_length": 6}),
    Entry("TruncateRows_end", TruncateRows(5, keep_end=True), tokens(with_list_weights=True), {"keep_end": False}),
    Entry("CutRows", CutRows(4), sampled(), {"max_length": 5}),
    Entry("SpreadOverTokens", SpreadOverTokens(), tokens(), {}),
    Entry("SpreadOverTokens_lists", SpreadOverTokens(), tokens(with_list_weights=True), {}),
    Entry("RowIndexOfDocuments", RowIndexOfDocuments(), packed_index(), {}),
    Entry("AddRowIndex", AddRowIndex(), {"text": [f"row {i}" for i in range(N)]}, {}, {"with_indices": True}),
    Entry("ShiftRowIndex", ShiftRowIndex(3), {"__hf_ext_row__": list(range(N))}, {"offset": 4}),
    Entry("ShiftRowIndex_packed", ShiftRowIndex(3), packed_index(), {"offset": 4}),
    Entry(
        "PairsToUnpaired", PairsToUnpaired(), pairs(), {}, {"batched": True, "remove_columns": ["chosen", "rejected"]}
    ),
    Entry("ExtractPrompt", ExtractPrompt(), whole_pairs(), {}),
    Entry("RemovePadding", RemovePadding(), padded(), {}, {"batched": True, "remove_columns": ["attention_mask"]}),
    Entry("AddInContextExamples", with_exemplars(), questions(), {"draw": ExampleDraw(3, "uniform", 0.5, seed=1)}),
    Entry("EmbedRows", EmbedRows(letters, "text"), {"text": [f"row {i}" for i in range(N)]}, {"column": "vector"}),
    Entry("RandomizedResponse", RandomizedResponse(1.0, 5, KEY), labelled(), {"epsilon": 2.0, "salt": "2"}),
    Entry("RandomizedResponse_tokens", RandomizedResponse(1.0, 5, KEY), labelled(with_tokens=True), {"epsilon": 2.0}),
    Entry("RandomizedResponse_prior", RandomizedResponse(0.5, 5, KEY, prior_column="prior"), priors(), {"salt": "2"}),
    Entry("RandomizedResponse_again", RandomizedResponse(1.0, 5, KEY, compose=True), with_ledger(), {"epsilon": 2.0}),
    Entry(
        "RandomizedResponse_after",
        RandomizedResponse(1.0, 5, KEY, after=RRChannel(2.0, 5)),
        with_ledger() | {"label_dp_channel": ["rr-5-000000000000"] * N},
        {"salt": "2"},
    ),
    Entry(
        "HashColumn",
        HashColumn("text", KEY),
        labelled(text=[f"t {i}" for i in range(N)], other=["x"] * N),
        {"column": "other"},
    ),
    Entry("GopherQuality", GopherQuality(), web_texts(), {"min_words": 60, "annotate": True}),
    Entry("GopherRepetition", GopherRepetition(), web_texts(), {"max_line_share": 0.5}),
    Entry("RemoveUrls", RemoveUrls(), web_texts(), {"replicate_bugs": True}),
    Entry("UrlRules", UrlRules(domains=DOMAIN_LIST), web_addresses(), {"max_soft_words": 2}),
    Entry("LanguageFilter", LanguageFilter(), web_texts(), {"language": "de"}, module="fasttext"),
    Entry("QualityFilter", QualityFilter(classifier=classifier(), threshold=0.5), web_texts(), {"threshold": 0.6}),
    Entry("LineRules", LineRules(), web_texts(), {"replicate_bugs": True}),
    Entry("HtmlToText", HtmlToText(), web_pages(), {"text_column": "extract"}, module="resiliparse"),
    Entry("MoEPredict", MoEPredict(MIXTURE), features(), {"label_column": "label"}),
    Entry("MoEPredict_labelled", MoEPredict(MIXTURE, label_column="label"), features(), {"label_column": None}),
    Entry("Decontaminate", Decontaminate(index=benchmark()), web_texts(), {"mode": "report"}),
]
every_callable = pytest.mark.parametrize("entry", [entry.parameter for entry in CALLABLES])


def dataset_of(entry: Entry) -> Dataset:
    """The columns the callable reads, and two that are none of its business."""
    dataset = Dataset.from_dict(entry.columns)
    kinds = Features({"kind": ClassLabel(names=["easy", "hard"]), "words": List(Value("string"))})
    others = Dataset.from_dict({"kind": [i % 2 for i in range(N)], "words": [["a", str(i)] for i in range(N)]}, kinds)
    return concatenate_datasets([dataset, others], axis=1)


def rows_of(dataset: Any) -> list[dict[str, Any]]:
    """Rows as plain values: a stream passes a callable's arrays on, a dataset writes and reads them; NaN as text."""
    plain = lambda value: value.tolist() if isinstance(value, np.ndarray) else "NaN" if value != value else value  # noqa: E731
    return [{name: plain(value) for name, value in row.items()} for row in dataset]


_EXPECTED: dict[str, list[dict[str, Any]]] = {}


def expected_rows(entry: Entry) -> list[dict[str, Any]]:
    """The rows of one plain `map`, made once."""
    if entry.name not in _EXPECTED:
        _EXPECTED[entry.name] = rows_of(dataset_of(entry).map(entry.make, **entry.kwargs))
    return _EXPECTED[entry.name]


@every_callable
def test_it_pickles_and_is_frozen(entry: Entry) -> None:
    again = pickle.loads(pickle.dumps(entry.make))
    assert again == entry.make
    assert rows_of(dataset_of(entry).map(again, **entry.kwargs)) == expected_rows(entry)
    with pytest.raises(dataclasses.FrozenInstanceError):
        entry.make.revision = "other"


@every_callable
@pytest.mark.parametrize(
    "settings", [{"num_proc": 2}, {"batch_size": 1}, {"batch_size": 1000}, {"batch_size": 7}], ids=str
)
def test_rows_do_not_depend_on_processes_or_batches(entry: Entry, settings: dict) -> None:
    if "batch_size" in settings and "batched" not in entry.kwargs:
        settings = {}
    assert rows_of(dataset_of(entry).map(entry.make, **entry.kwargs, **settings)) == expected_rows(entry)


@every_callable
def test_a_stream_and_a_dict_of_splits_give_the_same_rows(entry: Entry) -> None:
    expected = expected_rows(entry)
    for shards, batch_size in ((1, 1000), (1, 1), (1, 7), (4, 1000)):
        stream = dataset_of(entry).to_iterable_dataset(num_shards=shards)
        assert rows_of(stream.map(entry.make, **entry.kwargs, batch_size=batch_size)) == expected
    splits = DatasetDict({"train": dataset_of(entry), "test": dataset_of(entry).select(range(3))})
    mapped = splits.map(entry.make, **entry.kwargs)
    assert rows_of(mapped["train"]) == expected
    assert rows_of(mapped["test"]) == expected[: 3 * len(expected) // N]  # a row may become two


@every_callable
@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_a_formatted_dataset_gives_the_same_rows_and_keeps_its_format(entry: Entry, kind: str) -> None:
    out = dataset_of(entry).with_format(kind).map(entry.make, **entry.kwargs)
    assert out.format["type"] == kind
    for row, expected in zip(out.with_format(None), expected_rows(entry), strict=True):
        assert row.keys() == expected.keys()
        for name, value in expected.items():
            if name in TEXTS:
                assert row[name] == value
            elif value == "NaN":
                assert np.isnan(row[name])
            else:
                np.testing.assert_allclose(row[name], value, rtol=1e-6)  # torch's default float has 32 bits


@every_callable
def test_an_empty_dataset_stays_empty(entry: Entry) -> None:
    out = dataset_of(entry).select([]).map(entry.make, **entry.kwargs)
    assert len(out) == 0


@every_callable
def test_features_of_other_columns_are_kept(entry: Entry) -> None:
    before, after = dataset_of(entry).features, dataset_of(entry).map(entry.make, **entry.kwargs).features
    for name in ("kind", "words"):
        assert after[name] == before[name]
    assert after["kind"].names == ["easy", "hard"]


@every_callable
def test_the_fingerprint_moves_with_revision_and_settings_and_with_nothing_else(
    entry: Entry, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = dataset_of(entry)

    def fingerprint(callable_: Any, **settings: Any) -> str:
        return dataset.map(callable_, **entry.kwargs, **settings)._fingerprint

    first = fingerprint(entry.make)
    assert fingerprint(pickle.loads(pickle.dumps(entry.make))) == first
    assert fingerprint(dataclasses.replace(entry.make), num_proc=2) == first
    assert fingerprint(dataclasses.replace(entry.make, revision="another")) != first
    for name, value in entry.other.items():
        assert fingerprint(dataclasses.replace(entry.make, **{name: value})) != first
    # datasets hashes an importable class by its name: new code alone would be served the old rows from the cache.
    before = Hasher.hash(entry.make)
    monkeypatch.setattr(type(entry.make), "__call__", lambda self, batch: batch)
    assert Hasher.hash(entry.make) == before


def test_every_callable_of_the_package_is_in_the_registry() -> None:
    """A frozen dataclass with `__call__` and `revision` that is not here has not been tested."""
    import importlib
    import inspect
    import pkgutil

    import hf_ext.data
    import hf_ext.guards
    import hf_ext.moe
    import hf_ext.trainers

    filters = {  # for `filter`, not `map`: tested with the rows they judge
        "IsGoodRow",
        "_StreamedGoodRow",
        "CheckLabels",
        "ConsensusFilter",
        "Doubled",
        "SameResponses",
    }
    on_raw_rows = {  # only ever called behind `unformatted`, and tested with the rows they make
        "FormatRows",
        "RenamedColumns",
        "ShareGPTMessages",
        "WithoutFilledNulls",
    }
    found = set()
    for package in (hf_ext.data, hf_ext.guards, hf_ext.moe, hf_ext.trainers):
        for entry in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            try:
                module = importlib.import_module(entry.name)
            except ImportError as error:
                if str(error.name).startswith("hf_ext"):
                    raise
                continue  # an extra, or a peer, that is not installed
            for name, value in vars(module).items():
                is_ours = inspect.isclass(value) and dataclasses.is_dataclass(value) and not inspect.isabstract(value)
                callable_ = is_ours and any("__call__" in vars(base) for base in value.__mro__)
                if callable_ and "revision" in {field.name for field in dataclasses.fields(value)}:
                    found.add(name)
    assert found - filters - on_raw_rows == {type(entry.make).__name__ for entry in CALLABLES}
