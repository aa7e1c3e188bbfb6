"""`hf-ext doctor`: what a bug report needs, and what is wrong already. It changes nothing and asks no network."""

from __future__ import annotations

import argparse
import json
import os
from typing import Any


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the parser of `hf-ext doctor`."""
    parser = subparsers.add_parser(
        "doctor",
        help="look at versions, devices, launch and extras, and say what is wrong",
        description="Looks at versions, devices, launch, extras, room and known bad combinations. The output names "
        "no user, machine or folder: paste it into a bug report. Exit status 1 where something is broken. To see how "
        "many processes a launch really joins, put its launcher in front: torchrun --nproc_per_node 2 -m hf_ext.cli "
        "doctor.",
    )
    parser.add_argument("--json", action="store_true", help="the same facts as one JSON object")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """
    Collect the facts and print them; in a launch of several processes the first one prints.

    Returns:
        `int`: 1 where something is broken, else 0.
    """
    from hf_ext.cli.doctor_facts import collect

    facts = collect()
    # every process joined the look at the launch; one report is enough
    if os.environ.get("RANK", "0") == "0":
        print(json.dumps(facts.to_dict(), indent=2) if options.json else render(facts.to_dict()))
    _leave_the_group()
    return 0 if facts.ok else 1


def _leave_the_group() -> None:
    """Close a process group that the look at the launch opened; without one there is nothing to do."""
    if "RANK" not in os.environ:
        return
    from accelerate import PartialState

    if PartialState().num_processes > 1:
        PartialState().wait_for_everyone()
        PartialState().destroy_process_group()


def render(facts: dict[str, Any]) -> str:
    """The facts as aligned text, findings last."""
    rows = [("hf-ext", facts["hf_ext"] or "not installed"), *_versions(facts["versions"]), *_machine(facts)]
    rows.append(("launch", _processes(facts["launch"]["processes"])))
    config = facts["accelerate_config"]
    if config is not None:
        rows.append(("accelerate config", f"{config['distributed_type']}, {config['num_processes']} processes"))
    rows += [(f"[{name}]", _extra(extra)) for name, extra in facts["extras"].items()]
    rows += [(name, version or "missing") for name, version in facts["model_wheels"].items()]
    rows += [(name, version or "not there (not needed)") for name, version in facts["optional"].items()]
    rows.append(("trainers import", "yes" if facts["trainers_import"] else "NO"))
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:<{width}}  {value}" for name, value in rows]
    for finding in sorted(facts["findings"], key=lambda finding: finding["level"]):
        lines += ["", f"{finding['level']}: {finding['problem']}", f"  -> {finding['remedy']}"]
    return "\n".join([*lines, "", _verdict(facts["findings"])])


def _processes(count: int | None) -> str:
    if count is None:
        return "not known"
    return f"{count} process{'es' if count > 1 else ''}"


def _versions(rows: dict[str, Any]) -> list[tuple[str, str]]:
    wide = max(len(row["installed"] or "missing") for row in rows.values())
    return [
        (name, f"{row['installed'] or 'missing':<{wide}}  {'' if row['ok'] else 'NOT '}{row['needs']}")
        for name, row in rows.items()
    ]


def _machine(facts: dict[str, Any]) -> list[tuple[str, str]]:
    devices, room = facts["devices"], facts["room"]
    bf16 = {True: ", bf16", False: ", no bf16", None: ""}[devices.get("cpu_bf16")]
    cores = devices["cpu_cores"]
    rows = [("CPU", f"{devices['system']}, {cores} core{'s' if cores > 1 else ''}{bf16}")]
    rows.append(("torch build", devices.get("torch_build", "not known")))
    for accelerator in devices.get("accelerators", []):
        rows.append(("accelerator", ", ".join(_accelerator_words(accelerator))))
    if not devices.get("accelerators"):
        rows.append(("accelerator", "none"))
    if room["memory_gb"] is not None:
        rows.append(("memory", f"{room['memory_available_gb']:.1f} of {room['memory_gb']:.1f} GB available"))
    return [*rows, ("disk", f"{room['disk_free_gb']:.1f} GB free here")]


def _accelerator_words(accelerator: dict[str, Any]) -> list[str]:
    words = [accelerator["kind"]]
    if "name" in accelerator:
        words += [accelerator["name"], f"{accelerator['memory_gb']:.0f} GB"]
        words.append("bf16" if accelerator["bf16"] else "no bf16: train with --bf16 false --fp16 true")
    return words


def _extra(extra: dict[str, Any]) -> str:
    if not extra["missing"]:
        return "yes"
    return f"without {', '.join(extra['missing'])}: {extra['install']}"


def _verdict(findings: list[dict[str, str]]) -> str:
    broken = sum(finding["level"] == "broken" for finding in findings)
    warnings = len(findings) - broken
    heads = "nothing is broken" if not broken else f"{broken} thing{'s are' if broken > 1 else ' is'} broken"
    return f"{heads}, {warnings} warning{'' if warnings == 1 else 's'}"
