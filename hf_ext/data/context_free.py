"""Context-free rows: exact samples of the original model from a bare seed, or after the prompts of a task."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import torch
from datasets import Dataset
from torch import Tensor

from hf_ext.data.backends.shards import shards_of
from hf_ext.data.context_free_store import (
    NAMED_SCHEMA,
    SCHEMA,
    ContextFreeStore,
    Shard,
    agreed,
    claimed_store,
    dtype_of,
    grow,
    short_name,
)
from hf_ext.data.provenance import model_hash, original_model, tokenizer_hash
from hf_ext.data.sampling import end_ids, row_uniforms, sample_after, sample_rows, sampling_mode
from hf_ext.data.slots import can_refill
from hf_ext.data.starts import Start, StartName, as_settings, from_settings, numbers_of_starts, starts_of
from hf_ext.data.trained_adapters import require_untouched_adapters

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

    from hf_ext.data.backends.protocol import SamplingBackend

__all__ = ["ContextFreeStore", "generate_context_free", "generate_contextual", "top_up"]

MOST_BATCHES = 8  # batches in a shard: more would save little time and lose more rows to a kill
TOP_UP_KINDS = ("context_free",)


def generate_context_free(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    num_tokens: int,
    *,
    output_dir: str | Path,
    max_new_tokens: int = 128,
    batch_size: int = 32,
    seed: int = 0,
    start: StartName | Mapping[Any, float] = "bos",
    temperature: float = 1.0,
    autocast_dtype: torch.dtype | None = None,
    backend: SamplingBackend | None = None,
    show_progress: bool = True,
) -> ContextFreeStore:
    r"""
    Sample context-free rows from the original model: the data whose likelihood anchors a model to what it knows.

    Sampling is exact: temperature 1, no filter, no penalty, nothing from the checkpoint's generation config but its
    end tokens. So the mean negative log-likelihood of the rows under a model $q$ is, up to a constant,
    $\mathrm{KL}(p \| q)$ of the first `max_new_tokens` tokens, $p$ being the original model.

    Each row has random numbers of its own, from (`seed`, its number), so it does not depend on its neighbours but for
    rounding. `batch_size` rows are sampled at once; where one ends, the next of the shard takes its place, if the
    model allows that (its cache keeps every token, and it takes positions and a mask); else batches begin together.

    A shard is 1 to 8 batches of rows, as many as `num_tokens` calls for when the store is new. Shards are added until
    they hold `num_tokens` sampled tokens, and always whole: stopping inside one would favour short rows. Stopped at
    any moment, even by `kill -9`, the same call continues after the last whole shard and gives the rows of an unbroken
    run (on the same machine kind and thread count). On a complete store it returns at once; with a larger
    `num_tokens` it adds shards. The global random state is left alone. Under `torch.distributed` the processes share
    the shards out and write to one shared folder: shard for shard the same rows as one process.

    Args:
        model (`PreTrainedModel` or `PeftModel`):
            The model before tuning, on its device, on every process. Adapters that are on it are new ones.
        tokenizer (`PreTrainedTokenizerBase`):
            Its tokenizer.
        num_tokens (`int`):
            Sampled tokens wanted, start not counted.
        output_dir (`str` or `Path`):
            Folder of the store: new, empty, or a store of the same settings. Rows may hold text the model memorised:
            read some before you publish them.
        max_new_tokens (`int`, *optional*, defaults to `128`):
            Longest row in sampled tokens. A row cut here ends as it is: no end token is added.
        batch_size (`int`, *optional*, defaults to `32`):
            Rows sampled together.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the rows.
        start (`str`, list of `int`, or a mapping of those to shares, *optional*, defaults to `"bos"`):
            What every row begins with, never supervised: `"bos"`, `"separator"` (what stands between pre-training
            documents: `<|endoftext|>` or `<|end_of_text|>` if the tokenizer has it, else its end token), `"chat"` (the
            chat template up to a user's words: the model makes up the user's turn, ends it, and answers), `"think"`
            (the beginning token and `<think>`, of reasoning models), any other text (tokenised without special tokens
            added), or token ids. A mapping such as `{"bos": 0.5, "chat": 0.5}` mixes them by shares of the rows, and
            adds a column `start`.
        temperature (`float`, *optional*, defaults to `1.0`):
            For ablations. Rows of another temperature than 1 are not samples of the model: their likelihood pulls
            towards another one. `sampled_logps` are the model's, at temperature 1.
        autocast_dtype (`torch.dtype`, *optional*):
            Autocast while sampling, e.g. `torch.bfloat16`. The rows then follow the autocast model; train likewise.
        backend ([`SamplingBackend`], *optional*):
            An engine that samples in place of our loop: [`ContinuousBatchingBackend`], [`CompletionsBackend`],
            [`VLLMBackend`] or one of your own. It must pass a probe against `model` first. A store may have shards of
            several; those of an engine do not come out the same again.
        show_progress (`bool`, *optional*, defaults to `True`):
            Whether the main process shows a progress bar in sampled tokens.

    Returns:
        [`ContextFreeStore`]: the complete store.

    Raises:
        ValueError: if an argument is out of range, there is no such start, an adapter is trained already, or the
            folder holds something else, a store of other settings, or one that another run samples into.
        FloatingPointError: if the model's logits are not finite.
        BackendError: if the backend samples from another distribution than the model's, or fails again and again.

    Reference: *Context-Free Synthetic Data Mitigates Forgetting* (arXiv 2505.13811).
    """
    _check_numbers(temperature, num_tokens=num_tokens, max_new_tokens=max_new_tokens, batch_size=batch_size)
    require_untouched_adapters(model)
    starts = starts_of(model, tokenizer, start, max_new_tokens)
    several = as_settings(starts)
    settings = {
        **_settings_of(model, tokenizer, seed, batch_size, max_new_tokens, temperature, autocast_dtype),
        "start_ids": starts[0].ids if several is None else None,
        "starts": several,
    }
    batches = math.ceil(num_tokens / (max_new_tokens * batch_size))
    rows_per_shard = batch_size * min(batches, MOST_BATCHES)
    return _grown(Path(output_dir), settings, rows_per_shard, model, num_tokens, show_progress, backend)


def generate_contextual(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Dataset | Sequence[Any],
    num_tokens: int,
    *,
    output_dir: str | Path,
    max_new_tokens: int = 128,
    batch_size: int = 32,
    seed: int = 0,
    temperature: float = 1.0,
    autocast_dtype: torch.dtype | None = None,
    backend: SamplingBackend | None = None,
    show_progress: bool = True,
) -> ContextFreeStore:
    """
    Sample rows after prompts: what the original model would say to the training prompts, as an anchor.

    The rows' likelihood anchors the model on these prompts, where context-free rows anchor it on its own text. Row `i`
    follows prompt `i` modulo their number; everything else is as in [`generate_context_free`], resuming too.

    Args:
        model, tokenizer, num_tokens, output_dir, max_new_tokens, batch_size, seed, temperature, autocast_dtype,
        backend, show_progress:
            As in [`generate_context_free`].
        prompts (`Dataset` with a column `prompt`, or a sequence):
            Prompts: texts, lists of messages (rendered with the chat template and its generation prompt), or lists of
            token ids. Never supervised.

    Returns:
        [`ContextFreeStore`]: the complete store, which [`ContextFreeSFTTrainer`] takes like any other.

    Raises:
        ValueError: as [`generate_context_free`]; or if there is no prompt, or one is empty or too long for the model.
        BackendError: as [`generate_context_free`].

    Reference: the baseline of contextual synthetic data of *Context-Free Synthetic Data Mitigates Forgetting* (arXiv
    2505.13811).
    """
    _check_numbers(temperature, num_tokens=num_tokens, max_new_tokens=max_new_tokens, batch_size=batch_size)
    require_untouched_adapters(model)
    prompt_ids = _prompt_ids(model, tokenizer, prompts, max_new_tokens)
    settings = {
        **_settings_of(model, tokenizer, seed, batch_size, max_new_tokens, temperature, autocast_dtype),
        "start_ids": None,
        "starts": None,
        "kind": "contextual",
        "rows_hash": hashlib.sha256(json.dumps(prompt_ids).encode()).hexdigest(),
    }
    batches = math.ceil(num_tokens / (max_new_tokens * batch_size))
    rows_per_shard = batch_size * min(batches, MOST_BATCHES)
    return grow(
        Path(output_dir), settings, rows_per_shard, model, num_tokens,
        lambda manifest: _sampler_after(model, manifest, prompt_ids) if backend is None
        else _sampler_of(backend, model, manifest, prompt_ids),
        show_progress, _origin(backend),
    )  # fmt: skip


def top_up(
    store: ContextFreeStore, model: nn.Module, num_rows: int, *, show_progress: bool = True
) -> ContextFreeStore:
    """
    Add rows to a store until it holds `num_rows`: those that a longer call of [`generate_context_free`] would give.

    A run that never sees a row twice anchors itself on the model, and not on a sample of it. The store may be
    incomplete: a killed top-up goes on.

    Args:
        store ([`ContextFreeStore`]):
            Of [`generate_context_free`], writable.
        model (`PreTrainedModel` or `PeftModel`):
            The model it was sampled from, on its device, on every process.
        num_rows (`int`):
            Rows wanted.
        show_progress (`bool`, *optional*, defaults to `True`):
            Whether the main process shows a progress bar.

    Returns:
        [`ContextFreeStore`]: the same, with enough rows.

    Raises:
        ValueError: if the store holds other rows than context-free ones, or comes from other weights.
        InUseError: if another run fills it.
        DiskFullError: if there is no room; the same call goes on after the last whole shard.
    """
    manifest = store.manifest
    kind = manifest.get("kind", "context_free")
    if kind not in TOP_UP_KINDS:
        raise ValueError(f"The store {store.path} holds {kind} rows, which cannot be topped up: make a larger store.")
    store.check_model(model)
    names = ("model_hash", "tokenizer_hash", "eos_ids", "seed", "batch_size", "max_new_tokens", "dtype",
             "autocast_dtype", "start_ids")  # fmt: skip
    settings = {name: manifest[name] for name in names}
    settings |= {"kind": kind, "rows_hash": None, "starts": manifest.get("starts")}
    settings |= {"temperature": manifest.get("temperature", 1.0)}
    if agreed(_has_rows(manifest, num_rows)):  # read only: it may lie where nothing can be written
        return store
    folder = Path(store.path)
    with claimed_store(folder):  # from the first shard to the last: nobody else comes in between two calls
        manifest = store.manifest  # another run may have added rows before this one held the store
        while not _has_rows(manifest, num_rows):
            tokens, rows = manifest.get("tokens", 0), max(1, manifest.get("rows", 0))
            wanted = max(manifest.get("num_tokens", 1), tokens + 1 if manifest["complete"] else 1)
            if manifest["complete"]:
                wanted = max(wanted, math.ceil(0.9 * tokens / rows * num_rows))  # from below: no shard too many
            store = _grown(folder, settings, manifest["rows_per_shard"], model, wanted, show_progress)
            manifest = store.manifest
    return store


def _has_rows(manifest: Mapping[str, Any], num_rows: int) -> bool:
    return bool(manifest["complete"] and manifest["rows"] >= num_rows)


# --- settings --------------------------------------------------------------------------------------------------------


def _check_numbers(temperature: float, **counts: int) -> None:
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value!r}.")
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"temperature must be above 0 and finite, got {temperature!r}.")


def _settings_of(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
    batch_size: int,
    max_new_tokens: int,
    temperature: float,
    autocast_dtype: torch.dtype | None,
) -> dict[str, Any]:
    """What the rows of a shard depend on, beside what they begin with."""
    return {
        "model_hash": model_hash(model),
        "tokenizer_hash": tokenizer_hash(tokenizer, with_chat_template=False),
        "eos_ids": end_ids(model, tokenizer),
        "seed": seed,
        "batch_size": batch_size,
        "max_new_tokens": max_new_tokens,
        "dtype": dtype_of(model),
        "autocast_dtype": None if autocast_dtype is None else short_name(autocast_dtype),
        "kind": "context_free",
        "temperature": temperature,
        "rows_hash": None,
    }


def _prompt_ids(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, prompts: Dataset | Sequence[Any], max_new_tokens: int
) -> list[list[int]]:
    if isinstance(prompts, Dataset):
        if "prompt" not in prompts.column_names:
            raise ValueError(f"prompts has no column 'prompt'; it has {prompts.column_names}.")
        prompts = prompts.with_format(None)["prompt"][:]
    rows = [_ids_of(tokenizer, prompt) for prompt in prompts]
    config = original_model(model).config.get_text_config()
    longest = getattr(config, "max_position_embeddings", None) or math.inf
    for index, ids in enumerate(rows):
        if not ids or len(ids) + max_new_tokens > longest or not all(0 <= token < config.vocab_size for token in ids):
            raise ValueError(
                f"prompt {index:,} has {len(ids):,} tokens: each needs one at least, of the model's vocabulary, and "
                f"with max_new_tokens={max_new_tokens} no more than the model's {longest} positions. Drop or cut it."
            )
    if not rows:
        raise ValueError("There is no prompt to sample after: the rows are empty.")
    return rows


def _ids_of(tokenizer: PreTrainedTokenizerBase, prompt: Any) -> list[int]:
    if isinstance(prompt, str):
        return list(tokenizer(prompt)["input_ids"])
    if len(prompt) and isinstance(prompt[0], Mapping):
        return list(tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)["input_ids"])
    return [int(token) for token in prompt]


# --- shards ----------------------------------------------------------------------------------------------------------


def _grown(
    folder: Path,
    settings: dict[str, Any],
    rows_per_shard: int,
    model: nn.Module,
    num_tokens: int,
    show_progress: bool,
    backend: SamplingBackend | None = None,
) -> ContextFreeStore:
    return grow(
        folder, settings, rows_per_shard, model, num_tokens,
        lambda manifest: _sampler(model, manifest) if backend is None else _sampler_of(backend, model, manifest),
        show_progress, _origin(backend),
    )  # fmt: skip


def _origin(backend: SamplingBackend | None) -> Callable[[], dict[str, Any]] | None:
    """What tells a shard's backend, once it has sampled; nothing of our own loop."""
    return None if backend is None else lambda: backend.description


