import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_ext.data.pruning import gm_matching, gm_official
from hf_ext.data.pruning.selectors import MATCHERS, SELECTORS, register_selector, select_rows
from tests.data.pruning.oracle import brute_force, cloud

NAMES = ("random", "herding", "gm", "gm_official", "moderate", "easy", "hard", "k_center", "score")


def pick(method, rows, k, **options):
    if method == "score":
        options = {"scores": np.random.default_rng(7).random(len(rows))} | options
    return select_rows(method, rows, k, **options)


def test_every_selector_of_the_papers_is_there():
    assert {*MATCHERS, *SELECTORS} >= set(NAMES)


@pytest.mark.parametrize("method", NAMES)
def test_same_arguments_same_picks_and_no_row_twice(method):
    rows, groups = cloud(90, 5), np.arange(90) % 4
    one, two = (pick(method, rows, 31, groups=groups, seed=3) for _ in range(2))
    assert one.indices.tolist() == two.indices.tolist()
    assert len(set(one.indices.tolist())) == 31
    assert one.indices.dtype == np.int64
    assert [groups[i] for i in one.indices] == one.group.tolist()
    assert one.method == method


@pytest.mark.parametrize("method", NAMES)
def test_a_smaller_k_picks_a_prefix(method):
    rows = cloud(60, 4)
    assert pick(method, rows, 9).indices.tolist() == pick(method, rows, 30).indices[:9].tolist()


@pytest.mark.parametrize("method", NAMES)
def test_all_rows_can_be_asked_for(method):
    assert sorted(pick(method, cloud(25, 3), 25).indices) == list(range(25))


@pytest.mark.parametrize("method", [name for name in NAMES if name not in ("random", "gm_official")])
def test_row_order_does_not_matter(method):
    rows = cloud(81, 5)  # an even number has two rows at the median distance: a tie
    order = np.random.default_rng(1).permutation(81)
    options = [{}, {}]
    if method == "score":
        scores = np.random.default_rng(2).random(81)
        options = [{"scores": scores}, {"scores": scores[order]}]
    shuffled = select_rows(method, rows[order], 20, **options[1]).indices
    assert order[shuffled].tolist() == select_rows(method, rows, 20, **options[0]).indices.tolist()


def test_gm_herding_and_the_released_code_are_the_ones_of_the_package():
    rows, groups = cloud(80, 5), np.arange(80) % 3
    options = {"groups": groups, "show_progress": False}
    gm = select_rows("gm", rows, 20, **options)
    assert gm.indices.tolist() == gm_matching(rows, 20, **options).indices.tolist()
    official = select_rows("gm_official", rows, 20, seed=5, **options)
    assert official.indices.tolist() == gm_official(rows, 20, seed=5, **options).indices.tolist()
    assert gm.indices.tolist() != official.indices.tolist()


def test_herding_matches_the_mean_of_the_rows_as_they_are():
    rows = cloud(80, 5)
    centred = rows.astype(np.float64) - rows.astype(np.float64).mean(0)
    zero = np.zeros(5)
    first = int(np.argmin((centred**2).sum(1)))  # from zero every row ties: the nearest to the target is first
    rest = brute_force(np.delete(centred, first, 0), 19, zero, theta0=-centred[first])
    expected = [first, *(place + (place >= first) for place in rest)]
    assert select_rows("herding", rows, 20).indices.tolist() == expected


def test_herding_stays_near_its_target_where_the_farthest_row_would_leave_it():
    """A well-known library takes the argmax of a positive distance: the row farthest from the target."""
    rows = cloud(300, 3)
    mean = rows.astype(np.float64).mean(0)
    picks = select_rows("herding", rows, 10).indices
    farthest = select_rows("hard", rows, 10).indices
    error, wrong = (np.linalg.norm(rows[some].mean(0) - mean) for some in (picks, farthest))
    assert error < wrong / 4
    assert picks[0] != farthest[0]


def test_random_draws_every_row_equally_often():
    rows = cloud(10, 2)
    counts = np.zeros(10)
    for seed in range(600):
        counts[select_rows("random", rows, 3, seed=seed).indices] += 1
    chi2 = ((counts - 180) ** 2 / 180).sum()
    assert chi2 < 27.9  # 99.9 % of chi-square with 9 degrees; sampling without replacement only lowers it


def test_random_needs_no_vectors():
    assert (
        select_rows("random", None, 5, scores=np.zeros(40), seed=1).indices.tolist()
        == select_rows("random", cloud(40, 2), 5, seed=1).indices.tolist()
    )


