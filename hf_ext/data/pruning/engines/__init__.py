"""The ways to find the row of the greatest score; all but `pool` find the same one."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

from hf_ext.data.pruning.engines.cpu import Engine, Float32, Gram, Int8, Pool
from hf_ext.data.pruning.engines.state import State, kernels

__all__ = ["ENGINES", "Engine", "State", "choose", "make", "threads_for"]

ENGINES = ("int8", "f32", "gram", "pool")
GRAM_ROWS = 20_000
_GRAM_BYTES = 2**30  # what "auto" lets a Gram matrix take
_GRAM_SHARE = 0.25  # kept share of a group from which its Gram matrix pays
_PLAIN_BYTES = 2**31  # without compiled loops: float32 rows up to here, 8-bit codes beyond
_SHARED_NUMBERS = 2**21  # numbers in the rows from which threads pay for their meeting after every pick


@cache
def cache_bytes() -> int:
    """Bytes of the processor's last cache; 32 MiB where the system does not tell."""
    for index in (3, 2):
        path = Path(f"/sys/devices/system/cpu/cpu0/cache/index{index}/size")
        try:
            return int(path.read_text().strip().removesuffix("K")) * 1024
        except (OSError, ValueError):
            continue
    return 2**25


def choose(engine: str, n: int, d: int, k: int) -> str:
    """
    Name of the engine for `k` picks of `n` rows of `d` numbers; `"auto"` never chooses `pool`.

    Raises:
        ValueError: no such engine, or a Gram matrix of too many rows.
    """
    if engine == "gram" and n > GRAM_ROWS:
        raise ValueError(f"engine='gram' holds {n:,} x {n:,} numbers: at most {GRAM_ROWS:,} rows. Use engine='int8'.")
    if engine in ENGINES:
        return engine
    if engine != "auto":
        raise ValueError(f"engine must be 'auto' or one of {', '.join(map(repr, ENGINES))}, got {engine!r}.")
    if 8 * n * n <= _GRAM_BYTES and k >= _GRAM_SHARE * n:
        return "gram"
    return "f32" if 4 * n * d <= (cache_bytes() if kernels() else _PLAIN_BYTES) else "int8"


def threads_for(n: int, d: int, threads: int) -> int:
    """Threads worth their while inside a pick."""
    return threads if n * d >= _SHARED_NUMBERS else 1


def make(
    engine: str, state: State, threads: int, pool_picks: int, pool_rows: int, backend: str, device: str | None
) -> Engine:
    """The engine of that name on the state's rows."""
    if backend == "torch":
        from hf_ext.data.pruning.engines import torch_engine

        return torch_engine.make(engine, state, device, pool_picks, pool_rows)
    if engine == "pool":
        return Pool(state, threads, picks=pool_picks, size=pool_rows)
    exact: dict[str, Callable[[State, int], Engine]] = {"int8": Int8, "f32": Float32, "gram": Gram}
    return exact[engine](state, threads)
