"""
Write the public names of the packages that load them lazily as `__init__.pyi`, for type checkers and editors.

    python tools/exports.py            # write the files
    python tools/exports.py --check    # exit status 1 where one is not what its table says

A table is the `EXPORTS` of an `__init__.py`, module to names; nothing is imported for it.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("hf_ext", "trainers")
HEADER = "# Written by tools/exports.py from EXPORTS in __init__.py.\n\n"


def exports_of(source: str) -> dict[str, tuple[str, ...]] | None:
    """The table `EXPORTS` in the source of a package, or `None` where it has none."""
    for statement in ast.parse(source).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "EXPORTS":
            return ast.literal_eval(statement.value)
    return None


def other_names(source: str) -> dict[str, str]:
    """Names that the package itself defines, and their types: records of methods, and the version."""
    types: dict[str, str] = {}
    for statement in ast.parse(source).body:
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            name = statement.targets[0].id
            if name != "EXPORTS" and name.isupper():
                types[name] = "tuple[Method, ...]" if isinstance(statement.value, ast.Tuple) else "Method"
        elif isinstance(statement, ast.FunctionDef) and "__version__" in ast.unparse(statement):
            types["__version__"] = "str"
    return types


def stub_of(source: str) -> str | None:
    """What the `.pyi` beside a package's source should hold, or `None` where it loads nothing lazily."""
    exports = exports_of(source)
    if exports is None:
        return None
    types = other_names(source)
    lines = [f"from {module} import {name} as {name}" for module, names in exports.items() for name in names]
    if any("Method" in kind for kind in types.values()):
        lines.append("from hf_ext.method import Method")
    lines = sorted(lines, key=_import_order)
    lines += ["", *(f"{name}: {kind}" for name, kind in types.items())] if types else []
    return HEADER + "\n".join(lines) + "\n"


def _import_order(line: str) -> tuple[str, int, str]:
    """As ruff sorts imports: by module; constants, then classes, then functions."""
    _, module, _, name, *_ = line.split()
    return module, 0 if name.isupper() else 1 if name[0].isupper() else 2, name


def stubs() -> dict[Path, str]:
    """Every `.pyi` of the house by its place, with what it should hold."""
    packages = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("__init__.py"))
    texts = {path.with_suffix(".pyi"): stub_of(path.read_text(encoding="utf-8")) for path in packages}
    return {path: text for path, text in texts.items() if text is not None}


def main(arguments: list[str]) -> int:
    """Write the files, or with `--check` name those that are not current."""
    outdated = [
        path for path, text in stubs().items() if not path.is_file() or path.read_text(encoding="utf-8") != text
    ]
    for path in outdated:
        print(path.relative_to(ROOT))
        if "--check" not in arguments:
            path.write_text(stubs()[path], encoding="utf-8")
    return 1 if outdated and "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
