"""Run a property on generated inputs: few and fixed in `make test`, many and fresh in `make test-slow`."""

from __future__ import annotations

import contextlib
import io
import os
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

EXAMPLES = pytest.mark.parametrize("examples", [200, pytest.param(5_000, marks=pytest.mark.slow)])

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(10**30), 10**30)
    | st.floats()
    | st.text(max_size=12)
    | st.sampled_from(["", "no", "1e-5", "-1", "nan", "/", ".", "a\0b", "{", "{}", "[1]", "\ud800", "x" * 300])
)


def trees(scalars: Any = SCALARS, leaves: int = 6) -> Any:
    """Nested lists and dictionaries."""
    keys = st.text(max_size=8)
    return st.recursive(
        scalars,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
        max_leaves=leaves,
    )


def fuzz(examples: int, strategy: Any, check: Callable[[Any], None]) -> None:
    """Call `check` with so many inputs; a small number is drawn the same way on every run of the same tests."""

    @settings(
        max_examples=examples,
        derandomize=examples <= 200,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def run(value: Any) -> None:
        with quiet():
            check(value)

    run()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Inside, nothing is printed, and the environment is as before afterwards. A deprecation is no finding here."""
    before = dict(os.environ)
    try:
        with (
            warnings.catch_warnings(action="ignore"),
            contextlib.redirect_stderr(io.StringIO()),
            contextlib.redirect_stdout(io.StringIO()),
        ):
            yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def status_of(command: Callable[[], int | None]) -> int:
    """Exit status, also where argparse ends the process. Any other exception passes: it is the finding."""
    try:
        return command() or 0
    except SystemExit as stop:
        return int(stop.code or 0)
