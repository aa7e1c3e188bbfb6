"""Which exemplars are found: against brute force, closed forms, and the rules of exclusion."""

from __future__ import annotations

import math
import pickle
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_ext.data.exemplars import (
    NOTHING_EXCLUDED,
    Bm25Retriever,
    DenseRetriever,
    Exclude,
    ExemplarStore,
    FixedRetriever,
    HybridRetriever,
    RandomRetriever,
    Target,
    WordSplitter,
    retrievers,
)

pytest.importorskip("bm25s")

WORDS = ["ant", "bee", "cat", "dog", "eel", "fox", "gnu"]
TEXT = st.lists(st.sampled_from(WORDS), min_size=1, max_size=6).map(" ".join)


def store_of(queries: list[str], documents: list[str] | None = None, **options) -> ExemplarStore:
    documents = documents or [f"document {i}" for i in range(len(queries))]
    return ExemplarStore({"query": queries, "document": documents}, **options)


def rows_of(hits) -> list[int]:
    return [hit.row for hit in hits]


def lucene_scores(query: str, texts: list[str], k1: float, b: float) -> list[float]:
    """BM25 in the form of Lucene's documentation (without its lossy lengths), document by document."""
    split = [text.split() for text in texts]
    mean = sum(map(len, split)) / len(split)
    scores = []
    for words in split:
        total = 0.0
        for word in query.split():
            containing = sum(word in other for other in split)
            if word in words:
                idf = math.log(1 + (len(texts) - containing + 0.5) / (containing + 0.5))
                tf = Counter(words)[word]
                total += idf * tf / (tf + k1 * (1 - b + b * len(words) / mean))
        scores.append(total)
    return scores


def check_order(queries: list[str], target: str, k: int, k1: float, b: float) -> None:
    store = store_of(queries, retriever=Bm25Retriever(k1=k1, b=b))
    scores = lucene_scores(target, queries, k1, b)
    # equal up to the rounding of a sum is equal: then the first row comes first
    order = sorted((i for i, score in enumerate(scores) if score > 0), key=lambda i: (-np.float32(scores[i]), i))
    hits = store.search([target], k, exclude=NOTHING_EXCLUDED)[0]
    assert rows_of(hits) == order[:k]
    np.testing.assert_allclose([hit.score for hit in hits], [scores[i] for i in order[:k]], rtol=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    queries=st.lists(TEXT, min_size=1, max_size=60),
    target=TEXT,
    k=st.integers(1, 12),
    k1=st.sampled_from([0.9, 1.2]),
    b=st.sampled_from([0.0, 0.4, 1.0]),
)
def test_bm25_order_is_that_of_a_brute_force_scorer(queries, target, k, k1, b):
    distinct = [f"{query} row{i}" for i, query in enumerate(queries)]  # no pair twice, ties all the same
    check_order(distinct, target, k, k1, b)


@pytest.mark.slow  # numba compiles for many seconds
def test_bm25_with_numba_gives_the_order_of_a_brute_force_scorer(monkeypatch):
    pytest.importorskip("numba")
    monkeypatch.setattr(retrievers, "NUMBA_FROM", 0)
    rng = np.random.default_rng(0)
    for n in (1, 5, 80):
        queries = [" ".join(rng.choice(WORDS, rng.integers(1, 7))) + f" row{i}" for i in range(n)]
        for _ in range(10):
            check_order(queries, " ".join(rng.choice(WORDS, 3)), int(rng.integers(1, 12)), 0.9, 0.4)


def test_a_tie_longer_than_the_first_fetch_is_in_the_order_of_rows():
    store = store_of([f"cat row{i}" for i in range(100)])
    assert rows_of(store.search(["cat"], 30)[0]) == list(range(30))
    assert rows_of(store.search(["cat"], 3, exclude_ids=[str(i) for i in range(90)])[0]) == [90, 91, 92]


def test_no_shared_word_gives_nothing_and_neither_does_k_zero():
    store = store_of(["cat", "dog"])
    assert store.search(["elephants", "", "?!"], 2) == [[], [], []]
    assert store.search(["cat bee", "dog bee"], [0, 1])[0] == []
    assert store_of(["?", "!"]).search(["cat"]) == [[]]


def test_a_repeated_word_of_the_query_counts_twice_as_in_lucene():
    store = store_of(["cat x", "dog y", "dog z"])
    once, twice = (store.search([query], 1)[0][0].score for query in ("cat", "cat cat"))
    assert twice == pytest.approx(2 * once)


