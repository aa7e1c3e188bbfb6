"""Prune a stream in two passes: a sample for the median, then buffer after buffer with theta carried on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm.auto import tqdm

from hf_ext.data.pruning.groups import ALL_ROWS, Budget, Label, in_order, number_of_rows, quotas
from hf_ext.data.pruning.matching import RANK, match
from hf_ext.data.pruning.one_group import Aim, Settings
from hf_ext.data.vectors.columns import batch_vectors, check_labels, class_names, refuse_row
from hf_ext.data.vectors.embedding import encoder_input, input_columns
from hf_ext.data.vectors.encoders import Encoder, EncoderLike, as_encoder
from hf_ext.data.vectors.rows import BadVector, FloatArray, IntArray, Rows, Selection, check_rows

if TYPE_CHECKING:
    from datasets import IterableDataset

__all__ = ["prune_stream"]

_CENTERS = {"gm": "gm", "herding": "mean"}
_OPTIONS = {"engine", "pool_picks", "pool_rows", "num_threads", "backend", "device"}


@dataclass
class _Tally:
    """What the first pass keeps of a label: how many rows, their sum, and a uniform sample of them."""

    limit: int
    rng: np.random.Generator
    count: int = 0
    total: FloatArray | float = 0.0
    sample: list[np.ndarray] = field(default_factory=list)

    def add(self, rows: Rows, places: IntArray) -> None:
        """Add some rows of a batch: the reservoir of Vitter's algorithm R."""
        self.total = self.total + rows.take(places).sum(0)
        for row in rows.values[places]:
            self.count += 1
            if len(self.sample) < self.limit:
                self.sample.append(row.copy())
            else:  # row number `count` enters with probability limit / count, and drives out a row at random
                place = int(self.rng.integers(self.count))
                if place < self.limit:
                    self.sample[place] = row.copy()


@dataclass
class _Run:
    """A label's matching in the second pass."""

    quota: int
    count: int  # rows of the label in the whole stream
    target: FloatArray
    theta: FloatArray
    rows_read: int = 0
    rows_picked: int = 0

    def share(self, rows: int) -> int:
        """Picks of the next `rows` rows: shares add up to `quota` at the end of the stream, whatever the buffers."""
        # floor(quota * rows / count) telescopes: what one buffer loses by rounding down, a later one gets.
        return self.quota * (self.rows_read + rows) // self.count - self.rows_picked


