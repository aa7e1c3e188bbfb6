"""The likelihood report against DPOTrainer's own numbers, full logits, scipy's bootstrap and a loop."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from huggingface_hub.repocard_data import eval_results_to_model_index
from peft import LoraConfig, get_peft_model
from scipy.stats import bootstrap
from trl import DPOConfig, DPOTrainer

from hf_ext.evaluation.preference import bootstrap_means, likelihood_report
from hf_ext.evaluation.preference_report import LikelihoodReport
from hf_ext.guards.rows import RowError
from tests.tiny import tiny_model, tiny_sentences
from tests.trainers.runs import TOKENIZER, config_of

QUIET = {"show_progress": False}


def pairs(n: int = 10, conversational: bool = False) -> Dataset:
    """Pairs of uneven length; `question` joins two of them at a time."""
    rows = {
        "prompt": [f"Tell me about row {i}. " * (1 + i % 3) for i in range(n)],
        "chosen": tiny_sentences(n, seed=1, max_sentences=3),
        "rejected": tiny_sentences(n, seed=2, max_sentences=2),
    }
    if conversational:
        speakers = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
        rows = {key: [[{"role": speakers[key], "content": text}] for text in texts] for key, texts in rows.items()}
    return Dataset.from_dict({**rows, "question": [i // 2 for i in range(n)]})


def dpo_trainer(folder: Path, rows: Dataset, model: Any, reference: Any = None, **changes: Any) -> DPOTrainer:
    args = config_of(DPOConfig, folder, precompute_ref_log_probs=True, max_steps=3, learning_rate=0.05, **changes)
    return DPOTrainer(model, reference, args, train_dataset=rows, processing_class=TOKENIZER)


def columns(data: Any, *names: str) -> np.ndarray:
    return np.stack([np.asarray(data[name], dtype=np.float64) for name in names], axis=1)


# --- log-probabilities -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("conversational", [False, True], ids=["standard", "conversational"])
@pytest.mark.parametrize("max_length", [512, 40])
def test_log_probabilities_are_those_dpo_trainer_precomputes(
    conversational: bool, max_length: int, tmp_path: Path
) -> None:
    rows, model, reference = pairs(conversational=conversational), tiny_model(TOKENIZER), tiny_model(TOKENIZER, seed=1)
    report = likelihood_report(model, reference, rows, TOKENIZER, batch_size=3, max_length=max_length, **QUIET)
    for scored, ours in (
        (model, ("chosen_logps", "rejected_logps")),
        (reference, ("ref_chosen_logps", "ref_rejected_logps")),
    ):
        stock = dpo_trainer(tmp_path, rows, tiny_model(TOKENIZER, seed=2), scored, max_length=max_length)
        theirs = columns(stock.train_dataset, "ref_chosen_logps", "ref_rejected_logps")
        theirs = theirs[report.rows["row_index"]] if len(theirs) == len(rows) else theirs
        np.testing.assert_allclose(columns(report.rows, *ours), theirs, rtol=1e-5, atol=1e-4)


def full_logit_sum(model: Any, prompt: str, response: str) -> tuple[float, int]:
    """Log-probability of the response's tokens from the full logits of one unpadded row, and their number."""
    head = TOKENIZER(prompt)["input_ids"]
    ids = TOKENIZER(prompt + response + TOKENIZER.eos_token)["input_ids"]
    assert ids[: len(head)] == head
    with torch.no_grad():
        log_probs = torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), dim=-1)
    return sum(log_probs[i - 1, ids[i]].item() for i in range(len(head), len(ids))), len(ids) - len(head)


