"""What the result of a run in stages depends on, written down when it begins; under anything else it stops."""

from __future__ import annotations

import dataclasses
import enum
import functools
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import xxhash
from datasets import Dataset, IterableDataset
from torch import Tensor, nn

from hf_ext.data.provenance import model_hash, tokenizer_hash
from hf_ext.data.row_digest import code_digest, rows_change, rows_digest
from hf_ext.guards.inside import read_json
from hf_ext.guards.runs import RunFolder

RowSets: TypeAlias = Dataset | IterableDataset | Mapping[str, Dataset | IterableDataset] | None
LOGGING = ("logging_strategy", "logging_steps", "logging_first_step")
# Arguments of training that may change between a run and its continuation: they change no result. All others count,
# those too that a later version of the host adds.
FREE = frozenset({
    *LOGGING, "logging_dir", "logging_nan_inf_filter", "log_on_each_node", "log_level", "log_level_replica",
    "output_dir", "resume_from_checkpoint", "do_train", "do_eval", "do_predict", "local_rank", "ddp_timeout",
    "disable_tqdm", "report_to", "run_name", "project", "trackio_space_id", "trackio_bucket_id",
    "trackio_static_space_id", "skip_memory_metrics", "include_num_input_tokens_seen", "push_to_hub",
    "save_on_each_node", "save_total_limit", "enable_jit_checkpoint", "dataloader_pin_memory",
    "dataloader_prefetch_factor", "dataset_num_proc", "bad_rows_path",
})  # fmt: skip
# A run resumed from any checkpoint ends in the same weights; but the best one is chosen among those that are saved.
SAVING = frozenset({"save_strategy", "save_steps", "save_only_model"})
_DEEPEST = 4  # of objects inside objects that are described
_MODEL_FILES = re.compile(
    r".*\.(safetensors|bin|model|jinja|safetensors\.index\.json)|(generation_|adapter_|preprocessor_|processor_)?"
    r"config\.json|(tokenizer|special_tokens|added_tokens|vocab|merges|chat_template).*\.(json|txt)"
)
_COMMIT = re.compile(r"snapshots[/\\]([0-9a-f]{40})[/\\]")
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def settings_of(args: Any, free: Iterable[str] = ()) -> dict[str, Any]:
    """
    The arguments of training that change a result.

    Args:
        args (`TrainingArguments`, or any dataclass):
            Its fields are read.
        free (`Iterable[str]`, *optional*):
            Further ones that change none, beside [`FREE`].

    Returns:
        `dict`: name to plain value.
    """
    unread = FREE | set(free) | (frozenset() if getattr(args, "load_best_model_at_end", False) else SAVING)
    names = [field.name for field in dataclasses.fields(args)]
    return {
        name: described(getattr(args, name, None))
        for name in names
        if name not in unread and not name.startswith("hub_")  # a token among them: it is never written down
    }


