"""What a run of a comparison may be made of, and the settings that each part takes from the host libraries' own."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from trl import SFTConfig

from hf_ext.data.weighting import add_flow_weights
from hf_ext.guards.extras import require_extra
from hf_ext.guards.near_names import did_you_mean
from hf_ext.trainers.context_free.config import ContextFreeSFTConfig
from hf_ext.trainers.flow.config import FlowSFTConfig
from hf_ext.trainers.weighted_sft.config import WeightedSFTConfig

__all__ = ["METHODS", "Part", "check_parts", "settings_by_part"]

# What the comparison sets itself: where a run writes, what it draws, and that it neither saves nor reports.
RESERVED = {"output_dir", "seed", "data_seed", "report_to", "resume_from_checkpoint", "load_best_model_at_end",
            "do_train", "do_eval", "do_predict", "push_to_hub", "run_name", "bad_rows_path"}  # fmt: skip
RESERVED_BEGINNINGS = ("save_", "eval_", "hub_", "push_to_hub_", "trackio_")
# Fields that PEFT fills itself, or that say where an adapter comes from.
_FILLED_BY_PEFT = {"peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "task_type",
                   "inference_mode", "runtime_config", "corda_config", "loftq_config", "eva_config",
                   "lora_ga_config"}  # fmt: skip


@dataclass(frozen=True)
class Part:
    """
    One word of a run's `method`.

    Args:
        name (`str`):
            The word.
        kind (`str`):
            `"loss"`, `"adapter"`, `"penalty"`, `"rows"` or `"after"` (no training); of the first two a run has one.
        summary (`str`):
            What it is, in a line.
        settings (`Callable`):
            Gives the names of the settings that are its own; called when they are needed, for it may import a library.
    """

    name: str
    kind: str
    summary: str
    settings: Callable[[], frozenset[str]] = frozenset


def _fields(config: type) -> frozenset[str]:
    return frozenset(field.name for field in dataclasses.fields(config) if field.init)


def _lora_settings() -> frozenset[str]:
    require_extra("peft")
    from peft import LoraConfig

    return _fields(LoraConfig) - _FILLED_BY_PEFT


def _osf_settings() -> frozenset[str]:
    require_extra("peft")
    from peft import OSFConfig

    return _fields(OSFConfig) - _FILLED_BY_PEFT


def _flow_settings() -> frozenset[str]:
    return _fields(FlowSFTConfig) - _fields(WeightedSFTConfig) - {"original_cache_dir"}


def _context_free_settings() -> frozenset[str]:
    return _fields(ContextFreeSFTConfig) - _fields(WeightedSFTConfig) - {"original_cache_dir"}


METHODS = {
    part.name: part
    for part in (
        Part("sft", "loss", "all weights by TRL's SFTTrainer; the default"),
        Part("dft", "loss", "TRL's loss_type='dft': tokens weighted by their own probability"),
        Part("lora", "adapter", "PEFT's LoRA", _lora_settings),
        Part("rslora", "adapter", "LoRA scaled by the root of its rank", _lora_settings),
        Part("corda", "adapter", "CorDA that preserves what context-free rows show", _lora_settings),
        Part("osf", "adapter", "PEFT's OSF: only the lesser singular directions are trained", _osf_settings),
        Part("l2_sp", "penalty", "a pull of all weights to the original ones", lambda: frozenset({"l2_sp_weight"})),
        Part(
            "ewc",
            "penalty",
            "the same by the Fisher information of context-free rows",
            lambda: frozenset({"ewc_weight", "fisher_max_rows"}),
        ),
        Part("replay", "rows", "rows of general text among the target's", lambda: frozenset({"replay_share"})),
        Part("weighted_sft", "rows", "rows by their own column 'weight'"),
        Part("flow", "rows", "rows weighted by how easy the original model finds them", _flow_settings),
        Part("context_free", "rows", "beside rows sampled from the original model", _context_free_settings),
        Part(
            "wise_ft",
            "after",
            "between a run's model and the original one",
            lambda: frozenset({"of", "alpha"}),
        ),
    )
}
# Settings without a sensible default.
NEEDED = {"l2_sp": ("l2_sp_weight",), "wise_ft": ("of", "alpha")}
# Parts that cannot meet, and why.
CLASHES = (
    ({"dft"}, {"weighted_sft", "flow", "context_free"}, "weights tokens itself"),
    ({"weighted_sft"}, {"flow", "replay"}, "reads the weights of the rows as they are"),
    ({"l2_sp", "ewc"}, {"lora", "rslora", "corda", "osf"}, "pulls the model's own weights, and an adapter is trained"),
    ({"corda", "osf"}, {"flow", "context_free"}, "rewrites the base weights, so that the original model is gone"),
)


def check_parts(names: Sequence[str]) -> tuple[str, ...]:
    """
    The words of a run's `method`, in the order of [`METHODS`].

    Raises:
        ValueError: if a word is unknown or comes twice, or two cannot meet; the message says what is possible.
    """
    for name in names:
        if name not in METHODS:
            guess = did_you_mean(str(name), METHODS)
            raise ValueError(f"there is no method {name!r}{guess}; choose of {', '.join(METHODS)}")
    if len(set(names)) < len(names):
        raise ValueError(f"method names one twice: {', '.join(names)}")
    kinds = [METHODS[name].kind for name in names]
    if "after" in kinds and len(names) > 1:
        raise ValueError("wise_ft trains nothing: give it alone, with 'of: RUN', which may be any run")
    for kind, word in (("loss", "one loss"), ("adapter", "one adapter")):
        if kinds.count(kind) > 1:
            choices = ", ".join(name for name in names if METHODS[name].kind == kind)
            raise ValueError(f"a run has {word}: choose one of {choices}")
    for first, second, reason in CLASHES:
        sides = [sorted(parts & set(names)) for parts in (first, second)]
        if all(sides):
            raise ValueError(f"{sides[0][0]} does not go with {sides[1][0]}: it {reason}")
    return tuple(name for name in METHODS if name in names)


@cache
def _training_settings(names: tuple[str, ...]) -> frozenset[str]:
    """Arguments of training that a run of these parts takes."""
    weighted = {"weighted_sft", "flow", "context_free"} & set(names)
    fields = _fields(WeightedSFTConfig if weighted else SFTConfig)
    return frozenset(name for name in fields - RESERVED if not name.startswith(RESERVED_BEGINNINGS))


def settings_by_part(names: tuple[str, ...], settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """
    The settings of a run by the part that takes each; those of training under `"training"`.

    Raises:
        ValueError: if nothing takes one, or one is missing; the message lists what can be set.
    """
    parts: dict[str, dict[str, Any]] = {"training": {}, **{name: {} for name in names}}
    of_parts = {name: METHODS[name].settings() for name in names}
    if {"flow", "context_free"} <= set(names):  # then a map-function fills the weights, which takes fewer
        of_parts["flow"] &= frozenset(inspect.signature(add_flow_weights).parameters)
    of_training = frozenset() if "wise_ft" in names else _training_settings(names)
    for name, value in settings.items():
        owner = next((part for part, options in of_parts.items() if name in options), None)
        if owner is None and name not in of_training:
            raise ValueError(_unknown(name, names, of_parts, of_training))
        parts[owner or "training"][name] = value
    for part in names:
        for name in NEEDED.get(part, ()):
            if name not in parts[part]:
                raise ValueError(f"{part} needs {name!r}")
    return parts


def _unknown(
    name: str, names: Iterable[str], of_parts: Mapping[str, frozenset[str]], of_training: frozenset[str]
) -> str:
    if name in RESERVED or name.startswith(RESERVED_BEGINNINGS):
        return f"{name!r} is set by the comparison itself (seeds: stand beside runs:)"
    guess = did_you_mean(name, {*of_training, *(option for options in of_parts.values() for option in options)})
    takers = [other for other, part in METHODS.items() if other not in of_parts and _takes(part, name)]
    if takers:
        return f"{name!r} is a setting of {' and '.join(takers)}, and the method is {', '.join(names)}"
    lists = "; ".join(f"{part} takes {', '.join(sorted(options))}" for part, options in of_parts.items() if options)
    beside = "" if not of_training else f"{'; ' if lists else ''}beside them the fields of TRL's SFTConfig"
    return f"there is no setting {name!r}{guess} ({lists}{beside})"


def _takes(part: Part, name: str) -> bool:
    try:
        return name in part.settings()
    except ImportError:  # an extra that is not installed
        return False
