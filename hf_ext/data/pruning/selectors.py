"""Selectors by name: Geometric Median Matching and its rivals behind one call."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from numbers import Integral, Real
from typing import Any, get_args, get_type_hints

import numpy as np
from numpy.typing import ArrayLike

from hf_ext.data.pruning.groups import Budget, Label, counts_of, split_groups
from hf_ext.data.pruning.matching import Matching, gm_matching
from hf_ext.data.pruning.official import gm_official
from hf_ext.data.pruning.one_group import GroupMatching
from hf_ext.data.vectors.rows import FloatArray, IntArray, Selection, check_rows

Groups = Sequence[Label] | np.ndarray | None


def select_rows(
    method: str,
    X: ArrayLike | None,
    k: int | None,
    *,
    groups: Groups = None,
    scores: ArrayLike | None = None,
    seed: int = 0,
    budget: Budget = "proportional",
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
    | `moderate` | distance to the group's mean nearest to the group's median distance | `metric` |
    | `easy`, `hard` | nearest to the group's mean, farthest from it | `metric` |
    | `k_center` | the row nearest to the mean, then always the row farthest from those picked | `metric` |
    | `score` | highest `scores` first, or lowest with `keep="easy"` | `keep` |

    Args:
        method (`str`):
            One of these, or a name that [`register_selector`] added.
        X (array of shape `(n, d)` or `None`):
            Rows as for [`gm_matching`]; may be `None` where `scores` decide, and for `random` with `scores`.
        k (`int` or `None`), groups, budget, min_per_group:
            As for [`gm_matching`]: each group is picked from on its own, and its share loses no remainder.
        scores (array of shape `(n,)`, *optional*):
            One finite number a row, higher for harder rows: of EL2N, of the length of a gradient, of how often a row
            was forgotten, ... Needed by `score`; refused where they would be ignored.
        seed (`int`, *optional*, defaults to 0):
            Of `random` and of the start of `gm_official`.
        options:
            Those of the table. `metric` is `"unit"` by default for `gm`, `"raw"` for the others, as in their papers.

    Returns:
        [`Matching`]; of methods that match nothing it holds the picks and no more.

    Raises:
        ValueError: if the method is unknown, rows or scores cannot be used (the message names the row), or `scores`
            are missing or unwanted.

    Reference: Welling 2009, *Herding dynamical weights to learn*; Sener, Savarese 2018, arXiv 1708.00489 (k-center);
    Xia et al. 2023, *Moderate Coreset*; Sorscher et al. 2022 (easy and hard, arXiv 2206.14486).
    """
    method = check_method(method, {**options, "budget": budget, "min_per_group": min_per_group})
    shared: dict[str, Any] = {"groups": groups, "budget": budget, "min_per_group": min_per_group}
    if method not in MATCHERS:
        return _selected(method, X, k, scores=scores, seed=seed, **shared, **options)
    if X is None:
        raise ValueError(f"method={method!r} needs the rows X, an array of shape (n, d); X is None.")
    if scores is not None:
        raise ValueError(f"method={method!r} takes no scores: leave them out, or choose 'score' to rank by them.")
    if method == "gm_official":
        options["seed"] = seed
    return MATCHERS[method](X, k, **shared, **options)


def _herding(X: ArrayLike, k: int | None, **options: Any) -> Matching:
    matching = gm_matching(X, k, **{"center": "mean", "metric": "raw", **options})
    return replace(matching, method="herding")


# (selection or None, k, scores or None, rng, **options) -> k places in the group, in pick order
_Picker = Callable[..., ArrayLike]


@dataclass(frozen=True)
class Selector:
    """What picks within a group, and whether it needs `"rows"`, `"scores"` or neither."""

    pick: _Picker
    needs: str = ""


