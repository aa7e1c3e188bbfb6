"""The same engines, screening on a torch device; the few rows that the bounds leave are decided on the host."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from hf_ext.data.pruning.engines.cpu import Engine, Int8, Picks, PoolRound, State, add_round
from hf_ext.data.vectors.rows import BLOCK_ROWS, row_lengths

_CHUNK_ROWS = 65536  # 8-bit codes turned to float32 at a time


@contextmanager
def _full_precision() -> Iterator[None]:
    # The bounds are those of float32: products rounded to TensorFloat-32 would break them.
    caller_precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(caller_precision)


class _Screen:
    """Scores of all rows against the unit vector of theta, and what bounds their error; float32, on the device."""

    def __init__(self, state: State, device: torch.device) -> None:
        self.state = state
        self.device = device
        self.is_taken = torch.from_numpy(state.is_taken).to(device)

    def bounds(self) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def moved(self, place: int) -> None:
        """A row was picked; theta has not moved yet."""
        self.is_taken[place] = True

    def unit(self) -> Tensor:
        theta = self.state.theta
        return torch.from_numpy((theta / np.linalg.norm(theta)).astype(np.float32)).to(self.device)

    def upper(self) -> Tensor:
        score, error = self.bounds()
        return (score + error).masked_fill_(self.is_taken, -torch.inf)


class _Float32Screen(_Screen):
    def __init__(self, state: State, device: torch.device) -> None:
        super().__init__(state, device)
        d = len(state.target)
        self.z = torch.empty(len(state.numbers), d, device=device)
        norms = []
        for start in range(0, len(state.numbers), BLOCK_ROWS):
            block = state.centred(slice(start, start + BLOCK_ROWS))
            self.z[start : start + BLOCK_ROWS] = torch.from_numpy(block.astype(np.float32))
            norms.append(row_lengths(block))
        # Casts of row, theta, score and bound, and d roundings in any order.
        error = np.concatenate(norms) * (1.05 * (d + 24) * 2.0**-24) + 1e-30
        self.error = torch.from_numpy(error.astype(np.float32)).to(device)

    def bounds(self) -> tuple[Tensor, Tensor]:
        return self.z @ self.unit(), self.error


class _Int8Screen(_Screen):
    def __init__(self, state: State, device: torch.device) -> None:
        super().__init__(state, device)
        codes = Int8(state)
        self.q, self.scale = (torch.from_numpy(part).to(device) for part in (codes.q, codes.scale))
        rounding = 1.05 * (len(state.target) + 24) * 2.0**-24
        error = codes.error.astype(np.float64) * (1 + 1e-6) + codes.norm * rounding
        self.error = torch.from_numpy(error.astype(np.float32)).to(device)

    def bounds(self) -> tuple[Tensor, Tensor]:
        unit = self.unit()
        parts = [self.q[start : start + _CHUNK_ROWS].float() @ unit for start in range(0, len(self.q), _CHUNK_ROWS)]
        return torch.cat(parts) * self.scale, self.error


class TorchExact:
    """Exact picks: bounds on the device, decision in float64 on the host."""

    round = 1

    def __init__(self, screen: _Screen) -> None:
        self.screen = screen
        self.state = screen.state

    def _best(self) -> tuple[int, float, int]:
        score, error = self.screen.bounds()
        is_taken = self.screen.is_taken
        leader = int((score - error).masked_fill_(is_taken, -torch.inf).argmax())
        proven_score = self.state.exact(np.array([leader]))[0] / float(np.linalg.norm(self.state.theta))
        proven_score -= abs(proven_score) * 2.0**-22  # it is cast to float32 on the device
        reach = torch.nonzero((score + error >= proven_score) & ~is_taken).flatten().cpu().numpy()
        exact = self.state.exact(reach)
        place = int(np.argmax(exact))  # the first of equals
        return int(reach[place]), float(exact[place]), len(reach)

    def picks(self, count: int) -> Picks:
        """The next `count` picks; moves the state."""
        picks = Picks.empty(count)
        with _full_precision():
            for p in range(count):
                best = int(np.argmin(self.state.is_taken))
                score = 0.0
                evaluations = 0
                if self.state.theta.any():
                    best, score, evaluations = self._best()
                self.screen.moved(best)
                picks.places[p] = best
                picks.scores[p] = score
                picks.lengths[p] = self.state.take(best)
                picks.evaluations += evaluations
        return picks


class TorchPool:
    """Approximate: the device ranks all rows, the host picks `round` times among the `size` best."""

    def __init__(self, screen: _Screen, *, picks: int, size: int) -> None:
        self.screen = screen
        self.state = screen.state
        self.round = picks
        self.size = max(size, picks)

    def picks(self, count: int) -> Picks:
        """The next `count` picks, in rounds; moves the state."""
        picks = Picks.empty(count)
        for start in range(0, count, self.round):
            part = PoolRound(self.state, self._best_rows()).picks(min(self.round, count - start))
            add_round(picks, start, part)
            self.screen.is_taken[torch.from_numpy(part.places).to(self.screen.device)] = True
        return picks

    def _best_rows(self) -> np.ndarray:
        remaining = np.flatnonzero(~self.state.is_taken)
        if len(remaining) <= self.size or not self.state.theta.any():
            return remaining[: self.size]
        with _full_precision():
            return np.sort(self.screen.upper().topk(self.size).indices.cpu().numpy())


def make(engine: str, state: State, device: str | None, pool_picks: int, pool_rows: int) -> Engine:
    """
    The torch form of an engine.

    Raises:
        ValueError: if torch cannot use the device.
    """
    try:
        place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.zeros(1, device=place)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device={device!r} cannot be used: {str(error).splitlines()[0]}") from error
    if engine == "pool":
        return TorchPool(_Float32Screen(state, place), picks=pool_picks, size=pool_rows)
    return TorchExact((_Int8Screen if engine == "int8" else _Float32Screen)(state, place))
