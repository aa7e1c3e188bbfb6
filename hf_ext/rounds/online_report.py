"""A round of online InfoPO in its folder: what is done, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_ext.guards.runs import RunFolder

FORMAT_REVISION = 2

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


@dataclass(frozen=True)
class Round:
    """
    A round and its folder, `round-000`: `answers/`, `pairs.jsonl`, `train/`, `model/` and `manifest.json`.

    The manifest is rewritten whole after each phase, so that what it calls done is done, whenever the run was killed.

    Args:
        number (`int`):
            Counted from 0.
        run_folder ([`~hf_ext.guards.runs.RunFolder`]):
            Of the whole run.
    """

    number: int
    run_folder: RunFolder

    @property
    def name(self) -> str:
        """Name of its folder."""
        return f"round-{self.number:03d}"

    @property
    def folder(self) -> Path:
        """Its place."""
        return self.run_folder.folder / self.name

    @property
    def manifest(self) -> Mapping[str, Any]:
        """What is on disk now: nothing of a round that is not begun."""
        return self.run_folder.results(f"{self.name}/manifest") or {"done": [], "results": {}}

    @property
    def results(self) -> Mapping[str, Any]:
        """Figures of the phases that are over."""
        return self.manifest["results"]

    def has_done(self, phase: str) -> bool:
        """Whether a phase (`sampled`, `paired`, `trained`) is over."""
        return phase in self.manifest["done"]

    def finish(self, phase: str, **results: Any) -> None:
        """Write down that a phase is over, and its figures."""
        manifest = self.manifest
        content = {
            "format_revision": FORMAT_REVISION,
            "round": self.number,
            "done": [*manifest["done"], phase],
            "results": {**manifest["results"], **results},
        }
        self.run_folder.mark_done(f"{self.name}/manifest", content)


def table(rounds: Sequence[Round]) -> str:
    """A Markdown table, one line a round; `-` where a number is not known."""
    heads = ["round", *(head for head, _, _ in COLUMNS)]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---:|" * len(heads)]
    for round_ in rounds:
        results = round_.results
        cells = [form.format(results[key]) if results.get(key) is not None else "-" for _, key, form in COLUMNS]
        lines.append("| " + " | ".join([str(round_.number), *cells]) + " |")
    return "\n".join(lines)


def no_pairs_message(this_round: Round, counts: Mapping[str, int], mean_score: float) -> str:
    """What to do where a round gave no pair; `counts` as of [`~hf_ext.rounds.answers.form_pairs`]."""
    output = this_round.run_folder.folder
    remedies = "ask more questions or more answers each (questions_per_round, answers_per_question)"
    if counts["ties"]:
        remedies += "; raise temperature, so that answers differ"
        remedies += "; start from a model that gets some answers right (SFT first), or lower reward_margin"
    if counts["unfinished"]:
        remedies += "; raise max_new_tokens, or name a text that ends an answer in stop"
    start = f"Remove {output}"
    if this_round.number > 0:  # its settings are those of the rounds before
        former = Round(this_round.number - 1, this_round.run_folder)
        start = f"Go on in another output_dir from {former.folder / 'model'}"
    return (
        f"round {this_round.number}: none of {sum(counts.values())} questions gave a pair: {counts['ties']} ties "
        f"(mean score {mean_score:.3g}), {counts['unfinished']} where only a cut answer scored higher, "
        f"{counts['empty']} with fewer than two answers that have text. {start}, and {remedies}."
    )