def on_a_line(values):
    return np.array(values, np.float32)[:, None]


def test_easy_hard_and_moderate_worked_by_hand():
    rows = on_a_line([0, 1, 2, 3, 4, 14])  # mean 4, distances 4 3 2 1 0 10, their median 2.5
    assert select_rows("easy", rows, 3).indices.tolist() == [4, 3, 2]
    assert select_rows("hard", rows, 3).indices.tolist() == [5, 0, 1]
    assert select_rows("moderate", rows, 4).indices.tolist() == [1, 2, 0, 3]  # |d - 2.5| = .5 .5 1.5 1.5


def test_ties_go_to_the_lowest_row():
    rows = on_a_line([1, -1, 1, -1, 1, -1])
    assert select_rows("easy", rows, 3).indices.tolist() == [0, 1, 2]
    assert select_rows("hard", rows, 3).indices.tolist() == [0, 1, 2]
    assert select_rows("moderate", rows, 3).indices.tolist() == [0, 1, 2]
    assert select_rows("k_center", rows, 4).indices.tolist() == [0, 1, 2, 3]  # then nothing but duplicates is left
    assert select_rows("score", rows, 3, scores=[1, 2, 2, 2, 1, 2]).indices.tolist() == [1, 2, 3]


def test_each_group_has_its_own_mean():
    rows, groups = on_a_line([0, 1, 2, 100, 101, 102]), list("aaabbb")
    assert select_rows("easy", rows, 2, groups=groups).indices.tolist() == [1, 4]
    assert select_rows("easy", rows, 2).indices.tolist() == [2, 3]


def test_k_center_worked_by_hand():
    rows = on_a_line([0, 4, 5, 6, 10, 11])  # mean 6
    assert select_rows("k_center", rows, 4).indices.tolist() == [3, 0, 5, 1]


@given(st.integers(0, 10**6))
@settings(max_examples=10, deadline=None)
def test_k_center_covers_within_twice_the_best_radius(seed):
    """Gonzalez 1985: greedy farthest-first is a 2-approximation, whatever the first row."""
    rows = cloud(11, 2, seed).astype(np.float64)
    distances = np.sqrt(((rows[:, None] - rows) ** 2).sum(-1))
    best = min(distances[list(some)].min(0).max() for some in itertools.combinations(range(11), 3))
    picks = select_rows("k_center", rows, 3).indices
    assert distances[picks].min(0).max() <= 2 * best + 1e-6


def test_k_center_holds_one_number_a_row():
    import tracemalloc

    rows = cloud(20_000, 16)
    tracemalloc.start()
    select_rows("k_center", rows, 50)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3e6  # a (k, n) matrix of distances alone would be 8 MB, the rows in float64 2.6 MB


def test_scores_rank_hardest_first_and_easiest_on_demand():
    scores = [0.3, 0.9, 0.1, 0.5]
    assert select_rows("score", None, 2, scores=scores).indices.tolist() == [1, 3]
    assert select_rows("score", None, 2, scores=scores, keep="easy").indices.tolist() == [2, 0]
    groups = ["x", "x", "y", "y"]
    assert select_rows("score", None, 2, scores=scores, groups=groups).indices.tolist() == [1, 3]


@pytest.mark.parametrize("name", ["el2n", "grand", "forgetting", "uncertainty"])
def test_the_four_names_of_the_ranking_work_with_a_warning_for_one_more_version(name):
    with pytest.warns(FutureWarning, match="is now method='score'"):
        assert select_rows(name, None, 2, scores=[0.3, 0.9, 0.1, 0.5]).indices.tolist() == [1, 3]


def test_a_method_that_matches_nothing_holds_the_picks_and_no_more():
    matching = select_rows("easy", cloud(30, 3), 5)
    assert (matching.verdict, matching.engine, matching.hull_gap) == ("no target", "none", 0.0)
    assert (matching.center, matching.median) == (None, None)
    assert np.isnan([*matching.top_score, *matching.theta_norm, matching.moment_error]).all()


@pytest.mark.parametrize("budget", ["proportional", "equal", {"a": 1, "b": 6}])
@pytest.mark.parametrize("method", ["random", "k_center", "score"])
def test_budgets_lose_no_remainder(method, budget):
    groups = np.array(["a"] * 20 + ["b"] * 11)
    matching = pick(method, cloud(31, 3), 7, groups=groups, budget=budget)
    expected = {"proportional": [5, 2], "equal": [3, 4]}.get(str(budget), [1, 6])
    counts = [(matching.group == label).sum() for label in ("a", "b")]
    assert counts == expected or (budget == "equal" and counts == [4, 3])


