"""A race between candidates: what was measured of them, kept on the disk, and the rounds that drop those refuted."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from tqdm.auto import tqdm

from hf_ext.bandits.refutation import LARGEST, look_counts, refuted
from hf_ext.bandits.selection import CandidateResult, Selection
from hf_ext.guards.disk import append_whole, drop_half_line, writing
from hf_ext.guards.runs import RunFolder

__all__ = ["VALUES", "ItemValues", "Race", "content_digest"]

VALUES = "values.jsonl"


class ItemValues:
    """Every value that was measured, `(candidates, items)`, and whether it was; appended to a file as they come."""

    def __init__(self, names: list[str], num_items: int, folder: Path | None) -> None:
        self.names = names
        self.values: NDArray[np.float64] = np.full((len(names), num_items), np.nan)
        self.is_measured: NDArray[np.bool_] = np.zeros((len(names), num_items), dtype=bool)
        self.folder = folder

    def begin(self, items: Sequence[Any]) -> None:
        """Read what an earlier run left in the folder, or begin there."""
        if self.folder is None:
            return
        run = RunFolder(self.folder)
        facts = {"candidates": self.names, "num_items": len(items), "items": content_digest(items)}
        run.begin(facts, parts=VALUES)
        path = self.folder / VALUES
        if not path.exists():
            return
        drop_half_line(path)
        for number, line in enumerate(path.read_bytes().splitlines(), 1):
            try:
                self._read(json.loads(line))
            except (ValueError, TypeError, KeyError, IndexError) as error:
                raise ValueError(
                    f"{path}, line {number:,}, is no record of values ({error}). Remove the line, and they are "
                    "measured again."
                ) from error

    def _read(self, record: dict[str, Any]) -> None:
        row = self.names.index(record["candidate"])
        indices = record["items"]
        values = [math.nan if value is None else value for value in record["values"]]
        are_valid = all(type(index) is int and 0 <= index < self.values.shape[1] for index in indices)
        if not are_valid or len(indices) != len(values) or not all(type(value) is float for value in values):
            raise ValueError("a field of another kind")
        self.values[row, indices] = values
        self.is_measured[row, indices] = True

    def add(self, row: int, indices: Sequence[int], values: NDArray[np.float64]) -> None:
        """
        Keep the values of a candidate on items.

        Raises:
            DiskFullError: if there is no room; what was written before is whole.
        """
        if self.folder is not None:
            finite = [float(value) if math.isfinite(value) else None for value in values]
            record = {"candidate": self.names[row], "items": list(map(int, indices)), "values": finite}
            path = self.folder / VALUES
            advice = "Free some space and run again: it goes on with what is not measured."
            with writing("the values", path, advice=advice):
                append_whole(path, [(json.dumps(record) + "\n").encode()])
        self.values[row, indices] = values
        self.is_measured[row, indices] = True


def content_digest(items: Sequence[Any]) -> str | None:
    """Of what the items hold, where they can be written as JSON."""
    if hasattr(items, "column_names"):
        from hf_ext.data.row_digest import rows_digest

        content: Any = rows_digest(items)
    else:
        content = items.tolist() if hasattr(items, "tolist") else list(items)
    try:
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    except (TypeError, ValueError):
        return None


def _float_values(values: Any, name: str) -> NDArray[np.float64]:
    """What `evaluate` gave, a tensor too; infinite where a number is too large to be added up."""
    try:
        if hasattr(values, "detach"):  # numpy takes no tensor with a gradient, of bfloat16 or of another device
            values = values.detach().cpu().tolist()
        numbers = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"evaluate gave a {type(values).__name__} for candidate {name!r} that is no array of numbers ({error}): "
            "it must give one number an item."
        ) from error
    return np.where(np.abs(numbers) > LARGEST, np.copysign(np.inf, numbers), numbers)


class Race:
    """The rounds of one selection."""

    def __init__(
        self,
        candidates: dict[str, Any],
        evaluate: Callable[[Any, Any], ArrayLike],
        items: Sequence[Any],
        store: ItemValues,
        settings: dict[str, Any],
        batch_size: int,
        show_progress: bool,
    ) -> None:
        self.candidates = list(candidates.values())
        self.names = list(candidates)
        self.evaluate = evaluate
        self.items = items
        self.store = store
        self.settings = settings
        self.batch_size = batch_size
        self.show_progress = show_progress
        self.order: NDArray[np.int64] = np.random.default_rng(settings["seed"]).permutation(len(items))
        self.sign = 1.0 if settings["greater_is_better"] else -1.0
        self.racing = list(range(len(self.names)))  # rows of candidates that may be the best
        self.num_seen = [0] * len(self.names)
        self.status = ["undecided"] * len(self.names)
        self.counts: list[int] = []  # items seen after each round

    def run(self) -> None:
        """Measure and drop, round by round."""
        looks = look_counts(len(self.items))
        budget = self.settings["budget"]
        max_evaluations = len(self.names) * len(self.items) if budget is None else budget
        with tqdm(total=max_evaluations, desc="selection", unit="evaluation", disable=not self.show_progress) as bar:
            for number, look in enumerate(looks):
                last_count = self.counts[-1] if self.counts else 0
                affordable = look if budget is None else last_count + (budget - sum(self.num_seen)) // len(self.racing)
                count = min(look, affordable)
                if count == last_count:
                    return
                self._measure(number, count, bar)
                self.counts.append(count)
                if count < look:  # no look that was not planned: each one costs error
                    return
                if count < len(self.items) and len(self.racing) > 1:
                    self._drop(count, len(looks) - 1)
                bar.set_postfix_str(f"{len(self.racing)} left")
                if len(self.racing) == 1:
                    return

    def _measure(self, number: int, count: int, bar: tqdm) -> None:
        """Bring every candidate in the race to `count` items."""
        # To and fro: the candidate that was loaded last is the first to be measured in the next round.
        rows = self.racing if number % 2 == 0 else self.racing[::-1]
        for row in rows:
            indices = self.order[:count]
            missing = indices[~self.store.is_measured[row, indices]]
            bar.update(count - self.num_seen[row] - len(missing))
            if not self._is_finite(row, indices):  # of an earlier run, which stopped there
                missing = missing[:0]
            for start in range(0, len(missing), self.batch_size):
                batch = missing[start : start + self.batch_size]
                values = self._values_of(row, batch)
                self.store.add(row, batch.tolist(), values)
                bar.update(len(batch))
                if not np.isfinite(values).all():
                    break
            self.num_seen[row] = int(self.store.is_measured[row, indices].sum())
            if not self._is_finite(row, indices):
                self.status[row] = "not finite"
        self._refuse_no_finite()
        self.racing = [row for row in self.racing if self.status[row] != "not finite"]

    def _is_finite(self, row: int, indices: NDArray[np.int64]) -> bool:
        """Whether all values of a candidate are finite that were measured on these items."""
        is_missing = ~self.store.is_measured[row, indices]
        return bool((is_missing | np.isfinite(self.store.values[row, indices])).all())

    def _values_of(self, row: int, indices: NDArray[np.int64]) -> NDArray[np.float64]:
        batch: Any
        if hasattr(self.items, "column_names") and hasattr(self.items, "select"):
            batch = self.items.select(indices.tolist())
        elif isinstance(self.items, np.ndarray):
            batch = self.items[indices]
        else:
            batch = [self.items[index] for index in indices.tolist()]
        values = _float_values(self.evaluate(self.candidates[row], batch), self.names[row])
        if values.shape != (len(indices),):
            raise ValueError(
                f"evaluate gave values of shape {values.shape} for candidate {self.names[row]!r} and {len(indices)} "
                f"items: it must give one number an item, shape ({len(indices)},)."
            )
        return values

    def _refuse_no_finite(self) -> None:
        if any(self.status[row] != "not finite" for row in self.racing):
            return
        words = []
        for row in self.racing[:3]:
            values = np.where(self.store.is_measured[row], self.store.values[row], 0.0)
            index = int(np.flatnonzero(~np.isfinite(values))[0])
            words.append(f"{self.names[row]!r} gives {values[index]} on item {index:,}")
        raise ValueError(f"No candidate gives finite values: {', '.join(words)}. Leave out what has no value.")

    def _drop(self, count: int, num_looks: int) -> None:
        values = self.sign * self.store.values[self.racing][:, self.order[:count]]
        error = 1 - self.settings["confidence"]
        is_behind = refuted(values, len(self.items), error, len(self.names), num_looks)
        for row, is_out in zip(list(self.racing), is_behind, strict=True):
            if is_out:
                self.status[row] = "refuted"
                self.racing.remove(row)

    # --- what came of it ---

    def selection(self) -> Selection:
        """The best one, and what can be said of it."""
        seen_places = self.order[: self.counts[-1]]
        means = [math.fsum(self.sign * self.store.values[row, seen_places]) for row in self.racing]
        best = self.racing[int(np.argmax(means))]
        is_whole = len(seen_places) == len(self.items)
        for row in self.racing:
            if row != best and is_whole:
                self.status[row] = "level" if self._is_level(best, row) else "refuted"
        self.status[best] = "best"
        certified = not {"undecided", "level"} & set(self.status)
        rows = range(len(self.names))
        is_exact = all(self.num_seen[row] == len(self.items) for row in rows if self.status[row] != "not finite")
        return Selection(
            name=self.names[best],
            certified=certified,
            level=None if not certified else 1.0 if is_exact else self.settings["confidence"],
            candidates=[self._result(row, best) for row in rows],
            items_spent=sum(self.num_seen),
            race={name: self._distances(row, best) for row, name in enumerate(self.names)},
            settings=self.settings,
        )

    def _differences(self, best: int, row: int, count: int) -> NDArray[np.float64]:
        indices = self.order[:count]
        return self.sign * (self.store.values[best, indices] - self.store.values[row, indices])

    def _is_level(self, best: int, row: int) -> bool:
        """Whether the means over the pool differ by no more than rounding."""
        differences = self._differences(best, row, len(self.items))
        scale = np.abs(self.store.values[[best, row]]).sum()
        return abs(math.fsum(differences)) <= 1e-14 * scale

    def _result(self, row: int, best: int) -> CandidateResult:
        count = self.num_seen[row]
        if self.status[row] == "not finite":
            return CandidateResult(self.names[row], count, None, None, None, "not finite")
        mean = math.fsum(self.store.values[row, self.order[:count]]) / count
        differences = self._differences(best, row, count)
        error = None
        if row != best and count > 1:
            error = float(differences.std(ddof=1)) / math.sqrt(count)
        behind = None if row == best else math.fsum(differences) / count
        return CandidateResult(self.names[row], count, mean, behind, error, self.status[row])

    def _distances(self, row: int, best: int) -> list[list[float]]:
        if self.status[row] == "not finite":
            return []
        counts = [count for count in self.counts if count <= self.num_seen[row]]
        return [[count, float(self._differences(best, row, count).mean())] for count in counts]
