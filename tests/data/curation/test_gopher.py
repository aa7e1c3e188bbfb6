"""Quality and repetition against peers' own verdicts, and against the rules written down slowly."""

from __future__ import annotations

import pickle

import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_ext.data.curation import plain
from hf_ext.data.curation.extract import HtmlToText
from hf_ext.data.curation.quality import GopherQuality
from hf_ext.data.curation.repetition import GopherRepetition
from hf_ext.data.curation.words import words_uax
from tests.data.curation import slow_rules
from tests.data.curation.documents import html_texts
from tests.data.curation.edges import prose


def rules_broken(step, texts):
    return [drop and drop.rule for drop in step.judge({"text": texts}).drops]


def values_of(step, text):
    """Each rule's value of one document."""
    _, values = step.measure([text], {"text": [text]})
    return {rule: numbers.item() for rule, numbers in values.items()}


@pytest.mark.real
def test_verdict_and_rule_are_those_of_dclms_own_mappers(counters, text_docs):
    texts = [row["text"] for row in text_docs]
    quality = rules_broken(GopherQuality(), texts)
    repetition = rules_broken(GopherRepetition(), texts)
    verdicts = [a or (b and "repetition") for a, b in zip(quality, repetition, strict=True)]
    assert verdicts == [row["dclm"] for row in text_docs]
    assert verdicts.count(None) == 542


def slow_values_of(texts):
    """What the slow rules of quality and of repetition measure, document by document."""
    return [(slow_rules.quality(text), slow_rules.repetition(text, slow_rules.words_by_regex(text))) for text in texts]


def assert_measured(texts, slow_values):
    """Our values, verdicts and rules are those of the slow rules."""
    quality, repetition = (step.judge({"text": texts}) for step in (GopherQuality(), GopherRepetition()))
    for row, (slow_quality, slow_repetition) in enumerate(slow_values):
        assert {rule: numbers[row] for rule, numbers in quality.values.items()} == slow_quality, row
        assert {rule: numbers[row] for rule, numbers in repetition.values.items()} == slow_repetition, row
        drops = [judgement.drops[row] for judgement in (quality, repetition)]
        slow_verdicts = [slow_rules.quality_verdict(slow_quality), slow_rules.repetition_verdict(slow_repetition)]
        assert [drop and drop.rule for drop in drops] == slow_verdicts


@pytest.mark.real
def test_values_of_real_documents_are_those_of_the_slow_rules(text_docs, real_data):
    texts = [row["text"] for row in text_docs] + html_texts(real_data)[::24]
    assert_measured(texts, slow_values_of(texts))


@pytest.fixture(scope="module")
def all_pages(real_data):
    """Every page as it is extracted and with its tags cut out, and what the slow rules measure of it."""
    pages = pq.read_table(real_data / "web_docs/html_docs.parquet", columns=["html"])["html"].to_pylist()
    extracted_texts = HtmlToText().judge({"html": pages}).columns["text"]
    texts = [text for text in [*extracted_texts, *html_texts(real_data)] if text.strip()]
    return texts, slow_values_of(texts)


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_values_of_all_pages_are_those_of_the_slow_rules(counters, all_pages):
    assert_measured(*all_pages)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(["a", "bb", "a\n", "bb\n\n", "ccc", " \n\n", "d."]), min_size=1, max_size=40))
def test_repetition_of_texts_of_few_words_is_that_of_the_slow_rules(tokens):
    text = "x " + " ".join(tokens)
    slow = slow_rules.repetition(text, words_uax(text))
    assert values_of(GopherRepetition(), text) == slow
    assert plain.count_repetition(text).ngram_chars[0] == sum(map(len, words_uax(text)))


def test_many_different_words_and_their_ngrams_are_told_apart(counters):
    """More than a small table holds, each word twice: the second half says them in the same order, bar every tenth."""
    words = [f"w{number:x}" for number in range(12_000)]
    again = [f"v{number}" if number % 10 == 0 else word for number, word in enumerate(words)]
    counts = counters.count_repetition(" ".join(words + again)).ngram_chars
    assert counts[0] == sum(map(len, words + again))
    inside = sum(len(word) for number, word in enumerate(words) if number % 10)
    assert counts[4:9] == (2 * inside,) * 5  # runs of nine words
    assert counts[9] == 0


