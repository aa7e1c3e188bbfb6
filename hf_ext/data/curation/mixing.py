"""A training set of several sources, in shares of tokens."""

from __future__ import annotations

import itertools
import json
import logging
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from hf_ext.data.curation.documents import require_kind, token_ids
from hf_ext.guards.disk import write_whole, writing
from hf_ext.guards.numbers import COUNT, SEED

if TYPE_CHECKING:
    from datasets import Dataset, Features, IterableDataset
    from transformers import PreTrainedTokenizerBase

    from hf_ext.data.loading import AnyDataset

logger = logging.getLogger(__name__)

_BATCH_ROWS = 1000
_MOST_EXCESS = 0.05  # of the tokens asked for


@dataclass(frozen=True)
class SourceShare:
    """
    What a mixture has of a source.

    Args:
        weight (`float`):
            The share that was asked for.
        num_documents, num_tokens (`int`):
            What it has; a document that is in it twice counts twice.
        share (`float`):
            Of the tokens of the mixture.
        epochs (`float`, *optional*):
            How often the source was gone through; above 1 documents are repeated. `None` of a stream that did not end.
    """

    weight: float
    num_documents: int
    num_tokens: int
    share: float
    epochs: float | None


@dataclass(frozen=True)
class MixManifest:
    """
    What a mixture was made of.

    Args:
        token_budget, num_tokens (`int`):
            Tokens that were asked for and that there are; more by less than a document of each source.
        unit (`str`):
            `"tokens"` of the tokenizer, with one for the end of each document, or `"words"` between white space.
        seed (`int`):
            Of the order.
        sources (`dict[str, SourceShare]`):
            By the sources' names.
    """

    token_budget: int
    num_tokens: int
    unit: str
    seed: int
    sources: dict[str, SourceShare]

    @property
    def repeated(self) -> list[str]:
        """Names of the sources whose documents are repeated."""
        return [name for name, source in self.sources.items() if source.epochs is not None and source.epochs > 1]

    def save(self, path: str | Path) -> None:
        """
        Write it as JSON.

        Raises:
            DiskFullError: if there is no room; a file that was there is intact.
        """
        with writing("the manifest", path):
            write_whole(path, json.dumps(asdict(self) | {"repeated": self.repeated}, indent=1) + "\n")


class _Draw(NamedTuple):
    """
    The documents taken from a source, in their order.

    Args:
        rows (`np.ndarray` of shape `(documents,)`):
            Positions in the source.
        lengths (`np.ndarray` of shape `(documents,)`):
            Their tokens.
        epochs (`float`, *optional*):
            Gone through to get them, where it is known.
    """

    rows: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]
    epochs: float | None


