"""What the conformance suite runs over: one line a trainer in `TRAINERS`, one a callable in `test_map_functions`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from hf_ext.data.context_free import generate_context_free
from hf_ext.trainers.context_free import ContextFreeSFTConfig, ContextFreeSFTTrainer
from hf_ext.trainers.flow import FlowSFTConfig, FlowSFTTrainer
from hf_ext.trainers.weighted_sft import WeightedSFTConfig, WeightedSFTTrainer
from tests.tiny import tiny_model, tiny_prompt_completion_dataset
from tests.trainers.runs import TOKENIZER, build, config_of


def plain_rows(n: int) -> Dataset:
    """Prompts and completions of uneven length."""
    return tiny_prompt_completion_dataset(n, seed=11)


def weighted_rows(n: int) -> Dataset:
    """The same with weights between 0 and 3."""
    return plain_rows(n).add_column("weight", [(i * 7 % 13) / 4 for i in range(n)])


def no_arguments(folder: Path) -> dict[str, Any]:
    """A trainer that needs nothing beyond `SFTTrainer`'s arguments."""
    return {}


def with_store(folder: Path) -> dict[str, Any]:
    """A store sampled from the tiny model, in `folder`; a second call finds it there."""
    store = generate_context_free(
        tiny_model(TOKENIZER), TOKENIZER, 200, output_dir=folder / "store", max_new_tokens=12, batch_size=8,
        show_progress=False,
    )  # fmt: skip
    return {"context_free_dataset": store}


@dataclass(frozen=True)
class Method:
    """
    A trainer of the suite.

    Args:
        name (`str`): the method's word.
        trainer (`type`), config (`type`): its classes.
        rows (`Callable`): `n` rows it trains on, on which it differs from its parent.
        neutral (`dict`): settings under which it equals `parent` on plain rows, bit for bit.
        arguments (`Callable`): what the trainer needs beyond `SFTTrainer`'s arguments, made in a folder.
        parent (`tuple`): the trainer and config it then equals.
        variants (`tuple`): the ways to train under which a killed run resumes exactly (`test_killed.VARIANTS`).
    """

    name: str
    trainer: Any
    config: Any
    rows: Callable[[int], Dataset] = weighted_rows
    neutral: dict[str, Any] = field(default_factory=dict)
    arguments: Callable[[Path], dict[str, Any]] = no_arguments
    parent: tuple[Any, Any] = (SFTTrainer, SFTConfig)
    variants: tuple[str, ...] = ("plain", "packed", "streaming", "workers", "lora")

    def build(self, folder: Path, rows: Dataset | int = 32, *, model: Any = None, **changes: Any) -> Any:
        """A trainer on `rows` (or that many of its own) with the tiny model; `changes` are to the config."""
        dataset = self.rows(rows) if isinstance(rows, int) else rows
        kwargs = changes.pop("kwargs", {})
        args = config_of(self.config, folder / "out", **changes)
        return build(self.trainer, args, dataset, model=model, **self.arguments(folder), **kwargs)


# One line a trainer. FLOW's weights are exactly 1 at an infinite temperature, and exp(-x / 1e30) is 1 in float64.
TRAINERS = [
    Method("weighted_sft", WeightedSFTTrainer, WeightedSFTConfig),
    # It refuses a stream, whose rows it cannot score before it trains on them (`tests/trainers/test_flow.py`).
    Method(
        "flow", FlowSFTTrainer, FlowSFTConfig, plain_rows, {"tau": "1e30"},
        variants=("plain", "packed", "workers", "lora"),
    ),
    Method(
        "context_free", ContextFreeSFTTrainer, ContextFreeSFTConfig, neutral={"kl_weight": 0.0}, arguments=with_store
    ),
]
BY_NAME = {method.name: method for method in TRAINERS}
