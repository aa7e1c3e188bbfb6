"""MinHash: the probability of candidates against theory, clusters against brute force, hostile texts."""

from __future__ import annotations

import math
import random
import warnings

import numpy as np
import pytest
from scipy.stats import binom

from hf_ext.data.curation.deduplication import MinHashDeduplication, folded_text, minhash
from hf_ext.data.curation.deduplication.clusters import Clusters, equal_runs
from hf_ext.data.curation.deduplication.folded_text import folded_ngrams, folded_words
from hf_ext.data.curation.deduplication.minhash import MINHASH_PRESETS

LEVELS = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)


def planted_pair(draw: random.Random, similarity: float, shingles: int = 180) -> tuple[str, str, float]:
    """Two texts of distinct words, with the exact Jaccard similarity of their word 5-grams."""
    shared = round(similarity * shingles)
    single = (shingles - shared) // 2
    words = [f"w{draw.getrandbits(60):x}" for _ in range(shared + 4 + 2 * single)]
    common, first, second = words[: shared + 4], words[shared + 4 : -single], words[-single:]
    return " ".join(common + first), " ".join(common + second), shared / (shared + 2 * single)


def decided(step: MinHashDeduplication, texts: list[str], size: int = 1_000) -> list:
    tables = [step.features(texts[i : i + size], {}) for i in range(0, len(texts), size)]
    return [decision for table in step.decide(tables) for decision in table]


def clusters_of(step: MinHashDeduplication, texts: list[str], size: int = 1_000) -> list[int]:
    return [decision.columns["cluster_id"] for decision in decided(step, texts, size)]


def is_quick(preset: str, similarity: float) -> bool:
    """In the default suite: FineWeb's setting, and a level at which DCLM's misses some pairs."""
    return preset == "fineweb" or (preset, similarity) == ("dclm", 0.7)


RECALLS = [
    pytest.param(preset, similarity, marks=() if is_quick(preset, similarity) else pytest.mark.slow)
    for preset in MINHASH_PRESETS
    for similarity in LEVELS
]


@pytest.mark.parametrize(("preset", "similarity"), RECALLS)
def test_recall_of_planted_near_duplicates_is_within_three_standard_deviations_of_theory(preset, similarity):
    check_recall(MinHashDeduplication.preset(preset), similarity)


