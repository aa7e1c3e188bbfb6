"""What a grid may say, and the sentence for what it may not: before anything is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from hf_ext.comparison.grid import Grid
from hf_ext.comparison.methods import METHODS
from hf_ext.comparison.training import configuration

SAMPLES = {"num_tokens": 100}
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def test_a_grid_is_read_with_its_settings_given_to_the_parts_that_take_them(tmp_path: Path) -> None:
    (tmp_path / "grid.yaml").write_text(
        "train: {dataset: rows.jsonl, max_rows: 5}\n"
        "context_free: {num_tokens: 100, seed: 3}\n"
        "seeds: [4, 5]\n"
        "settings: {learning_rate: 1e-4, max_steps: 7}\n"
        "runs:\n"
        "  SFT:\n"
        "  half: {learning_rate: 5e-5}\n"
        "  both: {method: [context_free, flow], tau: 'ess:0.8', kl_weight: 0.25, normalize: tokens}\n"
        "  between: {method: wise_ft, of: SFT, alpha: [0.25, 0.5]}\n"
    )
    grid = Grid.from_yaml(tmp_path / "grid.yaml")
    assert [run.name for run in grid.runs] == ["SFT", "half", "both", "between 0.25", "between 0.5"]
    assert (grid.seeds, grid.train.max_rows, grid.context_free.seed) == ([4, 5], 5, 3)
    sft, half, both, quarter, _ = grid.runs
    assert (sft.parts, sft.settings) == (("sft",), {"training": {"learning_rate": 1e-4, "max_steps": 7}, "sft": {}})
    assert half.settings["training"] == {"learning_rate": 5e-5, "max_steps": 7}
    assert both.parts == ("flow", "context_free")
    assert both.settings["flow"] == {"tau": "ess:0.8"}
    assert both.settings["context_free"] == {"kl_weight": 0.25}
    assert both.settings["training"] == {"learning_rate": 1e-4, "max_steps": 7, "normalize": "tokens"}
    assert (quarter.source, quarter.settings["wise_ft"]["alpha"]) == ("SFT", 0.25)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_example_is_a_grid_that_uses_every_method(path: Path, tmp_path: Path) -> None:
    grid = Grid.from_yaml(path)
    assert {part for run in grid.runs for part in run.parts} == set(METHODS) - {"weighted_sft"}  # needs a column
    for run in grid.runs:
        if run.source is None:
            assert configuration(run, 0, tmp_path).learning_rate > 0


def _refusal(runs: Any, **grid: Any) -> str:
    with pytest.raises(ValueError) as error:  # noqa: PT011  the sentence is what is tested
        Grid.from_dict({"runs": runs, **grid})
    return str(error.value)


@pytest.mark.parametrize(
    ("run", "words"),
    [
        ({"method": "flw"}, ["run 'A'", "no method 'flw'", "did you mean 'flow'", "context_free", "wise_ft"]),
        ({"method": ["lora", "osf"]}, ["one adapter", "lora, osf"]),
        ({"method": ["dft", "flow"]}, ["dft does not go with flow"]),
        ({"method": ["weighted_sft", "flow"]}, ["weighted_sft does not go with flow", "weights of the rows"]),
        ({"method": ["ewc", "lora"]}, ["ewc does not go with lora", "an adapter is trained"]),
        ({"method": ["corda", "context_free"]}, ["corda does not go with context_free"]),
        ({"method": ["flow", "flow"]}, ["names one twice"]),
        ({"method": ["wise_ft", "flow"], "of": "A", "alpha": 0.5}, ["give it alone"]),
        ({"method": 3}, ["no method 3"]),
        ({"learning_rat": 1.0}, ["no setting 'learning_rat'", "did you mean 'learning_rate'", "SFTConfig"]),
        ({"method": "replay", "share": 0.5}, ["no setting 'share'", "replay takes replay_share"]),
        ({"kl_weight": 0.5}, ["'kl_weight' is a setting of context_free", "the method is sft"]),
        ({"seed": 1}, ["'seed' is set by the comparison", "seeds:"]),
        ({"output_dir": "x"}, ["'output_dir' is set by the comparison"]),
        ({"save_steps": 5}, ["'save_steps' is set by the comparison"]),
        ({"method": "l2_sp"}, ["l2_sp needs 'l2_sp_weight'"]),
        ({"method": "l2_sp", "l2_sp_weight": -1}, ["l2_sp_weight must be", "-1"]),
        ({"method": "ewc", "ewc_weight": float("nan")}, ["ewc_weight must be"]),
        ({"method": "replay", "replay_share": 1}, ["replay_share must be a number above 0 and below 1"]),
        ({"method": "wise_ft", "of": "A"}, ["wise_ft needs 'alpha'"]),
        ({"method": "wise_ft", "of": "B", "alpha": 0.5}, ["'of' names 'B'", "there is none"]),
        ({"method": "wise_ft", "of": "A", "alpha": [0.5, 2]}, ["alpha must be a number from 0 to 1"]),
        ({"method": "wise_ft", "of": "A", "alpha": 0.5, "max_steps": 3}, ["no setting 'max_steps'"]),
        ([1], ["expected a mapping"]),
    ],
)  # fmt: skip
def test_a_run_that_cannot_be_is_named_with_the_choices(run: Any, words: list[str]) -> None:
    message = _refusal({"A": run}, context_free=SAMPLES)
    assert all(word in message for word in words), message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("grid", "words"),
    [
        ({"runs": {}}, ["runs must be a mapping"]),
        ({"runs": {"A": {}}, "arms": {}}, ["no key 'arms'", "runs"]),
        ({"runs": {"A": {}}, "seeds": []}, ["seeds must be a list"]),
        ({"runs": {"A": {}}, "seeds": [1, 1]}, ["seeds must be a list of different"]),
        ({"runs": {"A": {}}, "seeds": [-1]}, ["seeds must be", "-1"]),
        ({"runs": {"A": {"method": "context_free"}}}, ["run 'A' trains on context-free rows", "num_tokens"]),
        ({"runs": {"A": {}}, "context_free": {}}, ["context_free needs 'num_tokens'"]),
        ({"runs": {"A": {}}, "context_free": {"num_tokens": 0}}, ["context_free: num_tokens must be"]),
        ({"runs": {"A": {}}, "context_free": {"num_tokens": 5, "temperature": 1}}, ["no key 'temperature'"]),
        ({"runs": {"A": {}}, "train": {"dataset": 3}}, ["train: dataset must be a text"]),
        ({"runs": {"A": {}}, "train": {"split": "x"}}, ["train needs 'dataset'"]),
        ({"runs": {"A": {}}, "settings": [1]}, ["settings must be a mapping"]),
        ([1], ["a grid must be a mapping"]),
        (
            {"runs": {"A 0.5": {}, "A": {"method": "wise_ft", "of": "A 0.5", "alpha": [0.5]}}},
            ["two runs 'A 0.5'"],
        ),
    ],
)
def test_a_grid_that_cannot_be_is_one_sentence(tmp_path: Path, grid: Any, words: list[str]) -> None:
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(grid))
    with pytest.raises(ValueError) as error:  # noqa: PT011
        Grid.from_yaml(tmp_path / "grid.yaml")
    assert all(word in str(error.value) for word in [*words, "grid.yaml"])


def test_what_the_host_refuses_names_the_run(tmp_path: Path) -> None:
    grid = Grid.from_dict({"runs": {"A": {"learning_rate": -1.0}, "B": {"lr_scheduler_type": "zigzag"}}})
    for run in grid.runs:
        with pytest.raises(ValueError, match=f"run '{run.name}':.*"):
            configuration(run, 0, tmp_path)
