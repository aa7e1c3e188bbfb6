"""A model's folder may come from anywhere: looked at before a host library reads it, and one sentence if it cannot."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hf_ext.guards.disk import is_disk_full
from hf_ext.guards.extras import MissingExtraError
from hf_ext.guards.inside import file_in, read_json, require_file, require_inside

LISTS = ("modules.json",)  # every other JSON file of a model holds an object
WEIGHTS = (".safetensors", ".bin", ".gguf", ".pt", ".pth", ".h5", ".msgpack", ".onnx")
MOST_FILES = 100_000
MOST_CHARACTERS = 500  # of what a host library says

# The largest numbers a configuration may hold, by how their names end; several times those of any known model. The
# hosts build layers, labels and tables of positions from them before they look at the weights.
LIMITS = (
    (r"layers?|depth", 10_000),
    (r"labels|experts|heads?|channels|groups?|r|rank", 1_000_000),
    (r"size|dim|dimension|features|d_model|d_ff|embd|inner|width", 100_000_000),
    (r"positions?|position_embeddings|length|ctx", 100_000_000),
)
HIDDEN = ("hidden_size", "d_model", "n_embd", "dim")
BESIDE = (*HIDDEN, "vocab_size", "intermediate_size", "ffn_dim", "n_inner", "d_ff", "hidden_dim")
NUMBERS_PER_BYTE = 64  # no quantisation packs so many weights into a byte


class ModelFilesError(ValueError):
    """A model cannot be loaded from its files; the message names it and the reason."""


@contextmanager
def loading_model(name: object, kind: str = "model") -> Iterator[None]:
    """
    Around a host library's loader of a model, tokenizer or processor.

    Args:
        name (`object`):
            A folder, which is looked at first, or a name on the Hub.
        kind (`str`, *optional*, defaults to `"model"`):
            What is loaded, for the message.

    Raises:
        ModelFilesError: if a file is malformed or leads out of the folder, or the loader fails in any other way.
    """
    try:
        if os.path.isdir(str(name)):
            check_model_folder(str(name))
        yield
    except (ModelFilesError, MissingExtraError, MemoryError):
        raise
    except BaseException as error:
        # tokenizers' Rust code panics over some files: an exception, but none of `Exception`
        panic = type(error).__name__ == "PanicException"
        if not (panic or isinstance(error, Exception)) or is_disk_full(error) or _is_out_of_memory(error):
            raise
        raise ModelFilesError(f"{kind} {str(name)!r} cannot be loaded: {_sentence(error)}") from error


def _sentence(error: BaseException) -> str:
    """An error's message on one line: host libraries name the remedy in a later line than the problem."""
    text = " ".join(str(error).split()) or "no message"
    return f"{type(error).__name__}: {text if len(text) <= MOST_CHARACTERS else text[:MOST_CHARACTERS] + '...'}"


def first_line(error: BaseException) -> str:
    """An error's kind and the first line of what it says."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"


def _is_out_of_memory(error: BaseException) -> bool:
    return type(error).__name__ == "OutOfMemoryError"


def check_model_folder(folder: str | os.PathLike[str]) -> None:
    """
    Refuse a folder with files that a host library would misread, wait for, or run out of memory over.

    Looked at: the folder and those directly below it, where sentence-transformers keeps modules.

    Raises:
        ValueError: if there is a pipe, a link or shard out of the folder, malformed JSON, or an absurd size.
    """
    root = Path(folder)
    skipped = (".", "checkpoint-")
    inner = [path for path in sorted(root.iterdir()) if path.is_dir() and not path.name.startswith(skipped)]
    for place in (root, *inner):
        for number, path in enumerate(sorted(place.iterdir())):
            if number >= MOST_FILES:
                raise ValueError(f"{place} holds more than {MOST_FILES:,} files: it is no model's folder.")
            if path.is_symlink() and path.exists():
                require_inside(path, root)
            if path.suffix in (".json", ".jinja", ".txt", ".model", *WEIGHTS) and not path.is_dir():
                require_file(path)
            if path.suffix == ".json" and path.is_file():
                _check_json(path)


def _check_json(path: Path) -> None:
    values = read_json(path, list if path.name in LISTS else (dict, list))
    if path.name.endswith(".index.json"):
        shards = values.get("weight_map") if isinstance(values, dict) else None
        if not isinstance(shards, dict):
            raise ValueError(f"{path} holds no object 'weight_map': it is no index of weights.")
        # as JSON, because what stands in the place of a name may be a list, which no key can be
        for name in dict.fromkeys(map(json.dumps, shards.values())):
            file_in(path.parent, json.loads(name), path)
    elif path.name in LISTS:
        if not all(isinstance(module, dict) and isinstance(module.get("type"), str) for module in values):
            raise ValueError(f"{path} must hold objects with a string 'type'.")
        if any(module.get("path") and ".." in Path(str(module["path"])).parts for module in values):
            raise ValueError(f"{path} names a module outside of its folder.")
    elif path.name in OBJECTS and not isinstance(values, dict):
        raise ValueError(f"{path} holds a list; expected an object.")
    if path.name in ("config.json", "adapter_config.json") and isinstance(values, dict):
        _check_sizes(path, values)
    if path.name == "tokenizer.json":
        _check_tokenizer(path, values)


OBJECTS = (
    "config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json", "special_tokens_map.json",
    "preprocessor_config.json", "adapter_config.json", "config_sentence_transformers.json", "added_tokens.json",
)  # fmt: skip


def _check_sizes(path: Path, values: dict[str, Any]) -> None:
    for key, number in _numbers(values):
        for ending, most in LIMITS:
            if re.search(rf"(^|_)({ending})$", key) and not -most <= number <= most:
                raise ValueError(f"{path}: {key!r} is {number:,}; no model has more than {most:,}.")
    weights = [file.stat().st_size for file in path.parent.iterdir() if file.suffix in WEIGHTS and file.is_file()]
    hidden = [values[key] for key in HIDDEN if _is_whole(values.get(key))]
    if not weights or not hidden:
        return
    for key in BESIDE:
        if _is_whole(values.get(key)) and hidden[0] * values[key] > NUMBERS_PER_BYTE * sum(weights):
            raise ValueError(
                f"{path}: a model {hidden[0]:,} wide with {key!r} {values[key]:,} does not fit the weights beside it, "
                f"which have {sum(weights):,} bytes."
            )


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _numbers(values: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    for key, value in values.items():
        if _is_whole(value):
            yield key, value
        elif isinstance(value, dict):
            yield from _numbers(value)


def _check_tokenizer(path: Path, values: dict[str, Any]) -> None:
    """Refuse tokens and token numbers that the Rust library would panic over, or accept silently."""
    model = values.get("model")
    added = values.get("added_tokens") or []
    if not isinstance(model, dict):
        raise ValueError(f"{path} holds no object 'model': it is no tokenizer.")
    vocabulary = model.get("vocab")
    numbers = list(vocabulary.values()) if isinstance(vocabulary, dict) else []
    if not isinstance(added, list) or not all(isinstance(token, dict) for token in added):
        raise ValueError(f"{path}: 'added_tokens' must be a list of objects.")
    numbers += [token.get("id") for token in added]
    # numbers may have gaps, but the library makes room for all up to the largest
    most = 10 * (len(numbers) + (len(vocabulary) if isinstance(vocabulary, list) else 0)) + 1_000_000
    for number in numbers:
        if not _is_whole(number) or not 0 <= number < most:
            raise ValueError(f"{path}: a token has the number {number!r}; expected an integer from 0 to {most:,}.")