class TestExclusion:
    """The target is row 0 in disguise; rows 1 to 4 each break one rule; rows 5 to 7 may be shown."""

    QUERIES = ("cat one", "CAT  One", "cat two", "cat three", "cat four", "cat five", "cat six", "cat seven")
    DOCUMENTS = ("gold", "other", "GOLD ", "of doc 9", "trap", "d5", "d6", "d7")
    TARGET = Target(id="q0", positive="Gold", doc_id="d9", negatives=("trap", "unknown"))

    @pytest.fixture
    def store(self) -> ExemplarStore:
        rows = {
            "query": self.QUERIES,
            "document": self.DOCUMENTS,
            "id": [f"q{i}" for i in range(8)],
            "doc_id": ["d0", "d1", "d2", "d9", "d4", "d5", "d6", "d7"],
        }
        return ExemplarStore(rows)

    def shown(self, store, target=TARGET, **rules) -> set[int]:
        off = {"self_id": False, "same_text": False, "same_positive": False, "negatives": False}
        return set(rows_of(store.search(["cat one"], 8, targets=[target], exclude=Exclude(**(off | rules)))[0]))

    def test_each_rule_alone(self, store):
        everything = set(range(8))
        assert self.shown(store) == everything
        assert self.shown(store, self_id=True) == everything - {0}
        assert self.shown(store, same_text=True) == everything - {0, 1}
        assert self.shown(store, negatives=True) == everything - {4}
        # rows 0 and 1 are pairs of the target's own query: their documents are its positives too
        assert self.shown(store, same_positive=True) == everything - {0, 1, 2, 3}

    def test_all_rules_are_on_by_default_and_k_is_still_reached(self, store):
        assert rows_of(store.search(["cat one"], 3, targets=[self.TARGET])[0]) == [5, 6, 7]

    def test_without_knowledge_of_the_target_its_text_still_tells(self, store):
        assert set(rows_of(store.search(["cat one"], 8)[0])) == {3, 4, 5, 6, 7}

    def test_ids_may_be_named(self, store):
        hits = store.search(["cat one"], 8, exclude=NOTHING_EXCLUDED, exclude_ids=["q5", "q7", "unknown"])
        assert set(rows_of(hits[0])) == {0, 1, 2, 3, 4, 6}


def test_many_copies_of_the_target_leave_k_others():
    store = store_of(["cat"] * 200 + [f"cat number{i}" for i in range(7)])
    assert rows_of(store.search(["Cat "], 5)[0]) == [200, 201, 202, 203, 204]


def test_a_pair_is_shown_once_and_k_is_still_reached():
    store = store_of(["cat a"] * 50 + ["cat b", "cat c"], ["same"] * 50 + ["other", "third"])
    assert rows_of(store.search(["cat"], 3)[0]) == [0, 50, 51]
    assert rows_of(store.search(["cat"], 9)[0]) == [0, 50, 51]


# --- vectors ---------------------------------------------------------------------------------------------------------


class Angles:
    """Texts are angles in degrees; their vectors lie on a circle of another radius each."""

    def __call__(self, texts) -> np.ndarray:
        degrees = np.array([float(text) for text in texts])
        radius = 1 + degrees[:, None] % 7
        return radius * np.stack([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))], axis=1)


def test_dense_finds_the_smallest_angle():
    store = store_of(["10", "350", "90", "25", "180"], retriever="dense", encode=Angles())
    hits = store.search(["5"], 3, exclude=NOTHING_EXCLUDED)[0]
    assert [hit.query for hit in hits] == ["10", "350", "25"]
    np.testing.assert_allclose([hit.score for hit in hits], np.cos(np.radians([5, 15, 20])), rtol=1e-5)
    assert rows_of(store.search(["10"], 2)[0]) == [3, 1]


def test_given_vectors_are_used_and_wrong_ones_refused():
    vectors = Angles()(["90", "0"])
    store = store_of(["0", "90"], retriever="dense", encode=Angles(), vectors=vectors)
    assert store.search(["1"], 1)[0][0].query == "90"
    for bad in (vectors[:1], vectors[0], vectors * np.nan):
        with pytest.raises(ValueError, match=r"vectors .* must be finite, one a text: expected shape \(2, dim\)"):
            store_of(["0", "90"], retriever="dense", encode=Angles(), vectors=bad).search(["1"])


