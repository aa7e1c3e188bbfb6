"""Documents as packed sequences of tokens, shuffled, in Parquet shards that a trainer reads."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hf_ext.data.curation.documents import texts_of, token_ids
from hf_ext.data.curation.manifest import tokenizer_key
from hf_ext.guards.disk import flush, flush_folder, parquet_sink, replacing, write_whole, writing
from hf_ext.guards.extras import naming_extras
from hf_ext.guards.inside import read_as
from hf_ext.guards.numbers import SEED, SIZE
from hf_ext.guards.runs import RunFolder, claimed_folder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from hf_ext.data.loading import AnyDataset

logger = logging.getLogger(__name__)

DATA = "data"
RECORD = "packing.json"
COUNTS = "packed.json"
TOKENIZER = "tokenizer"
_WORK = ".packing"  # hidden: no push takes it along
_BATCH_CHARS = 4_000_000
_REMEDY = "choose another output"


@dataclass(frozen=True)
class PackedSet:
    """
    What was packed.

    Args:
        num_documents, num_tokens (`int`):
            Of the set, with a token for the end of each document.
        num_sequences, num_shards (`int`):
            That were written.
        remainder_tokens (`int`):
            Tokens at the end that fill no sequence; they are in no shard.
    """

    num_documents: int
    num_tokens: int
    num_sequences: int
    num_shards: int
    remainder_tokens: int


def pack(
    dataset: AnyDataset,
    tokenizer: PreTrainedTokenizerBase,
    output: str | Path,
    *,
    sequence_length: int = 2048,
    sequences_per_shard: int = 8192,
    seed: int = 42,
    text_column: str = "text",
) -> PackedSet:
    """
    Write a set as sequences of tokens: documents one after the other, the end token behind each, cut at every
    `sequence_length + 1` tokens, in an order drawn with the seed.

    `load_dataset(output, split="train")` has the column `input_ids`: `sequence_length` tokens to predict and the one
    before them. A document may begin in one sequence and end in another, and nothing keeps the documents of a sequence
    apart but the end token. What is left at the end and fills no sequence is not written. A killed run goes on where
    it was; the shards appear in `output/data` all at once. The tokenizer is saved in `output/tokenizer`.

    Args:
        dataset (`Dataset` or `IterableDataset`):
            Documents; a stream must give the same rows when a killed run goes on.
        tokenizer (`PreTrainedTokenizerBase`):
            With an end token. Names of special tokens in a document are text like other.
        output (`str` or `Path`):
            A new folder. While it is written it takes 4 bytes a token besides the shards.
        sequence_length (`int`, *optional*, defaults to 2048):
            Tokens to predict in a sequence.
        sequences_per_shard (`int`, *optional*, defaults to 8192):
            Sequences of a shard; one shard is in memory at a time.
        seed (`int`, *optional*, defaults to 42):
            Of the order of the sequences.
        text_column (`str`, *optional*, defaults to `"text"`):
            Column of the documents.

    Raises:
        ValueError: if the tokenizer has no end token, a number is out of bounds, the set has not one sequence, or the
            folder holds a run of other documents or settings, or a finished one.
        RowError: if a row is no document.
        InUseError: if another process writes there.
        DiskFullError: if there is no room; the run goes on once there is.

    Reference: Li et al. 2024, *DataComp-LM* (arXiv 2406.11794), whose sequences have 2,049 tokens, in shards of 8,192.
    """
    for name, bounds, number in (
        ("sequence_length", SIZE, sequence_length), ("sequences_per_shard", SIZE, sequences_per_shard),
        ("seed", SEED, seed),
    ):  # fmt: skip
        problem = bounds.problem_of(number)
        if problem is not None:
            raise ValueError(f"{name} {problem}.")
    if tokenizer.eos_token_id is None:
        raise ValueError(
            "The tokenizer has no end token, which parts the documents. Set tokenizer.eos_token to one of its tokens, "
            'such as "<|endoftext|>".'
        )
    output = Path(output)
    settings = {
        "sequence_length": sequence_length, "sequences_per_shard": sequences_per_shard, "seed": seed,
        "text_column": text_column, "tokenizer": tokenizer_key(tokenizer),
    }  # fmt: skip
    advice = "Free some space and run again: it goes on where it was."
    with claimed_folder(output, remedy=_REMEDY), writing("the packed sequences", output, advice=advice):
        if (output / DATA).exists():
            raise ValueError(f"{output} holds finished shards. Delete it to pack again, or {_REMEDY}.")
        RunFolder(output, RECORD, remedy=_REMEDY).begin(settings)
        tokenizer.save_pretrained(output / TOKENIZER)  # token ids mean nothing without it
        work = output / _WORK
        work.mkdir(exist_ok=True)
        progress = _TokenFile(work).fill(dataset, tokenizer, text_column)
        packed = _write_shards(work, progress, sequence_length + 1, sequences_per_shard, seed)
        write_whole(output / COUNTS, json.dumps(asdict(packed), indent=1) + "\n")
        os.replace(work / DATA, output / DATA)
        flush_folder(output)
        shutil.rmtree(work)
    return packed


@dataclass(frozen=True)
class _Progress:
    """What of the set is in the file of tokens: how much, and a digest of the documents."""

    num_documents: int = 0
    num_tokens: int = 0
    digest: str = ""


class _TokenFile:
    """The tokens of all documents in their order, 4 bytes each, and a file that says how many of them are whole."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "tokens.bin"
        self.progress_path = folder / "progress.json"

    def fill(self, dataset: AnyDataset, tokenizer: PreTrainedTokenizerBase, text_column: str) -> _Progress:
        """Append what is not there yet; all documents are read, so that those of a killed run are known again."""
        with naming_extras():
            from xxhash import xxh3_128

        self.path.touch()
        former = _Progress()
        if self.progress_path.exists():
            former = read_as(self.progress_path, lambda values: _Progress(**values), "the progress of a packing")
        if self.path.stat().st_size < former.num_tokens * 4:
            former = _Progress()  # tokens are missing that were there: all are made again
        digest = xxh3_128()
        num_documents = num_tokens = 0
        texts = texts_of(dataset, text_column, "the dataset")
        with open(self.path, "r+b") as file:
            file.truncate(former.num_tokens * 4)  # what was written after the last mark may be a part
            file.seek(0, os.SEEK_END)
            for batch in _batches(texts, former.num_documents):
                for text in batch:
                    content = text.encode("utf-8", "surrogatepass")
                    digest.update(len(content).to_bytes(8, "little") + content)
                num_documents += len(batch)
                if num_documents < former.num_documents:
                    continue
                if num_documents == former.num_documents:
                    num_tokens = former.num_tokens
                    self._compare(former, digest.hexdigest())
                    continue
                for ids in token_ids(batch, tokenizer):
                    file.write(np.array([*ids, tokenizer.eos_token_id], "<i4").tobytes())
                    num_tokens += len(ids) + 1
                file.flush()
                flush(self.path)
                progress = _Progress(num_documents, num_tokens, digest.hexdigest())
                write_whole(self.progress_path, json.dumps(asdict(progress)))
        if num_documents < former.num_documents:
            self._compare(former, "")
        return _Progress(num_documents, num_tokens, digest.hexdigest())

    def _compare(self, former: _Progress, digest: str) -> None:
        if digest != former.digest:
            raise ValueError(
                f"{self.path.parent.parent} was begun with other documents: of the first {former.num_documents:,} one "
                f"is not the same. Run with the former ones to finish it, or {_REMEDY}, or delete this one."
            )


