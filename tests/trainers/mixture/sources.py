"""Small sources and trainers on them: what the tests of mixtures share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import Trainer, TrainingArguments
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer, SFTConfig, SFTTrainer

from hf_ext import (
    FlowSFTConfig,
    FlowSFTTrainer,
    PretrainingTrainer,
    SideObservationMixture,
    WeightedSFTConfig,
    WeightedSFTTrainer,
    with_mixture,
)
from tests.tiny import tiny_model, tiny_sentences
from tests.trainers import classifiers, preference, pretraining
from tests.trainers.runs import TOKENIZER, build, config_of

SIZES = {"alpha": 37, "beta": 50, "gamma": 23}
ENDS = (37, 87, 110)


def texts(word: str, n: int, seed: int) -> Dataset:
    """Rows whose text begins with a word of its own."""
    return Dataset.from_dict({"text": [f"{word} {i} {text}" for i, text in enumerate(tiny_sentences(n, seed))]})


def sources() -> dict[str, Dataset]:
    """Three sources of uneven size."""
    return {name: texts(name, n, seed) for seed, (name, n) in enumerate(SIZES.items())}


def target(n: int = 12) -> Dataset:
    """Held-out rows that look like the first source."""
    return texts("alpha", n, seed=99)


def mixture(**settings: Any) -> SideObservationMixture:
    """A mixture of the three, measured in every second step."""
    fields = {"reward_every": 2, "target_rows": 8, "floor_share": 0.05, "seed": 3}
    return SideObservationMixture(sources(), target(), **(fields | settings))


def sft(folder: Path, mix: SideObservationMixture | None = None, *, model: Any = None, **changes: Any) -> Any:
    """Stock `SFTTrainer` on a mixture."""
    kwargs = changes.pop("kwargs", {})
    args = config_of(SFTConfig, folder / "out", **changes)
    return build(with_mixture(SFTTrainer), args, None, model=model, mixture=mix or mixture(), **kwargs)


def weighted(folder: Path, mix: SideObservationMixture | None = None, **changes: Any) -> Any:
    """`WeightedSFTTrainer` of ours."""
    args = config_of(WeightedSFTConfig, folder / "out", **changes)
    return build(with_mixture(WeightedSFTTrainer), args, None, mixture=mix or mixture())


def flow(folder: Path, mix: SideObservationMixture | None = None, **changes: Any) -> Any:
    """`FlowSFTTrainer`, which weighs the rows of all sources by their losses under the original model."""
    args = config_of(FlowSFTConfig, folder / "out", **changes)
    return build(with_mixture(FlowSFTTrainer), args, None, mixture=mix or mixture())


def dpo(folder: Path, mix: SideObservationMixture | None = None, **changes: Any) -> Any:
    """Stock `DPOTrainer` on pairs."""
    rows = {name: preference.pairs(n, seed=n) for name, n in SIZES.items()}
    mix = mix or SideObservationMixture(rows, preference.pairs(8, seed=7), reward_every=2, target_rows=8, seed=3)
    args = config_of(DPOConfig, folder / "out", **changes)
    return build(with_mixture(DPOTrainer), args, None, mixture=mix, ref_model=tiny_model(TOKENIZER))


def classifier(folder: Path, mix: SideObservationMixture | None = None, **changes: Any) -> Any:
    """Stock `Trainer` on a sequence classifier."""
    columns = ["input_ids", "attention_mask", "label"]
    rows = {name: classifiers.labelled_rows(n, seed=n).select_columns(columns) for name, n in SIZES.items()}
    held_out = classifiers.labelled_rows(12, seed=5).select_columns(columns)
    mix = mix or SideObservationMixture(rows, held_out, reward_every=2, target_rows=8, seed=3)
    fields = {
        "use_cpu": True, "report_to": "none", "disable_tqdm": True, "per_device_train_batch_size": 4, "max_steps": 4,
        "learning_rate": 0.1, "optim": "sgd", "logging_steps": 1, "save_strategy": "no", "seed": 7,
    }  # fmt: skip
    args = TrainingArguments(str(folder / "out"), **(fields | changes))
    return with_mixture(Trainer)(classifiers.tiny_bert(), args, mixture=mix)


def kto(folder: Path, mix: SideObservationMixture | None = None, **changes: Any) -> Any:
    """Stock `KTOTrainer` on single labelled responses."""
    rows = preference.singles(sum(SIZES.values()) + 8)
    held_out = rows.select(range(len(rows) - 8, len(rows)))
    parts = {name: rows.skip(end - SIZES[name]).take(SIZES[name]) for name, end in zip(SIZES, ENDS, strict=True)}
    mix = mix or SideObservationMixture(parts, held_out, reward_every=2, target_rows=8, seed=3)
    args = config_of(KTOConfig, folder / "out", **changes)
    return build(with_mixture(KTOTrainer), args, None, mixture=mix, ref_model=tiny_model(TOKENIZER))


def from_nothing(folder: Path, mix: SideObservationMixture | None = None, **changes: Any) -> Any:
    """`PretrainingTrainer` on packed sequences: a host that prepares no rows, but looks at them."""
    rows = {name: pretraining.sequences(n, seed=n) for name, n in SIZES.items()}
    mix = mix or SideObservationMixture(rows, pretraining.sequences(8, 99), reward_every=2, target_rows=8, seed=3)
    args = pretraining.config(folder / "out", architecture=pretraining.TINY, **changes)
    return with_mixture(PretrainingTrainer)(None, args, mixture=mix)


HOSTS = {
    "sft": sft, "weighted": weighted, "flow": flow, "dpo": dpo, "kto": kto, "pretraining": from_nothing,
    "classifier": classifier,
}  # fmt: skip
