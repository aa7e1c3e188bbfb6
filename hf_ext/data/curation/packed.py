"""What lies beside packed shards: their tokenizer, and how many sequences there are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_ext.data.curation.manifest import tokenizer_key
from hf_ext.data.curation.packing import COUNTS, DATA, RECORD, TOKENIZER
from hf_ext.guards.inside import read_json
from hf_ext.guards.models import loading_model

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def is_packed(folder: str | Path) -> bool:
    """Whether a folder is what [`pack`] wrote, finished or not."""
    return (Path(folder) / RECORD).is_file()


def num_sequences(folder: str | Path) -> int:
    """
    Sequences of a packed folder.

    Raises:
        ValueError: if its packing is not finished.
    """
    folder = Path(folder)
    if not (folder / DATA).is_dir() or not (folder / COUNTS).is_file():
        raise ValueError(f"{folder} is not packed to its end: run the same packing again, and it goes on.")
    return int(_settings(folder / COUNTS, "num_sequences"))


def tokenizer_of(folder: str | Path, name: str | None = None) -> PreTrainedTokenizerBase:
    """
    The tokenizer of a packed folder.

    Args:
        folder (`str` or `Path`):
            What [`pack`] wrote.
        name (`str`, *optional*):
            Folder or Hub name of a tokenizer to take in place of the one beside the shards.

    Raises:
        ValueError: if there is none, it cannot be loaded, or it cuts texts otherwise than the one of the shards.
    """
    from transformers import AutoTokenizer

    folder = Path(folder)
    if name is None and not (folder / TOKENIZER).is_dir():
        raise ValueError(f"{folder} has no folder {TOKENIZER!r} with the tokenizer of its shards: name it.")
    place = str(folder / TOKENIZER) if name is None else name
    with loading_model(place, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(place)
    key = _settings(folder / RECORD, "settings").get("tokenizer")
    if key != tokenizer_key(tokenizer):
        raise ValueError(
            f"The tokenizer {place!r} is not the one with which {folder} was packed: its token ids would mean other "
            "words. Name that one, or pack the documents with this."
        )
    return tokenizer


def _settings(path: Path, name: str) -> Any:
    values = read_json(path, subject="a record of packed shards")
    if name not in values:
        raise ValueError(f"{path} is damaged: it has no {name!r}. Pack the documents again.")
    return values[name]