def test_rows_and_measures_are_those_of_a_loop_over_full_logits() -> None:
    model, reference, rows = tiny_model(TOKENIZER), tiny_model(TOKENIZER, seed=1), pairs()
    report = likelihood_report(model, reference, rows, TOKENIZER, beta=0.3, batch_size=4, **QUIET)
    found: dict[str, list[float]] = {name: [] for name in ("w", "l", "w_n", "l_n", "nwj", "jsd")}
    for i, row in enumerate(rows):
        sums = {}
        for side in ("chosen", "rejected"):
            new, n = full_logit_sum(model, row["prompt"], row[side])
            old, _ = full_logit_sum(reference, row["prompt"], row[side])
            sums[side] = new - old
            assert report.rows[i][f"{side}_length"] == n
            assert report.rows[i][f"{side}_delta"] == pytest.approx(new - old, abs=1e-4)
            found["w_n" if side == "chosen" else "l_n"].append((new - old) / n)
        u_w, u_l = sums["chosen"], sums["rejected"]
        found["w"].append(u_w)
        found["l"].append(u_l)
        found["nwj"].append(1 + 0.3 * u_w - math.exp(0.3 * u_l))
        found["jsd"].append(math.log(2) - (math.log1p(math.exp(-0.3 * u_w)) + math.log1p(math.exp(0.3 * u_l))) / 2)
        assert report.rows[i]["chosen_dropped"] == (u_w < 0)
        assert report.rows[i]["row_index"] == i
    means = {key: float(np.mean(values)) for key, values in found.items()}
    measures = report.measures
    assert measures["chosen_delta"].mean == pytest.approx(means["w"], abs=1e-4)
    assert measures["rejected_delta"].mean == pytest.approx(means["l"], abs=1e-4)
    assert measures["margin"].mean == pytest.approx(means["w"] - means["l"], abs=1e-4)
    assert measures["chosen_delta_per_token"].mean == pytest.approx(means["w_n"], abs=1e-5)
    assert measures["rejected_delta_per_token"].mean == pytest.approx(means["l_n"], abs=1e-5)
    assert measures["chosen_dropped"].mean == sum(u < 0 for u in found["w"]) / len(rows)
    assert measures["accuracy"].mean == sum(w > v for w, v in zip(found["w"], found["l"], strict=True)) / len(rows)
    assert 0 < measures["accuracy"].mean < 1  # else the line above tests little
    assert report.bounds["nwj"].mean == pytest.approx(means["nwj"], rel=1e-3)
    assert report.bounds["jsd"].mean == pytest.approx(means["jsd"], rel=1e-3)


def test_normalised_bounds_use_the_log_ratio_per_token() -> None:
    models = tiny_model(TOKENIZER), tiny_model(TOKENIZER, seed=1)
    report = likelihood_report(*models, pairs(), TOKENIZER, beta=2.0, length_normalized=True, **QUIET)
    table = report.rows.with_format("numpy")
    f_w, f_l = (2 * table[f"{side}_delta"][:] / table[f"{side}_length"][:] for side in ("chosen", "rejected"))
    assert report.bounds["nwj"].mean == pytest.approx((1 + f_w - np.exp(f_l)).mean(), rel=1e-9)
    assert report.bounds["nwj_mixture"].mean == pytest.approx(
        (1 + f_w - (np.exp(f_w) + np.exp(f_l)) / 2).mean(), rel=1e-9
    )
    assert report.bounds["lsif"].mean == pytest.approx((2 * np.exp(f_w) - np.exp(2 * f_l) - 1).mean(), rel=1e-9)


def test_a_model_is_not_changed_by_itself() -> None:
    model = tiny_model(TOKENIZER)
    model.train()
    report = likelihood_report(model, tiny_model(TOKENIZER), pairs(), TOKENIZER, **QUIET)
    assert model.training
    assert {name: value.mean for name, value in report.measures.items()} == dict.fromkeys(report.measures, 0.0)
    assert all(abs(bound.mean) < 1e-12 for bound in report.bounds.values())


def test_batch_size_and_autocast_change_rounding_only() -> None:
    models, rows = (tiny_model(TOKENIZER), tiny_model(TOKENIZER, seed=1)), pairs()
    names = ("chosen_logps", "rejected_logps", "ref_chosen_logps", "ref_rejected_logps")
    one, many, coarse = (
        columns(likelihood_report(*models, rows, TOKENIZER, **settings, **QUIET).rows, *names)
        for settings in ({"batch_size": 1}, {"batch_size": 8}, {"autocast_dtype": torch.bfloat16})
    )
    np.testing.assert_allclose(one, many, rtol=1e-5)
    np.testing.assert_allclose(one, coarse, rtol=2e-2)
    assert np.abs(one - coarse).max() > 1e-3  # it did run in another precision


# --- where the reference comes from ----------------------------------------------------------------------------------


def adapted() -> Any:
    """A `PeftModel` whose adapter does something."""
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    torch.manual_seed(0)
    return get_peft_model(tiny_model(TOKENIZER), config)