def test_hybrid_is_the_sum_of_reciprocal_ranks():
    queries = ["0", "40 40 40", "90", "10"]
    by_words = [1]  # "40" alone is a common word
    by_angle = [1, 3, 0, 2]  # 40, 10, 0, 90 degrees from "40" (a repeated word is one angle)

    def encode(texts):
        return Angles()([text.split()[0] for text in texts])

    hybrid = HybridRetriever(DenseRetriever(encode))
    hits = store_of(queries, retriever=hybrid).search(["40"], 4, exclude=NOTHING_EXCLUDED)[0]
    expected = {
        row: sum(1 / (60 + ranks.index(row) + 1) for ranks in (by_words, by_angle) if row in ranks) for row in range(4)
    }
    assert rows_of(hits) == sorted(expected, key=lambda row: -expected[row])
    np.testing.assert_allclose([hit.score for hit in hits], sorted(expected.values(), reverse=True))


# --- random, fixed, diverse ------------------------------------------------------------------------------------------


def test_random_draws_every_row_equally_often_and_none_twice():
    store = store_of([f"text {i}" for i in range(10)], retriever="random")
    seen = np.zeros(10)
    for number in range(2000):
        rows = rows_of(store.search([f"query {number}"], 3)[0])
        assert len(set(rows)) == 3
        seen[rows] += 1
    chi_square = ((seen - 600) ** 2 / 600).sum()
    assert chi_square < 27.9  # 0.999 quantile of 9 degrees of freedom; draws without repeats vary less


def test_random_depends_on_seed_salt_and_text_only_and_obeys_the_rules():
    queries = [f"text {i}" for i in range(50)]
    store = store_of(queries, retriever=RandomRetriever(seed=1))
    forwards = [rows_of(hits) for hits in store.search(queries, 4)]
    backwards = [rows_of(hits) for hits in store.search(queries[::-1], 4)][::-1]
    assert forwards == backwards
    assert all(row not in rows for row, rows in enumerate(forwards))  # never itself
    assert [rows_of(hits) for hits in store.search(queries, 4, salt="epoch 2")] != forwards
    other = store_of(queries, retriever=RandomRetriever(seed=2))
    assert [rows_of(hits) for hits in other.search(queries, 4)] != forwards
    assert sorted(rows_of(store.search(["text 3"], 99)[0])) == [i for i in range(50) if i != 3]


def test_random_draws_do_not_depend_on_the_process():
    code = (
        "from hf_ext.data.exemplars import ExemplarStore\n"
        "rows = {'query': [f'text {i}' for i in range(99)], 'document': ['d'] * 99}\n"
        "store = ExemplarStore(rows, retriever='random')\n"
        "print([hit.row for hit in store.search(['a question'], 9)[0]])"
    )
    first, second = (
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("1", "2")
    )
    assert first == second
    assert first.count(",") == 8


def test_fixed_shows_the_named_ids_in_their_order_but_never_the_target_itself():
    store = store_of(["a", "b", "c", "d"], retriever=FixedRetriever(("2", "0", "3")))
    assert rows_of(store.search(["x"], 2)[0]) == [2, 0]
    assert rows_of(store.search(["C"], 2)[0]) == [0, 3]
    assert rows_of(store_of(["a", "b", "c"], retriever="fixed").search(["x"], 2)[0]) == [0, 1]
    with pytest.raises(ValueError, match="no exemplar with id 'nobody'"):
        store_of(["a"], retriever=FixedRetriever(("nobody",))).search(["x"])


def test_mmr_takes_the_less_like_one_where_plain_choice_takes_the_twin():
    # cosines with 0 degrees: 0.985 at 10, 0.978 at 12, 0.940 at -20
    store = store_of(["10", "12", "-20", "80"], retriever="dense", encode=Angles())
    assert [hit.query for hit in store.search(["0"], 2)[0]] == ["10", "12"]
    gains = {
        d: 0.5 * math.cos(math.radians(d)) / math.cos(math.radians(10)) - 0.5 * math.cos(math.radians(d - 10))
        for d in (12, -20, 80)
    }
    best = max(gains, key=lambda d: gains[d])
    assert [hit.query for hit in store.search(["0"], 2, mmr=0.5)[0]] == ["10", str(best)]
    assert best != 12
    assert [hit.query for hit in store.search(["0"], 2, mmr=1.0)[0]] == ["10", "12"]


