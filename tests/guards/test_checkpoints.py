"""Every damage to a checkpoint is seen and named; the newest whole one is chosen."""

from __future__ import annotations

import json
import logging
import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_ext.guards.checkpoints import (
    SEAL_NAME,
    DamagedCheckpointError,
    choose_newest,
    find_damage,
    newest_whole,
    require_whole,
    seal,
)
from tests.conformance.registry import BY_NAME
from tests.trainers.runs import assert_same_weights, build, config_of, train

SETTINGS: dict[str, Any] = {
    "max_steps": 6, "save_strategy": "steps", "save_steps": 2, "save_total_limit": 2, "optim": "adamw_torch",
}  # fmt: skip
NAMES = {
    "README.md", "chat_template.jinja", "config.json", "generation_config.json", "model.safetensors", "optimizer.pt",
    "rng_state.pth", "scheduler.pt", "tokenizer.json", "tokenizer_config.json", "trainer_state.json",
    "training_args.json", SEAL_NAME,
}  # fmt: skip
READ_BY_STRUCTURE = ("model.safetensors", "optimizer.pt", "rng_state.pth", "scheduler.pt", "config.json")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A finished run with the checkpoints 4 and 6, and its model."""
    folder = tmp_path_factory.mktemp("finished")
    trainer = BY_NAME["weighted_sft"].build(folder, 16, **SETTINGS)
    trainer.train()
    return folder, trainer.model


@pytest.fixture
def out(finished: tuple[Path, Any], tmp_path: Path) -> Path:
    """A copy of its output folder, to be spoilt."""
    shutil.copytree(finished[0] / "out", tmp_path / "out")
    return tmp_path / "out"


def offsets(size: int) -> list[int]:
    """Ten lengths to cut to, from nothing to all but one byte."""
    return sorted({round(i * (size - 1) / 9) for i in range(10)})


def spoilt(file: Path, content: bytes) -> Iterator[None]:
    before = file.read_bytes()
    file.write_bytes(content)
    yield
    file.write_bytes(before)


def test_a_checkpoint_holds_the_files_that_are_spoilt_here(out: Path) -> None:
    assert {path.name for path in (out / "checkpoint-6").iterdir()} == NAMES
    assert choose_newest(out) == (out / "checkpoint-6", [])


@pytest.mark.parametrize("name", sorted(NAMES))
def test_a_cut_at_any_of_ten_offsets_is_named_and_the_checkpoint_before_chosen(name: str, out: Path) -> None:
    file = out / "checkpoint-6" / name
    content = file.read_bytes()
    for size in offsets(len(content)):
        for _ in spoilt(file, content[:size]):
            damage = find_damage(out / "checkpoint-6")
            assert damage is not None, size
            assert (damage.checkpoint, damage.file) == (out / "checkpoint-6", name)
            assert choose_newest(out) == (out / "checkpoint-4", [damage])
            with pytest.raises(DamagedCheckpointError) as said:
                require_whole(out / "checkpoint-6", out)
            for words in ("checkpoint-6", name, damage.problem, str(out / "checkpoint-4")):
                assert words in str(said.value)
    assert find_damage(out / "checkpoint-6") is None


@pytest.mark.parametrize("name", sorted(NAMES))
def test_any_changed_bit_is_found(name: str, out: Path) -> None:
    file, rng = out / "checkpoint-6" / name, random.Random(name)
    content = file.read_bytes()
    for position in (0, len(content) - 1, *(rng.randrange(len(content)) for _ in range(30))):
        changed = bytearray(content)
        changed[position] ^= 1 << rng.randrange(8)
        for _ in spoilt(file, bytes(changed)):
            damage = find_damage(out / "checkpoint-6")
            assert damage is not None, position
            assert damage.file == name


@pytest.mark.parametrize("name", sorted(NAMES))
def test_a_missing_file_is_named(name: str, out: Path) -> None:
    (out / "checkpoint-6" / name).unlink()
    checkpoint, (damage,) = choose_newest(out)
    assert checkpoint == out / "checkpoint-4"
    assert damage.file == name
    assert "is missing" in damage.problem


def test_an_exchange_of_two_files_of_one_length_is_found(out: Path) -> None:
    one, other = out / "checkpoint-4" / "model.safetensors", out / "checkpoint-6" / "model.safetensors"
    assert one.stat().st_size == other.stat().st_size
    shutil.copy(one, other)
    damage = find_damage(out / "checkpoint-6")
    assert damage is not None
    assert damage.file == "model.safetensors"


def test_none_whole_is_one_error_that_names_all(out: Path) -> None:
    for step in (4, 6):
        (out / f"checkpoint-{step}" / "optimizer.pt").write_bytes(b"")
    with pytest.raises(DamagedCheckpointError, match=r"checkpoint-6: optimizer.pt.*checkpoint-4: optimizer.pt"):
        choose_newest(out)
    with pytest.raises(DamagedCheckpointError, match="No other checkpoint there is whole"):
        require_whole(out / "checkpoint-6", out)


def test_no_checkpoint_is_no_damage(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no checkpoint in") as said:
        choose_newest(tmp_path)
    assert not isinstance(said.value, DamagedCheckpointError)
    assert newest_whole(tmp_path / "nowhere") == (None, [])


def test_checkpoints_are_ordered_by_number_and_other_names_are_no_checkpoints(out: Path) -> None:
    shutil.copytree(out / "checkpoint-6", out / "checkpoint-10")
    shutil.copytree(out / "checkpoint-6", out / "checkpoint-20-copy")
    (out / "checkpoint-99").write_text("a file")
    assert choose_newest(out)[0].name == "checkpoint-10"


def test_what_comes_later_and_what_a_manifest_does_not_cover_does_no_harm(out: Path) -> None:
    (out / "checkpoint-6" / "notes.txt").write_text("added by a callback")
    assert find_damage(out / "checkpoint-6") is None


def test_files_in_folders_are_covered(tmp_path: Path) -> None:
    """As DeepSpeed and FSDP write them."""
    inner = tmp_path / "checkpoint-1" / "global_step1" / "rank_0.pt"
    inner.parent.mkdir(parents=True)
    inner.write_bytes(b"x" * 100)
    (tmp_path / "checkpoint-1" / "trainer_state.json").write_text("{}")
    seal(tmp_path / "checkpoint-1")
    assert choose_newest(tmp_path)[0].name == "checkpoint-1"
    inner.write_bytes(b"x" * 99 + b"y")
    damage = find_damage(tmp_path / "checkpoint-1")
    assert damage is not None
    assert damage.file == "global_step1/rank_0.pt"


# --- without a manifest ----------------------------------------------------------------------------------------------


@pytest.fixture
def stock(out: Path) -> Path:
    """`checkpoint-6` as a stock trainer leaves it."""
    (out / "checkpoint-6" / SEAL_NAME).unlink()
    return out / "checkpoint-6"


def test_a_stock_checkpoint_is_taken_when_named_with_a_warning_and_not_by_itself(stock: Path) -> None:
    warning = require_whole(stock, stock.parent)
    assert warning is not None
    assert "\n" not in warning
    assert str(stock) in warning
    checkpoint, (damage,) = choose_newest(stock.parent)
    assert checkpoint.name == "checkpoint-4"
    assert damage.file == SEAL_NAME
    shutil.rmtree(checkpoint)
    with pytest.raises(DamagedCheckpointError, match=f"or name {stock}"):
        choose_newest(stock.parent)


@pytest.mark.parametrize("name", [*READ_BY_STRUCTURE, "trainer_state.json"])
def test_a_cut_of_a_stock_checkpoints_states_is_named(name: str, stock: Path) -> None:
    content = (stock / name).read_bytes()
    for size in offsets(len(content)):
        if content[:size].strip() == content.strip():
            continue  # only the line end is gone
        for _ in spoilt(stock / name, content[:size]):
            with pytest.raises(DamagedCheckpointError, match=name):
                require_whole(stock, stock.parent)


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"])
def test_a_stock_checkpoint_without_a_state_is_refused(name: str, stock: Path) -> None:
    """The host goes on without a word, with a fresh optimiser."""
    (stock / name).unlink()
    with pytest.raises(DamagedCheckpointError, match=f"{name} is missing"):
        require_whole(stock, stock.parent)


def test_shards_that_are_missing_and_an_interrupted_save_are_named(stock: Path) -> None:
    index = stock / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}))
    with pytest.raises(DamagedCheckpointError, match=r"names model-00002-of-00002\.safetensors, which is missing"):
        require_whole(stock, stock.parent)
    index.unlink()
    (stock / "checkpoint-is-incomplete.txt").write_text("Checkpoint started at step 6 and in progress...")
    with pytest.raises(DamagedCheckpointError, match="the save was interrupted"):
        require_whole(stock, stock.parent)


def test_a_folder_that_is_not_there_is_named(out: Path) -> None:
    with pytest.raises(DamagedCheckpointError, match=r"checkpoint-7: \. is missing.*checkpoint-6"):
        require_whole(out / "checkpoint-7", out)


# --- the trainer -----------------------------------------------------------------------------------------------------


def resumed(folder: Path, how: bool | str, **changes: Any) -> Any:
    trainer = BY_NAME["weighted_sft"].build(folder, 16, **(SETTINGS | changes))
    trainer.train(resume_from_checkpoint=how)
    return trainer


@pytest.mark.parametrize("name", ["model.safetensors", "rng_state.pth", SEAL_NAME])
def test_a_trainer_resumes_from_the_checkpoint_before_and_warns_once(
    name: str, finished: tuple[Path, Any], out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = out / "checkpoint-6" / name
    file.write_bytes(file.read_bytes()[:100])
    with caplog.at_level(logging.WARNING):
        trainer = resumed(out.parent, True)
    (said,) = [record.getMessage() for record in caplog.records if "amaged" in record.getMessage()]
    for words in (str(out / "checkpoint-6"), name, str(out / "checkpoint-4")):
        assert words in said
    assert_same_weights(trainer.model, finished[1])
    assert find_damage(out / "checkpoint-6") is None, "written again on the way"


def test_a_trainer_refuses_a_damaged_checkpoint_that_is_named(out: Path) -> None:
    file = out / "checkpoint-6" / "scheduler.pt"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(DamagedCheckpointError, match=r"checkpoint-6: scheduler.pt .*checkpoint-4"):
        resumed(out.parent, str(out / "checkpoint-6"))


def test_a_checkpoint_of_the_model_alone_is_not_resumed_from(tmp_path: Path) -> None:
    trainer = BY_NAME["weighted_sft"].build(tmp_path, 16, **SETTINGS, save_only_model=True)
    trainer.train()
    assert find_damage(tmp_path / "out" / "checkpoint-6") is None
    with pytest.raises(DamagedCheckpointError, match=r"optimizer.pt is missing .*save_only_model"):
        resumed(tmp_path, True)


def test_a_stock_trainers_checkpoint_goes_on_to_the_stock_trainers_weights(tmp_path: Path) -> None:
    method = BY_NAME["weighted_sft"]
    rows = method.rows(16).remove_columns("weight")
    theirs = build(method.parent[0], config_of(method.parent[1], tmp_path / "out", **SETTINGS), rows)
    theirs.train()
    shutil.rmtree(tmp_path / "out" / "checkpoint-6")
    ours = method.build(tmp_path, rows, **SETTINGS)
    losses = train(ours, resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-4"))
    assert len(losses) == 2
    assert_same_weights(ours.model, theirs.model)


def test_a_damaged_best_checkpoint_is_not_loaded_at_the_end(tmp_path: Path) -> None:
    method = BY_NAME["weighted_sft"]
    changes = SETTINGS | {"eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True}
    trainer = method.build(tmp_path, 16, kwargs={"eval_dataset": method.rows(4)}, **changes)
    trainer.train()
    best = Path(trainer.state.best_model_checkpoint)
    saved = best / "model.safetensors"
    content = bytearray(saved.read_bytes())
    content[-1] ^= 1  # the host would load it
    saved.write_bytes(bytes(content))
    with pytest.raises(DamagedCheckpointError, match=rf"{best.name}: model.safetensors"):
        trainer._load_best_model()


def test_a_checkpoint_on_sigterm_beside_best_ones_alone_is_refused(tmp_path: Path) -> None:
    changes = {"save_strategy": "best", "metric_for_best_model": "loss", "enable_jit_checkpoint": True}
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ValueError, match="save_strategy='best'"):
        BY_NAME["weighted_sft"].build(tmp_path, 8, **changes)
    assert signal.getsignal(signal.SIGTERM) is before, "the process would ignore SIGTERM from now on"


def test_rotation_removes_unfinished_checkpoints_first_and_never_the_newest_or_the_best(out: Path) -> None:
    trainer = BY_NAME["weighted_sft"].build(out.parent, 16, **(SETTINGS | {"save_total_limit": 2}))
    for step in (8, 12):  # 8 was cut short by a kill, and its run resumed from an earlier one with other save_steps
        shutil.copytree(out / "checkpoint-6", out / f"checkpoint-{step}")
    (out / "checkpoint-8" / SEAL_NAME).unlink()
    (out / "checkpoint-12" / SEAL_NAME).unlink()
    trainer.state.best_model_checkpoint = str(out / "checkpoint-4")
    trainer.rotate(str(out), str(out / "checkpoint-6"))
    assert sorted(path.name for path in out.glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-6"]


def test_the_manifest_is_not_pushed(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The host pushes a checkpoint before its manifest is written, also one that is saved again."""
    trainer = BY_NAME["weighted_sft"].build(out.parent, 16, **SETTINGS)
    trainer.state.global_step = 6
    seen: list[list[str]] = []
    monkeypatch.setattr(trainer, "push_checkpoint", lambda folder: seen.append(os.listdir(folder)))
    trainer.args.push_to_hub = True
    trainer.create_optimizer_and_scheduler(6)
    monkeypatch.setattr(trainer, "create_model_card", lambda **kwargs: None)
    trainer._save_checkpoint(trainer.model, None)
    assert len(seen) == 1
    assert "model.safetensors" in seen[0]
    assert SEAL_NAME not in seen[0]


