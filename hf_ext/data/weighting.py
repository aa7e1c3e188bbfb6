"""FLOW: score rows under the original model, choose a temperature, fill `weight`."""

from __future__ import annotations

import contextlib
import copy
import logging
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from datasets import Dataset
from tqdm.auto import tqdm
from trl import SFTConfig

from hf_ext._columns import ROW_INDEX
from hf_ext._upstream.fused_head import fused_lm_head, label_log_probs
from hf_ext._upstream.rows import AnyDataset
from hf_ext._upstream.sft import DataCollatorForLanguageModeling
from hf_ext.data.provenance import as_adapted, as_original
from hf_ext.data.sft_rows import column_names, documents_of_batch, is_per_token, prepare_sft_rows
from hf_ext.guards.tokens import without_padding
from hf_ext.guards.vocabulary import require_embedded
from hf_ext.guards.weights import LEAST_WEIGHT

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

SCORE_COLUMNS = ("original_nll_sum", "original_num_tokens")


@torch.no_grad()
def score_rows(
    model: PreTrainedModel,
    dataset: Dataset,
    *,
    pad_token_id: int,
    batch_size: int = 8,
    autocast: Callable[[], AbstractContextManager] = contextlib.nullcontext,
    indices: list[int] | None = None,
    adapters: bool = False,
    show_progress: bool = True,
) -> list[tuple[list[float], list[int]]]:
    """
    Negative log-likelihood of each document's supervised tokens under `model`, dropout off.

    Args:
        model (`PreTrainedModel` or `PeftModel`):
            Everything in it is as before afterwards.
        dataset (`Dataset`):
            Prepared rows: `input_ids`, `labels`, and `seq_lengths` where packed.
        pad_token_id (`int`):
            Any valid token; padding is not scored.
        batch_size (`int`, *optional*, defaults to `8`):
            Rows a forward. Rows of like length go together; the order of the result is that of `indices`.
        autocast (`Callable`, *optional*):
            The context of the training forward, so that scores have its precision.
        indices (`list[int]`, *optional*):
            Rows to score; all by default.
        adapters (`bool`, *optional*, defaults to `False`):
            Whether adapters stay on; else the original model scores.
        show_progress (`bool`, *optional*, defaults to `True`):
            Whether to show a progress bar.

    Returns:
        `list[tuple[list[float], list[int]]]`: per row, the nats and the number of supervised tokens of each document.
    """
    require_embedded(dataset, model)
    indices = list(range(len(dataset))) if indices is None else indices
    packed = "seq_lengths" in dataset.column_names
    collate = DataCollatorForLanguageModeling(pad_token_id=pad_token_id, padding_free=packed)
    rows = dataset.with_format(None)
    order = sorted(indices, key=lambda i: len(rows[i]["input_ids"]), reverse=True)
    device = next(model.parameters()).device
    scores: dict[int, tuple[list[float], list[int]]] = {}
    scorer = "adapter" if adapters else "original model"
    bar = tqdm(total=len(order), desc=f"Scoring rows under the {scorer}", unit="row", disable=not show_progress)
    state = as_adapted if adapters else as_original
    # in this order: PEFT's switch for virtual tokens keeps the forward that it finds (peft 0.21)
    with fused_lm_head(model), state(model), bar:
        for start in range(0, len(order), batch_size):
            chunk = order[start : start + batch_size]
            examples = [rows[i] for i in chunk]
            batch = collate(examples)
            documents = documents_of_batch(examples, batch["labels"], flat=packed)[:, 1:]
            counts = [len(row["seq_lengths"]) if packed else 1 for row in examples]
            inputs = {k: v.to(device) if torch.is_tensor(v) else v for k, v in batch.items()}
            with autocast():
                values = label_log_probs(model, inputs)
            mask = (batch["labels"][:, 1:] != -100) & (documents >= 0)
            log_probs = values[:, -mask.shape[1] :].double().cpu()
            sums = torch.zeros(sum(counts), dtype=torch.float64).index_add_(0, documents[mask], -log_probs[mask])
            tokens = torch.bincount(documents[mask], minlength=sum(counts))
            ends = np.cumsum(counts)
            for i, n, end in zip(chunk, counts, ends, strict=True):
                scores[i] = (sums[end - n : end].tolist(), tokens[end - n : end].tolist())
            bar.update(len(chunk))
    return [scores[i] for i in indices]


def attach_scores(dataset: Dataset, scores: list[tuple[list[float], list[int]]]) -> Dataset:
    """Add `original_nll_sum` and `original_num_tokens`: a number a row, or a list with one per document if packed."""
    for part, column in enumerate(SCORE_COLUMNS):
        values: list[Any] = [score[part] for score in scores]
        if column in dataset.column_names:
            dataset = dataset.remove_columns(column)
        flat = values if "seq_lengths" in dataset.column_names else [v[0] for v in values]
        dataset = dataset.add_column(column, flat)
    return dataset


