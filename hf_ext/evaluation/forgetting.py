"""What tuning gained and what it forgot: target loss, KL(original || new), general loss and CORE, before and after."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from hf_ext.data.provenance import adapters_off
from hf_ext.evaluation.core.evaluate import evaluate_core
from hf_ext.evaluation.intervals import CONFIDENCE, ratio_estimate
from hf_ext.evaluation.models import Model, check_adapters_off, free_memory, loaded, ready
from hf_ext.evaluation.report import ForgettingReport, RunResult
from hf_ext.evaluation.rows import Rows, group_names, rows_to_score
from hf_ext.losses.kl import exact_kl

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase
    from trl import SFTConfig

    from hf_ext.data.context_free import ContextFreeStore
    from hf_ext.evaluation.core.report import CoreReport

__all__ = ["ForgettingMeasures", "ForgettingReport", "RowLosses", "forgetting_report"]

LOGIT_BYTES = 512 * 2**20
"""Upper bound of a batch's logits (both models' together), in bytes of float32; one row is always allowed."""

TEMPORARY_BYTES = 64 * 2**20
"""Upper bound of one temporary the size of logits, in bytes of float32; one position is always allowed."""


def forgetting_report(
    original: Model | str | Path | None,
    new: Model | str | Path | Mapping[str, Model | str | Path],
    tokenizer: PreTrainedTokenizerBase,
    *,
    target: Dataset | None = None,
    context_free: ContextFreeStore | Dataset | str | Path | None = None,
    general_text: Dataset | Sequence[str] | None = None,
    core: str | Path | None = None,
    core_max_rows: int | None = 100,
    groups: str | None = None,
    args: SFTConfig | None = None,
    batch_size: int = 8,
    max_length: int = 1024,
    autocast_dtype: torch.dtype | None = None,
    show_progress: bool = True,
) -> ForgettingReport:
    r"""
    Measure one or several tuned models against the model they started from.

    | measure, all in nats per token | rows |
    |---|---|
    | target loss, before and after | `target`: mean negative log-likelihood of the supervised tokens |
    | `kl_original_to_new` | `context_free`: exact KL of the next token, mean over prefixes, and for each seed |
    | general loss, before and after | `general_text`: mean negative log-likelihood of all tokens but the first |
    | CORE, before and after (no nats: centred accuracy) | `core`: see [`evaluate_core`] |

    Each is a token-weighted mean over rows with a 95 % interval over rows ([`ratio_estimate`]); a change is measured
    on the same rows before and after, so its interval is that of the paired difference.

    **The context-free rows must be fresh, not those trained on.** Samples that a model was trained on show only how
    well it remembers *them*: the KL on them is biased low. Generate a second store with another seed for this report.

    Args:
        original (model, `str`, `Path` or `None`):
            The model before tuning, as an object or a folder. `None` if `new` is one `PeftModel`: then the original is
            the same model with its adapters off.
        new (model, `str`, `Path`, or a mapping from names of runs to those):
            The tuned models, one a run. Folders are loaded one at a time, so at most two models are alive.
        tokenizer (`PreTrainedTokenizerBase`):
            The tokenizer of all models; used for `general_text`, padding, and raw target rows.
        target (`Dataset`, *optional*):
            **Held-out** target rows: prepared (`input_ids`, and `labels` with -100 where not supervised), or raw rows
            of any TRL SFT data type, which are then prepared as a trainer with `args` would.
        context_free (`ContextFreeStore`, `Dataset`, `str` or `Path`, *optional*):
            Fresh samples of the original model: a store or its folder, or a dataset with `input_ids` and `labels`.
        general_text (`Dataset` with column `text`, or sequence of `str`, *optional*):
            Text unrelated to the target. The first `max_length` tokens of each are scored.
        core (`str` or `Path`, *optional*), core_max_rows (`int`, *optional*, defaults to `100`):
            A folder with the tasks of DCLM's CORE, of which so many rows a task are asked, `None` all. A change is
            paired by row. Far slower than all of the above: about a million tokens a model for 16 tasks.
        groups (`str`, *optional*):
            A column of `target` (e.g. `"hard"`): the target loss is also given for each of its values.
        args (`SFTConfig`, *optional*):
            How raw target rows are prepared (`assistant_only_loss`, ...). Packing and shuffling are ignored.
        batch_size (`int`, *optional*, defaults to `8`):
            Rows a forward; fewer where the logits would exceed 512 MB. The result depends on it by rounding only.
        max_length (`int`, *optional*, defaults to `1024`):
            Rows are cut to this many tokens.
        autocast_dtype (`torch.dtype`, *optional*):
            Autocast of every forward, alike for all models. Faster, at the price of rounding noise in the KL.
        show_progress (`bool`, *optional*, defaults to `True`):
            Whether to show progress bars.

    Returns:
        [`ForgettingReport`]: `.to_markdown()`, `.to_dict()`, `.save(folder)`, `.eval_results()`.

    Raises:
        ValueError: if there is nothing to measure, if no row has a supervised token, if a column is missing, if the
            store was sampled from other weights than the original's, or if the vocabularies differ.
        FloatingPointError: if a model gives a loss that is not finite; the message names model and row.

    Example:

    ```python
    >>> runs = {"SFT": "out/sft", "FLOW": "out/flow"}
    >>> report = forgetting_report("original", runs, tokenizer, target=held_out, context_free="fresh_samples")
    >>> print(report.to_markdown())
    >>> report.save("out/report")
    ```

    Reference: the exact KL on the original model's own samples is the Rao-Blackwellised form of the objective of
    Bansal and Sanghavi 2025, *Context-Free Synthetic Data Mitigates Forgetting* (arXiv 2505.13811).
    """
    runs = dict(new) if isinstance(new, Mapping) else {"new": new}
    if not runs:
        raise ValueError("No model to measure: `new` is an empty mapping.")
    first = next(iter(runs.values()))
    # With adapters the original is the tuned model itself, switched off around each of its forwards.
    measures = ForgettingMeasures(
        lambda: _only_run(runs) if original is None else loaded(original, like=first),
        tokenizer,
        target=target,
        context_free=context_free,
        general_text=general_text,
        core=core,
        core_max_rows=core_max_rows,
        groups=groups,
        args=args,
        batch_size=batch_size,
        max_length=max_length,
        autocast_dtype=autocast_dtype,
        show_progress=show_progress,
        original_off=adapters_off if original is None else _left_alone,
    )
    return measures.report([measures.of(name, tuned) for name, tuned in runs.items()])


class ForgettingMeasures:
    """
    The measures of [`forgetting_report`] on one original model, for tuned models that come one after another.

    The original model is measured once, here.

    Args:
        original (`Callable`):
            Gives the original model, once the arguments are looked at.
        tokenizer, target, context_free, ...:
            As in [`forgetting_report`].
        original_off (`Callable`, *optional*):
            Context in which a model is the original.

    Attributes:
        original (`RunResult`):
            What was measured on it.

    Raises:
        ValueError: if there is nothing to measure, or as in [`forgetting_report`].
    """

    def __init__(
        self,
        original: Callable[[], Model],
        tokenizer: PreTrainedTokenizerBase,
        *,
        target: Dataset | None = None,
        context_free: ContextFreeStore | Dataset | str | Path | None = None,
        general_text: Dataset | Sequence[str] | None = None,
        core: str | Path | None = None,
        core_max_rows: int | None = 100,
        groups: str | None = None,
        args: SFTConfig | None = None,
        batch_size: int = 8,
        max_length: int = 1024,
        autocast_dtype: torch.dtype | None = None,
        show_progress: bool = True,
        original_off: Callable[[Model], AbstractContextManager] | None = None,
    ) -> None:
        if target is None and context_free is None and general_text is None and core is None:
            raise ValueError("Nothing to measure: give at least one of target, context_free, general_text and core.")
        self.settings = {
            "unit": "nats per token",
            "interval": f"{CONFIDENCE:.0%} over rows, delta method for a ratio of sums",
            "max_length": max_length,
            "autocast_dtype": None if autocast_dtype is None else str(autocast_dtype).removeprefix("torch."),
            "groups": groups,
            "core_max_rows": None if core is None else core_max_rows,
        }
        self._start = original()
        self._original_off = original_off or _left_alone
        self._losses = RowLosses(batch_size, autocast_dtype, show_progress, tokenizer.pad_token_id or 0)
        self._rows = rows_to_score(self._start, tokenizer, target, context_free, general_text, args, max_length)
        self._group_of = group_names(target, groups, self._rows.get("target"))
        self._core = None
        if core is not None:
            self._core = partial(
                evaluate_core,
                tokenizer=tokenizer,
                data=core,
                max_rows=core_max_rows,
                autocast_dtype=autocast_dtype,
                show_progress=show_progress,
            )
        losses = [key for key in self._rows if key != "kl"]
        with self._original_off(self._start):
            self._values = {key: self._nll(self._start, key, "original") for key in losses}
            self._original_core = None if self._core is None else self._core(self._start)
        self.original = self._result("original", self._values, None, self._original_core)

    def of(self, name: str, tuned: Model | str | Path) -> RunResult:
        """
        What a tuned model, an object or a folder, learned and forgot; `name` is the run's.

        Raises:
            ValueError: if its vocabulary is another.
            FloatingPointError: if it gives a loss that is not finite.
        """
        model = loaded(tuned, like=self._start)
        values = {key: self._nll(model, key, name) for key in self._values}
        if "kl" in self._rows:
            title = f"{name}: KL(original || new)"
            values["kl"] = self._losses.kl(self._start, model, self._rows["kl"], title, self._original_off)
        core = None if self._core is None else self._core(model, against=self._original_core)
        result = self._result(name, values, self._values, core)
        if model is not tuned:  # loaded here, so it is ours to drop before the next one comes
            del model
            free_memory()
        return result

    def report(self, runs: list[RunResult]) -> ForgettingReport:
        """The report of such results."""
        return ForgettingReport(self.original, runs, self.settings)

    def _nll(self, model: Model, key: str, name: str) -> NDArray[np.float64]:
        return self._losses.nll(model, self._rows[key], f"{name}: {key} loss")

    def _result(
        self,
        name: str,
        values: dict[str, NDArray[np.float64]],
        original_values: dict[str, NDArray[np.float64]] | None,
        core_report: CoreReport | None,
    ) -> RunResult:
        return _run_result(name, self._rows, values, original_values, self._group_of, core_report)


# --- measuring -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RowLosses:
    """Sums over the supervised tokens of each row, under one or two models."""

    batch_size: int
    autocast_dtype: torch.dtype | None
    show_progress: bool
    pad_token_id: int

    def nll(self, model: Model, rows: Rows, title: str) -> NDArray[np.float64]:
        """
        Negative log-likelihood of each row's supervised tokens in nats, shape `(rows,)`.

        Raises:
            FloatingPointError: if one is not finite; the message names model and row.
        """
        return _finite(self.any_nll(model, rows, title), rows, title)

    def any_nll(self, model: Model, rows: Rows, title: str) -> NDArray[np.float64]:
        """The same, finite or not."""
        sums = np.zeros(len(rows.ids))
        with ready(model), torch.no_grad():
            for batch in self._batches(rows, _vocabulary(model), title):
                logits = self._logits(model, rows, batch)
                for batch_index, i in enumerate(batch):
                    for positions, tokens in _supervised(rows.labels[i], logits):
                        # Summed in float64: a change is a small difference of two such sums.
                        losses = F.cross_entropy(logits[batch_index, positions].float(), tokens, reduction="none")
                        sums[i] += losses.double().sum().item()
        return sums

    def kl(
        self,
        original: Model,
        tuned: Model,
        rows: Rows,
        title: str,
        original_off: Callable[[Model], AbstractContextManager],
    ) -> NDArray[np.float64]:
        """KL(original || new) summed over each row's supervised prefixes in nats, shape `(rows,)`."""
        vocabulary = _vocabulary(original)
        if _vocabulary(tuned) != vocabulary:
            raise ValueError(
                f"{title}: the original model has {vocabulary:,} tokens, the new one {_vocabulary(tuned):,}; a KL "
                "needs one vocabulary. Resize the original's embeddings the same way before tuning, and compare with "
                "that."
            )
        sums = np.zeros(len(rows.ids))
        with ready(original), ready(tuned), torch.no_grad():
            for batch in self._batches(rows, 2 * vocabulary, title):  # two models' logits are alive
                with original_off(original):
                    original_logits = self._logits(original, rows, batch)
                tuned_logits = self._logits(tuned, rows, batch).to(original_logits.device)
                for batch_index, i in enumerate(batch):
                    for positions, _ in _supervised(rows.labels[i], original_logits):
                        kl = exact_kl(original_logits[batch_index, positions], tuned_logits[batch_index, positions])
                        sums[i] += kl.double().sum().item()
        return _finite(sums, rows, title)

    def _batches(self, rows: Rows, vocabulary: int, title: str) -> Iterator[list[int]]:
        """Rows of like length, longest first: little is padding, and memory runs out at once or never."""
        order = sorted(range(len(rows.ids)), key=lambda i: len(rows.ids[i]), reverse=True)
        with tqdm(total=len(order), desc=title, unit="row", disable=not self.show_progress) as bar:
            while order:
                # 4 bytes a float32 logit; the longest row that is left is the width of the batch.
                room = LOGIT_BYTES // (4 * vocabulary * len(rows.ids[order[0]]))
                size = max(1, min(self.batch_size, room))
                batch = order[:size]
                order = order[size:]
                yield batch
                bar.update(len(batch))

    def _logits(self, model: Model, rows: Rows, batch: list[int]) -> Tensor:
        """Logits of shape `(batch, seq_len, vocab_size)`; padded on the right, where a causal model cannot see it."""
        device = model.get_input_embeddings().weight.device
        ids = [torch.tensor(rows.ids[i]) for i in batch]
        padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=self.pad_token_id)
        mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in ids], batch_first=True)
        dtype = self.autocast_dtype
        with nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype):
            logits = model(input_ids=padded.to(device), attention_mask=mask.to(device), use_cache=False).logits
        return logits[:, -padded.shape[1] :]  # prompt-learning adapters put virtual tokens in front


