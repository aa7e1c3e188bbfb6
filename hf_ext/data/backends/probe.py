"""
The probe every engine must pass: are its samples those of the model at hand?

Two questions. Are the log-probabilities that it reports ours? And, whatever it reports: are its samples much likelier
under a distribution that is off than under the model's? For a distribution $q$ that is off in a known way (top-k left
on, another temperature, ...) the likelihood ratio of the sampled tokens,

$$R_q = \\prod_t \\frac{q(x_t \\mid x_{<t})}{p(x_t \\mid x_{<t})},$$

has mean 1 if the samples are the model's, so that by Markov's inequality it exceeds $1 / \\alpha$ with a probability
of at most $\\alpha$. No normal approximation is made, and rows may have any length.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hf_ext.data.backends.protocol import (
    RowRequest,
    SampledRow,
    SamplingBackend,
    row_seed,
    sample_checked,
)
from hf_ext.data.backends.scoring import Pair, logits_of_rows
from hf_ext.data.provenance import original_model
from hf_ext.guards.engines import BackendError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

PROBED_ROWS = 64  # at a time
PROBED_TOKENS = 64  # longest probed row
ENOUGH_TOKENS = 3072  # short rows are followed by more of them; with 0.03 nats a token, temperature 0.9 then shows
MOST_ROWS = 1024
FALSE_REFUSALS = 1e-6  # probability with which an exact engine is refused, all alternatives together
# Nats between reported log-probabilities and ours. SmolLM2-135M in bfloat16 against float32, on its own samples: 0.04
# in the mean and 0.2 at most; temperature 0.9 or top_k=50 move the mean by 0.2.
MEAN_GAP = 0.1
LARGEST_GAP = 1.0
MOST_TOP = 1024  # likeliest tokens that are sorted

OTHER = "another distribution altogether: other weights, another tokenizer or shifted ids"
DOUBLED = "the first token of the prompt doubled (a beginning token added to ids that have one)"


@dataclass(frozen=True)
class ProbeReport:
    """
    What a probe saw of an engine that passed.

    Args:
        tokens (`int`):
            Sampled tokens that were looked at.
        mean_gap, largest_gap (`float`, *optional*):
            Nats between reported log-probabilities and the model's; `None` if none are reported.
        reports_model (`bool`):
            Whether the reported ones are the model's at temperature 1, which a store holds.
        log_ratios (`dict[str, float]`):
            For each way to be off, how much likelier the samples are in that way, in nats.
    """

    tokens: int
    mean_gap: float | None
    largest_gap: float | None
    reports_model: bool
    log_ratios: dict[str, float] = field(repr=False)


def probe_backend(
    backend: SamplingBackend,
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    *,
    eos_ids: Sequence[int],
    max_new_tokens: int,
    temperature: float = 1.0,
    seed: int = 0,
    autocast_dtype: torch.dtype | None = None,
) -> ProbeReport:
    """
    Sample rows with an engine, 64 or more, and compare them, and what it reports, with the model at hand.

    Rows are added, 64 at a time, until they hold 3,072 tokens; 64 rows of 64 tokens do.

    Args:
        backend ([`SamplingBackend`]):
            The engine.
        model (`PreTrainedModel` or `PeftModel`):
            The model whose rows are wanted, on its device; adapters are switched off.
        prompts (`Sequence[Sequence[int]]`):
            Token ids that rows begin with; they are gone through in turn.
        eos_ids (`Sequence[int]`):
            Ids that end a row.
        max_new_tokens (`int`):
            Of the rows wanted; the probe samples no more than 64 a row.
        temperature (`float`, *optional*, defaults to `1.0`):
            Of the rows wanted.
        seed (`int`, *optional*, defaults to `0`):
            Of the probe's rows.
        autocast_dtype (`torch.dtype`, *optional*):
            Autocast of the model's forward.

    Returns:
        [`ProbeReport`]

    Raises:
        BackendError: if the engine is off, with what it looks like and the remedy; or if it cannot sample.
    """
    vocab_size = original_model(model).config.get_text_config().vocab_size
    evidence = _Evidence(model, temperature, eos_ids, autocast_dtype)
    # A likelihood ratio may be looked at after any number of rows, and the bound on false refusals holds.
    for first in range(0, MOST_ROWS, PROBED_ROWS):
        rows = [
            RowRequest(
                tuple(prompts[number % len(prompts)]),
                min(max_new_tokens, PROBED_TOKENS),
                row_seed(seed, number, PROBED_ROWS),
            )
            for number in range(first, first + PROBED_ROWS)
        ]
        evidence.add(rows, sample_checked(backend, rows, temperature, eos_ids, vocab_size))
        if evidence.tokens >= ENOUGH_TOKENS:
            break
    return evidence.judged(backend.description["name"])


class _Evidence:
    """What has been seen so far."""

    def __init__(
        self, model: nn.Module, temperature: float, eos_ids: Sequence[int], autocast_dtype: torch.dtype | None
    ) -> None:
        self.model = model
        self.temperature = temperature
        self.autocast_dtype = autocast_dtype
        self.alternatives = alternatives_of(eos_ids)
        self.log_ratios = dict.fromkeys([*self.alternatives, DOUBLED], 0.0)
        self.tokens = 0
        self.gaps: list[Tensor] = []  # of reported log-probabilities to the model's at temperature 1
        self.tempered_gaps: list[Tensor] = []  # to those at the temperature of sampling
        self.reports_all = True

    def add(self, rows: Sequence[RowRequest], sampled: Sequence[SampledRow]) -> None:
        """Look at more rows."""
        pairs = [(request.prompt, row.ids) for request, row in zip(rows, sampled, strict=True)]
        doubled_pairs = [((prompt[0], *prompt), ids) for prompt, ids in pairs]
        all_logits = logits_of_rows(self.model, pairs, self.autocast_dtype)
        all_doubled = logits_of_rows(self.model, doubled_pairs, self.autocast_dtype)
        for pair, row, logits, doubled in zip(pairs, sampled, all_logits, all_doubled, strict=True):
            at = Positions(pair, logits, self.temperature)
            for name, log_ratio in self.alternatives.items():
                self.log_ratios[name] += _sum(log_ratio(at))
            self.log_ratios[DOUBLED] += _sum(token_logps(doubled, at.ids, self.temperature) - at.of_token)
            self.tokens += len(row.ids)
            if row.logps is None:
                self.reports_all = False
                continue
            reported = torch.tensor(row.logps, dtype=torch.float64)
            self.gaps.append((reported - token_logps(logits, at.ids, 1.0).cpu()).abs())
            self.tempered_gaps.append((reported - at.of_token.cpu()).abs())

    def judged(self, name: str) -> ProbeReport:
        """The report of an engine that passes; the others are refused."""
        likeliest = max(self.log_ratios, key=lambda alternative: self.log_ratios[alternative])
        log_ratio = self.log_ratios[likeliest]
        if log_ratio > math.log(len(self.log_ratios) / FALSE_REFUSALS):
            raise BackendError(
                f"The backend {name} is refused: its {self.tokens:,} sampled tokens are 10^"
                f"{log_ratio / math.log(10):.0f} times as likely under {likeliest} as under the model. Rows must be "
                "sampled from the model itself: switch it off in the engine, or let it hold these weights."
            )
        if not (self.reports_all and self.gaps):
            return ProbeReport(self.tokens, None, None, False, self.log_ratios)
        gap = torch.cat(self.gaps)
        tempered_gap = torch.cat(self.tempered_gaps)
        reports_model = _is_close(gap)
        if not reports_model and not _is_close(tempered_gap):
            raise BackendError(
                f"The backend {name} is refused: the log-probabilities that it reports for {self.tokens:,} tokens "
                f"differ from the model's by {float(gap.mean()):.3g} nats in the mean and {float(gap.max()):.3g} at "
                f"most (bounds: {MEAN_GAP} and {LARGEST_GAP}). Does it hold these weights, not quantised, and this "
                "tokenizer?"
            )
        closer = gap if reports_model else tempered_gap
        return ProbeReport(self.tokens, float(closer.mean()), float(closer.max()), reports_model, self.log_ratios)


def _sum(values: Tensor) -> float:
    return float(values.cpu().double().sum())  # thousands of terms, and not every accelerator has float64


def token_logps(logits: Tensor, ids: Tensor, temperature: float) -> Tensor:
    """Log-probabilities of `ids`, `(tokens,)`."""
    return (logits / temperature).log_softmax(dim=-1).gather(1, ids[:, None])[:, 0]


def _is_close(gap: Tensor) -> bool:
    return bool(gap.mean() <= MEAN_GAP and gap.max() <= LARGEST_GAP)


# --- ways to be off --------------------------------------------------------------------------------------------------


class Positions:
    """What the model says before each sampled token of a row; log-probabilities in nats, at the temperature wanted."""

    def __init__(self, pair: Pair, logits: Tensor, temperature: float) -> None:
        self.prompt, ids = pair
        self.logits = logits  # (tokens, vocabulary)
        self.temperature = temperature
        self.logps = (logits / temperature).log_softmax(dim=-1)
        self.ids = torch.tensor(ids, device=logits.device)
        self.of_token = self.logps.gather(1, self.ids[:, None])[:, 0]  # (tokens,)
        self.top = self.logps.topk(min(MOST_TOP, logits.shape[-1])).values
        self.top_mass = self.top.exp().cumsum(dim=-1)

    def cut(self, least: Tensor, mass: Tensor) -> Tensor:
        """Log ratio `(tokens,)` where only tokens of log-probability `least` and above are drawn, of total `mass`."""
        return torch.where(self.of_token >= least, -mass.log(), -torch.inf)


def alternatives_of(eos_ids: Sequence[int]) -> dict[str, Callable[[Positions], Tensor]]:
    """Ways to be off by name: each gives the log ratio to the model, `(tokens,)`."""
    ways: dict[str, Callable[[Positions], Tensor]] = {OTHER: _anything, "end tokens never sampled": partial(
        _without_ends, eos_ids=list(eos_ids))}  # fmt: skip
    ways |= {f"top_k={k}": partial(_top_k, k=k) for k in (10, 20, 40, 50, 64, 100, 200)}
    ways |= {f"top_p={p}": partial(_top_p, p=p) for p in (0.8, 0.9, 0.95, 0.98, 0.99)}
    ways |= {f"min_p={share}": partial(_min_p, share=share) for share in (0.01, 0.05, 0.1)}
    factors = (0.5, 0.7, 0.8, 0.9, 0.95, 1.05, 1.1, 1.25, 1.5)
    ways |= {f"{factor} times the temperature": partial(_tempered, factor=factor) for factor in factors}
    ways |= {f"repetition_penalty={penalty}": partial(_penalised, penalty=penalty) for penalty in (1.05, 1.1, 1.3)}
    return ways


def _top_k(at: Positions, k: int) -> Tensor:
    if k >= at.top.shape[-1]:
        return torch.zeros_like(at.of_token)
    return at.cut(at.top[:, k - 1], at.top_mass[:, k - 1])


def _top_p(at: Positions, p: float) -> Tensor:
    size = (at.top_mass < p).sum(dim=-1, keepdim=True)  # the last token of the nucleus
    is_sorted = size < at.top.shape[-1]  # else it is larger than what was sorted: there it counts as all tokens
    size = size.clamp(max=at.top.shape[-1] - 1)
    ratio = at.cut(at.top.gather(1, size)[:, 0], at.top_mass.gather(1, size)[:, 0])
    return torch.where(is_sorted[:, 0], ratio, 0.0)


def _min_p(at: Positions, share: float) -> Tensor:
    least = at.top[:, 0] + math.log(share)
    mass = torch.where(at.logps >= least[:, None], at.logps.exp(), 0.0).sum(dim=-1)
    return at.cut(least, mass)


def _tempered(at: Positions, factor: float) -> Tensor:
    return at.of_token / factor - (at.logps / factor).logsumexp(dim=-1) - at.of_token


def _without_ends(at: Positions, eos_ids: list[int]) -> Tensor:
    if not eos_ids:
        return torch.zeros_like(at.of_token)
    ends = torch.tensor(eos_ids, device=at.ids.device)
    rest = (-at.logps[:, ends].exp().sum(dim=-1)).log1p()
    return torch.where(torch.isin(at.ids, ends), -torch.inf, -rest)


def _penalised(at: Positions, penalty: float) -> Tensor:
    """transformers' and vLLM's repetition penalty, on tokens of the prompt and of the row so far."""
    seen = torch.zeros_like(at.logits, dtype=torch.bool)
    seen[:, torch.tensor(at.prompt, device=seen.device)] = True
    seen[1:].scatter_(1, at.ids[:-1, None], True)
    seen = seen.cummax(dim=0).values
    penalised = torch.where(at.logits > 0, at.logits / penalty, at.logits * penalty)
    return token_logps(torch.where(seen, penalised, at.logits), at.ids, at.temperature) - at.of_token


def _anything(at: Positions) -> Tensor:
    """One half the model, one half any token at all."""
    log_ratio = -math.log(at.logps.shape[-1]) - at.of_token  # of any token at all
    return torch.logaddexp(torch.zeros_like(log_ratio), log_ratio) - math.log(2)
