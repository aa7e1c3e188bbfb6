"""Rows and datasets from which nothing can be learned: what the trainers make of each, by running them."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from hf_ext import (
    FlowSFTConfig,
    FlowSFTTrainer,
    InfoPOConfig,
    InfoPOTrainer,
    InfoPOUnpairedConfig,
    InfoPOUnpairedTrainer,
    WeightedSFTConfig,
    WeightedSFTTrainer,
)
from tests.tiny import tiny_model
from tests.trainers.runs import TOKENIZER, build, config_of

SENTENCE = "Ada counts 7 apples at home."
LONG = "Tell me about row 0. " * 10


def turns(*weights: float) -> dict[str, list[Any]]:
    return {"prompt": ["Why? "] * len(weights), "completion": [SENTENCE] * len(weights), "weight": list(weights)}


def answers(*labels: bool) -> dict[str, list[Any]]:
    return {"prompt": ["Why? "] * len(labels), "completion": [SENTENCE] * len(labels), "label": list(labels)}


KINDS = {
    "weighted_sft": (WeightedSFTTrainer, WeightedSFTConfig),
    "flow": (FlowSFTTrainer, FlowSFTConfig),
    "infopo": (InfoPOTrainer, InfoPOConfig),
    "infopo_unpaired": (InfoPOUnpairedTrainer, InfoPOUnpairedConfig),
}


@dataclass(frozen=True)
class Defect:
    """A dataset with a defect, and the words for what a run makes of it if it is no error."""

    name: str
    rows: dict[str, list[Any]]
    meaning: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    method: str = "weighted_sft"
    moves: bool = True  # whether training changes the model

    def outcome(self) -> str:
        """The first line of the error, or `meaning` where the run ends with a finite model that moved or did not."""
        with tempfile.TemporaryDirectory() as folder:
            try:
                before, after = self._train(Path(folder))
            except (ValueError, FloatingPointError) as error:
                text = str(error).split("\n")[0].replace(folder, "output_dir")
                return f"{type(error).__name__}: {text}"
        assert all(bool(torch.isfinite(value).all()) for value in after.values()), self.name
        moved = any(not torch.equal(before[name], after[name]) for name in before)
        assert moved == self.moves, self.name
        return f"trains: {self.meaning}"

    def _train(self, folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        kinds = KINDS[self.method]
        settings = {"max_steps": 1, "per_device_train_batch_size": 2, **self.settings}
        model = tiny_model(TOKENIZER)
        reference = {"ref_model": tiny_model(TOKENIZER)} if self.method.startswith("infopo") else {}
        before = {name: value.clone() for name, value in model.state_dict().items()}
        args = config_of(kinds[1], folder, **settings)
        trainer = build(kinds[0], args, Dataset.from_dict(self.rows), model=model, **reference)
        trainer.train()
        return before, trainer.model.state_dict()


NO_TARGET = {"prompt": [LONG, "Why? "], "completion": [SENTENCE] * 2}
SHORT = {"max_length": 8}
PAIRS = {"prompt": ["Why? "] * 2, "chosen": [SENTENCE] * 2, "rejected": ["Ben."] * 2}

DEFECTS = [
    Defect("no row at all", {"text": []}),
    Defect("one row without a supervised token after truncation", NO_TARGET, settings=SHORT),
    Defect(
        "the same with on_bad_row=drop",
        NO_TARGET,
        "on the other rows; the row is in `bad_rows.jsonl`",
        {**SHORT, "on_bad_row": "drop"},
    ),
    Defect(
        "every row without a supervised token, on_bad_row=drop",
        {"prompt": [LONG] * 2, "completion": [SENTENCE] * 2},
        settings={**SHORT, "on_bad_row": "drop"},
    ),
    Defect("every weight 0", turns(0.0, 0.0)),
    Defect("every weight too small for float32", turns(1e-46, 1e-300)),
    Defect("a row of weight 0", turns(0.0, 1.0), "the row is read and teaches nothing"),
    Defect(
        "a whole step of weight 0, other steps not",
        turns(0.0, 0.0, 1.0, 1.0),
        "that step's loss is 0 and moves nothing",
        {"train_sampling_strategy": "sequential"},
        moves=False,
    ),
    Defect("a negative weight", turns(1.0, -1.0)),
    Defect("an infinite weight", turns(1.0, float("inf"))),
    Defect("a weight that is no number", turns(1.0, float("nan"))),
    Defect(
        "FLOW: every row as easy as every other",
        {"text": [SENTENCE] * 4},
        "all weights are equal, as in plain SFT, and a warning says so",
        method="flow",
    ),
    Defect(
        "FLOW: a tau so small that the easiest row alone has a weight",
        {"text": [SENTENCE, SENTENCE + " And 8 pears."]},
        settings={"tau": "1e-9"},
        method="flow",
    ),
    Defect("FLOW: rows that bring their own weight", turns(1.0, 0.5), method="flow"),
    Defect(
        "InfoPO: a pair without a completion token after truncation",
        PAIRS | {"prompt": [LONG, "Why? "]},
        "on the other pairs, and a warning says how many are lost",
        {"max_length": 32},
        method="infopo",
    ),
    Defect("InfoPO: no pair with a completion token", PAIRS | {"prompt": [LONG] * 2}, settings=SHORT, method="infopo"),
    Defect("InfoPO: every pair has one response twice", PAIRS | {"rejected": [SENTENCE] * 2}, method="infopo"),
    Defect(
        "InfoPO: the same with on_bad_row=drop",
        PAIRS | {"rejected": [SENTENCE] * 2},
        settings={"on_bad_row": "drop"},
        method="infopo",
    ),
    Defect(
        "InfoPO: a pair whose responses differ beyond max_length only",
        PAIRS | {"chosen": [LONG + "Yes.", SENTENCE], "rejected": [LONG + "No.", "No."]},
        "on the other pairs, and a warning says how many are the same",
        {"max_length": 32},
        method="infopo",
    ),
    Defect(
        "InfoPO: no pair whose responses differ within max_length",
        PAIRS | {"chosen": [LONG + "Yes."] * 2, "rejected": [LONG + "No."] * 2},
        settings={"max_length": 32},
        method="infopo",
    ),
    Defect("InfoPO: every weight 0", PAIRS | {"weight": [0.0, 0.0]}, method="infopo"),
    Defect("InfoPO: every weight too small for float32", PAIRS | {"weight": [1e-46, 1e-300]}, method="infopo"),
    Defect("InfoPO without pairs: every response is good", answers(True, True), method="infopo_unpaired"),
    Defect("InfoPO without pairs: every response is bad", answers(False, False), method="infopo_unpaired"),
]
