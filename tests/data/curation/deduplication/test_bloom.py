"""Bloom deduplication against exact sets of tuples in plain Python, and the filter against its formula."""

from __future__ import annotations

import gzip
import json
import math
import random
import re

import numpy as np
import pytest
from datasets import Dataset

from hf_ext.data.curation.deduplication import BloomDeduplication, OverfullError, bloom_filter, bloom_size, deduplicate
from hf_ext.data.curation.deduplication.bloom_filter import BloomFilter
from hf_ext.data.curation.steps import Drop
from hf_ext.data.curation.words import segments_uax


def tokens_of(text: str) -> list[str]:
    """Words and single marks: what Unicode's word boundaries give in such texts as are drawn here."""
    return re.findall(r"\w+|[^\w\s]", text)


def old_both(texts, ngram, min_ngram, threshold, tokenize=tokens_of):
    """What DCLM's BFF does in mode old-both, with a set that never errs: text left, share known of the whole."""
    known = set()
    outcome = []
    for text in texts:
        cut = re.split(r"(?=\n)", text)
        stays, hits, total = [], 0, 0
        for piece in cut:
            tokens = tokenize(piece)
            ngrams = [tuple(tokens[i : i + ngram]) for i in range(len(tokens) - ngram + 1)]
            if not ngrams and len(tokens) >= min_ngram:
                ngrams = [tuple(tokens)]
            contained = sum(gram in known for gram in ngrams)
            hits, total = hits + contained, total + len(ngrams)
            if ngrams and contained / len(ngrams) > threshold:
                continue
            known.update(ngrams)
            stays.append(piece)
        share = hits / total if total else 0.0
        outcome.append(("" if share > threshold else "".join(stays), share))
    return outcome


def both(texts, ngram, min_ngram, threshold):
    """Mode both: whole documents first, n-grams across newlines, at least the threshold."""
    known = set()
    outcome = []
    for text in texts:
        cut = re.split(r"(?=\n)", text)
        tokens = [(token, number) for number, piece in enumerate(cut) for token in tokens_of(piece)]
        grams = [tokens[i : i + ngram] for i in range(len(tokens) - ngram + 1)]
        is_short = not grams and len(tokens) >= min_ngram
        grams = [tokens] if is_short else grams
        spans = [(tuple(t for t, _ in g), {n for _, n in g}) for g in grams]
        hits = sum(gram in known for gram, _ in spans)
        if spans and hits / len(spans) >= threshold:
            outcome.append(("", hits / len(spans)))
            continue
        cuts = set()
        for number in range(len(cut)):
            within = [gram for gram, pieces in spans if pieces == {number} and not is_short]
            if within and sum(gram in known for gram in within) / len(within) >= threshold:
                cuts.add(number)
        known.update(gram for gram, pieces in spans if not pieces & cuts)
        rest = "".join(piece for number, piece in enumerate(cut) if number not in cuts)
        outcome.append((rest.rstrip() if cuts else rest, hits / len(spans) if spans else 0.0))
    return outcome


def decided(step, texts, size=1_000):
    tables = [step.features(texts[i : i + size], {}) for i in range(0, len(texts), size)]
    return [decision for table in step.decide(tables) for decision in table]


def texts_after(step, texts, size=1_000):
    """What is left of each text; empty where it is dropped."""
    decisions = decided(step, texts, size)
    return [
        "" if d.drop is not None else text if d.kept_pieces is None else step.rewrite(text, d.kept_pieces)
        for text, d in zip(texts, decisions, strict=True)
    ]


def drawn_documents(seed: int, count: int = 120) -> list[str]:
    """Documents of lines that are drawn from a few, so that every share of known n-grams comes up."""
    draw = random.Random(seed)
    words = ["a", "bee", "c3", "Dog", ",", "."]
    line = lambda: " ".join(draw.choices(words, k=draw.randrange(14)))  # noqa: E731
    lines = [line() for _ in range(30)] + ["", " ", "\t"]
    documents = []
    for _ in range(count):
        chosen = [draw.choice(lines) if draw.random() < 0.7 else line() for _ in range(draw.randrange(1, 6))]
        documents.append("\n".join(chosen))
    return documents


