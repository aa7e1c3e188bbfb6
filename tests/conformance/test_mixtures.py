"""What any trainer whose optimiser is a fit must do. A new method joins with one line in `registry.MIXTURES`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conformance.loading import PICKLES, refuse_pickles_and_code
from tests.conformance.registry import MIXTURES, Mixture
from tests.distributed.launch import launch_once
from tests.trainers.runs import train

every_mixture = pytest.mark.parametrize("method", MIXTURES, ids=lambda method: method.name)
LAST, SAVE_EVERY, KILLED_AFTER = 8, 3, 7
# Fits of each kind of experts, and a stock optimiser on the same loss. Uneven rows: 33 and 34 on two processes.
ROWS = {"auto": 67, "em of linear experts": 67, "adam": 16}
FITS: dict[str, dict[str, Any]] = {
    "auto": {"method": "auto", "tol": 0.0},
    "em of linear experts": {"method": "em", "tol": 0.0, "linear": 67},
    "adam": {"method": "adam", "learning_rate": 0.05},
}


def two_process_jobs(folder: Path) -> list[dict[str, Any]]:
    return [
        {"id": f"{method.name}/{name}", "method": method.name, "folder": str(folder / method.name / name),
         "rows": ROWS[name], "changes": changes | {"max_steps": LAST, "per_device_train_batch_size": 2}}
        for method in MIXTURES
        for name, changes in FITS.items()
    ]  # fmt: skip


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ["auto", "em of linear experts"])
@every_mixture
def test_a_fit_on_two_processes_is_the_fit_on_one(
    method: Mixture, name: str, two_processes: dict, tmp_path: Path
) -> None:
    trainer = method.build(tmp_path, ROWS[name], **FITS[name], max_steps=LAST)
    train(trainer)
    shared = two_processes[f"{method.name}/{name}"]
    assert shared["world"] == 2
    assert shared["step"] == trainer.state.global_step == LAST
    for key in ("loss", "nll", "passes", "n_i_min", "n_i_max", "gate_entropy", "mim_lambda_max"):
        ours, theirs = (
            [log[key] for log in logs if key in log] for logs in (trainer.state.log_history, shared["logs"])
        )
        assert len(ours) == (1 if key in ("gate_entropy", "mim_lambda_max") else LAST)
        assert ours == pytest.approx(theirs, rel=1e-9, abs=1e-9), key
    point = trainer.fit.state.point.numpy()
    assert np.abs(point - np.array(shared["fit"])).max() <= 1e-9 * max(1.0, np.abs(point).max())


@pytest.mark.timeout(900)
@every_mixture
def test_batch_four_of_a_stock_optimiser_is_two_times_two_is_two_processes(
    method: Mixture, two_processes: dict, tmp_path: Path
) -> None:
    changes = FITS["adam"] | {"max_steps": LAST}
    whole = train(method.build(tmp_path / "a", ROWS["adam"], **changes, per_device_train_batch_size=4))
    cut = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    accumulated = train(method.build(tmp_path / "b", ROWS["adam"], **changes, **cut))
    shared = two_processes[f"{method.name}/adam"]
    assert np.mean(whole[-4:]) < np.mean(whole[:4])
    assert np.abs(np.subtract(whole, accumulated)).max() <= 1e-5
    assert np.abs(np.subtract(whole, shared["losses"])).max() <= 1e-5


def kill_jobs(folder: Path) -> list[dict[str, Any]]:
    """A whole run, one that is killed after its second checkpoint, that one resumed, and a finished one resumed."""
    jobs = []
    for method in MIXTURES:
        for name, changes in FITS.items():
            saving = {"save_strategy": "steps", "save_steps": SAVE_EVERY, "save_total_limit": 2, "max_steps": LAST}
            place = folder / method.name / name
            job = {"method": method.name, "rows": ROWS[name], "changes": changes | saving}
            key = f"{method.name}/{name}"
            jobs += [
                job | {"id": f"{key}/whole", "folder": str(place / "whole")},
                job | {"id": f"{key}/killed", "folder": str(place / "cut"), "kill_at": KILLED_AFTER},
                job | {"id": f"{key}/resumed", "folder": str(place / "cut"), "resume": True},
                job | {"id": f"{key}/ended", "folder": str(place / "whole"), "resume": True},
            ]
    return jobs


@pytest.fixture(scope="module")
def cuts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    return launch_once("mixture_cuts", kill_jobs, tmp_path_factory)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", FITS)
@every_mixture
def test_a_killed_run_resumes_to_the_same_bits_and_a_finished_one_stays(
    method: Mixture, name: str, cuts: dict
) -> None:
    parts = ("whole", "killed", "resumed", "ended")
    whole, killed, resumed, ended = (cuts[f"{method.name}/{name}/{part}"] for part in parts)
    assert killed["exit"] == -9
    checkpoint = KILLED_AFTER // SAVE_EVERY * SAVE_EVERY
    assert resumed["losses"] == whole["losses"][checkpoint:]
    assert len(set(whole["losses"])) >= LAST - 1  # a fit's first two are of the same point
    assert (resumed["weights"], resumed["state"]) == (whole["weights"], whole["state"])
    assert (ended["weights"], ended["state"], ended["step"]) == (whole["weights"], whole["state"], LAST)
    assert ended["losses"] == []


@every_mixture
def test_training_saving_and_resuming_load_no_pickle_and_no_code_of_a_model(
    method: Mixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_pickles_and_code(monkeypatch)
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    losses = train(method.build(tmp_path, 32, **settings))
    resumed = method.build(tmp_path, 32, **settings)
    assert train(resumed, resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2")) == losses[2:]
    resumed.save_model(str(tmp_path / "saved"))
    assert not [path for path in (tmp_path / "saved").rglob("*") if path.name.endswith(PICKLES)]
    assert str(tmp_path) not in (tmp_path / "saved" / "README.md").read_text()
