"""The folder of rows that anchor a model: whole shards, a manifest that knows their origin, the way it grows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import pyarrow as pa
import torch
from datasets import Dataset, concatenate_datasets
from tqdm.auto import tqdm

from hf_ext.data.provenance import model_hash, original_model, tokenizer_hash
from hf_ext.guards.disk import write_whole, writing
from hf_ext.guards.inside import file_in, read_json
from hf_ext.guards.locks import InUseError
from hf_ext.guards.runs import changed_settings, claimed_folder, refuse_changes, refuse_strangers, remove_leftovers

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

T = TypeVar("T")

FORMAT_REVISION = 2
READABLE = (1, 2)  # 1: a shard was one batch with a random stream of its own; read, never continued
MANIFEST = "manifest.json"
SCHEMA = pa.schema(
    [
        ("input_ids", pa.list_(pa.int64())),
        ("labels", pa.list_(pa.int64())),
        ("sampled_logps", pa.list_(pa.float32())),
        ("finish", pa.string()),
    ]
)
NAMED_SCHEMA = SCHEMA.append(pa.field("start", pa.string()))  # of a store with several starts
# Settings that a manifest holds where they are not these: stores of before they existed say the same without them.
PLAIN: dict[str, Any] = {"kind": "context_free", "starts": None, "temperature": 1.0, "rows_hash": None}

Shard: TypeAlias = Callable[[int, Callable[[int], Any]], pa.Table]
"""What makes the shard of a number; it is given a callable to tell tokens to."""


@dataclass(frozen=True)
class ContextFreeStore:
    """
    A folder of context-free rows: `shard-00000.arrow`, ... and `manifest.json`, written by [`generate_context_free`].

    [`generate_contextual`] and [`store_replay`] write rows of other kinds in the same form.

    | column | type | |
    |---|---|---|
    | `input_ids` | list of int64 | the start, then the sampled ids, never decoded and encoded again |
    | `labels` | list of int64 | `input_ids` with the start replaced by -100 |
    | `sampled_logps` | list of float32 | log-probability of each sampled id, nats; 0 on the start |
    | `finish` | string | `"eos"`: the row ends in an end token; `"length"`: it was cut, and nothing was added |
    | `start` | string | the seed of the row, in a store with several |

    Args:
        path (`str` or `Path`):
            Folder of the store.

    Raises:
        FileNotFoundError: if the folder is missing or holds no manifest.
        ValueError: if the manifest was written in another format revision.
    """

    path: Path | str

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path))
        if not (Path(self.path) / MANIFEST).exists():
            raise FileNotFoundError(
                f"{self.path} is no context-free store: it has no {MANIFEST}. "
                "Make one with generate_context_free(model, tokenizer, num_tokens, output_dir=...)."
            )
        revision = self.manifest.get("format_revision")
        if revision not in READABLE:
            raise ValueError(
                f"The store {self.path} has format revision {revision!r}; this version reads {READABLE}. "
                "Generate it again into another folder."
            )
        if not _is_manifest(self.manifest):
            raise ValueError(f"{Path(self.path) / MANIFEST} is not a manifest that generate_context_free wrote.")

    @property
    def manifest(self) -> dict[str, Any]:
        """The manifest as it is on disk now: settings, provenance, shards and whether the store is complete."""
        return read_json(Path(self.path) / MANIFEST)

    def to_dataset(self) -> Dataset:
        """
        Return all rows, memory-mapped, in the order they were sampled.

        Raises:
            ValueError: if the store is incomplete, or a shard is missing or damaged (the message names it).
        """
        manifest = self.manifest
        if not manifest["complete"]:
            raise ValueError(
                f"The store {self.path} is incomplete: {manifest['tokens']:,} of {manifest['num_tokens']:,} sampled "
                "tokens. Run the same generate_context_free call again; it continues after the last whole shard."
            )
        check_shards(Path(self.path), manifest["shards"])
        return concatenate_datasets([self._rows(Path(self.path) / shard["file"]) for shard in manifest["shards"]])

    def _rows(self, file: Path) -> Dataset:
        try:
            rows = Dataset.from_file(str(file))
        except (pa.ArrowException, OSError, ValueError) as error:
            raise ValueError(f"{file} holds no context-free rows: {str(error).splitlines()[0]}.") from error
        schema = rows.data.schema.remove_metadata()
        if not (schema.equals(SCHEMA) or schema.equals(NAMED_SCHEMA)):
            raise ValueError(f"{file} holds other columns than context-free rows have: {rows.column_names}.")
        return rows

    def check_model(self, model: nn.Module) -> None:
        """
        Check that the rows were sampled from `model` (PEFT adapters left out).

        Raises:
            ValueError: if they came from other weights, or from the same weights in another dtype.
        """
        expected = self.manifest["model_hash"]
        actual = model_hash(model)
        if expected != actual:
            raise ValueError(
                f"The store {self.path} was sampled from other weights (hash {expected[:12]}..., dtype "
                f"{self.manifest['dtype']}) than this model's (hash {actual[:12]}..., dtype {dtype_of(model)}). Rows "
                "of another model pull towards that one: generate a store from the model you tune, in the same dtype."
            )

    def check_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """
        Check that `tokenizer` gives ids the meaning they had when the rows were sampled.

        Its chat template may differ, and so may its end token: that of a chat template on a base model, say.

        Raises:
            ValueError: if vocabulary, merges or other special tokens differ.
        """
        manifest = self.manifest
        expected = manifest["tokenizer_hash"]
        actual = tokenizer_hash(tokenizer, with_chat_template=False)
        former_ends = [tokenizer.convert_ids_to_tokens(token) for token in manifest.get("eos_ids", [])]
        accepted = {
            tokenizer_hash(tokenizer, with_chat_template=False, end_token=token)
            for token in former_ends
            if expected != actual and isinstance(token, str)
        }
        if expected not in {actual, *accepted}:
            raise ValueError(
                f"The store {self.path} was made with another tokenizer (hash {expected[:12]}...) than this one (hash "
                f"{actual[:12]}...): vocabulary, merges or special tokens differ. Pass the original model's "
                "tokenizer, or sample a store with the one you train with."
            )


def grow(
    folder: Path,
    settings: dict[str, Any],
    rows_per_shard: int,
    model: nn.Module,
    num_tokens: int,
    shards_of: Callable[[dict[str, Any]], Shard],
    show_progress: bool,
    origin: Callable[[], dict[str, Any]] | None = None,
) -> ContextFreeStore:
    """
    Add shards to the store in `folder`, which is new or of the same settings, until they hold `num_tokens` tokens.

    Args:
        folder (`Path`):
            Of the store.
        settings (`dict`):
            What the rows of a shard depend on: a store is continued only by a call that agrees on all of these.
        rows_per_shard (`int`):
            Of a new store.
        model (`torch.nn.Module`):
            The model before tuning.
        num_tokens (`int`):
            Supervised tokens wanted.
        shards_of (callable):
            Makes, from the manifest, what makes shards; called only where one is missing.
        show_progress (`bool`):
            Whether the main process shows a progress bar.
        origin (callable, *optional*):
            Tells what the manifest says of the engine that made a shard; nothing if our own loop did.

    Returns:
        [`ContextFreeStore`]: the complete store.

    Raises:
        ValueError: if the folder holds something else, a store of other settings or of an earlier format.
        InUseError: if another run fills it.
    """
    if agreed(_holds(folder, num_tokens)):
        _open_manifest(folder, settings, rows_per_shard, model)  # read only: it may lie where nothing can be written
        return ContextFreeStore(folder)
    with claimed_store(folder):
        manifest = _open_manifest(folder, settings, rows_per_shard, model)
        if rank_and_world()[1] > 1:
            torch.distributed.barrier()  # every process has read the same manifest before the main one writes
        if not (manifest["complete"] and manifest["tokens"] >= num_tokens):
            if manifest["format_revision"] != FORMAT_REVISION:
                raise ValueError(
                    f"The store {folder} was made by an earlier version, which drew other rows from a seed: it is "
                    "read, but not continued. Pass another output_dir."
                )
            _fill(folder, manifest, shards_of(manifest), num_tokens, show_progress, origin)
    return ContextFreeStore(folder)


def _holds(folder: Path, num_tokens: int) -> bool:
    """Whether a complete store of so many sampled tokens is there."""
    if not (folder / MANIFEST).is_file():
        return False
    manifest = ContextFreeStore(folder).manifest
    return bool(manifest["complete"] and manifest["tokens"] >= num_tokens)


@contextmanager
def claimed_store(folder: Path) -> Iterator[None]:
    """
    Hold the store for all processes that sample together.

    Raises:
        InUseError: if another run holds it; on every process.
    """
    rank, world = rank_and_world()
    refusal: Exception | None = None
    with ExitStack() as claim:
        if rank == 0:
            try:
                claim.enter_context(claimed_folder(folder, remedy="pass another output_dir"))
                for pattern in ("shard-*", MANIFEST):
                    remove_leftovers(folder, pattern)
            except (InUseError, OSError) as error:
                refusal = error
        for entry in _gathered(refusal, world):
            if entry is not None:
                raise entry
        yield


def _fill(
    folder: Path,
    manifest: dict[str, Any],
    make_shard: Shard,
    num_tokens: int,
    show_progress: bool,
    origin: Callable[[], dict[str, Any]] | None = None,
) -> None:
    """Add shards, one a process and round, until the first ones hold `num_tokens` sampled tokens."""
    rank, world = rank_and_world()
    shards: list[dict[str, Any]] = manifest["shards"]
    hidden = not show_progress or rank != 0
    with tqdm(total=num_tokens, unit="tok", desc="context-free rows", disable=hidden) as bar:
        while True:
            tokens = sum(shard["tokens"] for shard in shards)
            bar.update(tokens - bar.n)
            is_complete = tokens >= num_tokens
            if rank == 0:
                rows = sum(shard["rows"] for shard in shards)
                manifest |= {"num_tokens": num_tokens, "rows": rows, "tokens": tokens, "complete": is_complete}
                _write_whole(folder / MANIFEST, json.dumps(manifest, indent=2).encode())
            if is_complete:
                break
            table = make_shard(len(shards) + rank, bar.update)
            written = _write_shard(folder, len(shards) + rank, table)
            if origin is not None:
                written["backend"] = origin()
            for shard in _gathered(written, world):
                # The last round may overshoot: what one process would not have sampled is not kept.
                if sum(entry["tokens"] for entry in shards) < num_tokens:
                    shards.append(shard)
                elif rank == 0:
                    (folder / shard["file"]).unlink()
    if world > 1:
        torch.distributed.barrier()  # no process may read the manifest before the main one has completed it


def short_name(dtype: torch.dtype) -> str:
    """Such as `bfloat16`."""
    return str(dtype).removeprefix("torch.")


def dtype_of(model: nn.Module) -> str:
    """That of the original model's weights."""
    return short_name(next(original_model(model).parameters()).dtype)


