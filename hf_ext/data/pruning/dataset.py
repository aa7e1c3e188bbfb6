"""Prune a dataset: keep the rows that stand for the clean bulk of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_ext.data.pruning.matching import Matching
from hf_ext.data.pruning.median import GeometricMedian, not_converged
from hf_ext.data.pruning.report import PruneReport, make_report
from hf_ext.data.pruning.selectors import check_method, select_rows
from hf_ext.data.splits import with_split
from hf_ext.data.vectors.columns import column_vectors, label_values, refuse_bad_vectors, score_values
from hf_ext.data.vectors.embedding import embed_rows
from hf_ext.guards.row_text import excerpt_of

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["prune"]

RANK = "prune_rank"
_PROVEN = 1e-6  # relative gap above which a median is not taken for one


def prune(
    dataset: Any,
    k: int | None = None,
    fraction: float | None = None,
    *,
    method: str = "gm",
    column: str | np.ndarray = "embedding",
    encoder: Any = None,
    input_column: str | list[str] | None = None,
    by: str | None = None,
    score_column: str | None = None,
    seed: int = 0,
    return_report: bool = False,
    split: str = "train",
    batch_size: int = 64,
    cache_dir: str | Path | None = None,
    strict: bool = False,
    show_progress: bool = True,
    **method_options: Any,
) -> Any:
    """
    Keep `k` rows that stand for the clean bulk of a dataset; by default those of Geometric Median Matching.

    | column in | type | column out | type |
    |---|---|---|---|
    | `column`, or none with `encoder` | list of float32, all of one length | every column | as it was |
    | `by`, if given | str, int, bool or `ClassLabel` | `prune_rank` | int32, from 0 |
    | `score_column`, if given | float or int, higher for harder rows | | |
    | `input_column`, with `encoder` | str or image | | |

    The rows stay in their order. `prune_rank` is the place at which a row was picked among those of its label: the
    rows with a rank below m are what a smaller number would have kept of that label (not with `partitions`, and not of
    a stream). A `prune_rank` that is there is replaced.

    Args:
        dataset (`Dataset`, `IterableDataset` or `DatasetDict`):
            Rows. Of a `DatasetDict` only `split` is pruned; the others get an empty `prune_rank`. A stream is read
            twice, see [`~hf_ext.data.pruning.streaming.prune_stream`].
        k (`int`, *optional*), fraction (`float`, *optional*):
            Rows to keep, or their share in (0, 1], rounded to the nearest row and at least one: one of the two.
        method (`str`, *optional*, defaults to `"gm"`):
            A name in [`~hf_ext.data.pruning.selectors.SELECTORS`]; [`select_rows`] says what each picks.
        column (`str` or array of shape `(n, d)`, *optional*, defaults to `"embedding"`):
            Column of the vectors, or the vectors themselves, which may be memory-mapped.
        encoder (*optional*):
            Computes the vectors: a sentence-transformers model, a pair of a transformers model and its tokenizer or
            image processor, a feature-extraction pipeline, a name or folder, or a function batch -> `(b, d)`. They are
            kept in a file and found again, see [`embed_rows`].
        input_column (`str` or `list[str]`, *optional*):
            What the encoder reads; `text`, or the only column of texts or images, by default.
        by (`str`, *optional*):
            Label column: prune each label's rows on their own. Shares lose no remainder, see `budget`.
        score_column (`str`, *optional*):
            Scores for `el2n`, `grand`, `forgetting`, `uncertainty` and selectors of your own.
        seed (`int`, *optional*, defaults to 0):
            Of methods that draw, and of the report's samples. The same arguments give the same rows.
        return_report (`bool`, *optional*, defaults to `False`):
            Also return a [`PruneReport`]; takes a few passes over the vectors.
        split (`str`, *optional*, defaults to `"train"`):
            Split of a `DatasetDict` to prune.
        batch_size (`int`, *optional*, defaults to 64), cache_dir (`str` or `Path`, *optional*):
            Of the encoder, see [`embed_rows`].
        strict (`bool`, *optional*, defaults to `False`):
            Raise where the geometric median is not proven to a relative gap of 1e-6; a warning otherwise.
        method_options:
            Of the method: `budget`, `min_per_group`, and for `gm` all of [`gm_matching`]: `trim`, `target_scale`,
            `metric`, `engine`, `backend`, `resume_path`, ...

    Returns:
        `Dataset` (`IterableDataset`, `DatasetDict`), or a tuple of it and a [`PruneReport`].

    Raises:
        ValueError: arguments or a column that cannot be used.
        RowError: a row that cannot be used, by its index, column and an excerpt.
        RuntimeError: a median that is not proven, with `strict=True`.

    Reference: Acharya et al. 2025, *Geometric Median (GM) Matching for Robust k-Subset Selection from Noisy Data*
    (arXiv 2504.00564), Algorithm 1.
    """
    from datasets import Dataset, DatasetDict, IterableDataset

    if not isinstance(dataset, IterableDataset):  # of a stream by `prune_stream`, which has others
        check_method(method, method_options)
    vectors = {"column": column, "encoder": encoder, "input_column": input_column, "batch_size": batch_size}
    shared = {"method": method, "by": by, "score_column": score_column, "seed": seed, **vectors, **method_options}
    shared |= {"cache_dir": cache_dir, "strict": strict, "show_progress": show_progress}
    if isinstance(dataset, DatasetDict):
        return _prune_split(dataset, split, k, fraction, return_report, shared)
    if isinstance(dataset, IterableDataset):
        from hf_ext.data.pruning.streaming import prune_stream

        if return_report or score_column is not None:
            asked = "return_report=True" if return_report else f"score_column={score_column!r}"
            raise ValueError(f"{asked} needs all rows at hand: materialise the stream with Dataset.from_generator.")
        for name in ("score_column", "cache_dir", "strict"):
            shared.pop(name)
        return prune_stream(dataset, k, fraction, **shared)
    if not isinstance(dataset, Dataset):
        raise TypeError(
            f"prune needs a Dataset, IterableDataset or DatasetDict, got {type(dataset).__name__}. Make one with "
            "Dataset.from_list(rows)."
        )
    return _prune(dataset, k, fraction, return_report, shared)


def number_of_rows(k: int | None, fraction: float | None, n: int, budget: Any = None) -> int | None:
    """
    How many of `n` rows to keep; `None` where `budget` is a dictionary that says it.

    Raises:
        ValueError: both or neither of the two, or one that cannot be.
    """
    if k is not None and fraction is not None:
        raise ValueError(f"k={k} and fraction={fraction} are both given: leave one of them out.")
    if fraction is not None:
        number = isinstance(fraction, (int, float)) and not isinstance(fraction, bool)
        if not number or not 0 < fraction <= 1:
            raise ValueError(
                f"fraction must be a share of the {n:,} rows in (0, 1], got {fraction!r}. Pass k for rows."
            )
        return max(1, int(fraction * n + 0.5))
    if k is None:
        if isinstance(budget, Mapping):
            return None
        raise ValueError(f"k={k} and fraction={fraction}: give the number of rows to keep, or their share in (0, 1].")
    if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or not 1 <= k <= n:
        raise ValueError(f"k must be a whole number of rows from 1 to {n:,}, got {k!r}.")
    return int(k)


def _prune(
    dataset: Dataset, k: int | None, fraction: float | None, return_report: bool, shared: dict[str, Any]
) -> Any:
    own = dict(shared)
    method, by, score_column, seed = (own.pop(name) for name in ("method", "by", "score_column", "seed"))
    column, encoder, input_column = (own.pop(name) for name in ("column", "encoder", "input_column"))
    batch_size, cache_dir, strict = (own.pop(name) for name in ("batch_size", "cache_dir", "strict"))
    show_progress = own.pop("show_progress")
    n = len(dataset)
    if n == 0:
        raise ValueError("The dataset is empty: there is no row to keep. Check its filters and split.")
    count = number_of_rows(k, fraction, n, own.get("budget"))
    scores = None if score_column is None else score_values(dataset, score_column)
    groups = None if by is None else label_values(dataset, by)
    notes: tuple[str, ...] = ()
    if encoder is not None:
        X = embed_rows(dataset, encoder, input_column=input_column, batch_size=batch_size, cache_dir=cache_dir,
                       show_progress=show_progress)  # fmt: skip
    elif not isinstance(column, str):
        X = np.asanyarray(column)
        if X.ndim != 2 or len(X) != n:
            raise ValueError(f"column must hold one vector a row: an array of shape {X.shape}, {n:,} rows.")
    elif column not in dataset.column_names and (method == "random" or scores is not None):
        X = None  # nothing to measure with, but nothing is needed either
    else:
        X, notes = column_vectors(dataset, column, cache_dir)
    source = column if isinstance(column, str) and encoder is None else "embedding"
    if method in ("gm", "herding", "gm_official"):
        own["show_progress"] = show_progress
    metric = str(own.get("metric", "unit" if method in ("gm", "gm_official") else "raw"))
    blank = np.zeros(n) if X is None and scores is None else scores  # `random` counts the rows
    try:
        matching = select_rows(method, X, count, groups=groups, scores=blank, seed=seed, **own)
    except ValueError:
        if X is not None and X.dtype.kind == "f":
            refuse_bad_vectors(X, dataset, source, metric)  # says which row it was
        raise
    _check_median(matching, strict)
    pruned = keep_rows(dataset, matching)
    if not return_report:
        return pruned
    settings = {"k": k, "fraction": fraction, "seed": seed, **{name: _plain(value) for name, value in own.items()}}
    plain = dataset.with_format(None).remove_columns([column] if column_is_in(dataset, column) else [])
    report = make_report(
        matching, X, groups, n, metric=metric, by=by, seed=seed, notes=notes, settings=settings,
        excerpt=lambda index: excerpt_of(plain[index], RANK, "text") if plain.column_names else "",
    )  # fmt: skip
    return pruned, report


def column_is_in(dataset: Dataset, column: Any) -> bool:
    """Whether `column` names a column of the dataset."""
    return isinstance(column, str) and column in dataset.column_names


def keep_rows(dataset: Dataset, matching: Matching) -> Dataset:
    """The picked rows in the dataset's order, with `prune_rank`."""
    from datasets import Value

    order = np.argsort(matching.indices, kind="stable")
    if RANK in dataset.column_names:
        dataset = dataset.remove_columns(RANK)
    kept = dataset.select(matching.indices[order])
    return kept.add_column(RANK, matching.prune_rank[order], feature=Value("int32"))


def _prune_split(
    splits: Any, split: str, k: int | None, fraction: float | None, return_report: bool, shared: dict[str, Any]
) -> Any:
    if split not in splits:
        raise ValueError(f"split={split!r}: the splits are {list(splits)}. Name the one to prune.")
    found = _prune(splits[split], k, fraction, return_report, shared)
    pruned, report = found if return_report else (found, None)
    without_ranks = {
        name: rows.remove_columns(RANK) if RANK in rows.column_names else rows for name, rows in splits.items()
    }
    out = with_split(without_ranks, split, pruned)
    return (out, report) if return_report else out


def _check_median(matching: Matching, strict: bool) -> None:
    if not strict:
        return  # the matching has warned
    found = matching.median.values() if isinstance(matching.median, Mapping) else [matching.median]
    for median in found:
        if isinstance(median, GeometricMedian) and median.rel_gap > _PROVEN:
            raise RuntimeError(not_converged(median, _PROVEN))


def _plain(value: Any) -> Any:
    """A setting as the report's JSON can hold it."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    return str(value) if isinstance(value, Path) else f"{type(value).__name__}{getattr(value, 'shape', '')}"


__all__ += ["PruneReport"]
