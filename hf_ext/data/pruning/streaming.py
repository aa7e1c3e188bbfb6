"""Prune a stream in two passes: a sample for the median, then buffer after buffer with theta carried on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm.auto import tqdm

from hf_ext.data.pruning._rows import Selection, check_rows
from hf_ext.data.pruning._run import _center
from hf_ext.data.pruning._types import FloatArray
from hf_ext.data.pruning.dataset import RANK, number_of_rows
from hf_ext.data.pruning.groups import Label, quotas
from hf_ext.data.pruning.matching import gm_matching
from hf_ext.data.vectors.columns import LABEL_RULE, class_names, label_problem, refuse_row
from hf_ext.data.vectors.encoders import Encoder, as_encoder

if TYPE_CHECKING:
    from datasets import IterableDataset

__all__ = ["prune_stream"]

_ALL = "all rows"
_METHODS = {"gm": "gm", "herding": "mean"}
_MATCHING = {"engine", "pool_picks", "pool_rows", "num_threads", "backend", "device"}


@dataclass
class _Seen:
    """What the first pass keeps of a label: how many rows, their sum, and a uniform sample of them."""

    limit: int
    rng: np.random.Generator
    count: int = 0
    total: FloatArray = field(default_factory=lambda: np.zeros(0))
    sample: list[np.ndarray] = field(default_factory=list)

    def add(self, rows: np.ndarray, metric: str) -> None:
        """Add rows `(b, d)`: the reservoir of Vitter's algorithm R."""
        wide = rows.astype(np.float64)
        if metric == "unit":
            wide /= np.linalg.norm(wide, axis=1, keepdims=True)
        self.total = (self.total if self.count else np.zeros(rows.shape[1])) + wide.sum(0)
        for row in rows:
            self.count += 1
            if len(self.sample) < self.limit:
                self.sample.append(row.copy())
            else:
                place = int(self.rng.integers(self.count))
                if place < self.limit:
                    self.sample[place] = row.copy()


@dataclass
class _Run:
    """A label's matching in the second pass."""

    wanted: int
    count: int  # rows of the label in the whole stream
    target: FloatArray
    theta: FloatArray
    seen: int = 0
    picked: int = 0

    def share(self, rows: int) -> int:
        """Picks of the next `rows` rows: shares add up to `wanted` at the end of the stream, whatever the buffers."""
        return self.wanted * (self.seen + rows) // self.count - self.picked


def prune_stream(
    stream: IterableDataset,
    k: int | None = None,
    fraction: float | None = None,
    *,
    method: str = "gm",
    column: str = "embedding",
    encoder: Any = None,
    input_column: str | list[str] | None = None,
    by: str | None = None,
    seed: int = 0,
    batch_size: int = 64,
    buffer_rows: int = 65_536,
    reservoir_rows: int = 10_000,
    metric: str | None = None,
    target_scale: float = 1.0,
    budget: Any = "proportional",
    min_per_group: int = 0,
    show_progress: bool = True,
    **options: Any,
) -> IterableDataset:
    """
    Keep `k` rows of a stream that is read twice; [`prune`] calls this for an `IterableDataset`.

    The first pass counts the rows of each label and samples `reservoir_rows` of them for the geometric median. The
    second matches buffers of `buffer_rows` rows, each giving its share of the picks, with theta carried on. With one
    buffer and a reservoir as large as the stream the picks are those of [`gm_matching`]. The rows then pass a third
    time, when you read the result.

    Args:
        stream (`IterableDataset`):
            Gives the same rows in the same order each time it is read: shuffle afterwards.
        k, fraction, column, encoder, input_column, by, seed, budget, min_per_group:
            As for [`prune`]. An encoder runs in both passes: `stream.map(EmbedRows(...), batched=True)` does not help,
            vectors on disk do.
        method (`str`, *optional*, defaults to `"gm"`):
            `"gm"` or `"herding"`; the others need all rows at hand.
        buffer_rows (`int`, *optional*, defaults to 65,536):
            Rows matched together: `4 * d * buffer_rows` bytes.
        reservoir_rows (`int`, *optional*, defaults to 10,000):
            Sample of each label.
        metric (`str`, *optional*):
            `"unit"` (default of `gm`) or `"raw"` (of `herding`).
        target_scale (`float`, *optional*, defaults to 1.0):
            Factor of the centre, see [`gm_matching`].
        options:
            `engine`, `num_threads`, `backend` and `device` of [`gm_matching`].

    Returns:
        `IterableDataset`: the rows kept, in their order, with `prune_rank`. It has one shard: of several dataloader
        workers one reads it.

    Raises:
        ValueError: a method or option that needs all rows, a stream that is empty or changed between the passes.
        RowError: a row without a usable vector or label.
    """
    if method not in _METHODS:
        raise ValueError(
            f"method={method!r} needs all rows at hand. For a stream choose one of {list(_METHODS)}, or "
            "materialise it with Dataset.from_generator."
        )
    unknown = sorted(set(options) - _MATCHING)
    if unknown:
        raise ValueError(f"{unknown[0]}={options[unknown[0]]!r} cannot be used with a stream; materialise it first.")
    if not isinstance(column, str):
        raise ValueError("column must be a column's name for a stream.")
    metric = metric or ("unit" if method == "gm" else "raw")
    reader = _Reader(stream, column, _stream_encoder(encoder, stream, input_column), by, metric, batch_size)
    seen = _first_pass(reader, reservoir_rows, seed, show_progress)
    n = sum(one.count for one in seen.values())
    wanted = number_of_rows(k, fraction, n, budget)
    counts, _ = quotas(wanted, {label: one.count for label, one in seen.items()}, budget, min_per_group)
    runs = {}
    for label in [label for label in seen if counts[label]]:
        one = seen[label]
        center = one.total / one.count
        if method == "gm":
            center, _ = _center(Selection(check_rows(np.stack(one.sample), metric)), "gm", 1)
        target = center * target_scale
        runs[label] = _Run(
            counts[label], one.count, target, target.copy() if metric == "unit" else np.zeros_like(target)
        )
    indices, ranks = _second_pass(reader, runs, buffer_rows, n, metric, options, show_progress)
    return _kept_stream(stream, indices, ranks)


