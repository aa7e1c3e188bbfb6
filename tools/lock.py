"""Write constraints.txt: the exact set of packages installed beside this interpreter, as `name==version`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib.metadata import distributions
from pathlib import Path

# Ours; the installers; and what the CUDA build of torch brings, which must not bind a machine without one.
LEFT_OUT = re.compile(r"hf-ext|pip|wheel|nvidia-.*|cuda-.*|triton")


def constraint_lines(packages: Iterable[tuple[str, str]]) -> list[str]:
    """
    Return sorted `name==version` lines.

    A local version (`2.13.0+cpu`) is cut to the public one, which accepts the CPU and the CUDA builds alike.

    Args:
        packages (`Iterable[tuple[str, str]]`):
            Names and versions as their metadata has them.

    Returns:
        `list[str]`: one line a package, names normalised.
    """
    normal = {re.sub(r"[-_.]+", "-", name).lower(): version.split("+")[0] for name, version in packages}
    return [f"{name}=={version}" for name, version in sorted(normal.items()) if not LEFT_OUT.fullmatch(name)]


def main() -> None:
    """Write the file beside pyproject.toml."""
    lines = constraint_lines((found.metadata["Name"], found.version) for found in distributions())
    path = Path(__file__).resolve().parent.parent / "constraints.txt"
    header = "# The exact set the tests ran with, written by `make lock`.\n"
    path.write_text(header + "\n".join(lines) + "\n", encoding="utf-8")
    print(f"{path}: {len(lines)} packages")


if __name__ == "__main__":
    main()
