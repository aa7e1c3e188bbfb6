"""WiSE-FT: the weights between the original model and the tuned one, of models in memory or of folders."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, overload

import torch
from torch import Tensor

from hf_ext._upstream.adapters import copy_of_model
from hf_ext.data.provenance import MERGED, is_peft
from hf_ext.evaluation.models import Model, loaded
from hf_ext.guards.disk import publishing
from hf_ext.guards.inside import file_in, read_json, require_file
from hf_ext.guards.models import loading_model
from hf_ext.guards.numbers import PROBABILITY
from hf_ext.guards.runs import claimed_folder

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

__all__ = ["require_linear_adapter", "tuned_model", "wise_ft"]

SINGLE = ("model.safetensors", "adapter_model.safetensors")
INDEX = "model.safetensors.index.json"
# What of a tuned model's folder belongs to the mixed one as it is: no card, no state of a training, no weights.
_KEPT = re.compile(
    r".*\.(model|jinja|safetensors\.index\.json)|(generation_|adapter_|preprocessor_|processor_)?config\.json|"
    r"(tokenizer|special_tokens|added_tokens|vocab|merges|chat_template).*\.(json|txt)"
)
_ON_THE_HUB = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model")
_REWRITES = ("pissa", "olora", "corda", "loftq", "lora_ga", "mica")  # initialisers of peft 0.21
_UP = re.compile(r"\.(lora_B|lora_embedding_B)(\.|$)")
_DOWN = re.compile(r"\.(lora_A|lora_embedding_A)(\.|$)")


@overload
def wise_ft(model: Model | str | Path, original: Model | str | Path | None, alpha: float) -> Any: ...


@overload
def wise_ft(model: str | Path, original: str | Path | None, alpha: float, *, output_dir: str | Path) -> Path: ...


def wise_ft(
    model: Model | str | Path,
    original: Model | str | Path | None,
    alpha: float,
    *,
    output_dir: str | Path | None = None,
) -> Any:
    r"""
    The model between the original one and the tuned one.

    $$\theta = (1 - \alpha)\,\theta^* + \alpha\,\theta_{\text{tuned}}$$

    0 gives the original weights and 1 the tuned ones, bit for bit; between them each weight is computed in float32 and
    rounded to the tuned model's dtype. Of a LoRA adapter the change of the weights is scaled by $\alpha$, which is the
    same model: `lora_B` is multiplied, and the original model is not read.

    Args:
        model (model, `str` or `Path`):
            The tuned model, or its folder or name on the Hub.
        original (model, `str`, `Path` or `None`):
            The model before tuning. `None` if `model` is a LoRA adapter.
        alpha (`float`):
            Share of the tuned model, from 0 to 1 (unitless).
        output_dir (`str` or `Path`, *optional*):
            Write the mixed model there, shard by shard: one shard of it is in memory at a time. Both models must then
            be folders of safetensors or names on the Hub.

    Returns:
        The mixed model, a new object, on the tuned one's device; or with `output_dir` its `Path`.

    Raises:
        ValueError: if `alpha` is outside of its bounds, the weights have other names or shapes, a folder holds no
            safetensors, or an adapter is of a kind whose change is not linear in its parameters.
        DiskFullError: if there is no room; what was in `output_dir` is intact.

    Example:

    ```python
    >>> model = wise_ft("out/sft", "original", 0.8)
    >>> wise_ft("out/sft", "original", 0.8, output_dir="out/sft-0.8")
    ```

    Relations: `sweep_wise_ft` measures several `alpha` and picks one.

    Reference: Wortsman et al. 2022, *Robust fine-tuning of zero-shot models*, Equation 1 (arXiv 2109.01903).
    """
    problem = PROBABILITY.problem_of(alpha)
    if problem is not None:
        raise ValueError(f"alpha {problem}.")
    if output_dir is None:
        return _mixed_model(model, original, alpha)
    for name, value in (("model", model), ("original", original)):
        if value is not None and not isinstance(value, str | Path):
            raise ValueError(
                f"output_dir mixes folders, and {name} is a {type(value).__name__}: give its folder, or leave "
                "output_dir out and save what is returned."
            )
    return _mixed_folder(Path(model), original, alpha, Path(output_dir))


# --- in memory -------------------------------------------------------------------------------------------------------


def tuned_model(model: Model | str | Path, original: Model | str | Path | None) -> Model:
    """A tuned model as an object; an adapter stays one, on a model of its own, so that it can be scaled."""
    if not isinstance(model, str | Path) or not (Path(model) / "adapter_config.json").is_file():
        return loaded(model, like=model if original is None else original)
    from peft import PeftConfig, PeftModel

    with loading_model(model, "adapter"):
        if original is None:
            name = PeftConfig.from_pretrained(model).base_model_name_or_path
            base = loaded(name, like=name)
        elif isinstance(original, str | Path):
            base = loaded(original, like=original)
        else:
            # PEFT puts its layers into the very model that it is handed
            base = copy_of_model(cast("PreTrainedModel", original))
        return PeftModel.from_pretrained(base, model)


def _mixed_model(model: Model | str | Path, original: Model | str | Path | None, alpha: float) -> Model:
    tuned = tuned_model(model, original)
    if is_peft(tuned, "PeftModel"):
        return _scaled_adapter(tuned, alpha)
    if any(is_peft(module, "BaseTunerLayer") for module in tuned.modules()):
        raise ValueError(
            "The model holds adapter layers but is no PeftModel. Load it with peft.PeftModel.from_pretrained, or "
            "merge it first."
        )
    if original is None:
        raise ValueError("original=None is for LoRA adapters, and the model has none: give the original model.")
    start = loaded(original, like=tuned)
    mixed = copy_of_model(tuned) if isinstance(model, torch.nn.Module) else tuned
    originals = _tensors(start)
    tensors = _tensors(mixed)
    _check_names(set(tensors), set(originals))
    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.copy_(_between(originals[name].to(tensor.device), tensor, alpha, name))
    return mixed


def _tensors(model: Model) -> dict[str, Tensor]:
    """Weights, tied ones once, and the buffers that are saved, where they hold fractions."""
    buffers = dict(model.named_buffers())
    tensors = {name: buffers[name] for name in model.state_dict() if name in buffers}
    tensors |= dict(model.named_parameters())
    return {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}


def _between(original: Tensor, tuned: Tensor, alpha: float, name: str) -> Tensor:
    if original.shape != tuned.shape:
        raise ValueError(
            f"The weight {name!r} is {tuple(tuned.shape)} in the tuned model and {tuple(original.shape)} in the "
            "original one. Where embeddings were resized, resize those of the original the same way first."
        )
    if not tuned.is_floating_point():
        return tuned
    # torch takes the end that is nearer for its start, so that both ends come out exactly
    return torch.lerp(original.float(), tuned.float(), alpha).to(tuned.dtype)


def _check_names(tuned: set[str], original: set[str]) -> None:
    for names, place in ((tuned - original, "tuned"), (original - tuned, "original")):
        if names:
            more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
            raise ValueError(
                f"Only the {place} model has a weight {min(names)!r}{more}: the two are not of one architecture. "
                "Give the model that the tuned one started from."
            )


def require_linear_adapter(model: PeftModel) -> None:
    """
    Refuse an adapter whose change of the model is not proportional to its `lora_B`.

    Raises:
        ValueError: if it is another kind of adapter, trains more than matrices, or is merged.
    """
    for name, config in model.peft_config.items():
        _check_linear(config.to_dict(), f"adapter {name!r}")
    if any(module.merged for module in model.modules() if is_peft(module, "BaseTunerLayer")):
        raise ValueError(MERGED)


def _scaled_adapter(model: PeftModel, alpha: float) -> PeftModel:
    require_linear_adapter(model)
    mixed = copy_of_model(model)
    with torch.no_grad():
        for name, parameter in mixed.named_parameters():
            if _UP.search(name):
                parameter.mul_(alpha)
    return mixed


def _check_linear(config: Mapping[str, Any], adapter: str) -> None:
    start = str(config.get("init_lora_weights", True)).lower()
    reasons = {
        f"is of type {config.get('peft_type')}": "LORA" not in str(config.get("peft_type")),
        "is DoRA's, whose change is not linear": config.get("use_dora", False),
        f"trains biases (bias={config.get('bias')!r})": config.get("bias", "none") != "none",
        "holds whole modules (modules_to_save)": config.get("modules_to_save"),
        "holds tokens (trainable_token_indices)": config.get("trainable_token_indices"),
        f"rewrote the base weights (init_lora_weights={start!r})": start.startswith(_REWRITES),
    }
    reason = next((words for words, is_so in reasons.items() if is_so), None)
    if reason is not None:
        raise ValueError(
            f"The {adapter} {reason}, so scaling it is not WiSE-FT. Merge it (merge_and_unload), save the model, and "
            "give the two whole models."
        )


# --- folders ---------------------------------------------------------------------------------------------------------


class _Folder:
    """The tensors of a folder of safetensors, each read when it is asked for."""

    def __init__(self, name: str | Path) -> None:
        from safetensors import safe_open

        self.folder = _local_folder(name)
        index = self.folder / INDEX
        single = next((self.folder / file for file in SINGLE if (self.folder / file).is_file()), None)
        if index.is_file():
            names = dict.fromkeys(read_json(index)["weight_map"].values())
            files = [file_in(self.folder, file, index) for file in names]
        elif single is not None:
            files = [require_file(single)]
        else:
            raise ValueError(f"{name} holds no safetensors weights: open it and save it with save_pretrained first.")
        # mapped into memory, not read
        self.shards = {}
        for file in files:
            with loading_model(file, "weights"):
                self.shards[file.name] = safe_open(file, framework="pt")
        self.shard_of = {name: shard for shard in self.shards.values() for name in shard.keys()}  # noqa: SIM118

    @property
    def is_adapter(self) -> bool:
        return (self.folder / "adapter_config.json").is_file()

    def tensor(self, name: str) -> Tensor:
        return self.shard_of[name].get_tensor(name)


def _local_folder(name: str | Path) -> Path:
    if Path(name).is_dir():
        with loading_model(name):  # looks at its files
            return Path(name)
    from huggingface_hub import snapshot_download

    with loading_model(name):
        return Path(snapshot_download(str(name), allow_patterns=list(_ON_THE_HUB)))


def _mixed_folder(model: Path, original: str | Path | None, alpha: float, output_dir: Path) -> Path:
    from safetensors.torch import save_file

    tuned = _Folder(model)
    start = None
    if not tuned.is_adapter:
        if original is None:
            raise ValueError("original=None is for LoRA adapters, and the model is none: give the original model.")
        start = _Folder(original)
        if start.is_adapter:
            raise ValueError(f"original {str(original)!r} is an adapter: give the whole model that it belongs to.")
    for folder in (tuned.folder, *([] if start is None else [start.folder])):
        if output_dir.exists() and output_dir.samefile(folder):
            raise ValueError(f"output_dir {str(output_dir)!r} is one of the two models; name another folder.")
    num_bytes = sum((tuned.folder / name).stat().st_size for name in tuned.shards)
    with claimed_folder(output_dir, remedy="name another output_dir"):
        # all that can be refused is looked at before a byte is written
        if start is None:
            _check_adapter(tuned)
        else:
            _check_names(set(tuned.shard_of), set(start.shard_of))
        with publishing(output_dir, num_bytes=num_bytes) as staging:
            staging.mkdir(parents=True)
            for name in tuned.shards:
                save_file(dict(_mixed_shard(tuned, start, name, alpha)), staging / name, metadata={"format": "pt"})
            for file in tuned.folder.iterdir():
                if file.is_file() and _KEPT.fullmatch(file.name):
                    shutil.copyfile(file, staging / file.name)
    return output_dir


def _mixed_shard(tuned: _Folder, start: _Folder | None, shard: str, alpha: float) -> Iterator[tuple[str, Tensor]]:
    for name in tuned.shards[shard].keys():  # noqa: SIM118  a file handle, no mapping
        tensor = tuned.tensor(name)
        if start is not None:
            yield name, _between(start.tensor(name), tensor, alpha, name).contiguous()
        else:
            yield name, (tensor * alpha if _UP.search(name) else tensor).contiguous()


def _check_adapter(tuned: _Folder) -> None:
    _check_linear(read_json(tuned.folder / "adapter_config.json"), f"adapter in {tuned.folder}")
    for name in tuned.shard_of:
        if not (_UP.search(name) or _DOWN.search(name)):
            raise ValueError(
                f"The adapter in {tuned.folder} holds {name!r}, which is no matrix of LoRA. Merge it "
                "(merge_and_unload), save the model, and give the two whole models."
            )
