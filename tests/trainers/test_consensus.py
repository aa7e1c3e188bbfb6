"""The recipe against a loop written by hand with the stock trainer, and what it refuses."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, load_from_disk
from transformers import BertForSequenceClassification, Trainer, TrainingArguments, set_seed

from hf_ext.data.relabeling import RRChannel
from hf_ext.losses.label_noise import forward_loss_func
from hf_ext.rounds.consensus import ConsensusRecipe
from hf_ext.rounds.consensus_report import ConsensusResult
from tests.trainers.classifiers import consensus_config, labelled_rows, tiny_bert, token_rows
from tests.trainers.runs import assert_same_weights

CHANNEL = RRChannel(math.log(0.7 / 0.15), 3)  # 30 % of the labels are wrong
PLAIN: dict[str, Any] = {"select_on_noisy_eval": False, "mode": "consensus", "budget": "epochs"}
N = 64


def run(
    folder: Path, rows: Dataset, *, channel: RRChannel | None = CHANNEL, init: Any = tiny_bert, **changes: Any
) -> Any:
    return ConsensusRecipe(Trainer, init, consensus_config(folder, **(PLAIN | changes)), rows, channel=channel).run()


@pytest.fixture(scope="module")
def rows() -> Dataset:
    return labelled_rows(N, 0.3, 1)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, rows: Dataset) -> tuple[Path, ConsensusResult]:
    """A run of round 1 and one round of consensus at equal epochs."""
    folder = tmp_path_factory.mktemp("consensus")
    return folder, run(folder, rows)


def stock(folder: Path, rows: Dataset, channel: RRChannel | None, **changes: Any) -> Any:
    """The stock trainer on the same rows from the same initial weights."""
    config = consensus_config(folder, **PLAIN).to_dict()
    names = ("per_device_train_batch_size", "num_train_epochs", "learning_rate", "seed", "use_cpu", "report_to",
             "disable_tqdm", "save_strategy", "dataloader_pin_memory", "bf16")  # fmt: skip
    args = TrainingArguments(output_dir=str(folder), **{name: config[name] for name in names} | changes)
    set_seed(args.seed)
    model = tiny_bert()
    set_seed(args.seed)
    loss = forward_loss_func(channel) if channel is not None else None
    trainer = Trainer(model, args, train_dataset=rows, compute_loss_func=loss)
    trainer.train()
    return trainer


def saved(folder: Path) -> Any:
    return BertForSequenceClassification.from_pretrained(folder)


# --- the rounds ------------------------------------------------------------------------------------------------------


def test_round_one_is_the_stock_trainer_with_the_forward_loss_bit_for_bit(done: Any, rows: Dataset, tmp_path: Path):
    _, result = done
    assert_same_weights(saved(result.models[0]), stock(tmp_path, rows, CHANNEL).model)


def test_round_two_is_the_stock_trainer_on_the_rows_that_pandas_keeps(done: Any, rows: Dataset, tmp_path: Path):
    folder, result = done
    first = saved(result.models[0]).eval()
    with torch.no_grad():
        own = first(input_ids=torch.tensor(rows["input_ids"][:])).logits.argmax(-1).numpy()
    frame = rows.to_pandas()
    frame["pred"] = own
    kept = frame.query("label == pred").index.tolist()
    assert 0 < len(kept) < N
    assert result.rounds[1].rows == len(kept)
    assert result.rounds[1].kept == np.bincount(frame.loc[kept, "label"], minlength=3).tolist()
    assert result.rounds[0].agreement == pytest.approx(len(kept) / N)
    trainer = stock(tmp_path, rows.select(kept), None)
    assert result.rounds[1].steps == trainer.state.global_step
    ours, theirs = saved(result.models[1]), trainer.model
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=2e-5)  # its loss is another kernel's mean
    assert_same_weights(saved(folder), ours)


def test_the_result_is_a_stock_folder_with_a_card_and_no_pickle(done: Any) -> None:
    folder, result = done
    assert result.chosen == "consensus, equal epochs"
    card = (folder / "README.md").read_text(encoding="utf-8")
    for words in (
        "epsilon 1.54",
        "randomised response over 3 classes",
        "features are not",
        "2406.11206",
        "| `rounds` |",
    ):
        assert words in card
    assert "None" not in card
    assert "## Limitations" in card
    names = {path.name for path in folder.rglob("*") if path.is_file()}
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pth", ".pkl"))]
    table = (folder / "rounds.md").read_text(encoding="utf-8")
    assert table == result.report
    assert f"| 2 | consensus, equal epochs | ce | {result.rounds[1].rows} |" in table
    assert "in-sample" in table, "accuracy of a round's own rows must be called what it is"


def test_a_second_call_trains_nothing_and_gives_the_same(done: Any, rows: Dataset, monkeypatch: Any) -> None:
    folder, result = done
    monkeypatch.setattr(Trainer, "train", lambda *_, **__: pytest.fail("trained again"))
    again = run(folder, rows)
    assert again.trainer is None
    assert [r.to_dict() for r in again.rounds] == [r.to_dict() for r in result.rounds]


def test_other_settings_rows_or_model_in_the_same_folder_are_refused(done: Any, rows: Dataset) -> None:
    folder, _ = done
    with pytest.raises(ValueError, match=r"learning_rate was 0\.005, is 0\.01; adam_epsilon was 1e-08, is 1\.0"):
        run(folder, rows, learning_rate=0.01, adam_epsilon=1.0)
    with pytest.raises(ValueError, match="begun with other settings: other training rows"):
        run(folder, labelled_rows(N, 0.3, 2))
    swapped = rows.map(lambda row: {"input_ids": row["input_ids"][::-1] if row["id"] == "row-7" else row["input_ids"]})
    with pytest.raises(ValueError, match=r"other training rows \(first in row 7, column 'input_ids'\)"):
        run(folder, swapped)
    with pytest.raises(ValueError, match=r"column 'weight' is new"):
        run(folder, rows.add_column("weight", [1.0] * N))
    with pytest.raises(ValueError, match="initial_weights was"):
        run(folder, rows, init=lambda: tiny_bert(seed=1))
    with pytest.raises(ValueError, match=r"config\.hidden_dropout_prob was 0\.0, is 0\.5"):
        run(folder, rows, init=lambda: tiny_bert(hidden_dropout_prob=0.5))


def test_logs_paths_and_the_pace_of_saving_may_change(done: Any, rows: Dataset, monkeypatch: Any) -> None:
    folder, result = done
    monkeypatch.setattr(Trainer, "train", lambda *_, **__: pytest.fail("trained again"))
    again = run(folder, rows, logging_steps=1, save_strategy="steps", save_steps=1, run_name="x", disable_tqdm=False)
    assert again.report == result.report


def test_equal_steps_are_the_first_rounds_and_at_most_four_times_its_epochs(rows: Dataset, tmp_path: Path) -> None:
    result = run(tmp_path / "steps", rows, budget="steps", num_train_epochs=1)
    assert result.rounds[1].steps == result.rounds[0].steps == N // 8
    with torch.no_grad():
        untrained = tiny_bert().eval()(input_ids=torch.tensor(rows["input_ids"][:])).logits.argmax(-1)
    labels = [int(pred + (i >= 6)) % 3 for i, pred in enumerate(untrained)]  # the first six agree with what it says
    hard = rows.remove_columns("label").add_column("label", labels)
    result = run(tmp_path / "cap", hard, budget="steps", num_train_epochs=1, learning_rate=1e-9)
    assert result.rounds[1].rows == 6
    assert result.rounds[1].steps == 4, "four passes over six rows, a batch each: fewer than the first round's 8"


def test_every_round_starts_from_the_same_weights(rows: Dataset, tmp_path: Path) -> None:
    made: list[torch.Tensor] = []

    def init() -> Any:
        model = tiny_bert()
        model.classifier.reset_parameters()  # a fresh head, as from_pretrained draws it
        made.append(model.classifier.weight.detach().clone())
        return model

    run(tmp_path, rows, init=init, num_train_epochs=1)
    assert len(made) == 3  # once to know them, once a round
    assert torch.equal(made[1], made[2])
    assert torch.equal(made[0], made[1])


def test_a_model_init_that_returns_the_trained_model_is_refused(rows: Dataset, tmp_path: Path) -> None:
    model = tiny_bert()
    with pytest.raises(ValueError, match="model_init\\(\\) gave other weights than before"):
        run(tmp_path, rows, init=lambda: model, num_train_epochs=1)


def test_without_reinit_a_round_starts_where_the_one_before_ended(rows: Dataset, tmp_path: Path) -> None:
    result = run(tmp_path, rows, reinit=False, num_train_epochs=1, learning_rate=0.0, mode="full", budget="steps")
    assert_same_weights(saved(result.models[0]), saved(result.models[1]))
    result = run(tmp_path / "b", rows, reinit=False, num_train_epochs=1)
    fresh = run(tmp_path / "c", rows, reinit=True, num_train_epochs=1)
    assert_same_weights(saved(result.models[0]), saved(fresh.models[0]))
    assert not torch.equal(saved(result.models[1]).classifier.weight, saved(fresh.models[1]).classifier.weight)


# --- the choice ------------------------------------------------------------------------------------------------------


def test_the_strategy_is_chosen_without_a_clean_label(tmp_path: Path) -> None:
    """A run whose clean column is shuffled, and one without it, end in the same weights and the same table."""
    rows = labelled_rows(48, 0.3, 1)
    spoilt = rows.remove_columns("clean").add_column("clean", list(np.random.default_rng(0).integers(0, 3, 48)))
    found = []
    for name, some in (("shuffled", spoilt), ("without", rows.remove_columns("clean"))):
        result = run(tmp_path / name, some, select_on_noisy_eval=True, selection_folds=2, num_train_epochs=1)
        found.append((result.report, saved(tmp_path / name)))
        assert result.choice is not None
        assert set(result.choice.accuracy) == {"round 1", "consensus, equal epochs"}
        held_out = [load_from_disk(str(tmp_path / name / f"folds/{k}/round-1/predictions-held_out")) for k in (0, 1)]
        assert all(all(part["pred_is_out_of_fold"]) for part in held_out)
        assert sum(map(len, held_out)) == 48
    assert found[0][0] == found[1][0]
    assert_same_weights(found[0][1], found[1][1])


def test_cross_fitting_no_row_is_predicted_by_a_model_that_saw_its_label(tmp_path: Path) -> None:
    """Poison one label: the prediction of that row, by which it is judged, does not move; in-sample ones do."""
    rows = labelled_rows(40, 0.2, 3)
    poisoned = rows.map(lambda row, i: {"label": (row["label"] + (i == 5)) % 3}, with_indices=True)

    def probabilities(name: str, some: Dataset, cross_fit: int) -> np.ndarray:
        run(tmp_path / name, some, cross_fit=cross_fit, num_train_epochs=2, mode="full", budget="steps")
        if cross_fit == 0:
            return np.array(load_from_disk(str(tmp_path / name / "rounds/round-1/predictions-train"))["probs"])
        from hf_ext.rounds.parts import fold_of

        folds, found = fold_of(some, cross_fit), np.zeros((40, 3))
        for k in range(cross_fit):
            part = load_from_disk(str(tmp_path / name / f"rounds/cross/{k}/round-1/predictions-held_out"))
            found[folds == k] = part["probs"]
        return found

    clean, spoilt = (probabilities(name, some, 2) for name, some in (("clean", rows), ("spoilt", poisoned)))
    assert (clean[5] == spoilt[5]).all()
    assert (clean != spoilt).any(), "the label does reach the models of the other folds"
    clean, spoilt = (probabilities(f"{name}-in", some, 0) for name, some in (("clean", rows), ("spoilt", poisoned)))
    assert (clean[5] != spoilt[5]).any()


# --- other kinds of labels -------------------------------------------------------------------------------------------


def test_tokens_that_disagree_are_masked_and_no_row_is_dropped(tmp_path: Path) -> None:
    rows = token_rows(40, 0.3, 1)
    result = run(tmp_path, rows, init=lambda: tiny_bert(tokens=True), budget="steps", num_train_epochs=6)
    assert result.rounds[1].rows == 40
    assert sum(result.rounds[0].kept) == 40 * 11  # the first word has no label
    found = load_from_disk(str(tmp_path / "rounds/round-1/predictions-train"))
    pred, given = np.array(found["pred"]), np.array(rows["labels"])
    agree = (pred == given) & (given != -100)
    assert sum(result.rounds[1].kept) == agree.sum()
    assert result.rounds[0].agreement == pytest.approx(agree.sum() / (40 * 11))
    assert result.rounds[1].steps == result.rounds[0].steps
    assert (pred[:, 1:] == np.array(rows["clean"])[:, 1:]).mean() > 0.8  # of the given labels 0.7 are right
    assert "token-classification" in (tmp_path / "README.md").read_text(encoding="utf-8")


def test_soft_labels_are_a_distribution_a_row(rows: Dataset, tmp_path: Path) -> None:
    result = run(tmp_path, rows, mode="bayes_soft", budget="steps", num_train_epochs=2)
    assert result.rounds[1].rows == N
    assert result.rounds[1].steps == result.rounds[0].steps
    found = load_from_disk(str(tmp_path / "rounds/round-1/predictions-train"))
    likelihood = CHANNEL.matrix()[:, rows["label"][:]].T
    posterior = np.array(found["probs"]) * likelihood
    posterior /= posterior.sum(1, keepdims=True)
    posterior = np.where(posterior >= 1e-3, posterior, 0)
    posterior /= posterior.sum(1, keepdims=True)

    class Soft(Trainer):
        def compute_loss(self, model: Any, inputs: Any, *_: Any, **__: Any) -> Any:
            target = inputs.pop("target")
            return -(target * model(**inputs).logits.log_softmax(-1)).sum(-1).mean()

    data = rows.remove_columns(["label", "clean", "id"]).add_column("target", posterior.astype(np.float32).tolist())
    args = TrainingArguments(
        output_dir=str(tmp_path / "stock"), per_device_train_batch_size=8, num_train_epochs=2, learning_rate=5e-3,
        seed=7, use_cpu=True, report_to="none", disable_tqdm=True, save_strategy="no", remove_unused_columns=False,
        bf16=False,
    )  # fmt: skip
    set_seed(7)
    model = tiny_bert()
    set_seed(7)
    Soft(model, args, train_dataset=data).train()
    for one, other in zip(saved(result.models[1]).parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=2e-5)


def test_pictures_go_through_the_same_rounds(tmp_path: Path) -> None:
    from transformers import ViTConfig, ViTForImageClassification

    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 32)
    pixels = (rng.random((32, 1, 8, 8)) + labels[:, None, None, None]).astype(np.float32)
    rows = Dataset.from_dict({"pixel_values": pixels.tolist(), "label": labels})

    def vit() -> Any:
        config = ViTConfig(image_size=8, patch_size=4, num_channels=1, hidden_size=16, num_hidden_layers=1,
                           num_attention_heads=2, intermediate_size=16, num_labels=2)  # fmt: skip
        return ViTForImageClassification(config)

    result = run(tmp_path, rows, init=vit, channel=RRChannel(3.0, 2), num_train_epochs=1)
    assert result.rounds[1].rows > 0
    assert "image-classification" in (tmp_path / "README.md").read_text(encoding="utf-8")
    assert ViTForImageClassification.from_pretrained(tmp_path).config.num_labels == 2


# --- what it says and what it refuses --------------------------------------------------------------------------------


def test_a_class_that_vanishes_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = labelled_rows(48, 0.0, 1).filter(lambda row, i: row["label"] != 2 or i < 6, with_indices=True)
    with caplog.at_level(logging.WARNING, "hf_ext"):
        result = run(tmp_path, rows, num_train_epochs=2, min_rows_per_class=30)
    assert result.rounds[1].vanished == ["music"]
    assert "No label is left of 1 class: music" in caplog.text
    assert "keeps fewer than 30 rows of 2 classes: billing, weather" in caplog.text
    assert "| music |" in result.report


def test_an_empty_consensus_is_an_error_and_in_a_fold_it_costs_that_candidate_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = labelled_rows(24, 0.0, 1)
    flipped = rows.map(lambda row: {"label": 0 if row["label"] == 0 else 1})
    stubborn = lambda: _always(2)  # noqa: E731  predicts a class that no row has
    with pytest.raises(ValueError, match="leaves no label"):
        run(tmp_path / "a", flipped, init=stubborn, learning_rate=1e-9, num_train_epochs=1)
    with caplog.at_level(logging.WARNING, "hf_ext"):
        result = run(
            tmp_path / "b", flipped, init=stubborn, learning_rate=1e-9, num_train_epochs=1, select_on_noisy_eval=True,
            selection_folds=2,
        )  # fmt: skip
    assert result.chosen == "round 1"
    assert "is left out: in a fold its consensus is empty" in caplog.text


def _always(label: int) -> Any:
    model = tiny_bert()
    with torch.no_grad():
        model.classifier.bias[label] = 50.0
    return model


def test_the_channel_is_read_off_the_ledger_and_must_not_contradict_it(tmp_path: Path) -> None:
    rows = labelled_rows(24, 0.3, 1)
    ledger = rows.add_column("label_dp_epsilon", np.full(24, 1.1, np.float32))
    ledger = ledger.add_column("label_dp_channel", ["rr-3-abc"] * 24)

    def recipe(some: Dataset, channel: RRChannel | None = None, **changes: Any) -> ConsensusRecipe:
        return ConsensusRecipe(
            Trainer, tiny_bert, consensus_config(tmp_path, **(PLAIN | changes)), some, channel=channel
        )

    assert recipe(ledger).channel == RRChannel(1.1, 3)
    assert recipe(rows, channel_epsilon=2.0).channel == RRChannel(2.0, 3)
    assert (
        recipe(rows.remove_columns("label").add_column("label", [0, 1, 2] * 8), None, round_loss="ce").channel is None
    )
    with pytest.raises(ValueError, match=r"a label has cost 1.1 nats, but epsilon=4 is given"):
        recipe(ledger, RRChannel(4.0, 3))
    with pytest.raises(ValueError, match="these labels were replaced by a model's"):
        recipe(ledger.remove_columns("label_dp_channel").add_column("label_dp_channel", ["rr-3-abc+consensus"] * 24))
    mixed = ledger.remove_columns("label_dp_channel").add_column("label_dp_channel", ["rr-3-a", "rr-3-b"] * 12)
    with pytest.raises(ValueError, match="ForwardCorrectedTrainer"):
        recipe(mixed)
    with pytest.raises(ValueError, match="no channel is known"):
        recipe(rows)
    with pytest.raises(ValueError, match="num_classes=4, but the channel has 3"):
        recipe(rows, CHANNEL, num_classes=4)


def test_labels_that_are_no_classes_are_named_by_row(tmp_path: Path) -> None:
    rows = labelled_rows(12, 0.0, 1)
    for value, words in ((7, "found 7"), (-100, "found -100")):
        bad = rows.remove_columns("label").add_column("label", [0, 1, value, *[0] * 9])
        with pytest.raises(ValueError, match=f"row 2, column 'label'.*{words}"):
            run(tmp_path, bad)
    text = rows.remove_columns("label").add_column("label", ["billing"] * 12)
    with pytest.raises(ValueError, match=r"row 0, column 'label'[\s\S]*class_encode_column"):
        run(tmp_path, text)


def test_what_else_cannot_be_is_refused(tmp_path: Path, rows: Dataset) -> None:
    args = consensus_config(tmp_path, **PLAIN)

    class Own(Trainer):
        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            return super().compute_loss(*args, **kwargs)

    with pytest.raises(TypeError, match="Own computes a loss of its own"):
        ConsensusRecipe(Own, tiny_bert, args, rows, channel=CHANNEL)
    with pytest.raises(TypeError, match="needs a Dataset, got IterableDataset"):
        ConsensusRecipe(Trainer, tiny_bert, args, rows.to_iterable_dataset(), channel=CHANNEL)
    with pytest.raises(ValueError, match="optimizers cannot be passed on"):
        ConsensusRecipe(Trainer, tiny_bert, args, rows, channel=CHANNEL, optimizers=(object(), None))
    with pytest.raises(ValueError, match="no column 'label'"):
        ConsensusRecipe(Trainer, tiny_bert, args, rows.remove_columns("label"), channel=CHANNEL)
    with pytest.raises(ValueError, match="not for token classification"):
        ConsensusRecipe(
            Trainer, tiny_bert, consensus_config(tmp_path, mode="bayes_soft"), token_rows(8), channel=CHANNEL
        )


def test_looking_at_clean_evaluation_labels_is_warned_of_and_choosing_by_them_is_refused(
    tmp_path: Path, rows: Dataset, caplog: pytest.LogCaptureFixture
) -> None:
    ledger = rows.add_column("label_dp_epsilon", np.full(N, 1.0, np.float32))
    ledger = ledger.add_column("label_dp_channel", ["rr-3-abc"] * N)
    ConsensusRecipe(Trainer, tiny_bert, consensus_config(tmp_path, **PLAIN), ledger, rows)
    assert "spends privacy that no ledger counts" in caplog.text
    best = {"load_best_model_at_end": True, "eval_strategy": "epoch", "save_strategy": "epoch"}
    with pytest.raises(ValueError, match="would choose a checkpoint by evaluation rows without a ledger"):
        ConsensusRecipe(Trainer, tiny_bert, consensus_config(tmp_path, **PLAIN | best), ledger, rows)


def test_no_label_and_no_prediction_of_a_row_is_pushed(done: Any) -> None:
    from hf_ext.hub.push import files_to_push

    names = set(files_to_push(done[0]))
    assert {"model.safetensors", "config.json", "README.md", "rounds.md"} <= names
    assert not [name for name in names if name.startswith(("rounds/", "folds/")) or name == "consensus.json"]
    manifest = json.loads((done[0] / "consensus.json").read_text(encoding="utf-8"))
    assert manifest["settings"]["epsilon"] == CHANNEL.epsilon


def test_predictions_stand_beside_their_own_rows_under_grouping_by_length(tmp_path: Path) -> None:
    """The stock trainer predicts in the order of its length groups then; the columns must not."""
    from transformers import DataCollatorWithPadding

    from hf_ext.data.relabeling import predict_column
    from tests.tiny import tiny_tokenizer

    rows = labelled_rows(40, 0.0, 1)
    cut = lambda row, i: {name: row[name][: 2 + i % 10] for name in ("input_ids", "attention_mask")}  # noqa: E731
    rows = rows.map(cut, with_indices=True)
    tokenizer, model = tiny_tokenizer(), tiny_bert(vocab_size=400).eval()
    trainer = Trainer(
        model,
        consensus_config(tmp_path, **PLAIN, train_sampling_strategy="group_by_length", per_device_eval_batch_size=4),
        data_collator=DataCollatorWithPadding(tokenizer),
        processing_class=tokenizer,
    )
    found = np.array(predict_column(trainer, rows)["probs"])
    with torch.no_grad():
        alone = [model(input_ids=torch.tensor([row["input_ids"]])).logits.softmax(-1)[0] for row in rows]
    np.testing.assert_allclose(found, torch.stack(alone).numpy(), atol=1e-5)
    assert trainer.args.train_sampling_strategy == "group_by_length"
