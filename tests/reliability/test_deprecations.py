"""The plugin of `make test-lowest` and `make test-newest` sees what host libraries announce, in either way."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LOGS = "import logging; logging.getLogger('trl.x').warning('{}')"
WARNS = """\
import warnings
    code = compile("warnings.warn('old', {})", "x.py", "exec")
    exec(code, {{"warnings": warnings, "__name__": "{}"}})"""

# Name of a test -> what happens in it, and whether it passes under the plugin.
HAPPENS = {
    "log": (LOGS.format("`tokenizer` is deprecated, use `processing_class`"), False),
    "other_log": (LOGS.format("no chat template has been defined"), True),
    "future": (WARNS.format("FutureWarning", "transformers.modeling"), False),
    "deprecation": (WARNS.format("DeprecationWarning", "trl.config"), False),
    "other_warning": (WARNS.format("UserWarning", "trl.config"), True),
    "other_library": (WARNS.format("FutureWarning", "numpy.core"), True),
    "similar_name": (WARNS.format("FutureWarning", "transformers_of_mine"), True),
}


def test_an_announcement_of_a_host_fails_the_test_it_comes_from(tmp_path: Path) -> None:
    file = tmp_path / "test_one.py"
    file.write_text("\n".join(f"def test_{name}():\n    {body}\n" for name, (body, _) in HAPPENS.items()))
    command = [sys.executable, "-m", "pytest", "-rA", "-p", "tests.reliability.deprecations", "-p", "no:cacheprovider"]
    command += ["-c", str(ROOT / "pyproject.toml"), "--rootdir", str(tmp_path), str(file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    outcomes: dict[str, set[str]] = {}
    for outcome, name in re.findall(r"^(PASSED|FAILED|ERROR) \S+::test_(\w+)", done.stdout, re.MULTILINE):
        outcomes.setdefault(name, set()).add(outcome)  # a log line fails the fixture's end, beside the test
    assert {name: found == {"PASSED"} for name, found in outcomes.items()} == {
        name: passes for name, (_, passes) in HAPPENS.items()
    }, done.stdout
