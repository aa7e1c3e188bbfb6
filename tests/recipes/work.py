"""A working folder as the documentation describes it: a tiny model, training and held-out rows, general text."""

from __future__ import annotations

import atexit
import json
import random
import shlex
import shutil
import tempfile
from functools import cache
from pathlib import Path

from tests.evaluation.core.small_tasks import small_rows, write_tasks
from tests.pages import pages, write_warc
from tests.tiny import tiny_model, tiny_prompt_completion_dataset, tiny_text_dataset, tiny_tokenizer

# What makes a recipe small enough for a test; the CLI wins over the YAML.
SMALL = shlex.split(
    "--model_name_or_path original --per_device_train_batch_size 4 --max_steps 2 --bf16 false --use_cpu true "
    "--disable_tqdm true --save_strategy no --eval_strategy no --logging_steps 1 --learning_rate 1e-3 --warmup_steps 0"
)


def make_work_folder(folder: Path) -> Path:
    """
    Write `original`, `train.jsonl`, `held_out.jsonl`, `general.jsonl` and `gsm8k.jsonl` (question, answer); of
    preferences `pairs.jsonl`, `held_out_pairs.jsonl` and `feedback.jsonl` (prompt, completion, label); of retrieval
    `encoder`, `retrieval.jsonl` (id, query, positive) and `beir`, a folder in BEIR's form; of classification
    `classifier`, `vision`, `intents` (text, noisy label, ledger) and `pictures` (img, noisy label); of curation
    `pages.warc.gz`; and of CORE the tasks in `core_eval`. All of it is made once a process, and copied.
    """
    return Path(shutil.copytree(_made_once(), folder, dirs_exist_ok=True))


@cache
def _made_once() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="hf-ext-work-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    tokenizer = tiny_tokenizer()
    tiny_model(tokenizer).save_pretrained(folder / "original")
    tokenizer.save_pretrained(folder / "original")
    rows = tiny_prompt_completion_dataset(24)
    rows.to_json(folder / "train.jsonl")
    rows.rename_columns({"prompt": "question", "completion": "answer"}).to_json(folder / "gsm8k.jsonl")
    tiny_prompt_completion_dataset(12, seed=5).to_json(folder / "held_out.jsonl")
    tiny_text_dataset(12, seed=3).to_json(folder / "general.jsonl")
    _write(folder / "pairs.jsonl", preference_pairs(16))
    _write(folder / "held_out_pairs.jsonl", preference_pairs(8, seed=5))
    feedback = [
        {"prompt": pair["prompt"], "completion": pair[side], "label": side == "chosen"}
        for pair in preference_pairs(12, seed=7)
        for side in ("chosen", "rejected")
    ]
    _write(folder / "feedback.jsonl", [row for i, row in enumerate(feedback) if i % 4 != 1])  # two good rows, one bad
    _write_retrieval(folder)
    _write_classification(folder)
    write_warc(folder / "pages.warc.gz", pages())
    labels = ("arc_easy", "copa", "winograd", "lambada_openai")
    write_tasks(folder / "core_eval", {label: small_rows(label, 6) for label in labels})
    return folder


def _write_classification(folder: Path) -> None:
    import numpy as np
    import torch
    from datasets import ClassLabel, Dataset, Features, Image, Value
    from transformers import (
        BertConfig,
        BertForSequenceClassification,
        ResNetConfig,
        ResNetForImageClassification,
        ViTImageProcessor,
    )

    tokenizer = tiny_tokenizer()
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    resnet = ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        bert = BertForSequenceClassification(BertConfig(vocab_size=len(tokenizer), **small))
        bert.save_pretrained(folder / "classifier")
        ResNetForImageClassification(resnet).save_pretrained(folder / "vision")
    tokenizer.save_pretrained(folder / "classifier")
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder / "vision")
    names = ClassLabel(names=["no", "yes"])
    labels = [i * 7 % 3 % 2 for i in range(24)]
    ledger = {"label_dp_epsilon": [2.0] * 24, "label_dp_channel": ["rr-2-0123456789ab"] * 24}
    features = {"text": Value("string"), "label": names, "label_dp_epsilon": Value("float32")}
    texts = {"text": [f"{'yes' if i % 2 else 'no'} number {i}" for i in range(24)], "label": labels}
    features = Features({**features, "label_dp_channel": Value("string")})
    Dataset.from_dict(texts | ledger, features=features).save_to_disk(folder / "intents")
    pixels = np.random.default_rng(0).integers(0, 255, (24, 16, 16, 3), dtype=np.uint8)
    for column in ("label", "fine_label"):
        rows = Dataset.from_dict(
            {"img": list(pixels), column: labels}, features=Features({"img": Image(), column: names})
        )
        rows.save_to_disk(folder / f"pictures-{column}")


def _write_retrieval(folder: Path) -> None:
    from tests.trainers.retrieval import encoder, pairs

    encoder().save_pretrained(str(folder / "encoder"), create_model_card=False)
    rows = pairs(24)
    rows.to_json(folder / "retrieval.jsonl")
    (folder / "beir" / "qrels").mkdir(parents=True)
    _write(folder / "beir" / "queries.jsonl", [{"_id": row["id"], "text": row["query"]} for row in rows])
    corpus = [{"_id": f"d{i}", "title": "", "text": row["positive"]} for i, row in enumerate(rows)]
    _write(folder / "beir" / "corpus.jsonl", corpus)
    for split, numbers in {"train": range(18), "test": range(18, 24)}.items():
        lines = ["query-id\tcorpus-id\tscore", *(f"q{i}\td{i}\t1" for i in numbers)]
        (folder / "beir" / "qrels" / f"{split}.tsv").write_text("\n".join(lines) + "\n")


def preference_pairs(n: int, seed: int = 0) -> list[dict]:
    """Text pairs: the rejected completion is the chosen one with its words in another order."""
    pairs = []
    for i, row in enumerate(tiny_prompt_completion_dataset(n, seed=seed)):
        words = row["completion"].split()
        random.Random(seed + i).shuffle(words)
        pairs.append({"prompt": row["prompt"], "chosen": row["completion"], "rejected": " ".join(words)})
    return pairs


def _write(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
