"""Prune a dataset: keep the rows that stand for the clean bulk of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_ext.data.pruning.groups import number_of_rows
from hf_ext.data.pruning.matching import RANK, Matching
from hf_ext.data.pruning.median import not_converged
from hf_ext.data.pruning.report import PruneReport, make_report
from hf_ext.data.pruning.selectors import check_method, select_rows
from hf_ext.data.pruning.streaming import prune_stream
from hf_ext.data.splits import with_split
from hf_ext.data.vectors.columns import column_vectors, label_values, refuse_row, score_values
from hf_ext.data.vectors.embedding import embed_rows
from hf_ext.data.vectors.encoders import EncoderLike
from hf_ext.data.vectors.rows import BadVector
from hf_ext.guards.row_text import excerpt_of

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict, IterableDataset

__all__ = ["PruneReport", "prune"]

_PROVEN = 1e-6  # relative gap above which a median is not taken for one


def prune(
    dataset: Dataset | IterableDataset | DatasetDict,
    k: int | None = None,
    fraction: float | None = None,
    *,
    method: str = "gm",
    column: str | np.ndarray = "embedding",
    encoder: EncoderLike | None = None,
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
) -> Any:  # what went in, or a tuple of it and a report: a union would have to be narrowed at every call
    """
    Keep `k` rows that stand for the clean bulk of a dataset; by default those of Geometric Median Matching.

    | column in | type | column out | type |
    |---|---|---|---|
    | `column`, or none with `encoder` | list of float32, all of one length | every column | as it was |
    | `by`, if given | str, int, bool or `ClassLabel` | `prune_rank` | int32, from 0 |
    | `score_column`, if given | float or int, higher for harder rows | | |
    | `input_column`, with `encoder` | str or image | | |

    The rows stay in their order. `prune_rank` is the place at which a row was picked among those of its label: the
    rows with a rank below m are what a smaller number would have kept of that label (not of a stream). A `prune_rank`
    that is there is replaced.

    Args:
        dataset (`Dataset`, `IterableDataset` or `DatasetDict`):
            Rows. Of a `DatasetDict` only `split` is pruned; the others get an empty `prune_rank`. A stream is read
            twice, see [`~hf_ext.data.pruning.streaming.prune_stream`].
        k (`int`, *optional*), fraction (`float`, *optional*):
            Rows to keep, or their share in (0, 1], rounded to the nearest row and at least one: one of the two.
        method (`str`, *optional*, defaults to `"gm"`):
            [`select_rows`] names them and says what each picks.
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
            Scores for `method="score"` and selectors of your own.
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
        ValueError: if an argument or a column cannot be used.
        RowError: if a row cannot be used; it is named by its index, column and an excerpt.
        RuntimeError: if a median is not proven, with `strict=True`.

    Reference: Acharya et al. 2025, *Geometric Median (GM) Matching for Robust k-Subset Selection from Noisy Data*
    (arXiv 2504.00564), Algorithm 1.
    """
    from datasets import Dataset, DatasetDict, IterableDataset

    if isinstance(dataset, IterableDataset):
        if return_report or score_column is not None:
            refused = "return_report=True" if return_report else f"score_column={score_column!r}"
            raise ValueError(f"{refused} needs all rows at hand: materialise the stream with Dataset.from_generator.")
        return prune_stream(
            dataset, k, fraction, method=method, column=column, encoder=encoder, input_column=input_column, by=by,
            seed=seed, batch_size=batch_size, show_progress=show_progress, **method_options,
        )  # fmt: skip
    method = check_method(method, method_options)
    splits = dataset if isinstance(dataset, DatasetDict) else None
    if splits is not None and split not in splits:
        raise ValueError(f"split={split!r}: the splits are {list(splits)}. Name the one to prune.")
    rows = dataset if splits is None else splits[split]
    if not isinstance(rows, Dataset):
        raise TypeError(
            f"prune needs a Dataset, IterableDataset or DatasetDict, got {type(rows).__name__}. Make one with "
            "Dataset.from_list(rows)."
        )
    n = len(rows)
    if n == 0:
        raise ValueError("The dataset is empty: there is no row to keep. Check its filters and split.")
    count = number_of_rows(k, fraction, n, method_options.get("budget"))
    scores = None if score_column is None else score_values(rows, score_column)
    groups = None if by is None else label_values(rows, by)
    notes: tuple[str, ...] = ()
    X: np.ndarray | None = None
    if encoder is not None:
        X = embed_rows(rows, encoder, input_column=input_column, batch_size=batch_size, cache_dir=cache_dir,
                       show_progress=show_progress)  # fmt: skip
    elif not isinstance(column, str):
        X = np.asanyarray(column)
        if X.ndim != 2 or len(X) != n:
            raise ValueError(f"column must hold one vector a row: an array of shape {X.shape}, {n:,} rows.")
    elif column in rows.column_names or not (method == "random" or scores is not None):
        X, notes = column_vectors(rows, column, cache_dir)
    if X is None and scores is None:
        scores = np.zeros(n)  # `random` counts the rows by them
    progress: dict[str, Any] = {"show_progress": show_progress} if method in ("gm", "herding", "gm_official") else {}
    try:
        matching = select_rows(method, X, count, groups=groups, scores=scores, seed=seed, **method_options, **progress)
    except BadVector as error:
        vector_column = column if isinstance(column, str) and encoder is None else "embedding"
        row = rows.with_format(None)[error.row]
        refuse_row(row, error.row, vector_column, error.problem, error.remedy)
    if strict:
        _refuse_unproven_medians(matching)
    pruned = _rows_of(rows, matching)
    result = pruned if splits is None else with_split(_without_ranks(splits), split, pruned)
    if not return_report:
        return result
    settings = {"k": k, "fraction": fraction, "seed": seed}
    settings |= {name: _plain(value) for name, value in method_options.items()}
    metric = str(method_options.get("metric", "unit" if method in ("gm", "gm_official") else "raw"))
    texts = rows.with_format(None)
    if isinstance(column, str) and column in rows.column_names:
        texts = texts.remove_columns(column)
    report = make_report(
        matching, X, groups, n, metric=metric, by=by, seed=seed, notes=notes, settings=settings,
        excerpt=lambda index: excerpt_of(texts[index], RANK, "text") if texts.column_names else "",
    )  # fmt: skip
    return result, report


def _rows_of(dataset: Dataset, matching: Matching) -> Dataset:
    """The picked rows in the dataset's order, with `prune_rank`."""
    from datasets import Value

    order = np.argsort(matching.indices, kind="stable")
    if RANK in dataset.column_names:
        dataset = dataset.remove_columns(RANK)
    pruned = dataset.select(matching.indices[order])
    return pruned.add_column(RANK, matching.prune_rank[order], feature=Value("int32"))


def _without_ranks(splits: Mapping[str, Dataset]) -> dict[str, Dataset]:
    return {name: rows.remove_columns(RANK) if RANK in rows.column_names else rows for name, rows in splits.items()}


def _refuse_unproven_medians(matching: Matching) -> None:
    for part in matching.groups.values():
        if part.median is not None and part.median.rel_gap > _PROVEN:
            raise RuntimeError(not_converged(part.median, _PROVEN))


def _plain(value: object) -> Any:
    """A setting as the report's JSON can hold it."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    return str(value) if isinstance(value, Path) else f"{type(value).__name__}{getattr(value, 'shape', '')}"
