"""
Plant small errors in `hf_ext/losses`, one at a time, and count how many the tests of the losses notice.

    python tools/mutate.py              every module; the figures go to tests/reliability/mutation.json
    python tools/mutate.py kl           one module; the others' figures stay
    python tools/mutate.py --list kl    its mutants, none run

A mutant is the module with one operator swapped, constant moved, condition turned round, call or keyword dropped, or
statement left out. Docstrings, annotations, imports and the words of error messages are left alone. Every mutant runs
`tests/losses/test_MODULE*.py` in a fork of one process that has imported torch and the hosts already: a second or two
instead of ten. Mutants that cannot be told from the original by any test are listed in `EQUIVALENT`, with the reason.
"""

from __future__ import annotations

import argparse
import ast
import copy
import hashlib
import importlib
import json
import os
import resource
import sys
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
LOSSES = ROOT / "hf_ext" / "losses"
RECORD = ROOT / "tests" / "reliability" / "mutation.json"
TESTS = ROOT / "tests" / "losses"
EXAMPLES = (20, 200)  # of each property test: few first, more for a mutant that the first round did not notice
LIMIT_S = 600  # of processor time: by the clock a busy machine would let every mutant fail

NEAR = "near = p * (torch.expm1(log_ratio.clamp(-1, 1)) - log_ratio).clamp(min=0)"
# (module, the line as written, the change) -> why no test can tell.
EQUIVALENT: dict[tuple[str, str, str], str] = {
    (
        "weighted_nll",
        "denominator = torch.as_tensor(denominator, device=total.device, dtype=total.dtype)",
        "torch.as_tensor(denominator, device=total.device, dtype=total.dtype)"
        " -> torch.as_tensor(denominator, dtype=total.dtype)",
    ): "a tensor without dimensions divides one on any device; the argument only says when it is copied there",
    ("kl", NEAR, "1 -> 2"): "the branch is read only where |log-ratio| < 1: a wider clamp changes nothing there",
    (
        "kl",
        "return torch.where(allowed & (log_ratio.abs() < 1), near, far).sum(dim=-1)",
        "log_ratio.abs() < 1 -> log_ratio.abs() <= 1",
    ): "both branches are the same number where |log-ratio| is 1",
    ("label_noise", "Channel = Tensor | tuple[float, float]", "Channel = Tensor | tuple[float, float] -> nothing"): (
        "a name that only annotations use, which are not evaluated"
    ),
    ("label_noise", "return is_labelled, torch.where(is_labelled, labels, 0)", "0 -> 1"): (
        "any class does where no label counts"
    ),
}

COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE), ast.LtE: (ast.Lt, ast.Gt), ast.Gt: (ast.GtE, ast.LtE), ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,), ast.NotEq: (ast.Eq,), ast.Is: (ast.IsNot,), ast.IsNot: (ast.Is,), ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}  # fmt: skip
OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Pow: ast.Mult, ast.FloorDiv: ast.Div,
    ast.Mod: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.MatMult: ast.Add,
}  # fmt: skip


class Mutant(NamedTuple):
    """A module with one error: where, what, and the whole tree."""

    line: int
    text: str
    change: str
    tree: ast.Module


# --- mutants ---------------------------------------------------------------------------------------------------------


def replacements(node: ast.AST) -> Iterator[ast.AST | None]:
    """What may stand in place of `node`; `None` leaves a statement out."""
    match node:
        case ast.Compare():
            for i, operator in enumerate(node.ops):
                for other in COMPARISONS[type(operator)]:
                    yield _with(node, ops=[*node.ops[:i], other(), *node.ops[i + 1 :]])
        case ast.BinOp() if type(node.op) in OPERATORS:
            yield _with(node, op=OPERATORS[type(node.op)]())
        case ast.BoolOp():
            yield _with(node, op=ast.Or() if isinstance(node.op, ast.And) else ast.And())
        case ast.UnaryOp():
            yield node.operand
        case ast.Constant():
            yield from _other_constants(node)
        case ast.Call():
            if isinstance(node.func, ast.Attribute) and not _is_module(node.func.value):
                yield node.func.value  # values.clamp(min=0) -> values
            for i in range(len(node.keywords)):
                yield _with(node, keywords=node.keywords[:i] + node.keywords[i + 1 :])
        case ast.IfExp():
            yield node.body
            yield node.orelse
        case ast.If() | ast.While():
            yield _with(node, test=ast.UnaryOp(ast.Not(), node.test))
        case ast.Return() if node.value is not None:
            yield _with(node, value=ast.Constant(None))
        case ast.Assign() | ast.AugAssign() | ast.Raise() | ast.Expr():
            yield None