def add_original_losses(
    dataset: Dataset,
    model: PreTrainedModel,
    processing_class: PreTrainedTokenizerBase,
    args: SFTConfig | None = None,
    *,
    formatting_func: Callable[[dict], str] | None = None,
    batch_size: int = 8,
    show_progress: bool = True,
) -> Dataset:
    """
    Add each document's loss under the original model: what [`FlowSFTTrainer`] computes, for any trainer to use.

    | column out | type |
    |---|---|
    | `original_nll_sum` | float, nats, summed over the document's supervised tokens (a list where packed) |
    | `original_num_tokens` | int, the number of those tokens (a list where packed) |

    Args:
        dataset (`Dataset`):
            Raw rows of any TRL SFT data type (the columns are added to them, one document a row), or the output of
            [`prepare_sft_rows`] (packed rows get lists).
        model (`PreTrainedModel` or `PeftModel`):
            The original model; adapters are switched off. It runs in the precision and on the device it is in.
        processing_class (`PreTrainedTokenizerBase`):
            Its tokenizer.
        args (`SFTConfig`, *optional*):
            The training config: `max_length`, masks and autocast dtype must be the training's.
        formatting_func (`Callable`, *optional*):
            The training's: what is scored is what is trained on.
        batch_size (`int`, *optional*, defaults to `8`):
            Rows a forward.
        show_progress (`bool`, *optional*, defaults to `True`):
            Whether to show a progress bar.

    Returns:
        `Dataset`: the rows, with the two columns. Rows dropped under `on_bad_row="drop"` are left out.

    Raises:
        RowError: if a row is malformed.
        TypeError: if `dataset` is a stream, which has no median.

    Reference: Sanyal et al. 2025 (arXiv 2502.02797), Algorithm 1, step 1. Costs one forward pass over the data, about
    a third of an epoch.
    """
    if not isinstance(dataset, Dataset):
        raise TypeError(
            f"add_original_losses needs a Dataset, got {type(dataset).__name__}: a temperature is a property of the "
            "whole set. Materialise the stream first, for example with Dataset.from_generator."
        )
    prepared = {"input_ids", "labels", ROW_INDEX} <= set(dataset.column_names)
    rows = without_padding(dataset) if prepared else dataset
    if not prepared:
        unpacked = None if args is None else _unpacked(args)
        # Numbered anew: the rows are picked by position below, and the numbers of an earlier check may be others.
        unnumbered = dataset.remove_columns([ROW_INDEX] if ROW_INDEX in dataset.column_names else [])
        rows = prepare_sft_rows(unnumbered, processing_class, unpacked, formatting_func=formatting_func)
    autocast = autocast_of(args, next(model.parameters()).device.type)
    pad = processing_class.pad_token_id
    scores = score_rows(
        model,
        rows,
        pad_token_id=(processing_class.eos_token_id or 0) if pad is None else pad,  # padding is not scored
        batch_size=batch_size,
        autocast=autocast,
        show_progress=show_progress,
    )
    if prepared:
        return attach_scores(rows, scores)
    order = np.argsort(rows[ROW_INDEX], kind="stable")
    scored_rows = dataset.select([rows[int(i)][ROW_INDEX] for i in order])
    return attach_scores(scored_rows, [scores[int(i)] for i in order])


def _unpacked(args: SFTConfig) -> SFTConfig:
    args = copy.copy(args)
    args.packing = False
    args.shuffle_dataset = False
    return args


def autocast_of(args: SFTConfig | None, device_type: str) -> Callable[[], AbstractContextManager]:
    """The context in which training under these arguments runs its forward."""
    dtype = None if args is None else torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None
    return contextlib.nullcontext if dtype is None else lambda: torch.autocast(device_type, dtype=dtype)


def mean_losses(dataset: Dataset) -> NDArray[np.float64]:
    """
    Mean loss of every document with supervised tokens, shape `(documents,)`, in nats per token, in the rows' order.

    Raises:
        ValueError: if the dataset has no scores, or one that is not finite.
    """
    missing = [name for name in SCORE_COLUMNS if name not in column_names(dataset)]
    if missing:
        raise ValueError(
            f"The dataset has no column {missing[0]!r} (it has {column_names(dataset)}). "
            "Run add_original_losses(dataset, model, tokenizer, args) first."
        )
    sums, counts = (dataset.with_format(None)[name] for name in SCORE_COLUMNS)
    if len(sums) and isinstance(sums[0], list):
        sums, counts = ([v for row in column for v in row] for column in (sums, counts))
        sums, counts = zip(*((s, n) for s, n in zip(sums, counts, strict=True) if n), strict=True)
    return _means(sums, counts)


