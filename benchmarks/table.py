"""
Print the headline of every committed benchmark result, and mark those older than the code they measure.

    python benchmarks/table.py
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

HERE = Path(__file__).resolve().parent

PICKS = ("engines", "_run.py", "groups.py", "matching.py", "median.py", "official.py", "selectors.py")
# What a result depends on, from the repository's root. A commit that touches it since the result's makes it stale.
MEASURED = {
    "consensus_label_dp": [
        "benchmarks/consensus_models.py",
        "hf_ext/data/relabeling",
        "hf_ext/losses/label_noise.py",
        "trainers/consensus",
    ],
    "context_free_speed": ["hf_ext/data/sampling.py", "hf_ext/data/slots.py"],
    "forgetting_gsm8k": ["hf_ext/data", "hf_ext/losses", "hf_ext/_upstream.py", "trainers", "hf_ext/evaluation"],
    "gm_matching_speed": ["hf_ext/data/pruning"],
    "infopo_step": [
        "hf_ext/_upstream.py",
        "hf_ext/_upstream_preference.py",
        "hf_ext/guards",
        "hf_ext/losses",
        "trainers",
    ],
    "preference_reasoning": [
        "hf_ext/_upstream_preference.py",
        "hf_ext/losses",
        "trainers/infopo",
        "hf_ext/evaluation",
    ],
    "pruning_generation": [f"hf_ext/data/pruning/{name}" for name in PICKS],
    "pruning_robustness": [f"hf_ext/data/pruning/{name}" for name in (*PICKS, "scores.py")],
    "rare_retrieval": [
        "benchmarks/retrieval_jobs.py",
        "hf_ext/data/exemplars",
        "hf_ext/retrieval/pooling.py",
        "trainers/rare",
    ],
    "step_cost": ["hf_ext/_upstream.py", "hf_ext/data/sft_rows.py", "hf_ext/guards", "hf_ext/losses", "trainers"],
}


def is_stale(name: str, commit: str) -> bool | None:
    """Whether code the result measures has changed since; `None` where git cannot tell."""
    paths = [*MEASURED.get(name, ["hf_ext", "trainers"]), f"benchmarks/{name}.py", ":(exclude,glob)**/*.md"]
    command = ["git", "-C", str(HERE.parent), "diff", "--quiet", commit.removesuffix("+changes"), "HEAD", "--", *paths]
    code = subprocess.run(command, capture_output=True, check=False).returncode
    return {0: False, 1: True}.get(code)


def main() -> None:
    """Print one block a result."""
    for path in sorted((HERE / "results").glob("*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        stale = is_stale(path.stem, result["commit"])
        notes = {True: "OLDER THAN THE CODE IT MEASURES", False: "current", None: "age unknown: not in a git clone"}
        machine = result["machine"]
        device = machine["gpu"] or f"{machine['cores']} CPU cores"
        print(f"{path.stem}  ({result['date']}, {device}, {notes[stale]})")
        for key, value in result["headline"].items():
            if key != "benchmark":
                print(f"    {key:40} {value}")
        print(f"    {'again with':40} {result['command']}")


if __name__ == "__main__":
    main()
