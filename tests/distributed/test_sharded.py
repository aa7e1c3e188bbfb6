"""A model that two processes share trains as that of one process does, and what is saved is a stock model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoModelForCausalLM

from tests.conformance.registry import PRETRAINERS, Pretrainer
from tests.trainers.runs import train, weights_of

ROOT = Path(__file__).parents[2]
CHANGES: dict[str, Any] = {"max_steps": 12, "optim": "adamw_torch", "learning_rate": 1e-2, "z_loss_weight": 0.01}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("method", PRETRAINERS, ids=lambda method: method.name)
def test_two_processes_that_share_the_model_train_as_one_does(method: Pretrainer, tmp_path: Path) -> None:
    changes = CHANGES | {"per_device_train_batch_size": 2}
    job = {"id": "job", "method": method.name, "folder": str(tmp_path), "rows": 32, "changes": changes}
    (tmp_path / "jobs.json").write_text(json.dumps([job]))
    command = [sys.executable, "-m", "tests.distributed.run_sharded", str(tmp_path / "jobs.json")]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "COV_"))}
    done = subprocess.run(
        [*command, str(tmp_path / "results.json"), "2"],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=840, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    shared = json.loads((tmp_path / "results.0.json").read_text())["job"]
    assert shared["world"] == 2
    num_sharded, num_parameters = shared["sharded"]
    assert num_sharded == num_parameters > 20
    trainer = method.build(tmp_path / "whole", 32, **CHANGES, per_device_train_batch_size=4)
    whole = train(trainer)
    assert len(whole) == len(shared["losses"]) == 12
    assert whole[-1] < whole[0] - 0.02, "nothing was learned"
    assert np.abs(np.subtract(whole, shared["losses"])).max() <= 1e-5
    loaded = weights_of(AutoModelForCausalLM.from_pretrained(tmp_path / "saved"))
    for name, weight in weights_of(trainer.model).items():
        assert float((loaded[name] - weight).abs().max()) <= 1e-4, name