@pytest.mark.parametrize(("mode", "oracle"), [("old-both", old_both), ("both", both)])
@pytest.mark.parametrize(("ngram", "min_ngram"), [(3, 3), (5, 2), (13, 13)])
@pytest.mark.parametrize("threshold", [0.5, 0.8, 1.0])
def test_without_false_positives_it_decides_as_exact_sets(mode, oracle, ngram, min_ngram, threshold):
    step = BloomDeduplication(mode=mode, ngram=ngram, min_ngram=min_ngram, threshold=threshold, fp_rate=1e-9)
    cut, dropped = 0, 0
    for seed in range(4):
        texts = drawn_documents(seed)
        expected = [text if text.strip() else "" for text, _ in oracle(texts, ngram, min_ngram, threshold)]
        # a text of white space alone has nothing to go: `curate` leaves it out as empty
        left = [text if text.strip() else "" for text in texts_after(step, texts)]
        assert left == expected
        cut += sum(0 < len(a) < len(b) for a, b in zip(left, texts, strict=True))
        dropped += sum(not a and bool(b.strip()) for a, b in zip(left, texts, strict=True))
    if ngram == 3 and threshold < 1:
        assert cut > 10  # else the comparison would say little
        assert dropped > 50


def test_at_the_threshold_old_both_keeps_and_both_drops():
    base = " ".join(f"w{n}" for n in range(12))  # 10 trigrams
    later = " ".join([*(f"w{n}" for n in range(10)), "x", "y"])  # the first 8 of its 10
    texts = [base, later]
    for mode, share in (("old-both", None), ("both", 0.8)):
        step = BloomDeduplication(mode=mode, ngram=3, min_ngram=3, fp_rate=1e-9)
        assert decided(step, texts)[1].drop == (share and Drop("known_ngrams", 0.8, 0.8))
    step = BloomDeduplication(ngram=3, min_ngram=3, threshold=0.79, fp_rate=1e-9)
    assert decided(step, texts)[1].drop == Drop("known_ngrams", 0.8, 0.79)


def test_a_dropped_document_leaves_its_other_pieces_known_in_old_both_only():
    page = " ".join(f"p{n}" for n in range(40))
    news = " ".join(f"n{n}" for n in range(8))
    texts = [page, f"{page}\n{news}", news]
    for mode, rest in (("old-both", ""), ("both", news)):
        step = BloomDeduplication(mode=mode, ngram=4, min_ngram=4, fp_rate=1e-9)
        assert texts_after(step, texts) == [page, "", rest]


def test_old_both_knows_a_document_s_own_lines_and_both_does_not():
    line = " ".join(f"w{n}" for n in range(20))
    other = " ".join(f"v{n}" for n in range(20))
    text = f"{line}\n{other}\n{line}\n{other} and more than that"
    assert texts_after(BloomDeduplication(fp_rate=1e-9), [text]) == [f"{line}\n{other}\n{other} and more than that"]
    assert texts_after(BloomDeduplication(mode="both", fp_rate=1e-9), [text]) == [text]


