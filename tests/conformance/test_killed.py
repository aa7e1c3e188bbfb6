"""A power cut costs nothing but time: killed at any step and resumed, a run ends in the same weights, bit for bit."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.registry import CALLBACKS, CLASSIFIERS, PRETRAINERS, RETRIEVERS, TRAINERS
from tests.distributed.launch import launch, launch_once

pytestmark = pytest.mark.timeout(900)  # waits for a job of several runs, which the first test to come starts

EPOCH, SAVE_EVERY, LAST = 6, 4, 20  # 24 rows in batches of 4: the run crosses three epoch borders
# Ways to train that resume through code of their own. A job's own keys (`streaming`, `lora`) are read by run_trainer.
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "packed": {"changes": {"packing": True, "max_length": 96, "per_device_train_batch_size": 2}},
    "streaming": {"streaming": True},
    "workers": {"changes": {"dataloader_num_workers": 2}},
    "lora": {"lora": True},
}
CASES = [
    f"{method.name}+{variant}"
    for method in (*TRAINERS, *CALLBACKS, *RETRIEVERS, *CLASSIFIERS, *PRETRAINERS)
    for variant in VARIANTS
    if variant in method.variants
]
ENDED = [case for case in CASES if case.endswith(("+plain", "+packed"))]
# The other ways once for every kind of trainer; a hundred random kills, in the slow suite, are over all cases.
ONCE = {"streaming": ("context_free", "flow", "infopo"), "workers": ("weighted_sft", "rare")}
ONCE["lora"] = ("weighted_sft", "rare", "consensus")
QUICK = [*ENDED, *(f"{method}+{variant}" for variant, methods in ONCE.items() for method in methods)]
SEEDS = 20
KILLS = 100  # spread evenly over the cases; each at a step of its own, the last one and the end of training included


def kill_step(seed: int) -> int:
    """After the first checkpoint and before the end; seed 0 is killed in the third epoch."""
    return 15 if seed == 0 else random.Random(seed).randrange(SAVE_EVERY + 1, LAST)


def kill_jobs(folder: Path, seeds: range, cases: list[str]) -> list[dict[str, Any]]:
    """
    Three jobs a case and seed: whole; killed; resumed; and for those of `ENDED` once more where the whole one ended.

    The last finds what a kill after the last step and before the model is saved leaves: the trainer itself writes
    nothing after its last checkpoint.
    """
    jobs = []
    for case in cases:
        method, _, variant = case.partition("+")
        extra = VARIANTS[variant]
        for seed in seeds:
            place = folder / case / str(seed)
            changes = {
                "max_steps": LAST, "save_strategy": "steps", "save_steps": SAVE_EVERY, "save_total_limit": 2,
                "seed": 40 + seed, "optim": "adamw_torch", "learning_rate": 3e-3, "lr_scheduler_type": "linear",
            }  # fmt: skip
            job = {"method": method, "rows": EPOCH * 4, "dropout": 0.1}
            job |= extra | {"changes": changes | extra.get("changes", {})}
            jobs += [
                job | {"id": f"{case}/{seed}/whole", "folder": str(place / "whole")},
                job | {"id": f"{case}/{seed}/killed", "folder": str(place / "cut"), "kill_at": kill_step(seed)},
                job | {"id": f"{case}/{seed}/resumed", "folder": str(place / "cut"), "resume": True},
            ]
            if case in ENDED:
                jobs.append(job | {"id": f"{case}/{seed}/ended", "folder": str(place / "whole"), "resume": True})
    return jobs


def assert_resumed_to_the_same_weights(results: dict, case: str, seed: int) -> None:
    whole, killed, resumed = (results[f"{case}/{seed}/{part}"] for part in ("whole", "killed", "resumed"))
    assert killed["exit"] == -9
    assert whole["exit"] == resumed["exit"] == 0
    checkpoint = (kill_step(seed) - 1) // SAVE_EVERY * SAVE_EVERY
    assert len(resumed["losses"]) == LAST - checkpoint, "it did not resume from the newest checkpoint"
    assert resumed["losses"] == whole["losses"][checkpoint:]
    norms = [
        [log["grad_norm"] for log in part["logs"] if "grad_norm" in log and log["step"] > checkpoint]
        for part in (whole, resumed)
    ]
    assert norms[0] == norms[1]
    assert len(norms[0]) == LAST - checkpoint
    assert resumed["weights"] == whole["weights"]
    assert resumed["state"] == whole["state"]
    assert len(set(whole["losses"])) == LAST


def assert_nothing_is_trained_after_the_last_step(results: dict, case: str, seed: int) -> None:
    whole, ended = (results[f"{case}/{seed}/{part}"] for part in ("whole", "ended"))
    assert ended["exit"] == 0
    assert ended["losses"] == []
    assert (ended["step"], ended["weights"], ended["state"]) == (LAST, whole["weights"], whole["state"])
    summary = ended["logs"].pop()
    assert "train_runtime" in summary
    assert "train_loss" not in summary, "the mean loss of no step"
    assert ended["logs"] == whole["logs"][:-1]


@pytest.fixture(scope="module")
def cuts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Each case with one seed: one launch."""
    return launch_once("cuts", lambda folder: kill_jobs(folder, range(1), QUICK), tmp_path_factory)


