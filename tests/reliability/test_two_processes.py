"""Two processes on one cache, store or folder: one whole result, and a sentence to the process that is refused."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from transformers import Trainer, TrainerCallback

from hf_ext.cli import main
from hf_ext.data.context_free import ContextFreeStore, generate_context_free, generate_contextual, top_up
from hf_ext.data.exemplars import ExemplarStore
from hf_ext.data.pruning import embed_rows, gm_matching
from hf_ext.data.relabeling import RRChannel
from hf_ext.guards.locks import InUseError
from hf_ext.rounds.consensus import ConsensusRecipe
from hf_ext.trainers.flow import FlowSFTConfig, FlowSFTTrainer
from hf_ext.trainers.weighted_sft import WeightedSFTConfig, WeightedSFTTrainer
from tests.reliability.two_at_once import GAPS, outcomes
from tests.tiny import tiny_model, tiny_prompt_completion_dataset
from tests.trainers.classifiers import consensus_config, labelled_rows, tiny_bert
from tests.trainers.runs import TOKENIZER, build, config_of

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="forks of POSIX")
ROWS = 1500


def slow_encoder(batch: dict[str, Any]) -> np.ndarray:
    """The row's number and its double, ten milliseconds a batch."""
    time.sleep(0.01)
    return np.array([[float(i), 2.0 * i] for i in batch["i"]], dtype=np.float32)


def embed(folder: Path) -> list[float]:
    """Vectors that are kept by fingerprint."""
    rows = Dataset.from_dict({"i": list(range(ROWS))})
    vectors = embed_rows(rows, slow_encoder, batch_size=64, cache_dir=folder / "vectors", show_progress=False)
    return np.asarray(vectors).ravel().tolist()


def match(folder: Path) -> list[int]:
    """Picks that are kept beside the work, to continue from."""
    X = np.random.default_rng(0).standard_normal((4000, 16)).astype(np.float32)
    found = gm_matching(X, 600, resume_path=folder / "picks.npz", save_every=0.0, show_progress=False)
    return np.asarray(found.indices).tolist()


