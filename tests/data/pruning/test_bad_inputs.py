import numpy as np
import pytest

from hf_ext.data.pruning import geometric_median, gm_matching, gm_official
from tests.data.pruning.oracle import cloud


def spoiled(value, row=1234, column=3):
    rows = cloud(2000, 5)
    rows[row, column] = value
    return rows


@pytest.mark.parametrize(
    "call", [geometric_median, lambda rows: gm_matching(rows, 5), lambda rows: gm_official(rows, 5)]
)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite_is_named_with_its_dimension_and_an_excerpt(call, value):
    with pytest.raises(
        ValueError, match=rf"Row 1,234: dimension 3 of the vector is {value}: \[.*{value}.*Drop the row"
    ):
        call(spoiled(value))


def test_a_zero_row_has_no_direction_but_is_a_row_like_any_other_in_raw_units():
    rows = cloud(50, 4)
    rows[[7, 9]] = 0
    with pytest.raises(ValueError, match=r"Row 7: the vector is zero \(1 more like it\).*metric='raw'"):
        gm_matching(rows, 5)
    assert sorted(gm_matching(rows, 50, metric="raw").indices) == list(range(50))


@pytest.mark.parametrize("k", [0, -3, 51, 2.5, True, "7"])
def test_a_number_of_rows_that_cannot_be_is_refused_with_both_numbers(k):
    with pytest.raises(ValueError, match=r"50") as error:
        gm_matching(cloud(50, 4), k)
    assert str(k) in str(error.value)


def test_k_must_be_given():
    with pytest.raises(ValueError, match="k is missing"):
        gm_matching(cloud(50, 4), None)


@pytest.mark.parametrize("dtype", [np.int64, np.int8, np.bool_])
def test_whole_numbers_are_refused(dtype):
    with pytest.raises(ValueError, match=r"floating point vectors, got .*Pass embeddings"):
        gm_matching(np.ones((5, 2), dtype), 2)


@pytest.mark.parametrize("dtype", [np.float64, np.float16])
def test_other_floats_are_cast_once_with_a_note(dtype):
    rows = cloud(80, 4).astype(np.float16).astype(dtype)
    matching = gm_matching(rows, 20)
    assert matching.notes == (f"rows cast from {np.dtype(dtype)} to float32",)
    assert matching.indices.tolist() == gm_matching(rows.astype(np.float32), 20).indices.tolist()
    assert gm_matching(rows.astype(np.float32), 20).notes == ()


def test_a_number_too_large_for_float32_is_named():
    rows = cloud(20, 3).astype(np.float64)
    rows[4, 1] = 1e200
    with pytest.raises(ValueError, match="Row 4: dimension 1 of the vector is inf"):
        gm_matching(rows, 3)
    rows[4, 1] = 1e35
    with pytest.raises(ValueError, match=r"Row 4: the vector is longer than 1e\+30"):
        gm_matching(rows, 3)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[1.0, 2.0], [1.0]], "Row 1 has 1 numbers, row 0 has 2"),
        ([[1.0, 2.0], None], "Row 1 is no vector: None"),
        (np.zeros(4), r"shape \(n, d\).*\(4,\)"),
        (np.zeros((0, 4)), r"shape \(0, 4\)"),
        (np.array([["a"]]), "floating point"),
    ],
)
def test_what_is_no_array_of_rows_is_refused(rows, message):
    with pytest.raises(ValueError, match=message):
        gm_matching(rows, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": "cosine"}, "metric must be 'unit' or 'raw', got 'cosine'"),
        ({"engine": "fast"}, "engine must be 'auto' or one of 'int8'"),
        ({"backend": "jax"}, "backend must be"),
        ({"device": "cuda"}, "needs backend='torch'"),
        ({"backend": "torch", "device": "nowhere"}, "cannot be used"),
        ({"center": "median"}, "center must be 'gm', 'mean'"),
        ({"center": np.zeros(3)}, "vector of 4 numbers"),
        ({"center": np.full(4, np.nan)}, "finite vector"),
        ({"trim": 1.0}, "trim must be"),
        ({"pool_rows": 0}, "must be at least 1"),
        ({"target_scale": "long"}, "target_scale must be"),
        ({"num_threads": 0}, "num_threads must be at least 1"),
        ({"save_every": -5.0}, "save_every must be a number of seconds from 0"),
        ({"save_every": float("nan")}, "save_every must be a number of seconds from 0"),
    ],
)
def test_an_argument_that_cannot_be_used_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        gm_matching(cloud(50, 4), 5, **options)


def test_a_median_that_is_not_proven_is_said(monkeypatch):
    from hf_ext.data.pruning import one_group

    solve = one_group.solve
    monkeypatch.setattr(one_group, "solve", lambda *args, **options: solve(*args, **options | {"max_iter": 1}))
    with pytest.warns(RuntimeWarning, match="stopped after 1 steps with a proven relative gap"):
        gm_matching(cloud(50, 4), 5)
