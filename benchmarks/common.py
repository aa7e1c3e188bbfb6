"""What every benchmark shares: arguments, resumable pieces, provenance, the result file and the headline line."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
LIBRARIES = ("torch", "transformers", "trl", "datasets", "accelerate", "peft", "hf-ext")


def parser(description: str, name: str) -> argparse.ArgumentParser:
    """Options every benchmark has: `--quick`, `--work` and `--output`."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--quick", action="store_true", help="Under a minute on a tiny model; writes no result file.")
    options.add_argument("--work", type=Path, default=HERE / ".work" / name, help="Folder of finished pieces.")
    options.add_argument("--output", type=Path, default=RESULTS / f"{name}.json", help="Result file.")
    return options


def data_folder() -> Path:
    """The folder of real data, from `HF_EXT_DATA`."""
    folder = os.environ.get("HF_EXT_DATA")
    if not folder or not Path(folder).is_dir():
        sys.exit("Set HF_EXT_DATA to the folder with the real data (gsm8k/, wikitext2/, ...).")
    return Path(folder)


def piece(work: Path, key: str, settings: dict[str, Any], compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """
    The piece named `key`, computed unless a finished one with the same settings lies in `work`.

    A killed benchmark continues with the first piece that is missing.
    """
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
    path = work / f"{key}-{digest}.json"
    if path.exists():
        return json.loads(path.read_text(encoding="utf-8"))
    started = time.perf_counter()
    result = compute() | {"seconds": None}
    result["seconds"] = round(time.perf_counter() - started, 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(result), encoding="utf-8")
    temporary.replace(path)
    return result


def provenance() -> dict[str, Any]:
    """Versions, machine kind, command and commit; no names and no paths."""
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    git = ["git", "-C", str(HERE)]
    commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    status = [*git, "status", "--porcelain", "--", ":/", ":(exclude,top)benchmarks/results"]  # not code
    changed = subprocess.run(status, capture_output=True, text=True, check=False).stdout
    return {
        "versions": versions,
        "python": platform.python_version(),
        "machine": {"system": platform.system(), "arch": platform.machine(), "cores": os.cpu_count(), "gpu": _gpu()},
        "command": "python " + " ".join(["benchmarks/" + Path(sys.argv[0]).name, *sys.argv[1:]]),
        "commit": commit + ("+changes" if changed.strip() else ""),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def _gpu() -> str | None:
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None


def finish(options: argparse.Namespace, result: dict[str, Any], headline: dict[str, Any]) -> None:
    """Write the result file (not in a quick run) and print the headline as the last line."""
    if not options.quick:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"headline": headline, **provenance(), **result}, indent=1)
        options.output.write_text(text + "\n", encoding="utf-8")
    print(json.dumps(headline))