def _only_run(runs: dict[str, Any]) -> Model:
    """The one `PeftModel` whose adapters can be switched off to give the original model back exactly."""
    model = next(iter(runs.values()))
    if len(runs) != 1 or not isinstance(getattr(model, "peft_config", None), Mapping):
        raise ValueError(
            "original=None needs `new` to be one PeftModel (adapters off is the original); give `original`."
        )
    check_adapters_off(model)
    return model


def _left_alone(model: Model) -> AbstractContextManager[None]:
    return nullcontext()


def _supervised(labels: list[int], logits: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Positions whose next token is supervised, and those tokens, in chunks that bound the memory of what follows."""
    shifted = torch.tensor(labels[1:], device=logits.device)  # the logits at t predict the token at t + 1
    positions = (shifted != -100).nonzero().squeeze(1)
    for chunk in positions.split(max(1, TEMPORARY_BYTES // (4 * logits.shape[-1]))):
        yield chunk, shifted[chunk]


def _vocabulary(model: Model) -> int:
    return model.config.get_text_config().vocab_size


def _finite(sums: NDArray[np.float64], rows: Rows, title: str) -> NDArray[np.float64]:
    bad = np.flatnonzero(~np.isfinite(sums))
    if len(bad):
        first = rows.index[bad[0]]
        raise FloatingPointError(f"{title}: row {first:,} gives {sums[bad[0]]}; {len(bad)} rows are affected.")
    return sums


def _run_result(
    name: str,
    rows: dict[str, Rows],
    values: dict[str, NDArray[np.float64]],
    original_values: dict[str, NDArray[np.float64]] | None,
    group_of: NDArray[np.str_] | None,
    core_report: CoreReport | None,
) -> RunResult:
    tokens = {key: rows[key].num_tokens for key in rows}
    loss = {key: ratio_estimate(values[key], tokens[key]) for key in values}
    # Subtracted row by row, so that the interval of a change is that of paired differences.
    differences = {key: values[key] - start for key, start in (original_values or {}).items()}
    change = {key: ratio_estimate(differences[key], tokens[key]) for key in differences}
    group_loss = {}
    for group in [] if group_of is None else sorted(set(group_of.tolist())):
        of_group = group_of == group
        group_loss[group] = ratio_estimate(values["target"][of_group], tokens["target"][of_group])
    kl_by_start = {}
    starts = np.array(rows["kl"].start or []) if "kl" in values else np.array([])
    for start in sorted(set(starts.tolist())):
        of_start = starts == start
        kl_by_start[start] = ratio_estimate(values["kl"][of_start], tokens["kl"][of_start])
    return RunResult(
        name=name,
        target_loss=loss.get("target"),
        target_change=change.get("target"),
        kl_original_to_new=loss.get("kl"),
        general_loss=loss.get("general"),
        general_change=change.get("general"),
        group_loss=group_loss,
        kl_by_start=kl_by_start,
        core={} if core_report is None else core_report.scores(),
        core_change={} if core_report is None else core_report.differences,
    )