@pytest.mark.slow
def test_checking_costs_a_part_of_saving(tmp_path: Path) -> None:
    """Reading back and summing 400 MB, against writing and flushing them as torch does."""
    folder = tmp_path / "checkpoint-1"
    folder.mkdir()
    start = time.perf_counter()
    torch.save({str(i): torch.rand(25_000_000) for i in range(4)}, folder / "optimizer.pt")
    with open(folder / "optimizer.pt", "rb") as file:
        os.fsync(file.fileno())
    written = time.perf_counter() - start
    start = time.perf_counter()
    seal(folder)
    sealed = time.perf_counter() - start
    assert sealed < written


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("trainer_state.json", "[" * 100_000),
        ("model.safetensors.index.json", '{"weight_map": ["a"]}'),
        ("model.safetensors.index.json", '{"weight_map": {"w": 5}}'),
        ("hf_ext_checkpoint.json", "[" * 100_000),
        ("hf_ext_checkpoint.json", "[1]"),
        ("hf_ext_checkpoint.json", '{"check": 1}'),
    ],
)
def test_json_of_another_shape_in_a_checkpoint_is_damage(tmp_path, name, content):
    (tmp_path / "checkpoint-1").mkdir()
    (tmp_path / "checkpoint-1" / name).write_text(content)
    damage = find_damage(tmp_path / "checkpoint-1")
    assert damage is not None
    assert name in str(damage)
