"""The code that each benchmark measures: its hash, which a result holds, and whether the tree holds anything else."""

from __future__ import annotations

import ast
import hashlib
import subprocess
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
RESULTS = HERE / "results"
PICKS = [
    "hf_ext/data/vectors/rows.py",
    *(
        f"hf_ext/data/pruning/{name}"
        for name in (
            "engines",
            "groups.py",
            "matching.py",
            "median.py",
            "official.py",
            "one_group.py",
            "selectors.py",
        )
    ),
]
# What carries documents through the rules and tells of it: neither verdicts nor their cost hang on these.
CURATION = [
    "hf_ext/data/curation",
    *(
        f"-hf_ext/data/curation/{name}"
        for name in (
            "backends",
            "document_sample.py",
            "drop_ledger.py",
            "dry_run.py",
            "manifest.py",
            "mixing.py",
            "packed.py",
            "packing.py",
            "report.py",
            "report_page.py",
            "sources.py",
            "warc.py",
            "workers.py",
        )
    ),
]
# What a row of CORE is asked and how its answer is judged.
CORE = [
    *(
        f"hf_ext/evaluation/core/{name}.py"
        for name in ("evaluate", "judges", "prompts", "scoring", "task_files", "tasks", "tokens")
    ),
    "hf_ext/evaluation/models.py",
]
# How a model is made of shards, and a game of models.
GAME = [
    *CORE,
    "hf_ext/data/curation",
    *(
        f"-hf_ext/data/curation/{name}"
        for name in ("backends", "dry_run.py", "report.py", "report_page.py", "warc.py")
    ),
    "hf_ext/losses/z_loss.py",
    "hf_ext/rounds/data_game.py",
    "hf_ext/rounds/game_report.py",
    "recipes/dclm",
    "recipes/pretraining",
    "trainers/base",
    "trainers/pretraining",
]
# The fit of a mixture: the model, its encoder and its pictures are no part of it, nor are adapters as experts.
MIXTURES = [
    "hf_ext/losses/moe_likelihood.py",
    *(
        f"hf_ext/moe/{name}.py"
        for name in (
            "arguments",
            "em",
            "expert_terms",
            "iterations",
            "lbfgs",
            "m_steps",
            "objective",
            "parameters",
            "results",
            "rows",
            "starts",
            "state",
        )
    ),
]
# What trains and measures a run of a comparison.
COMPARISON = [
    "hf_ext/_upstream",
    "hf_ext/comparison",
    *(
        f"hf_ext/data/{name}.py"
        for name in (
            "context_free",
            "flow_arithmetic",
            "original_cache",
            "original_states",
            "provenance",
            "sampling",
            "scoring",
            "sft_rows",
            "slots",
            "weighting",
        )
    ),
    *(f"hf_ext/evaluation/{name}.py" for name in ("forgetting", "models", "rows", "wise_ft")),
    "hf_ext/losses/kl.py",
    "hf_ext/losses/weighted_nll.py",
    "trainers/base",
    "trainers/context_free",
    "trainers/flow",
    "trainers/weighted_sft",
]
# Files and folders of Python from the repository's root, without those behind a minus. The script and the modules
# beside it that it imports belong to it too. A result is current while none of them has changed.
MEASURED = {
    "bandit_regret": [
        f"hf_ext/bandits/{name}.py"
        for name in ("information", "lower_bound", "rules", "side_observations", "simulation")
    ],
    "checkpoint_selection": [
        *CORE,
        *(f"hf_ext/bandits/{name}.py" for name in ("checkpoints", "race", "refutation", "selection")),
    ],
    "consensus_label_dp": [
        "hf_ext/data/relabeling",
        "hf_ext/losses/label_noise.py",
        "hf_ext/rounds",
        "trainers/consensus",
    ],
    "context_free_speed": ["hf_ext/data/sampling.py", "hf_ext/data/slots.py"],
    "core_agreement": [*CORE, "hf_ext/evaluation/core/export.py"],
    "core_smollm2": [*CORE, "hf_ext/evaluation/core/aggregate.py", "hf_ext/evaluation/core/generation.py"],
    "core_speed": CORE,
    "curation_quality": CURATION,
    "curation_speed": CURATION,
    "dclm_game": GAME,
    "demo": [
        "hf_ext/_upstream",
        "hf_ext/data",
        "hf_ext/demo",
        "hf_ext/evaluation",
        "hf_ext/losses",
        "trainers/context_free",
        "trainers/flow",
        "trainers/base",
        "trainers/weighted_sft",
    ],
    "exact_kl_step": [
        "hf_ext/_upstream",
        "hf_ext/data/sft_rows.py",
        "hf_ext/guards",
        "hf_ext/losses",
        "trainers/base",
        "trainers/context_free",
        "trainers/weighted_sft",
    ],
    "exemplar_lookup": ["hf_ext/data/exemplars"],
    "flow_vision": [
        "hf_ext/data/class_losses.py",
        "hf_ext/data/flow_arithmetic.py",
        "hf_ext/data/weighting.py",
        "hf_ext/losses/weighted_classes.py",
        "trainers/weighted_classification",
    ],
    "forgetting_gsm8k": [
        "hf_ext/_upstream",
        "hf_ext/data",
        "hf_ext/evaluation",
        "hf_ext/losses",
        "trainers/context_free",
        "trainers/flow",
        "trainers/base",
        "trainers/weighted_sft",
    ],
    "forgetting_rivals": COMPARISON,
    "forgetting_tiny": COMPARISON,
    "gm_matching_speed": PICKS,
    "infopo_step": ["hf_ext/_upstream", "hf_ext/guards", "hf_ext/losses", "trainers/infopo"],
    "mixture_selection": [
        "hf_ext/_upstream/mixture.py",
        *(f"hf_ext/bandits/{name}.py" for name in ("information", "mixture", "rules", "side_observations", "spread")),
        *(f"trainers/mixture/{name}.py" for name in ("feedback", "rows", "trainer")),
    ],
    "moe_em_convergence": MIXTURES,
    "moe_lora": [
        "hf_ext/data/scoring.py",
        "hf_ext/data/sft_rows.py",
        "hf_ext/losses/weighted_nll.py",
        *(f"hf_ext/moe/{name}.py" for name in ("gate", "lbfgs", "lora", "m_steps", "objective", "parameters", "rows")),
        *(f"hf_ext/rounds/{name}.py" for name in ("lora_mixture", "lora_report", "lora_rows")),
        "trainers/base",
        "trainers/moe_lora",
        "trainers/weighted_sft",
    ],
    "preference_reasoning": ["hf_ext/_upstream", "hf_ext/evaluation", "hf_ext/losses", "trainers/infopo"],
    "pretraining_nano": GAME,
    "pruning_generation": PICKS,
    "pruning_robustness": PICKS,
    "rare_retrieval": ["hf_ext/data/exemplars", "hf_ext/retrieval/vectors.py", "trainers/rare"],
    "step_cost": [
        "hf_ext/_upstream",
        "hf_ext/data/sft_rows.py",
        "hf_ext/guards",
        "hf_ext/losses",
        "trainers/base",
        "trainers/weighted_sft",
    ],
}
SHARED = {"common", "measured"}  # of every script: what they hold writes results and changes none


