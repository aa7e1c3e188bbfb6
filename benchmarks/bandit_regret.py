"""
How much regret do policies for Gaussian bandits with side information have, beside the bound and beside each other?

Twelve matrices: `bandit`, `full`, `hub`, `reveal`, `ring` and `kernel`, written down, and six that
`bandit_problems.fresh` draws from seeds 1 to 6, a generator that was committed before any policy ran on what it draws.
60 runs a policy, the same noise for all of them, 100,000 rounds; `purchase` goes on to 1,000,000. 800 runs of
`purchase` on every matrix show its worst one. On `bandit` and `hub` two packages play 10,000 rounds: `mabwiser` (UCB1,
which takes no value but the reward) and `bayesianbandits` (Thompson sampling, told of the reward alone, or, `_told`,
of every value shown). UCB1, UCB-N and Thompson sampling are not defined on `reveal`, where no good arm shows itself.

Last line, one JSON object. Means over runs; C* is the exact lower bound over log T:
  benchmark
  worst_regret_over_bound      `purchase` over C* log T at 100,000 rounds, the worst matrix with C* > 0 (goal <= 1.0,
                               at most 1.3)
  late_regret_without_bound    on `full`, where C* is 0: regret at 100,000 rounds less that at 1,000 (goal <= 1)
  wins_over_ucb                share of the matrices on which `purchase` has the lowest regret of itself, UCB1 and
                               UCB-N, or is within 2 standard errors of the lowest (goal 1.0)
  wins_over_thompson           the same of itself and Thompson sampling of all observations (goal >= 0.9)
  wins_over_purchase_ucb       the same of itself and `purchase_ucb`; no goal
  worst_run_over_mean          800 runs of `purchase` on the plain bandit: the worst over the mean (goal <= 6)
  worst_run_over_mean_any      the same, on the worst matrix with C* > 0
  thompson_worst_run_over_mean 800 runs of Thompson sampling on the plain bandit
  slope_over_bound, worst_slope_over_bound    regret gained from 10,000 to 1,000,000 rounds over C* log 100: the median
                               and the highest over the matrices with C* > 0; no goal
  mabwiser_over_purchase, bayesianbandits_over_purchase    regret on `bandit` at 10,000 rounds
  mabwiser_over_purchase_hub, bayesianbandits_over_purchase_hub, bayesianbandits_told_over_purchase_hub    on `hub`
  mabwiser_over_purchase_time, bayesianbandits_over_purchase_time    processor time a round in a loop of `ask` and
                               `tell`, on `hub`
  highs_over_simplex_time      of the same covering programmes of 12 arms, the median
  lazy_plans_share             plans of `track` on `bandit`, over those when it plans at every round of exploration
                               (goal <= 0.05)
  lazy_over_eager_regret       regret of the two; no goal

The packages are those of `make test-peers`:

    python benchmarks/bandit_regret.py            # resumable; 40 minutes on two cores; writes .json, .md, .png
    python benchmarks/bandit_regret.py --quick    # under a minute, few runs, not the claim
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")  # before numpy is imported, here and in the workers

import numpy as np
from bandit_problems import Problem, problems
from bandit_rivals import STEPS, loop_run, replans, simplex_times
from bandit_tables import headline_of, plot, tables_of
from common import finish, follow_parent, parser, piece
from tqdm.auto import tqdm

from hf_ext.bandits.lower_bound import lower_bound
from hf_ext.bandits.side_observations import simulate

PEERS = ("mabwiser", "bayesianbandits")
POLICIES = ("purchase", "purchase_ucb", "track", "thompson", "ucb_n", "ucb1")
BASELINES = ("thompson", "ucb_n", "ucb1")
SEED = 0


@dataclass(frozen=True)
class Size:
    """
    How much is run.

    Args:
        marks (`tuple[int, ...]`):
            Rounds at which regret is noted: the second is the horizon of other packages, the last but one that of the
            other policies.
        replicas, many_replicas (`int`):
            Runs a policy, and where the worst run is looked for.
        peer_runs (`int`):
            Runs of other packages.
        matrices (`int`):
            The first so many.
    """

    marks: tuple[int, ...] = (1_000, 10_000, 100_000, 1_000_000)
    replicas: int = 60
    many_replicas: int = 800
    peer_runs: int = 8
    matrices: int = 12


QUICK = Size((50, 100, 500, 1_000), replicas=10, many_replicas=20, peer_runs=1, matrices=4)


@dataclass(frozen=True)
class Job:
    """
    A piece of the work.

    Args:
        kind (`str`):
            "curves", "worst", "loop", "simplex" or "plans".
        problem (`str`):
            Name of the matrix; empty where it is of none.
        policy (`str`):
            The policy, or the package.
        run (`int`):
            Which run, of the loops.
    """

    kind: str
    problem: str = ""
    policy: str = ""
    run: int = 0

    @property
    def key(self) -> str:
        """Name of the piece."""
        parts = (self.kind, self.problem.replace(" ", ""), self.policy, str(self.run) if self.kind == "loop" else "")
        return "-".join(part for part in parts if part)


def jobs_of(size: Size) -> list[Job]:
    """The whole run, the longest pieces first."""
    matrices = problems()[: size.matrices]
    return [
        *(Job("curves", problem.name, "purchase") for problem in matrices),
        *(Job("worst", problem.name, "purchase") for problem in matrices),
        Job("worst", "bandit", "thompson"),
        *(Job("curves", *pair) for pair in _rival_pairs(matrices)),
        Job("plans", "bandit", "track"),
        *(Job("loop", name, package, run) for run in range(size.peer_runs) for name, package in _loops()),
        Job("simplex"),
    ]


def _rival_pairs(matrices: list[Problem]) -> Iterator[tuple[str, str]]:
    for policy in POLICIES[1:]:
        for problem in matrices:
            if policy not in BASELINES or (problem.info.precision.diagonal() > 0).all():
                yield problem.name, policy


def _loops() -> Iterator[tuple[str, str]]:
    for package in STEPS:
        for name in ("bandit", "hub"):
            if name == "hub" or not package.endswith("_told"):
                yield name, package


def run(job: Job, size: Size) -> list[dict[str, Any]]:
    """Rows of a job."""
    if job.kind == "simplex":
        return simplex_times()
    problem = next(problem for problem in problems() if problem.name == job.problem)
    if job.kind == "loop":
        return [loop_run(problem, job.policy, size.marks[1], job.run)]
    if job.kind == "plans":
        return replans(problem, size.marks[-2])
    marks = size.marks if job.policy == "purchase" else size.marks[:-1]
    replicas = size.replicas
    if job.kind == "worst":
        marks = marks[:-1] if job.policy == "purchase" else marks
        replicas = size.many_replicas
    curves = simulate(
        problem.means,
        problem.info,
        job.policy,
        horizon=marks[-1],
        replicas=replicas,
        seed=SEED + (job.kind == "worst"),
        marks=marks,
    )
    if job.kind == "worst":
        return [{"rounds": marks[-1], "regret": np.round(curves.regret[:, -1], 2).tolist()}]
    bound = lower_bound(problem.means, problem.info).value
    regret = np.round(curves.regret, 3)
    return [
        {"rounds": mark, "bound": bound, "regret": regret[:, column].tolist()} for column, mark in enumerate(marks)
    ]


def finished(job: Job, work: Path, size: Size) -> list[dict[str, Any]]:
    """Rows of a job, computed unless they were before."""
    facts = {**vars(size), "seed": SEED}
    rows = piece(work, job.key, facts, lambda: {"rows": run(job, size)})["rows"]
    return [{"kind": job.kind, "problem": job.problem, "policy": job.policy, **row} for row in rows]


def rows_of(jobs: list[Job], work: Path, size: Size, workers: int) -> list[dict[str, Any]]:
    """Rows of all jobs, in their order, two at a time or one after the other."""
    task = partial(finished, work=work, size=size)
    bar = partial(tqdm, total=len(jobs), desc="pieces", unit="piece")
    if workers == 1:
        return [row for rows in bar(map(task, jobs)) for row in rows]
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=spawn, initializer=follow_parent) as pool:
        return [row for rows in bar(pool.map(task, jobs)) for row in rows]


def main() -> None:
    """Run every missing piece, then write rows, tables, plot and headline."""
    options = parser(__doc__ or "", "bandit_regret")
    options.add_argument("--plan", action="store_true", help="Print the pieces and leave.")
    args = options.parse_args()
    size = QUICK if args.quick else Size()
    jobs = jobs_of(size)
    if args.plan:
        print("\n".join(job.key for job in jobs))
        return
    missing_packages = [package for package in PEERS if find_spec(package) is None]
    if missing_packages and not args.quick:
        sys.exit(f"{' and '.join(missing_packages)} must run beside ours: see tests/peers/requirements.txt.")
    jobs = [job for job in jobs if job.policy.removesuffix("_told") not in missing_packages]
    work = args.work / "quick" if args.quick else args.work
    work.mkdir(parents=True, exist_ok=True)
    rows = rows_of(jobs, work, size, 1 if args.quick else 2)
    headline = headline_of(rows)
    peers = {name: version(name) for name in PEERS if name not in missing_packages}
    output = finish(args, {"rows": rows, "peers": peers}, headline)
    if output:
        output.with_suffix(".md").write_text(tables_of(rows), encoding="utf-8")
        plot(rows, output.with_suffix(".png"))


if __name__ == "__main__":
    main()
