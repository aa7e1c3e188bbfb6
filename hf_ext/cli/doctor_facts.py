"""
What `hf-ext doctor` looks at: one function a subject, plain values for JSON, findings for what is wrong.

A host library that is missing or broken is a finding, never a traceback. Nothing here names the user, the machine or a
place on its disk, so that the result can be pasted into a bug report.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
from dataclasses import dataclass, field
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packaging.requirements import Requirement
from packaging.version import Version

from hf_ext.guards.models import first_line
from hf_ext.method import trained_methods

if TYPE_CHECKING:
    from types import ModuleType

# Not needed; shown because recipes and accelerate configs can ask for them.
OPTIONAL = ("flash-attn", "deepspeed", "bitsandbytes")
HOSTS = ("torch", "transformers", "trl", "datasets", "accelerate", "peft", "huggingface_hub", "safetensors", "numpy")
SMALL_ROOM = 2.0  # GB of memory or disk below which even the demo is doubtful

REPORTED_VARIABLES = {
    "HF_HUB_OFFLINE": "nothing is downloaded from the Hub and nothing is pushed",
    "HF_DATASETS_OFFLINE": "no dataset is downloaded",
    "TRANSFORMERS_OFFLINE": "no model is downloaded",
}


@dataclass
class Facts:
    """
    The facts, by subject, and what was found wrong with them.

    Args:
        values (`dict`):
            Subject to plain values, as `--json` prints them.
        findings (`list[dict]`):
            `level` (`"broken"` or `"warning"`), `problem`, `remedy`.
    """

    values: dict[str, Any] = field(default_factory=dict)
    findings: list[dict[str, str]] = field(default_factory=list)

    def broken(self, problem: str, remedy: str) -> None:
        """Note what cannot work as it is."""
        self.findings.append({"level": "broken", "problem": scrub(problem), "remedy": scrub(remedy)})

    def warning(self, problem: str, remedy: str) -> None:
        """Note what works, but perhaps not as expected."""
        self.findings.append({"level": "warning", "problem": scrub(problem), "remedy": scrub(remedy)})

    @property
    def ok(self) -> bool:
        """Whether nothing is broken."""
        return all(finding["level"] != "broken" for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Everything, as `json` takes it."""
        return {**self.values, "findings": self.findings, "ok": self.ok}


def collect() -> Facts:
    """Look at everything, in the order in which it is shown."""
    facts = Facts()
    for subject in (versions, devices, launch, extras, model_wheels, optional, surroundings, room, imports):
        subject(facts)
    return facts


def scrub(text: str) -> str:
    """The text without places on this machine's disk: error messages of host libraries are full of them."""
    # a path begins with ~, a drive or a slash that stands behind no letter, so `bf16/fp16` stays
    return re.sub(r"(?<![\w.])(?:~|[A-Za-z]:(?=[\\/]))?[\\/][^\s'\"(),:;]+", "<path>", text)


def installed_version(name: str) -> str | None:
    """Version of an installed distribution, or `None`."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def requirements(extra: str | None = None) -> list[Requirement]:
    """What our metadata asks for, in all cases or for an extra; references to our own extras are left out."""
    lines = (Requirement(line) for line in metadata.requires("hf-ext") or ())
    if extra is None:
        return [line for line in lines if line.marker is None]
    chosen = [line for line in lines if line.marker is not None and line.marker.evaluate({"extra": extra})]
    return [line for line in chosen if line.name != "hf-ext"]


def _fits(requirement: Requirement) -> bool:
    version = installed_version(requirement.name)
    # Without the local part: a specifier may take 2.13.0+cpu for another version than 2.13.0.
    return version is not None and requirement.specifier.contains(Version(version).public, prereleases=True)


def versions(facts: Facts) -> None:
    """Python and the packages we stand on, against our floors."""
    python = platform.python_version()
    rows = {"python": {"installed": python, "needs": ">=3.11", "ok": sys.version_info >= (3, 11)}}
    facts.values |= {"hf_ext": installed_version("hf-ext"), "versions": rows}
    if not rows["python"]["ok"]:
        facts.broken(f"Python {python} is too old: hf-ext needs 3.11 or newer", "make an environment of a newer one")
    if facts.values["hf_ext"] is None:
        facts.broken("hf-ext is importable, but not installed, so its floors are not known", "pip install -e .")
        return
    peft = [requirement for requirement in requirements("peft") if installed_version(requirement.name)]
    for requirement in [*requirements(), *peft]:
        name = requirement.name
        version = installed_version(requirement.name)
        needs = str(requirement.specifier)
        rows[name] = {"installed": version, "needs": needs, "ok": _fits(requirement)}
        if not rows[name]["ok"]:
            problem = f"{name} {version} is outside {needs}" if version else f"{name} is not installed"
            facts.broken(problem, f'pip install "{requirement.name}{needs}"')


def devices(facts: Facts) -> None:
    """The CPU, accelerators, and whether torch's build fits them."""
    rows: dict[str, Any] = {"system": f"{platform.system()} {platform.machine()}", "cpu_cores": _cores()}
    facts.values["devices"] = rows
    try:
        import torch

        from hf_ext.demo.settings import cpu_has_bf16

        rows["torch_build"] = _torch_build(torch)
        rows["cpu_bf16"] = cpu_has_bf16()
        rows["accelerators"] = _accelerators(torch)
    except Exception as error:  # a broken torch fails in many ways; `imports` says more
        facts.broken(f"torch does not answer: {first_line(error)}", "reinstall torch, for this machine's driver")
        return
    has_driver = Path("/dev/nvidia0").exists()
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    if rows["accelerators"]:
        if len(rows["accelerators"]) > 1 and "RANK" not in os.environ:
            count = len(rows["accelerators"])
            facts.warning(
                f"one process sees {count} accelerators, and trainers refuse DataParallel",
                f"hf-ext train METHOD --num_processes {count} ..., or choose one with CUDA_VISIBLE_DEVICES=0",
            )
    elif hidden:
        facts.warning("CUDA_VISIBLE_DEVICES hides every GPU: training runs on the CPU", "unset CUDA_VISIBLE_DEVICES")
    elif rows["torch_build"].startswith("cuda"):
        problem = (
            "a GPU is there, but torch cannot use it" if has_driver else "there is no GPU: training runs on the CPU"
        )
        facts.warning(
            f"torch is built for CUDA and {problem}",
            "install a torch that fits the driver" if has_driver else "none needed; the CPU build is smaller",
        )
    elif has_driver:
        facts.warning("an NVIDIA GPU is there, but torch is a CPU build", "install torch's CUDA build")