def _selected(
    method: str,
    X: ArrayLike | None,
    k: int | None,
    *,
    groups: Groups,
    scores: ArrayLike | None,
    seed: int,
    budget: Budget,
    min_per_group: int,
    metric: str = "raw",
    **options: Any,
) -> Matching:
    selector = SELECTORS[method]
    rows = None if X is None else check_rows(X, metric)
    if selector.needs == "rows" and scores is not None:
        raise ValueError(f"method={method!r} takes no scores: leave them out, or choose 'score' to rank by them.")
    if selector.needs == "scores" and scores is None:
        raise ValueError(
            f"method={method!r} ranks rows by scores, and none were given: pass scores=, one number a row, higher for "
            "harder rows."
        )
    if rows is None and (selector.needs == "rows" or scores is None):
        raise ValueError(f"method={method!r} needs the rows X, an array of shape (n, d); X is None.")
    values = None if scores is None else _checked_scores(scores, None if rows is None else len(rows.values))
    n = len(rows.values) if rows is not None else len(values if values is not None else ())
    places = split_groups(groups, n)
    counts, notes = counts_of(k, places, n, 0.0, budget, min_per_group)
    rng = np.random.default_rng(seed)
    results = {}
    for label in [label for label in places if counts[label]]:
        numbers = places[label]
        numbers = np.arange(n) if numbers is None else numbers
        group_scores = None if values is None else values[numbers]
        selection = None if rows is None else Selection(rows, places[label])
        picks = selector.pick(selection, counts[label], group_scores, rng, **options)
        indices = numbers[_checked_places(picks, counts[label], len(numbers), method)]
        unknown = np.full(len(indices), np.nan)  # no theta: nothing was matched
        results[label] = GroupMatching(indices, unknown, unknown)
    return Matching(results, groups is not None, method, (*(rows.notes if rows is not None else ()), *notes))


def _checked_scores(scores: ArrayLike, n: int | None) -> FloatArray:
    array = np.asarray(scores)
    if array.dtype.kind not in "fiub":
        raise ValueError(f"scores must be finite numbers, one a row, higher for harder rows; got {array.dtype}.")
    expected = array.size if n is None else n
    if array.shape != (expected,) or not expected:
        raise ValueError(f"scores must be one number a row: shape {array.shape}, {expected:,} rows.")
    values = array.astype(np.float64)
    bad_rows = np.flatnonzero(~np.isfinite(values))
    if len(bad_rows):
        more = f" ({len(bad_rows) - 1:,} more like it)" if len(bad_rows) > 1 else ""
        raise ValueError(
            f"Score of row {bad_rows[0]:,} is {values[bad_rows[0]]}{more}: scores must be finite. Drop the row, or "
            "compute its score again."
        )
    return values


def _checked_places(picks: ArrayLike, k: int, n: int, method: str) -> IntArray:
    places = np.asarray(picks)
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


# What picks within a group. A stable sort leaves ties in the order of the rows.


def _random(selection: Selection | None, k: int, scores: FloatArray | None, rng: np.random.Generator) -> IntArray:
    n = len(selection) if selection is not None else len(scores if scores is not None else ())
    return rng.permutation(n)[:k]  # not a draw of k: a smaller number keeps the first picks of a larger one


def _easy(selection: Selection, k: int, *_: object) -> IntArray:
    return np.argsort(selection.distances(selection.mean()), kind="stable")[:k]


def _hard(selection: Selection, k: int, *_: object) -> IntArray:
    return np.argsort(-selection.distances(selection.mean()), kind="stable")[:k]


def _moderate(selection: Selection, k: int, *_: object) -> IntArray:
    # Neither the easiest rows nor the hardest: those as far from the mean as the median row.
    distances = selection.distances(selection.mean())
    return np.argsort(np.abs(distances - np.median(distances)), kind="stable")[:k]


def _k_center(selection: Selection, k: int, *_: object) -> IntArray:
    picks = np.empty(k, np.int64)
    # Gonzalez 1985: farthest-first covers within twice the best radius, whatever the first row.
    picks[0] = np.argmin(selection.distances(selection.mean()))
    nearest = np.full(len(selection), np.inf)  # distance to the nearest pick; -1 for the picks themselves
    for t in range(1, k):
        last = int(picks[t - 1])
        np.minimum(nearest, selection.distances(selection.at(last, last + 1)[0]), out=nearest)
        nearest[picks[:t]] = -1.0
        picks[t] = np.argmax(nearest)
    return picks


def _score(
    selection: Selection | None, k: int, scores: FloatArray, rng: np.random.Generator, keep: str = "hard"
) -> IntArray:
    if keep not in ("hard", "easy"):
        raise ValueError(f"keep must be 'hard' (highest scores) or 'easy' (lowest), got {keep!r}.")
    return np.argsort(scores if keep == "easy" else -scores, kind="stable")[:k]


MATCHERS: dict[str, Callable[..., Matching]] = {"gm": gm_matching, "herding": _herding, "gm_official": gm_official}
SELECTORS: dict[str, Selector] = {
    "random": Selector(_random),
    "moderate": Selector(_moderate, "rows"),
    "easy": Selector(_easy, "rows"),
    "hard": Selector(_hard, "rows"),
    "k_center": Selector(_k_center, "rows"),
    "score": Selector(_score, "scores"),
}
_BUILT_IN = frozenset(SELECTORS)
_NOW_SCORE = ("el2n", "grand", "forgetting", "uncertainty")  # four names of one ranking, for one more version


