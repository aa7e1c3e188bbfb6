"""Contracts with the host libraries: each private symbol we use is there and does what we need of it."""

from __future__ import annotations

import ast
import contextlib
import importlib
import inspect
import os
import pkgutil
import re
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
import trl
from datasets import Dataset
from transformers import Trainer
from trl import SFTConfig, SFTTrainer
from trl.trainer.utils import add_fused_lm_head

from hf_ext import _registration, _upstream
from hf_ext._upstream.checkpoints import CheckpointHooks
from hf_ext._upstream.fused_head import fused_lm_head
from hf_ext._upstream.sft import SFTTrainerHooks, tokenise_rows
from tests.tiny import tiny_model, tiny_prompt_completion_dataset, tiny_text_dataset
from tests.trainers.runs import TOKENIZER, build, config_of

FILES = [
    importlib.import_module(f"{_upstream.__name__}.{entry.name}") for entry in pkgutil.iter_modules(_upstream.__path__)
]
FILES.append(_registration)  # it runs before any host is there, so it cannot lie beside the others
TOUCHED = sorted({entry for file in FILES for entry in getattr(file, "TOUCHED", ())})
VERSIONS = f"trl {trl.__version__}, transformers {transformers.__version__}"

# The parameters we pass, by name or in this order.
PARAMETERS: dict[str, list[str]] = {
    "_load_config_modules": [
        "self", "model_name_or_path", "token", "cache_folder", "revision", "trust_remote_code", "local_files_only",
    ],
    "transformers.models.auto.configuration_auto.AutoConfig.register": ["model_type", "config", "exist_ok"],
    "transformers.models.auto.modeling_auto.AutoModelForSequenceClassification.register": [
        "config_class", "model_class", "exist_ok",
    ],
    "trl.SFTTrainer._prepare_dataset": [
        "self", "dataset", "processing_class", "args", "packing", "formatting_func", "dataset_name",
    ],
    "fsdp2_prepare_model": ["accelerator", "model"],
    "_prepare_dataset": ["self", "dataset", "processing_class", "args", "dataset_name"],
    "_compute_loss": ["self", "model", "inputs", "return_outputs"],
    "_precompute_ref_logps": ["self", "dataset", "name", "batch_size"],
    "_set_signature_columns_if_needed": ["self"],
    "_get_num_items_in_batch": ["self", "batch_samples", "device"],
    "get_batch_samples": ["self", "epoch_iterator", "num_batches", "device"],
    "_save": ["self", "output_dir", "state_dict"],
    "_save_checkpoint": ["self", "model", "trial"],
    "_get_train_sampler": ["self", "train_dataset"],
    "_get_output_dir": ["self", "trial"],
    "_load_best_model": ["self"],
    "_load_rng_state": ["self", "checkpoint"],
    "_init_training_state": [
        "self", "max_steps", "num_update_steps_per_epoch", "num_train_epochs", "resume_from_checkpoint", "trial",
    ],
    "_clip_grad_norm": ["self", "model"],
    "_get_grad_norm": ["self", "model", "grad_norm"],
    "_finalize_training": ["self", "trial", "num_train_samples", "start_time"],
    "_push_from_checkpoint": ["self", "checkpoint_folder"],
    "add_fused_lm_head": ["model"],
    "ChunkedDivergenceFunction": ["args", "kwargs"],  # of any autograd function; what it takes: `test_exact_kl.py`
    "DataCollatorForLanguageModeling": ["pad_token_id", "padding_free", "return_position_ids", "pad_to_multiple_of"],
}  # fmt: skip
# Set in the class, its __init__, or on a model that it is handed.
ATTRIBUTES = {
    "_metrics", "_total_train_tokens", "_tokenizer", "_signature_columns", "_disable_adapters", "_active_adapter",
    "_adapters_disabled", "_original_forward",
}  # fmt: skip


def owner_of(path: str) -> Any:
    """`trl.SFTTrainer` is a class of a module, `trl.trainer.utils` a module."""
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError:
        module, _, name = path.rpartition(".")
        return getattr(importlib.import_module(module), name)


def says(owner: str, name: str, breaks: str, what: str) -> str:
    return f"{owner}.{name} {what} in {VERSIONS}: {breaks}. Adapt hf_ext/_upstream."


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> SFTTrainer:
    return build(SFTTrainer, config_of(SFTConfig, tmp_path_factory.mktemp("stock")), tiny_text_dataset(8))


