"""A mixture of LoRA experts: adapters of one language model, and the gate that routes a prompt to one of them."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from hf_ext.data.provenance import as_original, original_model
from hf_ext.guards.extras import require_extra
from hf_ext.guards.inside import read_json
from hf_ext.guards.models import loading_model
from hf_ext.moe.gate import PromptGate

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

GATE = "gate"


def expert_name(number: int) -> str:
    """Name of an adapter in the model, and of its folder."""
    return f"expert_{number}"


class LoraMixture:
    r"""
    LoRA adapters in one PEFT model, and a gate that says from the prompt which of them answers.

    $$p(y \mid x) = \sum_i g_i(x)\, p_i(y \mid x)$$

    $g$ is a logistic regression on the mean of the base model's last hidden states over the prompt, adapters off.

    Args:
        model (`PeftModel`):
            With adapters `expert_0`, `expert_1`, ...
        gate ([`~hf_ext.moe.gate.PromptGate`]):
            Of as many experts.

    Requirements: LoRA without DoRA, whose rows PEFT (0.21) cannot route one by one.

    Relations: [`LoraMixtureTrainer`] trains one. Each adapter opens alone with `PeftModel.from_pretrained`.
    """

    def __init__(self, model: PeftModel, gate: PromptGate) -> None:
        self.model = model
        self.gate = gate

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, *, base_model: PreTrainedModel | str | None = None, **load_kwargs: Any
    ) -> LoraMixture:
        """
        Open what [`LoraMixtureTrainer`] saved.

        Args:
            folder (`str` or `Path`):
                A folder, or a name on the Hub.
            base_model (`PreTrainedModel` or `str`, *optional*):
                The model that the adapters belong to; by default the one that they name.
            **load_kwargs:
                Passed to `AutoModelForCausalLM.from_pretrained` where the base model is loaded.

        Raises:
            MissingExtraError: if PEFT is not installed.
            ModelFilesError: if a file is missing or malformed, or the adapters name different base models.
        """
        require_extra("peft")
        from transformers import AutoModelForCausalLM

        with loading_model(folder, "mixture of LoRA experts"):
            path = Path(folder) if os.path.isdir(folder) else _downloaded(str(folder))
            gate = PromptGate.load(path / GATE)
            folders = [path / expert_name(i) for i in range(len(gate.weight))]
            base_name = _common_base(folders)
        base = base_name if base_model is None else base_model
        if isinstance(base, str):
            with loading_model(base):
                base = AutoModelForCausalLM.from_pretrained(base, **{"trust_remote_code": False, **load_kwargs})
        with loading_model(folder, "mixture of LoRA experts"):
            width = base.config.get_text_config().hidden_size
            if width != len(gate.mean):
                raise ValueError(f"the gate reads {len(gate.mean)} features, and the base model has {width}")
            return cls(with_experts(base, folders), gate)

    def gate_probabilities(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """
        Probability of each expert for prompts, from either side padded.

        Args:
            input_ids (`torch.Tensor` of shape `(batch, seq_len)`):
                Tokens of the prompts.
            attention_mask (`torch.Tensor` of shape `(batch, seq_len)`, *optional*):
                0 on padding.

        Returns:
            `torch.Tensor` of shape `(batch, k)`, float64, on the CPU.
        """
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        prompts = [ids[row.bool()].tolist() for ids, row in zip(input_ids, mask, strict=True)]
        embeddings = prompt_embeddings(self.model, prompts, batch_size=len(prompts), show_progress=False)
        return self.gate.log_probs(embeddings).exp()

    @torch.no_grad()
    def generate(self, input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor:
        """
        As `model.generate`, each row by the expert that the gate finds most probable.

        Args:
            input_ids (`torch.Tensor` of shape `(batch, seq_len)`):
                Tokens of the prompts, padded on the left.
            attention_mask (`torch.Tensor` of shape `(batch, seq_len)`, *optional*):
                0 on padding.
            **kwargs:
                Of `generate`: `max_new_tokens`, `do_sample`, ...

        Returns:
            `torch.Tensor` of shape `(batch, length)`: prompts and what follows them.
        """
        experts = self.gate_probabilities(input_ids, attention_mask).argmax(-1).tolist()
        self.model.eval()  # PEFT routes rows in evaluation mode only
        names = [expert_name(expert) for expert in experts]
        return self.model.generate(input_ids=input_ids, attention_mask=attention_mask, adapter_names=names, **kwargs)


@torch.no_grad()
def prompt_embeddings(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    batch_size: int = 8,
    autocast: Callable[[], AbstractContextManager] = contextlib.nullcontext,
    show_progress: bool = True,
) -> Tensor:
    """
    Mean of the base model's last hidden states over each prompt, adapters off: what the gate reads.

    Args:
        model (`PreTrainedModel` or `PeftModel`):
            A causal language model. Everything in it is as before afterwards.
        prompts (`Sequence[Sequence[int]]`):
            Tokens, at least one each.
        batch_size (`int`, *optional*, defaults to `8`):
            Prompts a forward; those of like length go together.
        autocast (`Callable`, *optional*):
            The context of the training forward.
        show_progress (`bool`, *optional*, defaults to `True`):
            Whether to show a bar.

    Returns:
        `torch.Tensor` of shape `(prompts, hidden_size)`, float32, on the CPU.
    """
    body = original_model(model).base_model
    device = next(model.parameters()).device
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]), reverse=True)
    embeddings: dict[int, Tensor] = {}
    bar = tqdm(total=len(order), desc="Embedding prompts", unit="row", disable=not show_progress)
    with as_original(model), bar:
        for start in range(0, len(order), batch_size):
            chunk = order[start : start + batch_size]
            lengths = torch.tensor([len(prompts[i]) for i in chunk], device=device)
            positions = torch.arange(int(lengths.max()), device=device)
            mask = positions < lengths[:, None]  # (batch, seq_len)
            ids = torch.zeros_like(mask, dtype=torch.int64)  # padding is on the right, where no token sees it
            ids[mask] = torch.tensor([token for i in chunk for token in prompts[i]], device=device)
            with autocast():
                states = body(input_ids=ids, attention_mask=mask.long(), use_cache=False).last_hidden_state
            sums = (states.float() * mask[:, :, None]).sum(1)
            embeddings.update(zip(chunk, (sums / lengths[:, None]).cpu(), strict=True))
            bar.update(len(chunk))
    return torch.stack([embeddings[i] for i in range(len(prompts))])


def with_experts(base: PreTrainedModel, folders: Sequence[str | Path]) -> PeftModel:
    """
    A base model with the adapters of some folders, named `expert_0`, `expert_1`, ..., the first of them on.

    Args:
        base (`PreTrainedModel`):
            Without adapters; `unload()` gives it back.
        folders (`Sequence[str | Path]`):
            Of stock adapters.

    Raises:
        ValueError: if one is no LoRA adapter, or uses DoRA.
    """
    from peft import PeftConfig, PeftModel

    for folder in folders:
        check_lora(PeftConfig.from_pretrained(str(folder)))
    model = PeftModel.from_pretrained(base, str(folders[0]), adapter_name=expert_name(0))
    for number, folder in enumerate(folders[1:], 1):
        model.load_adapter(str(folder), adapter_name=expert_name(number))
    return model.eval()


def check_lora(config: Any) -> None:
    """
    Refuse an adapter whose rows PEFT cannot route.

    Raises:
        ValueError: if it is none of LoRA, or uses DoRA.
    """
    from peft import LoraConfig

    if not isinstance(config, LoraConfig):
        raise ValueError(f"a mixture of LoRA experts takes a LoraConfig, got {type(config).__name__}")
    if config.use_dora:
        raise ValueError("use_dora=True does not go with routing rows to adapters (PEFT's adapter_names): set it off")


def copy_mixture(folders: Sequence[Path], gate: Path, target: Path) -> None:
    """Put adapters and gate side by side into a folder, as [`LoraMixture`] opens it."""
    for number, folder in enumerate(folders):
        shutil.copytree(folder, target / expert_name(number), copy_function=shutil.copyfile)
    shutil.copytree(gate, target / GATE, copy_function=shutil.copyfile)


def _common_base(folders: Sequence[Path]) -> str:
    subject = "the configuration of an adapter"
    configs = [read_json(folder / "adapter_config.json", subject=subject) for folder in folders]
    names = [config.get("base_model_name_or_path") for config in configs]
    for number, name in enumerate(names):
        if name != names[0]:
            raise ValueError(
                f"{expert_name(number)} was trained on {name!r}, and {expert_name(0)} on {names[0]!r}: adapters of "
                "one mixture share their base model"
            )
    return str(names[0])


def _downloaded(name: str) -> Path:
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(name, allow_patterns=[f"{GATE}/*", "expert_*/*", "*.json"]))