def rank_and_world() -> tuple[int, int]:
    """Of the processes that sample together."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def agreed(condition: bool) -> bool:
    """Whether it holds on every process that samples: they read the disk one after the other, while others write."""
    return all(_gathered(condition, rank_and_world()[1]))


def _gathered(value: T, world: int) -> list[T]:
    values = [value] * world
    if world > 1:
        torch.distributed.all_gather_object(values, value)
    return values


def _open_manifest(folder: Path, settings: dict[str, Any], rows_per_shard: int, model: nn.Module) -> dict[str, Any]:
    """Return the manifest to continue from: the folder's, if it agrees with `settings`, or a new one."""
    if not (folder / MANIFEST).exists():
        refuse_strangers(folder / MANIFEST, "Pass another output_dir.")
        folder.mkdir(parents=True, exist_ok=True)
        libraries = ("hf-ext", "torch", "transformers", "datasets", "pyarrow")
        return {
            "format_revision": FORMAT_REVISION,
            **{name: value for name, value in settings.items() if name not in PLAIN or value != PLAIN[name]},
            "rows_per_shard": rows_per_shard,
            "sampling": {
                "temperature": settings["temperature"],
                "top_k": None,
                "top_p": None,
                "repetition_penalty": None,
            },
            "device": next(original_model(model).parameters()).device.type,
            "versions": {name: version(name) for name in libraries},
            "shards": [],
            "complete": False,
        }
    store = ContextFreeStore(folder)
    manifest = store.manifest
    former_settings = {name: manifest.get(name, PLAIN.get(name)) for name in settings}
    refuse_changes(f"The store {folder}", changed_settings(former_settings, settings), "pass another output_dir")
    check_shards(folder, manifest["shards"])
    return manifest


