"""
FLOW on pictures: what fine-tuning on new classes keeps of the old ones.

A small ResNet (78,000 parameters, 28 x 28 grey) learns five classes of Fashion-MNIST, then is fine-tuned on the other
five; which five, a seed decides. Every arm is trained by `WeightedTrainer` with SGD and a cosine schedule:

    probe            the head alone, on frozen features
    sft              everything, from a new head: standard fine-tuning
    sft_low_rate     the same at a tenth of the rate
    sft_from_probe   everything, from the probe: what FLOW does, with equal weights
    flow             weights exp(-loss / median) under the probe, then everything, then the head again
    flow_ess         the same at the temperature that leaves an effective sample of 0.8
    l2_sp            `sft_from_probe` with 0.01 of the squared distance to the pre-trained weights
    wise_sft, wise_flow   half of the way from the pre-trained backbone (the probe) to `sft_from_probe` and `flow`

As in the paper, accuracy on the old classes is that of the tuned backbone with the original head and the original
normalisation; accuracy on the new ones is that of the model as it is. `hard` is accuracy on the tenth of the new
classes' test rows that the probe finds hardest.

Last line, one JSON object:
  benchmark, seeds
  old_start             accuracy on the old classes before fine-tuning, in per cent, mean of the seeds
  old_ARM, new_ARM      accuracy on the old and the new classes after it
  mean_ARM              mean of the two: the paper's order is sft < l2_sp < wise_sft < probe < flow
  hard_sft_from_probe, hard_flow    accuracy on the hardest tenth
  order_kept            how many of the paper's four steps of that order hold in the mean of the seeds
  flow_over_sft, flow_over_sft_from_probe, wise_flow_over_wise_sft    differences of `mean` in points
  flow_over_sft_low     the least of the first over the seeds

    python benchmarks/flow_vision.py            # about 10 minutes on 2 cores
    python benchmarks/flow_vision.py --quick    # seconds, few pictures, not the claim
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from common import data_folder, finish, parser, piece
from datasets import Array3D, ClassLabel, Dataset, Features, load_dataset
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PrinterCallback, ResNetConfig, ResNetForImageClassification, set_seed
from transformers.utils.logging import disable_progress_bar

from hf_ext import WeightedConfig, WeightedTrainer, add_flow_weights, add_original_class_losses

SEEDS = (0, 1, 2)
TRAINED = ("probe", "sft", "sft_low_rate", "sft_from_probe", "flow", "flow_ess", "l2_sp")
AVERAGED = {"wise_sft": "sft_from_probe", "wise_flow": "flow"}
ORDER = ("sft", "l2_sp", "wise_sft", "probe", "flow")  # of the paper's Figure 1, by the mean of the two accuracies
L2 = 0.01


@dataclass(frozen=True)
class Sizes:
    """How much is trained: the real sizes, or those of a quick run."""

    old_rows: int = 10_000
    new_rows: int = 4_000
    test_rows: int = 2_000
    pretraining_epochs: int = 5
    epochs: int = 8
    probe_epochs: int = 5
    rate: float = 0.05
    batch_size: int = 64


QUICK = Sizes(256, 128, 100, 1, 1, 1)


@dataclass(frozen=True)
class Halves:
    """Rows of the old and the new classes, numbered from 0 in each."""

    old_train: Dataset
    old_test: Dataset
    new_train: Dataset
    new_test: Dataset


class DistanceTrainer(WeightedTrainer):
    """Adds half of `L2` times the squared distance of the backbone from where it started."""

    start: dict[str, Tensor]

    def compute_loss(
        self, model: nn.Module, inputs: dict, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The loss and the penalty; a step has one micro-batch."""
        loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        values = dict(self.model.base_model.named_parameters())
        distance = torch.stack([(values[name] - start).square().sum() for name, start in self.start.items()]).sum()
        return loss + 0.5 * L2 * distance


def halves(seed: int, sizes: Sizes) -> Halves:
    """Both halves, as pixels from -1 to 1."""
    order = np.random.default_rng(seed).permutation(10)
    old, new = order[:5], order[5:]
    return Halves(
        pixels_of("train", old, sizes.old_rows, seed),
        pixels_of("test", old, sizes.test_rows, seed),
        pixels_of("train", new, sizes.new_rows, seed),
        pixels_of("test", new, sizes.test_rows, seed),
    )