def scripts_of(name: str, folder: Path = HERE) -> set[Path]:
    """The script and the modules beside it that it imports, directly or not."""
    scripts: set[Path] = set()
    waiting = [folder / f"{name}.py"]
    while waiting:
        script = waiting.pop()
        if script in scripts or not script.is_file():
            continue
        scripts.add(script)
        for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                modules = [node.module or ""]
            waiting += [folder / f"{module}.py" for module in modules if module not in SHARED]
    return scripts


def files_of(name: str, root: Path = ROOT) -> list[str]:
    """Paths from the root of every file that the benchmark measures, sorted."""
    files = scripts_of(name, root / "benchmarks")
    for place in MEASURED[name]:
        path = root / place.removeprefix("-")
        modules = set(path.rglob("*.py")) if path.is_dir() else {path}
        files = files - modules if place.startswith("-") else files | modules
    return sorted(path.relative_to(root).as_posix() for path in files)


def code_hash(name: str, root: Path = ROOT) -> str:
    """SHA-256 of names and contents of the files that the benchmark measures: 12 hexadecimal digits."""
    digest = hashlib.sha256()
    for path in files_of(name, root):
        content = (root / path).read_bytes().replace(b"\r\n", b"\n")
        digest.update(f"{path}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:12]


def changed_files(root: Path = ROOT) -> list[str] | None:
    """Files that differ from the last commit, but for the results; `None` where git cannot tell."""
    status = ["git", "-C", str(root), "status", "--porcelain", "-z", "--no-renames", "--untracked-files=all"]
    paths = ["--", ":/", ":(exclude,top)benchmarks/results"]
    listing = subprocess.run([*status, *paths], capture_output=True, text=True, check=False)
    if listing.returncode:
        return None
    return sorted(entry[3:] for entry in listing.stdout.split("\0") if entry)


def is_stale(name: str, result: dict[str, Any], root: Path = ROOT) -> bool | None:
    """Whether the code that the result measured has changed since; `None` for an old result where git cannot tell."""
    if "code" in result:
        return result["code"] != code_hash(name, root)
    commit = result["commit"].removesuffix("+changes")  # results of before they held a hash
    command = ["git", "-C", str(root), "diff", "--quiet", commit, "HEAD", "--", *files_of(name, root)]
    code = subprocess.run(command, capture_output=True, check=False).returncode
    return {0: False, 1: True}.get(code)
