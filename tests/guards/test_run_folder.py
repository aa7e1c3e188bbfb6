"""A run goes on in its folder under its own settings alone, remembers what is done, and publishes its model whole."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import math
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from hf_ext.guards.disk import DiskFullError, NotWritableError
from hf_ext.guards.runs import RunFolder

SETTINGS = {"seed": 0, "model": {"config": {"dropout": 0.1}}, "stop": ["a"]}


def test_the_same_settings_go_on_and_each_other_one_is_named_with_both_values(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "out", remedy="pass another --output")
    run.begin(SETTINGS)
    record = (tmp_path / "out" / "run.json").read_bytes()
    run.begin({"stop": ("a",), "model": {"config": {"dropout": 0.1}}, "seed": 0})
    others = {"seed": 1, "model": {"config": {"dropout": 0.2}}, "epochs": 3}
    with pytest.raises(ValueError, match="was begun with other settings") as refusal:
        run.begin(others)
    assert str(refusal.value) == (
        f"{tmp_path / 'out'} was begun with other settings: seed was 0, is 1; model.config.dropout was 0.1, is 0.2; "
        "stop was ['a'], is not there; epochs was not there, is 3. Run with the former ones to finish it, or pass "
        "another --output, or delete this one."
    )
    assert (tmp_path / "out" / "run.json").read_bytes() == record


def test_a_hash_is_told_by_its_beginning(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "out")
    run.begin({"model": "0123456789ab" + 52 * "c"})
    with pytest.raises(ValueError, match=r"model was '0123456789ab\.\.\., is 'ba9876543210\.\.\.\. Run"):
        run.begin({"model": "ba9876543210" + 52 * "c"})


def test_other_rows_are_named_by_what_changed(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.begin({}, {"training rows": "abc", "questions": "x"})
    run.begin({}, {"training rows": "abc", "questions": "x"}, lambda name, former: None)
    with pytest.raises(
        ValueError, match=r"settings: other training rows \(abc is gone\); questions: there are none now"
    ):
        run.begin({}, {"training rows": "abd"}, lambda name, former: f"{former} is gone")


@pytest.mark.parametrize(("parts", "stranger"), [("*", "thesis.tex"), ("round-*", "round-000")])
def test_a_folder_of_something_else_is_refused_by_name_and_left_alone(
    tmp_path: Path, parts: str, stranger: str
) -> None:
    (tmp_path / ".hf-ext.lock").touch()
    RunFolder(tmp_path / "empty").begin({})
    folder = tmp_path / "other"
    folder.mkdir()
    (folder / ".hidden").touch()
    (folder / stranger).touch()
    with pytest.raises(ValueError, match=f"not empty and holds no run.json.*{re.escape(stranger)}.*Choose another"):
        RunFolder(folder).begin({}, parts=parts)
    assert sorted(os.listdir(folder)) == [".hidden", stranger]


def test_files_that_match_no_part_of_a_run_may_lie_there(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    RunFolder(tmp_path).begin(SETTINGS, parts="round-*")
    assert json.loads((tmp_path / "run.json").read_text())["settings"]["model.config.dropout"] == 0.1


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ("{", "is damaged"),
        ("[1]", "is damaged"),
        ('{"format_revision": 2}', "is damaged"),
        ('{"format_revision": 2, "settings": [], "rows": {}}', "is damaged"),
        ('{"format_revision": 2, "settings": {}, "rows": null}', "is damaged"),
        ('{"format_revision": 1}', "another version of hf-ext"),
        ('{"seed": 0}', "another version of hf-ext"),  # the demo's settings as they were written before
    ],
)
def test_a_record_that_cannot_be_compared_is_refused_and_left_alone(tmp_path: Path, record: str, words: str) -> None:
    (tmp_path / "run.json").write_text(record)
    with pytest.raises(ValueError, match=words):
        RunFolder(tmp_path).begin(SETTINGS)
    assert (tmp_path / "run.json").read_text() == record


def test_a_step_is_done_once_its_results_are_written_by_the_main_process(tmp_path: Path) -> None:
    class Second:
        is_main_process = False

        def wait_for_everyone(self) -> None:
            pass

    main = RunFolder(tmp_path)
    second = RunFolder(tmp_path, processes=Second())
    second.mark_done("round-1/round", {"loss": 0.5})
    assert main.results("round-1/round") is None
    main.mark_done("round-1/round", {"loss": 0.5})
    assert second.results("round-1/round") == {"loss": 0.5}


def test_a_step_whose_record_is_damaged_is_named_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "round.json").write_text('{"loss": ')
    with pytest.raises(ValueError, match=f"{re.escape(str(tmp_path / 'round.json'))} is not .*Remove it"):
        RunFolder(tmp_path).results("round")


def test_a_run_goes_on_where_a_setting_is_nan_or_a_path_that_is_no_utf8(tmp_path: Path) -> None:
    path = os.fsdecode(b"mod\xffel")
    settings = {"threshold": math.nan, "bounds": [math.nan, math.inf], "model": path}
    run = RunFolder(tmp_path)
    run.begin(settings)
    run.begin(settings)
    with pytest.raises(ValueError, match=r"other settings: threshold was nan, is 0\.5\. Run"):
        run.begin(settings | {"threshold": 0.5})
    run.mark_done("scored", {"model": path})
    assert os.fsencode(run.results("scored")["model"]) == b"mod\xffel"


class Killed(BaseException):
    """No `except Exception` sees it, as none sees a kill."""


@pytest.mark.parametrize(("former_shards", "shards"), [(1, 1), (1, 3), (3, 1), (3, 3), (2, 3)])
def test_whenever_it_is_killed_what_loads_is_the_former_model_the_new_one_or_none(
    tmp_path: Path, former_shards: int, shards: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value, count in (("former", 1.0, former_shards), ("new", 2.0, shards)):
        save_sharded(tmp_path / name, value, count)
    was_published = False
    for step in itertools.count():
        out = tmp_path / f"out-{step}"
        shutil.copytree(tmp_path / "former", out)
        with monkeypatch.context() as patch:
            kill_at(step, patch)
            with contextlib.suppress(Killed):
                RunFolder(out).publish(tmp_path / "new")
                was_published = True
        values = loaded(out)
        assert values in (None, {1.0}, {2.0}), f"killed at step {step}: {sorted(os.listdir(out))}"
        if step == 0:
            assert values == {1.0}
        if was_published:
            break
    assert values == {2.0}
    assert step > shards


def save_sharded(folder: Path, value: float, shards: int) -> None:
    """A tiny model of equal weights, in that many files."""
    model = GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=8, n_head=1, vocab_size=11, n_positions=7))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(value)
    model.save_pretrained(folder, max_shard_size={1: 8_000, 2: 5_000, 3: 3_500}[shards])  # of 7,616 bytes
    assert len(list(folder.glob("*.safetensors"))) == shards


def kill_at(step: int, patch: pytest.MonkeyPatch) -> None:
    """Let the process go on for so many moves and removals, no further."""
    calls = itertools.count()

    def counted(call: Callable) -> Callable:
        def counting(*args: object, **kwargs: object) -> object:
            if next(calls) == step:
                raise Killed
            return call(*args, **kwargs)

        return counting

    patch.setattr(os, "replace", counted(os.replace))
    patch.setattr(Path, "unlink", counted(Path.unlink))


def loaded(folder: Path) -> set[float] | None:
    """The values of the weights that transformers loads from the folder, or `None` where it finds no model."""
    try:
        model = GPT2LMHeadModel.from_pretrained(folder)
    except OSError:
        return None
    return {value for parameter in model.parameters() for value in parameter.unique().tolist()}


def test_links_in_the_folder_are_replaced_and_what_they_lead_to_stays(tmp_path: Path) -> None:
    model = tmp_path / "model"
    (model / "1_Pooling").mkdir(parents=True)
    (model / "model.safetensors").write_text("new")
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.tex").write_text("all of it")
    out = tmp_path / "out"
    out.mkdir()
    for name in ("_saving", "1_Pooling"):
        (out / name).symlink_to(precious)
    RunFolder(out).publish(model)
    assert os.listdir(precious) == ["thesis.tex"]
    assert sorted(os.listdir(out)) == ["1_Pooling", "model.safetensors"]
    assert not (out / "1_Pooling").is_symlink()


def test_a_folder_under_the_name_of_a_file_is_refused_before_anything_moves(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for name in ("README.md", "config.json", "model.safetensors"):
        (model / name).write_text("new")
    out = tmp_path / "out"
    (out / "config.json").mkdir(parents=True)
    for name in ("README.md", "model.safetensors"):
        (out / name).write_text("former")
    with pytest.raises(NotWritableError, match=r"a folder is in the way: .*config\.json"):
        RunFolder(out).publish(model)
    assert (out / "README.md").read_text() == (out / "model.safetensors").read_text() == "former"


def test_a_model_is_published_with_its_folders_and_the_weights_it_replaces_go(tmp_path: Path) -> None:
    model = tmp_path / "rounds" / "model"
    (model / "1_Pooling").mkdir(parents=True)
    (model / "model.safetensors").write_text("new")
    (model / "1_Pooling" / "config.json").write_text("{}")
    (model / "README.md").write_text("the new card")
    (tmp_path / "1_Pooling").mkdir()
    for name in (
        "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
        "adapter_model.safetensors",
        "README.md",
        "1_Pooling/gone.json",
        "notes.txt",
        "_saving",
    ):
        (tmp_path / name).write_text("former")
    (tmp_path / "_saving").unlink()
    (tmp_path / "_saving").mkdir()
    (tmp_path / "_saving" / "model-00001-of-00003.safetensors").write_text("of a killed run")
    RunFolder(tmp_path).publish(model)
    files = {str(path.relative_to(tmp_path)): path.read_text() for path in tmp_path.rglob("*") if path.is_file()}
    assert {name: text for name, text in files.items() if not name.startswith("rounds")} == {
        "1_Pooling/config.json": "{}",
        "README.md": "the new card",
        "adapter_model.safetensors": "former",  # of another kind: a base model's folder may hold an adapter
        "model.safetensors": "new",
        "notes.txt": "former",
    }
    assert (model / "model.safetensors").read_text() == "new", "the round keeps its model"


def test_a_copy_that_breaks_off_leaves_the_former_model_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for name in ("config.json", "model.safetensors"):
        (model / name).write_text("new")
        (tmp_path / name).write_text("former")
    copy, copied = shutil.copyfile, []

    def copy_one(source: str, target: str, **kwargs: object) -> object:
        if copied:
            raise OSError(errno.ENOSPC, "No space left on device")
        copied.append(target)
        return copy(source, target)

    monkeypatch.setattr(shutil, "copyfile", copy_one)
    with pytest.raises(DiskFullError, match="What was in the folder before is intact"):
        RunFolder(tmp_path).publish(model)
    assert {name: (tmp_path / name).read_text() for name in os.listdir(tmp_path) if name != "model"} == {
        "config.json": "former",
        "model.safetensors": "former",
    }