def test_an_adapters_reference_is_the_model_without_it_whatever_the_mode() -> None:
    model = adapted()
    model.train()
    report = likelihood_report(model, None, pairs(), TOKENIZER, **QUIET)
    explicit = likelihood_report(adapted(), tiny_model(TOKENIZER), pairs(), TOKENIZER, **QUIET)
    assert report.measures == explicit.measures
    assert report.measures["chosen_delta"].mean != 0
    assert report.settings["reference"] == "the same model with its adapters off"
    assert model.training
    assert model.base_model.model.model.layers[0].self_attn.q_proj.disable_adapters is False


def test_columns_that_dpo_trainer_precomputed_are_the_reference(tmp_path: Path) -> None:
    rows, model, reference = pairs(), tiny_model(TOKENIZER), tiny_model(TOKENIZER, seed=1)
    ready = dpo_trainer(tmp_path, rows, tiny_model(TOKENIZER, seed=3), reference).train_dataset
    from_columns = likelihood_report(model, None, ready, TOKENIZER, max_length=64, **QUIET)
    explicit = likelihood_report(model, reference, rows, TOKENIZER, max_length=64, **QUIET)
    for name, interval in explicit.measures.items():
        assert from_columns.measures[name].mean == pytest.approx(interval.mean, abs=1e-4)
    assert "columns ref_chosen_logps" in str(from_columns)


def test_folders_are_loaded_and_a_trained_model_in_memory_is_measured_alike(tmp_path: Path) -> None:
    rows, reference = pairs(), tiny_model(TOKENIZER, seed=1)
    trainer = dpo_trainer(tmp_path / "run", rows, tiny_model(TOKENIZER, seed=1), reference)
    trainer.train()
    trainer.save_model(str(tmp_path / "tuned"))
    reference.save_pretrained(tmp_path / "start")
    in_memory = likelihood_report(trainer.model, reference, rows, TOKENIZER, **QUIET)
    from_disk = likelihood_report(tmp_path / "tuned", str(tmp_path / "start"), rows, TOKENIZER, **QUIET)
    np.testing.assert_allclose(in_memory.rows["margin"], from_disk.rows["margin"], atol=1e-4)
    assert in_memory.measures["accuracy"].mean >= 0.8  # three steps on these very pairs
    assert in_memory.measures["margin"].low > 0
    assert str(tmp_path) not in from_disk.to_markdown()


# --- intervals -------------------------------------------------------------------------------------------------------


def test_the_interval_of_single_rows_is_scipys_percentile_bootstrap() -> None:
    values = np.random.default_rng(0).gamma(2.0, 1.0, 60)
    ours = bootstrap_means({"x": values}, num_bootstrap=20_000)["x"]
    theirs = bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(1))
    assert ours.mean == pytest.approx(values.mean())
    assert (ours.low, ours.high) == pytest.approx(tuple(theirs.confidence_interval), abs=0.02)


def test_the_interval_of_groups_is_that_of_a_loop_that_draws_whole_groups() -> None:
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 8, 25)
    groups = np.repeat(np.arange(25), sizes)
    values = rng.standard_normal(25)[groups] + 0.1 * rng.standard_normal(len(groups))
    means = []
    for _ in range(5000):
        rows = np.concatenate([np.flatnonzero(groups == g) for g in rng.integers(0, 25, 25)])
        means.append(values[rows].mean())
    ours = bootstrap_means({"x": values}, [f"q{g}" for g in groups], num_bootstrap=5000, seed=3)["x"]
    assert (ours.low, ours.high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=0.05)
    alone = bootstrap_means({"x": values}, num_bootstrap=5000, seed=3)["x"]
    assert alone.high - alone.low < 0.75 * (ours.high - ours.low)  # as if the rows were independent


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(5)
    inside = 0
    for trial in range(300):
        interval = bootstrap_means({"x": rng.standard_normal(80) + 2}, num_bootstrap=400, seed=trial)["x"]
        inside += interval.low <= 2 <= interval.high
    assert 0.91 <= inside / 300 <= 0.98


