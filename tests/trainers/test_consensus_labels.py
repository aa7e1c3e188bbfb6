"""Labels and models that do not go together are refused before the recipe, or its trainer, trains anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, Value
from transformers import Trainer, TrainingArguments

from hf_ext.guards.rows import RowError
from hf_ext.rounds.consensus import ConsensusRecipe
from hf_ext.trainers.consensus import ForwardCorrectedTrainer
from tests.trainers.classifiers import CHANNEL, NAMES, consensus_config, labelled_rows, tiny_bert, token_rows

PLAIN: dict[str, Any] = {
    "select_on_noisy_eval": False, "mode": "consensus", "budget": "steps", "max_steps": 1, "eval_strategy": "steps",
    "eval_steps": 1,
}  # fmt: skip
ORDER = NAMES[::-1]


class Untrainable(Trainer):
    """Fails the test if it is asked to train."""

    def train(self, *args: Any, **kwargs: Any) -> Any:
        raise AssertionError("trained before the rows were looked at")


def recipe(folder: Path, rows: Dataset, held_out: Any = None, *, init: Any = tiny_bert, **settings: Any) -> Any:
    channel = settings.pop("channel", CHANNEL)
    host = settings.pop("host", Untrainable)
    return ConsensusRecipe(host, init, consensus_config(folder, **(PLAIN | settings)), rows, held_out, channel)


def with_label(rows: Dataset, row: int, value: Any, column: str = "label") -> Dataset:
    """One label replaced; a cast lets any number into a `ClassLabel`."""
    feature, labels = rows.features[column], rows[column][:]
    labels[row] = value
    return rows.remove_columns(column).add_column(column, labels).cast_column(column, feature)


@pytest.fixture(scope="module")
def rows() -> Dataset:
    return labelled_rows(16)


@pytest.mark.parametrize("value", [-1, 7, -100, None])
def test_a_label_of_a_training_or_evaluation_row_that_is_no_class_is_named(
    rows: Dataset, value: Any, tmp_path: Path
) -> None:
    bad = with_label(rows, 5, value)
    for channel in (CHANNEL, None):  # the bound is the channel's, or that of the ClassLabel
        settings = {"channel": channel, "round_loss": "ce"}
        with pytest.raises(RowError, match=r"^row 5, column 'label': .*found"):
            recipe(tmp_path, bad, **settings)
        with pytest.raises(RowError, match=r"^evaluation dataset, row 5, column 'label': .*found"):
            recipe(tmp_path, rows, bad, **settings)
        with pytest.raises(RowError, match=r"^evaluation 'b' dataset, row 5, column 'label'"):
            recipe(tmp_path, rows, {"a": rows, "b": bad}, **settings)
        with pytest.raises(RowError, match=r"^evaluation dataset, row 5, column 'label'"):
            recipe(tmp_path, rows, bad.to_iterable_dataset(), **settings).run()


def test_tokens_without_a_label_are_fine_and_one_beyond_the_classes_is_named(tmp_path: Path) -> None:
    rows = token_rows(8)
    tokens = {"init": lambda: tiny_bert(tokens=True), "label_column": "labels"}
    recipe(tmp_path, rows, rows, **tokens)
    labels = rows["labels"][3]
    bad = with_label(rows, 3, [*labels[:4], 3, *labels[5:]], "labels")
    with pytest.raises(RowError, match=r"^evaluation dataset, row 3, column 'labels': token 4: .* found 3"):
        recipe(tmp_path, rows, bad, **tokens)


def test_labels_of_another_type_are_refused_in_evaluation_rows(rows: Dataset, tmp_path: Path) -> None:
    texts = rows.remove_columns("label").add_column("label", ["billing"] * len(rows))
    for bad in (texts, rows.cast_column("label", Value("float32"))):
        with pytest.raises(RowError, match=r"^evaluation dataset, row 0, column 'label': expected an integer class"):
            recipe(tmp_path, rows, bad)


def test_good_evaluation_rows_of_every_form_are_evaluated(rows: Dataset, tmp_path: Path) -> None:
    held_out = {"a": rows.select(range(4)), "b": rows.select(range(4)).to_iterable_dataset()}
    result = recipe(tmp_path, rows, held_out, host=Trainer, mode="full", min_rows_per_class=1).run()
    logs = result.trainer.state.log_history
    assert any("eval_a_loss" in log for log in logs)
    losses = [next(log[f"eval_{name}_loss"] for log in logs if f"eval_{name}_loss" in log) for name in "ab"]
    assert losses[0] == pytest.approx(losses[1]), "the same rows, as a dataset and as a stream"


def test_evaluation_rows_and_models_of_another_order_are_refused_with_both(rows: Dataset, tmp_path: Path) -> None:
    turned = rows.cast_column("label", Value("int64")).cast_column("label", ClassLabel(names=ORDER))
    for held_out in (turned, {"x": turned}, turned.to_iterable_dataset()):
        with pytest.raises(ValueError, match=r"0 'music'.*; the training rows: 0 'billing'.*: the order is another"):
            recipe(tmp_path, rows, held_out)
    for order, problem in ((ORDER, "the order is another"), (["x", "y", "z"], "not the same classes")):
        config = {"id2label": dict(enumerate(order)), "label2id": {name: i for i, name in enumerate(order)}}
        made = recipe(tmp_path, rows, init=lambda config=config: tiny_bert(**config))
        with pytest.raises(ValueError, match=rf"id2label: 0 '{order[0]}'.*: 0 'billing'.*{problem}"):
            made.run()
    assert not list(tmp_path.iterdir()), "nothing was begun"


def test_a_model_without_a_distribution_over_the_classes_is_refused(rows: Dataset, tmp_path: Path) -> None:
    plain = {"channel": None, "round_loss": "ce"}
    cases: list[tuple[dict[str, Any], dict[str, Any], str]] = [
        ({"classes": 1}, plain, "the model has one output"),
        ({"classes": 2}, {}, "the model has 2 outputs, but the labels have 3 classes"),
        ({"classes": 7}, plain, "the model has 7 classes, but column 'label' is a ClassLabel of 3"),
        ({"problem_type": "multi_label_classification"}, {}, "several of its labels may hold"),
    ]
    for fields, settings, problem in cases:
        made = recipe(tmp_path, rows, init=lambda fields=fields: tiny_bert(**fields), **settings)
        with pytest.raises(ValueError, match=problem):
            made.run()
    with pytest.raises(ValueError, match="the recipe has 5 classes, but column 'label' is a ClassLabel of 3"):
        recipe(tmp_path, rows, channel=None, num_classes=5)


def test_the_trainer_alone_names_such_labels_too(rows: Dataset, tmp_path: Path) -> None:
    def made(train: Any, held_out: Any = None) -> Any:
        args = TrainingArguments(str(tmp_path), max_steps=2, report_to=[], use_cpu=True, disable_tqdm=True)
        return ForwardCorrectedTrainer(model=tiny_bert(), args=args, train_dataset=train, eval_dataset=held_out)

    for value in (-1, 3):
        bad = with_label(rows, 5, value)
        with pytest.raises(RowError, match=r"^row 5, column 'label'"):
            made(bad)
        with pytest.raises(RowError, match=r"^evaluation dataset, row 5, column 'label'"):
            made(rows, bad)
        with pytest.raises(RowError, match=r"^row 5, column 'label'"):
            made(bad.to_iterable_dataset()).train()
        with pytest.raises(RowError, match=r"^evaluation dataset, row 5, column 'label'"):
            made(rows).evaluate(bad)
