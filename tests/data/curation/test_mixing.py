"""Mixtures: the shares of sources, the documents that make them up, and the order."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, IterableDataset, Value

from hf_ext.data.curation.mixing import mix
from hf_ext.guards.rows import RowError
from tests.tiny import tiny_tokenizer


def source(name, count, seed=0, longest=40):
    lengths = np.random.default_rng(seed).integers(1, longest, count)
    texts = [f"{name}{number}" + " w" * (length - 1) for number, length in enumerate(lengths.tolist())]
    return Dataset.from_dict({"text": texts, "n": range(count)})


@pytest.fixture
def sources():
    return {"web": source("web", 2000), "books": source("books", 1000, 1, 200), "code": source("code", 900, 2, 9)}


WEIGHTS = {"web": 0.5, "books": 0.4, "code": 0.1}


def words_by_source(texts):
    words = dict.fromkeys(WEIGHTS, 0)
    for text in texts:
        words[text.split()[0].rstrip("0123456789")] += len(text.split())
    return words


def test_each_source_has_its_share_to_within_a_document(sources):
    mixture, manifest = mix(sources, WEIGHTS, 20_000)
    words = words_by_source(mixture["text"])
    for name, weight in WEIGHTS.items():
        assert 0 <= words[name] - weight * 20_000 < 200
        assert manifest.sources[name].num_tokens == words[name]
        assert manifest.sources[name].share == pytest.approx(words[name] / sum(words.values()))
        assert manifest.sources[name].num_documents == sum(text.startswith(name) for text in mixture["text"])
    assert manifest.num_tokens == sum(words.values())
    assert manifest.unit == "words"
    assert manifest.repeated == []
    assert mixture.column_names == ["text", "n"]


def test_every_part_of_a_mixture_has_the_shares(sources):
    texts = mix(sources, WEIGHTS, 20_000)[0]["text"]
    for end in (200, 500, len(texts) // 2):
        words = words_by_source(texts[:end])
        for name, weight in WEIGHTS.items():
            # a document of each source may be ahead or behind
            assert abs(words[name] - weight * sum(words.values())) < 200


def test_a_budget_of_less_than_a_document_a_source_is_warned_of_with_what_was_taken(caplog):
    long, short = (Dataset.from_dict({"text": ["word " * length] * 60}) for length in (90, 20))
    with caplog.at_level(logging.WARNING, logger="hf_ext"):
        mix({"long": long, "short": short}, {"long": 0.5, "short": 0.5}, 2000)
        assert not caplog.records
        manifest = mix({"long": long, "short": short}, {"long": 0.5, "short": 0.5}, 60)[1]
    assert manifest.num_tokens == 90 + 40
    assert "The mixture has 130 words and not 60" in caplog.text
    assert "(long 90 of 30, short 40 of 30)" in caplog.text


def test_no_document_comes_twice_before_all_have_come_once(sources, caplog):
    with caplog.at_level(logging.WARNING, logger="hf_ext"):
        mixture, manifest = mix(sources, {"web": 0.3, "books": 0.2, "code": 0.5}, 20_000)
    code = [text for text in mixture["text"] if text.startswith("code")]
    assert manifest.repeated == ["code"]
    assert manifest.sources["code"].epochs == pytest.approx(len(code) / 900)
    assert "code has fewer tokens than its share of 10,000: its documents are repeated" in caplog.text
    assert len(set(code[:900])) == 900
    assert code[:900] != code[900:1800]
    web = [text for text in mixture["text"] if text.startswith("web")]
    assert len(set(web)) == len(web)
    assert web != sorted(web, key=lambda text: int(text.split()[0][3:]))


def test_the_seed_decides_the_order_and_nothing_else_does(sources):
    first = mix(sources, WEIGHTS, 5_000, seed=3)[0]["text"][:]
    assert mix(sources, WEIGHTS, 5_000, seed=3)[0]["text"][:] == first
    assert mix(sources, WEIGHTS, 5_000, seed=4)[0]["text"][:] != first


@pytest.mark.parametrize("streamed", [{"web"}, {"web", "books", "code"}])
def test_a_mixture_with_streams_is_a_stream_in_the_same_shares(sources, streamed):
    given = {name: rows.to_iterable_dataset() if name in streamed else rows for name, rows in sources.items()}
    mixture, manifest = mix(given, WEIGHTS, 30_000)
    assert isinstance(mixture, IterableDataset)
    texts = [row["text"] for row in mixture]
    words = words_by_source(texts)
    assert {name: share.num_tokens for name, share in manifest.sources.items()} == words
    web = [text for text in texts if text.startswith("web")]
    assert web == sources["web"]["text"][: len(web)]
    assert [row["text"] for row in mixture] == texts
    assert manifest.sources["web"].epochs is None
    assert mixture.features == sources["web"].features


def test_a_stream_that_ends_begins_anew(sources):
    mixture, manifest = mix({"code": sources["code"].to_iterable_dataset()}, {"code": 1.0}, 10_000)
    texts = [row["text"] for row in mixture]
    assert manifest.repeated == ["code"]
    assert manifest.sources["code"].epochs == pytest.approx(len(texts) / 900)
    assert texts == [sources["code"]["text"][number % 900] for number in range(len(texts))]


def test_a_stream_that_gives_other_rows_the_second_time_is_refused():
    texts = iter(["a b c"] * 7)
    stream = IterableDataset.from_generator(lambda: ({"text": text} for text in texts))
    mixture, _ = mix({"once": stream}, {"once": 1.0}, 9)
    with pytest.raises(ValueError, match="gave fewer rows than when its tokens were counted"):
        list(mixture)


def test_tokens_are_those_of_the_tokenizer_and_one_for_each_end(sources):
    tokenizer = tiny_tokenizer()
    mixture, manifest = mix({"web": sources["web"]}, {"web": 1.0}, 1_000, tokenizer=tokenizer)
    lengths = [len(tokenizer(text, add_special_tokens=False)["input_ids"]) + 1 for text in mixture["text"]]
    assert manifest.num_tokens == sum(lengths) >= 1_000 > sum(lengths) - max(lengths)
    assert manifest.unit == "tokens"


def test_columns_that_all_sources_have_stay():
    plain = Dataset.from_dict({"text": ["a b"], "id": ["x"], "label": [1]})
    named = Dataset.from_dict(
        {"text": ["c"], "id": ["y"], "label": [0]},
        features=Features({"id": Value("string"), "label": ClassLabel(names=["n", "y"]), "text": Value("string")}),
    )
    mixture, _ = mix({"plain": plain, "named": named}, {"plain": 0.5, "named": 0.5}, 4)
    assert mixture.column_names == ["text", "id"]


def test_a_manifest_is_saved_with_what_is_repeated(sources, tmp_path):
    _, manifest = mix({"code": sources["code"]}, {"code": 1}, 10_000)
    manifest.save(tmp_path / "mix.json")
    values = json.loads((tmp_path / "mix.json").read_text())
    assert values["repeated"] == ["code"]
    assert values["sources"]["code"]["num_tokens"] == manifest.num_tokens


ROWS = Dataset.from_dict({"text": ["a b"]})


@pytest.mark.parametrize(("sources", "weights", "budget", "message"), [
    ({"a": ROWS}, {"a": 0.5, "b": 0.5}, 10, r"sources are \['a'\], weights has \['a', 'b'\]"),
    ({}, {}, 10, "Each source needs a weight"),
    ({"a": ROWS, "b": ROWS}, {"a": 0.5, "b": 0.7}, 10, r"add up to 1\.2, not to 1\. Divide each by 1\.2"),
    ({"a": ROWS, "b": ROWS}, {"a": 1.5, "b": -0.5}, 10, "weight of b must be a finite number above 0, got -0.5"),
    ({"a": ROWS, "b": ROWS}, {"a": 1.0, "b": 0}, 10, "weight of b must be a finite number above 0"),
    ({"a": ROWS}, {"a": float("nan")}, 10, "weight of a must be a finite number"),
    ({"a": ROWS}, {"a": 1}, 0, "token_budget must be a whole number, at least 1"),
    ({"a": ROWS.rename_column("text", "body")}, {"a": 1}, 10, r"a has no column 'text', but \['body'\]"),
    ({"a": ROWS.select([])}, {"a": 1}, 10, "a has no token"),
    ({"a": Dataset.from_dict({"text": ["", " \n"]})}, {"a": 1}, 10, "a has no token"),
    ({"a": IterableDataset.from_generator(lambda: iter(()))}, {"a": 1}, 10, "a has no token"),
])  # fmt: skip
def test_what_is_no_mixture_is_refused(sources, weights, budget, message):
    with pytest.raises(ValueError, match=message):
        mix(sources, weights, budget)


def test_a_row_that_is_no_document_is_named():
    with pytest.raises(RowError, match="row 1 of a, column 'text': expected a string, found None"):
        mix({"a": Dataset.from_dict({"text": ["a", None]})}, {"a": 1}, 10)