def register_selector(name: str) -> Callable[[Callable[..., ArrayLike]], Callable[..., ArrayLike]]:
    """
    Add a selector of your own under `name`.

        @register_selector("longest")
        def longest(X, k, *, scores, rng, **options):
            return np.argsort(-np.linalg.norm(X, axis=1), kind="stable")[:k]

    The function sees one group at a time: `X` of shape `(rows, d)` (`None` where none was given), the number of rows
    to pick, the group's `scores` (`None` where none were given) and a `np.random.Generator`; `metric` does not reach
    it, other options do. It returns `k` different places in the group, from 0, in pick order. The result is checked,
    shared budgets and the [`Matching`] are taken care of.

    Args:
        name (`str`):
            New name, as it is passed to `select_rows` and `prune`.

    Raises:
        ValueError: if the name is taken.
    """
    if name in MATCHERS or name in SELECTORS:
        raise ValueError(f"A selector named {name!r} is there already: choose another name.")

    def add(function: Callable[..., ArrayLike]) -> Callable[..., ArrayLike]:
        def pick(
            selection: Selection | None, k: int, scores: FloatArray | None, rng: np.random.Generator, **options: Any
        ) -> ArrayLike:
            values = None
            if selection is not None:
                values = selection.rows.values
                values = values if selection.index is None else values[selection.index]
            return function(values, k, scores=scores, rng=rng, **options)

        SELECTORS[name] = Selector(pick)
        return function

    return add


# Options: of what a method's function takes, read off its signature.

_KINDS: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    type(None): "none",
}
_NUMBERS: dict[type, type] = {int: Integral, float: Real}  # numpy's numbers too
_OF_THE_CALL = ("X", "k", "groups", "seed", "options", "return")  # given by `select_rows` itself
_REMOVED = {
    "theta0": "theta starts at the target for unit rows, at zero for raw ones",
    "partitions": "the rows are matched as one",
    "carry_theta": "the rows are matched as one",
    "replace": "a row is picked once",
}


def check_method(method: str, options: Mapping[str, Any]) -> str:
    """
    Refuse an unknown method, and options that it does not have or of another type, before any row is read.

    Returns:
        `str`: the method's name of today.

    Raises:
        ValueError: if there is no such method or option, or the option has another type; the message names those that
            there are.
    """
    if method in _NOW_SCORE:
        warnings.warn(f"method={method!r} is now method='score': same picks.", FutureWarning, stacklevel=3)
        method = "score"
    names = [*MATCHERS, *SELECTORS]
    if method not in names:
        raise ValueError(f"Unknown method {method!r}: choose one of {', '.join(names)}.{_near(str(method), names)}")
    hints = _option_hints(method) if method in MATCHERS or method in _BUILT_IN else None
    if hints is None:
        return method  # a registered function checks its own options
    for name, value in options.items():
        if name not in hints:
            reason = f" It was removed: {_REMOVED[name]}." if name in _REMOVED else _near(name, hints)
            raise ValueError(f"method={method!r} has no option {name!r}.{reason} It has {', '.join(sorted(hints))}.")
        kinds = set(get_args(hints[name])) or {
            hints[name]
        }  # `int | None` is both; arrays are checked where they are used
        if kinds <= set(_KINDS) and not any(_is(value, kind) for kind in kinds):
            words = " or ".join(words for kind, words in _KINDS.items() if kind in kinds)
            raise ValueError(f"{name} must be {words}, got {value!r}.")
    return method


def _near(name: str, names: Iterable[str]) -> str:
    close_names = difflib.get_close_matches(name, names, 1)
    return f" Did you mean {close_names[0]!r}?" if close_names else ""


def _is(value: object, kind: type) -> bool:
    if isinstance(value, (bool, np.bool_)):
        return kind is bool
    return isinstance(value, _NUMBERS.get(kind, kind))


@cache
def _option_hints(method: str) -> dict[str, Any]:
    matching = {name: hint for name, hint in get_type_hints(gm_matching).items() if name not in _OF_THE_CALL}
    if method in ("gm", "herding"):
        return matching
    if method == "gm_official":
        fixed = ("center", "metric", "target_scale")
        return {"first": int | None, **{name: hint for name, hint in matching.items() if name not in fixed}}
    shared = {name: matching[name] for name in ("metric", "budget", "min_per_group")}
    return {"keep": str, **shared} if method == "score" else shared


__all__ = ["SELECTORS", "register_selector", "select_rows"]
