"""What the conformance suite runs over: one line a trainer in `TRAINERS`, one a callable in `test_map_functions`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import LoraConfig, get_peft_model
from sentence_transformers import SentenceTransformerTrainer
from transformers import Trainer
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer, SFTConfig, SFTTrainer

from hf_ext.comparison.penalty import QuadraticPenaltyCallback
from hf_ext.data.context_free import generate_context_free
from hf_ext.trainers.consensus import ConsensusConfig, ForwardCorrectedTrainer
from hf_ext.trainers.context_free import ContextFreeSFTConfig, ContextFreeSFTTrainer
from hf_ext.trainers.flow import FlowSFTConfig, FlowSFTTrainer
from hf_ext.trainers.infopo import InfoPOConfig, InfoPOTrainer, InfoPOUnpairedConfig, InfoPOUnpairedTrainer
from hf_ext.trainers.moe_em import MoEEMConfig, MoEEMTrainer
from hf_ext.trainers.pretraining import PretrainingConfig, PretrainingTrainer, new_model
from hf_ext.trainers.rare import RareConfig, RareTrainer
from hf_ext.trainers.weighted_classification import WeightedConfig, WeightedTrainer
from hf_ext.trainers.weighted_sft import WeightedSFTConfig, WeightedSFTTrainer
from tests.tiny import tiny_model, tiny_prompt_completion_dataset
from tests.trainers import classifiers, mixtures, preference, pretraining, retrieval
from tests.trainers.runs import TOKENIZER, build, config_of


def plain_rows(n: int) -> Dataset:
    """Prompts and completions of uneven length."""
    return tiny_prompt_completion_dataset(n, seed=11)


def sourced_rows(n: int) -> Dataset:
    """The same of two sources."""
    return plain_rows(n).add_column("source", ["a" if i % 3 else "b" for i in range(n)])


def weighted_rows(n: int) -> Dataset:
    """The same with weights between 0 and 3."""
    return plain_rows(n).add_column("weight", [(i * 7 % 13) / 4 for i in range(n)])


def weighted_pairs(n: int) -> Dataset:
    """Preference pairs with weights between 0 and 3."""
    return preference.pairs(n).add_column("weight", weighted_rows(n)["weight"])


def weighted_singles(n: int) -> Dataset:
    """Labelled responses with weights between 0 and 3."""
    return preference.singles(n).add_column("weight", weighted_rows(n)["weight"])


def with_reference(folder: Path) -> dict[str, Any]:
    """A reference model beside the policy, which is in memory."""
    return {"ref_model": tiny_model(TOKENIZER)}


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


def with_small_store(folder: Path) -> dict[str, Any]:
    """A store of fewer rows than any run of the suite draws: a batch of four."""
    store = generate_context_free(
        tiny_model(TOKENIZER), TOKENIZER, 30, output_dir=folder / "store", max_new_tokens=12, batch_size=4,
        show_progress=False,
    )  # fmt: skip
    return {"context_free_dataset": store}


def with_penalty(folder: Path) -> dict[str, Any]:
    """A pull of every weight to its original value."""
    return {"callbacks": [QuadraticPenaltyCallback(0.5)]}


def malformed(**columns: Any) -> dict[str, dict[str, Any]]:
    """What makes a row bad, by name: the given columns' values, and weights that are none."""
    weights = {"negative_weight": -0.5, "nan_weight": math.nan, "infinite_weight": math.inf}
    rows = {f"{column}_{value!r}": {column: value} for column, values in columns.items() for value in values}
    return rows | {name: {"weight": value} for name, value in weights.items()}


