"""What preference tuning did to the likelihood of chosen and rejected responses, for a checkpoint of any method."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from tqdm.auto import tqdm
from trl import DPOConfig

from hf_ext._columns import ROW_INDEX
from hf_ext._upstream.fused_head import fused_lm_head, label_log_probs
from hf_ext._upstream.preference import DataCollatorForPreference, tokenise_preference_rows
from hf_ext._upstream.rows import unformatted
from hf_ext.data.chat_columns import without_filled_nulls
from hf_ext.data.preference import with_prompts
from hf_ext.data.provenance import adapters_off
from hf_ext.evaluation.intervals import CONFIDENCE
from hf_ext.evaluation.models import Model, check_adapters_off, free_memory, loaded, ready
from hf_ext.evaluation.preference_report import Interval, LikelihoodReport
from hf_ext.guards.pairs import SameResponses
from hf_ext.guards.preference_rows import check_preference_rows
from hf_ext.guards.tokens import say_count, tokenise_checked
from hf_ext.guards.vocabulary import require_embedded
from hf_ext.losses.infopo import ESTIMATORS, bound_of_loss, infopo_loss

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Interval", "LikelihoodReport", "bootstrap_means", "likelihood_report"]

logger = logging.getLogger(__name__)

REFERENCE_COLUMNS = ("ref_chosen_logps", "ref_rejected_logps")
ADAPTERS_OFF = "the same model with its adapters off"


def likelihood_report(
    model: Model | str | Path,
    reference: Model | str | Path | None,
    dataset: Dataset,
    processing_class: PreTrainedTokenizerBase,
    *,
    beta: float = 0.1,
    length_normalized: bool = False,
    groups: str | None = None,
    max_length: int | None = 1024,
    batch_size: int = 8,
    autocast_dtype: torch.dtype | None = None,
    num_bootstrap: int = 2000,
    seed: int = 0,
    show_progress: bool = True,
) -> LikelihoodReport:
    r"""
    Measure how a tuned model changed the likelihood of the chosen and rejected responses of preference pairs.

    With $u = \log \pi(y|x) - \log \pi_{ref}(y|x)$, summed over the response's tokens:

    | measure | value of a pair |
    |---|---|
    | `chosen_delta`, `rejected_delta` | $u_w$, $u_l$ in nats per sequence; `*_per_token`: divided by the tokens |
    | `margin` | $u_w - u_l$ |
    | `chosen_dropped` | 1 if $u_w < 0$: the tuning made the preferred response less likely |
    | `accuracy` | 1 if $u_w > u_l$, DPO's reward accuracy; ties count 0, so model = reference gives 0 |
    | bounds | for each estimator of `losses.infopo` the divergence bound of the critic $\beta u$ (or $\beta u / n$) |

    Each is a mean over pairs with a 95 % percentile-bootstrap interval. Pairs that share a prompt or a response are
    not independent: name their column in `groups`, and whole groups are drawn.

    Args:
        model (model, `str` or `Path`):
            The tuned model, as an object, a folder or a Hub name.
        reference (model, `str`, `Path` or `None`):
            The model tuning started from. `None`: the columns `ref_chosen_logps` and `ref_rejected_logps` of the data
            set if it has them, else `model` with its adapters off, if it is a `PeftModel`. The columns are sums of
            *completion* log-probabilities as `DPOTrainer` precomputes them; they must be of this `max_length`.
        dataset (`Dataset`):
            Held-out pairs of TRL's preference type, standard or conversational, with or without a `prompt`.
        processing_class (`PreTrainedTokenizerBase`):
            The tokenizer, with its chat template if the pairs are conversational. Rows become ids as in `DPOTrainer`.
        beta (`float`, *optional*, defaults to `0.1`):
            Of the bounds, best the training's; nothing else depends on it.
        length_normalized (`bool`, *optional*, defaults to `False`):
            Whether the bounds' critic is $\beta u / n$; best as in training.
        groups (`str`, *optional*):
            A column such as the question's id: pairs with the same value stay together in the bootstrap.
        max_length (`int`, *optional*, defaults to `1024`):
            Prompt and completion are cut to so many tokens at the end, as `DPOConfig` does; `None` cuts nothing.
        batch_size (`int`, *optional*, defaults to `8`):
            Pairs a forward. Pairs of like length go together; the result depends on it by rounding only.
        autocast_dtype (`torch.dtype`, *optional*):
            Autocast of both models' forwards. Faster; the noise in `u` is that of two rounded sums.
        num_bootstrap (`int`, *optional*, defaults to `2000`), seed (`int`, *optional*, defaults to `0`):
            Draws of the bootstrap, and where they start.
        show_progress (`bool`, *optional*, defaults to `True`):
            Whether to show progress bars.

    Returns:
        [`LikelihoodReport`]: `.rows` (one row a pair, in the data set's order), `.to_markdown()`, `.to_dict()`,
        `.save(folder)`, `.plot()`, `.eval_results()`.

    Raises:
        [`RowError`]: if a pair is malformed.
        ValueError: if there is no reference, if a column is unknown, if the pairs have images, or if no pair has a
            token left on both sides.
        FloatingPointError: if a model gives a log-probability that is not finite; the message names model and row.

    Requirements: held-out pairs, split by prompt: on pairs that were trained on, these numbers only show how far
    training went. With fewer than about 20 groups the interval is too short.

    Relations: `chosen_delta_per_token`, `chosen_dropped` and the bounds are what `InfoPOTrainer` logs while training.
    The deltas are on given responses, so no KL of the policy follows from them: [`forgetting_report`] measures one on
    the original model's own samples.

    Example:

    ```python
    >>> report = likelihood_report("out/infopo", "out/sft", held_out, tokenizer, groups="question")
    >>> print(report)
    >>> report.save("out/report")
    ```

    Reference: Xiao et al. 2025 (arXiv 2505.08507), in the NWJ reading of `hf_ext.losses.infopo`, for the bounds.
    """
    pairs = _checked(dataset, groups)
    name, source = _reference_source(model, reference, dataset)
    rows, left_out = _tokenised(pairs, processing_class, max_length)
    score = _Scorer(processing_class, max_length, batch_size, autocast_dtype, show_progress)
    policy = loaded(model, like=model if reference is None else reference)
    logps = score(policy, rows, "policy")
    if name == ADAPTERS_OFF:
        reference_logps = score(policy, rows, "reference", adapters_off)
    elif source is None:
        columns = (rows.with_format("numpy")[column][:] for column in REFERENCE_COLUMNS)
        reference_logps = np.stack([np.asarray(column, dtype=np.float64) for column in columns], axis=1)
    else:
        if policy is not model:  # loaded here; one model at a time: the reference may be as large
            del policy
            free_memory()
        start = loaded(source, like=model)
        reference_logps = score(start, rows, "reference")
    table = _pair_columns(rows, logps, reference_logps, score.lengths(rows))
    group_of_pair = None if groups is None else list(dataset.select(rows[ROW_INDEX])[groups])
    if groups is not None and group_of_pair is not None and groups not in table:
        table[groups] = group_of_pair
    settings = {
        "reference": name,
        "num_pairs": len(rows),
        "left_out": left_out,
        "chosen_tokens": int(sum(table["chosen_length"])),
        "rejected_tokens": int(sum(table["rejected_length"])),
        "beta": beta,
        "length_normalized": length_normalized,
        "groups": groups,
        "num_groups": len(set(map(repr, group_of_pair))) if group_of_pair is not None else len(rows),
        "max_length": max_length,
        "autocast_dtype": None if autocast_dtype is None else str(autocast_dtype).removeprefix("torch."),
        "interval": f"{CONFIDENCE:.0%} percentile bootstrap, {num_bootstrap} draws, seed {seed}",
    }
    values = _measures_of_pairs(table) | _bounds_of_pairs(table, beta, length_normalized)
    intervals = bootstrap_means(values, group_of_pair, num_bootstrap=num_bootstrap, seed=seed)
    bounds = {key: intervals.pop(key) for key in ESTIMATORS}
    return LikelihoodReport(intervals, bounds, settings, Dataset.from_dict(table))


# --- rows ------------------------------------------------------------------------------------------------------------


def _checked(dataset: Dataset, groups: str | None) -> Dataset:
    if not isinstance(dataset, Dataset):
        raise TypeError(
            f"dataset must be a datasets.Dataset, got {type(dataset).__name__}; take(n) and load it first."
        )
    images = [name for name in ("image", "images") if name in dataset.column_names]
    if images:
        raise ValueError(f"The pairs have a column {images[0]!r}: likelihood_report scores text only.")
    if groups is not None and groups not in dataset.column_names:
        raise ValueError(f"groups={groups!r}: the pairs have no such column; they have {dataset.column_names}.")
    if ROW_INDEX in dataset.column_names:  # positions in an earlier dataset, and groups are looked up in this one
        dataset = dataset.remove_columns(ROW_INDEX)
    return check_preference_rows(unformatted(dataset), dataset_name="evaluation")


def _reference_source(
    model: Model | str | Path, reference: Model | str | Path | None, dataset: Dataset
) -> tuple[str, Model | str | Path | None]:
    """What the report calls the reference, and the model to load for it; `None` where no further model is needed."""
    if reference is not None:
        is_hub_name = isinstance(reference, str) and not Path(reference).exists()
        return (f"the reference model {reference}" if is_hub_name else "the reference model"), reference
    if set(REFERENCE_COLUMNS) <= set(dataset.column_names):
        return f"the columns {' and '.join(REFERENCE_COLUMNS)}", None
    remedy = (
        f"Give `reference`, or pairs with the columns {' and '.join(REFERENCE_COLUMNS)} that DPOTrainer precomputes."
    )
    if isinstance(model, str | Path):
        raise ValueError(f"reference=None needs `model` to be a PeftModel in memory, not a name. {remedy}")
    check_adapters_off(model, remedy)
    return ADAPTERS_OFF, None


def _tokenised(
    pairs: Dataset, processing_class: PreTrainedTokenizerBase, max_length: int | None
) -> tuple[Dataset, int]:
    """The pairs with token ids, without those that truncation empties on a side, and how many those are."""
    args = DPOConfig(report_to="none", bf16=False, max_length=max_length)
    rows = tokenise_checked(
        with_prompts(without_filled_nulls(pairs, "evaluation"), "evaluation"),
        lambda texts: tokenise_preference_rows(texts, processing_class, args),
        getattr(processing_class, "tokenizer", processing_class),
        args,
        dataset_name="evaluation",
    )
    scorable_rows = [i for i, row in enumerate(rows) if min(_completion_tokens(row, max_length)) > 0]
    if not scorable_rows:
        raise ValueError(
            f"None of {len(rows)} pairs has a token of both responses within max_length={max_length}: the prompts "
            "fill it. Raise max_length."
        )
    if len(scorable_rows) < len(rows):
        logger.warning(
            "%d of %d pairs have no token of one response left within max_length=%s and are left out of the report; "
            "raise max_length to include them.",
            len(rows) - len(scorable_rows),
            len(rows),
            max_length,
        )
    is_same = SameResponses(max_length)
    say_count(is_same.count(rows, rows), len(rows), is_same.sentence(), "evaluation", "pairs")
    return rows.select(scorable_rows), len(rows) - len(scorable_rows)


def _completion_tokens(row: dict[str, Any], max_length: int | None) -> tuple[int, int]:
    """Tokens of the chosen and the rejected response that are predicted once the row is cut as the collator does."""
    prompt = len(row["prompt_ids"])
    room = math.inf if max_length is None else max(max_length - prompt, 0)
    unpredicted = int(prompt == 0)  # nothing precedes a first token, so nothing predicts it
    chosen, rejected = (max(min(len(row[key]), room) - unpredicted, 0) for key in ("chosen_ids", "rejected_ids"))
    return int(chosen), int(rejected)


# --- log-probabilities -----------------------------------------------------------------------------------------------


class _Scorer:
    """Log-probabilities of both responses of tokenised pairs, summed over their tokens."""

    def __init__(
        self,
        processing_class: PreTrainedTokenizerBase,
        max_length: int | None,
        batch_size: int,
        autocast_dtype: torch.dtype | None,
        show_progress: bool,
    ) -> None:
        tokenizer = getattr(processing_class, "tokenizer", processing_class)
        pad = (tokenizer.eos_token_id or 0) if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        self.collate = DataCollatorForPreference(pad_token_id=pad, max_length=max_length)
        self.batch_size = batch_size
        self.autocast_dtype = autocast_dtype
        self.show_progress = show_progress

    def lengths(self, rows: Dataset) -> NDArray[np.int64]:
        """Predicted tokens of the chosen and the rejected response, shape `(pairs, 2)`."""
        return np.array([_completion_tokens(row, self.collate.max_length) for row in rows], dtype=np.int64)

    @torch.no_grad()
    def __call__(
        self,
        model: Model,
        rows: Dataset,
        name: str,
        context: Callable[[Model], AbstractContextManager] = lambda model: contextlib.nullcontext(),
    ) -> NDArray[np.float64]:
        """Log-probabilities in nats per sequence, shape `(pairs, 2)`: chosen, rejected."""
        require_embedded(rows, model, dataset_name="evaluation")
        columns = [rows[key] for key in ("prompt_ids", "chosen_ids", "rejected_ids")]
        lengths = [len(p) + max(len(c), len(r)) for p, c, r in zip(*columns, strict=True)]
        order = np.argsort(lengths, kind="stable")[::-1].tolist()  # longest first: memory runs out at once or never
        device = model.get_input_embeddings().weight.device
        log_prob_sums = np.zeros((len(rows), 2))  # (pairs, 2): chosen, rejected
        bar = tqdm(total=len(order), desc=f"Scoring pairs: {name}", unit="pair", disable=not self.show_progress)
        # in this order: PEFT's switch for virtual tokens keeps the forward that it finds (peft 0.21)
        with ready(model), fused_lm_head(model), context(model), bar:
            for start in range(0, len(order), self.batch_size):
                chunk = order[start : start + self.batch_size]
                batch = self.collate([rows[i] for i in chunk])
                mask = batch["completion_mask"]
                labels = batch["input_ids"].masked_fill(mask == 0, -100)
                inputs = {key: batch[key].to(device) for key in ("input_ids", "attention_mask")}
                with self._autocast(device.type):
                    values = label_log_probs(model, inputs | {"labels": labels.to(device)})
                # from the right: prompt-learning adapters prepend virtual tokens
                log_probs = values[:, -(mask.shape[1] - 1) :].double().cpu()
                log_prob_sums[chunk] = log_probs.sum(dim=1).view(2, -1).T.numpy()
                bar.update(len(chunk))
        bad = np.flatnonzero(~np.isfinite(log_prob_sums).all(axis=1))
        if len(bad):
            index = rows[int(bad[0])][ROW_INDEX]
            raise FloatingPointError(
                f"{name}: row {index:,} gives log-probabilities {log_prob_sums[bad[0]].tolist()}; {len(bad)} rows are "
                "affected."
            )
        return log_prob_sums

    def _autocast(self, device_type: str) -> AbstractContextManager:
        if self.autocast_dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(device_type, dtype=self.autocast_dtype)


# --- numbers ---------------------------------------------------------------------------------------------------------


def _pair_columns(
    rows: Dataset,
    logps: NDArray[np.float64],
    reference_logps: NDArray[np.float64],
    lengths: NDArray[np.int64],
) -> dict[str, list]:
    """The columns of `LikelihoodReport.rows`."""
    delta = logps - reference_logps
    table: dict[str, Any] = {
        "row_index": np.asarray(rows[ROW_INDEX]),
        "chosen_logps": logps[:, 0],
        "rejected_logps": logps[:, 1],
        "ref_chosen_logps": reference_logps[:, 0],
        "ref_rejected_logps": reference_logps[:, 1],
        "chosen_delta": delta[:, 0],
        "rejected_delta": delta[:, 1],
        "margin": delta[:, 0] - delta[:, 1],
        "chosen_dropped": delta[:, 0] < 0,
        "chosen_length": lengths[:, 0],
        "rejected_length": lengths[:, 1],
    }
    return {key: values.tolist() for key, values in table.items()}


def _measures_of_pairs(table: dict[str, list]) -> dict[str, NDArray[np.float64]]:
    """Every measure's value of each pair, shape `(pairs,)`."""
    columns = {key: np.asarray(table[key], dtype=np.float64) for key in ("chosen_delta", "rejected_delta", "margin")}
    per_token = {
        f"{side}_delta_per_token": columns[f"{side}_delta"] / np.asarray(table[f"{side}_length"])
        for side in ("chosen", "rejected")
    }
    flags = {"chosen_dropped": np.asarray(table["chosen_dropped"]), "accuracy": columns["margin"] > 0}
    return {**columns, **per_token, **{name: values.astype(np.float64) for name, values in flags.items()}}


def _bounds_of_pairs(table: dict[str, list], beta: float, length_normalized: bool) -> dict[str, NDArray[np.float64]]:
    """Every estimator's bound as a value of each pair, shape `(pairs,)`: their mean is the bound."""
    sides = {name: torch.tensor(table[name]) for name in ("chosen_length", "rejected_length")}
    lengths = {f"{name}s": value for name, value in sides.items()} if length_normalized else {}
    chosen, rejected = (torch.tensor(table[f"{side}_delta"], dtype=torch.float64) for side in ("chosen", "rejected"))
    bounds = {}
    for estimator in ESTIMATORS:  # the highest cap there is: bounds are of the exponential itself
        output = infopo_loss(chosen, rejected, estimator=estimator, beta=beta, max_exponent=80.0, **lengths)
        bounds[estimator] = bound_of_loss(output.losses, estimator).numpy()
    return bounds


def bootstrap_means(
    values: dict[str, NDArray[np.float64]],
    groups: list[Any] | None = None,
    *,
    num_bootstrap: int = 2000,
    seed: int = 0,
    confidence: float = CONFIDENCE,
) -> dict[str, Interval]:
    r"""
    Means over rows, with percentile-bootstrap intervals that draw whole groups of rows.

    A draw takes as many groups as there are, with replacement, and the mean over all their rows: a ratio of sums where
    groups differ in size. All measures share the draws.

    Args:
        values (`dict[str, array of shape (rows,)]`):
            Measures, one value a row.
        groups (`list`, *optional*):
            The group of each row; every row is its own by default.
        num_bootstrap (`int`, *optional*, defaults to `2000`), seed (`int`, *optional*, defaults to `0`):
            Draws, and the generator's seed.
        confidence (`float`, *optional*, defaults to `0.95`):
            Coverage wanted.

    Returns:
        `dict[str, Interval]`: ends are `None` where there is a single group.

    Reference: Efron and Tibshirani 1993, *An Introduction to the Bootstrap*, chapters 13 and 8 (units of resampling).
    """
    if num_bootstrap < 1:
        raise ValueError(f"num_bootstrap must be at least 1, got {num_bootstrap}.")
    matrix = np.stack([np.asarray(column, dtype=np.float64) for column in values.values()], axis=1)
    means = matrix.mean(axis=0)
    of_row = np.arange(len(matrix)) if groups is None else np.unique(list(map(repr, groups)), return_inverse=True)[1]
    count = int(of_row.max()) + 1
    if count < 2:
        return {key: Interval(float(mean), None, None) for key, mean in zip(values, means, strict=True)}
    sums = np.zeros((count, matrix.shape[1] + 1))
    # A mean of a draw is a ratio of sums, because groups differ in size: so each group's sums and its count are kept.
    np.add.at(sums, of_row, np.column_stack([matrix, np.ones(len(matrix))]))  # the last column counts the rows
    rng = np.random.default_rng(seed)
    chunk = min(num_bootstrap, max(1, 2**24 // count))  # draws at a time: bounds the memory of their weights
    # How often each group was drawn is multinomial, so a draw's sums are one product with the groups' sums.
    draws = np.concatenate([
        rng.multinomial(count, np.full(count, 1 / count), size=min(chunk, num_bootstrap - start)) @ sums
        for start in range(0, num_bootstrap, chunk)
    ])  # fmt: skip
    low, high = np.quantile(draws[:, :-1] / draws[:, -1:], [0.5 - confidence / 2, 0.5 + confidence / 2], axis=0)
    return {
        key: Interval(*map(float, ends)) for key, ends in zip(values, zip(means, low, high, strict=True), strict=True)
    }
