"""A folder or file is written by one process at a time, and the claim ends with the process."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hf_ext.guards.disk import NotWritableError, replacing
from hf_ext.guards.locks import InUseError, is_lock
from hf_ext.guards.runs import claimed_file, claimed_folder
from tests.forks import forked

posix = pytest.mark.skipif(sys.platform == "win32", reason="forks and signals of POSIX")
pytestmark = posix


def holder(folder: Path, seconds: float, grandchild: bool = False) -> int:
    """A process that holds `folder`; returns once it does."""

    def hold() -> None:
        with claimed_folder(folder):
            if grandchild and os.fork() == 0:
                (folder / "grandchild").write_text(str(os.getpid()))
                time.sleep(30)
                os._exit(0)
            (folder / "held").touch()
            time.sleep(seconds)

    number = forked(hold)
    wait_for(lambda: (folder / "held").exists())
    return number


def wait_for(ready: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not ready():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_second_process_is_refused_in_one_sentence_that_names_folder_and_process(tmp_path: Path) -> None:
    number = holder(tmp_path / "run", 30)
    with pytest.raises(InUseError) as refused, claimed_folder(tmp_path / "run", remedy="choose another output_dir"):
        pass
    os.kill(number, signal.SIGKILL)
    os.waitpid(number, 0)
    message = str(refused.value)
    assert message.startswith(f"{tmp_path / 'run'} is being written by process {number} on ")
    assert message.endswith("Wait until it has ended, or choose another output_dir.")


@pytest.mark.parametrize("grandchild", [False, True])
def test_a_killed_process_holds_nothing_nor_does_what_it_forked(tmp_path: Path, grandchild: bool) -> None:
    number = holder(tmp_path, 30, grandchild)
    if grandchild:
        wait_for((tmp_path / "grandchild").exists)
    os.kill(number, signal.SIGKILL)
    os.waitpid(number, 0)
    with claimed_folder(tmp_path):
        pass
    if grandchild:
        os.kill(int((tmp_path / "grandchild").read_text()), signal.SIGKILL)


def test_who_waits_goes_on_when_the_holder_ends(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    number = holder(tmp_path, 0.5)
    start = time.monotonic()
    with claimed_folder(tmp_path, waits=True):
        assert time.monotonic() - start > 0.1
    os.waitpid(number, 0)
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path} is being written by process {number} on {os.uname().nodename}: waiting until it has ended."
    ]


def test_many_processes_that_wait_never_write_together(tmp_path: Path) -> None:
    def add() -> None:
        for _ in range(20):
            with claimed_file(tmp_path / "count", waits=True):
                count = int((tmp_path / "count").read_text())
                with replacing(tmp_path / "count") as temporary:
                    temporary.write_text(str(count + 1))

    (tmp_path / "count").write_text("0")
    numbers = [forked(add) for _ in range(4)]
    assert [os.waitpid(number, 0)[1] for number in numbers] == [0] * 4
    assert (tmp_path / "count").read_text() == "80"
    assert [path.name for path in tmp_path.iterdir()] == ["count"]


def test_the_same_thread_may_claim_twice_and_another_may_not(tmp_path: Path) -> None:
    refused: list[Exception] = []

    def claim() -> None:
        try:
            with claimed_folder(tmp_path):
                pass
        except InUseError as error:
            refused.append(error)

    with claimed_folder(tmp_path):
        with claimed_folder(tmp_path):
            pass
        thread = threading.Thread(target=claim)
        thread.start()
        thread.join()
        assert len(refused) == 1
        assert all(is_lock(path.name) for path in tmp_path.iterdir())
    assert not list(tmp_path.iterdir())


def test_a_claimed_name_is_cleared_of_what_killed_processes_left_and_of_nothing_else(tmp_path: Path) -> None:
    (tmp_path / ".rows.parquet.12-ab.tmp").touch()
    (tmp_path / ".rows.13-ab.tmp").mkdir()
    (tmp_path / ".rows[1].14-ab.tmp").touch()
    with claimed_file(tmp_path / "rows.parquet"), claimed_file(tmp_path / "rows"):
        names = {path.name for path in tmp_path.iterdir() if not is_lock(path.name)}
    assert names == {".rows[1].14-ab.tmp"}


@pytest.mark.parametrize(("num_renames", "content"), [(0, "former"), (1, "former"), (2, "new")])
def test_a_folder_is_the_former_or_the_new_whenever_its_replacing_is_killed(
    tmp_path: Path, num_renames: int, content: str
) -> None:
    folder = tmp_path / "store"
    folder.mkdir()
    (folder / "file").write_text("former")
    process_id = os.fork()
    if not process_id:
        renames = iter([os.replace] * num_renames)

        def rename_or_die(source: Path, target: Path) -> None:
            next(renames, lambda *_: os._exit(9))(source, target)

        os.replace = rename_or_die
        with replacing(folder, overwrite=True) as temporary:
            temporary.mkdir()
            (temporary / "file").write_text("new")
            shutil.rmtree = lambda *_, **__: os._exit(9)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(process_id, 0)[1]) == 9
    with claimed_file(folder):
        assert (folder / "file").read_text() == content
        assert sorted(path.name for path in tmp_path.iterdir() if not is_lock(path.name)) == ["store"]


def test_a_claim_leaves_alone_what_is_being_written_under_a_longer_name(tmp_path: Path) -> None:
    with claimed_file(tmp_path / "rows.parquet"), replacing(tmp_path / "rows.parquet") as temporary:
        temporary.write_text("the rows")
        with claimed_file(tmp_path / "rows"):
            assert temporary.exists()
    assert (tmp_path / "rows.parquet").read_text() == "the rows"


@pytest.mark.parametrize("claim", [claimed_file, claimed_folder])
@pytest.mark.parametrize("place", ["file/a", "file/a/b", "x" * 300 + "/a"])
def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path: Path, claim: Callable, place: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotWritableError) as refused, claim(tmp_path / place):
        pass
    assert str(refused.value).startswith(f"Cannot write {tmp_path / place} (")
    assert str(refused.value).endswith("). Name another place.")
    assert "\n" not in str(refused.value)
