"""
Write what hf-ext writes beside training under a real limit on the size of files, and print as JSON what came of it.

    python -m tests.guards.full_disk FOLDER

For each case: `error`, `message`, `is_disk_full`, the files `before`, after the failure (`left`) and, once there is
room, after the same call again (`again`), with the SHA-256 of each.
"""

from __future__ import annotations

import hashlib
import json
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from hf_ext.cli.options import write_rows
from hf_ext.data.context_free import ContextFreeStore, generate_context_free
from hf_ext.data.curation import CurationCounts, CurationReport, NGramIndex, QualityClassifier
from hf_ext.data.curation.classifier import ClassifierReport
from hf_ext.data.curation.counts import StepCounts
from hf_ext.data.curation.ngram_index import Record
from hf_ext.data.curation.quality_features import STATISTICS
from hf_ext.data.exemplars import ExemplarStore
from hf_ext.data.original_cache import save_scores
from hf_ext.guards.disk import is_disk_full, replacing, write_whole, writing
from hf_ext.guards.rows import check_sft_rows
from hf_ext.guards.runs import RunFolder
from tests.guards.test_disk import CASES
from tests.tiny import tiny_model
from tests.trainers.runs import TOKENIZER


def leave_room(size: int) -> None:
    """No file may grow past `size` bytes (-1: as it was); Python ignores the signal that comes with the error."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def files_in(folder: Path) -> dict[str, str]:
    """SHA-256 of every file, by name."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and "datasets_cache" not in path.parts)
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def in_full_disk(folder: Path, room: int, write: Callable[[], Any]) -> dict[str, Any]:
    """`write` without room, then with."""
    found: dict[str, Any] = {"before": files_in(folder)}
    leave_room(room)
    try:
        write()
        found["error"] = None
    except Exception as error:
        found |= {"error": type(error).__name__, "message": str(error), "is_disk_full": is_disk_full(error)}
    leave_room(-1)
    found["left"] = files_in(folder)
    write()
    return found | {"again": files_in(folder)}


def sample(folder: Path, tokens: int) -> ContextFreeStore:
    """A store of the tiny model, begun or continued."""
    return generate_context_free(
        tiny_model(TOKENIZER), TOKENIZER, tokens, output_dir=folder, max_new_tokens=12, batch_size=8,
        show_progress=False,
    )  # fmt: skip


def drop(folder: Path, rows: int) -> None:
    """Rows of which every second is dropped and written down."""
    texts = [None if i % 2 else "a text" for i in range(rows)]
    check_sft_rows(Dataset.from_dict({"text": texts}), on_bad_row="drop", bad_rows_path=folder / "bad_rows.jsonl")


def save_pool(folder: Path, rows: int) -> None:
    """A pool of exemplars."""
    texts = [f"{i} of {rows}: {i * 7919 % 10007}" for i in range(rows)]
    ExemplarStore({"query": texts, "document": texts}).save(folder)


def save_states(path: Path) -> None:
    """What the optimiser of a checkpoint is saved by."""
    with writing("the states", path), replacing(path) as temporary:
        torch.save(torch.arange(100_000), temporary)


def save_index(path: Path, rows: int) -> None:
    """An index of a benchmark."""
    NGramIndex([Record("task", str(i), " ".join(f"word{i * k}" for k in range(9))) for i in range(rows)]).save(path)


def save_classifier(folder: Path, buckets: int) -> None:
    """A quality classifier."""
    report = ClassifierReport(1, 1, None, 0.5, None, [])
    statistics = np.ones((3, len(STATISTICS)))
    QualityClassifier(np.full(buckets, 0.5, np.float32), statistics, 0.0, 2, 0, "", report).save(folder)


def save_report(folder: Path, steps: int) -> None:
    """The report of a curation, with its plots, which are the largest of its files."""
    counts = CurationCounts(steps=[StepCounts(f"step_{i}", 10, 10 - i) for i in range(steps)])
    CurationReport(counts).save(folder)


def main() -> None:
    """Every case, in a folder of its own."""
    root = Path(sys.argv[1])
    folders = {name: root / name for name in CASES}
    for folder in folders.values():
        folder.mkdir(parents=True)
    sample(folders["store"], 100)
    drop(folders["bad_rows"], 4)
    write_whole(folders["text"] / "report.json", "the report before")
    RunFolder(folders["run"]).mark_done("round-1/round", {"losses": [0.5]})
    save_pool(folders["pool"], 5)
    save_index(folders["index"] / "x.parquet", 5)
    save_classifier(folders["classifier"] / "model", 64)
    save_report(folders["report"], 1)
    numbers = np.random.default_rng(0).random((2000, 200), dtype=np.float32)  # of many pages, which abort pyarrow
    vectors = Dataset.from_dict({"vector": list(numbers)})
    rows = Dataset.from_dict({"text": [f"row {i}" * 20 for i in range(500)]})
    scores = [([1.0] * 40, [3] * 40)] * 40
    cases: dict[str, tuple[int, Callable[[], Any]]] = {
        "store": (1000, lambda: sample(folders["store"], 400)),
        "cache": (10_000, lambda: save_scores(folders["cache"] / "x.safetensors", scores, {"model": "m"})),
        "bad_rows": (600, lambda: drop(folders["bad_rows"], 40)),
        "jsonl": (10_000, lambda: write_rows(rows, folders["jsonl"] / "rows.jsonl")),
        "parquet": (1000, lambda: write_rows(rows, folders["parquet"] / "rows.parquet")),
        "vectors": (100_000, lambda: write_rows(vectors, folders["vectors"] / "rows.parquet")),
        "pool": (10_000, lambda: save_pool(folders["pool"], 2000)),
        "torch": (10_000, lambda: save_states(folders["torch"] / "states.pt")),
        "folder": (10_000, lambda: write_rows(rows.select(range(len(rows))), folders["folder"] / "rows")),
        "run": (1000, lambda: RunFolder(folders["run"]).mark_done("round-1/round", {"losses": [0.5] * 1000})),
        "index": (1000, lambda: save_index(folders["index"] / "x.parquet", 500)),
        "classifier": (10_000, lambda: save_classifier(folders["classifier"] / "model", 4096)),
        "report": (10_000, lambda: save_report(folders["report"], 3)),
        "text": (100, lambda: write_whole(folders["text"] / "report.json", "the new report" * 100)),
    }
    found = {name: in_full_disk(folders[name], *case) for name, case in cases.items()}
    sample(root / "whole", 100)
    whole = sample(root / "whole", 400)
    found["store"]["rows"] = [row["input_ids"] for row in ContextFreeStore(folders["store"]).to_dataset()]
    found["store"]["whole"] = [row["input_ids"] for row in whole.to_dataset()]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
