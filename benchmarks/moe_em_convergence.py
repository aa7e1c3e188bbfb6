"""
How many passes over the rows do EM and `auto` need to the optimum of gradient methods, and who finds the best one?

A pass is one evaluation of value and gradient over all rows, or one E-step; the Gram matrix, the fit of a single
expert and the clusters of a start are counted too. One start means: the same for both sides. Every gradient method
runs with five steps, EM with five numbers of inner steps; the best of five on the training rows counts. Ridge
1e-4. Two methods run at a time, each on a thread of its own, so their seconds compare.

(a) `invert14`: Random-Invert Fashion-MNIST, half of the pictures inverted by their ids, 14 x 14, 5,000 rows, two
softmax experts, 400 passes a method, five instances; also Adam and L-BFGS from a random start, and `neural-trees`.
(b) `invert28`: the paper's table, 28 x 28, 20,000 rows, 100 iterations, five instances (`--instances 25` as in the
paper), beside 78.5 % for EM, 66.0 % for gradient EM and 62.4 % for gradient descent; ours also stopped early on 1,000
validation rows. (c) linear experts: six problems of two experts and six of four, 400 passes, and `cgmm`; two problems
of eight experts besides, which are in no figure but their own. (d) intents of snips and banking77, MiniLM embeddings,
four experts, 100 passes, beside one expert. `auto` has a start for 50 passes: 8 in (a) and (c), 2 in (d).

Last line, one JSON object; medians:
  benchmark
  gd_over_em_passes                    (a): passes of gradient descent to its best value + 1e-3 over those of EM to the
                                       same (goal >= 5, at least 2)
  adam_over_auto_passes                (a): the same of Adam and `auto`, one start each (goal >= 6, at least 3)
  gd_over_em_passes_whitened, adam_over_auto_passes_whitened    the rival whitened too (goal >= 1.5)
  adam_over_lbfgs_passes_random_start  (a): Adam and L-BFGS, whose start has no gate of clusters; no goal
  adam_over_auto_passes_linear         (c), one start each (goal >= 2.5, at least 1.5)
  auto_best_share                      of the problems of (a), (c), (d): `auto` is within 5e-3 nats a row of the lowest
                                       objective of all runs, each of as many passes as all its starts (goal >= 0.9)
  auto_problems                        how many those are
  auto_excess_nats_eight_experts       (c): how far `auto` is above the lowest with eight experts; no goal
  mixture_minus_single_points          (a): test accuracy of `auto` minus that of one expert (goal >= 50, at least 45)
  cgmm_minus_auto_nats                 (c): nats a training row of `cgmm` minus those of `auto` (goal > 0)

Runs in the environment of `make test-peers`, or in any with the two packages (both are Python alone):

    pip install --no-deps cgmm==0.5.1 neural-trees==0.8.0
    HF_EXT_DATA=... python benchmarks/moe_em_convergence.py    # resumable; about 50 minutes on two cores: (a) 12,
                                                               # (b) 16, (c) 10, (d) 12; writes .json, .md and .png
    HF_EXT_DATA=... python benchmarks/moe_em_convergence.py --quick    # under a minute, few rows, not the claim
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from common import finish, parser, piece
from moe_problems import Problem, drawn_linear, intents, random_invert
from moe_rivals import (
    INNER_STEPS,
    LINEAR_STEPS,
    STEPS,
    cgmm_run,
    fit_run,
    gradient_runs,
    neural_trees_runs,
)
from moe_tables import headline_of, plot, tables_of
from tqdm.auto import tqdm

from hf_ext.moe.arguments import EMArguments

PEERS = {"cgmm": "cgmm", "neural_trees": "neural-trees"}
PASSES_A_START = 50  # of auto
GRADIENT_EM_STEPS = 2  # for one E-step: one alone would be gradient descent
PEER_RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
PEER_EPOCHS = 100


@dataclass(frozen=True)
class Job:
    """
    One method on one problem, with all its settings.

    Args:
        problem (`str`), instance (`int`):
            Of `problem_of`.
        method (`str`):
            `auto`, `auto_one`, `em`, ..., `single`, a gradient method or another package.
        budget (`int`):
            Passes of a run; iterations of the paper's table.
        whitened (`bool`):
            Of gradient methods.
        start (`int`):
            Which random start.
        rows (`int`, *optional*), side (`int`):
            Training rows, by default all of the problem, and pixels a side.
    """

    problem: str
    instance: int
    method: str
    budget: int
    whitened: bool = False
    start: int = 0
    rows: int | None = None
    side: int = 0

    @property
    def key(self) -> str:
        """Name of the piece."""
        suffix = ("-whitened" if self.whitened else "") + (f"-start{self.start}" if self.start else "")
        return f"{self.problem}-{self.instance}-{self.method}{suffix}"


def jobs_of(instances: int) -> Iterator[Job]:
    """The whole run, in its order."""
    gradients = [("gd", False), ("gd", True), ("adam", False), ("adam", True)]
    for instance in range(5):
        shared: dict[str, Any] = {"problem": "invert14", "instance": instance, "rows": 5000, "side": 14, "budget": 400}
        for method in ("auto", "auto_one", "em", "em+lbfgs", "single", "neural_trees"):
            yield Job(method=method, **shared)
        for method, whitened in [*gradients, ("sgd", False), ("adam_batches", False)]:
            yield Job(method=method, whitened=whitened, **shared)
        for method in ("adam", "lbfgs"):
            yield Job(method=method, start=1, **shared)
    for name, count in (("k2_d10", 6), ("k4_d20", 6), ("k8_d50", 2)):
        for instance in range(count):
            shared = {"problem": name, "instance": instance, "budget": 400}
            for method in ("auto", "auto_one", "em", "lbfgs", "single"):
                yield Job(method=method, **shared)
            if name != "k8_d50":
                yield Job(method="cgmm", **shared)
            for method, whitened in gradients if name != "k8_d50" else gradients[2:3]:
                yield Job(method=method, whitened=whitened, **shared)
    for name in ("snips", "banking77"):
        shared = {"problem": name, "instance": 0, "budget": 100}
        for method in ("auto", "auto_one", "em", "em+lbfgs", "single"):
            yield Job(method=method, **shared)
        for method, whitened in [*gradients, ("sgd", False)]:
            yield Job(method=method, whitened=whitened, **shared)
    for instance in range(instances):
        shared = {"problem": "invert28", "instance": instance, "rows": 20_000, "side": 28, "budget": 100}
        for method in ("em", "gradient_em", "gd", "auto", "single"):
            yield Job(method=method, **shared)


def quick_jobs() -> Iterator[Job]:
    """One small problem of each kind that needs no encoder."""
    for method in ("auto", "auto_one", "em", "single", "gd", "adam", "neural_trees"):
        yield Job("invert14", 0, method, 40, rows=400, side=7)
    for method in ("auto", "auto_one", "adam", "cgmm"):
        yield Job("k2_d10", 0, method, 40, rows=300)


@lru_cache(maxsize=1)
def problem_of(name: str, instance: int, rows: int | None, side: int, work: Path) -> Problem:
    """The problem of a job; jobs of one problem follow each other."""
    if name in ("snips", "banking77"):
        return intents(name, work)
    if side and rows:
        return random_invert(instance, rows=rows, side=side)
    return drawn_linear(name, instance, rows)


def run(job: Job, work: Path) -> list[dict[str, Any]]:
    """Rows of a job."""
    problem = problem_of(job.problem, job.instance, job.rows, job.side, work)
    is_paper = job.problem == "invert28"
    if job.method == "cgmm":
        return [cgmm_run(problem)]
    if job.method == "neural_trees":
        return neural_trees_runs(problem, PEER_RATES, min(PEER_EPOCHS, job.budget))
    steps = LINEAR_STEPS if problem.shape.expert_type == "linear" else STEPS
    if (job.method, job.whitened) in steps:
        inner = GRADIENT_EM_STEPS if job.method == "gradient_em" else 1
        budget = job.budget * inner if is_paper else job.budget  # there iterations count
        return gradient_runs(
            problem, job.method, steps[job.method, job.whitened], budget, whiten=job.whitened, start=job.start,
            inner=inner, counts_setup=not is_paper,
        )  # fmt: skip
    return _fits(problem, job, is_paper)


def _fits(problem: Problem, job: Job, is_paper: bool) -> list[dict[str, Any]]:
    """Rows of a job that the library fits."""
    if is_paper and job.method == "em":
        arguments = EMArguments(method="em", max_iterations=job.budget, patience=job.budget, restarts=1)
        return [fit_run(problem, arguments, 1e9, method="em", early=True)]
    if is_paper and job.method == "auto":
        return [fit_run(problem, EMArguments(), 3 * job.budget, method="auto", early=True)]
    if job.method == "em" and job.problem not in ("snips", "banking77"):
        return [
            fit_run(problem, EMArguments(method="em", inner_steps=inner, restarts=1), job.budget, method="em")
            for inner in INNER_STEPS
        ]
    if job.method == "single":
        arguments = EMArguments(method="auto", restarts=1)
        return [fit_run(problem.with_experts(1), arguments, job.budget, method="single")]
    if job.method == "auto":
        starts = max(1, job.budget // PASSES_A_START)
        return [fit_run(problem, EMArguments(restarts=starts), job.budget, method="auto")]
    arguments = EMArguments(method="auto" if job.method == "auto_one" else job.method, restarts=1)
    return [fit_run(problem, arguments, job.budget, method=job.method, start=job.start)]


def follow_parent() -> None:
    """Let this worker end when the benchmark is killed: it would go on with its method otherwise."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def finished(job: Job, work: Path) -> list[dict[str, Any]]:
    """Rows of a job, computed on one thread unless they were before."""
    torch.set_num_threads(1)
    facts = {"rows": job.rows, "side": job.side, "budget": job.budget, "revision": 1}
    figures = piece(work, job.key, facts, lambda: {"rows": run(job, work)})
    return [{"problem": job.problem, "instance": job.instance, **row} for row in figures["rows"]]


