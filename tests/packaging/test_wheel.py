"""The wheel and the sdist: what is in them, that they work beside other packages, that their types and floors hold."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
INSTALLED_AS = {
    "hf_ext": "hf_ext",
    "trainers": "hf_ext/trainers",
    "recipes": "hf_ext/recipes",
    "model_cards": "hf_ext/model_cards",
}
SHIPPED = {".py", ".pyi", ".yaml", ".jinja", ".md", ".typed"}


def run(*command: object, cwd: Path, **env: str) -> str:
    environment = {k: v for k, v in os.environ.items() if k not in {"PYTHONPATH", "MYPYPATH"}} | env
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def shipped_files() -> set[str]:
    """Every file of the source tree that users need, by the name it must have once installed."""
    return {
        f"{target}/{path.relative_to(ROOT / folder).as_posix()}"
        for folder, target in INSTALLED_AS.items()
        for path in (ROOT / folder).rglob("*")
        if path.suffix in SHIPPED or path.name == "py.typed"
    }


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Folder with the sdist and the wheel made from it, built from a copy: a build leaves files in its source."""
    source, dist = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for folder in INSTALLED_AS:
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", dist, source, cwd=source)
    return dist


@pytest.fixture(scope="module")
def wheel(built):
    (path,) = built.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory):
    """Folder the wheel is installed in, to lie in front of the current site-packages."""
    folder = tmp_path_factory.mktemp("site")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    run(*pip, "install", "--no-index", "--no-deps", "--target", folder, wheel, cwd=folder)
    return folder


def in_site(site: Path, code: str) -> str:
    return run(sys.executable, "-c", code, cwd=site.parent, PYTHONPATH=str(site))


def test_wheel_holds_every_source_file_under_its_installed_name(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    missing = shipped_files() - names
    assert not missing, f"not in the wheel (a package or package-data line missing in pyproject.toml): {missing}"
    assert "hf_ext/py.typed" in names


def test_wheel_has_no_top_level_package_but_hf_ext(wheel):
    tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"hf_ext"}


def test_sdist_holds_the_folders_the_wheel_is_made_from(built):
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"LICENSE", "README.md", "pyproject.toml", "trainers/__init__.py", "recipes/__init__.py"} <= names


def test_every_installed_module_imports_from_the_wheel(site):
    modules = sorted(
        name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for name in shipped_files()
        if name.endswith(".py") and not name.endswith("__main__.py")
    )
    needed = {"mteb": "hf_ext.evaluation.mteb_wrapper", "datatrove": "hf_ext.data.curation.backends.datatrove"}
    for library, module in needed.items():  # in no environment that these tests run in
        if find_spec(library) is None:
            modules.remove(module)
    code = (
        "import importlib, json, sys\n"
        f"for name in json.loads({json.dumps(json.dumps(modules))}): importlib.import_module(name)\n"
        "print(json.dumps({n: m.__file__ for n, m in sys.modules.items() if n.split('.')[0] == 'hf_ext'}))"
    )
    files = json.loads(in_site(site, code).splitlines()[-1])
    assert set(modules) <= set(files)
    assert all(Path(file).is_relative_to(site) for file in files.values())


def test_recipes_are_found_through_importlib_resources(site):
    code = (
        "import json\n"
        "from importlib.resources import files\n"
        "root = files('hf_ext.recipes')\n"
        "print(json.dumps([f'{d.name}/{f.name}' for d in root.iterdir() if d.is_dir() for f in d.iterdir()]))"
    )
    found = {name for name in json.loads(in_site(site, code)) if name.endswith(".yaml")}
    assert found == {path.relative_to(ROOT / "recipes").as_posix() for path in (ROOT / "recipes").glob("*/*.yaml")}


def test_plain_names_are_not_importable_where_the_wheel_is_installed(site):
    code = "from importlib.util import find_spec as f; print(f('trainers'), f('recipes'), f('model_cards'))"
    assert in_site(site, code).split() == ["None", "None", "None"]


@pytest.mark.parametrize("name", ["trainers", "recipes", "model_cards"])
def test_importing_a_source_folder_by_its_plain_name_says_what_to_write(name):
    command = [sys.executable, "-c", f"import {name}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert done.stderr.splitlines()[-1].startswith(f"ImportError: this folder is installed as `hf_ext.{name}`")


def test_console_script_and_module_run_give_the_version(site):
    assert run(site / "bin" / "hf-ext", "--version", cwd=site.parent, PYTHONPATH=str(site)) == "hf-ext 0.1.0\n"
    assert run(sys.executable, "-m", "hf_ext", "--version", cwd=site.parent, PYTHONPATH=str(site)) == "hf-ext 0.1.0\n"


@pytest.mark.timeout(1200)  # mypy follows torch and numpy; on a busy machine this takes minutes
def test_types_hold_on_the_installed_wheel(site, tmp_path):
    """mypy sees the folders under their installed names only here."""
    mypy = (sys.executable, "-m", "mypy", "--config-file", ROOT / "pyproject.toml", "--cache-dir", tmp_path)
    run(*mypy, "-p", "hf_ext", cwd=site.parent, MYPYPATH=str(site))


def test_floors_of_the_import_graph_hold(site, tmp_path):
    run(
        Path(sys.executable).with_name("lint-imports"),
        "--config",
        ROOT / "pyproject.toml",
        "--cache-dir",
        tmp_path,
        cwd=site.parent,
        PYTHONPATH=str(site),
    )


def test_an_import_that_goes_up_breaks_the_floors(site, tmp_path):
    """The control: the contracts do see the trainers folder under its installed name."""
    broken = tmp_path / "site"
    shutil.copytree(site / "hf_ext", broken / "hf_ext")
    with (broken / "hf_ext" / "losses" / "weighted_nll.py").open("a") as file:
        file.write("\nimport hf_ext.trainers.flow\n")
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--config", ROOT / "pyproject.toml", "--no-cache"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(broken)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "hf_ext.losses is not allowed to import hf_ext.trainers" in done.stdout


@pytest.mark.slow
def test_wheel_installs_into_a_fresh_environment_from_the_package_index(wheel, tmp_path):
    run(sys.executable, "-m", "venv", tmp_path / "env", cwd=tmp_path)
    python = tmp_path / "env" / "bin" / "python"
    pip = (python, "-m", "pip", "--disable-pip-version-check", "install", "-q", "-c", ROOT / "constraints.txt")
    run(*pip, "torch", cwd=tmp_path)
    run(*pip, f"hf-ext[peft] @ {wheel.as_uri()}", cwd=tmp_path)
    code = "import hf_ext; print([getattr(hf_ext, name).__name__ for name in hf_ext.__all__])"
    assert "WeightedSFTTrainer" in run(python, "-c", code, cwd=tmp_path)
    assert run(tmp_path / "env" / "bin" / "hf-ext", "--version", cwd=tmp_path) == "hf-ext 0.1.0\n"