class TestRegister:
    @pytest.fixture(autouse=True)
    def _clean(self):
        before = dict(SELECTORS)
        yield
        SELECTORS.clear()
        SELECTORS.update(before)

    def test_a_selector_of_ones_own_sees_one_group_at_a_time(self):
        @register_selector("longest")
        def longest(X, k, *, scores, rng):
            assert scores is None
            assert isinstance(rng, np.random.Generator)
            return np.argsort(-np.linalg.norm(X, axis=1), kind="stable")[:k]

        rows = on_a_line([1, 5, 3, 8, 2, 9])
        assert select_rows("longest", rows, 2).indices.tolist() == [5, 3]
        matching = select_rows("longest", rows, 2, groups=[0, 0, 0, 1, 1, 1])
        assert (matching.indices.tolist(), matching.group.tolist(), matching.method) == ([1, 5], [0, 1], "longest")

    def test_options_and_scores_reach_it(self):
        @register_selector("nth")
        def nth(X, k, *, scores, rng, offset=0):
            return np.argsort(scores, kind="stable")[offset : offset + k]

        assert select_rows("nth", None, 2, scores=[4.0, 1.0, 3.0, 2.0], offset=1).indices.tolist() == [3, 2]

    @pytest.mark.parametrize(
        ("returned", "message"),
        [
            ([0, 0, 1], "'bad' returned row 0 of its group more than once"),
            ([0, 1], r"'bad' must return 3 whole numbers, got int64 of shape \(2,\)"),
            ([0.0, 1.0, 2.0], "must return 3 whole numbers, got float64"),
            ([0, 1, 40], "returned row 40 of a group of 30 rows"),
            ([0, -1, 2], "returned row -1"),
        ],
    )
    def test_picks_that_are_none_are_refused(self, returned, message):
        register_selector("bad")(lambda X, k, *, scores, rng: returned)
        with pytest.raises(ValueError, match=message):
            select_rows("bad", cloud(30, 2), 3)

    def test_a_name_that_is_taken_is_refused(self):
        with pytest.raises(ValueError, match="'gm' is there already"):
            register_selector("gm")


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("geometric", {}, "Unknown method 'geometric': choose one of gm, herding"),
        ("k-center", {}, "Did you mean 'k_center'"),
        ("score", {}, "'score' ranks rows by scores, and none were given: pass scores="),
        ("gm", {"scores": np.zeros(30)}, "'gm' takes no scores"),
        ("easy", {"scores": np.zeros(30)}, "'easy' takes no scores"),
        ("score", {"scores": np.zeros(29)}, r"one number a row: shape \(29,\), 30 rows"),
        ("score", {"scores": ["a"] * 30}, "scores must be finite numbers"),
        ("score", {"scores": [0.0] * 12 + [np.nan] * 18}, r"Score of row 12 is nan \(17 more like it\).*compute its"),
        ("score", {"scores": np.zeros(30), "keep": "both"}, "keep must be 'hard'"),
        ("random", {"engine": "int8"}, "'random' has no option 'engine'"),
        ("gm", {"partitions": 4}, "'gm' has no option 'partitions'. It was removed: the rows are matched as one"),
        ("easy", {"metric": "cosine"}, "metric must be"),
        ("easy", {"groups": [0] * 29}, "29 labels, 30 rows"),
    ],
)
def test_bad_arguments_are_named_with_the_remedy(method, options, message):
    with pytest.raises(ValueError, match=message):
        select_rows(method, cloud(30, 2), 3, **options)


@pytest.mark.parametrize("method", NAMES)
def test_bad_rows_and_numbers_are_refused_by_every_method(method):
    rows = cloud(30, 2)
    for k in (0, 31, None):
        with pytest.raises(ValueError, match="k"):
            pick(method, rows, k)
    rows[17, 1] = np.nan
    with pytest.raises(ValueError, match="Row 17: dimension 1 of the vector is nan"):
        pick(method, rows, 3)


@pytest.mark.parametrize("method", ["random", "gm", "herding", "gm_official", "easy", "k_center"])
def test_a_method_that_needs_rows_says_so(method):
    with pytest.raises(ValueError, match=f"'{method}' needs the rows X"):
        select_rows(method, None, 3)