@dataclass(frozen=True)
class Method:
    """
    A trainer of the suite.

    Args:
        name (`str`): the method's word.
        trainer (`type`), config (`type`): its classes.
        rows (`Callable`): `n` rows it trains on, on which it differs from its parent.
        plain (`Callable`): `n` rows without weights.
        neutral (`dict`): settings under which it equals `parent` on plain rows, bit for bit; `None`: there are none.
        arguments (`Callable`): what the trainer needs beyond `SFTTrainer`'s arguments, made in a folder.
        parent (`tuple`): the trainer and config it then equals.
        malformed (`dict`): what makes one of its rows bad, by name.
        packs (`bool`): whether it takes the settings of packing and shuffling.
        settings (`dict`): changes to the config of every run.
        rounding (`float`): what float32 leaves uncertain of a loss beyond its own last digit.
        variants (`tuple`): the ways to train under which a killed run resumes exactly (`test_killed.VARIANTS`).
    """

    name: str
    trainer: Any
    config: Any
    rows: Callable[[int], Dataset] = weighted_rows
    neutral: dict[str, Any] | None = field(default_factory=dict)
    arguments: Callable[[Path], dict[str, Any]] = no_arguments
    parent: tuple[Any, Any] = (SFTTrainer, SFTConfig)
    plain: Callable[[int], Dataset] = plain_rows
    malformed: dict[str, dict[str, Any]] = field(
        default_factory=lambda: malformed(completion=[None, ""], prompt=[None])
    )
    packs: bool = True
    settings: dict[str, Any] = field(default_factory=dict)
    rounding: float = 0.0
    variants: tuple[str, ...] = ("plain", "packed", "streaming", "workers", "lora")

    def model(self, dropout: float = 0.0) -> Any:
        """A fresh tiny model."""
        return tiny_model(TOKENIZER, attention_dropout=dropout)

    def adapter(self, dropout: float = 0.0) -> LoraConfig:
        """An adapter for it."""
        return LoraConfig(r=4, target_modules=["q_proj", "v_proj"], lora_dropout=dropout, task_type="CAUSAL_LM")

    def build(self, folder: Path, rows: Dataset | int = 32, *, model: Any = None, **changes: Any) -> Any:
        """A trainer on `rows` (or that many of its own) with the tiny model; `changes` are to the config."""
        dataset = self.rows(rows) if isinstance(rows, int) else rows
        kwargs = changes.pop("kwargs", {})
        args = config_of(self.config, folder / "out", **(self.settings | changes))
        arguments = self.arguments(folder)
        if "peft_config" in kwargs:  # the base model is the reference, and nothing of it is pulled
            arguments.pop("ref_model", None)
            arguments.pop("callbacks", None)
        return build(self.trainer, args, dataset, model=model, **arguments, **kwargs)

    def build_parent(self, folder: Path, rows: Dataset, **changes: Any) -> Any:
        """The parent on `rows`."""
        trainer_class, config_class = self.parent
        arguments = self.arguments(folder) if self.arguments is with_reference else {}
        theirs = {name: value for name, value in self.settings.items() if name in config_class.__dataclass_fields__}
        args = config_of(config_class, folder, **(theirs | changes))
        return build(trainer_class, args, rows, **arguments)


# beta times the last digit of a sequence's log-probability, 256 nats at most, doubled: it is a difference.
OF_SUMS = 2 * 0.1 * 3e-5
# One line a trainer. FLOW's weights are exactly 1 at an infinite temperature, and exp(-x / 1e30) is 1 in float64.
TRAINERS = [
    Method("weighted_sft", WeightedSFTTrainer, WeightedSFTConfig),
    # Of a stream's rows, which it cannot score before it trains on them, it looks at a sample.
    Method("flow", FlowSFTTrainer, FlowSFTConfig, plain_rows, {"tau": "1e30"}),
    Method(
        "flow_tokens",
        FlowSFTTrainer,
        FlowSFTConfig,
        sourced_rows,
        {"tau": "1e30"},
        plain=sourced_rows,
        settings={"flow_level": "token", "flow_floor": 0.2, "flow_anneal": 0.5, "source_column": "source"},
        variants=("plain", "packed"),
    ),
    Method(
        "context_free", ContextFreeSFTTrainer, ContextFreeSFTConfig, neutral={"kl_weight": 0.0}, arguments=with_store
    ),
    Method(
        "context_free_exact", ContextFreeSFTTrainer, ContextFreeSFTConfig, neutral={"kl_weight": 0.0},
        arguments=with_store, settings={"kl": "exact"}, variants=("plain", "lora"),
    ),
    Method(
        "context_free_topk", ContextFreeSFTTrainer, ContextFreeSFTConfig, neutral={"kl_weight": 0.0},
        arguments=with_store, settings={"kl": "topk", "kl_top_k": 8}, variants=("plain",),
    ),
    Method(
        "context_free_budget", ContextFreeSFTTrainer, ContextFreeSFTConfig, neutral=None, arguments=with_store,
        settings={"kl": "exact", "kl_budget": 0.05}, variants=("plain",),
    ),
    Method(
        "context_free_top_up", ContextFreeSFTTrainer, ContextFreeSFTConfig, neutral={"kl_weight": 0.0},
        arguments=with_small_store, settings={"context_free_top_up": True}, variants=("plain",),
    ),
    Method(
        "infopo", InfoPOTrainer, InfoPOConfig, weighted_pairs, {"loss_type": "sigmoid"}, with_reference,
        (DPOTrainer, DPOConfig), preference.pairs, malformed(chosen=[None, ""], rejected=[None, ""], prompt=[None]),
        packs=False, settings={"max_grad_norm": 0.3}, rounding=OF_SUMS, variants=("plain", "streaming", "lora"),
    ),
    Method(
        "infopo_unpaired", InfoPOUnpairedTrainer, InfoPOUnpairedConfig, weighted_singles, None, with_reference,
        (KTOTrainer, KTOConfig), preference.singles, malformed(completion=[None, ""], prompt=[None], label=[None]),
        packs=False, settings={"max_grad_norm": 0.3}, rounding=OF_SUMS, variants=("plain", "workers"),
    ),
]  # fmt: skip