def _stream_encoder(encoder: Any, stream: IterableDataset, given: Any) -> tuple[Encoder, tuple[str, ...]] | None:
    from hf_ext.data.vectors.embedding import input_columns

    if encoder is None:
        return None
    features = stream.features or dict.fromkeys(next(iter(stream), {}))
    columns, images = input_columns(features, given, encoder)
    return as_encoder(encoder, images), columns


@dataclass
class _Reader:
    """Rows of a stream in batches of vectors and labels; each pass starts anew."""

    stream: IterableDataset
    column: str
    encoder: tuple[Encoder, tuple[str, ...]] | None
    by: str | None
    metric: str
    batch_size: int
    width: int | None = None

    def __iter__(self) -> Iterator[tuple[np.ndarray, list[Any]]]:
        first = 0
        for batch in self.stream.with_format(None).iter(batch_size=self.batch_size):
            rows = len(next(iter(batch.values())))
            yield self._vectors(batch, rows, first), self._labels(batch, rows, first)
            first += rows

    def _vectors(self, batch: dict[str, list], rows: int, first: int) -> np.ndarray:
        from hf_ext.data.vectors.embedding import _values

        if self.encoder is not None:
            encoder, columns = self.encoder
            vectors = encoder(_values(batch, encoder.reads, columns, first), rows)
        else:
            vectors = self._column(batch, first)
        self.width = self.width or vectors.shape[1]
        squares = np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64)
        bad = np.flatnonzero(~(np.isfinite(squares)) | ((squares == 0) & (self.metric == "unit")))
        if len(bad):
            place = int(bad[0])
            what = "zero: it has no direction" if squares[place] == 0 else "not finite"
            row = {name: values[place] for name, values in batch.items()}
            numbers = np.array2string(vectors[place], threshold=8, precision=4)[:80]
            refuse_row(row, first + place, self.column, f"the vector is {what}: {numbers}")
        return vectors

    def _column(self, batch: dict[str, list], first: int) -> np.ndarray:
        if self.column not in batch:
            raise ValueError(
                f"The stream has no column {self.column!r} (it has {list(batch)}). Name the column of the vectors "
                "with column=, or pass encoder= to compute them."
            )
        for place, value in enumerate(batch[self.column]):
            width = self.width or len(batch[self.column][0] or ())
            found = len(value) if isinstance(value, (list, np.ndarray)) else -1
            if found != width or not found:
                problem = (
                    "there is no vector" if found < 1 else f"the vector has {found} numbers, those before {width}"
                )
                row = {name: values[place] for name, values in batch.items()}
                refuse_row(row, first + place, self.column, problem)
        values = np.asarray(batch[self.column])
        if values.dtype.kind != "f":
            raise ValueError(
                f"Column {self.column!r} holds {values.dtype}, not floating point vectors. Pass embeddings, or cast "
                "the column to float32 if these numbers are coordinates."
            )
        return values.astype(np.float32)

    def _labels(self, batch: dict[str, list], rows: int, first: int) -> list[Any]:
        if self.by is None:
            return [_ALL] * rows
        if self.by not in batch:
            raise ValueError(f"by={self.by!r}: the stream has no such column (it has {list(batch)}).")
        names = class_names(self.stream.features, self.by)
        for place, label in enumerate(batch[self.by]):
            if isinstance(label, (list, dict)):
                raise ValueError(f"by={self.by!r}: the column holds {type(label).__name__}s, not one label a row.")
            problem = label_problem(label, names)
            if problem is not None:
                row = {name: values[place] for name, values in batch.items()}
                refuse_row(row, first + place, self.by, problem, LABEL_RULE)
        return batch[self.by]


