"""Stores of every kind that are killed, shared by processes or out of room end in the rows of one unbroken call."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hf_ext.data.context_free import ContextFreeStore, generate_context_free, generate_contextual, top_up
from tests.data.symbol_models import symbol_model, symbol_tokenizer
from tests.data.test_context_free_store import shard_hashes
from tests.forks import forked, run_together

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="forks of POSIX")
SETTINGS = {"max_new_tokens": 12, "batch_size": 4, "seed": 3, "show_progress": False}
ROWS = 100  # wanted after a top-up: shards have 32, and the store begins with one
PROMPTS = [[0, 7], [0, 5, 9, 4], [3]]
MIXTURE = {"bos": 0.5, "t5 t9": 0.5}


def begin(folder: Path) -> ContextFreeStore:
    """A store of one shard."""
    settings = SETTINGS | {"batch_size": 32, "start": MIXTURE}
    return generate_context_free(symbol_model(64), symbol_tokenizer(64), 30, output_dir=folder, **settings)


def fill_up(folder: Path) -> ContextFreeStore:
    """The store topped up."""
    return top_up(ContextFreeStore(folder), symbol_model(64), ROWS, show_progress=False)


def sample_after_prompts(folder: Path) -> ContextFreeStore:
    """A store of rows after prompts, in three shards."""
    return generate_contextual(symbol_model(64), symbol_tokenizer(64), PROMPTS, 900, output_dir=folder, **SETTINGS)


KINDS: dict[str, Callable[[Path], ContextFreeStore]] = {"top_up": fill_up, "contextual": sample_after_prompts}
each_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(scope="module")
def references(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ContextFreeStore]:
    """Each kind, never interrupted."""
    folder = tmp_path_factory.mktemp("references")
    begin(folder / "top_up")
    return {kind: work(folder / kind) for kind, work in KINDS.items()}


def begun(kind: str, folder: Path) -> Path:
    """The folder that a kind works in, as it finds it."""
    if kind == "top_up":
        begin(folder)
    return folder


def assert_same(folder: Path, reference: ContextFreeStore) -> None:
    assert shard_hashes(folder) == shard_hashes(Path(reference.path))
    assert ContextFreeStore(folder).manifest == reference.manifest
    assert not [file.name for file in folder.iterdir() if file.name.startswith(".")]


def test_a_topped_up_store_is_what_one_call_for_as_many_rows_gives(
    references: dict[str, ContextFreeStore], tmp_path: Path
) -> None:
    topped = references["top_up"]
    tokens = topped.manifest["num_tokens"]
    begin(tmp_path)
    at_once = generate_context_free(
        symbol_model(64), symbol_tokenizer(64), tokens, output_dir=tmp_path,
        **SETTINGS | {"batch_size": 32, "start": MIXTURE},
    )  # fmt: skip
    assert_same(tmp_path, topped)
    assert ROWS <= len(at_once.to_dataset()) < ROWS + 32


@each_kind
def test_killed_beside_any_write_it_goes_on_to_the_same_bytes(
    kind: str, references: dict[str, ContextFreeStore], tmp_path: Path
) -> None:
    start = begun(kind, tmp_path / "start")
    writes = 0
    while True:
        folder = tmp_path / f"killed-{writes}"
        if start.exists():
            shutil.copytree(start, folder)

        def killed(last: int = writes, folder: Path = folder) -> None:
            replace, calls = os.replace, []

            def kill(source: str, target: str) -> None:
                if len(calls) == last:
                    os.kill(os.getpid(), signal.SIGKILL)
                calls.append(target)
                replace(source, target)

            os.replace = kill  # type: ignore[assignment]
            KINDS[kind](folder)

        _, status = os.waitpid(forked(killed), 0)
        KINDS[kind](folder)
        assert_same(folder, references[kind])
        if status == 0:  # it came to its end
            break
        assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
        writes += 1
    assert writes >= 6  # a shard and a manifest, three times


@each_kind
def test_two_processes_that_sample_together_write_the_rows_of_one(
    kind: str, references: dict[str, ContextFreeStore], tmp_path: Path
) -> None:
    folder = begun(kind, tmp_path / "store")

    def work() -> None:
        torch.set_num_threads(1)
        torch.distributed.init_process_group("gloo")
        assert torch.distributed.get_world_size() == 2
        for _ in range(2):  # the second time they find it complete
            assert len(KINDS[kind](folder).to_dataset()) == len(references[kind].to_dataset())
        torch.distributed.destroy_process_group()

    run_together(work)
    assert_same(folder, references[kind])


@each_kind
def test_out_of_room_whole_shards_stay_and_with_room_it_goes_on(
    kind: str, references: dict[str, ContextFreeStore], tmp_path: Path
) -> None:
    """The limit is the system's own, below the size of a shard."""
    import resource

    folder = begun(kind, tmp_path / "store")
    shards_before = shard_hashes(folder) if folder.exists() else {}
    message = tmp_path / "message"

    def without_room() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, resource.RLIM_INFINITY))
        try:
            KINDS[kind](folder)
        except OSError as error:
            message.write_text(f"{type(error).__name__}: {error}")

    assert os.waitpid(forked(without_room), 0)[1] == 0
    assert message.read_text().startswith("DiskFullError: No room")
    assert "repeat the call" in message.read_text()
    assert shard_hashes(folder) == shards_before
    KINDS[kind](folder)
    assert_same(folder, references[kind])
