"""
Print the oldest versions that pyproject.toml accepts, as `name==version` lines: the constraints of `make test-lowest`.

    python tools/floors.py              every requirement of ours and of the extras `peft`, `retrieval` and `test`
    python tools/floors.py --without torch

pip then installs each floor exactly or says which requirement does not go together with it: a floor that cannot be
installed, or with which the contract tests fail, is too low.
"""

from __future__ import annotations

import argparse
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EXTRAS = ("peft", "retrieval", "test")
# Only `name[extras]>=version,<bound` and bare names occur in pyproject.toml; the environment has no packaging yet.
REQUIREMENT = re.compile(r"(?P<name>[A-Za-z0-9._-]+)(\[[^]]*\])?\s*(>=\s*(?P<floor>[^,;\s]+))?")


def floor_lines(requirements: Iterable[str], without: Iterable[str] = ()) -> list[str]:
    """
    Return `name==floor` for every requirement that has one, sorted by name.

    Args:
        requirements (`Iterable[str]`):
            As in pyproject.toml.
        without (`Iterable[str]`, *optional*):
            Names to leave free.

    Returns:
        `list[str]`: lines of a constraints file.

    Raises:
        ValueError: a requirement that cannot be read, or two floors of one name.
    """
    floors: dict[str, str] = {}
    for text in requirements:
        found = REQUIREMENT.match(text)
        if found is None:
            raise ValueError(f"cannot read the requirement {text!r}")
        name, floor = re.sub(r"[-_.]+", "-", found["name"]).lower(), found["floor"]
        if floor is None or name in without:
            continue
        if floors.setdefault(name, floor) != floor:
            raise ValueError(f"{name} has two floors, {floors[name]} and {floor}")
    return [f"{name}=={floor}" for name, floor in sorted(floors.items())]


def main() -> None:
    """Print the lines of the checkout's pyproject.toml."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").strip().splitlines()[0])
    parser.add_argument("--without", action="append", default=[], metavar="NAME", help="leave this package free")
    without = parser.parse_args().without
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [text for extra in EXTRAS for text in project["optional-dependencies"][extra]]
    print("\n".join(floor_lines([*project["dependencies"], *extras], without)))


if __name__ == "__main__":
    main()
