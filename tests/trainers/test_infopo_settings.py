"""What InfoPO refuses, and what it says of rows and references it cannot use."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from trl import DPOConfig, KTOConfig

from hf_ext.guards.finite import NonFiniteError
from hf_ext.guards.rows import RowError
from hf_ext.trainers.infopo import InfoPOConfig, InfoPOTrainer, InfoPOUnpairedConfig, InfoPOUnpairedTrainer
from tests.tiny import tiny_model
from tests.trainers.preference import first_batch, pairs, singles, start
from tests.trainers.runs import TOKENIZER, config_of, train


def ours(folder: Path, rows: Any = 8, **changes: Any) -> Any:
    return start(InfoPOTrainer, InfoPOConfig, folder / "ours", rows, **changes)


CPU: dict[str, Any] = {"use_cpu": True, "bf16": False}
BOTH: dict[str, tuple[dict[str, Any], str]] = {
    "unknown estimator": ({"estimator": "nwjj"}, "'nwjj' is not one of nwj, .* Did you mean 'nwj'"),
    "dv": ({"estimator": "dv"}, "Use 'nwj'"),
    "beta zero": ({"beta": 0.0}, "beta must be a positive, finite number, got 0.0"),
    "beta negative": ({"beta": -0.1}, "beta must be"),
    "beta nan": ({"beta": math.nan}, "beta must be"),
    "exponent zero": ({"max_exponent": 0.0}, "max_exponent must be a positive"),
    "exponent high": ({"max_exponent": 81.0}, "max_exponent must be at most 80, got 81.0"),
    "tolerance": ({"guard_tolerance": -0.1}, "guard_tolerance must be finite and at least 0"),
    "patience": ({"guard_patience": 0}, "guard_patience must be at least 1"),
    "guard": ({"likelihood_guard": "halt"}, r"likelihood_guard must be one of \('off', 'warn', 'stop'\), got 'halt'"),
    "bad rows": ({"on_bad_row": "skip"}, "on_bad_row must be one of"),
    "reference-free sums": ({"reference_free": True}, "Set length_normalized=True"),
    "reference-free, precomputed": (
        {"reference_free": True, "length_normalized": True, "precompute_ref_log_probs": True},
        "reference_free=True leaves no reference model for precompute_ref_log_probs=True",
    ),
    "reference-free, synced": (
        {"reference_free": True, "length_normalized": True, "sync_ref_model": True}, "sync_ref_model=True",
    ),
}  # fmt: skip
PAIRED: dict[str, tuple[dict[str, Any], str]] = {
    "twice": ({"loss_type": ["infopo", "infopo"]}, "names 'infopo' twice"),
    "weights": ({"loss_type": ["infopo", "sft"], "loss_weights": [1.0]}, "`loss_weights` must have the same length"),
    "ld_alpha": ({"ld_alpha": 0.5}, r"ld_alpha=0.5 does not go with loss_type=\['infopo'\]"),
    "use_weighting": ({"use_weighting": True}, r"use_weighting=True does not go with loss_type=.* 'weight' column"),
    "divergence": (
        {"f_divergence_type": "js_divergence", "loss_type": ["infopo", "sft"]},
        r"f_divergence_type='js_divergence' does not go with loss_type=\['infopo', 'sft'\]",
    ),
    "smoothing": ({"label_smoothing": 0.1}, "label_smoothing=0.1 does not go with"),
}
UNPAIRED: dict[str, tuple[dict[str, Any], str]] = {
    "infonce": ({"estimator": "infonce"}, "unpaired rows have no partner. Use 'jsd'"),
    "kto": ({"loss_type": "kto"}, "chosen by estimator"),
    "desirable": ({"desirable_weight": 2.0}, "desirable_weight=2.0 is KTO's"),
    "undesirable": ({"undesirable_weight": 2.0}, "undesirable_weight=2.0 is KTO's"),
    "fraction": ({"positive_fraction": 1.0}, "positive_fraction must lie between 0 and 1"),
}


@pytest.mark.parametrize(("settings", "said"), [*BOTH.values(), *PAIRED.values()], ids=[*BOTH, *PAIRED])
def test_a_setting_that_cannot_be_honoured_is_refused(settings: dict, said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said):
        InfoPOConfig(str(tmp_path), **CPU, **settings)


@pytest.mark.parametrize(("settings", "said"), [*BOTH.values(), *UNPAIRED.values()], ids=[*BOTH, *UNPAIRED])
def test_an_unpaired_setting_that_cannot_be_honoured_is_refused(settings: dict, said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said):
        InfoPOUnpairedConfig(str(tmp_path), **CPU, **settings)


def test_what_only_host_losses_use_stays_allowed_beside_them(tmp_path: Path) -> None:
    InfoPOConfig(str(tmp_path), **CPU, loss_type=["infopo", "robust"], label_smoothing=0.1)
    InfoPOConfig(str(tmp_path), **CPU, loss_type="sigmoid", ld_alpha=0.5, f_divergence_type="js_divergence")
    assert InfoPOConfig(str(tmp_path), **CPU).loss_type == ["infopo"]
    assert InfoPOConfig(str(tmp_path), **CPU, loss_type="infopo").loss_type == ["infopo"]


def test_precomputed_and_synced_references_are_refused_by_the_host(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"`sync_ref_model=True` together with `precompute_ref_log_probs=True`"):
        ours(tmp_path, sync_ref_model=True, precompute_ref_log_probs=True)


def test_lsif_on_sums_with_a_large_beta_warns(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for quiet in ({"beta": 0.1}, {"beta": 2.0, "length_normalized": True}):
        InfoPOConfig(str(tmp_path), **CPU, estimator="lsif", **quiet)
    assert not caplog.text
    InfoPOConfig(str(tmp_path), **CPU, estimator="lsif", beta=2.0)
    assert "exp(2 * beta * log-ratio) is the first to overflow" in caplog.text


@pytest.mark.parametrize(
    ("trainer", "given", "rows", "loss_type"),
    [
        (InfoPOTrainer, DPOConfig, pairs(8), ["infopo"]),
        (InfoPOUnpairedTrainer, KTOConfig, singles(8), "apo_zero_unpaired"),
    ],
    ids=["paired", "unpaired"],
)
def test_a_plain_host_configuration_is_taken(
    trainer: Any, given: Any, rows: Dataset, loss_type: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    taken = start(trainer, given, tmp_path, rows, beta=0.07, hub_token="secret")
    assert type(taken.args) is trainer.config_class
    assert (taken.args.beta, taken.args.loss_type, taken.args.hub_token) == (0.07, loss_type, "secret")
    assert taken.args.train_sampling_strategy == "random"
    assert "was given with the default loss_type" in caplog.text
    assert train(taken)


def test_a_plain_dpo_configuration_of_another_loss_stays_that_loss(tmp_path: Path) -> None:
    taken = start(InfoPOTrainer, DPOConfig, tmp_path, loss_type=["ipo"])
    assert taken.loss_types == ["ipo"]
    assert taken.infopo_weight is None


# --- the reference model ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trainer", [InfoPOTrainer, InfoPOUnpairedTrainer])
def test_a_model_in_memory_without_a_reference_is_told_what_to_do(trainer: Any, tmp_path: Path) -> None:
    rows = pairs(4)
    with pytest.raises(
        ValueError, match="Save it with save_pretrained and pass the folder, or pass a copy as ref_model"
    ):
        start(trainer, trainer.config_class, tmp_path, rows, reference=None)
    gone = tiny_model(TOKENIZER)
    gone.config._name_or_path = str(tmp_path / "no-longer-there")
    with pytest.raises(ValueError, match="its folder 'no-longer-there' is gone"):
        start(trainer, trainer.config_class, tmp_path, rows, model=gone, reference=None)


def test_a_model_from_a_folder_is_its_own_reference(tmp_path: Path) -> None:
    tiny_model(TOKENIZER).save_pretrained(tmp_path / "model")
    TOKENIZER.save_pretrained(tmp_path / "model")
    args = config_of(InfoPOConfig, tmp_path / "out", learning_rate=0.02, max_grad_norm=0.0, max_steps=3)
    trainer = InfoPOTrainer(str(tmp_path / "model"), args=args, train_dataset=pairs(12))
    other = ours(tmp_path, 12)
    assert train(trainer) == train(other)


@pytest.mark.parametrize("guard_only", [False, True])
def test_a_policy_far_from_its_reference_at_the_start_is_reported(
    guard_only: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = pairs(8).add_column("ref_chosen_logps", [-500.0] * 8).add_column("ref_rejected_logps", [-500.0] * 8)
    settings = {"precompute_ref_log_probs": True, "loss_type": "sigmoid" if guard_only else "infopo"}
    train(ours(tmp_path, rows, max_steps=2, learning_rate=0.0, **settings))
    assert caplog.text.count("nats per token away from the reference") == 1
    caplog.clear()
    train(ours(tmp_path, max_steps=1))
    assert "away from the reference" not in caplog.text


# --- rows ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_a_reference_column_that_is_not_finite_names_row_and_column(value: float, tmp_path: Path) -> None:
    values = [-30.0] * 8
    rows = pairs(8).add_column("ref_chosen_logps", values)
    rows = rows.add_column("ref_rejected_logps", [*values[:5], value, *values[6:]])
    with pytest.raises(RowError, match=r"row 5, column 'ref_rejected_logps': expected a finite number of nats"):
        ours(tmp_path, rows, precompute_ref_log_probs=True, reference=None)


def test_a_computed_reference_that_is_not_finite_names_its_rows(tmp_path: Path) -> None:
    reference = tiny_model(TOKENIZER)
    reference.model.norm.weight.data.fill_(math.nan)
    with pytest.raises(NonFiniteError, match="ref_chosen_logps of the train dataset") as caught:
        ours(tmp_path, 4, precompute_ref_log_probs=True, kwargs={"ref_model": reference})
    assert caught.value.row_indices == [0, 1, 2, 3]


def test_a_reference_that_breaks_in_the_step_stops_it(tmp_path: Path) -> None:
    trainer = ours(tmp_path)
    trainer.ref_model.model.norm.weight.data.fill_(math.inf)
    with pytest.raises(NonFiniteError, match="reference log-probability") as caught:
        trainer.train()
    assert len(caught.value.row_indices) == 4
    assert caught.value.step == 0


@pytest.mark.parametrize(("trainer", "rows"), [(InfoPOTrainer, pairs(8)), (InfoPOUnpairedTrainer, singles(8))])
def test_rows_whose_prompt_fills_max_length_are_counted(
    trainer: Any, rows: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    long = rows.map(lambda row, i: {"prompt": row["prompt"] * (9 if i in (2, 6) else 1)}, with_indices=True)
    kept = start(trainer, trainer.config_class, tmp_path, long)
    assert kept.train_dataset["__hf_ext_row__"][:] == [0, 1, 3, 4, 5, 7]
    assert "2 of 8 rows (25.0 %) of the train dataset have no completion token left" in caplog.text
    with pytest.raises(ValueError, match="None of the 8 rows of the train dataset has a completion token left"):
        start(trainer, trainer.config_class, tmp_path, rows, max_length=4)


def test_an_empty_completion_counts_nothing_and_divides_by_one(tmp_path: Path) -> None:
    """A completion of one token behind an empty prompt: that token is predicted from nothing."""
    rows = Dataset.from_dict({"prompt": ["", ""], "chosen": ["<|im_end|>", "Ada"], "rejected": ["Ben", "Chen"]})
    trainer = ours(tmp_path, rows, length_normalized=True, beta=1.0, reference=1)
    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, first_batch(trainer))
    assert torch.isfinite(loss)
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in trainer.model.parameters() if p.grad is not None)


@pytest.mark.parametrize("trainer", [InfoPOTrainer, InfoPOUnpairedTrainer])
def test_an_empty_dataset_is_a_sentence(trainer: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="The train dataset is empty"):
        start(trainer, trainer.config_class, tmp_path, pairs(2).select([]))


@pytest.mark.parametrize("losses", [["infopo", "sft"], ["sigmoid"]])
def test_weights_beside_losses_of_the_host_are_refused(losses: list[str], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has a 'weight' column, and loss_type="):
        ours(tmp_path, pairs(8).add_column("weight", [1.0] * 8), loss_type=losses)


@pytest.mark.parametrize("good", [0.0, 1.0])
def test_one_class_only_is_refused(good: float, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"label={bool(good)}.*no maximum. Add rows of the other class"):
        start(InfoPOUnpairedTrainer, InfoPOUnpairedConfig, tmp_path, singles(8, good))


def test_dropped_rows_are_written_and_the_rest_is_trained_on(tmp_path: Path) -> None:
    rows = pairs(8).to_list()
    rows[3]["rejected"] = rows[3]["chosen"]
    rows[6]["chosen"] = ""
    trainer = ours(tmp_path, Dataset.from_list(rows), on_bad_row="drop")
    assert trainer.train_dataset["__hf_ext_row__"][:] == [0, 1, 2, 4, 5, 7]
    assert len((tmp_path / "ours" / "bad_rows.jsonl").read_text(encoding="utf-8").splitlines()) == 2
    assert train(trainer)


def test_a_stream_without_its_share_of_good_rows_is_refused(tmp_path: Path) -> None:
    stream = singles(8).to_iterable_dataset()
    with pytest.raises(ValueError, match="set positive_fraction"):
        start(InfoPOUnpairedTrainer, InfoPOUnpairedConfig, tmp_path, stream)
    assert train(start(InfoPOUnpairedTrainer, InfoPOUnpairedConfig, tmp_path, stream, positive_fraction=0.5))


def test_a_given_share_far_from_the_data_sets_warns(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        start(InfoPOUnpairedTrainer, InfoPOUnpairedConfig, tmp_path, singles(8), positive_fraction=0.9)
    assert "positive_fraction=0.9, and 0.500 of the train dataset's rows are good" in caplog.text


def test_arguments_of_another_trainer_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="InfoPOTrainer needs a InfoPOConfig, got KTOConfig"):
        start(InfoPOTrainer, KTOConfig, tmp_path, pairs(8))
