import math

import numpy as np
import pytest
from scipy.optimize import minimize

from hf_ext.data.pruning import geometric_median
from tests.data.pruning.oracle import cloud


def total_distance(z, rows, weights=None):
    return float(
        np.average(np.linalg.norm(rows - z, axis=1), weights=weights)
        * (len(rows) if weights is None else weights.sum())
    )


@pytest.mark.parametrize("values", [[3.0, 1.0, 7.0], [5.0, -2.0, 0.0, 9.0, 4.0, 4.5, 100.0]])
def test_in_one_dimension_it_is_the_median(values):
    median = geometric_median(np.array(values)[:, None], tol=1e-12)
    assert median.center[0] == np.median(values)
    assert median.rel_gap == 0
    assert values[median.at_row] == np.median(values)


def test_an_even_number_of_points_on_a_line_has_its_median_between_the_middle_two():
    direction = np.array([0.6, 0.8])
    places = np.array([-5.0, -1.0, 2.0, 30.0])
    median = geometric_median(places[:, None] * direction, tol=1e-9)
    along = median.center @ direction
    assert -1 <= along <= 2
    assert median.center == pytest.approx(along * direction, abs=1e-6)
    assert median.objective == pytest.approx(38, rel=1e-6)  # (30 + 5) + (2 + 1)
    assert median.converged


def test_in_a_triangle_it_sees_every_side_under_120_degrees():
    corners = np.array([[0.0, 0.0], [4.0, 0.0], [1.0, 3.0]])
    median = geometric_median(corners, tol=1e-12)
    rays = corners - median.center
    rays /= np.linalg.norm(rays, axis=1, keepdims=True)
    cosines = [rays[0] @ rays[1], rays[1] @ rays[2], rays[2] @ rays[0]]
    assert cosines == pytest.approx([-0.5] * 3, abs=1e-8)


def test_a_triangle_with_an_angle_above_120_degrees_has_its_median_at_that_corner():
    median = geometric_median(np.array([[-4.0, 1.0], [0.0, 0.0], [4.0, 1.0]]), tol=1e-12)
    assert median.center == pytest.approx([0, 0], abs=1e-12)
    assert median.at_row == 1
    assert median.rel_gap == 0


def test_rows_at_the_optimum_and_a_start_at_a_row_are_no_trouble():
    ring = np.array([[math.cos(a), math.sin(a)] for a in np.arange(6) * math.pi / 3])
    # The mean is a row and the optimum.
    assert geometric_median(np.vstack([ring, [[0, 0]]])).at_row == 6
    # The mean is a row but not the optimum: the Vardi-Zhang step must leave it.
    rows = np.array([[0.0], [1.0], [1.0], [1.0], [2.0], [-5.0]])
    assert rows.mean() == 0
    assert geometric_median(rows, tol=1e-12).center[0] == pytest.approx(1, abs=1e-9)


def test_identical_rows_are_their_own_median():
    median = geometric_median(np.ones((5, 3)))
    assert median.center == pytest.approx(np.ones(3))
    assert (median.objective, median.rel_gap) == (0, 0)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("steps", [0, 1, 4, 200])
def test_certificate_is_never_below_the_true_gap(seed, steps):
    rows = cloud(80, 4, seed).astype(np.float64)
    rows[:5] *= 30
    with pytest.warns(RuntimeWarning) if steps < 200 else _nothing():
        median = geometric_median(rows, tol=1e-9, max_iter=steps)
    rows = rows.astype(np.float32).astype(np.float64)
    best = minimize(total_distance, np.median(rows, axis=0), args=(rows,), method="BFGS", options={"gtol": 1e-10}).fun
    assert median.objective == pytest.approx(total_distance(median.center, rows), rel=1e-12)
    assert median.rel_gap >= median.objective / best - 1 - 1e-12
    assert median.dual <= best * (1 + 1e-12)
    assert median.converged == (steps == 200)


class _nothing:
    def __enter__(self): ...
    def __exit__(self, *_): ...


def test_it_moves_with_the_rows():
    rows = cloud(200, 6, 2).astype(np.float64)
    turn = np.linalg.qr(np.random.default_rng(3).standard_normal((6, 6)))[0]
    plain = geometric_median(rows, tol=1e-12).center
    assert geometric_median(rows @ turn + 5, tol=1e-12).center == pytest.approx(plain @ turn + 5, abs=1e-5)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_the_stopping_rule_knows_no_scale(scale):
    median = geometric_median(cloud(200, 6, 2).astype(np.float64) * scale, tol=1e-9)
    assert median.converged
    assert median.center / scale == pytest.approx(geometric_median(cloud(200, 6, 2), tol=1e-9).center, rel=1e-4)


def test_threads_and_a_memory_map_change_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("hf_ext.data.pruning.median._CHUNK_ROWS", 700)
    rows = cloud(3000, 5)
    mapped = np.lib.format.open_memmap(tmp_path / "rows.npy", "w+", np.float32, rows.shape)
    mapped[:] = rows
    plain = geometric_median(rows)
    for other in (
        geometric_median(rows, num_threads=3),
        geometric_median(np.load(tmp_path / "rows.npy", mmap_mode="r")),
    ):
        assert np.array_equal(plain.center, other.center)
        assert plain.objective == other.objective


@pytest.mark.parametrize("share", [0.2, 0.4])
@pytest.mark.parametrize("distance", [1e2, 1e6])
@pytest.mark.parametrize("seed", range(3))
def test_an_attack_moves_the_median_within_the_theory_and_the_mean_a_hundred_times_farther(share, distance, seed):
    rng = np.random.default_rng(seed)
    clean = rng.standard_normal((1000, 16))
    count = round(share * 1000)
    attacked = clean.copy()
    attacked[:count] = distance + rng.standard_normal((count, 16))
    before = geometric_median(clean, tol=1e-11).center
    after = geometric_median(attacked, tol=1e-11).center
    radius = np.linalg.norm(clean - before, axis=1).max()
    shift = np.linalg.norm(after - before)
    assert shift <= 2 * (1 - share) / (1 - 2 * share) * radius
    assert shift > 0
    if distance > 1e3:
        assert np.linalg.norm(attacked.mean(0) - clean.mean(0)) > 100 * shift


def test_not_converged_is_said():
    rows = np.array([[0.0, 0.0], [4.0, 0.0], [1.0, 3.0]])
    with pytest.warns(RuntimeWarning, match=r"stopped after 2 steps .* above tol=1e-12"):
        geometric_median(rows, tol=1e-12, max_iter=2)
    with pytest.raises(RuntimeError, match="Raise max_iter"):
        geometric_median(rows, tol=1e-12, max_iter=2, strict=True)
