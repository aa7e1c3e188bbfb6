"""Standard output as shells leave it: a reader that goes, a full device, none at all, and few characters."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hf_ext.guards.streams import printing

FULL = Path("/dev/full")


def hf_ext(*words: str, shell: str = "", **environment: str) -> tuple[int, bytes, bytes]:
    """Exit status, stdout and stderr of the command; `shell` redirects, as in `>&-`."""
    command = ["sh", "-c", f'exec "$@" {shell}', "sh", sys.executable, "-m", "hf_ext.cli", *words]
    done = subprocess.run(command, capture_output=True, env=os.environ | environment, check=False, timeout=120)
    return done.returncode, done.stdout, done.stderr


def status_where_nobody_reads(*words: str, cwd: Path | None = None) -> tuple[int, bytes]:
    """Exit status and stderr of the command, with a pipe as stdout whose reading end is closed before it starts."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "hf_ext.cli", *words],
            stdout=writing,
            stderr=subprocess.PIPE,
            cwd=cwd,
            check=False,
            timeout=120,
        )
    finally:
        os.close(writing)
    return done.returncode, done.stderr


@pytest.mark.parametrize("command", ["recipes list", "recipes show flow/gsm8k", "--help", "data prune --help"])
def test_a_reader_that_has_left_ends_the_command_without_a_word(command: str) -> None:
    assert status_where_nobody_reads(*command.split()) == (141, b"")


def test_what_was_written_is_whole_where_the_reader_has_left(tmp_path: Path) -> None:
    assert status_where_nobody_reads("recipes", "copy", "flow/gsm8k", cwd=tmp_path) == (141, b"")
    _, recipe, _ = hf_ext("recipes", "show", "flow/gsm8k")
    assert (tmp_path / "gsm8k.yaml").read_bytes() == recipe
    assert [path.name for path in tmp_path.iterdir()] == ["gsm8k.yaml"]


@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full on this system")
@pytest.mark.parametrize("command", ["recipes list --json", "--help"])
def test_an_output_that_cannot_be_written_is_said_with_a_status_that_is_not_zero(command: str) -> None:
    status, _, err = hf_ext(*command.split(), shell=f">{FULL}")
    assert (status, err) == (1, b"hf-ext: error: standard output cannot be written: No space left on device\n")


@pytest.mark.skipif(os.name != "posix", reason="a POSIX shell closes the descriptors")
def test_a_closed_output_is_said_before_anything_is_done(tmp_path: Path) -> None:
    status, _, err = hf_ext("recipes", "copy", "flow/gsm8k", str(tmp_path), shell=">&-")
    assert status == 1
    assert err.startswith(b"hf-ext: error: standard output is closed; send it to a file, or to ")
    assert not any(tmp_path.iterdir())


@pytest.mark.skipif(os.name != "posix", reason="a POSIX shell closes the descriptors")
def test_closed_input_and_error_are_no_reason_to_fail() -> None:
    status, out, _ = hf_ext("recipes", "list", shell="<&- 2>&-")
    assert status == 0
    assert b"flow/gsm8k.yaml" in out


@pytest.mark.parametrize(
    ("encoding", "expected"), [("ascii", b"0.5 \\xb1 0.1 \\u2581\n"), ("utf-8", "0.5 ± 0.1 ▁\n".encode())]
)
def test_characters_that_the_encoding_lacks_are_printed_as_escapes(encoding: str, expected: bytes) -> None:
    program = "from hf_ext.guards.streams import printing; printing(lambda: print('0.5 ± 0.1 ▁') or 0, 'x')"
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        env=os.environ | {"PYTHONIOENCODING": encoding},
        check=True,
        timeout=120,
    )
    assert done.stdout == expected


def test_a_pipe_of_something_else_that_breaks_is_an_error() -> None:
    def command() -> int:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        printing(command, "x")
