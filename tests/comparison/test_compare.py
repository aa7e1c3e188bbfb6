"""A comparison against training and measuring by hand; nothing done twice; damage is named; the report."""

from __future__ import annotations

import errno
import json
import os
import random
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from trl import SFTConfig, SFTTrainer

from hf_ext.comparison import compare
from hf_ext.comparison.compare import compare_forgetting
from hf_ext.comparison.grid import Grid
from hf_ext.comparison.report import ComparedRun, ComparisonReport, pareto_front
from hf_ext.data.context_free import ContextFreeStore, generate_context_free
from hf_ext.evaluation.forgetting import forgetting_report
from hf_ext.evaluation.intervals import Estimate
from hf_ext.evaluation.report import RunResult
from hf_ext.evaluation.wise_ft import wise_ft
from hf_ext.guards.disk import DiskFullError
from hf_ext.guards.markdown import well_formed
from tests.evaluation.test_forgetting import TOKENIZER, _prepared
from tests.tiny import tiny_model, tiny_prompt_completion_dataset, tiny_text_dataset

SETTINGS: dict[str, Any] = {
    "max_steps": 2, "learning_rate": 1e-2, "per_device_train_batch_size": 4, "bf16": False, "use_cpu": True,
    "disable_tqdm": True,
}  # fmt: skip
ROWS = tiny_prompt_completion_dataset(16)
MEASURES: dict[str, Any] = {
    "target": _prepared(6), "context_free": _prepared(5, seed=5), "general_text": ["a lamp", "the boats by the river"],
    "groups": "hard", "show_progress": False,
}  # fmt: skip
RUNS: dict[str, Any] = {
    "SFT": {},
    "LoRA": {"method": "lora", "r": 2},
    "between": {"method": "wise_ft", "of": "SFT", "alpha": 0.5},
}


def _grid(runs: dict[str, Any] | None = None, seeds: tuple[int, ...] = (3,), **more: Any) -> Grid:
    return Grid.from_dict({"settings": SETTINGS, "runs": runs or RUNS, "seeds": list(seeds), **more})