def _cores() -> int:
    """Cores this process may use, which in a container are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _torch_build(torch: ModuleType) -> str:
    for kind in ("cuda", "hip", "xpu"):
        version = getattr(torch.version, kind, None)
        if version:
            return f"{kind} {version}"
    return "cpu"


def _accelerators(torch: ModuleType) -> list[dict[str, Any]]:
    if not torch.accelerator.is_available():
        return []
    kind = str(torch.accelerator.current_accelerator().type)
    rows: list[dict[str, Any]] = [{"kind": kind} for _ in range(torch.accelerator.device_count())]
    if kind == "cuda":
        for index, row in enumerate(rows):
            properties = torch.cuda.get_device_properties(index)
            row |= {"name": properties.name, "memory_gb": round(properties.total_memory / 1e9, 1)}
            # Ampere or newer, or ROCm; torch.cuda.is_bf16_supported (torch 2.13) also says yes where it is emulated.
            row["bf16"] = properties.major >= 8 or torch.version.hip is not None
    return rows


def launch(facts: Facts) -> None:
    """How many processes train together: really, and as the launcher promised."""
    facts.values["launch"] = {"processes": None}
    try:
        import torch
        from accelerate import PartialState

        from hf_ext.guards.world import check_world_size

        PartialState(cpu=not torch.accelerator.is_available())  # joins the processes as the recipes do
        facts.values["launch"]["processes"] = PartialState().num_processes
        check_world_size()
    except RuntimeError as error:
        facts.broken(first_line(error), "hf-ext train METHOD --num_processes N ... starts them the right way")
    except Exception as error:
        facts.broken(f"the number of processes cannot be told: {first_line(error)}", "see the findings on packages")


def extras(facts: Facts) -> None:
    """Which extras are complete, and the line that installs the others."""
    rows: dict[str, Any] = {}
    facts.values["extras"] = rows
    if installed_version("hf-ext") is None:
        return
    for name in metadata.metadata("hf-ext").get_all("Provides-Extra") or ():
        if name in ("all", "dev"):
            continue
        missing = [requirement.name for requirement in requirements(name) if not _fits(requirement)]
        rows[name] = {"missing": missing, "install": f'pip install "hf-ext[{name}]"' if missing else None}


def model_wheels(facts: Facts) -> None:
    """The wheels that carry the demo's models; they are no dependency of ours."""
    rows: dict[str, str | None] = {}
    facts.values["model_wheels"] = rows
    try:
        from hf_ext.demo.model import INSTALL_LINE
    except ImportError:  # a host library is missing: `imports` says so
        return
    names = [word.split("==")[0] for word in INSTALL_LINE.split() if "==" in word]
    rows |= {name: installed_version(name) for name in names}
    missing = [name for name, version in rows.items() if version is None]
    if missing:
        facts.warning(f"hf-ext demo has no model: {' and '.join(missing)} not installed", INSTALL_LINE)


def optional(facts: Facts) -> None:
    """Packages that single options ask for. None is needed: packing works without flash-attn, through sdpa."""
    facts.values["optional"] = {name: installed_version(name) for name in OPTIONAL}


