"""Runs of a simulation as a table, a plot and files that are read back."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from hf_ext.bandits.curves import RegretCurves
from hf_ext.bandits.side_observations import SideInformation, simulate
from tests.bandits import oracle


@pytest.fixture(scope="module")
def curves() -> RegretCurves:
    return simulate(oracle.HUB_MEANS, oracle.hub(), horizon=400, replicas=6, marks=[1, 20, 400])


def test_the_table_has_mean_error_worst_run_and_the_share_of_the_bound(curves):
    lines = curves.to_markdown().splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:5]]
    assert [row[0] for row in cells] == ["1", "20", "400"]
    last = curves.regret[:, -1]
    error = np.std(last, ddof=1) / math.sqrt(6)
    expected = [last.mean(), error, last.max(), last.mean() / (15 * math.log(400))]  # C* of the hub is 15
    assert [float(cell) for cell in cells[2][1:]] == pytest.approx(expected, rel=0.06)
    assert cells[0][4] == "", "log 1 is 0"
    assert str(curves) == curves.to_markdown()


def test_runs_are_saved_with_a_plot_and_read_back(curves, tmp_path):
    curves.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["regret.json", "regret.md", "regret.png", "regret.svg"]
    copy = RegretCurves.load(tmp_path)
    assert copy.to_dict() == curves.to_dict()
    assert copy.bound.value == pytest.approx(15)


def test_the_plot_shows_the_mean_the_worst_run_and_the_bound(curves):
    (axes,) = curves.plot().axes
    heights = [line.get_ydata() for line in axes.get_lines()]
    expected = [curves.mean, curves.regret.max(axis=0), 15 * np.log([1, 20, 400])]
    for height, values in zip(heights, expected, strict=True):
        assert height == pytest.approx(values)
    assert axes.get_xscale() == "log"


def test_a_single_mark_has_no_plot_and_says_how_to_get_one(tmp_path):
    curves = simulate([1, 0.5], SideInformation.bandit(2), horizon=5, replicas=1)
    with pytest.raises(ValueError, match="regret at two marks or more: pass marks"):
        curves.plot()
    curves.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["regret.json", "regret.md"]
    assert "| 5 |" in (tmp_path / "regret.md").read_text()


def test_where_there_is_no_bound_none_is_drawn():
    curves = simulate([1, 0.5], SideInformation.full(2), horizon=20, replicas=2, marks=[5, 20])
    (axes,) = curves.plot().axes
    assert len(axes.get_lines()) == 2
    assert curves.to_markdown().splitlines()[2].endswith("|  |")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("marks", [1, 20]),
        ("marks", [1, 400, 20]),
        ("marks", [True, 20, 400]),
        ("marks", []),
        ("regret", [[1.0, 2.0, float("nan")]] * 6),
        ("regret", []),
        ("plays", [[1.0]]),
        ("means", [1.0, 2.0]),
        ("precision", [[1.0]]),
        ("names", ["a"] * 10),
        ("names", 3),
    ],
)
def test_damaged_files_are_refused(name, value, curves, tmp_path):
    (tmp_path / "regret.json").write_text(json.dumps(curves.to_dict() | {name: value}))
    with pytest.raises(ValueError, match="report"):
        RegretCurves.load(tmp_path)


def test_names_of_arms_and_policies_are_no_markup(tmp_path):
    info = SideInformation(np.eye(2), names=("<script>", "b|c"))
    curves = simulate([1, 0.5], info, horizon=4, replicas=2, marks=[2, 4])
    damaged = RegretCurves.from_dict(curves.to_dict() | {"policy": "<b>|`x`"})
    assert "<b>" not in damaged.to_markdown()
