"""Nano models by the commands a user types: a small tokenizer, documents, and commands that may be killed, timed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import psutil
from common import data_folder

from hf_ext.guards.disk import write_whole

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

VOCABULARY = 1024  # of the nano scales
END = "<|end|>"
ON_CPU = ("--use_cpu", "true", "--disable_tqdm", "true")
QUICK_TASKS = ("copa", "lambada_openai")
# Overrides that make steps of a few hundred tokens of the scale's own.
QUICK_SIZE = ("--sequence_length", "64", "--per_device_train_batch_size", "2", "--sequences_per_step", "2")
QUICK_SIZE += ("--warmup_steps", "1", "--logging_steps", "1")


def nano_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE with as many tokens as the nano scales have room for, one of them the end of a document."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from tokenizers.decoders import ByteLevel
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END)


def write_documents(path: Path, texts: Iterable[str]) -> None:
    """A JSON Lines file with a column `text`."""
    write_whole(path, "".join(json.dumps({"text": text}) + "\n" for text in texts))


def core_folder(work: Path, quick: bool) -> Path:
    """The tasks at hand; of a quick run two of them, in a folder of their own."""
    source = data_folder() / "core_eval"
    if not quick:
        return source
    folder = work / "core_eval"
    folder.mkdir(parents=True, exist_ok=True)
    tasks = json.loads((source / "tasks.json").read_text(encoding="utf-8"))
    chosen = {name: tasks[name] for name in QUICK_TASKS}
    for entry in chosen.values():
        (folder / entry["file"]).write_bytes((source / entry["file"]).read_bytes())
    write_whole(folder / "tasks.json", json.dumps(chosen))
    return folder


def launch(
    words: Iterable[object], records: Path, is_enough: Callable[[], bool] | None = None, *, folder: Path | None = None
) -> None:
    """
    Run `hf-ext` with these words in a folder, and note how long it took, even where this process is killed.

    Where `is_enough` comes true the command is killed by SIGKILL; where it ended before that, so does the benchmark.
    """
    records.mkdir(parents=True, exist_ok=True)
    number = len(list(records.glob("launch-*.json")))
    record = records / f"launch-{number:03d}.json"
    log = record.with_suffix(".log")
    environment = os.environ | {"HF_DATASETS_CACHE": str(records / "cache")}
    command = [sys.executable, "-m", "hf_ext", *map(str, words)]
    started = time.monotonic()
    was_killed = False
    with log.open("wb") as output:
        process = psutil.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment, cwd=folder)
        while process.poll() is None:
            times = process.cpu_times()
            cpu_s = times.user + times.system + times.children_user + times.children_system
            write_whole(record, json.dumps({"seconds": time.monotonic() - started, "cpu_s": cpu_s}))
            if is_enough is not None and not was_killed and is_enough():
                process.kill()
                was_killed = True
            time.sleep(0.1)
    if was_killed == (is_enough is None) or (not was_killed and process.returncode):
        tail = log.read_text(encoding="utf-8", errors="replace")[-2000:]
        sys.exit(f"{tail}\nhf-ext ended with status {process.returncode}{' before it was killed' * (not was_killed)}.")


def minutes_of(records: Path) -> dict[str, float]:
    """Of all launches noted there, on the clock and of the processors."""
    launches: list[dict[str, Any]] = [json.loads(path.read_text()) for path in records.glob("launch-*.json")]
    return {
        "minutes": round(sum(entry["seconds"] for entry in launches) / 60, 1),
        "process_minutes": round(sum(entry["cpu_s"] for entry in launches) / 60, 1),
    }
