"""Benchmarks in documents: against a search of every n-gram for every n-gram, and spans planted at known places."""

from __future__ import annotations

import gzip
import json
import pickle
import unicodedata

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_ext.data.curation.decontaminate import Decontaminate
from hf_ext.data.curation.ngram_index import NGramIndex, Record
from hf_ext.data.curation.normalised_text import normalised

QUESTION = "Which of the following best explains why the moon appears to change its shape over the course of a month?"
SHORT = "Name the three largest moons of the planet Jupiter"  # nine words


def plain_words(text):
    """Words as the index compares them, by the definition: the whole text at once, with no word of where they were."""
    compatible = unicodedata.normalize("NFKC", text).casefold()
    return "".join(c if unicodedata.category(c)[0] in "LMN" else " " for c in compatible).split(" ")


def has_benchmark(text, records, ngram=13, shortest=8):
    words = [word for word in plain_words(text) if word]
    for record in records:
        record_words = [word for word in plain_words(record.text) if word]
        length = min(len(record_words), ngram)
        if length < shortest:
            continue
        grams = {tuple(record_words[start : start + length]) for start in range(len(record_words) - length + 1)}
        if any(tuple(words[start : start + length]) in grams for start in range(len(words) - length + 1)):
            return True
    return False


@pytest.fixture
def index():
    rows = [{"q": QUESTION, "id": "m-1"}, {"q": SHORT, "id": "m-2"}, {"q": "Too short to find", "id": "m-3"}]
    return NGramIndex.from_dataset(rows, ["q"], task="moons", id_column="id")


PIECES = [
    "ab", "Ab", "c", "é", "e\u0301", "ß", "ΣΑΣ", "ﬁ", "½", "\u1112\u1161\u11ab", "한", " ", " ", "\n", "-", "…",
    "\u3000", "\U0001f600", "\ud800", "Å", "\u212b", "İ", "\u0345",
]  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=40).map("".join))
def test_words_are_those_of_the_whole_text_and_come_from_where_they_say(text):
    document = normalised(text)
    words = [word for word in plain_words(text) if word]
    assert document.words(0, len(document.hashes)) == "".join(f"{word} " for word in words)
    for number, (start, end) in enumerate(zip(document.starts, document.ends, strict=True)):
        word = document.words(number, number + 1)[:-1]
        assert 0 <= start < end <= len(text)
        # what it came from has the word in it, and is no longer than what composes with it
        assert word in unicodedata.normalize("NFKC", text[start:end]).casefold()


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from("ab"), max_size=30), st.lists(st.lists(st.sampled_from("ab"), max_size=8), min_size=1))
def test_what_is_found_is_what_a_search_of_every_ngram_finds(words, benchmark):
    records = [Record("t", str(number), " ".join(row)) for number, row in enumerate([["a", "b", "c"], *benchmark])]
    index = NGramIndex(records, ngram=5, shortest=3)
    text = ", ".join(words)
    assert bool(index.find(text)) == has_benchmark(text, records, 5, 3)


@pytest.mark.parametrize("disguise", [
    str, str.upper, lambda text: text.replace(" ", "  \n"), lambda text: text.replace(" ", "-"),
    lambda text: f"({text})", lambda text: text.replace("o", "ｏ"), lambda text: text.replace(" ", "\u00a0"),
    lambda text: text.replace("shape", "“shape”…"),
])  # fmt: skip
def test_a_planted_row_is_found_where_it_lies(index, disguise):
    for row, question in (("m-1", QUESTION), ("m-2", SHORT)):
        planted = disguise(question)
        before = "Straße ﬁt ½ e\u0301é. Some other page, about ... things: "
        spans = index.find(before + planted + " and the page goes on.")
        assert [(span.task, span.row) for span in spans] == [("moons", row)]
        found = (before + planted + " and the page goes on.")[spans[0].start : spans[0].end]
        assert found == planted.strip("()?…”")


def test_two_rows_in_a_text_are_two_spans_and_thirteen_words_of_one_are_enough(index):
    part = " ".join(QUESTION.split()[3:16])
    text = f"{SHORT}. Nothing. {part}, they ask. {part}!"
    spans = index.find(text)
    assert [text[span.start : span.end] for span in spans] == [SHORT, part, part]
    assert [span.num_ngrams for span in spans] == [1, 1, 1]
    assert index.find(" ".join(QUESTION.split()[3:15])) == []
    assert index.find(" ".join(SHORT.split()[:8])) == []
    assert index.find("") == []


def test_a_document_with_a_row_goes_and_the_drop_names_the_row(index):
    rows = Dataset.from_dict({"text": ["A clean page of text.", f"Quiz: {QUESTION} {SHORT}", None][:2]})
    step = Decontaminate(index=index)
    drops = step.judge(rows[:]).drops
    assert drops[0] is None
    assert (drops[1].rule, drops[1].value, drops[1].threshold) == ("ngrams", 9.0, 0.0)
    assert drops[1].detail == f"moons m-1 at characters 6-{6 + len(QUESTION) - 1} and 1 more"
    assert "moon appears" not in drops[1].detail
    mapped = rows.map(step, batched=True)
    assert mapped["drop_reason"] == ["", "decontaminate:ngrams"]
    assert json.loads(mapped["contamination"][0]) == []