def _means(sums: ArrayLike, counts: ArrayLike) -> NDArray[np.float64]:
    total = np.asarray(sums, dtype=np.float64)
    tokens = np.asarray(counts, dtype=np.float64)
    bad = np.flatnonzero(~np.isfinite(total) | ~(tokens > 0))
    if len(bad):
        i = int(bad[0])
        raise ValueError(
            f"document {i:,}: original_nll_sum={total[i]}, original_num_tokens={tokens[i]:g}: a document needs a "
            "finite loss and at least one supervised token. Drop it, or score the rows again in a wider precision."
        )
    return total / tokens


def effective_sample_size_ratio(weights: NDArray[np.float64]) -> float:
    r"""$(\sum w)^2 / (n \sum w^2)$, in (0, 1]: 1 when all weights are equal (then FLOW does nothing)."""
    weights = np.asarray(weights, dtype=np.float64)
    return float(weights.sum() ** 2 / (len(weights) * (weights**2).sum()))


def temperature_of(means: NDArray[np.float64], rule: str = "median") -> float:
    """[`flow_temperature`] on an array of mean losses, shape `(documents,)`, nats per token."""
    if len(means) == 0:
        raise ValueError("There is no document to take a temperature from: the dataset is empty.")
    if rule == "median":
        tau = float(np.median(means))
        if tau <= 0:
            raise ValueError(
                "The median loss under the original model is 0: more than half of the documents are duplicated or "
                "memorised, and the median rule has no temperature. Deduplicate, or pass tau as a number or 'ess:0.8'."
            )
        return tau
    kind, _, share = rule.partition(":")
    try:
        target = float(share)
    except ValueError:
        target = math.nan
    if kind != "ess" or not 0 < target < 1:
        raise ValueError(
            f"rule must be 'median' or 'ess:SHARE' with SHARE in (0, 1), such as 'ess:0.8'; got {rule!r}."
        )
    return _temperature_for_ess(means, target)


def _temperature_for_ess(means: NDArray[np.float64], target: float) -> float:
    excess = means - means.min()  # a common factor of the weights cancels in ESS, and large losses do not underflow
    floor = float((excess == 0).mean())
    if floor >= target:
        raise ValueError(
            f"ESS/n cannot fall to {target}: {floor:.0%} of the documents share the lowest loss. "
            "Deduplicate, choose a larger share, or use rule='median'."
        )

    def ratio(log_tau: float) -> float:
        return effective_sample_size_ratio(np.exp(-excess / math.exp(log_tau)))

    low = math.log(excess.max()) - 50.0
    high = math.log(excess.max()) + 50.0
    for _ in range(200):  # ESS/n grows with tau: bisection
        middle = (low + high) / 2
        low, high = (middle, high) if ratio(middle) < target else (low, middle)
    return math.exp((low + high) / 2)


def flow_temperature(dataset: Dataset, rule: str = "median") -> float:
    r"""
    The FLOW temperature $\tau$ of a scored dataset, in nats per token.

    Args:
        dataset (`Dataset`):
            With `original_nll_sum` and `original_num_tokens` (see [`add_original_losses`]).
        rule (`str`, *optional*, defaults to `"median"`):
            `"median"` of the documents' mean losses (the paper's Remark 4.2), or `"ess:0.8"`: the $\tau$ at which the
            effective sample size $(\sum w)^2/\sum w^2$ is 0.8 of the number of documents. On language rows, whose
            losses are alike, the median rule is timid; the share moves along the trade-off.

    Returns:
        `float`: $\tau > 0$.

    Raises:
        ValueError: if there are no scores or no rows, the median is 0, or the share cannot be reached.
    """
    return temperature_of(mean_losses(dataset), rule)