def rows_of(jobs: list[Job], work: Path, workers: int) -> list[dict[str, Any]]:
    """Rows of all jobs, in their order, two at a time or one after the other."""
    task = partial(finished, work=work)
    bar = partial(tqdm, total=len(jobs), desc="methods", unit="method")
    if workers == 1:
        return [row for rows in bar(map(task, jobs)) for row in rows]
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=spawn, initializer=follow_parent) as pool:
        return [row for rows in bar(pool.map(task, jobs)) for row in rows]


def main() -> None:
    """Run every missing piece, then write rows, tables, plot and headline."""
    options = parser(__doc__ or "", "moe_em_convergence")
    options.add_argument("--instances", type=int, default=5, help="Of the paper's table; it has 25.")
    options.add_argument("--plan", action="store_true", help="Print the pieces and leave.")
    args = options.parse_args()
    jobs: list[Job] = list(quick_jobs() if args.quick else jobs_of(args.instances))
    if args.plan:
        print("\n".join(job.key for job in jobs))
        return
    missing_packages = [package for module, package in PEERS.items() if find_spec(module) is None]
    if missing_packages and not args.quick:
        packages = " and ".join(missing_packages)
        sys.exit(f"{packages} must run beside ours: pip install --no-deps cgmm==0.5.1 neural-trees==0.8.0")
    if missing_packages:
        jobs = [job for job in jobs if PEERS.get(job.method) not in missing_packages]
    work = args.work / "quick" if args.quick else args.work
    work.mkdir(parents=True, exist_ok=True)
    for name in {job.problem for job in jobs} & {"snips", "banking77"}:
        intents(name, work)  # made before two processes would
    rows = rows_of(jobs, work, 1 if args.quick else 2)
    headline = headline_of(rows)
    result = {"rows": rows, "peers": {name: version(name) for name in PEERS.values() if name not in missing_packages}}
    output = finish(args, result, headline)
    if output:
        output.with_suffix(".md").write_text(tables_of(rows, headline), encoding="utf-8")
        plot(rows, output.with_suffix(".png"))


if __name__ == "__main__":
    main()