def pixels_of(split: str, classes: np.ndarray, count: int, seed: int) -> Dataset:
    """The first rows, in an order of the seed, of these classes."""
    file = str(data_folder() / "fashion_mnist" / f"{split}.parquet")
    rows = load_dataset("parquet", data_files=file, split="train")
    labels = np.asarray(rows["label"])
    places = np.flatnonzero(np.isin(labels, classes))
    places = np.random.default_rng(seed).permutation(places)[:count]
    pictures = np.stack([np.asarray(picture, dtype=np.float32) for picture in rows.select(places)["image"]])
    numbers = {int(old): new for new, old in enumerate(classes)}
    columns = {
        "pixel_values": pictures[:, None] / 127.5 - 1,
        "label": [numbers[int(label)] for label in labels[places]],
    }
    names = [rows.features["label"].names[int(old)] for old in classes]
    features = Features({"pixel_values": Array3D((1, 28, 28), "float32"), "label": ClassLabel(names=names)})
    return Dataset.from_dict(columns, features=features).with_format("torch")


def new_model() -> ResNetForImageClassification:
    """A ResNet of three stages of one block."""
    return ResNetForImageClassification(
        ResNetConfig(
            num_channels=1, embedding_size=16, hidden_sizes=[16, 32, 64], depths=[1, 1, 1], layer_type="basic",
            num_labels=5,
        )
    )  # fmt: skip


def fit(
    model: nn.Module, rows: Dataset, folder: Path, sizes: Sizes, kind: type[WeightedTrainer] = WeightedTrainer,
    **changes: Any,
) -> nn.Module:  # fmt: skip
    """Train `model` in place."""
    args = WeightedConfig(
        output_dir=str(folder), use_cpu=True, bf16=False, report_to="none", disable_tqdm=True, save_strategy="no",
        logging_strategy="no", per_device_train_batch_size=sizes.batch_size, optim="sgd", optim_args="momentum=0.9",
        learning_rate=changes.pop("rate", sizes.rate), weight_decay=5e-4, lr_scheduler_type="cosine",
        normalize="rows", dataloader_pin_memory=False, **changes,
    )  # fmt: skip
    trainer = kind(model, args, train_dataset=rows)
    if isinstance(trainer, DistanceTrainer):
        trainer.start = {name: value.detach().clone() for name, value in model.base_model.named_parameters()}
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return model.eval()


def with_new_head(model: nn.Module) -> nn.Module:
    """The backbone under a head that knows nothing."""
    fresh = new_model()
    fresh.base_model.load_state_dict(model.base_model.state_dict())
    return fresh


def tuned(arm: str, start: nn.Module, probe: nn.Module, rows: Dataset, folder: Path, sizes: Sizes) -> nn.Module:
    """The model of one arm."""
    settings = {"num_train_epochs": sizes.epochs}
    if arm == "sft":
        return fit(with_new_head(start), rows, folder, sizes, **settings)
    if arm == "sft_low_rate":
        return fit(with_new_head(start), rows, folder, sizes, rate=sizes.rate / 10, **settings)
    model = copy.deepcopy(probe)
    if arm == "sft_from_probe":
        return fit(model, rows, folder, sizes, **settings)
    if arm == "l2_sp":
        return fit(model, rows, folder, sizes, DistanceTrainer, **settings)
    tau = "median" if arm == "flow" else "ess:0.8"
    scored = add_original_class_losses(rows, probe, show_progress=False)
    weight = np.asarray(add_flow_weights(scored, tau)["weight"], dtype=np.float64)  # of mean 1
    weighted = rows.add_column("weight", weight).with_format("torch")
    fit(model, weighted, folder, sizes, **settings)
    return fit(model, rows, folder, sizes, head_only=True, num_train_epochs=sizes.probe_epochs)


def half_way(start: nn.Module, end: nn.Module) -> nn.Module:
    """WiSE-FT at 0.5: the mean of two models, statistics too."""
    model = copy.deepcopy(end)
    first = start.state_dict()
    values = {
        name: (first[name] + value) / 2 if value.is_floating_point() else value
        for name, value in end.state_dict().items()
    }
    model.load_state_dict(values)
    return model.eval()


@torch.no_grad()
def is_right(model: nn.Module, rows: Dataset) -> Tensor:
    """Which rows are classified right, `(rows,)`."""
    batches = [model(pixel_values=part["pixel_values"]).logits.argmax(-1) for part in rows.iter(batch_size=500)]
    return torch.cat(batches) == torch.as_tensor(rows["label"][:])


def as_before(start: nn.Module, model: nn.Module) -> nn.Module:
    """The tuned backbone with the original head and the original normalisation layers."""
    swapped = copy.deepcopy(start)
    values = model.base_model.state_dict()
    convolutions = {name: value for name, value in values.items() if "normalization" not in name}
    swapped.base_model.load_state_dict(convolutions, strict=False)
    return swapped.eval()


