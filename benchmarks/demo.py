"""
What does `hf-ext demo` print? The table of README: one model tuned four ways, and what each forgot.

Rows hold nats per token with half of a 95 % interval over held-out rows: the loss on easy rows, on hard rows, and
KL(original || new) on fresh samples. One seed; what is random is said by the interval over rows alone.

Last line, one JSON object:
  benchmark, steps
  kl_<arm>_over_sft          what the arm forgot, over what SFT forgot
  gain_<arm>_over_sft        fall of the loss on easy rows, over SFT's
  hard_gain_<arm>            fall of the loss on hard rows, nats per token

    python benchmarks/demo.py            # under eight minutes on 2 cores
    python benchmarks/demo.py --quick    # the tiny model, not the claim
"""

from __future__ import annotations

import os
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from common import finish, parser, piece

from hf_ext.demo.run import run_demo
from hf_ext.demo.settings import RUNS, DemoSettings, fast_settings, full_settings
from hf_ext.evaluation.report import ForgettingReport, RunResult


def row_of(result: RunResult) -> dict[str, Any]:
    """An arm's line of the table."""
    estimates = {"easy": result.group_loss["hard=False"], "hard": result.group_loss["hard=True"]}
    if result.kl_original_to_new:
        estimates["kl"] = result.kl_original_to_new
    row: dict[str, Any] = {"arm": result.name}
    for name, estimate in estimates.items():
        row |= {name: round(estimate.mean, 6), f"{name}_half_width": round(estimate.half_width or 0.0, 6)}
    return row


def rows_of(report: ForgettingReport) -> list[dict[str, Any]]:
    """The table: the original model, then the arms."""
    return [row_of(result) for result in (report.original, *report.runs)]


def headline_of(rows: list[dict[str, Any]], settings: DemoSettings) -> dict[str, Any]:
    """Shares of SFT's gain and of what it forgot."""
    by_name = {row["arm"]: row for row in rows}
    original, sft = by_name["original"], by_name[RUNS["sft"]]
    headline: dict[str, Any] = {"benchmark": "demo", "steps": settings.max_steps}
    for key, name in RUNS.items():
        row = by_name[name]
        if key != "sft":
            headline[f"kl_{key}_over_sft"] = round(row["kl"] / sft["kl"], 4)
            gain = (original["easy"] - row["easy"]) / (original["easy"] - sft["easy"])
            headline[f"gain_{key}_over_sft"] = round(gain, 4)
        headline[f"hard_gain_{key}"] = round(original["hard"] - row["hard"], 4)
    return headline


def main() -> None:
    """Run the demo, or what is left of it, and print its headline."""
    args = parser(__doc__ or "", "demo").parse_args()
    settings = fast_settings() if args.quick else full_settings()
    folder = args.work / ("quick" if args.quick else "run")
    table = piece(args.work, folder.name, settings.to_dict(), lambda: {"rows": rows_of(run_demo(folder, settings))})
    result = {"settings": settings.to_dict(), "rows": table["rows"], "seconds": table["seconds"]}
    finish(args, result, headline_of(table["rows"], settings))


if __name__ == "__main__":
    main()
