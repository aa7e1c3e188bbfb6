"""The matrices of the benchmark of regret are what its page says, and stay what they were before any result."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from hf_ext.bandits.lower_bound import lower_bound
from tests.bandits import oracle

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def bandit_problems():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        import bandit_problems

        yield bandit_problems
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))
        sys.modules.pop("bandit_problems", None)


def test_the_matrices_that_are_written_down_are_those_of_the_specification(bandit_problems):
    problems = {problem.name: problem for problem in bandit_problems.written_problems()}
    assert list(problems) == ["bandit", "full", "hub", "reveal", "ring", "kernel"]
    for name, means in (
        *((name, oracle.BANDIT_MEANS) for name in ("bandit", "full", "ring")),
        *((name, oracle.HUB_MEANS) for name in ("hub", "kernel")),
        ("reveal", oracle.REVEAL_MEANS),
    ):
        assert problems[name].means.tolist() == list(means)
    assert (problems["hub"].info.precision == oracle.hub().precision).all()
    assert (problems["reveal"].info.precision == oracle.reveal().precision).all()
    ring = problems["ring"].info.precision
    for i in range(8):
        assert np.flatnonzero(ring[i]).tolist() == sorted({(i - 1) % 8, i, (i + 1) % 8})
        assert ring[i].sum() == 3
    kernel = problems["kernel"].info.precision
    assert kernel[4, [2, 3, 4, 5, 6]] == pytest.approx([np.exp(-2), np.exp(-0.5), 1, np.exp(-0.5), np.exp(-2)])
    assert np.count_nonzero(kernel[4]) == 5


def test_bounds_of_the_written_matrices_are_those_of_the_specification(bandit_problems):
    bounds = {
        problem.name: [lower_bound(problem.means, problem.info, kind).value for kind in ("lp", "graves_lai")]
        for problem in bandit_problems.written_problems()
    }
    for name, value in (("bandit", 34.4), ("full", 0), ("hub", 15.0), ("reveal", 15.6)):
        assert bounds[name][0] == pytest.approx(value, abs=0.05)
    assert bounds["reveal"][1] == pytest.approx(2 * bounds["reveal"][0])


def test_fresh_matrices_keep_to_their_rules(bandit_problems):
    for seed in range(1, 25):
        problem = bandit_problems.fresh(seed)
        precision = problem.info.precision
        assert 5 <= len(problem.means) <= 10
        assert (precision.diagonal() > 0).all()
        gaps = np.sort(problem.means.max() - problem.means)
        assert 0.1 <= gaps[1] <= gaps[-1] <= 0.9
        assert lower_bound(problem.means, problem.info).value >= 3
        if seed % 3 == 1:
            assert (precision == precision.T).all(), "nearness has no direction"
        if seed % 3 == 2:
            assert ((precision > 0).sum(axis=1) > 1).sum() == 1, "one arm alone shows others"


def test_fresh_matrices_are_those_that_were_committed_before_any_result(bandit_problems):
    problems = bandit_problems.problems()[6:]
    assert [problem.name for problem in problems] == [f"fresh {seed}" for seed in range(1, 7)]
    assert [len(problem.means) for problem in problems] == [6, 10, 9, 9, 9, 7]
    sums = [problem.means.sum() + problem.info.precision.sum() for problem in problems]
    assert sums == pytest.approx([16.5615, 42.7062, 57.1258, 27.2203, 40.3111, 42.8178], abs=1e-4)