def _compared(folder: Path, grid: Grid, rows: Any = ROWS, **changes: Any) -> ComparisonReport:
    return compare_forgetting(
        tiny_model(TOKENIZER), TOKENIZER, grid, rows, output_dir=folder, **{**MEASURES, **changes}
    )


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the runs that were trained, in order."""
    names: list[str] = []
    original = compare.trained_model

    def counted(run: Any, seed: int, materials: Any) -> Any:
        names.append(f"{run.name} {seed}")
        return original(run, seed, materials)

    monkeypatch.setattr(compare, "trained_model", counted)
    return names


def test_runs_are_what_the_stock_trainer_and_the_report_give(tmp_path: Path) -> None:
    report = _compared(tmp_path / "out", _grid())
    args = SFTConfig(str(tmp_path / "hand"), seed=3, save_strategy="no", report_to="none", **SETTINGS)
    trainer = SFTTrainer(tiny_model(TOKENIZER), args, train_dataset=ROWS, processing_class=TOKENIZER)
    trainer.train()
    original = tiny_model(TOKENIZER)
    models = {"SFT": trainer.model, "between": wise_ft(trainer.model, original, 0.5)}
    by_hand = forgetting_report(original, models, TOKENIZER, **MEASURES)
    assert report.original == by_hand.original
    for name in models:
        assert report.run(name).results == {3: by_hand.run(name)}
    assert report.run("SFT").facts[3]["steps"] == 2
    kl = report.run("LoRA").results[3].kl_original_to_new
    assert kl is not None
    assert kl.mean > 0
    assert report.run("LoRA").settings["lora"] == {"r": 2}
    assert ComparisonReport.from_dict(json.loads(json.dumps(report.to_dict()))) == report
    report.save(tmp_path / "out")
    assert ComparisonReport.load(tmp_path / "out") == report
    assert {path.suffix for path in (tmp_path / "out").glob("comparison.*")} == {".json", ".md", ".svg", ".png"}
    table = (tmp_path / "out" / "comparison.md").read_text()
    assert all(words in table for words in ("| between |", "target loss, hard=True", "Pareto front"))


def test_nothing_is_done_twice_whatever_changes_around_a_run(tmp_path: Path, trained: list[str]) -> None:
    first = _compared(tmp_path, _grid())
    assert trained == ["SFT 3", "LoRA 3"]
    assert _compared(tmp_path, _grid()) == first
    renamed = {"new": {"method": "lora", "r": 2}, "plain": {}, "half": {**RUNS["between"], "of": "plain"}}
    again = _compared(tmp_path, _grid(renamed))
    assert trained == ["SFT 3", "LoRA 3"]
    assert again.run("half").results[3].target_loss == first.run("between").results[3].target_loss
    _compared(tmp_path, _grid({**RUNS, "slow": {"learning_rate": 1e-3}}, seeds=(3, 4)))
    assert trained[2:] == ["slow 3", "SFT 4", "LoRA 4", "slow 4"]
    _compared(tmp_path, _grid({"SFT": {}}), rows=ROWS.select(range(12)))
    _compared(tmp_path, _grid({"SFT": {}}), target=_prepared(4))
    assert trained[6:] == ["SFT 3", "SFT 3"]
    # the model of a run that was not another's source is made when it becomes one
    _compared(tmp_path, _grid({**RUNS, "scaled": {"method": "wise_ft", "of": "LoRA", "alpha": 0.5}}))
    assert trained[8:] == ["LoRA 3"]


def _store(folder: Path, seed: int) -> ContextFreeStore:
    return generate_context_free(
        tiny_model(TOKENIZER), TOKENIZER, 60, output_dir=folder, max_new_tokens=8, seed=seed, show_progress=False
    )


def test_a_run_may_name_a_store_of_its_own_and_is_known_by_its_rows(tmp_path: Path, trained: list[str]) -> None:
    first = tmp_path / "first"
    _store(first, seed=1)
    runs = {"A": {"method": "context_free", "context_free_path": str(first)}}
    result = _compared(tmp_path / "out", _grid(runs)).run("A").results[3]
    (tmp_path / "elsewhere").mkdir()
    shutil.move(first, tmp_path / "elsewhere" / "first")
    runs = {"A": {"method": "context_free", "context_free_path": str(tmp_path / "elsewhere" / "first")}}
    assert _compared(tmp_path / "out", _grid(runs)).run("A").results[3] == result
    _store(tmp_path / "second", seed=2)
    runs["B"] = {"method": "context_free", "context_free_path": str(tmp_path / "second")}
    assert _compared(tmp_path / "out", _grid(runs)).run("B").results[3].kl_original_to_new != result.kl_original_to_new
    assert trained == ["A 3", "B 3"]
    samples = {"num_tokens": 60, "max_new_tokens": 8, "seed": 2}
    shared = _compared(tmp_path / "shared", _grid({"B": {"method": "context_free"}}, context_free=samples)).run("B")
    again = _compared(tmp_path / "out", _grid(runs)).run("B")
    assert again.results[3].target_loss == shared.results[3].target_loss  # the same rows, sampled by the grid
    with pytest.raises(ValueError, match=r"run 'A' trains on .*first, and the KL is to be measured on rows of"):
        _compared(tmp_path / "out", _grid(runs), context_free=_store(tmp_path / "fresh", seed=1))
    runs["C"] = {"method": "context_free", "context_free_path": str(tmp_path / "third")}
    with pytest.raises(ValueError, match=r"run 'C': context_free_path: .*third is no context-free store"):
        _compared(tmp_path / "out", _grid(runs))


def test_a_run_that_fails_leaves_those_before_it(tmp_path: Path, trained: list[str], monkeypatch: Any) -> None:
    measure = compare.ForgettingMeasures.of

    def stopped(self: Any, name: str, model: Any) -> RunResult:
        if name == "LoRA":
            raise KeyboardInterrupt
        return measure(self, name, model)

    monkeypatch.setattr(compare.ForgettingMeasures, "of", stopped)
    with pytest.raises(KeyboardInterrupt):
        _compared(tmp_path, _grid())
    monkeypatch.undo()
    report = _compared(tmp_path, _grid())
    assert trained == ["SFT 3", "LoRA 3"]  # by the counter of before: LoRA was stopped, and SFT is done
    assert [run.name for run in report.runs] == ["SFT", "LoRA", "between"]


def test_a_run_that_cannot_train_is_named_and_those_before_it_stay(tmp_path: Path, trained: list[str]) -> None:
    """Its rows are gone by length: nothing says so before it trains."""
    runs = {"SFT": {}, "cut": {"max_length": 1}, "LoRA": RUNS["LoRA"]}
    for _ in range(2):
        with pytest.raises(ValueError, match="run 'cut': "):
            _compared(tmp_path, _grid(runs))
    assert trained == ["SFT 3", "cut 3", "cut 3"]
    del runs["cut"]
    assert [run.name for run in _compared(tmp_path, _grid(runs)).runs] == ["SFT", "LoRA"]
    assert trained[3:] == ["LoRA 3"]


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("hf_ext.comparison.compare.trained_model", "what run 'SFT' prepares to train"),
        ("transformers.PreTrainedModel.save_pretrained", "the model of a run"),
        ("hf_ext.guards.runs.write_whole", "the record of a run"),
    ],
)
def test_a_full_disk_is_a_sentence_finished_runs_stay_and_with_room_it_goes_on(
    place: str, words: str, tmp_path: Path, trained: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _compared(tmp_path, _grid({"LoRA": RUNS["LoRA"]}))
    records = {path: path.read_bytes() for path in (tmp_path / "runs").iterdir()}

    def full(*args: Any, **kwargs: Any) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(place, full)
        with pytest.raises(DiskFullError, match=f"No room to write {words}.* (as done stays|runs stay)"):
            _compared(tmp_path, _grid())
    assert {path: path.read_bytes() for path in (tmp_path / "runs").iterdir()} == records
    assert not [path.name for path in tmp_path.rglob("*") if path.name.endswith(".tmp")]
    assert [run.name for run in _compared(tmp_path, _grid()).runs] == ["SFT", "LoRA", "between"]
    assert trained.count("LoRA 3") == 1


HOSTILE_NAMES = (
    *(
        "../../outside",
        "/etc/passwd",
        'a "quoted" `code` | <b>',
        "$\\frac{",
        "two\nlines",
        "Ünïcödé 名前 🙂",
        "half \ud83d",
    ),
    *("x" * 300, "_hidden", " ", "-1"),
)


def test_names_of_any_letters_stay_names(tmp_path: Path, trained: list[str]) -> None:
    """None becomes a path, markup or a formula; all come back as they were."""
    runs: dict[str, Any] = {name: {"max_steps": 1, "learning_rate": 1e-3} for name in HOSTILE_NAMES}
    runs["between"] = {"method": "wise_ft", "of": "../../outside", "alpha": 0.5}
    report = _compared(tmp_path / "out", _grid(runs))
    assert len(trained) == 1, "they are one run under many names"
    report.save(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    names = [run.name for run in ComparisonReport.load(tmp_path / "out").runs]
    assert names == [well_formed(name) for name in [*HOSTILE_NAMES, "between"]]
    lines = [line for line in (tmp_path / "out" / "comparison.md").read_text().splitlines() if line.startswith("|")]
    assert len(lines) == len(runs) + 3
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1
    assert (tmp_path / "out" / "comparison.svg").stat().st_size > 1000


def test_damage_is_named_and_what_is_removed_is_done_again(tmp_path: Path, trained: list[str]) -> None:
    report = _compared(tmp_path, _grid())
    (model,) = (tmp_path / "models").glob("*/model.safetensors")
    model.write_bytes(model.read_bytes()[:1000])
    (record,) = (tmp_path / "runs").glob("wise_ft-*.json")
    content = record.read_bytes()
    for damage in (content[:50], b"{}"):
        record.write_bytes(damage)
        with pytest.raises(ValueError, match=f"{record.name}.*Remove it, and the"):
            _compared(tmp_path, _grid())
    record.unlink()
    with pytest.raises(ValueError, match=r"run 'between'.*Remove .*models.*, and it is trained again"):
        _compared(tmp_path, _grid())
    assert trained == ["SFT 3", "LoRA 3"]
    for file in model.parent.iterdir():
        file.unlink()
    model.parent.rmdir()
    assert _compared(tmp_path, _grid()) == report
    assert trained[2:] == ["SFT 3"]


def test_every_part_trains_beside_the_others(tmp_path: Path) -> None:
    """At a rate of zero nothing moves, whatever the parts: rows, store, penalty and adapter are wired, and no more."""
    runs = {
        "everything": {
            "method": ["flow", "context_free", "replay", "ewc", "l2_sp"],
            "tau": "ess:0.8", "l2_sp_weight": 1.0, "fisher_max_rows": 4,
        },
        "OSF": {"method": "osf"},
        "CorDA": {"method": "corda", "r": 2},
        "between": {"method": "wise_ft", "of": "CorDA", "alpha": 0.5},
    }  # fmt: skip
    samples = {"num_tokens": 100, "max_new_tokens": 12, "batch_size": 8}
    grid = Grid.from_dict(
        {"settings": {**SETTINGS, "learning_rate": 0.0, "max_steps": 1}, "runs": runs, "context_free": samples}
    )
    report = _compared(tmp_path, grid, replay_dataset=tiny_text_dataset(8))
    for run in report.runs:
        assert run.results[0].kl_original_to_new.mean == pytest.approx(0.0, abs=1e-6), run.name  # type: ignore[union-attr]
    (fisher,) = tmp_path.glob("fisher-*.safetensors")
    fisher.write_bytes(b"nothing")
    more = Grid.from_dict(
        {"settings": SETTINGS, "runs": {"EWC": {"method": "ewc", "fisher_max_rows": 4}}, "context_free": samples}
    )
    with pytest.raises(ValueError, match=f"{fisher.name} is damaged.*Remove it"):
        _compared(tmp_path, more)


def test_weights_of_rows_count_for_the_run_that_names_them(tmp_path: Path) -> None:
    weights = [1.0] * 8 + [0.0] * 8
    grid = _grid({"SFT": {}, "weighted": {"method": "weighted_sft", "normalize": "tokens"}})
    report = _compared(tmp_path, grid, rows=ROWS.add_column("weight", weights))
    plain = _compared(tmp_path, _grid({"SFT": {}}))
    assert report.run("SFT").results[3] == plain.run("SFT").results[3]
    assert report.run("weighted").results[3] != plain.run("SFT").results[3]


def test_what_cannot_be_compared_is_refused_before_a_run_trains(tmp_path: Path, trained: list[str]) -> None:
    with pytest.raises(ValueError, match="There are no training rows"):
        _compared(tmp_path, _grid(), rows=None)
    with pytest.raises(ValueError, match="run 'replay': replay needs general rows"):
        _compared(tmp_path, _grid({"SFT": {}, "replay": {"method": "replay"}}))
    with pytest.raises(ValueError, match="run 'B': learning_rate must be"):
        _compared(tmp_path, _grid({"A": {}, "B": {"learning_rate": -1.0}}))
    store = generate_context_free(
        tiny_model(TOKENIZER), TOKENIZER, 50, output_dir=tmp_path / "store", max_new_tokens=8, show_progress=False
    )
    anchored = _grid({"A": {"method": "context_free"}}, context_free={"num_tokens": 50})
    with pytest.raises(ValueError, match="of seed 0, and runs train on rows of that seed"):
        _compared(tmp_path, anchored, context_free=store)
    assert trained == []
    with pytest.raises(ValueError, match=r"run 'replay': replay_share 0\.9 beside 16 target rows takes 144"):
        _compared(
            tmp_path, _grid({"replay": {"method": "replay", "replay_share": 0.9}}), replay_dataset=tiny_text_dataset(8)
        )


# --- the report ------------------------------------------------------------------------------------------------------


def _beats(first: tuple[float, float], second: tuple[float, float]) -> bool:
    return first != second and first[0] <= second[0] and first[1] <= second[1]


def test_the_front_is_what_a_walk_from_left_to_right_finds() -> None:
    generator = random.Random(0)
    for _ in range(200):
        points = [(generator.randint(0, 5) / 2, generator.randint(0, 5) / 2) for _ in range(8)]
        lowest = float("inf")
        front: set[tuple[float, float]] = set()
        for point in sorted(set(points)):  # each step to the right must go down
            if point[1] < lowest:
                front.add(point)
                lowest = point[1]
        assert [point in front for point in points] == pareto_front(points)


def _result(name: str, target: float, kl: float) -> RunResult:
    return RunResult(name, Estimate(target, None, 4, 40), kl_original_to_new=Estimate(kl, None, 4, 40))


def test_means_over_seeds_decide_who_is_on_the_front() -> None:
    runs = [
        ComparedRun("A", ["sft"], {}, {0: _result("A", 1.0, 0.4), 1: _result("A", 1.2, 0.6)}),
        ComparedRun("B", ["flow"], {}, {0: _result("B", 0.9, 0.6), 1: _result("B", 1.5, 0.5)}),  # worse in both means
        ComparedRun("C", ["lora"], {}, {0: _result("C", 1.4, 0.1), 1: _result("C", 1.6, 0.1)}),
        ComparedRun("D", ["dft"], {}, {0: _result("D", 2.5, 0.2), 1: _result("D", 2.5, 0.2)}),  # below the original
    ]
    report = ComparisonReport(RunResult("original", Estimate(2.0, None, 4, 40)), runs)
    assert report.front() == ["A", "C"]
    lines = {line.split(" | ")[0].strip("| "): line for line in report.to_markdown().splitlines() if line[:1] == "|"}
    assert "1.1000 ± 0.1414" in lines["A"]
    assert "0.5000 ± 0.1414" in lines["A"]
    assert lines["A"].endswith("| yes |")
    assert not lines["B"].endswith("| yes |")
    assert "standard deviation" in report.to_markdown()
    nothing = ComparisonReport(RunResult("original"), [ComparedRun("A", ["sft"], {}, {0: RunResult("A")})])
    assert (nothing.front(), nothing.missing_for_plot()) == ([], "target and one of context_free and general_text")
    with pytest.raises(ValueError, match="name one of them"):
        report.run("E")


def test_the_original_is_left_as_it_was(tmp_path: Path) -> None:
    model = tiny_model(TOKENIZER)
    compare_forgetting(model, TOKENIZER, _grid({"SFT": {}}), ROWS, output_dir=tmp_path, **MEASURES)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), tiny_model(TOKENIZER).parameters(), strict=True))