def measured(start: nn.Module, probe: nn.Module, model: nn.Module, rows: Halves) -> dict[str, Any]:
    """Accuracies in per cent."""
    losses = np.asarray(add_original_class_losses(rows.new_test, probe, show_progress=False)["original_nll_sum"])
    hardest = np.argsort(-losses, kind="stable")[: len(losses) // 10]
    right = is_right(model, rows.new_test)
    old = is_right(as_before(start, model), rows.old_test).float().mean()
    return {
        "old": round(100 * float(old), 3),
        "new": round(100 * float(right.float().mean()), 3),
        "hard": round(100 * float(right[torch.as_tensor(hardest)].float().mean()), 3),
    }


class Run:
    """One seed: models that are made are kept in the work folder, results as pieces."""

    def __init__(self, options: Any, seed: int, sizes: Sizes) -> None:
        self.options = options
        self.seed = seed
        self.sizes = sizes
        self.folder = options.work / ("models-quick" if options.quick else "models") / str(seed)
        self.rows = halves(seed, sizes)

    def model(self, name: str, make: Callable[[], nn.Module]) -> nn.Module:
        """The model `name`, made once; its random numbers are its own."""
        place = self.folder / name

        def compute() -> dict[str, Any]:
            set_seed(1000 * self.seed + (["start", *TRAINED].index(name)))
            make().save_pretrained(place)
            return {"saved": True}

        piece(self.options.work, f"model-{self.seed}-{name}", self.facts(name), compute)
        return ResNetForImageClassification.from_pretrained(place).eval()

    def facts(self, name: str) -> dict[str, Any]:
        """What a piece depends on."""
        return {"seed": self.seed, "arm": name, **vars(self.sizes)}

    def results(self, bar: tqdm) -> list[dict[str, Any]]:
        """A row of results for each arm."""
        sizes = self.sizes
        start = self.model(
            "start",
            lambda: fit(
                new_model(), self.rows.old_train, self.folder / "run", sizes, num_train_epochs=sizes.pretraining_epochs
            ),
        )
        before = 100 * float(is_right(start, self.rows.old_test).float().mean())
        models = {}
        for arm in TRAINED:
            if arm == "probe":
                epochs = {"num_train_epochs": sizes.probe_epochs, "head_only": True}
                make = lambda: fit(with_new_head(start), self.rows.new_train, self.folder / "run", sizes, **epochs)  # noqa: E731, B023
            else:
                make = lambda: tuned(arm, start, models["probe"], self.rows.new_train, self.folder / "run", sizes)  # noqa: E731, B023
            models[arm] = self.model(arm, make)
            bar.update()
        for arm, end in AVERAGED.items():
            models[arm] = half_way(models["probe"], models[end])
        rows = []
        for arm, model in models.items():
            accuracies = measured(start, models["probe"], model, self.rows)
            rows.append({"seed": self.seed, "arm": arm, "old_start": round(before, 3), **accuracies})
        return rows


def headline_of(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The headline from the rows."""
    seeds = sorted({row["seed"] for row in rows})
    arms = list(dict.fromkeys(row["arm"] for row in rows))

    def column(arm: str, key: str) -> list[float]:
        of_arm = {row["seed"]: row for row in rows if row["arm"] == arm}
        return [(of_arm[s]["old"] + of_arm[s]["new"]) / 2 if key == "mean" else of_arm[s][key] for s in seeds]

    means = {arm: mean(column(arm, "mean")) for arm in arms}
    gaps = [flow - sft for flow, sft in zip(column("flow", "mean"), column("sft", "mean"), strict=True)]
    headline: dict[str, Any] = {"benchmark": "flow_vision", "seeds": len(seeds)}
    headline["old_start"] = round(mean(column("sft", "old_start")), 2)
    for key in ("old", "new", "mean"):
        headline |= {f"{key}_{arm}": round(mean(column(arm, key)), 2) for arm in arms}
    for arm in ("sft_from_probe", "flow"):
        headline[f"hard_{arm}"] = round(mean(column(arm, "hard")), 2)
    headline["order_kept"] = sum(means[a] < means[b] for a, b in pairwise(ORDER))
    headline["flow_over_sft"] = round(means["flow"] - means["sft"], 2)
    headline["flow_over_sft_low"] = round(min(gaps), 2)
    headline["flow_over_sft_from_probe"] = round(means["flow"] - means["sft_from_probe"], 2)
    headline["wise_flow_over_wise_sft"] = round(means["wise_flow"] - means["wise_sft"], 2)
    return headline


def main() -> None:
    """Train what is missing, measure, print the headline."""
    options = parser(__doc__ or "", "flow_vision").parse_args()
    disable_progress_bar()
    sizes = QUICK if options.quick else Sizes()
    seeds = SEEDS[:1] if options.quick else SEEDS
    rows = []
    with tqdm(total=len(seeds) * len(TRAINED), desc="Models", unit="model") as bar:
        for seed in seeds:
            rows += Run(options, seed, sizes).results(bar)
    finish(options, {"rows": rows, "sizes": vars(sizes)}, headline_of(rows))


if __name__ == "__main__":
    main()