def surroundings(facts: Facts) -> None:
    """Environment variables, the default accelerate config, and modules that stand in the way of others."""
    facts.values["environment"] = sorted(name for name in REPORTED_VARIABLES if _is_set(name))
    for name in facts.values["environment"]:
        facts.warning(f"{name} is set: {REPORTED_VARIABLES[name]}", f"unset {name} if that is not what you want")
    _accelerate_config(facts)
    _shadowing(facts)


def _is_set(name: str) -> bool:
    return os.environ.get(name, "").lower() in ("1", "true", "yes", "on")


def _accelerate_config(facts: Facts) -> None:
    """The config that a bare `accelerate launch` reads, written once by `accelerate config` and forgotten since."""
    from hf_ext.guards.yaml_file import read_yaml

    facts.values["accelerate_config"] = None
    try:
        from accelerate.commands.config.config_args import default_config_file
    except ImportError:
        return
    if not Path(default_config_file).is_file():
        return
    try:
        config = read_yaml(default_config_file)
        kind, processes = str(config.get("distributed_type", "NO")), int(config.get("num_processes", 1))
    except ImportError:  # PyYAML is missing, which has been said
        return
    except (ValueError, OSError, AttributeError, TypeError):
        facts.warning("the default accelerate config cannot be read", "accelerate config default")
        return
    facts.values["accelerate_config"] = {
        "distributed_type": kind,
        "num_processes": processes,
        "use_cpu": bool(config.get("use_cpu")),
    }
    num_accelerators = len(facts.values.get("devices", {}).get("accelerators", []))
    if kind == "MULTI_CPU":
        facts.warning(
            f"the default accelerate config is MULTI_CPU for {processes} processes, and accelerate launch starts one "
            "with it",
            "hf-ext train METHOD --num_processes N (torchrun), or accelerate config",
        )
    elif kind != "NO" and not num_accelerators:
        facts.warning(
            f"the default accelerate config is {kind}, and there is no accelerator", "accelerate config default"
        )
    elif config.get("use_cpu") and num_accelerators:
        facts.warning("the default accelerate config says use_cpu, and there is an accelerator", "accelerate config")


def _shadowing(facts: Facts) -> None:
    """Files of the current folder, which `python -m` searches first, under the name of a package we need."""
    for name in (*HOSTS, "hf_ext"):
        for place in (Path(f"{name}.py"), Path(name, "__init__.py")):
            if place.is_file() and not _is_ours(place, name):
                facts.warning(
                    f"{place.as_posix()} in the current folder is found in place of the package {name} by python -m "
                    "and accelerate launch",
                    "rename it, or work in another folder",
                )
    top_spec, our_spec = find_spec("trainers"), find_spec("hf_ext.trainers")
    if our_spec is None or our_spec.origin is None:
        facts.broken("hf_ext.trainers cannot be found", "pip install -e . (the default editable mode, not strict)")
    elif top_spec is not None and top_spec.origin is not None and not Path(top_spec.origin).samefile(our_spec.origin):
        facts.warning(
            "a top-level module `trainers` is importable; it is not ours", "import ours as `hf_ext.trainers`"
        )


def _is_ours(place: Path, name: str) -> bool:
    """Whether the file is the very package that is installed (an editable install, seen from its checkout)."""
    module = sys.modules.get(name)
    origin = getattr(module, "__file__", None)
    return name == "hf_ext" and origin is not None and place.samefile(origin)


def room(facts: Facts) -> None:
    """Memory and disk, in GB."""
    rows: dict[str, float | None] = {"disk_free_gb": round(shutil.disk_usage(Path.cwd()).free / 1e9, 1)}
    total, available = _memory()
    rows |= {"memory_gb": total, "memory_available_gb": available}
    facts.values["room"] = rows
    for resource, value in (("disk", rows["disk_free_gb"]), ("memory", available)):
        if value is not None and value < SMALL_ROOM:
            facts.warning(f"{value:.1f} GB of {resource} are free", "hf-ext demo needs about 2 GB of each")


def _memory() -> tuple[float | None, float | None]:
    """Total and available memory in GB; `None` where the system does not report them."""
    table = Path("/proc/meminfo")
    if not table.is_file():
        return None, None
    lines = dict(line.split(":", 1) for line in table.read_text(encoding="ascii").splitlines())
    total, available = (int(lines[name].split()[0]) * 1024 / 1e9 for name in ("MemTotal", "MemAvailable"))
    return round(total, 1), round(available, 1)


def imports(facts: Facts) -> None:
    """Whether the trainers can be imported: the one test that sees a private name of a host library moved."""
    facts.values["trainers_import"] = False
    try:
        for method in trained_methods():
            if installed_version(method.host) is not None:  # a library of an extra may be missing
                getattr(import_module("hf_ext"), method.trainer)
    except Exception as error:
        facts.broken(
            f"the trainers cannot be imported: {first_line(error)}",
            'pip install -U "hf-ext", and if that does not help report it with this output',
        )
        return
    facts.values["trainers_import"] = True
