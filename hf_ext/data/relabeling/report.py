"""What relabelling did: agreement, rows a class, and how right the labels are as far as noisy ones tell."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hf_ext.data.relabeling.estimates import Estimate
from hf_ext.guards.markdown import escape

logger = logging.getLogger(__name__)


@dataclass
class RelabelReport:
    """
    Figures of one call of [`relabel`].

    Args:
        mode (`str`):
            Of the call.
        rows (`int`), rows_kept (`int`):
            Before and after; `bayes_soft` counts a row once a class.
        labels (`int`):
            Given labels: rows, or labelled tokens.
        agreement (`float`):
            Share of labels that the prediction equals.
        given (`list[int]`), kept (`list[int]`):
            Labels of each class before and after.
        class_names (`list[str]`, *optional*):
            Names of the classes.
        accuracy ([`Estimate`], *optional*):
            Of the predictions against the true labels, from the noisy ones; where the channel was given.
        precision ([`Estimate`], *optional*):
            Share of right labels that is expected among those that agree.
        out_of_fold (`bool`, *optional*):
            Whether the model had not seen the rows' labels; `None` where nobody said.
        notes (`list[str]`):
            What to know before believing the figures.
    """

    mode: str
    rows: int
    labels: int
    agreement: float
    given: list[int]
    kept: list[int]
    rows_kept: int
    class_names: list[str] | None = None
    accuracy: Estimate | None = None
    precision: Estimate | None = None
    out_of_fold: bool | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def vanished(self) -> list[str]:
        """Classes that had labels and have none left."""
        return [self.name_of(i) for i, n in enumerate(self.given) if n and not (i < len(self.kept) and self.kept[i])]

    def name_of(self, index: int) -> str:
        """Name of a class, or its number."""
        return self.class_names[index] if self.class_names and index < len(self.class_names) else str(index)

    def count(self, labels: Sequence[int] | np.ndarray, rows: int) -> None:
        """Take the new labels in; classes that vanished are warned of."""
        self.kept = np.bincount(np.asarray(labels, dtype=np.int64), minlength=len(self.given)).tolist()
        self.rows_kept = rows
        if self.vanished:
            logger.warning(
                "No label is left of %d class%s: %s. A model trained on the rest cannot predict them. Keep more rows "
                "(mode='bayes', a lower min_prob), or train longer before relabelling.",
                len(self.vanished),
                "es" if len(self.vanished) > 1 else "",
                ", ".join(self.vanished),
            )

    def summary(self) -> list[tuple[str, str]]:
        """Rows of the table, name to value."""
        rows = [
            ("mode", self.mode),
            ("rows kept", f"{self.rows_kept:,} of {self.rows:,} ({self.rows_kept / max(self.rows, 1):.1%})"),
            ("predictions that are the given label", f"{self.agreement:.1%} of {self.labels:,}"),
            ("predictions are out of fold", {None: "not said", True: "yes", False: "no"}[self.out_of_fold]),
        ]
        if self.accuracy is not None:
            rows.append(("accuracy of the predictions, from noisy labels", str(self.accuracy)))
        if self.precision is not None:
            rows.append(("right labels among those that agree", str(self.precision)))
        rows.append(("classes that vanished", ", ".join(self.vanished) or "none"))
        return rows

    def to_markdown(self) -> str:
        """Two tables: the figures, and labels a class."""
        lines = ["| what | value |", "|---|---|", *(f"| {name} | {escape(value)} |" for name, value in self.summary())]
        lines += ["", "| class | given | now |", "|---|---|---|"]
        for i, n in enumerate(self.given):
            lines.append(f"| {escape(self.name_of(i))} | {n:,} | {self.kept[i] if i < len(self.kept) else 0:,} |")
        lines += ["", *(f"{escape(note)}." for note in self.notes)] if self.notes else []
        return "\n".join(lines) + "\n"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self) | {"vanished": self.vanished}

    def save(self, path: str | Path) -> Path:
        """Write the figures as a JSON file."""
        from hf_ext.guards.disk import replacing, writing

        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with writing("the report", path), replacing(path) as temporary:
            temporary.write_text(json.dumps(self.to_dict(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        return path