def _batches(texts: Iterator[str], num_former: int) -> Iterator[list[str]]:
    """Batches of documents, one of which ends with the last that a killed run had."""
    batch: list[str] = []
    num_chars = 0
    for number, text in enumerate(texts, 1):
        batch.append(text)
        num_chars += len(text)
        if num_chars >= _BATCH_CHARS or number == num_former:
            yield batch
            batch = []
            num_chars = 0
    if batch:
        yield batch


def _write_shards(work: Path, progress: _Progress, width: int, sequences_per_shard: int, seed: int) -> PackedSet:
    """Write the shards that are not there yet."""
    num_sequences, remainder = divmod(progress.num_tokens, width)
    if not num_sequences:
        raise ValueError(
            f"The set has {progress.num_tokens:,} tokens, not one sequence of {width:,}. Pass a smaller "
            "sequence_length."
        )
    tokens = np.memmap(work / "tokens.bin", "<i4", "r", shape=(num_sequences, width))
    order = np.random.default_rng(seed).permutation(num_sequences)
    num_shards = -(-num_sequences // sequences_per_shard)
    (work / DATA).mkdir(exist_ok=True)
    for number in range(num_shards):
        path = work / DATA / f"train-{number:05d}-of-{num_shards:05d}.parquet"
        if path.exists():
            continue
        rows = order[number * sequences_per_shard : (number + 1) * sequences_per_shard]
        values = pa.array(tokens[rows].reshape(-1), pa.int32())
        offsets = pa.array(np.arange(0, len(values) + 1, width), pa.int32())
        table = pa.table({"input_ids": pa.ListArray.from_arrays(offsets, values)})
        with replacing(path) as temporary, parquet_sink(temporary) as sink:
            pq.write_table(table, sink, compression="zstd")
    return PackedSet(progress.num_documents, progress.num_tokens, num_sequences, num_shards, remainder)