class Slow(TrainerCallback):
    """Makes a step long enough for another process to come into it."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        time.sleep(0.03)


def digest(folder: Path) -> list[str]:
    """SHA-256 of the model in a folder."""
    return [hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()]


def train(folder: Path) -> list[str]:
    """A training with checkpoints, and its model."""
    args = config_of(WeightedSFTConfig, folder / "out", save_strategy="steps", save_steps=2, max_steps=8)
    trainer = build(WeightedSFTTrainer, args, tiny_prompt_completion_dataset(16), callbacks=[Slow()])
    trainer.train()
    trainer.save_model()
    return digest(folder / "out")


def retrain(folder: Path) -> list[str]:
    """Two rounds of consensus, continued where they are begun."""
    args = consensus_config(folder / "out", max_steps=3, select_on_noisy_eval=False, mode="consensus", budget="steps")
    recipe = ConsensusRecipe(
        Trainer, tiny_bert, args, labelled_rows(40, 0.3, 1), channel=RRChannel(1.2, 3), callbacks=[Slow()]
    )
    recipe.run()
    return digest(folder / "out")


def sample(folder: Path) -> list[list[int]]:
    """Context-free rows, continued where they are begun."""
    store = generate_context_free(
        tiny_model(TOKENIZER), TOKENIZER, 600, output_dir=folder / "store", max_new_tokens=12, batch_size=4,
        show_progress=False,
    )  # fmt: skip
    return store.to_dataset()["input_ids"][:]


def begin_store(folder: Path) -> None:
    """A store of a few rows."""
    generate_context_free(
        tiny_model(TOKENIZER), TOKENIZER, 40, output_dir=folder / "store", max_new_tokens=12, batch_size=4,
        show_progress=False,
    )  # fmt: skip


def fill_up(folder: Path) -> list[list[int]]:
    """That store with as many rows as a training draws, continued where it is."""
    store = top_up(ContextFreeStore(folder / "store"), tiny_model(TOKENIZER), 60, show_progress=False)
    return store.to_dataset()["input_ids"][:]


def sample_after(folder: Path) -> list[list[int]]:
    """Rows after prompts, continued where they are begun."""
    store = generate_contextual(
        tiny_model(TOKENIZER), TOKENIZER, ["Ada", "row 13"], 400, output_dir=folder / "store", max_new_tokens=12,
        batch_size=4, show_progress=False,
    )  # fmt: skip
    return store.to_dataset()["input_ids"][:]


def build_pool(folder: Path) -> list[str]:
    """A pool of exemplars, in many files, and read back at once."""
    texts = [f"text {i}" for i in range(400)]
    ExemplarStore({"query": texts, "document": texts}).save(folder / "pool", rows_per_file=20)
    return list(ExemplarStore.load(folder / "pool").column("query"))


def score(folder: Path) -> list[str]:
    """A training by FLOW, whose losses under the original model are kept; each process has a folder of its own."""
    args = config_of(FlowSFTConfig, folder / f"out-{os.getpid()}", original_cache_dir=str(folder / "losses"))
    trainer = build(FlowSFTTrainer, args, tiny_prompt_completion_dataset(16))
    trainer.train()
    weights = [value.double().sum().item().hex() for value in trainer.model.parameters()]
    shutil.rmtree(args.output_dir, ignore_errors=True)
    return weights


def command(folder: Path) -> list[int]:
    """A data verb of the command line; the time it takes is spent in its encoder."""
    source = folder.parent / "rows.parquet"
    if not source.exists():
        rng = np.random.default_rng(0)
        Dataset.from_dict({"vector": list(rng.standard_normal((3000, 16)).astype(np.float32))}).to_parquet(source)
    line = ["data", "prune", "--dataset", str(source), "--k", "500", "--column", "vector", "--overwrite", "--output"]
    status = main([*line, str(folder / "kept.parquet"), "--report", str(folder / "report")])
    if status:
        raise InUseError(f"{folder}: as the command said on stderr")
    return Dataset.from_parquet(str(folder / "kept.parquet"))["prune_rank"][:]


# Whether the second process waits for the result of the first, or is refused, or may do either.
KINDS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "embed": (embed, "waits"),
    "match": (match, "refused"),
    "train": (train, "refused"),
    "retrain": (retrain, "refused"),
    "sample": (sample, "refused"),
    "top_up": (fill_up, "refused"),
    "contextual": (sample_after, "refused"),
    "pool": (build_pool, "waits"),
    "score": (score, "waits"),
    "command": (command, "refused"),
}
PREPARED: dict[str, Callable[[Path], None]] = {"top_up": begin_store}  # what is there before the two begin


def check(name: str, folder: Path, gap: float) -> None:
    work, second = KINDS[name]
    alone = folder / "alone"
    together = folder / "together"
    for place in (alone, together):
        place.mkdir()
        PREPARED.get(name, lambda _: None)(place)
    right = work(alone)
    found = outcomes(lambda: work(together), folder, gap)
    for outcome in found:
        if outcome.error:
            assert outcome.error == "InUseError", outcome
            assert "\n" not in outcome.message
            assert str(together) in outcome.message
        else:
            assert outcome.result == right
    refused = [outcome for outcome in found if outcome.error]
    assert len(refused) <= (second == "refused")
    assert not found[2].error
    assert {p.name for p in together.rglob("*")} == {p.name for p in alone.rglob("*")}


@pytest.mark.parametrize(("name", "gap"), [(name, (0.0, 0.2)[number % 2]) for number, name in enumerate(KINDS)])
def test_two_processes_end_in_one_whole_result_and_at_most_one_sentence(name: str, gap: float, tmp_path: Path) -> None:
    check(name, tmp_path, gap)


@pytest.mark.slow
@pytest.mark.parametrize("gap", GAPS)
@pytest.mark.parametrize("name", KINDS)
def test_so_they_do_however_far_apart_they_start(name: str, gap: float, tmp_path: Path) -> None:
    check(name, tmp_path, gap)
