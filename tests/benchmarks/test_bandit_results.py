"""The benchmark of regret: its headline follows from its rows, its rivals play what they are called."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULES = ("bandit_problems", "bandit_regret", "bandit_rivals", "bandit_tables", "common", "measured")
MARKS = (1_000, 10_000, 100_000, 1_000_000)


@pytest.fixture(autouse=True)
def _beside(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    yield
    for name in MODULES:
        sys.modules.pop(name, None)


def curves(problem: str, policy: str, bound: float, *regret: list[float]) -> list[dict]:
    """Rows of a policy, a list of runs a mark; a rival has one mark, the common horizon."""
    marks = MARKS if len(regret) > 1 else MARKS[2:3]
    facts = {"kind": "curves", "problem": problem, "policy": policy, "bound": bound}
    return [facts | {"rounds": mark, "regret": runs} for mark, runs in zip(marks, regret, strict=True)]


def rows() -> list[dict]:
    """Three matrices: behind UCB-N on `hub` by 2.1 standard errors, behind Thompson on `bandit` by 1.9."""
    log = math.log(100_000)
    made = [
        *curves("bandit", "purchase", 2.0, [5, 5], [10, 10], [2 * log, 2 * log], [20, 20 + 4 * math.log(100)]),
        *curves("full", "purchase", 0.0, [1, 3], [2, 3], [2, 3], [2, 3]),
        *curves("hub", "purchase", 1.0, [1, 1], [4, 6], [0, 2 * log], [4, 6]),
    ]
    for rival in ("ucb1", "ucb_n", "purchase_ucb", "thompson"):
        # The pair of differences a, b has the mean (a + b) / 2 and the standard error |a - b| / 2.
        wide = {"thompson": (2.9, 0.9), "ucb_n": (-9.0, -9.0)}.get(rival, (0.0, 0.0))
        made += curves("bandit", rival, 2.0, [2 * log - difference for difference in wide])
        narrow = {"ucb_n": (3.1, 1.1), "thompson": (-1.0, -1.0)}.get(rival, (0.0, 0.0))
        made += curves("hub", rival, 1.0, [0 - narrow[0], 2 * log - narrow[1]])
        made += curves("full", rival, 0.0, [9, 9])
    for problem, policy, regret in (
        ("bandit", "purchase", [1, 1, 4]),
        ("bandit", "thompson", [1, 1, 10]),
        ("hub", "purchase", [1, 1, 1, 5]),
        ("full", "purchase", [0, 0, 0, 99]),
    ):
        made.append({"kind": "worst", "problem": problem, "policy": policy, "rounds": 100_000, "regret": regret})
    for policy, problem, regret, milliseconds in (
        ("hf-ext", "hub", 8, 0.5),
        ("hf-ext", "bandit", 8, 0.4),
        ("mabwiser", "bandit", 30, 1),
        ("mabwiser", "hub", 20, 1),
        ("mabwiser", "hub", 40, 4),
    ):
        loop = {"kind": "loop", "problem": problem, "policy": policy}
        made.append(loop | {"regret": regret, "ms_a_round": milliseconds})
    for arms, highs in ((2, 1), (12, 20), (12, 40), (12, 90)):
        simplex = {"kind": "simplex", "problem": "", "policy": "", "arms": arms}
        made.append(simplex | {"highs_us": highs, "simplex_us": 2})
    for slack, plans, regret in ((0.1, 3, [4, 8]), (0.0, 60, [5, 5])):
        plan = {"kind": "plans", "problem": "bandit", "policy": "track"}
        made.append(plan | {"slack": slack, "plans": plans, "regret": regret})
    return made


def test_headline_is_what_the_rows_say():
    from bandit_tables import headline_of

    assert headline_of(rows()) == {
        "benchmark": "bandit_regret",
        "worst_regret_over_bound": 1.0,
        "late_regret_without_bound": 0.5,
        "wins_over_ucb": round(2 / 3, 4),
        "wins_over_thompson": 1.0,
        "wins_over_purchase_ucb": 1.0,
        "worst_run_over_mean": 2.0,
        "worst_run_over_mean_any": 2.5,
        "thompson_worst_run_over_mean": 2.5,
        "slope_over_bound": pytest.approx((0 + (10 + 2 * math.log(100)) / (2 * math.log(100))) / 2, abs=6e-5),
        "worst_slope_over_bound": pytest.approx(1 + 5 / math.log(100), abs=6e-5),
        "mabwiser_over_purchase": 3.0,
        "bayesianbandits_over_purchase": None,
        "mabwiser_over_purchase_hub": 6.0,
        "bayesianbandits_over_purchase_hub": None,
        "bayesianbandits_told_over_purchase_hub": None,
        "mabwiser_over_purchase_time": 5.0,
        "bayesianbandits_over_purchase_time": None,
        "highs_over_simplex_time": 20.0,
        "lazy_plans_share": 0.05,
        "lazy_over_eager_regret": 1.2,
    }


def test_a_win_needs_rivals_that_are_defined_on_the_matrix():
    from bandit_tables import wins

    reveal = curves("reveal", "purchase", 1.0, [1, 1], [2, 2], [99, 99], [99, 99])
    assert wins([*rows(), *reveal], ("ucb1", "ucb_n")) == pytest.approx(2 / 3)


def test_table_and_plot_have_every_matrix(tmp_path):
    from bandit_tables import plot, tables_of

    text = tables_of(rows())
    assert "| bandit | 23.0 | 23.0 (0.0) | 23.0 (0.0) |  | 21.1 (1.0) | 32.0 (0.0) | 23.0 (0.0) | 1.00 |" in text
    assert "| full | 0.0 |" in text
    assert "| mabwiser | hub | 30.0 | 2.500 |" in text
    plot(rows(), tmp_path / "regret.png")
    assert (tmp_path / "regret.png").read_bytes().startswith(b"\x89PNG")


def test_every_policy_runs_on_every_matrix_where_it_is_defined():
    from bandit_regret import Size, jobs_of

    jobs = jobs_of(Size())
    assert len({job.key for job in jobs}) == len(jobs)
    pairs = [(job.problem, job.policy) for job in jobs if job.kind == "curves"]
    assert len(pairs) == 3 * 12 + 3 * 11
    assert ("reveal", "track") in pairs
    assert ("reveal", "ucb_n") not in pairs


def test_every_policy_meets_the_same_noise_and_worst_runs_other_noise():
    from bandit_regret import Job, Size, run

    size = Size((2, 4, 8, 16), replicas=3, many_replicas=3)
    first = run(Job("curves", "full", "purchase"), size)
    again = run(Job("curves", "full", "ucb_n"), size)
    assert [row["rounds"] for row in first] == [2, 4, 8, 16]
    assert [row["rounds"] for row in again] == [2, 4, 8]
    # Where everything is shown, the first choice after one look at all is the best look, for either policy.
    assert first[0]["regret"] == again[0]["regret"]
    assert run(Job("worst", "full", "purchase"), size)[0]["regret"] != first[2]["regret"]


@pytest.mark.parametrize("package", ["hf-ext", "mabwiser"])
def test_a_loop_of_a_package_learns(package):
    if package == "mabwiser":
        pytest.importorskip("mabwiser", reason="its package is of make test-peers")
    from bandit_problems import written_problems
    from bandit_rivals import loop_run

    bandit = written_problems()[0]
    row = loop_run(bandit, package, 400, seed=0)
    assert 0 < row["regret"] < 400 * np.mean(1 - bandit.means) / 2, "half of what an arm at random costs"


def test_plans_are_counted_for_each_run(monkeypatch):
    import bandit_rivals
    from bandit_problems import written_problems

    monkeypatch.setattr(bandit_rivals, "REPLAN_REPLICAS", 2)
    lazy, eager = bandit_rivals.replans(written_problems()[0], 60)
    assert 1 <= lazy["plans"] < eager["plans"] <= 60
    assert len(lazy["regret"]) == 2


def test_committed_headline_follows_from_its_rows():
    path = ROOT / "benchmarks" / "results" / "bandit_regret.json"
    if not path.exists():
        pytest.skip("no result yet")
    from bandit_tables import headline_of

    result = json.loads(path.read_text(encoding="utf-8"))
    assert headline_of(result["rows"]) == result["headline"]
    for row in result["rows"]:
        if row["kind"] == "curves":
            assert len(row["regret"]) == 60
        if row["kind"] == "worst":
            assert len(row["regret"]) == 800