@contextmanager
def _as_it_samples(model: nn.Module, settings: Mapping[str, Any]) -> Iterator[None]:
    name = settings["autocast_dtype"]
    device = next(original_model(model).parameters()).device
    dtype = None if name is None else getattr(torch, name)
    with sampling_mode(model), torch.autocast(device.type, dtype, enabled=dtype is not None):
        yield


def _sampler(model: nn.Module, settings: dict[str, Any]) -> Shard:
    """Return what samples the shard of a number from the starts of the settings."""
    base = original_model(model)
    device = next(base.parameters()).device
    eos = torch.tensor(settings["eos_ids"], dtype=torch.long)
    longest = settings["max_new_tokens"]
    num_rows = settings["rows_per_shard"]
    starts = from_settings(settings)
    inputs = [torch.tensor(start.ids, device=device) for start in starts]
    with _as_it_samples(model, settings):
        refills = [can_refill(base, ids, longest) for ids in inputs]

    def sample(number: int, on_tokens: Callable[[int], Any]) -> pa.Table:
        numbers = range(number * num_rows, (number + 1) * num_rows)
        uniforms = row_uniforms(settings["seed"], numbers, longest)
        start_of_row = torch.from_numpy(numbers_of_starts(starts, numbers))
        ids = torch.zeros(num_rows, longest, dtype=torch.long)
        logps = torch.zeros(num_rows, longest)
        lengths = torch.zeros(num_rows, dtype=torch.long)
        for start_index, start in enumerate(starts):
            of_start = (start_of_row == start_index).nonzero()[:, 0]
            if not len(of_start):
                continue
            with _as_it_samples(model, settings):
                sampled = sample_rows(
                    base, inputs[start_index], uniforms[of_start], eos, batch_size=settings["batch_size"],
                    refill=refills[start_index], on_tokens=on_tokens, ends=start.ends,
                    temperature=settings.get("temperature", 1.0),
                )  # fmt: skip
            ids[of_start], logps[of_start], lengths[of_start] = sampled
        rows_starts = [starts[start_index] for start_index in start_of_row.tolist()]
        return _table(settings, rows_starts, ids, logps, lengths)

    return sample