def _with(node: ast.AST, **fields: Any) -> ast.AST:
    changed = copy.copy(node)
    for name, value in fields.items():
        setattr(changed, name, value)
    return changed


def _other_constants(node: ast.Constant) -> Iterator[ast.AST]:
    value = node.value
    if isinstance(value, bool):
        yield ast.Constant(not value)
    elif isinstance(value, int | float):
        yield ast.Constant(value + 1)
        if value not in (0, 1):
            yield ast.Constant(-value)
    elif isinstance(value, str):
        yield ast.Constant(f"{value}_other")
    elif value is None:
        yield ast.Constant(0)


def _is_module(node: ast.expr) -> bool:
    return ast.unparse(node) in {"torch", "F", "math", "difflib", "torch.nn.functional"}


def left_alone(node: ast.AST, parent: ast.AST) -> bool:
    """Imports, annotations, docstrings, `__all__`, decorators, the words of an error: nothing in them is changed."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        return True
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return True
    if isinstance(parent, ast.arg | ast.AnnAssign) and node is parent.annotation:
        return True
    if isinstance(parent, ast.FunctionDef | ast.ClassDef):
        return node in parent.decorator_list or node is getattr(parent, "returns", None)
    if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
        return True
    return isinstance(parent, ast.Raise)


def mutants(source: str) -> Iterator[Mutant]:
    """Every mutant of a module, top to bottom. Its tree is the module's own, restored before the next one comes."""
    lines = source.splitlines()
    tree = ast.parse(source)
    for parent, field, index, node in _places(tree):
        for other in replacements(node):
            before, after = _words(node), "nothing" if other is None else _words(other)
            if isinstance(node, ast.Compare | ast.BinOp) and before == after:
                continue
            if other is None:
                other = ast.Pass()
            old = getattr(parent, field)
            _put(parent, field, index, other)
            line = node.lineno  # type: ignore[attr-defined]
            yield Mutant(line, lines[line - 1].strip(), f"{before} -> {after}", tree)
            setattr(parent, field, old)
            _put(parent, field, index, node)


def kept_mutants(source: str) -> list[Mutant]:
    """All of them, each with a tree of its own that can be compiled."""
    return [mutant._replace(tree=ast.fix_missing_locations(copy.deepcopy(mutant.tree))) for mutant in mutants(source)]


def _places(parent: ast.AST) -> Iterator[tuple[ast.AST, str, int | None, ast.AST]]:
    for field, value in ast.iter_fields(parent):
        for index, node in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if not isinstance(node, ast.AST) or left_alone(node, parent):
                if isinstance(node, ast.Raise):
                    yield parent, field, index, node
                continue
            if hasattr(node, "lineno"):
                yield parent, field, index, node
            yield from _places(node)


def _put(parent: ast.AST, field: str, index: int | None, node: ast.AST) -> None:
    if index is None:
        setattr(parent, field, node)
    else:
        getattr(parent, field)[index] = node


def _words(node: ast.AST) -> str:
    return ast.unparse(ast.fix_missing_locations(copy.deepcopy(node))).split("\n")[0]