def prune_stream(
    stream: IterableDataset,
    k: int | None = None,
    fraction: float | None = None,
    *,
    method: str = "gm",
    column: str | np.ndarray = "embedding",
    encoder: EncoderLike | None = None,
    input_column: str | list[str] | None = None,
    by: str | None = None,
    seed: int = 0,
    batch_size: int = 64,
    buffer_rows: int = 65_536,
    reservoir_rows: int = 10_000,
    metric: str | None = None,
    target_scale: float = 1.0,
    budget: Budget = "proportional",
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
        ValueError: if a method or an option needs all rows, or the stream is empty or changed between the passes.
        RowError: if a row has no vector or label that can be used.
    """
    if method not in _CENTERS:
        raise ValueError(
            f"method={method!r} needs all rows at hand. For a stream choose one of {list(_CENTERS)}, or "
            "materialise it with Dataset.from_generator."
        )
    unknown_options = sorted(set(options) - _OPTIONS)
    if unknown_options:
        name = unknown_options[0]
        raise ValueError(f"{name}={options[name]!r} cannot be used with a stream; materialise it first.")
    if not isinstance(column, str):
        raise ValueError("column must be a column's name for a stream.")
    metric = metric or ("unit" if method == "gm" else "raw")
    wrapped = None if encoder is None else _stream_encoder(encoder, stream, input_column)
    reader = _Reader(stream, column, wrapped, by, metric, batch_size)
    tallies = _first_pass(reader, reservoir_rows, seed, show_progress)
    n = sum(tally.count for tally in tallies.values())
    k = number_of_rows(k, fraction, n, budget)
    counts, _ = quotas(k, {label: tally.count for label, tally in tallies.items()}, budget, min_per_group)
    runs = {}
    for label, tally in tallies.items():
        if not counts[label]:
            continue
        if method == "gm":
            sample = Selection(check_rows(np.stack(tally.sample), metric))
            center, _ = Aim("gm", "zero").center_of(sample)
        else:
            center = np.asarray(tally.total) / tally.count
        target = center * target_scale
        theta = target.copy() if metric == "unit" else np.zeros_like(target)  # as `gm_matching` starts it
        runs[label] = _Run(counts[label], tally.count, target, theta)
    settings = Settings(show_progress=False, **options)  # a bar a buffer would drown that of the stream
    indices, ranks = _second_pass(reader, runs, buffer_rows, n, settings, show_progress)
    return _stream_of(stream, indices, ranks)


def _stream_encoder(
    encoder: EncoderLike, stream: IterableDataset, input_column: str | list[str] | None
) -> tuple[Encoder, tuple[str, ...]]:
    # A stream made by a generator does not know its features: the first row tells the columns' names.
    features = stream.features or dict.fromkeys(next(iter(stream), {}))
    columns, images = input_columns(features, input_column, encoder)
    return as_encoder(encoder, images), columns


@dataclass
class _Reader:
    """Rows of a stream in batches of checked vectors and labels; each pass starts anew."""

    stream: IterableDataset
    column: str
    encoder: tuple[Encoder, tuple[str, ...]] | None
    by: str | None
    metric: str
    batch_size: int

    def __iter__(self) -> Iterator[tuple[Rows, list[Label]]]:
        first = 0
        width = None
        for batch in self.stream.with_format(None).iter(batch_size=self.batch_size):
            count = len(next(iter(batch.values())))

            def row_at(index: int, batch: dict[str, list] = batch, first: int = first) -> dict[str, Any]:
                return {name: values[index - first] for name, values in batch.items()}

            if self.encoder is not None:
                encoder, columns = self.encoder
                vectors = encoder(encoder_input(batch, encoder.reads, columns, first), count)
            elif self.column not in batch:
                raise ValueError(
                    f"The stream has no column {self.column!r} (it has {list(batch)}). Name the column of the vectors "
                    "with column=, or pass encoder= to compute them."
                )
            else:
                vectors = batch_vectors(batch[self.column], self.column, first, width, row_at)
            width = vectors.shape[1]
            try:
                rows = check_rows(vectors, self.metric)
            except BadVector as error:
                index = first + error.row
                refuse_row(row_at(index), index, self.column, error.problem, error.remedy)
            labels: list[Label] = [ALL_ROWS] * count
            if self.by is not None:
                if self.by not in batch:
                    raise ValueError(f"by={self.by!r}: the stream has no such column (it has {list(batch)}).")
                labels = batch[self.by]
                check_labels(labels, class_names(self.stream.features, self.by), self.by, first, row_at)
            yield rows, labels
            first += count


def _first_pass(reader: _Reader, limit: int, seed: int, show_progress: bool) -> dict[Label, _Tally]:
    tallies: dict[Label, _Tally] = {}
    rng = np.random.default_rng(seed)
    with tqdm(desc="Counting and sampling", unit="row", disable=not show_progress, delay=1) as bar:
        for rows, labels in reader:
            for label, places in _by_label(labels):
                tallies.setdefault(label, _Tally(limit, rng)).add(rows, places)
            bar.update(len(labels))
    if not tallies:
        raise ValueError("The stream is empty: there is no row to keep.")
    return {label: tallies[label] for label in in_order(tallies)}


def _by_label(labels: list[Label]) -> Iterator[tuple[Label, IntArray]]:
    places: dict[Label, list[int]] = {}
    for place, label in enumerate(labels):
        places.setdefault(label, []).append(place)
    for label, numbers in places.items():
        yield label, np.array(numbers)


def _second_pass(
    reader: _Reader, runs: dict[Label, _Run], buffer_rows: int, n: int, settings: Settings, show_progress: bool
) -> tuple[IntArray, np.ndarray]:
    indices: list[IntArray] = []
    ranks: list[IntArray] = []
    first = 0
    with tqdm(total=n, desc="Matching", unit="row", disable=not show_progress, delay=1) as bar:
        for rows, labels in _buffers(reader, max(1, buffer_rows)):
            for label, places in _by_label(labels):
                run = runs.get(label)
                if run is not None:
                    picks = places[_match(run, Selection(rows, places), settings)]
                    indices.append(first + picks)
                    ranks.append(np.arange(run.rows_picked - len(picks), run.rows_picked))
            first += len(labels)
            bar.update(len(labels))
    if first != n or any(run.rows_picked != run.quota for run in runs.values()):
        raise ValueError(
            f"The stream changed between the passes: {n:,} rows, then {first:,}, or other labels. Shuffle and "
            "filter at random after pruning."
        )
    joined = np.concatenate(indices)
    order = np.argsort(joined)  # picks come label by label, and the rows are to stay in the stream's order
    return joined[order], np.concatenate(ranks)[order].astype(np.int32)


def _buffers(reader: _Reader, size: int) -> Iterator[tuple[Rows, list[Label]]]:
    parts: list[Rows] = []
    labels: list[Label] = []
    for rows, batch_labels in reader:
        parts.append(rows)
        labels += batch_labels
        if len(labels) >= size:
            yield _joined(parts), labels
            parts = []
            labels = []
    if labels:
        yield _joined(parts), labels


def _joined(parts: list[Rows]) -> Rows:
    return Rows(
        np.concatenate([part.values for part in parts]), np.concatenate([part.inverse_norms for part in parts])
    )


def _match(run: _Run, selection: Selection, settings: Settings) -> IntArray:
    """Places of one buffer's picks of a label in the selection, in pick order; theta goes on."""
    count = run.share(len(selection))
    run.rows_read += len(selection)
    if count <= 0 or run.rows_read > run.count:  # more rows than in the first pass: refused at the end, with numbers
        return np.zeros(0, dtype=np.int64)
    aim = Aim(run.target, run.theta)
    numbers = match(selection.rows, count, {ALL_ROWS: selection.index}, lambda _: aim, settings, "gm").indices
    run.rows_picked += count
    # theta_t = theta_0 + t * target - sum of the picks
    run.theta = run.theta + count * run.target - selection.rows.take(numbers).sum(0)
    return np.searchsorted(selection.numbers(), numbers)


def _stream_of(stream: IterableDataset, indices: IntArray, ranks: np.ndarray) -> IterableDataset:
    from datasets import Features, IterableDataset, Value

    features = stream.features
    if features is not None:
        features = Features({**{n: f for n, f in features.items() if n != RANK}, RANK: Value("int32")})
    # Arrays and no lists: datasets (5.2) takes each entry of a list for a shard, which it deals out among workers.
    kwargs = {"stream": stream, "indices": indices, "ranks": ranks}
    return IterableDataset.from_generator(_ranked_rows, gen_kwargs=kwargs, features=features)


def _ranked_rows(stream: IterableDataset, indices: IntArray, ranks: np.ndarray) -> Iterator[dict[str, Any]]:
    rank_of = dict(zip(indices.tolist(), ranks.tolist(), strict=True))
    for index, row in enumerate(stream):
        if index in rank_of:
            yield {**row, RANK: rank_of[index]}