def _sampler_after(model: nn.Module, settings: dict[str, Any], prompts: list[list[int]]) -> Shard:
    """Return what samples the shard of a number after its rows' prompts."""
    base = original_model(model)
    device = next(base.parameters()).device
    eos = torch.tensor(settings["eos_ids"], dtype=torch.long)
    longest = settings["max_new_tokens"]
    num_rows = settings["rows_per_shard"]
    with _as_it_samples(model, settings):
        pads = can_refill(base, torch.tensor(prompts[0], device=device), longest)

    def sample(number: int, on_tokens: Callable[[int], Any]) -> pa.Table:
        numbers = range(number * num_rows, (number + 1) * num_rows)
        rows_starts = [Start("prompt", prompts[row % len(prompts)]) for row in numbers]
        with _as_it_samples(model, settings):
            sampled = sample_after(
                base, [start.ids for start in rows_starts], row_uniforms(settings["seed"], numbers, longest), eos,
                batch_size=settings["batch_size"], pads=pads, on_tokens=on_tokens,
                temperature=settings.get("temperature", 1.0),
            )  # fmt: skip
        return _table(settings, rows_starts, *sampled)

    return sample


def _sampler_of(
    backend: SamplingBackend, model: nn.Module, settings: dict[str, Any], prompts: list[list[int]] | None = None
) -> Shard:
    """Return what has an engine sample the shard of a number, from the starts of the settings or after prompts."""
    starts = [] if prompts is not None else from_settings(settings)

    def starts_of_rows(numbers: range) -> list[Start]:
        if prompts is not None:
            return [Start("prompt", prompts[row % len(prompts)]) for row in numbers]
        return [starts[start_index] for start_index in numbers_of_starts(starts, numbers)]

    return shards_of(backend, model, settings, starts_of_rows, _table)


def _table(settings: dict[str, Any], starts: Sequence[Start], ids: Tensor, logps: Tensor, lengths: Tensor) -> pa.Table:
    """Rows as they are stored; `starts` has that of each."""
    eos = set(settings["eos_ids"])
    named = settings.get("starts") is not None
    schema = NAMED_SCHEMA if named else SCHEMA
    columns: dict[str, list[Any]] = {name: [] for name in schema.names}
    rows = zip(starts, ids.tolist(), logps.numpy(), lengths.tolist(), strict=True)
    for start, row_ids, row_logps, length in rows:
        sampled = row_ids[:length]
        columns["input_ids"].append(start.ids + sampled)
        columns["labels"].append([-100] * len(start.ids) + sampled)
        columns["sampled_logps"].append([0.0] * len(start.ids) + row_logps[:length].tolist())
        is_over = sampled[-1] in eos and sum(token in eos for token in sampled) == start.ends
        columns["finish"].append("eos" if is_over else "length")
        if named:
            columns["start"].append(start.name)
    return pa.table(columns, schema=schema)