def check_recall(step: MinHashDeduplication, similarity: float) -> None:
    draw = random.Random(similarity)
    pairs = [planted_pair(draw, similarity) for _ in range(500)]
    clusters = np.array(clusters_of(step, [text for first, second, _ in pairs for text in (first, second)]))
    assert not np.any((clusters != np.arange(1_000)) & (clusters != np.arange(1_000) // 2 * 2))  # none joins strangers
    recall = np.mean(clusters[1::2] == clusters[::2])
    theory = 1 - (1 - pairs[0][2] ** step.rows) ** step.bands
    deviation = math.sqrt(theory * (1 - theory) / 500)
    # where hardly a pair is missed the binomial is no bell: its own quantiles of three deviations
    low, high = binom.ppf([0.00135, 0.99865], 500, theory) / 500
    assert min(low, theory - 3 * deviation) <= recall <= max(high, theory + 3 * deviation)


@pytest.mark.parametrize("is_compiled", [True, False])
def test_signatures_are_the_least_values_of_functions_modulo_32_bits(is_compiled, monkeypatch):
    if is_compiled:
        pytest.importorskip("numba")
    else:
        monkeypatch.setattr(minhash, "compiled_module", lambda name: None)
    monkeypatch.setattr(minhash, "_VALUES", 1_500)
    step = MinHashDeduplication(bands=300, rows=2, seed=2**64 - 1)
    factors, addends = (values.tolist() for values in minhash._hash_functions(600, step.seed))
    assert all(factor % 2 for factor in factors)
    assert len({*factors, *addends}) > 1_190
    shingles = [np.random.default_rng(count).integers(0, 2**32, count, np.uint32) for count in (1, 0, 4, 7, 50)]
    for hashes, signature in zip(shingles, step._signatures(shingles).tolist(), strict=True):
        for factor, addend, value in zip(factors, addends, signature, strict=True):
            assert value == min([(factor * ngram + addend) % 2**32 for ngram in hashes.tolist()], default=2**32 - 1)


def test_the_value_of_a_drop_estimates_the_similarity():
    step = MinHashDeduplication(bands=64, rows=4)
    draw = random.Random(0)
    pairs = [planted_pair(draw, similarity) for similarity in LEVELS for _ in range(40)]
    decisions = decided(step, [text for first, second, _ in pairs for text in (first, second)])
    errors = [d.drop.value - s for d, (_, _, s) in zip(decisions[1::2], pairs, strict=True) if d.drop is not None]
    assert len(errors) > 300
    assert np.mean(np.abs(errors)) < 0.03
    assert abs(np.mean(errors)) < 3 * 0.5 / math.sqrt(256 * len(errors)) + 0.002


def test_candidates_below_the_least_similarity_stay_apart():
    draw = random.Random(3)
    pairs = [planted_pair(draw, similarity) for similarity in (0.6, 0.95) for _ in range(100)]
    texts = [text for first, second, _ in pairs for text in (first, second)]
    loose = np.array(clusters_of(MinHashDeduplication(bands=40, rows=4), texts)[1::2]) % 2 == 0
    strict = np.array(clusters_of(MinHashDeduplication(bands=40, rows=4, min_similarity=0.8), texts)[1::2]) % 2 == 0
    assert loose.mean() > 0.99
    assert strict[:100].mean() < 0.01
    assert strict[100:].mean() > 0.99


def test_clusters_do_not_depend_on_tables_bands_at_a_time_or_the_run(monkeypatch):
    draw = random.Random(5)
    texts = [text for _ in range(150) for text in planted_pair(draw, draw.uniform(0.5, 1))[:2]]
    draw.shuffle(texts)
    for step in (MinHashDeduplication(), MinHashDeduplication(min_similarity=0.7)):
        whole = decided(step, texts)
        assert decided(step, texts, size=1_000) == whole
        assert decided(step, texts, size=7) == whole
        with monkeypatch.context() as patch:
            patch.setattr("hf_ext.data.curation.deduplication.minhash._MEMORY", 10_000)
            assert decided(step, texts, size=50) == whole


@pytest.mark.parametrize("seed", range(20))
def test_joined_clusters_are_the_components_by_flooding(seed):
    draw = np.random.default_rng(seed)
    clusters = Clusters(60)
    links: list[set[int]] = [set() for _ in range(60)]
    for _ in range(4):
        left, right = draw.integers(0, 60, (2, 12))
        clusters.join(left, right)
        for a, b in zip(left.tolist(), right.tolist(), strict=True):
            links[a].add(b)
            links[b].add(a)
    for node in range(60):
        reached, stack = {node}, [node]
        while stack:
            stack.extend(links[stack.pop()] - reached)
            reached.update(stack)
        assert clusters.smallest[node] == min(reached)


def test_equal_runs_name_the_first_and_the_one_before():
    firsts, earlier, rows = equal_runs(np.array([7, 5, 7, 7, 5, 9], np.uint64), np.array([10, 11, 12, 13, 14, 15]))
    triples = sorted(zip(firsts.tolist(), earlier.tolist(), rows.tolist(), strict=True))
    assert triples == [(10, 10, 12), (10, 12, 13), (11, 11, 14)]


def test_case_accents_punctuation_and_widths_make_no_difference_but_words_do():
    texts = [
        "The café's menu, naïve and “fine”: 12 dishes for everyone!",
        "THE CAFE'S MENU — NAIVE AND FINE; 12 dishes\n\nfor everyone",
        "The café's menu, naïve and ﬁne: 12 dishes for everyone",
        "The cafe's menu naive and fine twelve plates for nobody",
    ]
    assert clusters_of(MinHashDeduplication(), texts) == [0, 0, 0, 3]


def test_short_texts_are_compared_whole_and_texts_without_words_stay():
    texts = ["Hello, world", "?!", "hello world", "...", "hello there", "?!", "a b c d", "a b c e", "A-b-c-d"]
    assert clusters_of(MinHashDeduplication(), texts) == [0, 1, 0, 3, 4, 5, 6, 7, 6]


def test_words_are_runs_of_letters_marks_and_digits_and_characters_of_scripts_without_spaces():
    texts = ["don't  stop_me-now 3.14", "", "!?", "word", "\u4eca\u5929x1 \u0e01\u0e02", "हिन्दी भाषा", "\x00\ud800a"]
    assert list(map(words_of, texts)) == [
        ["don", "t", "stop", "me", "now", "3", "14"], [], [], ["word"],
        ["\u4eca", "\u5929", "x1", "\u0e01", "\u0e02"], ["हिन्दी", "भाषा"], ["a"],
    ]  # fmt: skip


def words_of(text):
    points, starts, ends = folded_words(text)
    characters = "".join(map(chr, points.tolist()))
    return [characters[start:end] for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]


def test_characters_are_folded_one_by_one():
    texts = [
        "ΟΔΟΣ ὁδός",
        "İstanbul ISTANBUL",
        "Straße ½ №5 ™",
        "ﬁne ＦＵＬＬ ﾊﾟ",
        "한국어 한국",
        "e\u0301te\u034f\u0323",
        "…x… a\u00b4b",
    ]
    assert list(map(words_of, texts)) == [
        ["οδοσ", "οδοσ"], ["istanbul", "istanbul"], ["straße", "1", "2", "no5", "tm"], ["fine", "full", "ハ\u309a"],
        ["한국어", "한국"], ["ete"], ["x", "a", "b"],
    ]  # fmt: skip


def test_compiled_and_plain_fold_alike(monkeypatch):
    pytest.importorskip("numba")
    draw = np.random.default_rng(0)
    points = [*range(0x20, 0x3000, 7), *range(0x3000, 0x30000, 397), 0xD800, 0x10FFFF]
    points += map(ord, "aaaaaaééé      ½ﬁİΣ한…\u0301" * 30)
    texts = ["".join(map(chr, draw.choice(points, size))) for size in (0, 1, 2, 3, 3, 5, *range(0, 120, 3))]
    texts += ["x" * 9_000, "x" * 9_001, "é" * 5_000 + " ½ " + "漢字" * 50]
    hashes = []
    for _ in range(2):
        hashes.append([folded_ngrams(text, length, 2**64 - 1).tolist() for text in texts for length in (1, 5)])
        monkeypatch.setattr(folded_text, "compiled_module", lambda name: None)
    assert hashes[0] == hashes[1]
    assert sum(map(len, hashes[0])) > 1_000


def test_chinese_is_compared_by_characters():
    text = "今天天气很好我们一起去公园散步吧然后去吃饭看电影最后回家休息明天还要上班所以不能太晚睡觉"
    clusters = clusters_of(MinHashDeduplication(bands=50, rows=3), [text, text.replace("公园", "海边"), text[::-1]])
    assert clusters == [0, 0, 2]


def test_hostile_texts_are_compared_like_others():
    texts = ["\ud800\udfff a\x00b " * 9, "x" * 200_000, "\ud800\udfff a\x00b " * 9, "x" * 200_000, "́" * 99, "́" * 99]
    assert clusters_of(MinHashDeduplication(), texts)[:4] == [0, 1, 0, 1]


def test_a_giant_cluster_is_joined_in_linear_time_and_warned_of_with_its_first_document():
    step = MinHashDeduplication(id_column="id", min_similarity=0.5)
    table = step.features(["one and the same text on every page"], {"id": ["page-0"]})
    many = table.take([0] * 100_000)
    with pytest.warns(UserWarning, match=r"takes 100,000 of 100,000 documents for one.*page-0.*min_similarity"):
        decisions = [decision for part in step.decide([many]) for decision in part]
    assert sum(decision.drop is None for decision in decisions) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        list(step.decide([table.take([0] * 999)]))


@pytest.mark.parametrize(("fields", "message"), [
    ({"bands": 0}, r"bands must lie in \[1, 1000\]"), ({"rows": -1}, "rows must"), ({"ngram": 1001}, "ngram must"),
    ({"min_similarity": 0.0}, r"min_similarity must lie in \(0, 1\]"), ({"seed": -1}, "seed must lie"),
])  # fmt: skip
def test_bad_settings_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        MinHashDeduplication(**fields)


def test_an_unknown_preset_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match=r"'fine-web'.*'dclm', 'fineweb', 'refinedweb'"):
        MinHashDeduplication.preset("fine-web")
