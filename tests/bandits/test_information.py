"""Matrices of side information: how they are made, and what is refused."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from hf_ext.bandits.information import SideInformation


def test_makers_have_the_arm_played_in_rows_and_the_arm_learned_in_columns():
    sd = np.array([0.5, 1, 2])
    assert np.array_equal(SideInformation.bandit(3, sd).precision, np.diag([4, 1, 0.25]))
    assert np.array_equal(SideInformation.full(3, sd).precision, np.tile([4, 1, 0.25], (3, 1)))
    edges = np.array([[1, 1, 0], [0, 1, 0], [0, 0, 1]])
    assert np.array_equal(SideInformation.graph(edges, sd).precision, edges * [4, 1, 0.25])
    counts = np.array([[2, 6, 0], [0, 8, 0], [0, 0, 8]])
    assert np.array_equal(SideInformation.from_counts(counts, sd).precision, counts * [4, 1, 0.25])
    assert np.array_equal(SideInformation.from_sd([[1, np.inf], [2, 0.5]]).precision, [[1, 0], [0.25, 4]])


def test_it_keeps_a_copy_that_nobody_changes():
    precision = np.eye(2)
    info = SideInformation(precision)
    precision[0, 0] = 5
    assert info.precision[0, 0] == 1
    with pytest.raises(ValueError, match="read-only"):
        info.precision[0, 0] = 5


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.nan, "sd at row 0, column 1 is nan. Give a number above 0"),
        (-1, "sd at row 0, column 1 is -1. Give a number above 0"),
        (0, "sd at row 0, column 1 is 0. An exact observation: use a small positive standard deviation"),
        (1e-200, "sd at row 0, column 1 is 1e-200. An exact observation"),
    ],
)
def test_a_standard_deviation_that_is_none_is_named_by_row_column_and_value(value, message):
    with pytest.raises(ValueError, match=message):
        SideInformation.from_sd([[1, value], [np.inf, 1]])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"precision": [[1, 0], [1, 0]]}, r"no arm observes 'arm 1' \(column 1\)"),
        ({"precision": [[1, 1], [0, 1]], "bias_sd": [[0, 0.1], [0, 0.1]]}, r"no arm observes 'arm 1' \(column 1\)"),
        ({"precision": [[1, -1], [0, 1]]}, "precision at row 0, column 1 is -1"),
        ({"precision": [[1, np.inf], [0, 1]]}, "precision at row 0, column 1 is inf"),
        ({"precision": [[1, 0]]}, r"must be a square matrix.*got shape \(1, 2\)"),
        ({"precision": np.zeros((0, 0))}, "must be a square matrix"),
        ({"precision": np.eye(2), "bias_sd": np.zeros((3, 3))}, r"bias_sd has shape \(3, 3\)"),
        ({"precision": np.eye(2), "bias_sd": [[0, np.nan], [0, 0]]}, "bias_sd at row 0, column 1 is nan"),
        ({"precision": np.eye(2), "names": ("a", "a")}, "names must be 2 different texts"),
        ({"precision": np.eye(2), "names": ("a",)}, "names must be 2 different texts"),
        ({"precision": np.eye(2), "names": "ab"}, "names must be 2 different texts, one an arm, got 'ab'"),
        ({"precision": np.eye(2), "names": 5}, "names must be 2 different texts, one an arm, got 5"),
        ({"precision": np.eye(2), "names": ("a", "b", "c")}, "names must be 2 different texts"),
        ({"precision": np.eye(2) * 1j}, "precision must be an array of numbers: complex"),
        ({"precision": [[1], [0, 1]]}, "precision must be an array of numbers"),
        ({"precision": [["much", 0], [0, 1]]}, "precision must be an array of numbers: could not convert"),
    ],
)
def test_bad_input_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        SideInformation(**arguments)


def test_bad_counts_and_sizes_are_refused():
    with pytest.raises(ValueError, match="sd of arm 1 is 0"):
        SideInformation.from_counts(np.eye(2), [1, 0])
    with pytest.raises(ValueError, match=r"sd must be a number, or 3 of them, one an arm, got shape \(2,\)"):
        SideInformation.from_counts(np.eye(3), [1, 1])
    with pytest.raises(ValueError, match="sd must be a number, or 3 of them"):
        SideInformation.graph(np.eye(3), sd=[1, 2])
    with pytest.raises(ValueError, match="counts at row 0, column 0 is -1"):
        SideInformation.from_counts(-np.eye(2), [1, 1])
    for size in (0, 2.5, "2"):
        with pytest.raises(ValueError, match="num_arms must be a whole number"):
            SideInformation.bandit(size)


def test_names_come_from_any_sequence():
    for names in (["a", "b"], np.array(["a", "b"]), iter("ab")):
        assert SideInformation.bandit(2, names=names).names == ("a", "b")
    for names in ((), [], None):
        assert SideInformation.bandit(2, names=names).names == ("arm 0", "arm 1")


def test_an_arm_that_observes_nothing_is_allowed_with_a_warning(caplog):
    with caplog.at_level(logging.WARNING):
        SideInformation([[1, 1], [0, 0]], names=("web", "noise"))
    assert "'noise' (row 1) observes nothing" in caplog.text