@pytest.mark.real
def test_all_planted_duplicates_of_real_documents_go_and_nothing_known_is_missed(real_data):
    rows = gzip.decompress((real_data / "web_docs" / "text_docs.jsonl.gz").read_bytes()).splitlines()
    texts = [text for text in (json.loads(row)["text"] for row in rows) if len(segments_uax(text)) > 200][:300]
    planted = texts[:70]
    tokens = lambda piece: [token for token in segments_uax(piece) if not token.isspace()]  # noqa: E731
    expected = old_both([*texts, *planted], 13, 13, 0.8, tokens)
    notes = {}
    step = BloomDeduplication()
    decisions = [d for part in step.decide([step.features([*texts, *planted], {})], notes) for d in part]
    values = [d.drop.value if d.drop is not None else None for d in decisions]
    is_long = [max(len(tokens(line)) for line in text.split("\n")) > 13 for text in planted]
    assert sum(is_long) == 70
    assert values[-70:].count(None) == 0  # 70 of 70
    # a filter forgets nothing: what the exact set drops is dropped, and every share known is as large
    for (text, share), value in zip(expected, values, strict=True):
        assert value is not None if not text else True
        assert value is None or value >= share
    extra = sum(value is not None and bool(text) for (text, _), value in zip(expected, values, strict=True))
    assert extra <= 3  # documents of a few n-grams alone can go by errors of one in a hundred
    assert notes["false_positive_rate"] <= 0.01


@pytest.mark.parametrize("is_compiled", [True, False])
def test_the_filter_forgets_nothing_and_errs_as_its_formula_says(is_compiled, monkeypatch):
    if is_compiled:
        pytest.importorskip("numba")
    else:
        monkeypatch.setattr(bloom_filter, "compiled_module", lambda name: None)
    known = BloomFilter(50_000, 0.01)
    hashes = np.random.default_rng(100).integers(0, 2**64, 50_000, dtype=np.uint64)
    known.insert(hashes[:20_000])
    known.insert(hashes[20_000:])
    assert known.count(hashes) == 50_000
    rate = bloom_filter.false_positive_rate(len(known.bits), 50_000)
    for seed in range(3):
        assert abs(known.measured_fp_rate(seed) - rate) < 3 * math.sqrt(rate / bloom_filter._PROBES) + 1e-4
    assert known.fill == pytest.approx(1 - math.exp(-known.num_hashes * 50_000 / (8 * len(known.bits))), rel=0.01)


def test_compiled_and_plain_set_the_same_bits(monkeypatch):
    pytest.importorskip("numba")
    hashes = np.random.default_rng(2).integers(0, 2**64, 999, dtype=np.uint64)
    filters = [BloomFilter(999, 0.05), BloomFilter(999, 0.05)]
    filters[0].insert(hashes)
    monkeypatch.setattr(bloom_filter, "compiled_module", lambda name: None)
    filters[1].insert(hashes)
    assert filters[0].bits.tolist() == filters[1].bits.tolist()


@pytest.mark.parametrize("num_items", [1, 2, 10, 1_000, 123_456])
@pytest.mark.parametrize("fp_rate", [0.3, 0.01, 1e-6])
def test_a_filter_is_the_smallest_that_holds_the_rate(num_items, fp_rate):
    def formula(num_bytes):
        k = math.ceil(8 * num_bytes / num_items * math.log(2))
        return (1 - (1 - 1 / (8 * num_bytes)) ** (k * num_items)) ** k

    num_bytes, num_hashes = bloom_size(num_items, fp_rate)
    assert formula(num_bytes) <= fp_rate * (1 + 1e-6)
    assert num_bytes == 1 or formula(num_bytes - 1) > fp_rate
    assert num_hashes == math.ceil(8 * num_bytes / num_items * math.log(2))


def test_a_million_ngrams_take_what_bff_takes():
    num_bytes, num_hashes = bloom_size(1_000_000, 0.01)
    assert abs(num_bytes - 1_199_121) <= 1  # its search stops a byte beyond the smallest
    assert num_hashes == 7


def test_more_than_fits_is_an_error_with_the_size_and_remedies():
    texts = [" ".join(f"w{n}" for n in range(10_012))]
    step = BloomDeduplication(max_memory=11_000)
    with pytest.raises(OverfullError, match=r"10,000 n-grams.*takes 11,9\d\d bytes; max_memory is 11,000.*fp_rate"):
        list(step.decide([step.features(texts, {})]))
    assert decided(BloomDeduplication(max_memory=12_000), texts)[0].drop is None
    known = BloomFilter(10, 0.01)
    with pytest.raises(OverfullError, match="made for 10 hashes got 11"):
        known.insert(np.arange(11, dtype=np.uint64))


