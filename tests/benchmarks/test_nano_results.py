"""The benchmarks of pretraining and of DCLM's game: headlines follow from rows, and a kill is one."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from statistics import fmean, stdev

import pytest
import scipy.stats

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"


def load(name: str) -> dict:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


@pytest.fixture
def module(monkeypatch):
    """A script of the folder by its name; forgotten afterwards."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    yield __import__
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(ROOT / "benchmarks")):
            del sys.modules[name]


# --- committed results -----------------------------------------------------------------------------------------------


def test_pretraining_headline_follows_from_its_rows():
    result = load("pretraining_nano")
    headline = result["headline"]
    curves = {
        name: {row["step"]: row["loss"] for row in result["rows"] if row["run"] == name} for name in result["runs"]
    }
    whole, resumed = curves["undisturbed"], curves["killed"]
    assert whole == resumed, "the curve of the killed command is that of the other, log line by log line"
    assert headline["last_loss"] == pytest.approx(whole[max(whole)], abs=6e-5)
    assert headline["first_loss"] == pytest.approx(whole[min(whole)], abs=6e-5)
    assert headline["tokens"] == math.ceil(5_827_200 / (16 * 512)) * 16 * 512
    assert 0 <= headline["tokens"] - max(whole) * 16 * 512 < 10 * 16 * 512
    digests = {run["weights"] for run in result["runs"].values()}
    assert headline["identical_weights"] == (len(digests) == 1)
    assert headline["core_rows"] == 15 * 20 + 19, "20 rows of a task, and all 19 of bigbench_repeat_copy_logic"


def test_game_headline_follows_from_its_rows():
    result = load("dclm_game")
    headline = result["headline"]
    by_treatment: dict[str, list[dict]] = {}
    for row in sorted(result["rows"], key=lambda row: row["seed"]):
        by_treatment.setdefault(row["treatment"], []).append(row)
    assert headline["models"] == len(result["rows"]) == 12
    means = {name: fmean(row["loss"] for row in rows) for name, rows in by_treatment.items()}
    for name, mean in means.items():
        assert headline[f"loss_{name}"] == pytest.approx(mean, abs=6e-5)
    level = 1 - 0.05 / (len(by_treatment) - 1) / 2
    wins = {"loss": True, "core": True}
    best = {
        "loss": min(means, key=lambda name: means[name]),
        "core": max(by_treatment, key=lambda name: fmean(row["core"] for row in by_treatment[name])),
    }
    for pair in result["differences"]:
        measure = pair["measure"]
        seeds = [
            row[measure] - other[measure]
            for row, other in zip(by_treatment[pair["treatment"]], by_treatment[pair["other"]], strict=True)
        ]
        assert pair["mean"] == pytest.approx(fmean(seeds))
        of_seeds = scipy.stats.t.ppf(level, len(seeds) - 1) * stdev(seeds) / math.sqrt(len(seeds))
        if measure == "core":
            errors = [fmean(row["core_error"] for row in by_treatment[pair[key]]) for key in ("treatment", "other")]
            expected = math.hypot(of_seeds, scipy.stats.norm.ppf(level) * math.hypot(*errors))
            assert pair["half_width"] == pytest.approx(expected)
        assert pair["half_width"] > of_seeds, "held-out sequences have an error too"
        if best[measure] in (pair["treatment"], pair["other"]):
            wins[measure] &= abs(pair["mean"]) > pair["half_width"]
    for measure, name in best.items():
        assert headline[f"{measure}_winner"] == (name if wins[measure] else "none")


# --- the scripts -----------------------------------------------------------------------------------------------------


def test_the_headline_of_a_game_is_of_its_rows_and_is_described(module):
    script = module("dclm_game")
    losses = {"raw": (3.2, 3.0), "heuristics": (2.9, 2.9), "deduplicated": (2.8, 2.6), "classifier": (2.9, 3.1)}
    rows = [
        {"treatment": name, "seed": seed, "loss": loss, "core": 0.1 * seed}
        for name, values in losses.items()
        for seed, loss in enumerate(values)
    ]
    pairs = [
        {"measure": "loss", "treatment": "raw", "other": "deduplicated", "mean": 0.4, "half_width": 0.3},
        {"measure": "loss", "treatment": "raw", "other": "heuristics", "mean": 0.2, "half_width": 0.1},
    ]
    headline = script.headline_of(rows, {"loss": "none", "core": "none"}, pairs, "core16_v2")
    assert (headline["loss_raw"], headline["loss_deduplicated"]) == (3.1, 2.7)
    assert (headline["loss_lead"], headline["loss_lead_error"]) == (0.4, 0.3)
    assert headline["core16_v2_classifier"] == 0.05
    described = script.__doc__.replace("<treatment>", "raw").replace("<core>", "core16_v2")
    names = [name for name in headline if not name.endswith(("heuristics", "deduplicated", "classifier"))]
    assert all(name in described for name in names)


def test_a_game_is_in_a_model_where_enough_are_finished_and_the_next_has_a_whole_checkpoint(module, tmp_path):
    script = module("dclm_game")
    for name in ("raw-seed-124", "raw-seed-125"):
        (tmp_path / f"{name}.json").write_text("{}")
        treatment, seed = name.split("-", 1)
        place = tmp_path / treatment / seed
        (place / "checkpoint-1").mkdir(parents=True)
        (place / "checkpoint-1" / "hf_ext_checkpoint.json").write_text("{}")
        (place / "model.safetensors").write_text("")
    assert not script.is_in_a_model(tmp_path, 2)
    (tmp_path / "heuristics" / "seed-124" / "checkpoint-1").mkdir(parents=True)
    assert not script.is_in_a_model(tmp_path, 2)
    (tmp_path / "heuristics" / "seed-124" / "checkpoint-1" / "hf_ext_checkpoint.json").write_text("{}")
    assert script.is_in_a_model(tmp_path, 2)
    assert not script.is_in_a_model(tmp_path, 3)


def test_a_command_that_fails_or_is_not_killed_in_time_ends_the_benchmark(module, tmp_path):
    runs = module("nano_runs")
    with pytest.raises(SystemExit, match="no-such-verb"):
        runs.launch(["no-such-verb"], tmp_path)
    with pytest.raises(SystemExit, match="status 0 before it was killed"):
        runs.launch(["--help"], tmp_path, lambda: False)
    runs.launch(["--help"], tmp_path, lambda: True)
    assert len(list(tmp_path.glob("launch-*.json"))) == 3
    assert runs.minutes_of(tmp_path)["minutes"] >= 0


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("name", "claim"), [("pretraining_nano", {"identical_weights": True}), ("dclm_game", {"models_trained_again": 0})]
)
def test_a_killed_command_ends_as_an_undisturbed_one_does(name, claim, tmp_path):
    command = [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), "--quick", "--work", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    headline = json.loads(done.stdout.splitlines()[-1])
    assert claim.items() <= headline.items()
