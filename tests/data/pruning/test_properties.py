import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_ext.data.pruning import geometric_median, gm_matching
from tests.data.pruning.oracle import cloud, unit
from tests.data.pruning.test_exactness import matched_from


def picked(rows, k, **options):
    return gm_matching(rows, k, show_progress=False, num_threads=1, **options).indices


@given(st.integers(0, 10**6), st.sampled_from(["unit", "raw"]), st.sampled_from(["gm", "mean"]))
@settings(max_examples=20, deadline=None)
def test_row_order_does_not_matter(seed, metric, center):
    rows = cloud(200, 6, seed)
    order = np.random.default_rng(seed).permutation(200)
    shuffled = picked(rows[order], 40, metric=metric, center=center)
    assert order[shuffled].tolist() == picked(rows, 40, metric=metric, center=center).tolist()


@given(st.integers(0, 10**6))
@settings(max_examples=10, deadline=None)
def test_tied_rows_may_only_stand_for_each_other(seed):
    rows = np.repeat(cloud(60, 5, seed), 3, axis=0)
    order = np.random.default_rng(seed).permutation(180)
    assert (order[picked(rows[order], 50)] // 3).tolist() == (picked(rows, 50) // 3).tolist()


@given(st.integers(0, 10**6), st.sampled_from(["unit", "raw"]))
@settings(max_examples=20, deadline=None)
def test_rotation_does_not_matter(seed, metric):
    rows = cloud(150, 5, seed)
    turn = np.linalg.qr(np.random.default_rng(seed).standard_normal((5, 5)))[0]
    # The cast to float32 after the turn moves scores by 1e-7: few picks, whose best scores lie farther apart.
    assert picked(rows @ turn, 12, metric=metric).tolist() == picked(rows, 12, metric=metric).tolist()


@given(st.integers(0, 10**6), st.integers(-64, 64), st.sampled_from(["gm", "mean"]))
@settings(max_examples=20, deadline=None)
def test_translation_does_not_matter_for_raw_rows(seed, offset, center):
    rows = np.round(cloud(200, 6, seed) * 4096) / 4096  # the sum with the offset is exact in float32
    moved = rows + np.float32(offset) * np.arange(1, 7, dtype=np.float32)
    options = {"metric": "raw", "center": center}
    assert picked(moved, 30, **options).tolist() == picked(rows, 30, **options).tolist()


def test_translation_matters_when_theta_starts_at_the_centre():
    rows = cloud(200, 6)
    moved, plain = (matched_from(x, 30, "target").indices.tolist() for x in (rows + 50, rows))
    assert moved != plain


@pytest.mark.parametrize("engine", ["int8", "f32", "pool"])
@pytest.mark.parametrize("options", [{}, {"metric": "raw"}, {"center": "mean"}, {"target_scale": 0.7}])
def test_theta_tells_the_moment_error(engine, options):
    rows = cloud(600, 8, 5)
    matching = gm_matching(rows, 150, engine=engine, **options)
    seen = rows.astype(np.float64) if options.get("metric") == "raw" else unit(rows)
    target = matching.center * options.get("target_scale", 1)
    error = np.linalg.norm(seen[matching.indices].mean(0) - target)
    assert matching.moment_error == pytest.approx(error, abs=1e-9)
    start = np.zeros(8) if options.get("metric") == "raw" else target
    theta = start + 150 * target - seen[matching.indices].sum(0)
    assert np.linalg.norm(theta - start) / 150 == pytest.approx(error, abs=1e-9)
    assert matching.theta_norm[-1] == pytest.approx(np.linalg.norm(theta), abs=1e-9)


def test_moment_error_falls_like_one_over_k_and_a_random_subset_like_its_root():
    rows = cloud(20_000, 16, 1)
    whole = gm_matching(rows, 1000)
    seen, sizes = unit(rows), np.array([30, 100, 300, 1000])
    errors = [np.linalg.norm(seen[whole.indices[:k]].mean(0) - whole.center) for k in sizes]
    rng = np.random.default_rng(0)
    drawn = [
        np.mean([np.linalg.norm(seen[rng.choice(20_000, k)].mean(0) - seen.mean(0)) for _ in range(20)]) for k in sizes
    ]
    slope, random_slope = (np.polyfit(np.log(sizes), np.log(values), 1)[0] for values in (errors, drawn))
    assert slope == pytest.approx(-1, abs=0.15)
    assert random_slope == pytest.approx(-0.5, abs=0.1)
    assert errors[-1] < drawn[-1] / 10


def test_every_prefix_is_what_a_smaller_number_picks():
    rows, groups = cloud(400, 6), np.arange(400) % 3
    whole = gm_matching(rows, 90, groups=groups, budget="equal")
    assert whole.prune_rank.dtype == np.int32
    for m in (1, 7, 20):
        smaller = gm_matching(rows, 3 * m, groups=groups, budget="equal")
        assert sorted(whole.indices[whole.prune_rank < m]) == sorted(smaller.indices)


def test_one_far_row_moves_the_mean_and_not_the_median():
    rows = cloud(300, 5).astype(np.float64)
    far = rows.copy()
    far[17] = 1e6
    gm, gm_far = (gm_matching(x, 30, metric="raw") for x in (rows, far))
    mean, mean_far = (gm_matching(x, 30, metric="raw", center="mean") for x in (rows, far))
    radius = np.linalg.norm(rows - gm.center, axis=1).max()
    share = 1 / 300
    assert np.linalg.norm(gm_far.center - gm.center) <= 2 * (1 - share) / (1 - 2 * share) * radius
    assert np.linalg.norm(mean_far.center - mean.center) > 1000
    # The target stands, but so long a row has the greatest product with any theta: `trim`, or take unit rows.
    assert 17 in gm_far.indices
    assert 17 not in gm_matching(far, 30, metric="raw", trim=0.01).indices


def test_a_target_outside_the_hull_is_called_unreachable_with_a_true_distance():
    rng = np.random.default_rng(0)
    rows = rng.uniform(-1, 1, (4000, 2))
    with pytest.warns(RuntimeWarning, match="Target unreachable"):
        outside = gm_matching(rows, 100, metric="raw", center=np.array([3.0, 0.0]))
    assert outside.verdict == "target unreachable"
    assert 1.9 < outside.hull_gap <= 3 - rows[:, 0][outside.indices].min()
    assert outside.theta_norm[99] == pytest.approx(2 * outside.theta_norm[49], rel=0.1)
    inside = gm_matching(rows, 100, metric="raw", center=np.array([0.5, 0.0]))
    assert (inside.verdict, inside.hull_gap) == ("matched", 0.0)
    assert gm_matching(rows, 100, target_scale="unit").verdict == "target unreachable"


def test_a_target_inside_the_hull_is_never_called_unreachable_by_any_engine():
    rows = cloud(500, 10, 2)
    for engine in ("int8", "f32", "pool"):
        assert gm_matching(rows, 50, engine=engine).verdict == "matched"


def test_trim_drops_the_farthest_rows_first():
    rows = cloud(500, 6).astype(np.float64)
    rows[:50] += 40
    trimmed = gm_matching(rows, 100, metric="raw", trim=0.1)
    assert trimmed.indices.min() >= 50
    assert trimmed.center == pytest.approx(geometric_median(rows[50:], tol=1e-9).center, abs=1e-6)
    with pytest.raises(ValueError, match=r"k=451 rows asked for, 450 there after trimming 50 of 500"):
        gm_matching(rows, 451, metric="raw", trim=0.1)
