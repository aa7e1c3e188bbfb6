"""Checkpoints of a run on held-out rows: chosen as a loop over all would, and loaded at the end of training."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, TrainerCallback
from trl import SFTConfig, SFTTrainer

from hf_ext.bandits.checkpoint_callback import CheckpointSelectionCallback
from hf_ext.bandits.checkpoints import select_checkpoint
from hf_ext.bandits.selection import Selection
from hf_ext.data.provenance import weights_hash
from hf_ext.evaluation.forgetting import forgetting_report
from hf_ext.guards.checkpoints import SEAL_NAME, seal
from tests.tiny import tiny_model, tiny_prompt_completion_dataset, tiny_tokenizer

ROOT = Path(__file__).parents[2]
TOKENIZER = tiny_tokenizer()


@pytest.fixture(scope="module")
def rows() -> Dataset:
    return tiny_prompt_completion_dataset(70, seed=5)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run with checkpoints at steps 1, 8 and 9; the last one was spoilt."""
    folder = tmp_path_factory.mktemp("run")
    shutil.rmtree(folder)
    trainer = sft_trainer(folder, max_steps=8, save_steps=7)
    trainer.train()
    trainer.save_model(folder / "checkpoint-1")
    (folder / "checkpoint-7").rename(folder / "checkpoint-8a")  # no checkpoint's name
    model = AutoModelForCausalLM.from_pretrained(folder / "checkpoint-8")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    for name in ("checkpoint-1", "checkpoint-9"):
        model.save_pretrained(folder / name)
        TOKENIZER.save_pretrained(folder / name)
    return folder


def sft_trainer(folder, callbacks=None, peft_config=None, **settings):
    config = {
        "output_dir": str(folder), "per_device_train_batch_size": 4, "learning_rate": 3e-3, "report_to": "none",
        "use_cpu": True, "bf16": False, "disable_tqdm": True, "save_strategy": "steps", "max_length": 64,
        "lr_scheduler_type": "constant", "save_only_model": True,
    }  # fmt: skip
    return SFTTrainer(
        tiny_model(TOKENIZER),
        SFTConfig(**(config | settings)),
        train_dataset=tiny_prompt_completion_dataset(32),
        processing_class=TOKENIZER,
        callbacks=callbacks,
        peft_config=peft_config,
    )


def loss_of(folder, rows) -> float:
    report = forgetting_report(str(folder), str(folder), TOKENIZER, target=rows, show_progress=False)
    return report.original.target_loss.mean


def test_the_checkpoint_with_the_least_loss_on_all_rows_is_chosen(trained, rows, tmp_path):
    best = select_checkpoint(trained, rows, output_dir=tmp_path, show_progress=False)
    losses = {path.name: loss_of(path, rows) for path in sorted(trained.glob("checkpoint-?"))}
    assert best.name == min(losses, key=losses.get) == "checkpoint-8"
    assert best.certified
    assert [result.name for result in best.candidates] == ["checkpoint-1", "checkpoint-8", "checkpoint-9"]
    whole = select_checkpoint(trained, rows.select(range(40)), show_progress=False)
    for result in whole.candidates:  # every candidate on every row: the mean is the loss a token
        assert result.mean == pytest.approx(loss_of(trained / result.name, rows.select(range(40))), rel=1e-6)
    again = select_checkpoint(str(trained), rows, output_dir=tmp_path, batch_size=3, show_progress=False)
    assert again.to_dict() == best.to_dict()


def test_other_weights_or_rows_are_not_gone_on_with(trained, rows, tmp_path):
    run = shutil.copytree(trained, tmp_path / "run")
    rows = rows.select(range(8))
    select_checkpoint(run, rows, output_dir=tmp_path / "out", show_progress=False)
    with pytest.raises(ValueError, match="rows was"):
        select_checkpoint(run, rows.select(range(7)), output_dir=tmp_path / "out", show_progress=False)
    shutil.copyfile(run / "checkpoint-1" / "model.safetensors", run / "checkpoint-9" / "model.safetensors")
    tiny_model(TOKENIZER, seed=4).save_pretrained(run / "checkpoint-9")
    with pytest.raises(ValueError, match="weights"):
        select_checkpoint(run, rows, output_dir=tmp_path / "out", show_progress=False)


def test_damaged_and_diverged_checkpoints_are_left_out(trained, rows, tmp_path, caplog):
    run = shutil.copytree(trained, tmp_path / "run")
    model = tiny_model(TOKENIZER)
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    model.save_pretrained(run / "checkpoint-9")
    seal(run / "checkpoint-1")
    (run / "checkpoint-1" / "config.json").write_text("{}")
    (run / "checkpoint-12").mkdir()
    best = select_checkpoint(run, rows.select(range(40)), show_progress=False)
    assert best.name == "checkpoint-8"
    assert best.candidate("checkpoint-9").status == "not finite"
    assert len(best.candidates) == 2
    assert "checkpoint-1: config.json has 2 bytes" in caplog.text
    assert "checkpoint-12 holds no weights" in caplog.text
    assert (run / "checkpoint-1" / SEAL_NAME).is_file()
    with pytest.raises(ValueError, match="holds no whole checkpoint"):
        select_checkpoint(tmp_path, rows)


