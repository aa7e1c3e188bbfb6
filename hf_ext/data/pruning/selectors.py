"""Selectors by name: Geometric Median Matching and its rivals behind one call."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Protocol, TypeAlias

import numpy as np

from hf_ext.data.pruning._options import check_options
from hf_ext.data.pruning._rows import Rows, Selection, check_rows
from hf_ext.data.pruning._run import _center
from hf_ext.data.pruning._types import FloatArray, IntArray
from hf_ext.data.pruning.groups import Label, split_groups
from hf_ext.data.pruning.matching import Matching, _counts, gm_matching
from hf_ext.data.pruning.official import gm_official

Selector: TypeAlias = Callable[..., Matching]
"""`(X, k, *, groups, scores, rng, budget, min_per_group, **options) -> Matching`, over all rows at once."""

SELECTORS: dict[str, Selector] = {}
"""Selectors by name; add one with [`register_selector`], or put a whole `Selector` in yourself."""

_ALL = "all rows"


class _Picker(Protocol):
    """Places of `k` rows of one group, in pick order."""

    def __call__(
        self, selection: Selection | None, k: int, scores: FloatArray | None, rng: np.random.Generator, **options: Any
    ) -> Any: ...


def select_rows(
    method: str,
    X: Any,
    k: int | None,
    *,
    groups: Any = None,
    scores: Any = None,
    seed: int = 0,
    budget: str | Mapping[Label, int] = "proportional",
    min_per_group: int = 0,
    **options: Any,
) -> Matching:
    """
    Pick `k` rows by a selector's name. Ties go to the lowest row number; the same arguments give the same picks.

    | method | picks, in this order | options |
    |---|---|---|
    | `gm` | [`gm_matching`] | its own |
    | `gm_official` | [`gm_official`], the released code | its own |
    | `herding` | [`gm_matching`] to the mean of the rows as they are | its own |
    | `random` | rows in shuffled order, from `seed` | |
    | `moderate` | distance to the group's mean nearest to the group's median distance | |
    | `easy`, `hard` | nearest to the group's mean, farthest from it | |
    | `k_center` | the row nearest to the mean, then always the row farthest from those picked | |
    | `el2n`, `grand`, `forgetting`, `uncertainty` | highest `scores` first, or lowest with `keep="easy"` | `keep` |

    Args:
        method (`str`):
            A name in [`SELECTORS`].
        X (array of shape `(n, d)` or `None`):
            Rows as for [`gm_matching`]; may be `None` where `scores` decide, and for `random` with `scores`.
        k (`int` or `None`), groups, budget, min_per_group:
            As for [`gm_matching`]: each group is picked from on its own, and its share loses no remainder.
        scores (array of shape `(n,)`, *optional*):
            One finite number a row, higher for harder rows; [`~hf_ext.data.pruning.scores`] computes them. Needed by
            `el2n`, `grand`, `forgetting` and `uncertainty`, which rank by whatever is given; refused where they would
            be ignored.
        seed (`int`, *optional*, defaults to 0):
            Of `random` and of the start of `gm_official`.
        options:
            Those of the table. Every method but `gm_official` takes `metric` (`"unit"` is the default of `gm`, `"raw"`
            of the others, as in their papers) and `center` (`"gm"` by default, `"mean"` for `herding`): what the
            picks' mean is measured against.

    Returns:
        [`Matching`]. Methods that match nothing fill it so: `theta_norm` is `||t center - sum of the first t picks||`
        and `moment_error` its last value over `k` (of each group); `verdict` is `"no target"`, `engine` `"none"`,
        `evals_per_pick` and `hull_gap` 0, `top_score` NaN. Without `X`, `center` and `median` are `None`, and
        `theta_norm` and `moment_error` NaN.

    Raises:
        ValueError: an unknown method, rows or scores that cannot be used (the message names the row), missing or
            unwanted `scores`.

    Reference: Welling 2009, *Herding dynamical weights to learn*; Sener, Savarese 2018, arXiv 1708.00489 (k-center);
    Xia et al. 2023, *Moderate Coreset*; Sorscher et al. 2022 (easy and hard, arXiv 2206.14486).
    """
    check_method(method, {**options, "budget": budget, "min_per_group": min_per_group})
    return SELECTORS[method](
        X,
        k,
        groups=groups,
        scores=scores,
        rng=np.random.default_rng(seed),
        budget=budget,
        min_per_group=min_per_group,
        **options,
    )


def check_method(method: str, options: Mapping[str, Any]) -> None:
    """
    Refuse an unknown method, and options that it does not have or of another type, before any row is read.

    Raises:
        ValueError: names the method or the option, and those that there are.
    """
    if method not in SELECTORS:
        near = difflib.get_close_matches(str(method), SELECTORS, 1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"Unknown method {method!r}: choose one of {', '.join(SELECTORS)}.{hint}")
    check_options(method, options)


def register_selector(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """
    Add a selector of your own under `name`.

        @register_selector("longest")
        def longest(X, k, *, scores, rng, **options):
            return np.argsort(-np.linalg.norm(X, axis=1), kind="stable")[:k]

    The function sees one group at a time: `X` of shape `(rows, d)` (`None` where none was given), the number of rows
    to pick, the group's `scores` (`None` where none were given) and a `np.random.Generator`; `metric` and `center` do
    not reach it, other options do. It returns `k` different places in the group, from 0, in pick order. The result is
    checked, shared budgets and the [`Matching`] are taken care of.

    Args:
        name (`str`):
            New name, as it is passed to `select_rows` and `prune`.

    Raises:
        ValueError: the name is taken.
    """
    if name in SELECTORS:
        raise ValueError(f"A selector named {name!r} is there already: choose another name.")

    def add(function: Callable[..., Any]) -> Callable[..., Any]:
        def picker(
            selection: Selection | None,
            k: int,
            scores: FloatArray | None,
            rng: np.random.Generator,
            **options: Any,
        ) -> Any:
            own = None
            if selection is not None:
                values = selection.rows.values
                own = values if selection.index is None else values[selection.index]
            return function(own, k, scores=scores, rng=rng, **options)

        SELECTORS[name] = _by_group(name, picker)
        return function

    return add


def _by_group(method: str, picker: _Picker, needs: str = "") -> Selector:
    """A selector over all rows from one that picks within a group; `needs` is `"rows"`, `"scores"` or nothing."""

    def selector(
        X: Any,
        k: int | None,
        *,
        groups: Any = None,
        scores: Any = None,
        rng: np.random.Generator | int = 0,
        budget: str | Mapping[Label, int] = "proportional",
        min_per_group: int = 0,
        metric: str = "raw",
        center: Any = "gm",
        **options: Any,
    ) -> Matching:
        rows = None if X is None else check_rows(X, metric)
        if needs == "rows":
            _refuse_scores(method, scores)
        values = None if scores is None else _scores(scores, rows)
        if values is None and (rows is None or needs == "scores"):
            raise ValueError(_missing(method, needs))
        n = len(rows.values) if rows is not None else len(values)  # type: ignore[arg-type]
        if rows is None and needs == "rows":
            raise ValueError(_missing(method, needs))
        places: dict[Any, Any] = {_ALL: None} if groups is None else split_groups(groups, n)
        sizes = {label: n if index is None else len(index) for label, index in places.items()}
        counts, notes = _counts(k, n, sizes, budget, min_per_group, groups is not None, False)
        generator, picks = np.random.default_rng(rng), {}
        for label in [label for label in places if counts[label]]:
            index = np.arange(n) if places[label] is None else places[label]
            own = None if values is None else values[index]
            selection = None if rows is None else Selection(rows, places[label])
            found = picker(selection, counts[label], own, generator, **options)
            picks[label] = index[_checked(found, counts[label], len(index), method)]
        all_notes = (*(rows.notes if rows is not None else ()), *notes)
        return _matching(method, rows, places, picks, center, groups is not None, all_notes)

    return selector


def _missing(method: str, needs: str) -> str:
    if needs == "scores":
        return (
            f"method={method!r} ranks rows by scores, and none were given: pass scores=, one number a row, higher for "
            "harder rows. hf_ext.data.pruning.scores computes them from logits, gradients or a training log."
        )
    return f"method={method!r} needs the rows X, an array of shape (n, d); X is None."


def _refuse_scores(method: str, scores: Any) -> None:
    if scores is not None:
        raise ValueError(f"method={method!r} takes no scores: leave them out, or choose 'el2n' to rank by them.")


def _scores(scores: Any, rows: Rows | None) -> FloatArray:
    array = np.asarray(scores)
    if array.dtype.kind not in "fiub":
        raise ValueError(f"scores must be finite numbers, one a row, higher for harder rows; got {array.dtype}.")
    expected = array.size if rows is None else len(rows.values)
    if array.shape != (expected,) or not expected:
        raise ValueError(f"scores must be one number a row: shape {array.shape}, {expected:,} rows.")
    values = array.astype(np.float64)
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        more = f" ({len(bad) - 1:,} more like it)" if len(bad) > 1 else ""
        raise ValueError(
            f"Score of row {bad[0]:,} is {values[bad[0]]}{more}: scores must be finite. Drop the row, or compute its "
            "score again."
        )
    return values


def _checked(found: Any, k: int, n: int, method: str) -> IntArray:
    places = np.asarray(found)
    if places.shape != (k,) or places.dtype.kind not in "iu":
        raise ValueError(
            f"Selector {method!r} must return {k:,} whole numbers, got {places.dtype} of shape {places.shape}."
        )
    outside = np.flatnonzero((places < 0) | (places >= n))
    if len(outside):
        raise ValueError(f"Selector {method!r} returned row {places[outside[0]]:,} of a group of {n:,} rows.")
    values, times = np.unique(places, return_counts=True)
    if len(values) < k:
        raise ValueError(f"Selector {method!r} returned row {values[times > 1][0]:,} of its group more than once.")
    return places.astype(np.int64)


def _matching(
    method: str,
    rows: Rows | None,
    places: Mapping[Any, IntArray | None],
    picks: Mapping[Any, IntArray],
    center: Any,
    grouped: bool,
    notes: tuple[str, ...],
) -> Matching:
    """The picks as a [`Matching`], measured against a centre they did not aim at."""
    centers: dict[Any, Any] = {}
    medians: dict[Any, Any] = {}
    errors, lengths = {}, []
    for label, index in picks.items():
        if rows is None:
            centers[label], medians[label], length = None, None, np.full(len(index), np.nan)
        else:
            given = center.get(label) if isinstance(center, Mapping) else center
            if given is None:
                raise ValueError(f"center is a dictionary without an entry for group {label!r}.")
            centers[label], medians[label] = _center(Selection(rows, places[label]), given, 1)
            length = _theta_norms(rows, index, centers[label])
        lengths.append(length)
        errors[label] = float(length[-1] / len(index))

    def shape(values: Mapping[Any, Any]) -> Any:
        return dict(values) if grouped else values[_ALL]

    names = None
    if grouped:
        names = np.empty(sum(map(len, picks.values())), dtype=object)
        names[:] = [label for label, index in picks.items() for _ in index]
    indices = np.concatenate(list(picks.values()))
    return Matching(
        indices=indices,
        group=names,
        theta_norm=np.concatenate(lengths),
        moment_error=shape(errors),
        evals_per_pick=0.0,
        engine="none",
        center=shape(centers),
        median=shape(medians),
        top_score=np.full(len(indices), np.nan),
        hull_gap=shape(dict.fromkeys(picks, 0.0)),
        verdict=shape(dict.fromkeys(picks, "no target")),
        method=method,
        notes=notes,
    )


def _theta_norms(rows: Rows, index: IntArray, center: FloatArray) -> FloatArray:
    theta, lengths = np.zeros_like(center), []
    for place, block in Selection(rows, index).blocks():
        steps = np.cumsum(center - block, axis=0) + theta
        lengths.append(np.sqrt(np.einsum("ij,ij->i", steps, steps)))
        theta = steps[place.stop - place.start - 1]
    return np.concatenate(lengths)


def _distances(selection: Selection, point: FloatArray) -> FloatArray:
    parts = []
    for _, block in selection.blocks():
        block -= point
        parts.append(np.sqrt(np.einsum("ij,ij->i", block, block)))
    return np.concatenate(parts)


def _first(keys: FloatArray, k: int) -> IntArray:
    return np.argsort(keys, kind="stable")[:k]  # stable: ties by row number


def _random(
    selection: Selection | None, k: int, scores: FloatArray | None, rng: np.random.Generator, **options: Any
) -> IntArray:
    _no_options("random", options)
    n = len(scores) if selection is None and scores is not None else len(selection or ())
    return rng.permutation(n)[:k]


def _by_distance(method: str) -> _Picker:
    def picker(
        selection: Selection | None, k: int, scores: FloatArray | None, rng: np.random.Generator, **options: Any
    ) -> IntArray:
        _no_options(method, options)
        assert selection is not None
        distances = _distances(selection, selection.mean())
        if method == "moderate":
            distances = np.abs(distances - np.median(distances))
        return _first(-distances if method == "hard" else distances, k)

    return picker


def _k_center(
    selection: Selection | None, k: int, scores: FloatArray | None, rng: np.random.Generator, **options: Any
) -> IntArray:
    _no_options("k_center", options)
    assert selection is not None
    picks = np.empty(k, np.int64)
    picks[0] = np.argmin(_distances(selection, selection.mean()))
    nearest = np.full(len(selection), np.inf)  # distance to the nearest pick; -1 for the picks themselves
    for t in range(1, k):
        last = int(picks[t - 1])
        np.minimum(nearest, _distances(selection, selection.at(last, last + 1)[0]), out=nearest)
        nearest[picks[:t]] = -1.0
        picks[t] = np.argmax(nearest)
    return picks


def _by_scores(method: str) -> _Picker:
    def picker(
        selection: Selection | None,
        k: int,
        scores: FloatArray | None,
        rng: np.random.Generator,
        keep: str = "hard",
        **options: Any,
    ) -> IntArray:
        _no_options(method, options)
        if keep not in ("hard", "easy"):
            raise ValueError(f"keep must be 'hard' (highest scores) or 'easy' (lowest), got {keep!r}.")
        assert scores is not None
        return _first(scores if keep == "easy" else -scores, k)

    return picker


def _no_options(method: str, options: Mapping[str, Any]) -> None:
    if options:
        raise ValueError(f"method={method!r} has no option {next(iter(options))!r}.")


def _gm(X: Any, k: int | None, *, scores: Any = None, rng: Any = 0, **options: Any) -> Matching:
    _refuse_scores("gm", scores)
    return gm_matching(_needed("gm", X), k, **options)


def _herding(X: Any, k: int | None, *, scores: Any = None, rng: Any = 0, **options: Any) -> Matching:
    _refuse_scores("herding", scores)
    matching = gm_matching(_needed("herding", X), k, **{"center": "mean", "metric": "raw", **options})
    return replace(matching, method="herding")


def _official(X: Any, k: int | None, *, scores: Any = None, rng: Any = 0, **options: Any) -> Matching:
    _refuse_scores("gm_official", scores)
    return gm_official(_needed("gm_official", X), k, seed=rng, **options)


def _needed(method: str, X: Any) -> Any:
    if X is None:
        raise ValueError(_missing(method, "rows"))
    return X


SELECTORS["random"] = _by_group("random", _random)
SELECTORS |= {"herding": _herding, "gm": _gm, "gm_official": _official}
SELECTORS |= {name: _by_group(name, _by_distance(name), "rows") for name in ("moderate", "easy", "hard")}
SELECTORS["k_center"] = _by_group("k_center", _k_center, "rows")
SELECTORS |= {
    name: _by_group(name, _by_scores(name), "scores") for name in ("el2n", "grand", "forgetting", "uncertainty")
}

__all__ = ["SELECTORS", "Selector", "register_selector", "select_rows"]