def _first_pass(reader: _Reader, limit: int, seed: int, show_progress: bool) -> dict[Label, _Seen]:
    seen: dict[Label, _Seen] = {}
    rng = np.random.default_rng(seed)
    with tqdm(desc="Counting and sampling", unit="row", disable=not show_progress, delay=1) as bar:
        for vectors, labels in reader:
            for label, places in _by_label(labels):
                seen.setdefault(label, _Seen(limit, rng)).add(vectors[places], reader.metric)
            bar.update(len(vectors))
    if not seen:
        raise ValueError("The stream is empty: there is no row to keep.")
    return {label: seen[label] for label in sorted(seen, key=lambda label: (type(label).__name__, label))}


def _by_label(labels: list[Any]) -> Iterator[tuple[Label, list[int]]]:
    places: dict[Label, list[int]] = {}
    for place, label in enumerate(labels):
        places.setdefault(label, []).append(place)
    return iter(places.items())


def _second_pass(
    reader: _Reader,
    runs: dict[Label, _Run],
    buffer_rows: int,
    n: int,
    metric: str,
    options: dict[str, Any],
    show_progress: bool,
) -> tuple[np.ndarray, np.ndarray]:
    indices: list[np.ndarray] = []
    ranks: list[np.ndarray] = []
    with tqdm(total=n, desc="Matching", unit="row", disable=not show_progress, delay=1) as bar:
        first = 0
        for vectors, labels in _buffers(reader, max(1, buffer_rows)):
            for label, places in _by_label(labels):
                run = runs.get(label)
                if run is not None:
                    picked = _match(run, vectors[places], metric, options)
                    indices.append(first + np.array(places)[picked])
                    ranks.append(np.arange(run.picked - len(picked), run.picked))
            first += len(vectors)
            bar.update(len(vectors))
    if first != n or any(run.picked != run.wanted for run in runs.values()):
        raise ValueError(
            f"The stream changed between the passes: {n:,} rows, then {first:,}, or other labels. Shuffle and "
            "filter at random after pruning."
        )
    every = np.concatenate(indices)
    order = np.argsort(every)
    return every[order], np.concatenate(ranks)[order].astype(np.int32)


def _buffers(reader: _Reader, size: int) -> Iterator[tuple[np.ndarray, list[Any]]]:
    parts: list[np.ndarray] = []
    labels: list[Any] = []
    for vectors, names in reader:
        parts.append(vectors)
        labels += names
        if len(labels) >= size:
            yield np.concatenate(parts), labels
            parts, labels = [], []
    if labels:
        yield np.concatenate(parts), labels


def _match(run: _Run, rows: np.ndarray, metric: str, options: dict[str, Any]) -> np.ndarray:
    """Places of one buffer's picks of a label, in pick order; theta goes on."""
    count = run.share(len(rows))
    run.seen += len(rows)
    if count <= 0 or run.seen > run.count:
        return np.zeros(0, dtype=np.int64)
    matching = gm_matching(
        rows, count, center=run.target, theta0=run.theta, metric=metric, show_progress=False, **options
    )
    run.picked += count
    # theta_t = theta_0 + t * target - sum of the picks
    picked = rows[matching.indices].astype(np.float64)
    if metric == "unit":
        picked /= np.linalg.norm(picked, axis=1, keepdims=True)
    run.theta = run.theta + count * run.target - picked.sum(0)
    return matching.indices


def _kept_stream(stream: IterableDataset, indices: np.ndarray, ranks: np.ndarray) -> IterableDataset:
    from datasets import Features, IterableDataset, Value

    features = stream.features
    if features is not None:
        features = Features({**{n: f for n, f in features.items() if n != RANK}, RANK: Value("int32")})
    kwargs = {"stream": stream, "indices": indices, "ranks": ranks}
    return IterableDataset.from_generator(_kept_rows, gen_kwargs=kwargs, features=features)


def _kept_rows(stream: IterableDataset, indices: np.ndarray, ranks: np.ndarray) -> Iterator[dict[str, Any]]:
    wanted = dict(zip(indices.tolist(), ranks.tolist(), strict=True))
    for index, row in enumerate(stream):
        if index in wanted:
            yield {**row, RANK: wanted[index]}