def test_adapters_compete_with_their_base_model(trained, rows, tmp_path):
    base = tmp_path / "base"
    tiny_model(TOKENIZER).save_pretrained(base)
    TOKENIZER.save_pretrained(base)
    trainer = SFTTrainer(
        str(base),
        SFTConfig(
            output_dir=str(tmp_path / "out"), max_steps=5, learning_rate=3e-2, report_to="none", use_cpu=True,
            bf16=False, disable_tqdm=True, save_strategy="no",
        ),
        train_dataset=tiny_prompt_completion_dataset(32),
        processing_class=TOKENIZER,
        peft_config=LoraConfig(task_type="CAUSAL_LM"),
    )  # fmt: skip
    trainer.train()
    trainer.save_model(tmp_path / "adapter")
    (tmp_path / "adapter" / "tokenizer_config.json").unlink()
    places = [tmp_path / "adapter", base]
    best = select_checkpoint(places, rows.select(range(40)), show_progress=False)
    losses = [loss_of(place, rows.select(range(40))) for place in places]
    assert losses[0] < losses[1]
    assert [result.mean for result in best.candidates] == pytest.approx(losses, rel=1e-5)
    assert best.name == "adapter"


@pytest.mark.parametrize("with_adapter", [False, True], ids=["model", "adapter"])
def test_the_callback_loads_the_winner_at_the_end_of_training(tmp_path, rows, with_adapter):
    peft_config = LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False) if with_adapter else None
    rate = 3.0 if with_adapter else 0.3  # steps so long that later ones spoil the model
    trainer = sft_trainer(tmp_path, peft_config=peft_config, max_steps=4, save_steps=1, learning_rate=rate)
    callback = CheckpointSelectionCallback(trainer, rows.select(range(40)))
    trainer.add_callback(callback)
    trainer.train()
    losses = {}
    for path in sorted(tmp_path.glob("checkpoint-*")):
        state = load_file(path / ("adapter_model.safetensors" if with_adapter else "model.safetensors"))
        model = trainer.model
        if with_adapter:
            model.load_adapter(path, "default")
        else:
            model.load_state_dict(state, strict=False)
        report = forgetting_report(model, model, TOKENIZER, target=rows.select(range(40)), show_progress=False)
        losses[path.name] = report.original.target_loss.mean
    assert callback.selection.name == min(losses, key=losses.get) != "checkpoint-4"
    for result in callback.selection.candidates:
        assert result.mean == pytest.approx(losses[result.name], rel=1e-5)
    assert trainer.state.best_model_checkpoint == str(tmp_path / callback.selection.name)
    assert trainer.state.best_global_step == int(callback.selection.name[-1])
    assert (tmp_path / "selection" / "selection.json").is_file()


def test_what_is_loaded_is_the_winner_s_weights(tmp_path):
    """A value of one's own: the larger the first weight, the better."""
    trainer = sft_trainer(tmp_path, max_steps=3, save_steps=1, learning_rate=0.1)
    seen = []

    def first_weight(model, items):
        assert not model.training
        seen.append(items)
        return [model.get_input_embeddings().weight[0, 0].item()] * len(items)

    callback = CheckpointSelectionCallback(trainer, list("abcdef"), first_weight, greater_is_better=True)
    trainer.add_callback(callback)
    trainer.train()
    weights = {
        path.name: load_file(path / "model.safetensors")["model.embed_tokens.weight"]
        for path in tmp_path.glob("checkpoint-*")
    }
    best = max(weights, key=lambda name: weights[name][0, 0])
    assert callback.selection.name == best
    assert [sorted(items) for items in seen] == [list("abcdef")] * 3
    assert torch.equal(trainer.model.get_input_embeddings().weight, weights[best])
    assert np.isclose(callback.selection.candidate(best).mean, float(weights[best][0, 0]))


def test_a_run_of_one_checkpoint_keeps_its_weights(tmp_path, caplog):
    trainer = sft_trainer(tmp_path, max_steps=1, save_steps=1)
    callback = CheckpointSelectionCallback(trainer, ["a"], lambda model, items: [0.0])
    trainer.add_callback(callback)
    trainer.train()
    assert callback.selection is None
    assert "Nothing to choose from: 1 whole checkpoint(s)" in caplog.text


def test_a_run_that_was_stopped_to_go_on_later_chooses_nothing(tmp_path):
    trainer = sft_trainer(tmp_path, max_steps=2, save_steps=1)
    callback = CheckpointSelectionCallback(trainer, ["a"], lambda model, items: [0.0])
    stopper = TrainerCallback()
    stopper.is_stopping = True
    trainer.add_callback(stopper)
    trainer.add_callback(callback)
    trainer.train()
    assert callback.selection is None
    assert not (tmp_path / "selection").exists()


def test_a_direction_without_values_of_one_s_own_is_refused(tmp_path):
    trainer = sft_trainer(tmp_path, max_steps=1)
    with pytest.raises(ValueError, match="lower losses are better"):
        CheckpointSelectionCallback(trainer, ["a"], greater_is_better=True)


@pytest.mark.slow
def test_two_processes_choose_and_load_the_same_checkpoint(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "COV_"))}
    done = subprocess.run(
        [*command, "-m", "tests.bandits.run_callback", str(tmp_path)],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    assert first["world"] == 2
    winner = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / first["name"])
    assert weights_hash(winner) == first["weights"]
    assert Selection.load(tmp_path / "run" / "selection").name == first["name"]
