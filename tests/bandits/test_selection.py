"""The race between candidates: who wins, what it spends, what it says, and how it goes on."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pandas
import pytest
import torch
from datasets import Dataset

from hf_ext.bandits.checkpoints import select_best
from hf_ext.bandits.selection import Selection
from hf_ext.guards.runs import claimed_folder
from hf_ext.hub.cards import write_model_card

NUM_ITEMS = 300
EARLY = int(np.random.default_rng(0).permutation(NUM_ITEMS)[3])  # an item of the first round


def table(*offsets: float, num_items: int = NUM_ITEMS, noise: float = 0.4) -> np.ndarray:
    """Losses `(candidates, items)`: an item is hard for all of them."""
    generator = np.random.default_rng(3)
    hardness = generator.gamma(1, 2, num_items)
    return hardness + np.array(offsets)[:, None] + noise * generator.normal(size=(len(offsets), num_items))


class Measured:
    """Looks values up, and remembers what was asked; stops after some calls where told."""

    def __init__(self, values: np.ndarray, last_call: int | None = None) -> None:
        self.values = values
        self.calls: list[tuple[int, tuple[int, ...]]] = []
        self.last_call = last_call

    def __call__(self, candidate: int, items: list[int]) -> np.ndarray:
        if len(self.calls) == self.last_call:
            raise KeyboardInterrupt
        self.calls.append((candidate, tuple(items)))
        return self.values[candidate, items]

    @property
    def pairs(self) -> list[tuple[int, int]]:
        return [(candidate, item) for candidate, items in self.calls for item in items]


def race(measured, *, num_candidates=None, **settings) -> Selection:
    settings = {
        "items": range(measured.values.shape[1]),
        "greater_is_better": False,
        "show_progress": False,
    } | settings
    return select_best(range(num_candidates or len(measured.values)), measured, **settings)


def test_the_best_is_certified_with_a_part_of_the_evaluations():
    measured = Measured(table(0.3, 0, 0.2, 1))
    best = race(measured)
    assert (best.name, best.certified, best.level) == ("1", True, 0.95)
    assert best.items_spent == len(measured.pairs) == len(set(measured.pairs)) < 0.5 * 4 * NUM_ITEMS
    assert [result.status for result in best.candidates] == ["refuted", "best", "refuted", "refuted"]
    assert best.undecided == []
    for result in best.candidates:
        items = [item for candidate, item in measured.pairs if str(candidate) == result.name]
        assert result.num_items == len(items)
        assert result.mean == pytest.approx(measured.values[int(result.name), items].mean())
        if result.name != "1":
            differences = measured.values[int(result.name), items] - measured.values[1, items]
            assert result.behind == pytest.approx(differences.mean())
            assert result.standard_error == pytest.approx(differences.std(ddof=1) / len(items) ** 0.5)


def test_every_candidate_of_a_round_is_measured_on_the_same_items_in_batches():
    measured = Measured(table(0, 0.01, 5))
    race(measured, batch_size=20)
    assert max(len(items) for _, items in measured.calls) == 20
    first = [item for candidate, item in measured.pairs if candidate == 0]
    assert [item for candidate, item in measured.pairs if candidate == 2] == first[:32]
    assert sorted(item for candidate, item in measured.pairs if candidate == 1) == sorted(first)


def test_losses_and_their_negatives_choose_alike():
    values = table(0.2, 0, 0.1)
    lower, higher = race(Measured(values)), race(Measured(-values), greater_is_better=True)
    assert lower.name == higher.name
    assert lower.items_spent == higher.items_spent
    assert [result.behind for result in lower.candidates] == [result.behind for result in higher.candidates]


def test_a_pool_that_was_measured_whole_decides_by_itself():
    values = table(0.01, 0, num_items=50)
    best = race(Measured(values))
    assert (best.certified, best.level, best.items_spent) == (True, 1.0, 100)
    assert best.name == str(values.mean(axis=1).argmin())
    assert "on these 50 items, on which every candidate was measured" in best.verdict()
    assert "Of other items that says nothing" in best.verdict()


def test_identical_candidates_cannot_be_told_apart():
    values = table(0, 1)
    best = race(Measured(values[[0, 0, 1]]))
    assert (best.certified, best.level, best.undecided) == (False, None, ["1"])
    assert best.verdict().startswith("Nothing can be told: on all 300 items **0** is exactly as good as 1")
    assert best.candidate("2").num_items == 32


def test_a_budget_is_kept_and_nothing_is_told_within_it():
    for budget in (3, 70, 200):
        measured = Measured(table(0, 0.01, 0.02))
        best = race(measured, budget=budget)
        assert budget - 3 < len(measured.pairs) == best.items_spent <= budget
        assert (best.certified, best.level) == (False, None)
        assert len(best.undecided) == 2
        assert "may be better. More budget may tell" in best.verdict()


def test_a_budget_stops_between_looks_without_looking():
    """A candidate that every look would drop stays where the budget ends before the first one."""
    best = race(Measured(table(0, 50)), budget=40)
    assert best.undecided == ["1"]


def test_more_budget_goes_on_where_less_ended(tmp_path):
    values = table(0, 0.1, 0.3)
    whole = race(Measured(values))
    short = Measured(values)
    race(short, budget=150, output_dir=tmp_path)
    long = Measured(values)
    assert race(long, output_dir=tmp_path).to_dict() == whole.to_dict()
    assert not set(short.pairs) & set(long.pairs)
    assert len(short.pairs) + len(long.pairs) == whole.items_spent


@pytest.mark.parametrize("last_call", [0, 1, 2, 5, 9])
def test_an_interrupted_race_goes_on_to_the_same_end(tmp_path, last_call):
    values = table(0, 0.1, 0.3)
    with pytest.raises(KeyboardInterrupt):
        race(Measured(values, last_call), output_dir=tmp_path)
    rest = Measured(values)
    assert race(rest, output_dir=tmp_path) == race(Measured(values))
    again = Measured(values)
    race(again, output_dir=tmp_path, seed=0)
    assert again.calls == []


def test_a_race_that_was_killed_while_it_wrote_goes_on(tmp_path):
    program = """
