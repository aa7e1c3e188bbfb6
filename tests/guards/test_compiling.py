"""Compiled functions where numba has no place for its cache."""

from __future__ import annotations

import importlib.util

import numpy as np
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


def test_options_reach_numba_and_the_loops_of_pruning_need_no_cache(monkeypatch):
    pytest.importorskip("numba")
    caching = pytest.importorskip("numba.core.caching")
    monkeypatch.setattr(caching.CompileResultCacheImpl, "_locator_classes", [])

    @compiled(fastmath=True)
    def tripled(number):
        return 3 * number

    assert tripled.targetoptions["fastmath"]
    assert tripled(3) == 9
    engine = importlib.util.find_spec("hf_ext.data.pruning.engines._numba")
    module = importlib.util.module_from_spec(engine)
    engine.loader.exec_module(module)  # raised: numba looks for the place when a function is decorated
    assert module._length(np.array([3.0, 4.0])) == 5