def described(value: Any, depth: int = 0) -> Any:
    """Any object as plain values: what it is made of, as far as that can be told."""
    if isinstance(value, enum.Enum):
        return described(value.value, depth)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if depth > _DEEPEST:
        return type(value).__qualname__
    inner = functools.partial(described, depth=depth + 1)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): inner(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [inner(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted((inner(item) for item in value), key=repr)
    if isinstance(value, type):
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, functools.partial):
        return {"function": inner(value.func), "args": inner(value.args), "keywords": inner(value.keywords)}
    if hasattr(value, "__code__") or hasattr(value, "__func__"):
        return code_digest(value)
    if isinstance(value, Dataset | IterableDataset):
        return rows_digest(value)["columns"]
    if isinstance(value, np.ndarray | Tensor):
        array = np.asarray(value.detach().float().cpu() if isinstance(value, Tensor) else value)
        return f"{array.dtype}{list(array.shape)} {_short_hash(array.tolist())}"
    return {"class": inner(type(value))} | _inside(value, inner)


def _inside(value: Any, inner: Any) -> dict[str, Any]:
    if isinstance(value, nn.Module):
        return model_settings(value)
    if hasattr(value, "special_tokens_map"):
        sides = {name: getattr(value, name, None) for name in ("padding_side", "truncation_side", "model_max_length")}
        return {"tokenizer": tokenizer_hash(value), "pad_token": str(value.pad_token), **sides}
    if dataclasses.is_dataclass(value):
        return {field.name: inner(getattr(value, field.name, None)) for field in dataclasses.fields(value)}
    if callable(getattr(value, "to_dict", None)):
        return {str(key): inner(item) for key, item in value.to_dict().items()}
    if hasattr(value, "__dict__"):
        return {key: inner(item) for key, item in vars(value).items() if not key.startswith("__")}
    return {"value": _ADDRESS.sub("", repr(value))}


def model_settings(model: nn.Module) -> dict[str, Any]:
    """Of a model before training: weights, buffers, structure, what is trained, and its configuration."""
    weights = {name for name, _ in model.named_parameters()}
    buffers = xxhash.xxh3_128()
    for name, tensor in model.state_dict().items():
        if name not in weights and hasattr(tensor, "cpu"):
            buffers.update(name.encode())
            buffers.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    frozen = sorted(name for name, parameter in model.named_parameters() if not parameter.requires_grad)
    config: Any = getattr(model, "config", None)
    values = config.to_dict() if callable(getattr(config, "to_dict", None)) else {}
    unread = ("_name_or_path", "transformers_version", "_commit_hash", "torch_dtype")
    return {
        "initial_weights": model_hash(model),
        "buffers": buffers.hexdigest(),
        "structure": _short_hash(_ADDRESS.sub("", repr(model))),  # dropout layers say their probability
        "frozen": _short_hash(frozen),
        "config": {name: described(value) for name, value in values.items() if name not in unread},
    }


def _short_hash(value: Any) -> str:
    return xxhash.xxh3_128(json.dumps(value, default=str).encode()).hexdigest()[:16]


def source_settings(name: str, revision: str | None = None) -> dict[str, Any]:
    """
    Of a model that is loaded by name: digests of its folder's files, tokenizer too, or the commit on the Hub.

    Args:
        name (`str`):
            A folder or a name on the Hub.
        revision (`str`, *optional*):
            Of the Hub.
    """
    folder = Path(name)
    if not folder.is_dir():
        from transformers.utils import cached_file

        try:
            commit = _COMMIT.search(str(cached_file(name, "config.json", revision=revision)))
        except OSError:  # an adapter alone, or no such model: whoever loads it says so
            commit = None
        return {"commit": commit[1] if commit else None}
    files = sorted(path for path in folder.iterdir() if path.is_file() and _MODEL_FILES.fullmatch(path.name))
    if any(path.suffix == ".safetensors" for path in files):  # the host prefers them
        files = [path for path in files if path.suffix != ".bin"]
    settings: dict[str, Any] = {path.name: file_hash(path) for path in files}
    if (folder / "adapter_config.json").is_file():
        base = read_json(folder / "adapter_config.json")
        base_name = base.get("base_model_name_or_path")
        if isinstance(base_name, str) and base_name and Path(base_name) != folder:
            settings["base"] = source_settings(base_name, base.get("revision"))
    return settings


def file_hash(path: Path) -> str:
    """Digest of a file's bytes."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while chunk := file.read(8 * 1024**2):
            digest.update(chunk)
    return digest.hexdigest()


def begin_run(run: RunFolder, settings: Mapping[str, Any], rows: Mapping[str, RowSets], *, parts: str) -> None:
    """
    [`RunFolder.begin`](hf_ext.guards.runs.RunFolder) for settings and rows.

    Args:
        run ([`~hf_ext.guards.runs.RunFolder`]):
            The folder.
        settings (`Mapping`):
            Plain values, mappings of them too.
        rows (`Mapping`):
            Name in messages (`training rows`) to a `Dataset`, a stream, a mapping of them, or `None`.
        parts (`str`):
            Pattern of what a run leaves in the folder, such as `round-*`.

    Raises:
        ValueError: if the run was begun with other settings or rows, or if the folder holds parts of a run whose
            settings are not known.
    """
    sets = dict(_flat_rows(rows))
    digests = {name: rows_digest(part) for name, part in sets.items()}
    run.begin(settings, digests, lambda name, former: rows_change(former, digests[name], sets[name]), parts=parts)


def _flat_rows(rows: Mapping[str, RowSets]) -> Iterable[tuple[str, Dataset | IterableDataset]]:
    for name, part in rows.items():
        if isinstance(part, Mapping):
            yield from ((f"{name} {key!r}", inner) for key, inner in part.items())
        elif part is not None:
            yield name, part