def mix(
    sources: Mapping[str, AnyDataset],
    weights: Mapping[str, float],
    token_budget: int,
    *,
    seed: int = 0,
    tokenizer: PreTrainedTokenizerBase | None = None,
    text_column: str = "text",
) -> tuple[Dataset | IterableDataset, MixManifest]:
    """
    Put together a training set in which each source has its share of the tokens.

    Documents of a `Dataset` come in an order drawn with the seed, those of a stream in the stream's. A source that
    ends before its share is reached begins anew, in another order, with a warning. The document that reaches a share
    is taken whole, with a warning where the mixture has over 5 % more tokens than it should. Sources take turns in
    such a way that every part of the mixture has their shares, to within a document.

    Args:
        sources (`Mapping[str, Dataset | IterableDataset]`):
            By name. Streams must give the same rows each time they are read: they are read once to count and again
            with the mixture.
        weights (`Mapping[str, float]`):
            Share of the tokens for each source; they add up to 1.
        token_budget (`int`):
            Tokens of the mixture.
        seed (`int`, *optional*, defaults to 0):
            Of the order.
        tokenizer (`PreTrainedTokenizerBase`, *optional*):
            What counts tokens; without one they are words between white space.
        text_column (`str`, *optional*, defaults to `"text"`):
            Column of the documents.

    Returns:
        `tuple[Dataset | IterableDataset, MixManifest]`: the documents, with the columns that all sources have in the
        same type, a stream where a source is one; and what is in it.

    Raises:
        ValueError: if the weights do not fit the sources or do not add up to 1, a source has no token, or a number is
            out of bounds.
        RowError: if a row is no document.
    """
    _check(sources, weights, token_budget, seed, text_column)
    draws = {
        name: _drawn(name, source, weights[name] * token_budget, seed, tokenizer, text_column)
        for name, source in sources.items()
    }
    num_tokens = sum(int(draw.lengths.sum()) for draw in draws.values())
    shares = {}
    for name, draw in draws.items():
        tokens = int(draw.lengths.sum())
        shares[name] = SourceShare(weights[name], len(draw.rows), tokens, tokens / num_tokens, draw.epochs)
        if draw.epochs is not None and draw.epochs > 1:
            logger.warning(
                "%s has fewer tokens than its share of %s: its documents are repeated, %.2f times on average.",
                name, f"{weights[name] * token_budget:,.0f}", draw.epochs,
            )  # fmt: skip
    unit = "words" if tokenizer is None else "tokens"
    if num_tokens > (1 + _MOST_EXCESS) * token_budget:
        excess = [
            f"{name} {share.num_tokens:,} of {share.weight * token_budget:,.0f}" for name, share in shares.items()
        ]
        logger.warning(
            "The mixture has %s %s and not %s, for the last document of a source is taken whole (%s). Ask for more, "
            "or cut long documents first.",
            f"{num_tokens:,}", unit, f"{token_budget:,}", ", ".join(excess),
        )  # fmt: skip
    manifest = MixManifest(token_budget, num_tokens, unit, seed, shares)
    return _interleaved(list(sources.values()), list(draws.values()), text_column), manifest


def _check(
    sources: Mapping[str, AnyDataset], weights: Mapping[str, float], token_budget: int, seed: int, text_column: str
) -> None:
    for name, bounds, number in (("token_budget", COUNT, token_budget), ("seed", SEED, seed)):
        problem = bounds.problem_of(number)
        if problem is not None:
            raise ValueError(f"{name} {problem}.")
    if not sources or set(sources) != set(weights):
        raise ValueError(
            f"Each source needs a weight: the sources are {sorted(sources)}, weights has {sorted(weights)}."
        )
    for name, weight in weights.items():
        if not (isinstance(weight, int | float) and math.isfinite(weight) and weight > 0):
            raise ValueError(
                f"The weight of {name} must be a finite number above 0, got {weight!r}. Leave out a source of none."
            )
    total = math.fsum(weights.values())
    if abs(total - 1) > 1e-6:
        raise ValueError(
            f"The weights add up to {total:.6g}, not to 1. Divide each by {total:.6g} to keep their ratios."
        )
    for name, source in sources.items():
        if source.column_names is not None and text_column not in source.column_names:
            raise ValueError(
                f"{name} has no column {text_column!r}, but {sorted(source.column_names)}. Pass text_column=."
            )


def _is_stream(source: AnyDataset) -> bool:
    return not hasattr(source, "num_rows")


def _drawn(
    name: str,
    source: AnyDataset,
    budget: float,
    seed: int,
    tokenizer: PreTrainedTokenizerBase | None,
    text_column: str,
) -> _Draw:
    """Documents until their tokens reach the budget, epoch after epoch."""
    rows: list[int] = []
    lengths: list[int] = []
    num_tokens = 0
    num_source_rows = None if _is_stream(source) else len(source)
    epoch = 0
    while True:
        tokens_before = num_tokens
        for numbers, texts in _batches(name, source, epoch, seed, text_column):
            for number, length in zip(numbers, _token_counts(texts, tokenizer), strict=True):
                rows.append(number)
                lengths.append(length)
                num_tokens += length
                if num_tokens >= budget:
                    epochs = None if num_source_rows is None else len(rows) / num_source_rows
                    return _Draw(np.array(rows), np.array(lengths), epochs)
        if num_tokens == tokens_before:
            raise ValueError(f"{name} has no token: leave it out, or look at its column {text_column!r}.")
        num_source_rows = num_source_rows or len(rows)  # of a stream it is known once it has ended
        epoch += 1