def test_mmr_with_bm25_steps_over_a_near_copy():
    store = store_of(["cat dog bee ant", "cat dog bee ant eel", "cat fox", "gnu"])
    scores = [hit.score for hit in store.search(["cat dog bee"], 3)[0]]
    assert rows_of(store.search(["cat dog bee"], 2)[0]) == [0, 1]
    # shared words: 4 of 5 with the near copy, 1 of 5 with the other; the near copy is worth more than 0.9 of the best
    for relevance, second in ((0.5, 1), (0.3, 2)):
        gains = [relevance * scores[1] / scores[0] - (1 - relevance) * 4 / 5]
        gains.append(relevance * scores[2] / scores[0] - (1 - relevance) * 1 / 5)
        assert gains.index(max(gains)) + 1 == second
        assert rows_of(store.search(["cat dog bee"], 2, mmr=relevance)[0]) == [0, second]


def test_min_score_is_a_floor():
    store = store_of(["10", "80"], retriever="dense", encode=Angles())
    assert [hit.query for hit in store.search(["0"], 2, min_score=0.5)[0]] == ["10"]
    assert store.search(["180"], 2, min_score=0.5) == [[]]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"queries": "cat"}, TypeError, r"search\(\[query\]\)"),
        ({"queries": ["a", "b"], "targets": [None]}, ValueError, "2 queries need as many targets"),
        ({"queries": ["a"], "k": [1, 2]}, ValueError, "1 queries need as many"),
        ({"queries": ["a"], "mmr": 1.5}, ValueError, r"lies in \[0, 1\]"),
    ],
)
def test_search_says_what_is_wrong_with_its_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        store_of(["cat"]).search(**arguments)


def test_mmr_needs_scores():
    with pytest.raises(ValueError, match="random and fixed exemplars have none"):
        store_of(["a", "b", "c"], retriever="random").search(["x"], 2, mmr=0.5)


@pytest.mark.parametrize("retriever", ["dense", "hybrid", "nearest"])
def test_a_retriever_that_cannot_be_made_says_so(retriever):
    with pytest.raises(ValueError, match=r"needs encode=|must be bm25, dense"):
        store_of(["a"], retriever=retriever)
    with pytest.raises(ValueError, match="k1 >= 0"):
        Bm25Retriever(k1=-1)


def test_an_object_of_ones_own_serves_as_retriever():
    class Last:
        def ranker(self, store):
            self.size = len(store)
            return self

        def best(self, query, wanted, excluded, salt):
            return [(row, 1.0) for row in reversed(range(self.size)) if row not in excluded][:wanted]

    assert rows_of(store_of(["a", "b", "c"], retriever=Last()).search(["C"], 2)[0]) == [1, 0]


def test_a_store_survives_pickling_without_its_index():
    store = store_of([f"cat {word}" for word in WORDS])
    hits = store.search(["cat gnu"], 3)
    state = pickle.dumps(store)
    assert b"vocabulary" not in state
    assert pickle.loads(state).search(["cat gnu"], 3) == hits


# --- words -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Is B-12 a Vitamin?", ["is", "b", "12", "a", "vitamin"]),
        ("機械学習とは", ["機械", "械学", "学習", "習と", "とは"]),
        ("用 GPU 训练模型", ["用", "gpu", "训练", "练模", "模型"]),
        ("서울의 날씨", ["서울", "울의", "날씨"]),
        ("ภาษาไทย", ["ภา", "าษ", "ษา", "าไ", "ไท", "ทย"]),
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
        ("Straße CAFÉ cafe\u0301", ["strasse", "café", "café"]),
        ("ｆｕｌｌ width", ["full", "width"]),
        ("...", []),
    ],
)
def test_words_of_every_script(text, words):
    assert WordSplitter()(text) == words


def test_chinese_questions_find_each_other_and_words_alone_would_not():
    questions = ["法国的首都是哪里？", "地球有多大？", "水的沸点是多少度？"]
    store = store_of(questions)
    assert rows_of(store.search(["请问水在高山上的沸点？"], 1)[0]) == [2]
    assert all(" " not in text for text in questions)  # split at spaces, each would be one word, found by none


def test_stop_words_are_left_out():
    assert WordSplitter(("the", "is"))("The cat IS here") == ["cat", "here"]
