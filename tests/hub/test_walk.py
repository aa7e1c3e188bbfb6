"""A user's walk: train from YAML, kill, resume, push under two faults, load in plain transformers, render the card."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from hf_ext.cli import main
from tests.hub.fake_hub import TOKEN, FakeHub
from tests.tiny import tiny_model, tiny_sentences
from tests.trainers.runs import TOKENIZER

STEPS, EVERY = 60, 10

# What a stranger runs: stock classes only, no pickle, no code from the Hub. Prints what it found as JSON.
STRANGER = """
import json, pickle, sys
import torch

def refuse(*args, **kwargs):
    raise SystemExit("a pickle was loaded")

pickle.load = pickle.loads = torch.load = refuse
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("me/walk", dtype="float32")
tokenizer = AutoTokenizer.from_pretrained("me/walk")
written = model.generate(**tokenizer("Ada", return_tensors="pt"), max_new_tokens=3, do_sample=False)
card = ModelCard.load("me/walk")
print(json.dumps({
    "sum": float(sum(p.double().abs().sum() for p in model.parameters())),
    "text": tokenizer.decode(written[0]),
    "card": str(card), "tags": card.data.tags, "license": card.data.license,
    "ours": [name for name in sys.modules if name.split(".")[0] == "hf_ext"],
}))
"""


@pytest.fixture
def walk(tmp_path: Path) -> Path:
    """A folder with a model, rows and a recipe of one's own."""
    tiny_model(TOKENIZER).save_pretrained(tmp_path / "base")
    TOKENIZER.save_pretrained(tmp_path / "base")
    (tmp_path / "base" / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    rows = [{"prompt": f"Row {i}. ", "completion": text} for i, text in enumerate(tiny_sentences(40))]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {
        "model_name_or_path": "base",
        "dataset_name": "rows.jsonl",
        "output_dir": "out",
        "per_device_train_batch_size": 4,
        "max_steps": STEPS,
        "learning_rate": 0.001,
        "save_steps": EVERY,
        "bf16": False,
        "report_to": "none",
        "push_to_hub": True,
        "hub_model_id": "me/walk",
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(recipe))
    return tmp_path


def start(walk: Path, hub: FakeHub, *command: str) -> subprocess.Popen[str]:
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("HF_")},
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": TOKEN,
        "HF_HOME": str(walk / "hf_home"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=walk,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def finish(process: subprocess.Popen[str], status: int = 0) -> str:
    out, err = process.communicate(timeout=150)
    assert process.returncode == status, err[-3000:]
    return out


def test_a_users_walk(walk: Path) -> None:
    train = ("-m", "hf_ext", "train", "flow", "--config", "mine.yaml")
    with FakeHub() as hub:
        first = start(walk, hub, *train)
        saved = walk / "out" / f"checkpoint-{EVERY}"
        deadline = time.monotonic() + 120
        while not (saved / "hf_ext_checkpoint.json").exists():  # the last file of a checkpoint
            assert first.poll() is None, first.communicate()[1][-3000:]
            assert time.monotonic() < deadline, "no checkpoint came"
            time.sleep(0.005)
        first.send_signal(signal.SIGKILL)
        first.communicate()
        assert first.returncode == -signal.SIGKILL
        assert not (walk / "out" / f"checkpoint-{STEPS}").exists(), "it was killed too late to show anything"
        before = (saved / "model.safetensors").stat().st_mtime_ns

        hub.fail("commit", 503)
        hub.fail("commit", "lost")
        out = finish(start(walk, hub, *train, "--resume_from_checkpoint", "true"))
        assert "Model pushed to the Hub: me/walk" in out
        titles = hub.titles("me/walk")
        # where the push of the last checkpoint brought everything, the one after training has nothing left to commit
        assert titles[-1] in ("End of training", f"Training in progress, step {STEPS}")
        assert len(titles) == len(set(titles)), "a commit was made twice"
        assert not list((walk / "out").glob("_push-*"))
        assert [fault.times for fault in hub.faults] == [0, 0]
        assert (saved / "model.safetensors").stat().st_mtime_ns == before, "it started again instead of resuming"
        state = json.loads((walk / "out" / f"checkpoint-{STEPS}" / "trainer_state.json").read_text())
        assert state["global_step"] == STEPS
        steps = [entry["step"] for entry in state["log_history"] if "loss" in entry]
        assert steps == sorted(set(steps))

        found = json.loads(finish(start(walk, hub, "-c", STRANGER)).splitlines()[-1])
        assert not hub.unknown
        pushed = hub.files("me/walk")
    local = load_file(walk / "out" / "model.safetensors")
    assert found["sum"] == pytest.approx(sum(float(v.double().abs().sum()) for v in local.values()), rel=1e-9)
    assert not found["ours"]
    assert found["text"].startswith("Ada")
    assert {"hf-ext", "flow"} <= set(found["tags"])
    assert found["license"] == "apache-2.0"
    assert 'model="me/walk"' in found["card"]
    assert "gives up the hard rows" in found["card"]
    assert not [name for name in pushed if name.endswith((".bin", ".pt", ".pth", ".pkl"))]
    assert main(["card", "render", str(walk / "out")]) == 0
    assert (walk / "out" / "README.md").read_text() == found["card"]
    assert not [name for name, content in pushed.items() if str(walk).encode() in content]