def _batches(
    name: str, source: AnyDataset, epoch: int, seed: int, text_column: str
) -> Iterator[tuple[list[int], list[str]]]:
    """Positions and texts of a source's documents, in the order of an epoch."""
    if _is_stream(source):
        numbers = itertools.count()
        rows = (row[text_column] for row in source)
    else:
        # by the name, so that the order of a source does not depend on the others
        order = np.random.default_rng([seed, zlib.crc32(name.encode()), epoch]).permutation(len(source))
        numbers = iter(order.tolist())
        rows = iter(source.select(order).select_columns([text_column])[text_column])
    pairs = zip(numbers, rows, strict=False)
    while batch := list(itertools.islice(pairs, _BATCH_ROWS)):
        for number, text in batch:
            require_kind(text, number, text_column, name)
        yield [number for number, _ in batch], [text for _, text in batch]


def _token_counts(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase | None) -> list[int]:
    """Tokens of each text and one for its end; words between white space without a tokenizer."""
    if tokenizer is None:
        return [len(text.split()) for text in texts]
    return [len(ids) + 1 for ids in token_ids(texts, tokenizer)]


def _interleaved(sources: Sequence[AnyDataset], draws: Sequence[_Draw], text_column: str) -> Dataset | IterableDataset:
    from datasets import IterableDataset, concatenate_datasets

    # A document's turn comes when its middle token would in a source spread evenly over the whole mixture.
    turns = [(np.cumsum(draw.lengths) - draw.lengths / 2) / draw.lengths.sum() for draw in draws]
    numbers = np.repeat(np.arange(len(draws)), [len(draw.rows) for draw in draws])
    order = np.lexsort((numbers, np.concatenate(turns)))
    columns, features = _common(sources, text_column)
    selected = [source.select_columns(columns) for source in sources]
    if not any(map(_is_stream, sources)):
        offsets = np.cumsum([0, *(len(source) for source in sources)])
        rows = np.concatenate([draw.rows + offset for draw, offset in zip(draws, offsets, strict=False)])
        return concatenate_datasets(selected).select(rows[order])
    return IterableDataset.from_generator(_Turns(selected, list(draws), numbers[order]), features=features)


def _common(sources: Sequence[AnyDataset], text_column: str) -> tuple[list[str], Features | None]:
    """The columns that all sources have in the same type; of a stream that does not tell, the text alone."""
    from datasets import Features

    if any(source.features is None for source in sources):
        return [text_column], None
    first, *others = [source.features for source in sources]
    columns = [name for name in first if all(features.get(name) == first[name] for features in others)]
    if text_column not in columns:
        kinds = sorted({str(source.features[text_column]) for source in sources})
        raise ValueError(f"Column {text_column!r} is of several types: {'; '.join(kinds)}. Cast them to one.")
    return columns, Features({name: first[name] for name in columns})


@dataclass(frozen=True)
class _Turns:
    """Rows of a mixture with a stream in it: the next one of whose turn it is."""

    sources: list[Any]
    draws: list[_Draw]
    numbers: npt.NDArray[np.int64]

    def __call__(self) -> Iterator[dict[str, Any]]:
        rows = [self._rows(source, draw) for source, draw in zip(self.sources, self.draws, strict=True)]
        for number in self.numbers.tolist():
            row = next(rows[number], None)
            if row is None:
                raise ValueError(
                    f"Source {number} of the mixture gave fewer rows than when its tokens were counted: a stream must "
                    "give the same rows each time it is read. Save it as a dataset first."
                )
            yield row

    @staticmethod
    def _rows(source: Any, draw: _Draw) -> Iterator[dict[str, Any]]:
        if not _is_stream(source):
            yield from source.select(draw.rows)
            return
        # positions start again at 0 with each epoch
        for start, end in pairwise([*np.flatnonzero(draw.rows == 0).tolist(), len(draw.rows)]):
            yield from itertools.islice(source, end - start)