# What users add to a trainer of theirs: the lines of the suite on steps, kills and gradients (`callbacks=`).
CALLBACKS = [
    Method(
        "penalty", WeightedSFTTrainer, WeightedSFTConfig, neutral=None, arguments=with_penalty, variants=("plain",)
    ),
]


@dataclass(frozen=True)
class Retriever:
    """
    A trainer of encoders: the lines of the suite that do not speak of next tokens (`test_retrievers.py`).

    Its loss compares the rows of a batch with each other, so that a batch of 4 is by design not two of 2; it is what
    two processes make of 2 rows each, and what mini-batches of any size make of it.

    Args:
        name (`str`): the method's word.
        trainer (`type`), config (`type`): its classes.
        parent (`type`): the trainer it equals while no query is shown exemplars.
        variants (`tuple`): as for [`Method`].
    """

    name: str
    trainer: Any
    config: Any
    parent: Any
    variants: tuple[str, ...] = ("plain", "workers", "lora")

    def rows(self, n: int) -> Dataset:
        """Pairs of query and document."""
        return retrieval.pairs(n, seed=11)

    def model(self, dropout: float = 0.0) -> Any:
        """A fresh tiny encoder."""
        return retrieval.encoder(dropout=dropout)

    def adapter(self, dropout: float = 0.0) -> LoraConfig:
        """An adapter for it."""
        return LoraConfig(r=4, target_modules=["query", "value"], lora_dropout=dropout, task_type="FEATURE_EXTRACTION")

    def build(self, folder: Path, rows: Dataset | int = 32, *, model: Any = None, **changes: Any) -> Any:
        """A trainer on `rows` (or that many of its own); `changes` are to the config."""
        dataset = self.rows(rows) if isinstance(rows, int) else rows
        kwargs = changes.pop("kwargs", {})
        args = retrieval.config(folder / "out", self.config, **changes)
        return self.trainer(model or self.model(), args, train_dataset=dataset, **kwargs)


RETRIEVERS = [Retriever("rare", RareTrainer, RareConfig, SentenceTransformerTrainer)]


@dataclass(frozen=True)
class Classifier:
    """
    A trainer of classifiers: the lines of the suite that do not speak of next tokens (`test_classifiers.py`).

    Args:
        name (`str`): the method's word.
        trainer (`type`), config (`type`): its classes.
        parent (`type`): the trainer it equals, given the same loss.
        variants (`tuple`): as for [`Method`].
        channel (`RRChannel`): of the labels, for its loss; `None`: it knows none.
    """

    name: str
    trainer: Any
    config: Any
    parent: Any
    variants: tuple[str, ...] = ("plain", "workers", "lora")
    channel: Any = None

    def rows(self, n: int) -> Dataset:
        """Rows with noisy labels of three classes."""
        return classifiers.labelled_rows(n, 0.3, seed=11)

    def model(self, dropout: float = 0.0) -> Any:
        """A fresh tiny classifier."""
        return classifiers.tiny_bert(hidden_dropout_prob=dropout)

    def adapter(self, dropout: float = 0.0) -> LoraConfig:
        """An adapter for it."""
        return LoraConfig(r=4, target_modules=["query", "value"], lora_dropout=dropout, task_type="SEQ_CLS")

    def build(self, folder: Path, rows: Dataset | int = 32, *, model: Any = None, **changes: Any) -> Any:
        """A trainer on `rows` (or that many of its own); `changes` are to the config."""
        dataset = self.rows(rows) if isinstance(rows, int) else rows
        kwargs = ({"channel": self.channel} if self.channel else {}) | changes.pop("kwargs", {})
        model = model or self.model()
        if "peft_config" in kwargs:
            model = get_peft_model(model, kwargs.pop("peft_config"))
        fields = {"per_device_train_batch_size": 4, "max_steps": 4, "learning_rate": 0.1, "logging_steps": 1}
        args = classifiers.classifier_config(self.config, folder / "out", **(fields | {"optim": "sgd"} | changes))
        return self.trainer(model, args, train_dataset=dataset, **kwargs)


