"""What every benchmark shares: arguments, resumable pieces, provenance, the result file and the headline line."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from measured import HERE, RESULTS, changed_files, code_hash

from hf_ext.guards.disk import write_whole
from hf_ext.guards.runs import RunFolder

LIBRARIES = ("torch", "transformers", "trl", "datasets", "accelerate", "peft", "hf-ext")


class BenchmarkParser(argparse.ArgumentParser):
    """
    Options of one benchmark. They also hold `code`, the hash of the measured code, and `commit`, both of the start.

    Finished pieces lie in a folder of that hash, so that none of other code is mixed in. A run whose result would be
    committed is refused before its work where the code at hand is in no commit.
    """

    def __init__(self, name: str, **options: Any) -> None:
        super().__init__(**options)
        self.name = name

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """As in the parent, `work`, `code` and `commit` filled in."""
        options, others = super().parse_known_args(args, namespace)
        options.code = code_hash(self.name)
        options.commit = _commit()
        if options.work.name != options.code:  # the child of a run is given the folder itself
            options.work /= options.code
        if not options.quick and not getattr(options, "role", None) and _is_committed(options.output):
            fault = _changed_tree()
            if fault:
                self.error(f"{fault} Or give --output a file outside benchmarks/results.")
        return options, others


def _is_committed(output: Path) -> bool:
    return RESULTS in output.resolve().parents


def _commit() -> str:
    head = ["git", "-C", str(HERE), "rev-parse", "HEAD"]
    commit = subprocess.run(head, capture_output=True, text=True, check=False).stdout.strip()
    return commit + ("+changes" if changed_files() else "")


def _changed_tree() -> str | None:
    """Why a result of this tree could not be traced to its code."""
    changed = changed_files()
    if changed is None:
        return "git does not tell which commit this is, so the result could not be traced to its code: run in a clone."
    if not changed:
        return None
    more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
    names = ", ".join(changed[:5])
    return (
        f"The tree differs from its commit in {names}{more}, so the result could not be traced to its code: commit or "
        "stash them."
    )


def parser(description: str, name: str) -> BenchmarkParser:
    """Options every benchmark has: `--quick`, `--work` and `--output`."""
    form = argparse.RawDescriptionHelpFormatter
    options = BenchmarkParser(name, description=description, formatter_class=form)
    options.add_argument("--quick", action="store_true", help="Under a minute on a tiny model; writes no result file.")
    work = HERE / ".work" / name
    options.add_argument("--work", type=Path, default=work, help="Folder of finished pieces, one for each code.")
    options.add_argument("--output", type=Path, default=RESULTS / f"{name}.json", help="Result file.")
    return options


def data_folder() -> Path:
    """The folder of real data, from `HF_EXT_DATA`."""
    folder = os.environ.get("HF_EXT_DATA")
    if not folder or not Path(folder).is_dir():
        sys.exit("Set HF_EXT_DATA to the folder with the real data (gsm8k/, wikitext2/, ...).")
    return Path(folder)


def has_bf16() -> bool:
    """Whether this machine multiplies bfloat16 matrices in hardware; emulated, a step takes minutes."""
    import torch

    from hf_ext.demo.settings import cpu_has_bf16

    return torch.cuda.is_available() or cpu_has_bf16()


def piece(work: Path, key: str, settings: dict[str, Any], compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """
    The piece named `key`, computed unless a finished one with the same settings lies in `work`, which the options made
    a folder of the measured code's hash.

    A killed benchmark continues with the first piece that is missing.
    """
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
    pieces = RunFolder(work)
    step = f"{key}-{digest}"
    result = pieces.results(step)
    if result is None:
        started = time.perf_counter()
        result = compute()
        result["seconds"] = round(time.perf_counter() - started, 1)
        pieces.mark_done(step, result)
    return result


def follow_parent() -> None:
    """Let this worker end when the benchmark is killed: it would go on with its piece otherwise."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def provenance(options: argparse.Namespace) -> dict[str, Any]:
    """Versions, machine kind, command, commit and code; no names and no paths."""
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "versions": versions,
        "python": platform.python_version(),
        "machine": {"system": platform.system(), "arch": platform.machine(), "cores": os.cpu_count(), "gpu": _gpu()},
        "command": "python " + " ".join(["benchmarks/" + Path(sys.argv[0]).name, *sys.argv[1:]]),
        "commit": options.commit,
        "code": options.code,
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def _gpu() -> str | None:
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None


def finish(options: argparse.Namespace, result: dict[str, Any], headline: dict[str, Any]) -> Path | None:
    """
    Write the result file (not in a quick run) and print the headline as the last line.

    Returns the file written. Where the measured code changed during the work the result goes to `work` instead and the
    run fails: hours are not lost, and nothing is committed that no commit explains.
    """
    if options.quick:
        print(json.dumps(headline))
        return None
    output = options.output
    changed = _is_committed(output) and code_hash(headline["benchmark"]) != options.code
    if changed:
        output = options.work / output.name
    text = json.dumps({"headline": headline, **provenance(options), **result}, indent=1)
    write_whole(output, text + "\n")
    if changed:
        sys.exit(f"The measured code changed during the run. The result is in {output}.")
    print(json.dumps(headline))
    return output