def test_a_long_line_of_short_words_is_counted_as_arithmetic_says(counters):
    num_words = 120_000
    counts = counters.count_repetition("ab cd e " * (num_words // 3)).ngram_chars
    num_chars = 5 * num_words // 3
    assert counts[0] == num_chars
    # `ab cd` and `ab cd e` come once a round; of four words none comes as often, for the last round has but three
    assert counts[1:4] == (4 * num_words // 3, 5 * (num_words // 3), 7 * (num_words // 3 - 1))
    assert counts[4:] == (num_chars,) * 6


MARKS = ["#", "...", ". . .", "…", ".", " ", "\n", "•", "- ", "* ", "●", "The", "the,", "\u212anow", "WITH", "7",
         "\u00a0", "\0", "é", "be\t", "of\v"]  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(MARKS), min_size=1, max_size=30))
def test_quality_of_texts_of_marks_is_that_of_the_slow_rules(tokens):
    text = "x" + "".join(tokens)
    assert values_of(GopherQuality(), text) == slow_rules.quality(text)
    assert plain.count_quality(text, frozenset(QUALITY_STOP_WORDS))._asdict() == kernel_counts(text)


QUALITY_STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")


def kernel_counts(text):
    kernel = pytest.importorskip("hf_ext.data.curation.kernel")
    return kernel.count_quality(text, frozenset(QUALITY_STOP_WORDS))._asdict()


def test_one_line_said_ten_times_goes_and_one_line_alone_stays(counters):
    assert rules_broken(GopherRepetition(), ["a b\n" * 10, "a b"]) == ["line_count", None]


def test_the_first_copy_counts(counters):
    """Three of seven, where Gopher and datatrove count two."""
    assert values_of(GopherRepetition(), "\n".join("abcdafa"))["line_count"] == 3 / 7


@pytest.mark.parametrize("text", [
    "\0", "\ud800", "\ud800\udc00 " * 60, "a\0b " * 60, "…" * 500, "-" * 500, "漢字" * 500, "\u2028a" * 60, "😀" * 60,
    "1" * 5000, "A\u0308" * 500, "🇩🇪" * 99, "א'" * 60,
])  # fmt: skip
def test_hostile_texts_are_counted_as_the_slow_rules_do(counters, text):
    assert values_of(GopherQuality(), text) == slow_rules.quality(text)
    assert values_of(GopherRepetition(), text) == slow_rules.repetition(text, words_uax(text))


def test_a_line_of_fifty_million_letters_is_judged():
    pytest.importorskip("numba")
    text = "a" * 50_000_000
    assert rules_broken(GopherQuality(), [text, text + "b"]) == ["word_count", "too_long"]
    assert rules_broken(GopherRepetition(), [text]) == [None]


def test_bounds_are_the_users_and_a_wrong_number_of_them_is_named():
    assert rules_broken(GopherQuality(min_words=3, min_stop_words=0), ["four words of prose", "no prose"]) == [
        None,
        "word_count",
    ]
    assert GopherRepetition(max_top_ngram_shares=[0.5, 0.5, 0.5]).max_top_ngram_shares == (0.5, 0.5, 0.5)
    with pytest.raises(
        ValueError, match=r"max_repeated_ngram_shares must have 6 shares, for n = \(5, 6, 7, 8, 9, 10\)"
    ):
        GopherRepetition(max_repeated_ngram_shares=(0.1,))


def test_annotated_rows_have_the_values_and_none_is_dropped():
    texts = ["too short", "", prose(60)]
    for step in (GopherQuality(annotate=True), GopherRepetition(annotate=True)):
        rows = Dataset.from_dict({"text": texts}).map(step, batched=True)
        assert rows["drop_reason"][:] == ["", "", ""]
        assert rows["text"][:] == texts
        for rule, value in values_of(step, texts[2]).items():
            column = rows[f"{step.name}_{rule}"]
            assert column[1] is None
            assert column[2] == value
    assert rows["gopher_repetition_top_2_gram"][0] == 0


def test_steps_pickle_and_name_the_versions_that_decide():
    for step in (GopherQuality(), GopherRepetition(annotate=True)):
        assert pickle.loads(pickle.dumps(step)) == step
        assert set(step.versions) == {"unicodedata", "regex"}