@dataclass(frozen=True)
class FlowWeights:
    """
    Weight rows by how easy the original model finds them: `exp(-(nll - shift) / tau)`, `nll` a mean over tokens.

    | column in | type | column out | type |
    |---|---|---|---|
    | `original_nll_sum` | float, nats (a list where packed) | `weight` | float > 0; 0 past 745 tau |
    | `original_num_tokens` | int (a list where packed) | | (a list, one per token, where packed) |
    | `seq_lengths` (packed only) | list of int | | |

    Args:
        tau (`float`):
            Temperature in nats per token; the median document gets `exp(-1)` under the median rule.
        shift (`float`, *optional*, defaults to `0.0`):
            Loss of weight 1, nats per token: a common factor of all weights. [`flow_weights_at`] chooses it.

    Reference: Sanyal et al. 2025 (arXiv 2502.02797), Proposition 4.3: the weights that never prefer a harder row,
    regularised by entropy.
    """

    tau: float
    shift: float = 0.0
    revision: str = "1"  # changes whenever the output would: datasets hashes this object, not the code behind it

    def __post_init__(self) -> None:
        if not (math.isfinite(self.tau) and self.tau > 0):
            raise ValueError(
                f"tau must be a positive, finite number of nats per token, got {self.tau!r}. "
                "Use flow_temperature(dataset) to compute the median."
            )

    def __call__(self, batch: dict[str, list]) -> dict[str, list]:
        """Weights of one batch."""
        sums = batch["original_nll_sum"]
        counts = batch["original_num_tokens"]
        if not len(sums) or not is_per_token(sums[0]):  # one number a document of a packed row
            return {"weight": self.of_means(_means(sums, counts)).tolist()}
        spread = []
        for s, n, lengths in zip(sums, counts, batch["seq_lengths"], strict=True):
            # A fragment of a split document may hold prompt only: no token of it counts, whatever its weight.
            supervised = np.asarray(n) > 0
            weight = np.zeros(len(n))
            weight[supervised] = self.of_means(_means(np.asarray(s)[supervised], np.asarray(n)[supervised]))
            spread.append(np.repeat(weight, lengths).tolist())
        return {"weight": spread}

    def of_means(self, means: NDArray[np.float64]) -> NDArray[np.float64]:
        """Weights of documents with these mean losses, shape `(documents,)`, nats per token."""
        return np.exp(-(means - self.shift) / self.tau)


def flow_weights_at(means: NDArray[np.float64], tau: float) -> FlowWeights:
    r"""
    FLOW's weights at a temperature, on a scale that float32, in which losses are computed, can hold.

    They are `exp(-nll / tau)`. Where one of those would vanish in float32, all are divided by the largest: the easiest
    document's is then 1, their ratios stay, and with them the loss under `normalize="weights"`. What vanishes even so
    is said.

    Args:
        means (`numpy.ndarray` of shape `(documents,)`):
            Mean losses under the original model, nats per token.
        tau (`float`):
            Temperature, nats per token.

    Raises:
        ValueError: if next to the easiest document's weight every other one vanishes.
    """
    reach = -math.log(LEAST_WEIGHT) * tau  # nats per token beyond the shift at which a weight vanishes
    if not (means > reach).any():
        return FlowWeights(tau)
    excess = means - means.min()
    vanish = excess > reach
    remedy = "Raise tau, or take 'median'."
    if vanish.any() and (vanish | (excess == 0)).all():
        raise ValueError(
            f"tau={tau:.3g} nats per token is too small: next to the easiest document, whose mean loss under the "
            f"original model is {means.min():.3g}, every other one's weight vanishes in float32 (the next is "
            f"{excess[excess > 0].min():.3g} nats per token harder, and {reach:.3g} is the limit), so that nothing "
            f"would be learned from them. {remedy}"
        )
    if vanish.any():
        logger.warning(
            "tau=%.3g nats per token: weights vanish in float32 where the mean loss under the original model is more "
            "than %.3g above the easiest document's, as for %s of %s documents, which teach nothing. %s",
            tau, reach, f"{int(vanish.sum()):,}", f"{len(means):,}", remedy,
        )  # fmt: skip
    return FlowWeights(tau, shift=float(means.min()))


def add_flow_weights(dataset: AnyDataset, tau: float | str = "median") -> AnyDataset:
    """
    Fill `weight` by FLOW, from the scores [`add_original_losses`] added.

    Args:
        dataset (`Dataset`):
            Scored rows. A streamed dataset needs `tau` as a number.
        tau (`float` or `str`, *optional*, defaults to `"median"`):
            A number of nats per token, or a rule of [`flow_temperature`].

    Returns:
        The dataset with `weight`; a column of that name is replaced. The weights are `exp(-nll / tau)`, divided by the
        largest where one would vanish in float32.

    Raises:
        ValueError: if `tau` is so small that every weight but the easiest document's vanishes (not checked on streams,
            whose weights are never scaled).
    """
    if isinstance(tau, str):
        if not isinstance(dataset, Dataset):
            raise TypeError(f"tau={tau!r} needs a Dataset, got {type(dataset).__name__}. Pass tau as a number.")
        tau = flow_temperature(dataset, tau)
    has_documents = isinstance(dataset, Dataset) and len(dataset)
    weights = flow_weights_at(mean_losses(dataset), tau) if has_documents else FlowWeights(tau)
    return dataset.map(weights, batched=True)