def test_decisions_do_not_depend_on_tables_or_the_run_and_notes_say_what_was_measured():
    texts = drawn_documents(9, 300)
    for mode in ("old-both", "both"):
        step = BloomDeduplication(mode=mode, ngram=4, min_ngram=4, fp_rate=0.2)
        whole = decided(step, texts)
        assert decided(step, texts) == whole
        assert decided(step, texts, size=1) == whole
        assert decided(step, texts, size=37) == whole
        notes = {}
        list(step.decide([step.features(texts, {})], notes))
        assert notes["filter_bytes"] == bloom_size(notes["ngrams"], 0.2)[0]
        assert 0 < notes["false_positive_rate"] <= 0.2


def test_which_of_two_copies_goes_hangs_on_their_order():
    line = " ".join(f"w{n}" for n in range(30))
    texts = [f"{line}\n" + " ".join(f"a{n}" for n in range(30)), f"{line}\n" + " ".join(f"b{n}" for n in range(30))]
    step = BloomDeduplication(fp_rate=1e-9)
    assert [text.count("\n") for text in texts_after(step, texts)] == [1, 1]
    assert [line in text for text in texts_after(step, texts)] == [True, False]
    assert [line in text for text in texts_after(step, texts[::-1])] == [True, False]


def test_hostile_texts_are_read_like_others():
    texts = [
        "\ud800 a \x00 b " * 9,
        "x" * 300_000,
        "y " * 100_000,
        "\r\n\r\n \u3000\x85" * 9 + "end",
        "\n" * 10_000 + "e\u0301 " * 30,
        "\u0301\u0301",
    ]
    left = texts_after(BloomDeduplication(), [*texts, *texts])
    assert left[:6] == texts
    # twice: the third, tenth ... are one known n-gram; short ones have none
    assert left[6:] == ["", texts[1], "", texts[3], "", texts[5]]


def test_ten_thousand_equal_documents_are_one():
    step = BloomDeduplication()
    table = step.features([" ".join(f"w{n}" for n in range(14))], {}).take([0] * 10_000)
    decisions = [decision for part in step.decide([table]) for decision in part]
    assert [number for number, decision in enumerate(decisions) if decision.drop is None] == [0]


def test_a_dataset_s_texts_are_cut():
    line = " ".join(f"w{n}" for n in range(30))
    rows = Dataset.from_dict({"text": [line, f"new\n{line}\nmore"], "n": [0, 1]})
    notes = {}
    result = deduplicate(rows, BloomDeduplication(ngram=5, min_ngram=5, threshold=0.9), notes=notes)
    assert result["text"] == [line]  # 26 of 26 n-grams of the second are known
    texts = [line, f"new\n{line}\n" + " ".join(f"v{n}" for n in range(30))]
    result = deduplicate(Dataset.from_dict({"text": texts, "n": [0, 1]}), BloomDeduplication(), notes=notes)
    assert result.to_dict() == {"text": [line, "new\n" + " ".join(f"v{n}" for n in range(30))], "n": [0, 1]}
    assert notes["ngrams"] == 3 * 18


@pytest.mark.parametrize(("fields", "message"), [
    ({"mode": "paragraph"}, 'must be "old-both" or "both"'), ({"min_ngram": 14}, r"min_ngram must lie in \[1, ngram"),
    ({"threshold": 0.0}, r"threshold must lie in \(0, 1\]"), ({"fp_rate": 1.0}, r"fp_rate must lie in \(0, 1\)"),
    ({"seed": -1}, "seed must lie"), ({"ngram": 1001}, r"ngram must lie in \[1, 1000\]"),
])  # fmt: skip
def test_bad_settings_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        BloomDeduplication(**fields)