def test_masked_documents_lose_the_spans_and_nothing_else(index):
    rows = {"text": [f"Before. {QUESTION} Between. {SHORT}. After.", "Clean."]}
    judgement = Decontaminate(index=index, mode="mask_span").judge(rows)
    assert judgement.columns["text"] == ["Before. ? Between. . After.", "Clean."]
    assert judgement.drops == [None, None]
    spans = json.loads(judgement.columns["contamination"][0])
    assert [rows["text"][0][span["start"] : span["end"]] for span in spans] == [QUESTION[:-1], SHORT]
    judgement = Decontaminate(index=index, mode="report").judge(rows)
    assert list(judgement.columns) == ["contamination"]
    assert judgement.drops == [None, None]
    with pytest.raises(ValueError, match="mode must be one of drop, mask_span, report"):
        Decontaminate(index=index, mode="delete")


def test_a_question_is_found_alone_and_with_each_of_its_choices():
    row = {"q": "Who discovered them first?", "choices": ["Galileo Galilei in Padua", "Simon Marius of Gunzenhausen"]}
    index = NGramIndex.from_dataset([row | {"gold": 1}], ["q", "choices"], task="t", shortest=7)
    for choice in row["choices"]:
        assert index.find(f"{row['q']} Answer: no. {row['q']}\n{choice}")[0].row == "0"
    assert index.find(row["q"]) == []
    nested = {
        "messages": [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": "Because."}],
        "n": 7,
    }
    assert NGramIndex.from_dataset([nested], ["messages", "n"], task="t").find(QUESTION)


def test_words_that_share_a_hash_are_told_apart_by_their_text(index):
    place = int(np.flatnonzero(index.hashes == index.hashes[3])[0])
    record = int(index.sources[place])
    start, end = index.spans[place]
    index.texts[record] = index.texts[record][:start] + "x" * (end - start) + index.texts[record][end:]
    spans = index.find(f"{QUESTION} {SHORT}")
    assert sum(span.num_ngrams for span in spans) < 9


def test_an_index_is_saved_and_loaded_and_joined(index, tmp_path):
    index.save(tmp_path / "moons.parquet")
    loaded = NGramIndex.load(tmp_path / "moons.parquet")
    assert loaded.fingerprint == index.fingerprint == pickle.loads(pickle.dumps(index)).fingerprint
    assert loaded.find(QUESTION) == index.find(QUESTION) != []
    assert loaded.num_too_short == 1
    other = NGramIndex([Record("stars", "s", "one two three four five six seven eight")])
    joined = NGramIndex.joined([index, other])
    assert {span.task for span in joined.find(f"{QUESTION} {other.records[0].text}")} == {"moons", "stars"}
    assert joined.fingerprint != index.fingerprint
    with pytest.raises(ValueError, match="of one ngram and shortest"):
        NGramIndex.joined([index, NGramIndex(other.records, ngram=8)])


def test_a_file_that_is_no_index_is_refused(index, tmp_path):
    with pytest.raises(FileNotFoundError):
        NGramIndex.load(tmp_path / "gone.parquet")
    Dataset.from_dict({"task": ["a"], "row": ["b"], "text": [QUESTION]}).to_parquet(tmp_path / "rows.parquet")
    with pytest.raises(ValueError, match="is not an index of n-grams"):
        NGramIndex.load(tmp_path / "rows.parquet")
    (tmp_path / "junk.parquet").write_bytes(b"PAR1junk")
    with pytest.raises(ValueError, match="no Parquet file that can be read"):
        NGramIndex.load(tmp_path / "junk.parquet")


@pytest.mark.parametrize(("setting", "message"), [
    ({"ngram": 1}, "ngram must be"), ({"shortest": 14}, "shortest must be at most ngram"),
    ({"shortest": "8"}, "shortest must be"),
])  # fmt: skip
def test_lengths_that_are_none_are_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        NGramIndex([Record("t", "0", QUESTION)], **setting)


def test_a_benchmark_without_a_long_enough_row_and_a_missing_column_are_refused():
    with pytest.raises(ValueError, match="None of 1 records has 8 words"):
        NGramIndex.from_dataset([{"q": "Short?"}], ["q"], task="t")
    with pytest.raises(ValueError, match=r"t: row 0 has no column 'answer'; it has \['q'\]"):
        NGramIndex.from_dataset([{"q": QUESTION}], ["q", "answer"], task="t")


@pytest.mark.real
def test_rows_of_core_planted_in_web_pages_are_found_and_nothing_else_is(real_data):
    rows = {}
    for task in ("boolq", "arc_easy", "lambada_openai", "piqa"):
        with gzip.open(real_data / "core_eval" / f"{task}.jsonl.gz", "rt", encoding="utf-8") as file:
            rows[task] = [json.loads(line) for line in file]
    columns = {"boolq": ["query"], "arc_easy": ["query", "choices"], "lambada_openai": ["context"], "piqa": ["query"]}
    indexes = [NGramIndex.from_dataset(rows[task], columns[task], task=task, id_column="id") for task in rows]
    index = NGramIndex.joined(indexes)
    with gzip.open(real_data / "web_docs" / "text_docs.jsonl.gz", "rt", encoding="utf-8") as file:
        texts = [json.loads(line)["text"] for line in file]
    clean = [index.find(text) for text in texts]
    generator = np.random.default_rng(0)
    num_planted = 0
    for number, text in enumerate(texts[:200]):
        row = rows[list(rows)[number % 4]][number]
        question = row.get("query") or row["context"]
        if len(question.split()) < 10:
            continue
        cut = int(generator.integers(0, len(text)))
        spans = index.find(f"{text[:cut]} . {question} . {text[cut:]}")
        num_planted += 1
        assert any(
            cut < span.end <= cut + len(question) + 3 or cut <= span.start < cut + len(question) for span in spans
        )
    assert num_planted > 120
    assert sum(map(bool, clean)) <= 3
