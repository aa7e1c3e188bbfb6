"""The same engines, screening on a torch device; the few rows that the bounds leave are decided on the host."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from hf_ext.data.pruning._rows import BLOCK_ROWS
from hf_ext.data.pruning.engines.cpu import Engine, Int8, PoolRound, add_round
from hf_ext.data.pruning.engines.state import TINY, Picks, State

_CHUNK_ROWS = 65536  # 8-bit codes turned to float32 at a time


@contextmanager
def _full_precision() -> Iterator[None]:
    # The bounds are those of float32: products rounded to TensorFloat-32 would break them.
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


class _Screen:
    """Scores of all rows against the unit vector of theta, and what bounds their error; float32, on the device."""

    def __init__(self, state: State, device: torch.device) -> None:
        self.state, self.device = state, device
        self.taken = torch.from_numpy(state.taken).to(device)

    def bounds(self) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def moved(self, place: int) -> None:
        """A row was picked; theta has not moved yet."""
        if not self.state.replace:
            self.taken[place] = True

    def unit(self) -> Tensor:
        theta = self.state.theta
        return torch.from_numpy((theta / np.linalg.norm(theta)).astype(np.float32)).to(self.device)

    def upper(self) -> Tensor:
        score, error = self.bounds()
        return (score + error).masked_fill_(self.taken, -torch.inf)


class _Float32Screen(_Screen):
    def __init__(self, state: State, device: torch.device) -> None:
        super().__init__(state, device)
        d = len(state.target)
        self.z = torch.empty(len(state.numbers), d, device=device)
        norms = []
        for start in range(0, len(state.numbers), BLOCK_ROWS):
            block = state.centred(slice(start, start + BLOCK_ROWS))
            self.z[start : start + BLOCK_ROWS] = torch.from_numpy(block.astype(np.float32))
            norms.append(np.sqrt((block * block).sum(1)))
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


class _GramScreen(_Screen):
    def __init__(self, state: State, device: torch.device) -> None:
        super().__init__(state, device)
        z = torch.from_numpy(state.centred(slice(None))).to(device)  # float64
        self.norm = z.norm(dim=1) * (1 + 1e-9)
        self.gram, self.score = z @ z.T, z @ torch.from_numpy(state.theta).to(device)
        self.slack = 2 * (len(state.target) + 4) * TINY * float(np.linalg.norm(state.theta))

    def bounds(self) -> tuple[Tensor, Tensor]:
        length = float(np.linalg.norm(self.state.theta))
        own = 4 * (len(self.state.target) + 4) * TINY * length
        return self.score / length, self.norm * ((self.slack + own) / length)

    def moved(self, place: int) -> None:
        super().moved(place)
        length = float(np.linalg.norm(self.state.theta))
        self.slack += (2 * (len(self.state.target) + 4) * float(self.norm[place]) + length) * TINY
        self.score -= self.gram[place]


class TorchExact:
    """Exact picks: bounds on the device, decision in float64 on the host."""

    round = 1

    def __init__(self, screen: _Screen) -> None:
        self.screen, self.state = screen, screen.state

    def _best(self) -> tuple[int, float, int]:
        score, error = self.screen.bounds()
        taken = self.screen.taken
        first = int((score - error).masked_fill_(taken, -torch.inf).argmax())
        sure = self.state.exact(np.array([first]))[0] / float(np.linalg.norm(self.state.theta))
        sure -= abs(sure) * 2.0**-22 if score.dtype == torch.float32 else abs(sure) * 2.0**-50  # cast on the device
        reach = torch.nonzero((score + error >= sure) & ~taken).flatten().cpu().numpy()
        exact = self.state.exact(reach)
        at = int(np.argmax(exact))  # the first of equals
        return int(reach[at]), float(exact[at]), len(reach)

    def picks(self, count: int) -> Picks:
        """The next `count` picks; moves the state."""
        picks = Picks.empty(count)
        with _full_precision():
            for p in range(count):
                best, score, evaluations = int(np.argmin(self.state.taken)), 0.0, 0
                if self.state.theta.any():
                    best, score, evaluations = self._best()
                self.screen.moved(best)
                picks.places[p], picks.scores[p], picks.lengths[p] = best, score, self.state.take(best)
                picks.evaluations += evaluations
        return picks


class TorchPool:
    """Approximate: the device ranks all rows, the host picks `round` times among the `size` best."""

    def __init__(self, screen: _Screen, *, picks: int, size: int) -> None:
        self.screen, self.state, self.round, self.size = screen, screen.state, picks, max(size, picks)

    def picks(self, count: int) -> Picks:
        """The next `count` picks, in rounds; moves the state."""
        picks = Picks.empty(count)
        for start in range(0, count, self.round):
            some = PoolRound(self.state, self._best_rows()).picks(min(self.round, count - start))
            add_round(picks, start, some)
            if not self.state.replace:
                self.screen.taken[torch.from_numpy(some.places).to(self.screen.device)] = True
        return picks

    def _best_rows(self) -> np.ndarray:
        left = np.flatnonzero(~self.state.taken)
        if len(left) <= self.size or not self.state.theta.any():
            return left[: self.size]
        with _full_precision():
            return np.sort(self.screen.upper().topk(self.size).indices.cpu().numpy())


def make(engine: str, state: State, device: str | None, pool_picks: int, pool_rows: int) -> Engine:
    """
    The torch form of an engine.

    Raises:
        ValueError: torch cannot use the device, or it has no float64 for `engine="gram"`.
    """
    try:
        place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.zeros(1, device=place)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device={device!r} cannot be used: {str(error).splitlines()[0]}") from error
    if engine == "gram":
        if place.type == "mps":
            raise ValueError("engine='gram' needs float64, which MPS devices lack. Use engine='f32'.")
        return TorchExact(_GramScreen(state, place))
    if engine == "pool":
        return TorchPool(_Float32Screen(state, place), picks=pool_picks, size=pool_rows)
    return TorchExact((_Int8Screen if engine == "int8" else _Float32Screen)(state, place))