def fingerprint(source: str) -> str:
    """SHA-256 of what runs: docstrings and comments do not count."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if (
            isinstance(body, list)
            and body
            and isinstance(body[0], ast.Expr)
            and isinstance(body[0].value, ast.Constant)
        ):
            body[0].value = ast.Constant("")
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


# --- running them ----------------------------------------------------------------------------------------------------


def modules() -> list[str]:
    """Names of the modules of losses."""
    return sorted(path.stem for path in LOSSES.glob("*.py") if path.stem != "__init__")


def prepare() -> None:
    """Import what the tests import, so that a fork starts with it."""
    sys.path.insert(0, str(ROOT))
    os.chdir(ROOT)
    os.environ["HF_EXT_EXAMPLES"] = str(EXAMPLES[0])
    import tests.conftest  # noqa: F401 - one thread, offline: before torch

    for name in ("torch", "scipy.stats", "scipy.optimize", "hypothesis.extra.numpy", "pytest", "hf_ext.losses"):
        importlib.import_module(name)
    from hypothesis import HealthCheck, Phase, settings
    from trl import DPOTrainer, SFTTrainer  # noqa: F401 - lazy modules: only the name imports them

    # A failure need not be made small, and one mutant's must not be tried on the next.
    settings.register_profile(
        "mutation", database=None, phases=[Phase.explicit, Phase.generate], suppress_health_check=list(HealthCheck)
    )
    settings.load_profile("mutation")


def noticed(module: str, trees: list[ast.Module | None], examples: int, jobs: int) -> list[bool]:
    """Whether the tests fail, or run past the limit, on each tree of the module (`None`: as it is)."""
    waiting, running = list(enumerate(trees)), {}
    failed = [False] * len(trees)
    bar = tqdm(total=len(trees), desc=f"{module}, {examples} examples", disable=len(trees) == 1)
    while waiting or running:
        while waiting and len(running) < jobs:
            index, tree = waiting.pop(0)
            child = os.fork()
            if child == 0:
                os._exit(_run_tests(module, tree, examples))
            running[child] = index
        for child, index in list(running.items()):
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                failed[index] = os.waitstatus_to_exitcode(status) != 0
                del running[child]
                bar.update()
        time.sleep(0.02)
    bar.close()
    return failed


def _run_tests(module: str, tree: ast.Module | None, examples: int) -> int:
    import pytest

    resource.setrlimit(resource.RLIMIT_CPU, (LIMIT_S, LIMIT_S))  # whose signal, too, counts as a failure
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    os.environ["HF_EXT_EXAMPLES"] = str(examples)
    name = f"hf_ext.losses.{module}"
    if tree is not None:
        changed = types.ModuleType(name)
        changed.__file__ = str(LOSSES / f"{module}.py")
        sys.modules[name] = changed
        try:
            exec(compile(tree, changed.__file__, "exec"), changed.__dict__)  # noqa: S102 - the point of this script
        except Exception:
            return 1
        setattr(sys.modules["hf_ext.losses"], module, changed)
    files = [str(path) for path in sorted(TESTS.glob(f"test_{module}*.py"))]
    quiet = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--hypothesis-seed", "0", "--timeout", "0"]
    return int(pytest.main([*quiet, *files]))


def measure(module: str, jobs: int) -> dict[str, Any]:
    """Run every mutant of a module."""
    source = (LOSSES / f"{module}.py").read_text(encoding="utf-8")
    if noticed(module, [None], EXAMPLES[-1], 1) == [True]:
        raise SystemExit(f"The tests of {module} fail on the module as it is; there is nothing to measure.")
    every = kept_mutants(source)
    equivalent = [m for m in every if (module, m.text, m.change) in EQUIVALENT]
    real = [m for m in every if (module, m.text, m.change) not in EQUIVALENT]
    survivors = real
    for examples in EXAMPLES:
        dead = noticed(module, [mutant.tree for mutant in survivors], examples, jobs)
        survivors = [mutant for mutant, killed in zip(survivors, dead, strict=True) if not killed]
    return {
        "source": fingerprint(source),
        "mutants": len(real),
        "killed": len(real) - len(survivors),
        "survivors": [{"line": m.line, "text": m.text, "change": m.change} for m in survivors],
        "equivalent": [
            {"text": m.text, "change": m.change, "reason": EQUIVALENT[module, m.text, m.change]} for m in equivalent
        ],
    }


def main() -> None:
    """Measure, print a table, keep the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").strip().splitlines()[0])
    parser.add_argument("modules", nargs="*", help="names of modules in hf_ext/losses; all by default")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="mutants at a time")
    parser.add_argument("--list", action="store_true", help="print the mutants and run none")
    parser.add_argument("--output", type=Path, default=RECORD, help="file of the figures")
    options = parser.parse_args()
    chosen = options.modules or modules()
    if unknown := set(chosen) - set(modules()):
        parser.error(f"no module of hf_ext/losses: {', '.join(sorted(unknown))}; there are {', '.join(modules())}")
    if options.list:
        for module in chosen:
            for mutant in mutants((LOSSES / f"{module}.py").read_text(encoding="utf-8")):
                print(f"{module}.py:{mutant.line}: {mutant.change}")
        return
    prepare()
    record = json.loads(options.output.read_text(encoding="utf-8")) if options.output.exists() else {}
    for module in chosen:
        begun = time.monotonic()
        record[module] = entry = measure(module, options.jobs)
        share = entry["killed"] / entry["mutants"]
        print(f"{module}.py: {entry['killed']} of {entry['mutants']} mutants noticed ({share:.1%}),", end=" ")
        print(f"{len(entry['equivalent'])} equivalent left out, {time.monotonic() - begun:.0f} s", flush=True)
        for survivor in entry["survivors"]:
            print(f"  line {survivor['line']}: {survivor['change']}", flush=True)
        options.output.write_text(json.dumps(dict(sorted(record.items())), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
