"""A data verb that is killed at a random moment and run again writes what it would have written undisturbed."""

from __future__ import annotations

import hashlib
import os
import random
import shlex
import signal
import sys
import time
from pathlib import Path

import datasets
import numpy as np
import pytest
from datasets import Dataset
from transformers import BertConfig, BertModel

from hf_ext.cli import main
from tests.forks import forked
from tests.tiny import tiny_model, tiny_prompt_completion_dataset, tiny_sentences
from tests.trainers.runs import TOKENIZER

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="forks and signals of POSIX")

VERBS = {
    "prune": "data prune --dataset ../texts.jsonl --input-column text --encoder ../encoder --k 100 --batch-size 16 "
    "--cache-dir vectors --resume-path picks.npz --report report --output kept.jsonl --overwrite",
    "flow-weights": "data flow-weights --dataset ../pairs.jsonl --model ../model --device cpu "
    "--output weighted.parquet --overwrite",
    "context-free": "data context-free --model ../model --num-tokens 600 --max-new-tokens 12 --batch-size 4 "
    "--device cpu --output store",
    "exemplars": "data exemplars --dataset ../queries.jsonl --output pool --overwrite",
    "privatize": "data privatize --dataset ../labels.parquet --num-classes 3 --epsilon 1 --key-file ../secret.key "
    "--output noisy --overwrite",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the verbs read."""
    folder = tmp_path_factory.mktemp("verbs")
    Dataset.from_dict({"text": tiny_sentences(400, seed=1)}).to_json(folder / "texts.jsonl")
    tiny_prompt_completion_dataset(96).to_json(folder / "pairs.jsonl")
    texts = [f"{text} {i}" for i, text in enumerate(tiny_sentences(6000, seed=2))]
    Dataset.from_dict({"query": texts, "document": texts[::-1]}).to_json(folder / "queries.jsonl")
    labels = np.random.default_rng(0).integers(0, 3, 4000).tolist()
    Dataset.from_dict({"id": [f"r{i}" for i in range(4000)], "label": labels}).to_parquet(folder / "labels.parquet")
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=len(TOKENIZER), **small)).save_pretrained(folder / "encoder")
    tiny_model(TOKENIZER).save_pretrained(folder / "model")
    for name in ("encoder", "model"):
        TOKENIZER.save_pretrained(folder / name)
    assert main(["data", "privatize", "--make-key", str(folder / "secret.key")]) == 0
    return folder


def run(verb: str, folder: Path) -> None:
    """The verb in its folder, with a cache of its own."""
    datasets.config.HF_DATASETS_CACHE = folder.with_suffix(".cache")
    os.chdir(folder)
    status = main(shlex.split(VERBS[verb]))
    assert status == 0, status


def begun(verb: str, folder: Path) -> int:
    """The process of a verb; what it prints goes into a log beside its folder."""
    folder.mkdir(exist_ok=True)

    def logged() -> None:
        with open(folder.with_suffix(".log"), "a") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        run(verb, folder)

    return forked(logged)


def ended(process: int, folder: Path) -> None:
    assert os.waitpid(process, 0)[1] == 0, folder.with_suffix(".log").read_text()[-3000:]


def contents(folder: Path) -> dict[str, str]:
    """SHA-256 of every file; of a figure, a report and a dataset's fingerprint the name alone; of a cache nothing."""
    named = ("pruning.json", "pruning.md", "state.json", "dataset_info.json")
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.parent.name != "vectors")
    return {
        path.relative_to(folder).as_posix(): ""
        if path.suffix in (".png", ".svg") or path.name in named
        else hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def check(verb: str, place: Path, kills: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kill the verb so often, each time in a new folder, and run it again there."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", place / "cache")
    monkeypatch.chdir(place)
    whole, fresh = place / f"{verb}-whole", place / f"{verb}-fresh"
    whole.mkdir()
    run(verb, whole)  # here: what is imported and compiled once is there in every fork
    right = contents(whole)
    start = time.monotonic()
    ended(begun(verb, fresh), fresh)
    duration = time.monotonic() - start
    assert contents(fresh) == right, "two undisturbed runs"
    generator = random.Random(verb)
    killed = 0
    for number in range(kills):
        cut = place / f"{verb}-{number}"
        process = begun(verb, cut)
        time.sleep(generator.uniform(0.05, 0.95) * duration)
        os.kill(process, signal.SIGKILL)
        killed += os.WIFSIGNALED(os.waitpid(process, 0)[1])
        ended(begun(verb, cut), cut)
        assert contents(cut) == right, (verb, number)
    print(f"{verb}: {killed} of {kills} killed, of {duration:.2f} s; 0 differences")
    assert killed or kills < 5


@pytest.mark.parametrize("verb", ["flow-weights", "exemplars", "privatize"])  # those that take a second
def test_a_verb_that_was_killed_and_run_again_writes_what_it_would_have_written(
    verb: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check(verb, place, 1, monkeypatch)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("verb", VERBS)
def test_so_it_does_killed_at_twenty_random_moments(
    verb: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("texts.jsonl", "pairs.jsonl", "queries.jsonl", "labels.parquet", "secret.key", "encoder", "model"):
        os.symlink(place / name, tmp_path / name)
    check(verb, tmp_path, 20, monkeypatch)
