"""Compiled functions where numba has no place for its cache."""

from __future__ import annotations

import pytest

from hf_ext.guards.compiling import compiled


def test_a_function_is_compiled_where_no_cache_can_be_written(monkeypatch):
    numba = pytest.importorskip("numba")
    caching = pytest.importorskip("numba.core.caching")
    monkeypatch.setattr(caching.CompileResultCacheImpl, "_locator_classes", [])

    def doubled(number):
        return 2 * number

    with pytest.raises(RuntimeError, match="cannot cache function"):
        numba.njit(cache=True)(doubled)
    assert compiled(doubled)(3) == 6
