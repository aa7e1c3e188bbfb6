"""Committed results: the headline follows from the raw rows, computed here a second time and in another way."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
RESULTS = sorted((ROOT / "benchmarks" / "results").glob("*.json"))
PARTS = {  # of several scripts
    "bandit_problems",
    "bandit_rivals",
    "bandit_tables",
    "checkpoint_rivals",
    "common",
    "consensus_models",
    "consensus_tables",
    "dclm_checkout",
    "dclm_mappers",
    "figures",
    "forgetting_curves",
    "junk",
    "measured",
    "mixture_rivals",
    "moe_problems",
    "moe_rivals",
    "moe_tables",
    "nano_runs",
    "peak",
    "retrieval_jobs",
    "scorer",
    "scores",
    "table",
    "tiny_lm",
}
# no result yet
AWAITED = {
    "exact_kl_step",
    "flow_vision",
    "forgetting_rivals",
    "forgetting_tiny",
}
SCRIPTS = {p.stem for p in (ROOT / "benchmarks").glob("*.py")} - PARTS


def load(name: str) -> dict:
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8"))


def test_every_benchmark_has_a_committed_result():
    assert SCRIPTS - AWAITED <= {path.stem for path in RESULTS} <= SCRIPTS


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_result_says_where_it_came_from_and_names_no_machine(path):
    result = json.loads(path.read_text(encoding="utf-8"))
    assert {"headline", "versions", "machine", "command", "commit", "date", "rows"} <= set(result)
    assert result["headline"]["benchmark"] == path.stem
    assert "code" not in result or re.fullmatch("[0-9a-f]{40}", result["commit"]), "of code that no commit holds"
    assert {"torch", "trl", "transformers"} <= set(result["versions"])
    assert not [folder for folder in ("/home", "/work", "/root", "/tmp") if folder in path.read_text()]


def test_forgetting_headline_follows_from_its_rows():
    result = load("forgetting_gsm8k")
    columns = {key: np.array([row[key] for row in result["rows"]]) for key in result["rows"][0]}
    fall = columns["target_loss_before"] - columns["target_loss"]
    of = {arm: np.flatnonzero(columns["arm"] == arm) for arm in set(columns["arm"])}
    of = {arm: rows[np.argsort(columns["seed"][rows])] for arm, rows in of.items()}
    headline = result["headline"]
    assert headline["seeds"] == len(of["sft"])
    start = columns["target_loss_before"][of["sft"]]
    assert headline["sft_target_loss_fall"] == pytest.approx(float((fall[of["sft"]] / start).mean()), abs=6e-5)
    for arm in set(of) - {"sft"}:
        kl = columns["kl_original_to_new"]
        assert headline[f"kl_{arm}_over_sft"] == pytest.approx(float((kl[of[arm]] / kl[of["sft"]]).mean()), abs=6e-5)
        gain = float((fall[of[arm]] / fall[of["sft"]]).mean())
        assert headline[f"target_gain_{arm}_over_sft"] == pytest.approx(gain, abs=6e-5)
    best = min(result["learning_rates"], key=lambda lr: result["learning_rates"][lr])
    assert headline["learning_rate"] == float(best)


def test_mixture_headline_follows_from_its_rows():
    result = load("mixture_selection")
    tiny = [row for row in result["rows"] if row["model"] == "tiny"]
    arms = {row["arm"] for row in tiny}
    nats = np.array([[row["nats"] for row in tiny if row["arm"] == arm] for arm in sorted(arms)])
    of = dict(zip(sorted(arms), nats, strict=True))
    headline = result["headline"]
    assert nats.shape == (11, headline["seeds"])
    for arm in ("uniform", "odm", "proportional", "softmax"):
        assert headline[f"{arm}_minus_mixture_nats"] == pytest.approx(float((of[arm] - of["mixture"]).min()), abs=6e-5)
    best = min(result["fixed"], key=lambda arm: of[arm].mean())
    assert headline["best_fixed"] == best
    gain = float((of[best] - of["mixture"]).mean())
    assert headline["best_fixed_minus_mixture_nats"] == pytest.approx(gain, abs=6e-5)
    ends = [row["shares_end"] for row in tiny if row["arm"] == "mixture"]
    assert headline["harmful_share_end"] == max(end["noise"] for end in ends)
    assert headline["useless_share_end"] == max(end["repeats"] for end in ends)


def test_step_cost_headline_follows_from_its_rows():
    result = load("step_cost")
    ratios = np.array([row["weighted_s"] / row["sft_s"] for row in result["rows"]])
    headline = result["headline"]
    assert headline["pairs"] == len(ratios) >= 30
    assert headline["time_ratio"] == pytest.approx(float(np.median(ratios)), abs=6e-5)
    assert headline["time_ratio_low"] <= headline["time_ratio"] <= headline["time_ratio_high"]
    first = [row["first"] for row in result["rows"]]
    assert all(a != b for a, b in pairwise(first)), "the order is swapped from pair to pair"
    memory = result["memory_bytes"]
    assert headline["memory_ratio"] == pytest.approx(memory["weighted"] / memory["sft"], abs=6e-5)
    assert memory["weighted"] != memory["sft"], "the peak of their parent, not their own"


def test_infopo_step_headline_follows_from_its_rows():
    result = load("infopo_step")
    headline, memory = result["headline"], result["memory_bytes"]
    assert set(memory) == {"full", "full_precomputed", "lora", "lora_precomputed"}
    medians = {}
    for cell in memory:
        rows = [row for row in result["rows"] if row["cell"] == cell]
        assert headline["pairs"] == len(rows) >= 50
        medians[cell] = float(np.median([row["infopo_s"] / row["dpo_s"] for row in rows]))
        assert headline[f"time_ratio_{cell}"] == pytest.approx(medians[cell], abs=6e-5)
        assert headline[f"time_ratio_{cell}_low"] <= medians[cell] + 6e-5
        assert headline[f"time_ratio_{cell}_high"] >= medians[cell] - 6e-5
        assert all(a["first"] != b["first"] for a, b in pairwise(rows)), "the order is swapped from pair to pair"
    assert headline["time_ratio"] == pytest.approx(max(medians.values()), abs=6e-5)
    assert all(own["infopo"] != own["dpo"] for own in memory.values()), "the peak of their parent, not their own"
    worst = np.max([own["infopo"] / own["dpo"] for own in memory.values()])
    assert headline["memory_ratio"] == pytest.approx(worst, abs=6e-5)


def test_preference_headline_follows_from_its_rows():
    result = load("preference_reasoning")
    headline = result["headline"]
    table = {
        arm: sorted((row for row in result["rows"] if row["arm"] == arm), key=lambda row: row["seed"])
        for arm in ("nwj", "dpo")
    }
    seeds = [[row["seed"] for row in rows] for rows in table.values()]
    assert seeds[0] == seeds[1]
    assert headline["seeds"] == len(seeds[0]) >= 3

    def column(arm: str, key: str) -> np.ndarray:
        return np.array([row[key] for row in table[arm]])

    chosen = column("nwj", "heldout_chosen") - column("dpo", "heldout_chosen")
    nll = column("nwj", "gold_nll") - column("dpo", "gold_nll")
    kl = column("nwj", "heldout_kl_start_to_new") / column("dpo", "heldout_kl_start_to_new")
    expected = {
        "infopo_chosen_minus_dpo": chosen.min(),
        "infopo_heldout_chosen": column("nwj", "heldout_chosen").mean(),
        "dpo_heldout_chosen": column("dpo", "heldout_chosen").mean(),
        "infopo_train_chosen": column("nwj", "train_chosen").min(),
        "dpo_train_chosen": column("dpo", "train_chosen").max(),
        "infopo_gold_nll_minus_dpo": nll.max(),
        "infopo_accuracy_minus_dpo": (column("nwj", "heldout_accuracy") - column("dpo", "heldout_accuracy")).mean(),
        "infopo_kl_over_dpo": kl.mean(),
    }
    for key, value in expected.items():
        assert headline[key] == pytest.approx(float(value), abs=6e-6), key
    best = min(result["learning_rates"], key=lambda lr: result["learning_rates"][lr])
    assert headline["learning_rate"] == float(best)
    assert headline["heldout_questions"] == len(table["nwj"][0]["heldout_right_by_question"]) >= 100


def test_preference_accuracy_interval_holds_for_questions_drawn_again():
    result = load("preference_reasoning")
    headline = result["headline"]
    rows = {(row["arm"], row["seed"]): row for row in result["rows"]}
    right = {
        arm: np.array(
            [list(map(int, row["heldout_right_by_question"])) for (name, _), row in rows.items() if name == arm]
        )
        for arm in ("nwj", "dpo")
    }
    counts = np.array(list(map(int, rows["nwj", 0]["heldout_pairs_by_question"])))
    gap = right["nwj"].mean(axis=0) - right["dpo"].mean(axis=0)
    drawn = np.random.default_rng(0).integers(len(counts), size=(4000, len(counts)))
    again = gap[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.quantile(again, [0.025, 0.975])
    width = headline["infopo_accuracy_minus_dpo_high"] - headline["infopo_accuracy_minus_dpo_low"]
    assert width == pytest.approx(high - low, rel=0.15, abs=0.002)
    assert headline["infopo_accuracy_minus_dpo_low"] == pytest.approx(low, abs=0.15 * width + 0.002)


def printed_table(*words: str) -> str:
    command = [sys.executable, str(ROOT / "benchmarks" / "table.py"), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_the_page_of_results_has_day_and_commit_of_each_and_a_state_as_of_its_own_day():
    page = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")

    def cells(text: str) -> list[list[str]]:
        return [line.split(" | ") for line in text.splitlines() if line.startswith("| [")]

    # The last column changes with the code, not with the results: `make bench` says it of today.
    assert [line[:-1] for line in cells(page)] == [line[:-1] for line in cells(printed_table("--markdown"))]
    assert len(cells(page)) == len(RESULTS)
    states = [line[-1].removesuffix(" |") for line in cells(page)]
    assert set(states) <= {"changed: older", "unchanged: current"}
    older = states.count("changed: older")
    assert re.search(rf"of \d{{4}}-\d\d-\d\d, commit [0-9a-f]+: {older} of {len(states)} are older", page)


def test_table_prints_every_headline():
    table = printed_table()
    for path in RESULTS:
        for key in load(path.stem)["headline"]:
            assert key == "benchmark" or key in table
