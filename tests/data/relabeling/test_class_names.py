"""Classes that a model, a prediction and a label count in another order: told by name, or refused with both shown."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, List, Value
from transformers import Trainer, TrainingArguments

from hf_ext.data.relabeling import (
    ConsensusFilter,
    RRChannel,
    bayes_posterior,
    fold_numbers,
    noisy_accuracy,
    predict_column,
    relabel,
)
from hf_ext.data.relabeling.class_names import names_of_model, order_between, same_order
from hf_ext.guards.rows import RowError
from tests.trainers.classifiers import CLASSES, NAMES, labelled_rows, tiny_bert, token_rows

ORDER = ["music", "billing", "weather"]  # the dataset has billing, weather, music
ROWS = 24


@pytest.fixture
def args(tmp_path: Any) -> TrainingArguments:
    return TrainingArguments(
        str(tmp_path), max_steps=1, report_to=[], use_cpu=True, disable_tqdm=True, save_strategy="no", seed=1
    )


def names(order: list[str]) -> dict[str, Any]:
    return {"id2label": dict(enumerate(order)), "label2id": {name: i for i, name in enumerate(order)}}


def with_numbers(rows: Dataset, labels: list[Any], feature: Any) -> Dataset:
    """Rows with other label numbers, cast, which lets any number into a `ClassLabel`."""
    return rows.remove_columns("label").add_column("label", labels).cast_column("label", feature)


def two_columns(seed: int = 0) -> Dataset:
    """Labels and predictions as `ClassLabel`s in two orders, and distributions in that of the predictions."""
    rng = np.random.default_rng(seed)
    probs = rng.dirichlet(np.ones(CLASSES), ROWS).astype(np.float32)
    features = Features(
        {
            "id": Value("int64"), "label": ClassLabel(names=NAMES), "pred": ClassLabel(names=ORDER),
            "probs": List(Value("float32")),
        }
    )  # fmt: skip
    columns = {"id": range(ROWS), "label": rng.integers(0, CLASSES, ROWS), "pred": probs.argmax(1), "probs": probs}
    return Dataset.from_dict({name: np.asarray(values).tolist() for name, values in columns.items()}, features)


def by_hand(rows: Dataset) -> Dataset:
    """The same rows, predictions and distributions written anew in the order of the label, name by name."""
    place = [ORDER.index(name) for name in NAMES]
    columns = rows.to_dict()
    columns["pred"] = [NAMES.index(ORDER[i]) for i in columns["pred"]]
    columns["probs"] = [[row[i] for i in place] for row in columns["probs"]]
    return Dataset.from_dict(columns, Features({**rows.features, "pred": Value("int64")}))


# --- two columns -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "settings"),
    [
        ("full", {}),
        ("consensus", {"min_prob": 0.4}),
        ("bayes", {"channel": RRChannel(1.0, CLASSES)}),
        ("bayes_soft", {"channel": RRChannel(1.0, CLASSES), "soft": "column"}),
    ],
)
def test_relabel_gives_what_it_gives_of_columns_in_one_order(mode: str, settings: dict[str, Any]) -> None:
    rows = two_columns()
    done, report = relabel(rows, mode, **settings, return_report=True)
    wanted, wanted_report = relabel(by_hand(rows), mode, **settings, return_report=True)
    for column in ("id", "label", *(["label_probs"] if mode == "bayes_soft" else [])):
        assert done[column][:] == wanted[column][:]
    assert report.agreement == wanted_report.agreement
    assert report.accuracy == wanted_report.accuracy
    assert done["pred"][:] == [rows["pred"][i] for i in done["id"]], "the prediction itself stays as it was"


def test_the_filter_in_batches_and_the_accuracy_of_columns_go_by_the_names_too() -> None:
    rows, alike = two_columns(), by_hand(two_columns())
    for settings in ({}, {"probs": "probs", "min_prob": 0.4}, {"probs": "probs", "top_k": 2}):
        wanted = alike.filter(ConsensusFilter(**settings))["id"][:]
        assert rows.filter(ConsensusFilter(**settings), batched=True, batch_size=5)["id"][:] == wanted
    channel = RRChannel(1.0, CLASSES)
    assert noisy_accuracy(rows["label"], rows["pred"], channel) == noisy_accuracy(
        alike["label"], alike["pred"], channel
    )


def test_tokens_go_by_the_names_too_and_those_without_a_label_stay_so() -> None:
    features = Features({"label": List(ClassLabel(names=["O", "B"])), "pred": List(ClassLabel(names=["B", "O"]))})
    rows = Dataset.from_dict({"label": [[0, -100, 1], [1]], "pred": [[1, 0, 1], [0]]}, features=features)
    assert relabel(rows, "consensus")["label"][:] == [[0, -100, -100], [1]]


def test_other_names_are_refused_with_both_shown_and_spelling_does_not_matter() -> None:
    rows = two_columns()
    other = rows.cast_column("pred", Value("int64")).cast_column("pred", ClassLabel(names=["x", "y", "z"]))
    both = r"'pred': 0 'x', 1 'y', 2 'z'; column 'label': 0 'billing', 1 'weather', 2 'music': these are not"
    with pytest.raises(ValueError, match=both):
        relabel(other, "full")
    with pytest.raises(ValueError, match=both):
        other.filter(ConsensusFilter(), batched=True)
    with pytest.raises(ValueError, match="'predictions': 0 'x'"):
        noisy_accuracy(other["label"], other["pred"], RRChannel(1.0, CLASSES))
    order = order_between(("ENTAILMENT", "Not_Entailment"), ("not entailment", "entailment"), "", "", "")
    assert order.tolist() == [1, 0]
    assert order_between(("a", "A"), ("a", "A"), "", "", "") is None
    assert order_between(("A", "a"), ("a", "A"), "", "", "").tolist() == [1, 0], "two classes that differ in case"
    assert order_between(("a", "b"), ("a", "b", "unused"), "", "", "") is None
    assert order_between(None, ("a", "b"), "", "", "") is None
    same_order(("a", "b", "unused"), ("a", "b"), "", "", "")
    with pytest.raises(ValueError, match="not the same classes"):  # a prediction could be a class the label has not
        order_between(("a", "b", "c"), ("a", "b"), "", "", "")


# --- classes that are none -------------------------------------------------------------------------------------------


def test_a_class_beyond_the_distribution_or_the_class_label_is_named_by_row_and_column() -> None:
    features = Features({"label": Value("int64"), "pred": Value("int64"), "probs": List(Value("float32"))})

    def rows(label: list[int], pred: list[int]) -> Dataset:
        probs = [[0.8, 0.2], [0.2, 0.8], [0.6, 0.4]]
        return Dataset.from_dict({"label": label, "pred": pred, "probs": probs}, features=features)

    problem = r"row 2, column '{}': class 2, but the distribution in 'probs' has 2 classes"
    for column, label, pred in (("label", [0, 1, 2], [0, 1, 0]), ("pred", [0, 1, 1], [0, 1, 2])):
        with pytest.raises(RowError, match=problem.format(column)):
            relabel(rows(label, pred), "full", min_prob=0.3)
        with pytest.raises(RowError, match=problem.format(column)):
            rows(label, pred).filter(ConsensusFilter(probs="probs", min_prob=0.3), batched=True)
    with pytest.raises(RowError, match="column 'label': class 2"):
        rows([0, 1, 2], [0, 1, 0]).filter(ConsensusFilter(probs="probs", top_k=2))
    named = rows([0, 1, 1], [0, 1, 2]).cast_column("label", ClassLabel(num_classes=2))
    with pytest.raises(RowError, match=r"row 2, column 'pred': expected a class from 0 to 1, found 2"):
        relabel(named, "full")
    with pytest.raises(ValueError, match="the channel has 3 classes, but column 'label' is a ClassLabel of 2"):
        relabel(named, "full", RRChannel(1.0, 3))
    for bad in (2, -1):
        with pytest.raises(RowError, match=f"row 1, column 'labels': class {bad}"):
            bayes_posterior(np.full((2, 2), 0.5), np.array([0, bad]), RRChannel(1.0, 2))


@pytest.mark.parametrize("bad", [None, [], [1.0], [0.2, 0.3, 0.5], [1.2, -0.2], [float("nan"), 1.0], [0.5, 0.6]])
@pytest.mark.parametrize("row", [0, 1])
def test_what_is_no_distribution_is_named_by_row(bad: Any, row: int) -> None:
    probs = [[0.5, 0.5], [0.5, 0.5], [0.5, 0.5]]
    probs[row] = bad
    features = Features({"label": Value("int64"), "pred": Value("int64"), "probs": List(Value("float32"))})
    rows = Dataset.from_dict({"label": [0, 1, 0], "pred": [0, 0, 0], "probs": probs}, features=features)
    with pytest.raises(RowError, match=r"row [01], column 'probs'"):
        relabel(rows, "full", min_prob=0.1)
    if bad in ([], [1.0]):  # of every row
        with pytest.raises(RowError, match=r"row 0, column 'probs'"):
            relabel(rows.remove_columns("probs").add_column("probs", [bad] * 3), "full", min_prob=0.1)


# --- models ----------------------------------------------------------------------------------------------------------


def test_predictions_carry_the_model_s_names_and_relabelling_translates_them(args: Any, caplog: Any) -> None:
    rows = labelled_rows(ROWS)
    model = tiny_bert(**names(ORDER))
    predicted = predict_column(Trainer(model=model, args=args), rows)
    assert "another order than column 'label'" in caplog.text
    assert predicted.features["pred"].names == ORDER
    plain = predict_column(Trainer(model=tiny_bert(), args=args), rows)  # the same weights, without names
    assert plain.features["pred"] == Value("int64")
    assert predicted["pred"][:] == plain["pred"][:]
    assert predicted["probs"][:] == plain["probs"][:]
    named = [ORDER[i] for i in plain["pred"]]
    assert rows.features["label"].int2str(relabel(predicted, "full")["label"][:]) == named
    # labels as text, made a ClassLabel afterwards, which sorts the names
    texts = with_numbers(rows, [NAMES[i] for i in rows["label"]], Value("string"))
    later = predict_column(Trainer(model=model, args=args), texts).class_encode_column("label")
    assert later.features["label"].names == sorted(NAMES)
    assert later.features["label"].int2str(relabel(later, "full")["label"][:]) == named


def test_a_trained_model_counts_as_the_rows_it_was_trained_on(args: Any) -> None:
    rows = labelled_rows(ROWS)
    train = with_numbers(rows, [ORDER.index(NAMES[i]) for i in rows["label"]], ClassLabel(names=ORDER))
    trainer = Trainer(model=tiny_bert(), args=args, train_dataset=train)
    trainer.train()
    assert predict_column(trainer, rows).features["pred"].names == ORDER
    stale = Trainer(model=tiny_bert(**names(NAMES)), args=args, train_dataset=train)
    stale.train()
    with pytest.raises(ValueError, match=r"id2label: 0 'billing'.*trained on: 0 'music', 1 'billing'.*another"):
        predict_column(stale, rows)


def test_a_model_whose_outputs_are_not_the_classes_is_refused_before_anything_is_trained(args: Any) -> None:
    rows = fold_numbers(labelled_rows(ROWS), 2)
    tokens = token_rows(4).cast_column("labels", List(ClassLabel(names=NAMES)))
    cases = [
        (tiny_bert(classes=1), "the model has one output"),
        (tiny_bert(problem_type="multi_label_classification"), "several of its labels may hold at once"),
        (tiny_bert(problem_type="regression"), "it predicts a number"),
        (tiny_bert(classes=7), "the model has 7 classes, but column 'label' is a ClassLabel of 3"),
        (tiny_bert(classes=2), r"column 'label': class 2, but the model has 2 outputs"),
        (tiny_bert(**names(["x", "y", "z"])), r"id2label: 0 'x', 1 'y', 2 'z'; .*: 0 'billing', 1 'weather'"),
    ]
    for model, problem in cases:
        with pytest.raises(ValueError, match=problem):
            predict_column(Trainer(model=model, args=args), rows)
        with pytest.raises(ValueError, match=problem):
            predict_column(_untrainable(model, args), rows, fold_column="fold")
    with pytest.raises(ValueError, match="the order is another"):
        predict_column(_untrainable(tiny_bert(**names(ORDER)), args), rows, fold_column="fold")
    with pytest.raises(ValueError, match="the model has 5 classes, but column 'labels'"):
        predict_column(Trainer(model=tiny_bert(tokens=True, classes=5), args=args), tokens, label="labels")


def test_rows_without_a_label_are_predicted(args: Any) -> None:
    rows = with_numbers(labelled_rows(4), [-1] * 4, ClassLabel(names=NAMES))  # as the test splits of GLUE
    assert len(predict_column(Trainer(model=tiny_bert(), args=args), rows)) == 4


def test_names_that_transformers_makes_up_are_none() -> None:
    assert names_of_model(tiny_bert()) is None
    assert names_of_model(tiny_bert(**names(["0", "1", "2"]))) is None
    assert names_of_model(tiny_bert(**names(ORDER))) == tuple(ORDER)


def _untrainable(model: Any, args: Any) -> Trainer:
    """A trainer that makes fresh models and fails the test if one is trained."""

    class Untrainable(Trainer):
        def train(self, *args: Any, **kwargs: Any) -> Any:
            raise AssertionError("trained before the model was looked at")

    return Untrainable(model_init=lambda: model, args=args)
