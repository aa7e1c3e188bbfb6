"""What came of the rounds of a mixture of LoRA experts: losses, and a table with a line a round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from hf_ext.guards.reports import markdown_table
from hf_ext.moe.gate import mixture_nll
from hf_ext.rounds.lora_rows import ScoredRows

TITLES = ("after round", "shares", "entropy", "nats/token", "eval nats/token", "eval nats/token, routed")
LOSSES = ("nll", "eval_nll", "eval_routed_nll")


def losses_of(prefix: str, log_gate: Tensor, log_likelihood: Tensor, scored: ScoredRows) -> dict[str, float]:
    """Nats a token of the mixture, and of the expert that the gate finds most probable: the one that generates."""
    tokens = scored.num_tokens.sum()
    routed = log_likelihood.gather(1, log_gate.argmax(1, keepdim=True))
    return {
        f"{prefix}nll": float(mixture_nll(log_gate, log_likelihood).sum() / tokens),
        f"{prefix}routed_nll": float(-routed.sum() / tokens),
    }


def table_of(rounds: Sequence[Mapping[str, Any] | None]) -> str:
    """
    The rounds in Markdown: shares of the experts, entropy of the responsibilities in nats, losses in nats a token.

    Args:
        rounds (`Sequence[Mapping | None]`):
            Figures of each E-step, the first that of the clusters; `None` where it is still to do.
    """
    lines = []
    for number, figures in enumerate(rounds):
        if figures is None:
            continue
        shares = " ".join(f"{share:.2f}" for share in figures["shares"])
        losses = [f"{figures[name]:.4f}" if name in figures else "" for name in LOSSES]
        lines.append([str(number), shares, f"{figures['entropy']:.3f}", *losses])
    return markdown_table(TITLES, lines, numbers=range(2, len(TITLES)))