@pytest.mark.parametrize("case", QUICK)
def test_killed_run_resumes_to_the_same_weights(case: str, cuts: dict) -> None:
    assert_resumed_to_the_same_weights(cuts, case, 0)


@pytest.mark.parametrize("case", ENDED)
def test_a_run_killed_after_its_last_step_trains_nothing_when_resumed(case: str, cuts: dict) -> None:
    assert_nothing_is_trained_after_the_last_step(cuts, case, 0)


@pytest.mark.slow
@pytest.mark.parametrize("case", ENDED)
def test_killed_run_resumes_to_the_same_weights_with_twenty_seeds(case: str, tmp_path: Path) -> None:
    results = launch(kill_jobs(tmp_path, range(SEEDS), [case]), tmp_path)
    for seed in range(SEEDS):
        assert_resumed_to_the_same_weights(results, case, seed)
        assert_nothing_is_trained_after_the_last_step(results, case, seed)


def random_kills() -> dict[str, list[int]]:
    """Steps to be killed after, by case: before the first checkpoint too, and 0 for after the last step."""
    draw, kills = random.Random(2026), {case: [0] for case in CASES}
    for i in range(KILLS - len(CASES)):
        kills[CASES[i % len(CASES)]].append(draw.randint(1, LAST))
    return kills


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_hundred_random_kills_over_all_trainers_change_nothing(case: str, tmp_path: Path) -> None:
    method, _, variant = case.partition("+")
    changes = {"max_steps": LAST, "save_strategy": "steps", "save_steps": SAVE_EVERY, "save_total_limit": 2}
    changes |= {"optim": "adamw_torch", "learning_rate": 3e-3, "lr_scheduler_type": "linear", "seed": 60}
    extra = VARIANTS[variant]
    job = (
        {"method": method, "rows": EPOCH * 4, "dropout": 0.1} | extra | {"changes": changes | extra.get("changes", {})}
    )
    jobs = [job | {"id": "whole", "folder": str(tmp_path / "whole")}]
    for i, step in enumerate(random_kills()[case]):
        place = str(tmp_path / str(i))
        jobs += [
            job | {"id": f"{i}/killed", "folder": place, "kill_at": step},
            job | {"id": f"{i}/resumed", "folder": place, "resume": True},
        ]
    results = launch(jobs, tmp_path)
    for i in range(len(random_kills()[case])):
        assert results[f"{i}/killed"]["exit"] == -9
        for what in ("weights", "state", "step"):
            assert results[f"{i}/resumed"][what] == results["whole"][what]
