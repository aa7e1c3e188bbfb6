"""A round of the online recipe in its folder: what is done, and what came of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_ext.guards.disk import write_whole

FORMAT_REVISION = 2
MANIFEST = "manifest.json"
PAIRS = "pairs.jsonl"

# Columns of the table: heading, key in a round's results, how it is written.
COLUMNS = (
    ("questions", "questions", "{:,}"),
    ("answers", "answers", "{:,}"),
    ("mean score", "mean_score", "{:.4f}"),
    ("cut answers", "cut_share", "{:.1%}"),
    ("pairs", "pairs", "{:,}"),
    ("ties", "ties", "{:,}"),
    ("unfinished", "unfinished", "{:,}"),
    ("empty", "empty", "{:,}"),
    ("chosen change", "chosen_delta", "{:+.4f}"),
    ("rejected change", "rejected_delta", "{:+.4f}"),
)


@dataclass
class Round:
    """
    The folder `round-000` of a round: `answers/`, `pairs.jsonl`, `train/`, `model/` and `manifest.json`.

    The manifest is rewritten whole after each phase, so that what it calls done is done, whenever the run was killed.

    Args:
        number (`int`): counted from 0.
        folder (`Path`): its place.
        main (`bool`): whether this process writes.
    """

    number: int
    folder: Path
    main: bool = True

    @property
    def manifest(self) -> dict[str, Any]:
        """What is on disk now; empty for a round not begun."""
        path = self.folder / MANIFEST
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    @property
    def results(self) -> dict[str, Any]:
        """What the round's phases found out."""
        return self.manifest.get("results", {})

    def has_done(self, phase: str) -> bool:
        """Whether a phase (`sampled`, `paired`, `trained`) is over."""
        return phase in self.manifest.get("done", [])

    def begin(self, **results: Any) -> None:
        """Write down what is known at the start, unless that was done."""
        if self.main and not self.manifest:
            self._write([], results)

    def finish(self, phase: str, **results: Any) -> None:
        """Write down that a phase is over, and what it found out."""
        if self.main:
            self._write([*self.manifest.get("done", []), phase], {**self.results, **results})

    def _write(self, done: list[str], results: dict[str, Any]) -> None:
        content = {
            "format_revision": FORMAT_REVISION,
            "round": self.number,
            "done": done,
            "results": results,
        }
        write_whole(self.folder / MANIFEST, json.dumps(content, indent=2, ensure_ascii=False) + "\n")

    def write_pairs(self, rows: Sequence[dict[str, Any]]) -> None:
        """Write the pairs, whole or not at all."""
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        write_whole(self.folder / PAIRS, lines)


def table(rounds: Sequence[Round]) -> str:
    """A Markdown table, one line a round; `-` where a number is not known."""
    heads = ["round", *(head for head, _, _ in COLUMNS)]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---:|" * len(heads)]
    for one in rounds:
        found = one.results
        cells = [form.format(found[key]) if found.get(key) is not None else "-" for _, key, form in COLUMNS]
        lines.append("| " + " | ".join([str(one.number), *cells]) + " |")
    return "\n".join(lines)


def no_pairs_message(one: Round, counts: dict[str, int], mean_score: float) -> str:
    """What to do where a round gave no pair."""
    total = sum(counts.values())
    remedies = "ask more questions or more answers each (questions_per_round, answers_per_question)"
    if counts["ties"]:
        remedies += "; raise temperature, so that answers differ"
        remedies += "; start from a model that gets some answers right (SFT first), or lower reward_margin"
    if counts["unfinished"]:
        remedies += "; raise max_new_tokens, or name a text that ends an answer in stop"
    start = f"Remove {one.folder.parent}"
    if one.number > 0:  # its settings are those of the rounds before
        start = f"Go on in another output_dir from {one.folder.parent / f'round-{one.number - 1:03d}' / 'model'}"
    return (
        f"round {one.number}: none of {total} questions gave a pair: {counts['ties']} ties (mean score "
        f"{mean_score:.3g}), {counts['unfinished']} where only a cut answer scored higher, {counts['empty']} with "
        f"fewer than two answers that have text. {start}, and {remedies}."
    )
