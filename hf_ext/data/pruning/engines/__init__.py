"""The ways to find the row of the greatest score; all but `pool` find the same one."""

from __future__ import annotations

from hf_ext.data.pruning.engines.cpu import Engine, Float32, Int8, Pool, State, kernels

__all__ = ["ENGINES", "Engine", "State", "choose", "make", "threads_for"]

ENGINES = ("int8", "f32", "pool")
_CACHE_BYTES = 2**25  # of a usual processor's last cache: float32 rows up to here, 8-bit codes beyond
_PLAIN_BYTES = (
    2**31
)  # the same limit without compiled loops, where decoding 8-bit codes costs more than reading them saves
_SHARED_NUMBERS = 2**21  # numbers in the rows from which threads pay for their meeting after every pick


def choose(engine: str, n: int, d: int) -> str:
    """
    Name of the engine for `n` rows of `d` numbers; `"auto"` never chooses `pool`.

    Raises:
        ValueError: if there is no such engine.
    """
    if engine in ENGINES:
        return engine
    if engine != "auto":
        raise ValueError(f"engine must be 'auto' or one of {', '.join(map(repr, ENGINES))}, got {engine!r}.")
    return "f32" if 4 * n * d <= (_CACHE_BYTES if kernels() else _PLAIN_BYTES) else "int8"


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
    return Int8(state, threads) if engine == "int8" else Float32(state, threads)