def test_repeating_every_pair_widens_nothing_if_the_group_is_named(tmp_path: Path) -> None:
    rows = pairs()
    models = tiny_model(TOKENIZER), tiny_model(TOKENIZER, seed=1)
    twice = Dataset.from_list([row for row in rows.add_column("id", list(range(10))) for _ in range(3)])
    once = likelihood_report(*models, rows, TOKENIZER, **QUIET).measures["chosen_delta"]
    grouped = likelihood_report(*models, twice, TOKENIZER, groups="id", **QUIET)
    ungrouped = likelihood_report(*models, twice, TOKENIZER, **QUIET).measures["chosen_delta"]
    assert grouped.measures["chosen_delta"].high == pytest.approx(once.high, abs=1e-4)
    assert ungrouped.high - ungrouped.low < 0.75 * (once.high - once.low)
    assert grouped.settings["num_groups"] == 10
    assert grouped.rows["id"][:4] == [0, 0, 0, 1]
    assert "bootstrap over the 10 values of `id`" in grouped.to_markdown()


def test_one_group_has_no_interval() -> None:
    rows = pairs(2)
    report = likelihood_report(
        tiny_model(TOKENIZER), tiny_model(TOKENIZER, seed=1), rows, TOKENIZER, groups="question", **QUIET
    )
    assert report.measures["margin"].low is None
    assert "[" not in report.to_markdown().split("\n\n")[0].replace("[95", "")


# --- the report ------------------------------------------------------------------------------------------------------


def small_report(**settings: Any) -> LikelihoodReport:
    models = tiny_model(TOKENIZER), tiny_model(TOKENIZER, seed=1)
    return likelihood_report(*models, pairs(), TOKENIZER, groups="question", num_bootstrap=200, **settings, **QUIET)


def test_a_report_is_saved_whole_and_read_back(tmp_path: Path) -> None:
    report = small_report()
    folder = report.save(tmp_path / "report")
    names = {path.name for path in folder.iterdir()}
    assert names == {f"preference.{kind}" for kind in ("json", "md", "svg", "png")} | {"preference_rows.jsonl"}
    assert LikelihoodReport.load(folder) == report
    assert (folder / "preference.md").read_text() == report.to_markdown() == str(report)
    lines = (folder / "preference_rows.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == list(report.rows)
    svg = (folder / "preference.svg").read_text()
    assert svg.count("<use ") >= len(report.rows)  # a mark a pair
    with pytest.raises(ValueError, match="read back"):
        LikelihoodReport.load(folder).plot()


def test_a_report_that_was_read_back_is_saved_again_without_its_plot(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    report = small_report()
    report.save(tmp_path / "first", plot=False)
    LikelihoodReport.load(tmp_path / "first").save(tmp_path / "second")
    assert LikelihoodReport.load(tmp_path / "second") == report
    assert {path.name for path in (tmp_path / "second").iterdir()} == {"preference.json", "preference.md"}
    assert "it needs the rows of the pairs" in caplog.text


def test_a_second_run_gives_the_same_report() -> None:
    first, second = small_report(), small_report()
    assert first == second
    assert list(first.rows) == list(second.rows)


def test_every_number_is_a_card_entry_with_its_unit() -> None:
    report = small_report()
    (entry,) = eval_results_to_model_index("someone/model", report.eval_results())
    metrics = {metric["type"]: metric for result in entry["results"] for metric in result["metrics"]}
    assert set(metrics) == set(report.measures) | set(report.bounds)
    for key, interval in (report.measures | report.bounds).items():
        assert metrics[key]["value"] == pytest.approx(interval.mean, abs=1e-6)
    assert metrics["chosen_delta_per_token"]["name"].endswith("nats/token")


def test_the_card_takes_this_report_as_it_takes_the_other(tmp_path: Path) -> None:
    from hf_ext.hub.cards import write_model_card

    report = small_report()
    path = write_model_card(tmp_path, method="weighted_sft", report=report, model_name="someone/model")
    assert report.to_markdown().splitlines()[2] in path.read_text()


# --- what is refused, and what is left out ---------------------------------------------------------------------------


def test_pairs_without_a_token_left_are_left_out_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    rows = pairs(3).map(lambda row, i: {"prompt": "word " * 60} if i == 1 else row, with_indices=True)
    report = likelihood_report(
        tiny_model(TOKENIZER), tiny_model(TOKENIZER, seed=1), rows, TOKENIZER, max_length=70, **QUIET
    )
    assert report.rows["row_index"] == [0, 2]
    assert report.settings["left_out"] == 1
    assert "1 of 3 pairs" in caplog.text
    assert "1 pairs had no token left" in report.to_markdown()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda rows: (rows, {"reference": None}), ["no PeftModel", "reference", "ref_chosen_logps"]),
        (lambda rows: (rows, {"reference": None, "model": "folder"}), ["PeftModel in memory"]),
        (lambda rows: (rows, {"groups": "id"}), ["groups='id'", "question"]),
        (lambda rows: (rows.add_column("image", [None] * 10), {}), ["'image'", "text only"]),
        (lambda rows: (rows.select([]), {}), ["empty"]),
        (lambda rows: (rows, {"max_length": 3}), ["None of 10 pairs", "Raise max_length"]),
        (lambda rows: (rows, {"beta": -1.0}), ["beta"]),
        (lambda rows: (rows, {"num_bootstrap": 0}), ["num_bootstrap"]),
    ],
)
def test_what_cannot_be_measured_is_a_value_error(change: Any, words: list[str]) -> None:
    rows, settings = change(pairs())
    model = settings.pop("model", None) or tiny_model(TOKENIZER)
    reference = settings.pop("reference", tiny_model(TOKENIZER))
    with pytest.raises(ValueError, match=words[0]) as caught:
        likelihood_report(model, reference, rows, TOKENIZER, **settings, **QUIET)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_a_malformed_pair_is_named() -> None:
    rows = Dataset.from_dict({"prompt": ["a", "b"], "chosen": ["x", "y"], "rejected": ["z", None]})
    with pytest.raises(RowError, match="row 1, column 'rejected'"):
        likelihood_report(tiny_model(TOKENIZER), tiny_model(TOKENIZER), rows, TOKENIZER, **QUIET)