def check_shards(folder: Path, shards: list[dict[str, Any]]) -> None:
    """Refuse a store with a shard that is missing or damaged; the message names it."""
    for shard in shards:
        try:
            file = file_in(folder, shard["file"], folder / MANIFEST)
            with file.open("rb") as content:
                digest = hashlib.file_digest(content, "sha256").hexdigest()
        except FileNotFoundError:
            digest = None
        if digest is None:
            problem = "is missing"
        elif digest != shard["sha256"]:
            problem = f"is damaged ({file.stat().st_size:,} bytes with another hash than the manifest's)"
        else:
            continue
        raise ValueError(
            f"{shard['file']} of the store {folder} {problem}. Restore the file, or delete the folder and run "
            "generate_context_free again: the same call samples the same rows."
        )


def _is_manifest(manifest: dict[str, Any]) -> bool:
    """Whether what is read of a manifest has the types it was written with."""
    kinds = {"complete": bool, "shards": list, "model_hash": str, "tokenizer_hash": str, "dtype": str}
    return all(isinstance(manifest.get(name), kind) for name, kind in kinds.items()) and all(
        isinstance(shard, dict) and isinstance(shard.get("file"), str) and isinstance(shard.get("sha256"), str)
        for shard in manifest["shards"]
    )


def _write_shard(folder: Path, number: int, table: pa.Table) -> dict[str, Any]:
    buffer = pa.BufferOutputStream()
    with pa.ipc.new_stream(buffer, table.schema) as writer:
        writer.write_table(table)
    content = buffer.getvalue().to_pybytes()
    file = f"shard-{number:05d}.arrow"
    _write_whole(folder / file, content)
    tokens = sum(label != -100 for labels in table["labels"].to_pylist() for label in labels)
    return {"file": file, "rows": len(table), "tokens": tokens, "sha256": hashlib.sha256(content).hexdigest()}


def _write_whole(path: Path, content: bytes) -> None:
    intact = "Whole shards are intact: free some space and repeat the call, which continues after the last one."
    with writing("the context-free rows", path.parent, num_bytes=len(content), advice=intact):
        write_whole(path, content)
