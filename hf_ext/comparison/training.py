"""One run of a comparison: the stock trainer, or ours, with what its parts add."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset, concatenate_datasets
from torch import nn
from trl import SFTConfig, SFTTrainer

from hf_ext._upstream.adapters import copy_of_model
from hf_ext.comparison.grid import PlannedRun
from hf_ext.comparison.penalty import QuadraticPenaltyCallback
from hf_ext.data.weighting import add_flow_weights, add_original_losses, prepare_sft_rows
from hf_ext.evaluation.models import ready
from hf_ext.guards.numbers import check_numbers
from hf_ext.trainers.context_free import ContextFreeSFTConfig, ContextFreeSFTTrainer
from hf_ext.trainers.flow import FlowSFTConfig, FlowSFTTrainer
from hf_ext.trainers.weighted_sft import WeightedSFTConfig, WeightedSFTTrainer

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from hf_ext.data.context_free import ContextFreeStore

__all__ = ["Materials", "configuration", "trained_model"]

REPLAY_SHARE = 0.25
EWC_WEIGHT = 1.0
FISHER_MAX_ROWS = 256
CORDA_ROWS = 256


@dataclass(frozen=True)
class Materials:
    """
    What all runs of a comparison are made of.

    Args:
        original (`PreTrainedModel`):
            Copied for each run.
        tokenizer (`PreTrainedTokenizerBase`):
            Its tokenizer.
        train (`Dataset`):
            Training rows, of any TRL SFT data type.
        replay (`Dataset`, *optional*):
            General rows for `replay`.
        store (`Callable`):
            Gives the context-free rows to train on, sampled when they are first asked for.
        fisher (`Callable`):
            Gives the Fisher information from so many of them.
        folder (`Path`):
            Where trainers may write.
    """

    original: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    train: Dataset
    replay: Dataset | None
    store: Callable[[], ContextFreeStore]
    fisher: Callable[[int], dict[str, Tensor]]
    folder: Path


def configuration(run: PlannedRun, seed: int, folder: Path) -> Any:
    """
    The trainer's configuration of a run.

    Raises:
        ValueError: if a setting is refused by its library; the message names the run.
    """
    extra: dict[str, Any] = {}
    kind: type[SFTConfig] = SFTConfig
    if "context_free" in run.parts:
        kind = ContextFreeSFTConfig
        extra = run.settings["context_free"]
        if "flow" in run.parts:  # as FLOW itself divides: a step's own sum of weights would undo them
            extra = {"normalize": "tokens", **extra}
    elif "flow" in run.parts:
        kind = FlowSFTConfig
        # of all runs, which find each other's scores there
        extra = {"original_cache_dir": str(folder / "original_losses"), **run.settings["flow"]}
    elif "weighted_sft" in run.parts:
        kind = WeightedSFTConfig
    if "dft" in run.parts:
        extra = {"loss_type": "dft"}
    values = {**extra, **run.settings["training"]}
    try:
        config = kind(output_dir=str(folder / "trainer"), seed=seed, save_strategy="no", report_to="none", **values)
        check_numbers(config)
        adapter_configuration(run)
    except (ValueError, TypeError) as error:
        raise ValueError(f"run {run.name!r}: {error}") from error
    return config


def adapter_configuration(run: PlannedRun) -> Any:
    """PEFT's configuration of a run's adapter, or `None`."""
    name = next((part for part in ("lora", "rslora", "corda", "osf") if part in run.parts), None)
    if name is None:
        return None
    from peft import LoraConfig, OSFConfig
    from peft.tuners.lora.config import CordaConfig

    values = {"task_type": "CAUSAL_LM", "target_modules": "all-linear", **run.settings[name]}
    if name == "osf":
        return OSFConfig(**values)
    if name == "rslora":
        return LoraConfig(**{**values, "use_rslora": True})
    if name == "corda":
        # "kpm" keeps the directions that the sampled rows use; "ipm" would adapt those of the target
        corda = CordaConfig(corda_method="kpm")
        return LoraConfig(**{**values, "init_lora_weights": "corda", "corda_config": corda})
    return LoraConfig(**values)


def trained_model(run: PlannedRun, seed: int, materials: Materials) -> tuple[Any, dict[str, Any]]:
    """
    Train a run.

    Returns:
        The model, a `PeftModel` where an adapter was trained, and facts about the training, plain values for JSON.

    Raises:
        ValueError: if the run cannot be trained as it is planned; the message names it.
    """
    try:
        trainer = _trainer(run, seed, materials)
        output = trainer.train()
    except ValueError as error:
        raise ValueError(f"run {run.name!r}: {error}") from error
    model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    facts = {
        "steps": trainer.state.global_step,
        "train_loss": output.training_loss,
        "train_seconds": output.metrics["train_runtime"],
    }
    facts |= {name: float(value) for name, value in getattr(trainer, "flow_statistics", {}).items()}
    del trainer
    gc.collect()  # a trainer and its parts name each other in a circle, and hold the model
    return model, facts


def _trainer(run: PlannedRun, seed: int, materials: Materials) -> Any:
    args = configuration(run, seed, materials.folder)
    model = copy_of_model(materials.original)
    tokenizer = copy.deepcopy(materials.tokenizer)  # the host gives it a padding token, and more
    rows = materials.train
    if "weight" in rows.column_names and "weighted_sft" not in run.parts:
        rows = rows.remove_columns("weight")  # for the runs that name it
    if "replay" in run.parts:
        rows = _with_replay(run, seed, args, tokenizer, rows, materials.replay)
    adapter = adapter_configuration(run)
    if "corda" in run.parts:
        _prepare_corda(model, adapter, materials)
    kwargs: dict[str, Any] = {"processing_class": tokenizer, "peft_config": adapter}
    if "l2_sp" in run.parts:
        kwargs["callbacks"] = [QuadraticPenaltyCallback(run.settings["l2_sp"]["l2_sp_weight"])]
    if "ewc" in run.parts:
        settings = run.settings["ewc"]
        fisher = materials.fisher(settings.get("fisher_max_rows", FISHER_MAX_ROWS))
        penalty = QuadraticPenaltyCallback(settings.get("ewc_weight", EWC_WEIGHT), fisher)
        kwargs["callbacks"] = [*kwargs.get("callbacks", []), penalty]
    if "context_free" in run.parts:
        if "flow" in run.parts:
            rows = add_original_losses(rows, model, tokenizer, args, show_progress=False)
            rows = add_flow_weights(rows, **run.settings["flow"])
        if run.store_path is None:  # else the trainer reads it
            kwargs["context_free_dataset"] = materials.store()
        return ContextFreeSFTTrainer(model, args, train_dataset=rows, **kwargs)
    if "flow" in run.parts:
        return FlowSFTTrainer(model, args, train_dataset=rows, **kwargs)
    if "weighted_sft" in run.parts:
        return WeightedSFTTrainer(model, args, train_dataset=rows, **kwargs)
    return SFTTrainer(model, args, train_dataset=rows, **kwargs)


def _with_replay(
    run: PlannedRun,
    seed: int,
    args: SFTConfig,
    tokenizer: PreTrainedTokenizerBase,
    target: Dataset,
    replay: Dataset | None,
) -> Dataset:
    """Target rows and as many general ones as the share says, tokenised, since the two may be of unlike types."""
    share = run.settings["replay"].get("replay_share", REPLAY_SHARE)
    count = round(len(target) * share / (1 - share))
    if replay is None:
        raise ValueError("replay needs general rows: name them under 'replay:' in the grid")
    if not 1 <= count <= len(replay):
        raise ValueError(
            f"replay_share {share:g} beside {len(target):,} target rows takes {count:,} general rows, and "
            f"there are {len(replay):,}: change the share, or give more rows"
        )
    unpacked = copy.copy(args)
    unpacked.packing = False
    general = replay.shuffle(seed=seed).select(range(count))
    prepared = [prepare_sft_rows(rows, tokenizer, unpacked) for rows in (target, general)]
    columns = ["input_ids", "labels"]
    return concatenate_datasets([rows.select_columns(columns) for rows in prepared]).shuffle(seed=seed)


def _prepare_corda(model: PreTrainedModel, adapter: Any, materials: Materials) -> None:
    """Show the model what it is to keep: PEFT takes the covariances of the layers' inputs meanwhile."""
    from peft.tuners.lora.corda import preprocess_corda

    if adapter.target_modules == "all-linear":  # which that function of PEFT (0.21) does not know
        head = model.get_output_embeddings()
        linear = [
            name for name, module in model.named_modules() if isinstance(module, nn.Linear) and module is not head
        ]
        adapter.target_modules = set(linear)
    rows = materials.store().to_dataset().with_format(None)
    device = model.get_input_embeddings().weight.device

    @torch.no_grad()
    def read_rows() -> None:
        with ready(model):
            for ids in rows[:CORDA_ROWS]["input_ids"]:
                model(input_ids=torch.tensor([ids], device=device), use_cache=False)

    preprocess_corda(model, adapter, run_model=read_rows)