CLASSIFIERS = [
    Classifier("consensus", ForwardCorrectedTrainer, ConsensusConfig, Trainer, channel=classifiers.CHANNEL),
    Classifier("weighted_classification", WeightedTrainer, WeightedConfig, Trainer, ("plain", "lora")),
]


@dataclass(frozen=True)
class Pretrainer:
    """
    A trainer on packed sequences: the lines of the suite that do not speak of rows of text (`test_pretrainers.py`).

    Args:
        name (`str`): the method's word.
        trainer (`type`), config (`type`): its classes.
        parent (`type`): the trainer it equals without a z-loss.
        variants (`tuple`): as for [`Method`].
    """

    name: str
    trainer: Any
    config: Any
    parent: Any
    variants: tuple[str, ...] = ("plain",)

    def rows(self, n: int) -> Dataset:
        """Sequences of 33 tokens."""
        return pretraining.sequences(n)

    def model(self, dropout: float = 0.0) -> Any:
        """A fresh tiny model."""
        return new_model(pretraining.TINY | {"attention_dropout": dropout}, TOKENIZER, seed=0)

    def adapter(self, dropout: float = 0.0) -> LoraConfig:
        """An adapter for it."""
        return LoraConfig(r=4, target_modules=["q_proj", "v_proj"], lora_dropout=dropout, task_type="CAUSAL_LM")

    def build(self, folder: Path, rows: Any = 32, *, model: Any = None, **changes: Any) -> Any:
        """A trainer on `rows` (or that many of its own); `changes` are to the config."""
        dataset = self.rows(rows) if isinstance(rows, int) else rows
        kwargs = changes.pop("kwargs", {})
        model = model or self.model()
        if "peft_config" in kwargs:
            model = get_peft_model(model, kwargs.pop("peft_config"))
        # Another schedule than its own is the host's.
        ends = {} if changes.get("lr_scheduler_type", "cosine") == "cosine" else {"cooldown_learning_rate": None}
        args = pretraining.config(folder / "out", **(ends | changes))
        return self.trainer(model, args, train_dataset=dataset, processing_class=TOKENIZER, **kwargs)


PRETRAINERS = [Pretrainer("pretraining", PretrainingTrainer, PretrainingConfig, Trainer)]


@dataclass(frozen=True)
class Mixture:
    """
    A trainer whose optimiser is a fit over all rows, without a gradient (`test_mixtures.py`).

    Args:
        name (`str`): the method's word.
        trainer (`type`), config (`type`): its classes.
    """

    name: str
    trainer: Any
    config: Any

    def rows(self, n: int) -> Dataset:
        """Rows with features, classes and weights."""
        return mixtures.feature_rows(n)

    def model(self, dropout: float = 0.0) -> Any:
        """No encoder: the rows have features."""
        return None

    def build(self, folder: Path, rows: Dataset | int = 32, *, model: Any = None, **changes: Any) -> Any:
        """A trainer on `rows` (or that many of its own); `changes` are to the config."""
        dataset = self.rows(rows) if isinstance(rows, int) else rows
        if "linear" in changes:  # a job of another process can name no rows
            dataset = mixtures.feature_rows(changes.pop("linear"), "linear")
        kwargs = changes.pop("kwargs", {})
        args = mixtures.mixture_config(folder / "out", **changes)
        return self.trainer(model, args, train_dataset=dataset, **kwargs)


MIXTURES = [Mixture("moe_em", MoEEMTrainer, MoEEMConfig)]
BY_NAME: dict[str, Any] = {
    method.name: method for method in (*TRAINERS, *CALLBACKS, *RETRIEVERS, *CLASSIFIERS, *PRETRAINERS, *MIXTURES)
}
# What a mixture has none of: a gradient of its own, and a model that the caller makes.
WITH_GRADIENT = {name: method for name, method in BY_NAME.items() if method not in MIXTURES}
# Methods that run trainings of another one's trainer, or put a sampler before it: that one's lines are theirs. What
# the sampler adds stands in `tests/trainers/mixture`.
RUNS_OF = {"moe_lora": "weighted_sft", "mixture": "weighted_sft"}
