"""CORE while a trainer trains: in the log, in the metrics, on the card; and the training is none the other for it."""

from __future__ import annotations

import pytest
import torch
from trl import SFTConfig, SFTTrainer

from hf_ext.evaluation.core.callback import CoreCallback
from hf_ext.evaluation.core.evaluate import evaluate_core
from hf_ext.evaluation.core.report import CoreReport
from hf_ext.trainers.weighted_sft import WeightedSFTConfig, WeightedSFTTrainer
from tests.evaluation.core.small_tasks import small_rows, write_tasks
from tests.tiny import tiny_model, tiny_prompt_completion_dataset, tiny_tokenizer

TOKENIZER = tiny_tokenizer()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    labels = ("copa", "winograd", "lambada_openai")
    return write_tasks(tmp_path_factory.mktemp("tasks"), {label: small_rows(label, 6) for label in labels})


def trainer_in(folder, trainer_class=SFTTrainer, config_class=SFTConfig, **settings):
    common = {
        "max_steps": 4, "eval_steps": 2, "eval_strategy": "steps", "save_strategy": "no", "report_to": "none",
        "bf16": False, "use_cpu": True, "disable_tqdm": True, "learning_rate": 1e-2, "per_device_train_batch_size": 2,
        "logging_steps": 1, "max_length": 64,
    }  # fmt: skip
    rows = tiny_prompt_completion_dataset(8)
    return trainer_class(
        tiny_model(TOKENIZER),
        config_class(str(folder), **common | settings),
        train_dataset=rows,
        eval_dataset={"one": rows, "two": rows},
        processing_class=TOKENIZER,
    )


def test_scores_are_logged_once_a_step_and_training_is_the_same_to_the_bit(tmp_path, data):
    plain, watched = trainer_in(tmp_path / "plain"), trainer_in(tmp_path / "watched")
    callback = CoreCallback(watched, data, max_rows=4)
    watched.add_callback(callback)
    plain.train()
    watched.train()
    weights = watched.model.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in plain.model.state_dict().items())
    losses = [[log["loss"] for log in trainer.state.log_history if "loss" in log] for trainer in (plain, watched)]
    assert losses[0] == losses[1]
    logs = [log for log in watched.state.log_history if "eval_core3_v2" in log]
    assert [log["step"] for log in logs] == [2, 4]
    report = evaluate_core(watched.model, TOKENIZER, data, max_rows=4, show_progress=False)
    assert logs[-1]["eval_core3_v2"] == report.score("v2").value
    assert logs[-1]["eval_core3_v1_standard_error"] == report.score("v1").standard_error
    assert callback.report.tasks == report.tasks
    assert CoreReport.load(tmp_path / "watched" / "core" / "step-4").tasks == report.tasks
    assert watched.model.training == plain.model.training


def test_the_card_has_the_report_of_the_weights_that_are_saved(tmp_path, data):
    trainer = trainer_in(tmp_path, WeightedSFTTrainer, WeightedSFTConfig, save_strategy="steps", save_steps=1)
    trainer.add_callback(CoreCallback(trainer, data, max_rows=4))
    trainer.train()
    cards = [(tmp_path / f"checkpoint-{step}" / "README.md").read_text() for step in (1, 2, 3, 4)]
    assert ["## DCLM CORE" in card for card in cards] == [False, True, False, True]  # as every second is evaluated
    assert "core3_v2" in cards[1].partition("---\n\n")[0]  # the model-index
    assert trainer.core_report.tasks == CoreReport.load(tmp_path / "core" / "step-4").tasks
    trainer.save_model(str(tmp_path / "saved"))
    assert trainer.core_report.to_markdown().splitlines()[2] in (tmp_path / "saved" / "README.md").read_text()


def test_the_best_model_is_chosen_by_core_and_has_its_own_report(tmp_path, data):
    trainer = trainer_in(
        tmp_path, WeightedSFTTrainer, WeightedSFTConfig, save_strategy="steps", save_steps=2, learning_rate=0.3,
        load_best_model_at_end=True, metric_for_best_model="eval_core3_v2", greater_is_better=True,
    )  # fmt: skip
    trainer.add_callback(CoreCallback(trainer, data, max_rows=6))
    trainer.train()
    values = {log["step"]: log["eval_core3_v2"] for log in trainer.state.log_history if "eval_core3_v2" in log}
    best = max(values, key=values.get)  # the first on a tie, as the trainer has it
    assert trainer.state.best_global_step == best
    again = evaluate_core(trainer.model, TOKENIZER, data, max_rows=6, show_progress=False)
    assert trainer.core_report.tasks == again.tasks


def test_a_trainer_that_shards_its_parameters_is_refused(tmp_path, data):
    trainer = trainer_in(tmp_path)
    trainer.is_fsdp_enabled = True
    with pytest.raises(ValueError, match=r"sharded.*hf-ext eval core"):
        CoreCallback(trainer, data)
