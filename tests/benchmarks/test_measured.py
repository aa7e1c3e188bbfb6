"""A result holds the hash of the code it measured; none is written of code that no commit holds, no old piece used."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import os
from pathlib import Path

from beside import part
from common import finish, parser, piece

ROOT = Path(__file__).resolve().parents[1]


def work():
    with Path(os.environ["WORKED"]).open("a") as log:
        log.write("worked\\n")
    if "EDIT" in os.environ:
        (ROOT / os.environ["EDIT"]).write_text("# edited during the run\\n")
    return {"value": 1}


options = parser("A stub.", "step_cost").parse_args()
rows = [piece(options.work, "only", {}, work)]
finish(options, {"rows": rows}, {"benchmark": "step_cost", "value": rows[0]["value"]})
"""


class Clone:
    """A small repository with the real `common`, `measured` and `table`, and a script that notes when it works."""

    def __init__(self, root: Path) -> None:
        self.root, self.log = root / "clone", root / "worked.txt"
        folder = self.root / "benchmarks"
        (folder / "results").mkdir(parents=True)
        for name in ("common", "measured", "table"):
            shutil.copy(ROOT / "benchmarks" / f"{name}.py", folder)
        (folder / "step_cost.py").write_text(SCRIPT)
        (folder / "beside.py").write_text("part = 1\n")
        (folder / "torch.py").write_text("class cuda:\n    is_available = staticmethod(lambda: False)\n")
        for name in (
            "hf_ext/_upstream",
            "hf_ext/guards",
            "hf_ext/losses",
            "hf_ext/data",
            "trainers/base",
            "trainers/weighted_sft",
        ):
            (self.root / name).mkdir(parents=True)
            (self.root / name / "module.py").write_text("x = 1\n")
        for name in ("hf_ext/_upstream/sft.py", "hf_ext/data/sft_rows.py", "trainers/weighted_sft/README.md"):
            (self.root / name).write_text("")
        (self.root / ".gitignore").write_text("benchmarks/.work/\n__pycache__/\n")
        self.git("init", "-q")
        self.commit()

    def git(self, *words: str) -> str:
        user = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
        command = ["git", "-C", str(self.root), *user, *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    def commit(self) -> None:
        self.git("add", "-A")
        self.git("commit", "-q", "-m", "all")

    def write(self, name: str, text: str) -> None:
        (self.root / name).write_text(text)

    def run(self, script: str = "step_cost", *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(self.root / "benchmarks" / f"{script}.py"), *words]
        env = {"PATH": "/usr/bin:/bin:/usr/local/bin", "WORKED": str(self.log), **environment}
        return subprocess.run(command, capture_output=True, text=True, check=False, env=env)

    def works(self) -> int:
        return len(self.log.read_text().splitlines()) if self.log.exists() else 0

    @property
    def output(self) -> Path:
        return self.root / "benchmarks" / "results" / "step_cost.json"

    def result(self) -> dict:
        return json.loads(self.output.read_text())


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Clone:
    repository = Clone(tmp_path_factory.mktemp("measured"))
    assert repository.run().returncode == 0
    repository.commit()
    return repository


@pytest.fixture
def measured(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import measured

    yield measured
    sys.modules.pop("measured", None)


def test_every_benchmark_names_files_that_are_there_and_its_own_script(measured):
    assert set(measured.MEASURED) >= {path.stem for path in (ROOT / "benchmarks" / "results").glob("*.json")}
    for name in measured.MEASURED:
        files = measured.files_of(name)
        assert f"benchmarks/{name}.py" in files
        assert all((ROOT / path).is_file() for path in files)
        assert all((ROOT / place.removeprefix("-")).exists() for place in measured.MEASURED[name])


def test_the_modules_beside_a_script_belong_to_what_it_measures(measured):
    assert "benchmarks/pruning_robustness.py" in measured.files_of("pruning_generation")
    assert "benchmarks/scores.py" in measured.files_of("pruning_robustness")
    assert "benchmarks/scorer.py" in measured.files_of("preference_reasoning")
    assert "benchmarks/consensus_models.py" in measured.files_of("consensus_label_dp")
    assert "benchmarks/retrieval_jobs.py" in measured.files_of("rare_retrieval")


def test_a_piece_is_used_again_under_the_same_code_and_never_under_another(clone):
    first, works = clone.result(), clone.works()
    assert works == 1
    assert clone.run().returncode == 0
    assert (clone.works(), clone.result()["code"]) == (works, first["code"])
    for place in ("hf_ext/guards/module.py", "benchmarks/beside.py"):
        code = clone.result()["code"]
        clone.write(place, "part = 2\n")
        clone.commit()
        assert "OLDER" in clone.run("table").stdout
        assert clone.run().returncode == 0
        works += 1
        assert clone.works() == works, place
        assert clone.result()["code"] != code
        assert clone.result()["commit"] == clone.git("rev-parse", "HEAD")
        clone.commit()
        assert "current" in clone.run("table").stdout


def test_text_that_is_not_measured_makes_nothing_stale(clone):
    clone.write("trainers/weighted_sft/README.md", "other words\n")
    clone.write("hf_ext/data/module.py", "x = 3\n")
    clone.commit()
    works = clone.works()
    assert clone.run().returncode == 0
    assert clone.works() == works
    clone.commit()


def test_a_changed_tree_is_refused_by_name_before_any_work(clone):
    works, content = clone.works(), clone.output.read_bytes()
    clone.write("hf_ext/losses/module.py", "x = 4\n")
    clone.write("hf_ext/losses/new one.py", "x = 4\n")
    failed = clone.run()
    assert failed.returncode == 2
    assert "hf_ext/losses/module.py, hf_ext/losses/new one.py" in failed.stderr
    assert (clone.works(), clone.output.read_bytes()) == (works, content)
    elsewhere = clone.log.parent / "trial.json"
    assert clone.run("step_cost", "--output", str(elsewhere)).returncode == 0
    assert json.loads(elsewhere.read_text())["commit"].endswith("+changes")
    assert clone.run("step_cost", "--quick").returncode == 0
    clone.git("clean", "-qfd")
    clone.git("checkout", "-q", ".")
    clone.output.unlink()  # the results are what a run writes
    assert clone.run().returncode == 0
    clone.commit()


def test_code_that_changes_during_the_run_keeps_its_result_out_and_loses_nothing(clone):
    clone.write("hf_ext/_upstream/sft.py", "y = 5\n")
    clone.commit()
    content = clone.output.read_bytes()
    failed = clone.run(EDIT="hf_ext/guards/module.py")
    assert failed.returncode == 1
    assert "changed during the run" in failed.stderr
    assert clone.output.read_bytes() == content
    rescue = Path(failed.stderr.split("The result is in ")[1].strip().removesuffix("."))
    assert json.loads(rescue.read_text())["headline"]["value"] == 1
    clone.git("checkout", "-q", ".")


def test_other_files_may_change_during_the_run_and_the_commit_is_that_of_the_start(clone):
    clone.write("hf_ext/_upstream/sft.py", "y = 6\n")
    clone.commit()
    start = clone.git("rev-parse", "HEAD")
    assert clone.run(EDIT="hf_ext/data/module.py").returncode == 0
    assert clone.result()["commit"] == start
    clone.commit()


def test_the_hash_tells_without_git(clone, tmp_path):
    assert clone.run().returncode == 0
    tarball = tmp_path / "tarball"
    shutil.copytree(clone.root, tarball, ignore=shutil.ignore_patterns(".git", ".work"))
    table = [sys.executable, str(tarball / "benchmarks" / "table.py")]
    env = {"PATH": "/usr/bin:/bin:/usr/local/bin", "GIT_CEILING_DIRECTORIES": str(tmp_path)}

    def printed() -> str:
        return subprocess.run(table, capture_output=True, text=True, check=True, env=env).stdout

    assert "current" in printed()
    (tarball / "hf_ext" / "losses" / "module.py").write_text("x = 6\n")
    assert "OLDER" in printed()
    result = clone.result()
    del result["code"]
    (tarball / "benchmarks" / "results" / "step_cost.json").write_text(json.dumps(result))
    assert "age unknown" in printed()