@pytest.mark.parametrize(("owner", "name", "breaks"), TOUCHED, ids=[".".join(entry[:2]) for entry in TOUCHED])
def test_private_symbol_is_where_we_use_it(owner: str, name: str, breaks: str, stock: SFTTrainer) -> None:
    if name in ATTRIBUTES:
        source = inspect.getsource(owner_of(owner))
        assert hasattr(owner_of(owner), name) or re.search(rf"\w\.{name} = ", source), says(
            owner, name, breaks, "is gone"
        )
        return
    symbol = getattr(owner_of(owner), name, None)
    assert callable(symbol), says(owner, name, breaks, "is gone")
    found = list(inspect.signature(symbol).parameters)
    expected = PARAMETERS.get(f"{owner}.{name}") or PARAMETERS[name]
    assert found[: len(expected)] == expected, says(owner, name, breaks, f"takes {found} instead of {expected}")


@pytest.mark.parametrize("file", FILES, ids=[file.__name__.rpartition(".")[2] for file in FILES])
def test_every_private_name_of_a_host_that_a_file_touches_is_in_its_list(file: ModuleType) -> None:
    nodes = list(ast.walk(ast.parse(inspect.getsource(file))))
    names = [node.attr for node in nodes if isinstance(node, ast.Attribute)]
    names += [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    classes = [node for node in nodes if isinstance(node, ast.ClassDef)]
    names += [method.name for node in classes for method in node.body if isinstance(method, ast.FunctionDef)]
    private = {name for name in names if re.fullmatch(r"_[a-z]\w*", name)} - {"_replace"}  # of every named tuple
    assert private <= {name for _, name, _ in getattr(file, "TOUCHED", ())}


def test_no_other_file_touches_a_private_name_of_a_host() -> None:
    root = Path(_upstream.__path__[0]).parents[1]
    private = [name for owner, name, _ in TOUCHED if name.startswith("_")]
    offenders = []
    for folder in ("hf_ext", "trainers", "recipes"):
        for path in (root / folder).rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            if path.parent.name != "_upstream":
                offenders += [f"{path.relative_to(root)}: {name}" for name in private if f".{name}(" in text]
    assert not offenders


def test_metrics_are_lists_by_mode_that_log_averages(stock: SFTTrainer) -> None:
    assert set(stock._metrics) == {"train", "eval"}
    stock.model.train()
    stock._metrics["train"]["probe"] += [1.0, 3.0]
    logs: dict[str, float] = {}
    stock.log(logs)
    assert logs["probe"] == 2.0
    assert "probe" not in stock._metrics["train"], "log no longer clears the metrics it has written"


@pytest.mark.parametrize("rows", [tiny_text_dataset(6), tiny_prompt_completion_dataset(6)], ids=["text", "pairs"])
def test_preparation_without_length_or_packing_keeps_other_columns_and_every_token(
    rows: Dataset, stock: SFTTrainer
) -> None:
    extra = rows.add_column("weight", [float(i) for i in range(6)]).add_column("__hf_ext_row__", list(range(6)))
    args = config_of(SFTConfig, stock.args.output_dir, max_length=None)
    out = stock._prepare_dataset(extra, TOKENIZER, args, False, None, "train")
    assert out["weight"] == extra["weight"]
    assert out["__hf_ext_row__"] == extra["__hf_ext_row__"]
    assert {"input_ids", "labels"} <= set(out.column_names)
    text = rows["text"] if "text" in rows.column_names else [r["prompt"] + r["completion"] for r in rows]
    assert [len(ids) for ids in out["input_ids"]] == [len(TOKENIZER(t)["input_ids"]) + 1 for t in text]


def test_preparation_keeps_existing_ids_and_labels(stock: SFTTrainer) -> None:
    rows = Dataset.from_dict({"input_ids": [[5, 6, 7]], "labels": [[-100, 6, -100]], "other": ["x"]})
    args = config_of(SFTConfig, stock.args.output_dir, max_length=None)
    out = stock._prepare_dataset(rows, TOKENIZER, args, False, None, "train")
    assert out[0] == {"input_ids": [5, 6, 7], "labels": [-100, 6, -100], "other": "x"}


@pytest.mark.parametrize("rows", [tiny_text_dataset(6), tiny_prompt_completion_dataset(6)], ids=["text", "pairs"])
def test_rows_tokenised_without_a_trainer_are_those_of_the_trainer(rows: Dataset, tmp_path: Any) -> None:
    args = config_of(SFTConfig, tmp_path, max_length=None)
    theirs = build(SFTTrainer, args, rows).train_dataset
    ours = tokenise_rows(rows, TOKENIZER, args)
    for column in ("input_ids", "labels"):
        assert ours[column] == theirs[column]


def test_get_batch_samples_counts_items_over_the_batches_it_drew(stock: SFTTrainer, monkeypatch: Any) -> None:
    seen = []
    monkeypatch.setattr(stock, "_get_num_items_in_batch", lambda batches, device: seen.append(batches) or 17)
    batches, items = Trainer.get_batch_samples(stock, iter(["a", "b", "c"]), 2, torch.device("cpu"))
    assert (batches, items, seen) == (["a", "b"], 17, [["a", "b"]])


def test_signature_columns_are_exactly_what_the_collator_reads(stock: SFTTrainer) -> None:
    stock._signature_columns = None
    stock._set_signature_columns_if_needed()
    assert stock._signature_columns == ["input_ids", "labels", "seq_lengths"]


def test_fused_head_gives_log_probabilities_and_no_logits() -> None:
    model = tiny_model(TOKENIZER)
    ids = torch.randint(5, len(TOKENIZER), (2, 9))
    labels = ids.clone()
    labels[0, 4] = labels[1, :3] = -100
    full = torch.log_softmax(model(ids).logits.float(), -1)[:, :-1]
    expected = full.gather(-1, ids[:, 1:, None])[..., 0].masked_fill(labels[:, 1:] == -100, 0.0)
    add_fused_lm_head(model)
    out = model(input_ids=ids, labels=labels, use_cache=False, fused_lm_head=True)
    assert type(out).__name__ == "FusedCausalLMOutput"
    assert getattr(out, "logits", None) is None
    assert torch.equal(out.label_mask, labels[:, 1:] != -100)
    torch.testing.assert_close(out.log_probs, expected, atol=2e-6, rtol=0)
    assert out.log_probs.requires_grad


def test_fused_head_is_taken_off_again() -> None:
    model = tiny_model(TOKENIZER)
    with fused_lm_head(model):
        assert "forward" in vars(model)
    assert "forward" not in vars(model)
    assert model(torch.tensor([[5, 6]])).logits is not None


def test_stock_trainer_saves_its_arguments_as_a_pickle_and_our_hooks_do_not(stock: SFTTrainer, tmp_path: Any) -> None:
    stock._save(str(tmp_path / "stock"))
    assert (tmp_path / "stock" / "training_args.bin").is_file(), (
        "transformers no longer pickles: drop BaseTrainerHooks._save"
    )
    ours = build(SFTTrainerHooks, config_of(SFTConfig, tmp_path / "ours"), tiny_text_dataset(8))
    ours._save()
    saved = {path.name for path in (tmp_path / "ours").iterdir()}
    assert "model.safetensors" in saved
    assert "training_args.json" in saved
    assert not [name for name in saved if name.endswith((".bin", ".pt", ".pth", ".pkl"))]


def test_hooks_without_overrides_are_sft(tmp_path: Any) -> None:
    from tests.trainers.runs import assert_same_weights, train

    stock = build(SFTTrainer, config_of(SFTConfig, tmp_path / "a", packing=True), tiny_text_dataset(16))
    ours = build(SFTTrainerHooks, config_of(SFTConfig, tmp_path / "b", packing=True), tiny_text_dataset(16))
    assert train(stock) == train(ours)
    assert_same_weights(stock.model, ours.model)


def test_the_host_saves_the_model_first_and_rotates_last_by_the_limit_it_then_finds(tmp_path: Any) -> None:
    """`CheckpointHooks` takes the limit away in between: an older checkpoint is there until the new one is whole."""
    changes = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 1, "max_steps": 2}
    seen: list[Any] = []

    class Watched(CheckpointHooks, SFTTrainer):
        def writing_checkpoint(self, folder: str) -> Any:
            seen.append(Path(folder).name)
            return contextlib.closing(SimpleNamespace(close=lambda: seen.append(sorted(os.listdir(tmp_path)))))

    trainer = build(Watched, config_of(SFTConfig, tmp_path, **changes), tiny_text_dataset(8))
    trainer.train()
    first, both = ["README.md", "checkpoint-1"], ["README.md", "checkpoint-1", "checkpoint-2"]
    assert seen == ["checkpoint-1", first, "checkpoint-2", both]
    assert sorted(os.listdir(tmp_path)) == ["README.md", "checkpoint-2"]
    assert trainer.args.save_total_limit == 1
    assert torch.load(tmp_path / "checkpoint-2" / "training_args.bin", weights_only=False).save_total_limit == 1
