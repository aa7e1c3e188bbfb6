"""ZeRO-3 without a GPU and without DeepSpeed: what the launcher hands over, what is refused, what a save writes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator, DistributedType
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DeepSpeedPlugin
from accelerate.utils.launch import prepare_deepspeed_cmd_env
from peft import PeftModel
from transformers import AutoModelForCausalLM, Trainer

from hf_ext.recipes.files import find_accelerate_config
from tests.conformance.registry import BY_NAME
from tests.distributed.lines import LINES, OTHERS, REFUSED
from tests.trainers.runs import weights_of

ZERO3 = {line.name for line in LINES if line.zero3 == REFUSED}
ZERO3 |= {name for name, (_, _, zero3) in OTHERS.items() if zero3 == REFUSED}


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> DeepSpeedPlugin:
    """What the processes that `accelerate launch` starts with the shipped config make of their environment."""
    arguments = ["--config_file", str(find_accelerate_config("zero3")), "--num_processes", "2", "script.py"]
    parsed, defaults, _ = _validate_launch_command(launch_command_parser().parse_args(arguments))
    assert parsed.use_deepspeed
    parsed.main_process_port = 0
    parsed.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)  # the launcher's next line
    _, environment = prepare_deepspeed_cmd_env(parsed)
    for name, value in environment.items():
        if name.startswith("ACCELERATE_DEEPSPEED") and os.environ.get(name) != value:
            monkeypatch.setenv(name, value)
    assert environment["ACCELERATE_USE_DEEPSPEED"] == "true"
    return DeepSpeedPlugin()


def test_the_shipped_config_says_zero_3_that_saves_whole_weights(plugin: DeepSpeedPlugin) -> None:
    zero = plugin.deepspeed_config["zero_optimization"]
    assert zero["stage"] == 3
    assert zero["stage3_gather_16bit_weights_on_model_save"] is True
    assert zero["offload_param"]["device"] == zero["offload_optimizer"]["device"] == "none"
    # a context-free store is checked against the weights, which must be there when the model is loaded
    assert plugin.zero3_init_flag is False


class Engine(torch.nn.Module):
    """DeepSpeed's engine as far as a save asks: the parameters of `module` are empty, their values are here."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.config = {"zero_optimization": {"stage": 3}}
        self.module = module
        self.values = {name: value.detach().clone() for name, value in module.state_dict().items()}
        self.trained = {name for name, value in module.named_parameters() if value.requires_grad}
        for value in module.parameters():
            value.data = value.data.new_empty(0)

    def zero_gather_16bit_weights_on_model_save(self) -> bool:
        return True

    def _zero3_consolidated_16bit_state_dict(self, exclude_frozen_parameters: bool = False) -> dict[str, torch.Tensor]:
        return {n: v for n, v in self.values.items() if not exclude_frozen_parameters or n in self.trained}

    def save_checkpoint(self, folder: str, exclude_frozen_parameters: bool = False) -> None:
        raise AssertionError("shards are saved in place of a model")


def under_zero3(trainer: Any, plugin: DeepSpeedPlugin, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """The trainer in the state in which DeepSpeed has its model."""
    engine = Engine(trainer.model)
    trainer.is_deepspeed_enabled = True
    trainer.deepspeed = trainer.model_wrapped = engine
    monkeypatch.setattr(Accelerator, "distributed_type", DistributedType.DEEPSPEED)
    monkeypatch.setattr(Accelerator, "deepspeed_config", plugin.deepspeed_config, raising=False)
    return engine


@pytest.mark.parametrize("lora", [False, True], ids=["whole", "lora"])
@pytest.mark.parametrize("name", [line.name for line in LINES if line.zero3 != REFUSED])
def test_what_is_saved_is_what_the_engine_gathers_in_a_stock_folder(
    name: str, lora: bool, plugin: DeepSpeedPlugin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = BY_NAME[name]
    kwargs = {"peft_config": method.adapter()} if lora else {}
    trainer = method.build(tmp_path, 8, kwargs=kwargs)
    expected = weights_of(trainer.model)
    under_zero3(trainer, plugin, monkeypatch)
    folder = tmp_path / "saved"
    trainer.save_model(str(folder))
    loaded = (
        PeftModel.from_pretrained(method.model(), folder) if lora else AutoModelForCausalLM.from_pretrained(folder)
    )
    weights = weights_of(loaded)
    assert weights.keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in weights.items() if not lora or "lora_" in key)
    assert (folder / "README.md").is_file()
    assert not list(folder.rglob("global_step*"))


@pytest.mark.parametrize("name", sorted(ZERO3))
def test_who_needs_a_whole_model_refuses_deepspeed_by_name_with_a_remedy(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    created = Trainer.create_accelerator_and_postprocess

    def with_deepspeed(trainer: Any) -> None:
        created(trainer)
        trainer.is_deepspeed_enabled = True

    monkeypatch.setattr(Trainer, "create_accelerator_and_postprocess", with_deepspeed)
    remedy = {"flow": "hf-ext data flow-weights", "moe_em": "plain processes"}.get(name, "kl='sampled'")
    with pytest.raises(ValueError, match="DeepSpeed") as refusal:
        BY_NAME[name].build(tmp_path, 8)
    assert remedy in str(refusal.value)
