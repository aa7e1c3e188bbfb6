"""Labels of pairs: whether a row says of itself that its query and its document do not belong together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

HOST_LABELS = ("label", "labels", "score", "scores")  # what sentence-transformers (6.2) takes for labels, in its order
MATCHES = (
    *HOST_LABELS, "is_duplicate", "is_match", "is_relevant", "relevant", "relevance", "similarity", "similarity_score",
    "gold_label",
)  # fmt: skip
MATCHING_CLASSES = (
    "entailment", "duplicate", "is_duplicate", "equivalent", "relevant", "match", "positive", "paraphrase", "1",
    "true", "yes",
)  # fmt: skip
MOST_GRADE = 10  # a label above is a class or a count, and no grade of relevance
NO_MATCH = (
    "0", "0.0", "false", "no", "not_entailment", "neutral", "contradiction", "not_duplicate", "not_equivalent",
    "irrelevant", "low",
)  # fmt: skip


@dataclass(frozen=True)
class MatchRule:
    """
    What the label of a pair that matches is.

    Args:
        column (`str`): of the labels.
        kind (`str`): `"integer"` (1, or a grade above), `"float"` (exactly 1), `"class"` or `"string"`.
        classes (`tuple[str, ...]`): names of the classes; the matching one is that of `match`.
        match (`int`, *optional*): number of the matching class; `None` where the names do not tell.
    """

    column: str
    kind: str
    classes: tuple[str, ...] = ()
    match: int | None = 1

    def wrong(self, values: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        """Which labels of an array of numbers say that a pair does not match."""
        if self.kind == "integer":
            return np.asarray(values < 1)
        return np.ones(values.shape, dtype=bool) if self.match is None else np.asarray(values != self.match)

    def problem(self, value: object) -> str | None:
        """Why nothing can be learned from the row, or `None` where the pair matches."""
        value = value.item() if isinstance(value, np.generic) else value
        if self.kind == "string" and isinstance(value, str):
            good = value.strip().lower() not in NO_MATCH
        else:
            good = isinstance(value, int | float) and not bool(self.wrong(np.asarray(value)))
        if good:
            return None
        class_name = f" ({self.classes[value]!r})" if isinstance(value, int) and 0 <= value < len(self.classes) else ""
        expected_label = repr(self.classes[self.match]) if self.classes and self.match is not None else "a label of 1"
        if self.classes and self.match is None:
            expected_label = "a label that tells which pairs match"
        return (
            f"a pair of query and document needs {expected_label} or none, found {value!r}{class_name}: neither the "
            "ranking loss nor the pool of exemplars reads it. Keep the pairs that match with dataset.filter, and "
            f"remove the column with dataset.remove_columns({self.column!r}) where it says something else"
        )


def match_rule(features: Mapping[str, Any], has_negatives: bool) -> MatchRule | None:
    """
    The rule of a data set's labels; `None` where it has none that could say that a pair does not match.

    Lists are targets of a distillation; so is the real number of a row with negatives, the margin between two scores.

    Args:
        features (`Mapping`): of the data set.
        has_negatives (`bool`): whether its rows have more than a query and a document.
    """
    for column in MATCHES:
        kind = getattr(features.get(column), "dtype", None)
        if not isinstance(kind, str):
            continue
        classes = getattr(features[column], "names", None)
        if classes:
            match = _matching_class(classes)
            if match is None and not any(name.lower() in NO_MATCH for name in classes):
                continue  # topics, or anything else but a judgement of the pair
            return MatchRule(column, "class", tuple(classes), match)
        if "int" in kind or kind == "bool":
            return MatchRule(column, "integer")
        if "float" in kind:
            return None if has_negatives else MatchRule(column, "float")
        if kind in ("string", "large_string"):
            return MatchRule(column, "string")
    return None


def _matching_class(classes: list[str]) -> int | None:
    for number, name in enumerate(classes):
        if name.lower() in MATCHING_CLASSES:
            return number
    # of two classes whose names do not tell, 1 is the match as 1 is true
    return 1 if len(classes) <= 2 else None
