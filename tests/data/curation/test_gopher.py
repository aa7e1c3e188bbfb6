"""Quality and repetition against peers' own verdicts, and against the rules written down slowly."""

from __future__ import annotations

import pickle
from dataclasses import replace

import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_ext.data.curation import plain
from hf_ext.data.curation.quality import GopherQuality
from hf_ext.data.curation.repetition import GopherRepetition
from hf_ext.data.curation.words import words_uax
from tests.data.curation import slow_rules
from tests.data.curation.documents import html_texts


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


@pytest.mark.real
def test_values_of_real_documents_are_those_of_the_slow_rules(text_docs, real_data):
    texts = [row["text"] for row in text_docs] + html_texts(real_data)[::24]
    quality_values = GopherQuality().measure(texts, {})[1]
    repetition_values = GopherRepetition().measure(texts, {})[1]
    quality_rules = rules_broken(GopherQuality(), texts)
    repetition_rules = rules_broken(GopherRepetition(), texts)
    for row, text in enumerate(texts):
        slow_quality = slow_rules.quality(text)
        assert {rule: numbers[row] for rule, numbers in quality_values.items()} == slow_quality, row
        assert quality_rules[row] == slow_rules.quality_verdict(slow_quality)
        slow_repetition = slow_rules.repetition(text, slow_rules.words_by_regex(text))
        assert {rule: numbers[row] for rule, numbers in repetition_values.items()} == slow_repetition, row
        assert repetition_rules[row] == slow_rules.repetition_verdict(slow_repetition)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(["a", "bb", "a\n", "bb\n\n", "ccc", " \n\n", "d."]), min_size=1, max_size=40))
def test_repetition_of_texts_of_few_words_is_that_of_the_slow_rules(tokens):
    text = "x " + " ".join(tokens)
    slow = slow_rules.repetition(text, words_uax(text))
    assert values_of(GopherRepetition(), text) == slow
    assert plain.count_repetition(text).ngram_chars[0] == sum(map(len, words_uax(text)))


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


def prose(num_words):
    """Plain words, `num_words` by every count, two of them stop words."""
    words = (f"word{chr(97 + k % 26)}{chr(97 + k // 26 % 26)}" for k in range(num_words - 2))
    return " ".join(["the", "of", *words])


# A document at the bound, which stays, and one just beyond.
QUALITY_EDGES = [
    ("word_count", prose(50), prose(49)),
    ("word_count", "the of " + "abcd " * 99_998, "the of " + "abcd " * 99_999),
    ("mean_word_len", "the of abcd " + "abc " * 60, "the of abc " + "abc " * 60),
    ("mean_word_len", "the of " + "abcdefghij " * 58 + "a" * 25, "the of " + "abcdefghij " * 58 + "a" * 26),
    ("symbol_ratio", prose(90) + " #ab" * 10, prose(90) + " #ab" * 9 + " ##a"),
    ("symbol_ratio", prose(98) + " #a#... …. . .#####", prose(98) + " #a#... …. . .######"),
    ("bullet", "\n".join(["* " + prose(6)] * 9 + [prose(6)]), "\n".join(["- " + prose(6)] * 10)),
    ("ellipsis", (prose(30) + "…\n") * 3 + (prose(30) + "\n") * 7, (prose(30) + "...\n") * 4 + (prose(30) + "\n") * 9),
    ("alpha", prose(80) + " 1234" * 20, prose(79) + " 1234" * 20),
    ("stop_words", "THE Of " + prose(60)[7:], "THE of, " + prose(60)[7:]),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "staying", "going"), QUALITY_EDGES)
def test_quality_keeps_at_the_bound_and_drops_beyond(counters, rule, staying, going):
    assert rules_broken(GopherQuality(), [staying, going]) == [None, rule]
    for text, verdict in ((staying, None), (going, rule)):
        assert slow_rules.quality_verdict(slow_rules.quality(text)) == verdict


def repeated(size, copies, num_words):
    """`copies` of a run of `size` words apart from each other among words that occur once; all of four letters."""
    run = [f"r{chr(97 + k)}zz" for k in range(size)]
    unique = [
        f"q{chr(97 + k % 26)}{chr(97 + k // 26 % 26)}{chr(97 + k // 676)}" for k in range(num_words - copies * size)
    ]
    return " ".join(word for k in range(copies) for word in [*run, *unique[k::copies]])


def only(rule):
    """A step that asks this rule of n-grams alone, at its own bound."""
    sizes = {f"{'top' if size <= 4 else 'repeated'}_{size}_gram": size for size in range(2, 11)}
    shares = tuple(slow_rules.REPETITION_BOUNDS[name] if name == rule else 100.0 for name in sizes)
    return GopherRepetition(max_top_ngram_shares=shares[:3], max_repeated_ngram_shares=shares[3:])


@pytest.mark.parametrize(("size", "rule"), [*enumerate([*slow_rules.REPETITION_BOUNDS][4:], 2)])
def test_repetition_of_ngrams_keeps_at_the_bound_and_drops_beyond(counters, size, rule):
    bound = slow_rules.REPETITION_BOUNDS[rule]
    copies = round(100 * bound)
    texts = [repeated(size, copies, 100 * size), repeated(size, copies, 100 * size - 1)]
    assert values_of(GopherRepetition(), texts[0])[rule] == bound
    assert rules_broken(only(rule), texts) == [None, rule]
    assert slow_rules.repetition(texts[0], words_uax(texts[0]))[rule] == bound


@pytest.mark.parametrize(("unit", "separator"), [("line", "\n"), ("paragraph", "\n\n")])
def test_repetition_of_pieces_keeps_at_the_bound_and_drops_beyond(counters, unit, separator):
    for share, bound, at_bound, beyond in (
        ("count", 0.3, ["ab"] * 3 + ["*"] * 7, ["ab"] * 4 + ["*"] * 9),
        ("chars", 0.2, ["abcde"] * 2 + ["*"] * 5, ["abcdef"] * 2 + ["*"] * 5),
    ):
        texts = []
        for pieces in (at_bound, beyond):
            texts.append(separator.join(f"{k:08}" if piece == "*" else piece for k, piece in enumerate(pieces)))
        values = [values_of(GopherRepetition(), text)[f"{unit}_{share}"] for text in texts]
        assert values[0] == bound < values[1]
        step = GopherRepetition(
            **{f"max_{other}_{kind}": 1 for other in ("line", "paragraph") for kind in ("share", "char_share")}
        )
        step = replace(step, **{f"max_{unit}_{'share' if share == 'count' else 'char_share'}": bound})
        assert rules_broken(step, texts) == [None, f"{unit}_{share}"]


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
