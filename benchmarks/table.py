"""
Print the headline of every committed benchmark result, and mark those older than the code they measure.

    python benchmarks/table.py
    python benchmarks/table.py --markdown > docs/benchmarks.md
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from typing import Any

from measured import RESULTS, ROOT, is_stale

STATES = {True: "older than the code it measures", False: "current", None: "age unknown: not in a git clone"}


def device_of(result: dict[str, Any]) -> str:
    """What it ran on."""
    machine = result["machine"]
    return machine["gpu"] or f"{machine['cores']} CPU cores"


def headlines(results: dict[str, dict[str, Any]]) -> str:
    """One block a result."""
    lines = []
    for name, result in results.items():
        state = STATES[is_stale(name, result)]
        state = state.upper() if state.startswith("older") else state
        lines.append(f"{name}  ({result['date']}, {device_of(result)}, {state})")
        lines += [f"    {key:40} {value}" for key, value in result["headline"].items() if key != "benchmark"]
        lines.append(f"    {'again with':40} {result['command']}")
    return "\n".join(lines)


def page(results: dict[str, dict[str, Any]]) -> str:
    """The page of docs: of what day, commit and machine each result is, and whether its code has changed since."""
    states = {name: is_stale(name, result) for name, result in results.items()}
    head = ["git", "-C", str(ROOT), "log", "-1", "--format=%h"]
    commit = subprocess.run(head, capture_output=True, text=True, check=False).stdout.strip()
    today = time.strftime("%Y-%m-%d", time.gmtime())
    older = sum(state is True for state in states.values())
    lines = [
        "# Benchmark results",
        "",
        "Measured figures in README, on these pages and on the trainers' come from files in `benchmarks/results`:",
        "`benchmarks/figures.txt` says from which key, and a test compares them. Written by",
        "`python benchmarks/table.py --markdown`.",
        "",
        f"The last column is of {today}, commit {commit}: {older} of {len(results)} are older than the code they",
        "measure. `make bench` says it of the code at hand, with every headline. A result holds the hash of its",
        "script and of the code it measured; one without a hash is of the time before, and git compares its commit.",
        "",
        "| result | measured | commit | code | on | again with | its code since |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, result in results.items():
        state = {True: "changed: older", False: "unchanged: current", None: "unknown"}[states[name]]
        cells = [
            f"[{name}](../benchmarks/results/{name}.json)",
            result["date"],
            result["commit"][:9],
            result.get("code", "no hash"),
            device_of(result),
            f"`{result['command']}`",
            state,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Print the headlines, or the page."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--markdown", action="store_true", help="The page docs/benchmarks.md instead.")
    results = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob("*.json"))}
    print((page if options.parse_args().markdown else headlines)(results))


if __name__ == "__main__":
    main()
