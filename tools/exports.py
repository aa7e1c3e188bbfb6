"""
Write the public names of the packages that load them lazily as `__init__.pyi`, for type checkers and editors.

    python tools/exports.py            # write the files
    python tools/exports.py --check    # exit status 1 where one is not what its package exports
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import hf_ext
from hf_ext.guards.lazy import homes_of
from hf_ext.method import Method, method_exports

ROOT = Path(__file__).resolve().parents[1]
HEADER = "# Written by tools/exports.py from EXPORTS in __init__.py and the records of methods.\n\n"


def stub_of(package: ModuleType, extra_homes: dict[str, str]) -> str:
    """What the `.pyi` beside a package's `__init__.py` should hold."""
    homes = homes_of(package.EXPORTS) | extra_homes
    lines = [f"from {module} import {name} as {name}" for name, module in homes.items()]
    records = {name: value for name, value in vars(package).items() if isinstance(value, Method)}
    types = dict.fromkeys(records, "Method") | ({"METHODS": "tuple[Method, ...]"} if len(records) > 1 else {})
    lines += ["from hf_ext.method import Method"] if records else []
    if package is hf_ext:
        types = {"__version__": "str"}
    lines.sort(key=_import_order)
    return HEADER + "\n".join([*lines, "", *(f"{name}: {kind}" for name, kind in types.items())]).rstrip() + "\n"


def _import_order(line: str) -> tuple[str, int, str]:
    """As ruff sorts imports: by module; constants, then classes, then functions."""
    _, module, _, name, *_ = line.split()
    return module, 0 if name.isupper() else 1 if name[0].isupper() else 2, name


def stubs() -> dict[Path, str]:
    """Every `.pyi` of the house by its place, with what it should hold."""
    packages = {name: import_module(name) for name in method_exports()}
    homes = {name: package.__name__ for package in packages.values() for name in method_exports()[package.__name__]}
    defined_in = {name: homes_of(packages[package].EXPORTS)[name] for name, package in homes.items()}
    texts = {ROOT / "hf_ext" / "__init__.pyi": stub_of(hf_ext, defined_in)}
    for name, package in packages.items():
        texts[ROOT / "trainers" / name.rpartition(".")[2] / "__init__.pyi"] = stub_of(package, {})
    return texts


def main(arguments: list[str]) -> int:
    """Write the files, or with `--check` name those that are not current."""
    outdated = {
        path: text for path, text in stubs().items() if not path.is_file() or path.read_text(encoding="utf-8") != text
    }
    for path, text in outdated.items():
        print(path.relative_to(ROOT))
        if "--check" not in arguments:
            path.write_text(text, encoding="utf-8")
    return 1 if outdated and "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