import os, sys, numpy as np
from hf_ext.bandits.checkpoints import select_best
calls = []
def evaluate(candidate, items):
    calls.append(candidate)
    if len(calls) == 3:
        with open(sys.argv[1] + "/values.jsonl", "a") as file:
            file.write('{"candidate": "1", "items": [')
        os._exit(9)
    return np.array(items) * 0.01 + candidate
select_best([0, 1], evaluate, items=range(100), output_dir=sys.argv[1], batch_size=16)
"""
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, check=False)
    assert done.returncode == 9, done.stderr
    calls = []

    def evaluate(candidate, items):
        calls.append((candidate, len(items)))
        return np.array(items) * 0.01 + candidate

    best = select_best([0, 1], evaluate, items=range(100), output_dir=tmp_path, show_progress=False)
    assert best.name == "1"
    assert calls == [(1, 32)]


@pytest.mark.skipif(sys.platform == "win32", reason="limits of POSIX")
def test_a_full_disk_is_one_sentence_and_what_was_written_counts(tmp_path):
    program = """
import resource, sys
from hf_ext.bandits.checkpoints import select_best
resource.setrlimit(resource.RLIMIT_FSIZE, (500, resource.RLIM_INFINITY))
select_best([0, 1], lambda c, i: [float(c)] * len(i), items=range(300), output_dir=sys.argv[1], batch_size=16)
"""
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=False)
    assert "DiskFullError: No room to write the values" in done.stderr
    assert "it goes on with what is not measured" in done.stderr
    written = [json.loads(line) for line in (tmp_path / "values.jsonl").read_text().splitlines()]
    assert written, "nothing was written before the disk was full"
    calls = []
    select_best(
        [0, 1],
        lambda c, i: calls.extend((c, item) for item in i) or [float(c)] * len(i),
        items=range(300),
        output_dir=tmp_path,
        show_progress=False,
    )
    assert not {(int(record["candidate"]), item) for record in written for item in record["items"]} & set(calls)


def test_two_processes_do_not_write_to_one_folder(tmp_path):
    program = "import sys; from hf_ext.bandits.checkpoints import select_best as s\n"
    program += "s([0, 1], lambda c, i: [c] * len(i), items=range(9), output_dir=sys.argv[1])"
    with claimed_folder(tmp_path):
        done = subprocess.run(
            [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=False
        )
    assert "InUseError" in done.stderr


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_candidate_with_a_value_that_is_not_finite_is_dropped(tmp_path, bad):
    values = table(0, 0.3, 0.6)
    values[0, EARLY] = bad
    best = race(Measured(values), output_dir=tmp_path)
    assert (best.name, best.certified, best.level) == ("1", True, 0.95)
    assert best.candidate("0").status == "not finite"
    assert best.candidate("0").mean is None
    assert race(Measured(values, 0), output_dir=tmp_path) == best
    json.dumps(best.to_dict(), allow_nan=False)


def test_a_candidate_that_is_not_finite_is_not_measured_further_when_the_race_goes_on(tmp_path):
    values = table(0, 0.3, 0.6)
    values[0, EARLY] = np.nan
    best = race(Measured(values), output_dir=tmp_path, batch_size=8)
    assert best.candidate("0").num_items == 8
    rest = Measured(values, 0)
    assert race(rest, output_dir=tmp_path, batch_size=8) == best


def test_what_is_measured_whole_is_exact_beside_a_candidate_that_is_not_finite():
    values = table(0, 0.3, 0.6, num_items=40)
    values[0, 5] = np.nan
    best = race(Measured(values))
    assert (best.name, best.level) == ("1", 1.0)
    assert best.verdict().endswith("A value of 0 is not finite: dropped.")


def test_an_item_without_a_value_is_named():
    values = table(0, 0.3)
    values[:, EARLY] = np.nan
    with pytest.raises(
        ValueError, match=f"No candidate gives finite values: '0' gives nan on item {EARLY:,}, '1' gives"
    ):
        race(Measured(values))


def test_a_dataset_is_handed_over_as_one():
    rows = Dataset.from_dict({"value": list(range(70))})
    kinds = set()

    def evaluate(candidate, items):
        kinds.add(type(items))
        return [value * candidate for value in items["value"]]

    best = select_best({"one": 1, "two": 2}, evaluate, items=rows, show_progress=False)
    assert kinds == {Dataset}
    assert best.name == "two"


def test_one_candidate_is_the_best_without_a_call():
    best = race(Measured(table(0), 0))
    assert (best.name, best.certified, best.level, best.items_spent) == ("0", True, 1.0, 0)
    assert "is the only candidate" in str(best)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"confidence": 1.0}, "confidence must be a number above 0 and below 1, got 1.0"),
        ({"confidence": float("nan")}, "confidence must be"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"seed": -1}, "seed must be"),
        ({"budget": 0}, "budget must be"),
        ({"budget": 2}, "budget=2 does not pay one item for each of 3 candidates"),
        ({"items": []}, "items is empty"),
        ({"items": iter([1, 2])}, "items has no length .*: of a stream, take some"),
        ({"items": {0: 1, 1: 2}}, "items is a dict, which has no first item: make a list"),
        ({"items": {1, 2}}, "items is a set"),
        ({"items": pandas.DataFrame({"a": [1, 2]})}, "items is a DataFrame"),
        ({"greater_is_better": "no"}, "greater_is_better must be True or False, got 'no'"),
    ],
)
def test_wrong_settings_are_refused_before_a_call(settings, words):
    with pytest.raises(ValueError, match=words):
        race(Measured(table(0, 1, 2), 0), **settings)


MORE = ((5, "of type int: give a list"), (None, "of type NoneType"), ({" ": 1, "b": 2}, "has an empty name"))


def test_wrong_candidates_are_refused():
    for candidates, words in (([], "is empty"), (["a", "a"], "have the name 'a'"), ("ab", "is one text"), *MORE):
        with pytest.raises(ValueError, match=words):
            select_best(candidates, lambda c, i: [0.0] * len(i), items=range(3))


def test_a_wrong_number_of_values_is_refused():
    with pytest.raises(ValueError, match=r"shape \(1, 32\) for candidate 'a' and 32 items: .* shape \(32,\)"):
        select_best(["a", "b"], lambda c, i: [[0.0] * len(i)], items=range(99), show_progress=False)


@pytest.mark.parametrize("values", [["?"] * 32, [1j] * 32, dict.fromkeys(range(32), 1.0)])
def test_what_is_no_number_is_refused_with_its_candidate(values):
    with pytest.raises(ValueError, match=r"evaluate gave a .* for candidate 'a' that is no array of numbers"):
        select_best(["a", "b"], lambda c, i: values, items=range(99), show_progress=False)


def test_tensors_of_any_kind_are_values():
    values = table(0, 0.3)
    best = race(Measured(values))
    for convert in (lambda t: t.requires_grad_(), lambda t: t[:, None].squeeze(1)):
        measured = Measured(values)
        assert select_best(
            range(2), lambda c, i: convert(torch.tensor(measured(c, i))), items=range(NUM_ITEMS),  # noqa: B023
            greater_is_better=False, show_progress=False,
        ) == best  # fmt: skip
    halves = select_best(range(2), lambda c, i: torch.full((len(i),), float(c), dtype=torch.bfloat16), items=range(80))
    assert (halves.name, halves.certified) == ("1", True)


def test_items_of_a_tensor_are_known_again(tmp_path):
    items = torch.arange(80)
    best = select_best([0, 1], lambda c, i: [float(c)] * len(i), items=items, output_dir=tmp_path)
    assert select_best([0, 1], None, items=items, output_dir=tmp_path) == best
    with pytest.raises(ValueError, match="begun with other settings"):
        select_best([0, 1], None, items=items + 1, output_dir=tmp_path)


@pytest.mark.parametrize("value", [1e101, -1e308])
def test_a_candidate_whose_values_cannot_be_added_up_is_dropped(value):
    values = table(0, 0.3, 0.6)
    values[2] = value
    best = race(Measured(values))
    assert [result.status for result in best.candidates] == ["best", "refuted", "not finite"]


def test_a_folder_of_other_candidates_or_items_is_refused(tmp_path):
    race(Measured(table(0, 1)), output_dir=tmp_path)
    with pytest.raises(ValueError, match="begun with other settings"):
        race(Measured(table(0, 1, 2)), output_dir=tmp_path)
    with pytest.raises(ValueError, match="begun with other settings"):
        race(Measured(table(0, 1)), output_dir=tmp_path, items=range(1, 300))
    path = tmp_path / "values.jsonl"
    path.write_text('{"candidate": "9", "items": [0], "values": [1.0]}\n' + path.read_text())
    with pytest.raises(ValueError, match=r"values.jsonl, line 1, is no record of values"):
        race(Measured(table(0, 1)), output_dir=tmp_path)


def test_the_report_is_read_back_and_shows_names_as_text(tmp_path):
    values = table(0, 1, 2, 3)
    names = ["a|b", "<img src=x>", "$x_1$ [link](y)", "_hidden"]
    best = select_best(
        dict(zip(names, range(4), strict=True)),
        Measured(values),
        items=range(NUM_ITEMS),
        greater_is_better=False,
        show_progress=False,
    )
    best.save(tmp_path)
    assert Selection.load(tmp_path) == best
    text = (tmp_path / "selection.md").read_text()
    assert "a\\|b" in text
    assert "&lt;img" in text
    assert "<img" not in text
    assert {path.suffix for path in tmp_path.glob("selection.*")} == {".json", ".md", ".svg", ".png"}
    axes = best.plot().axes[0]
    lines = [line.get_xydata() for line in axes.lines if not line.get_label().startswith("_")]
    drawn = dict(zip([text.get_text() for text in axes.get_legend().get_texts()], lines, strict=True))
    assert list(drawn) == names
    assert drawn["<img src=x>"][-1][1] == pytest.approx(best.candidate("<img src=x>").behind)


def test_a_card_has_the_verdict_and_the_mean_of_the_best(tmp_path):
    best = race(Measured(table(0.5, 0)))
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    write_model_card(tmp_path, method="flow", report=best)
    card = (tmp_path / "README.md").read_text()
    assert "**1** is the best on these 300 items, at 95 % confidence" in card
    (entry,) = best.eval_results()
    assert entry.metric_value == pytest.approx(best.candidate("1").mean, abs=1e-6)
    assert "lower is better" in entry.metric_name
    assert best.eval_results("0")[0].metric_value == pytest.approx(best.candidate("0").mean, abs=1e-6)


def test_a_damaged_report_is_an_error_that_names_it(tmp_path):
    race(Measured(table(0, 1))).save(tmp_path, plot=False)
    path = tmp_path / "selection.json"
    values = json.loads(path.read_text())
    for change in ({"name": "other"}, {"candidates": []}, {"settings": {}}):
        path.write_text(json.dumps(values | change))
        with pytest.raises(ValueError, match=r"selection\.json"):
            Selection.load(tmp_path)
