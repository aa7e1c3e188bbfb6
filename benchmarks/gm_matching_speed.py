"""
How fast are the engines of Geometric Median Matching, and how near to the speed of reading memory?

Against the released code's inner loop, rewritten from its description (product, full sort, Python iteration over the
sorted tensor with a list of what is taken; timed on a sample of picks, half of k already taken), and against an
incremental numpy product. Every method runs in one process on one number of threads; in each round all are timed one
after another, in swapped order, and ratios are taken within a round. Rows: unit length, a falling spectrum as sentence
embeddings have it. The read bound is the time to add up the same bytes on the same threads, as four streams. Times
are processor time on one thread, which other processes lengthen less, and wall time on several.

Last line, one JSON object:
  benchmark, n, d, k, threads
  speedup_exact                  released loop over the exact int8 engine, time a pick (goal >= 50)
  speedup_pool                   released loop over the approximate pool (goal >= 500)
  speedup_over_numpy             incremental numpy product over int8 (goal >= 4)
  f32_over_read_bound            fused float32 pass over reading its rows (goal <= 1.5)
  int8_over_read_bound           int8 pick over reading its codes (goal <= 3)
  exact_seconds, pool_seconds    whole gm_matching calls: check, median, preparation, k picks
  released_hours                 k picks of the released loop at the sampled speed
  pool_error_over_exact          ratio of the two moment errors; random_error_over_exact for scale
  peak_memory_mb                 of a process that makes exact picks from memory-mapped rows; rows_mb for scale

    python benchmarks/gm_matching_speed.py             # about ten minutes on a quiet machine
    python benchmarks/gm_matching_speed.py --quick     # under a minute, small, not the claim
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
from common import finish, parser, piece
from peak import run_alone

FULL = {"n": 100_000, "d": 384, "k": 10_000, "rounds": 15}
QUICK = {"n": 10_000, "d": 64, "k": 300, "rounds": 3}
PICKS = {"released": 1, "numpy": 4, "f32": 4, "int8": 8, "pool": 64}  # in a round


def now() -> float:
    """Seconds of this process's processor time on one thread, where other processes' turns do not count; else of wall
    time. NUMBA_NUM_THREADS is what the process was started with."""
    return time.process_time() if os.environ.get("NUMBA_NUM_THREADS") == "1" else time.perf_counter()


def rows_file(work: Path, n: int, d: int) -> Path:
    """Unit rows of a falling spectrum around a common direction, made once."""
    path = work / f"rows-{n}-{d}.npy"
    if not path.exists():
        rng = np.random.default_rng(0)
        spread = (1 + np.arange(d)) ** -0.5
        rows = (rng.standard_normal((n, d), dtype=np.float32) * spread).astype(np.float32)
        rows[:, 0] += 1.0
        rows = rows[:, rng.permutation(d)]
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        work.mkdir(parents=True, exist_ok=True)
        np.save(path.with_suffix(".tmp.npy"), rows)
        path.with_suffix(".tmp.npy").replace(path)
    return path


def released(rows: np.ndarray, center: np.ndarray, taken: list[int]) -> Callable[[int], None]:
    """The released inner loop as its description has it."""
    import torch

    phi, target = torch.from_numpy(rows), torch.from_numpy(center.astype(np.float32))
    picked, theta = list(taken), target.clone()

    def picks(count: int) -> None:
        nonlocal theta
        for _ in range(count):
            order = torch.matmul(phi, theta).argsort(descending=True)
            best = next(row.item() for row in order if row.item() not in picked)
            theta = theta + target - phi[best]
            picked.append(best)

    return picks


def incremental(rows: np.ndarray, center: np.ndarray, taken: list[int]) -> Callable[[int], None]:
    """Scores kept up to date with one product a pick."""
    scores, step = rows @ center, rows @ center
    scores[taken] = -np.inf

    def picks(count: int) -> None:
        nonlocal scores
        for _ in range(count):
            best = int(np.argmax(scores))
            scores += step - rows @ rows[best]
            scores[best] = -np.inf

    return picks


def reader(array: np.ndarray, threads: int) -> Callable[[], float]:
    """Adds up an array's bytes as 64-bit words, in blocks on the same number of threads."""
    from numba import njit, prange, set_num_threads

    @njit(nogil=True)
    def add(words: np.ndarray) -> int:
        a = b = c = e = 0  # four streams: one does not fill the bus, and would flatter the engines
        part = len(words) // 4
        for i in range(part):  # from 0: with a start of unknown sign the loop is not vectorised
            a += words[i]
            b += words[i + part]
            c += words[i + 2 * part]
            e += words[i + 3 * part]
        return a + b + c + e

    @njit(parallel=threads > 1, nogil=True)
    def read(words: np.ndarray, sums: np.ndarray) -> None:
        size = len(words) // len(sums)
        for b in prange(len(sums)):
            sums[b] = add(words[b * size : (b + 1) * size])

    set_num_threads(threads)
    words = array.reshape(-1).view(np.int64)
    sums = np.empty(max(1, len(words) // 2**17), np.int64)

    def seconds() -> float:
        started = now()
        read(words, sums)
        return now() - started

    seconds()
    return seconds


def engine_of(name: str, rows: Any, center: np.ndarray, taken: np.ndarray, threads: int) -> Any:
    """An engine of ours in the middle of a run."""
    from hf_ext.data.pruning import engines
    from hf_ext.data.vectors.rows import Selection

    state = engines.State(Selection(rows), center, center.copy())
    state.is_taken[taken] = True
    return engines.make(name, state, engines.threads_for(*rows.values.shape, threads), 32, 2048, "numpy", None)


def rounds(args: argparse.Namespace) -> dict[str, Any]:
    """Seconds a pick of every method, round by round."""
    from hf_ext.data.pruning.median import solve
    from hf_ext.data.vectors.rows import Selection, check_rows

    values = np.load(rows_file(args.work, args.n, args.d))
    rows = check_rows(values, "unit")
    center = solve(Selection(rows), tol=1e-9, max_iter=200, num_threads=args.threads).center
    taken = np.random.default_rng(1).choice(args.n, args.k // 2, replace=False)
    ours = {name: engine_of(name, rows, center, taken, args.threads) for name in ("int8", "f32", "pool")}
    methods: dict[str, Callable[[int], Any]] = {name: engine.picks for name, engine in ours.items()}
    if args.baselines:
        methods["released"] = released(values, center, taken.tolist())
        methods["numpy"] = incremental(values, center.astype(np.float32), taken.tolist())
    for picks in methods.values():
        picks(1)
    reads = {"read_f32": reader(ours["f32"].z, args.threads), "read_int8": reader(ours["int8"].q, args.threads)}
    found = []
    for number in range(args.rounds):
        seconds: dict[str, float] = {}
        for name in list(methods) if number % 2 else list(methods)[::-1]:
            started = now()
            methods[name](PICKS[name])
            seconds[name] = (now() - started) / PICKS[name]
            if f"read_{name}" in reads:  # beside what it bounds: the machine's speed changes from second to second
                seconds[f"read_{name}"] = fmean(reads[f"read_{name}"]() for _ in range(PICKS[name]))
        found.append(seconds)
    from threadpoolctl import threadpool_info

    names = ("internal_api", "version", "architecture", "num_threads")
    kernels = [{name: one.get(name) for name in names} for one in threadpool_info() if one["user_api"] == "blas"]
    return {"rows": found, "numpy_blas": kernels}


def whole(args: argparse.Namespace) -> dict[str, Any]:
    """Whole calls: seconds, moment errors, seconds after each share of the picks."""
    from hf_ext.data.pruning import gm_matching

    values = np.load(rows_file(args.work, args.n, args.d))
    gm_matching(values[:1000], 10, engine="int8", num_threads=args.threads)  # compiled before the clock starts
    gm_matching(values[:1000], 10, engine="pool", num_threads=args.threads)
    result: dict[str, Any] = {}
    for name in ("int8", "pool"):
        curve = {}
        for k in sorted({max(1, args.k // 100), args.k // 10, args.k}):
            started = now()
            matching = gm_matching(values, k, engine=name, num_threads=args.threads, show_progress=False)
            curve[str(k)] = round(now() - started, 3)
        result[name] = {
            "seconds_by_k": curve,
            "moment_error": matching.moment_error,
            "evals_per_pick": matching.evals_per_pick,
            "verdict": matching.verdict,
        }
    spread = float(np.mean((values.astype(np.float64) - matching.center) ** 2) * args.d)
    result["random_error"] = float(np.sqrt(spread * (1 / args.k - 1 / args.n)))
    return result


def memory(args: argparse.Namespace) -> dict[str, Any]:
    """Make picks from a memory map, for the peak of this process; the peak of its libraries alone."""
    from hf_ext.data.pruning import gm_matching

    values = np.load(rows_file(args.work, args.n, args.d), mmap_mode="r")
    gm_matching(np.asarray(values[:1000]), 5, engine="int8", num_threads=args.threads)
    libraries = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # true only because the parent is small
    gm_matching(values, 50, engine=args.engine, num_threads=args.threads, show_progress=False)
    return {"libraries": libraries}


ROLES = {"rounds": rounds, "whole": whole, "memory": memory}


def in_own_process(args: argparse.Namespace, role: str, **changes: Any) -> dict[str, Any]:
    """A role in a process whose libraries have that number of threads from the start; kept in `work`."""
    settings = {name: getattr(args, name) for name in ("n", "d", "k", "rounds", "threads", "baselines", "engine")}
    settings |= changes

    def compute() -> dict[str, Any]:
        flags = [f"--{name}={int(value) if isinstance(value, bool) else value}" for name, value in settings.items()]
        threads = str(settings["threads"])
        chosen = {"OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"}  # numpy shall run the kernel made for this processor
        environment = {name: value for name, value in os.environ.items() if name not in chosen}
        environment |= {"OMP_NUM_THREADS": threads, "NUMBA_NUM_THREADS": threads, "TQDM_DISABLE": "1"}
        command = [sys.executable, __file__, "--role", role, "--work", str(args.work), *flags]
        output, peak = run_alone(command, environment)
        return json.loads(output.splitlines()[-1]) | {"peak": peak}

    key = "-".join([role, *(str(value) for value in changes.values())])
    return piece(args.work, key, settings, compute)


def ratio(found: list[dict[str, float]], slow: str, fast: str) -> float:
    """Median over the rounds of the ratio within a round."""
    return round(median(row[slow] / row[fast] for row in found), 3)


def headline_of(
    args: argparse.Namespace, found: list[dict[str, float]], calls: dict[str, Any], peaks: dict[str, Any]
) -> dict[str, Any]:
    """The headline from the rounds, the whole calls and the peaks."""
    exact, pool = calls["int8"], calls["pool"]
    return {
        "benchmark": "gm_matching_speed",
        **{name: getattr(args, name) for name in ("n", "d", "k", "threads")},
        "speedup_exact": ratio(found, "released", "int8"),
        "speedup_pool": ratio(found, "released", "pool"),
        "speedup_over_numpy": ratio(found, "numpy", "int8"),
        "f32_over_read_bound": ratio(found, "f32", "read_f32"),
        "int8_over_read_bound": ratio(found, "int8", "read_int8"),
        "exact_seconds": exact["seconds_by_k"][str(args.k)],
        "pool_seconds": pool["seconds_by_k"][str(args.k)],
        "released_hours": round(args.k * median(row["released"] for row in found) / 3600, 3),
        "pool_error_over_exact": round(pool["moment_error"] / exact["moment_error"], 3),
        "random_error_over_exact": round(calls["random_error"] / exact["moment_error"], 3),
        "peak_memory_mb": round(peaks["int8"]["peak"] / 1e6),
        "rows_mb": round(args.n * args.d * 4 / 1e6),
    }


def main() -> None:
    """Time the rounds, the curves and the whole calls; print the headline."""
    options = parser(__doc__ or "", "gm_matching_speed")
    for name in ("n", "d", "k", "rounds"):
        options.add_argument(f"--{name}", type=int, help=f"Default {FULL[name]:,}.")
    options.add_argument("--threads", type=int, default=1, help="Of every method, numpy and torch included.")
    options.add_argument("--role", choices=list(ROLES), help="Run one part in this process (internal).")
    options.add_argument("--baselines", type=int, default=1, help="Time the rivals too (internal).")
    options.add_argument("--engine", default="int8", help="Engine whose memory is measured (internal).")
    args = options.parse_args()
    for name, value in (QUICK if args.quick else FULL).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if args.role:
        print(json.dumps(ROLES[args.role](args)))
        return
    if args.quick:
        args.work = args.work / "quick"
    timed = in_own_process(args, "rounds")
    found = timed["rows"]
    curves: dict[str, Any] = {"threads": {}, "n": {}}
    for threads in sorted({1, 2, os.cpu_count() or 1}):
        own = in_own_process(args, "rounds", threads=threads, baselines=0)["rows"]
        curves["threads"][threads] = {name: median(row[name] for row in own) for name in own[0]}
    for n in (args.n // 10, args.n // 3, args.n, args.n * 3):
        own = in_own_process(args, "rounds", n=n, baselines=0, k=min(args.k, n // 2))["rows"]
        curves["n"][n] = {name: median(row[name] for row in own) for name in own[0]}
    calls = in_own_process(args, "whole")
    curves["k"] = {name: calls[name]["seconds_by_k"] for name in ("int8", "pool")}
    peaks = {name: in_own_process(args, "memory", engine=name) for name in ("int8", "f32", "pool")}
    headline = headline_of(args, found, calls, peaks)
    milliseconds = {name: round(1e3 * median(row[name] for row in found), 3) for name in found[0]}
    print(f"milliseconds a pick (median): {milliseconds}")
    print(f"seconds a pick by threads and by n, seconds a call by k: {json.dumps(curves)}")
    result = {"rows": found, "curves": curves, "calls": calls, "memory_bytes": peaks}
    finish(args, result | {"numpy_blas": timed["numpy_blas"]}, headline)


if __name__ == "__main__":
    main()