def test_a_stream_is_refused() -> None:
    with pytest.raises(TypeError, match="IterableDataset"):
        likelihood_report(
            tiny_model(TOKENIZER), tiny_model(TOKENIZER), pairs().to_iterable_dataset(), TOKENIZER, **QUIET
        )


def test_a_model_that_gives_nan_is_named_with_the_row() -> None:
    broken = tiny_model(TOKENIZER)
    with torch.no_grad():
        broken.model.norm.weight.fill_(math.nan)
    with pytest.raises(FloatingPointError, match=r"policy: row \d+ gives .*nan.*10 rows"):
        likelihood_report(broken, tiny_model(TOKENIZER), pairs(), TOKENIZER, **QUIET)


def test_an_adapter_that_changes_the_base_weights_needs_a_reference() -> None:
    config = LoraConfig(r=4, target_modules=["q_proj"], bias="all")
    model = get_peft_model(tiny_model(TOKENIZER), config)
    with pytest.raises(ValueError, match="changes the base weights"):
        likelihood_report(model, None, pairs(), TOKENIZER, **QUIET)


# --- real pairs ------------------------------------------------------------------------------------------------------


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "group_of"),
    [
        ("gsm8k_solutions/preference_pairs", lambda row: row["prompt"][0]["content"]),
        ("hh_rlhf_harmless/test", lambda row: row["id"]),
    ],
    ids=["gsm8k", "hh"],
)
def test_real_pairs_are_scored_as_dpo_trainer_scores_them(
    real_data: Path, tmp_path: Path, name: str, group_of: Any
) -> None:
    rows = Dataset.from_json(str(real_data / f"{name}.jsonl.gz"), cache_dir=str(tmp_path)).select(range(12))
    rows = rows.add_column("group", [group_of(row) for row in rows])
    model, reference = tiny_model(TOKENIZER), tiny_model(TOKENIZER, seed=1)
    report = likelihood_report(model, reference, rows, TOKENIZER, groups="group", max_length=300, **QUIET)
    scored = [rows[i] for i in report.rows["row_index"]]
    assert report.settings["num_groups"] == len({group_of(row) for row in scored})
    args = config_of(DPOConfig, tmp_path, precompute_ref_log_probs=True, max_length=300)
    stock = DPOTrainer(tiny_model(TOKENIZER), reference, args, train_dataset=rows, processing_class=TOKENIZER)
    kept = {row["id"]: (row["ref_chosen_logps"], row["ref_rejected_logps"]) for row in stock.train_dataset}
    assert len(report.rows) + report.settings["left_out"] == 12
    for row, raw in zip(report.rows, scored, strict=True):
        assert (row["ref_chosen_logps"], row["ref_rejected_logps"]) == pytest.approx(kept[raw["id"]], rel=1e-4)
