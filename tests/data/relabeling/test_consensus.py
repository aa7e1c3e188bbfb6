"""Relabelled datasets against pandas, Bayes' rule written out, and the loss they stand for."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, List, Value, concatenate_datasets

from hf_ext.data.relabeling import ConsensusFilter, RelabelReport, RRChannel, bayes_posterior, privatize, relabel
from hf_ext.guards.rows import RowError
from hf_ext.losses.label_noise import forward_corrected_nll, soft_nll
from tests.data.relabeling.oracle import channel_matrix, response, rows

K, N, EPSILON = 4, 300, 1.5
CHANNEL = RRChannel(EPSILON, K)


def predicted(dataset: Dataset, seed: int = 0, out_of_fold: bool = True) -> Dataset:
    """Predictions that are right in 7 of 10 rows, with probabilities."""
    rng = np.random.default_rng(seed)
    true = np.array(rows(len(dataset))["label"])
    logits = rng.normal(size=(len(dataset), K))
    logits[np.arange(len(true)), true] += 1.5
    probs = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    done = dataset.add_column("pred", probs.argmax(axis=1))
    done = done.add_column("probs", probs.astype(np.float32).tolist(), feature=List(Value("float32"), length=K))
    return done.add_column("pred_is_out_of_fold", [out_of_fold] * len(dataset))


@pytest.fixture(scope="module")
def given() -> Dataset:
    return predicted(privatize(rows(N), response(EPSILON, K)))


# --- consensus ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("min_prob", [None, 0.0, 0.5, 0.8])
def test_the_consensus_is_what_pandas_filters(given: Dataset, min_prob: float | None) -> None:
    table = given.to_pandas()
    expected = table[table["label"] == table["pred"]]
    if min_prob is not None:
        own = [row["probs"][row["label"]] for _, row in expected.iterrows()]
        expected = expected[np.array(own) >= min_prob]
    found = relabel(given, "consensus", min_prob=min_prob)
    assert found["id"][:] == expected["id"].tolist()
    assert found["label"][:] == expected["label"].tolist()
    assert found.features == given.features
    wanted = ConsensusFilter(probs="probs", min_prob=min_prob) if min_prob is not None else ConsensusFilter()
    for settings in ({}, {"batched": True, "batch_size": 7}, {"num_proc": 2}):
        assert given.filter(wanted, **settings)["id"][:] == expected["id"].tolist()
    assert [row["id"] for row in given.to_iterable_dataset().filter(wanted)] == expected["id"].tolist()
    numpy = given.with_format("numpy").filter(wanted)
    assert numpy.with_format(None)["id"][:] == expected["id"].tolist()


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_a_label_among_the_likeliest_classes_is_kept(given: Dataset, k: int) -> None:
    table = given.to_pandas()
    expected = [
        row["id"] for _, row in table.iterrows() if row["label"] in np.argsort(-np.array(row["probs"]))[:k].tolist()
    ]
    assert given.filter(ConsensusFilter(probs="probs", top_k=k))["id"][:] == expected


def test_full_takes_every_prediction(given: Dataset) -> None:
    full = relabel(given, "full")
    assert full["label"][:] == given["pred"][:]
    assert full["id"][:] == given["id"][:]
    sure = [row["id"] for row in given if max(row["probs"]) >= 0.7]
    assert relabel(given, "full", min_prob=0.7)["id"][:] == sure


# --- Bayes --------------------------------------------------------------------------------------------------------


def test_the_posterior_is_bayes_rule_row_by_row(given: Dataset) -> None:
    found = bayes_posterior(np.array(given["probs"]), np.array(given["label"]), CHANNEL)
    matrix = channel_matrix(EPSILON, K)
    for i, row in enumerate(given):
        joint = [f * matrix[y, row["label"]] for y, f in enumerate(row["probs"])]
        np.testing.assert_allclose(found[i], np.array(joint) / sum(joint), rtol=1e-6)
    hard = relabel(given, "bayes", CHANNEL)
    assert hard["label"][:] == found.argmax(axis=1).tolist()
    sure = relabel(given, "bayes", CHANNEL, min_prob=0.9)
    assert sure["id"][:] == [given["id"][int(i)] for i in np.flatnonzero(found.max(axis=1) >= 0.9)]


def test_bayes_is_right_as_often_as_computed_which_is_more_often_than_the_label_and_the_prediction() -> None:
    n = 3000  # predictions vary too: of 300 rows so many can be right that a label adds nothing to them
    true = np.array(rows(n)["label"])
    predictions = predicted(rows(n))
    matrix = channel_matrix(EPSILON, K)
    joint = np.array(predictions["probs"])[:, :, None] * matrix  # of true and noisy class, (rows, K, K)
    right = joint.argmax(axis=1) == true[:, None]  # whether Bayes' rule is, for each noisy class
    chances = (matrix[true] * right).sum(axis=1)  # the noise alone is random
    error = float(np.sqrt((chances * (1 - chances)).sum())) / n
    expected = float(chances.mean())
    prediction = float(np.mean(np.array(predictions["pred"]) == true))
    assert expected > max(matrix[0, 0], prediction) + 5 * error
    given = predicted(privatize(rows(n), response(EPSILON, K)))
    bayes = float(np.mean(np.array(relabel(given, "bayes", CHANNEL)["label"]) == true))
    assert abs(bayes - expected) < 4 * error


def test_rows_of_a_soft_label_weigh_one_and_stand_for_the_soft_loss(given: Dataset) -> None:
    repeated = relabel(given, "bayes_soft", CHANNEL, min_prob=0.0)
    column = relabel(given, "bayes_soft", CHANNEL, min_prob=0.0, soft="column")
    posterior = bayes_posterior(np.array(given["probs"]), np.array(given["label"]), CHANNEL)
    np.testing.assert_allclose(np.array(column["label_probs"]), posterior, rtol=1e-5)
    assert column.column_names[-1] == "label_probs"
    assert column["label"][:] == given["label"][:]
    table = repeated.to_pandas()
    np.testing.assert_allclose(table.groupby("id")["weight"].sum(), 1, rtol=1e-6)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(N, K, generator=generator, dtype=torch.float64)
    where = {name: i for i, name in enumerate(given["id"])}
    soft = soft_nll(logits, torch.tensor(column["label_probs"][:], dtype=torch.float64))
    index = torch.tensor([where[name] for name in repeated["id"]])
    labels, weights = torch.tensor(repeated["label"][:]), torch.tensor(repeated["weight"][:], dtype=torch.float64)
    hard = forward_corrected_nll(logits[index], labels, (1.0, 0.0), weights=weights)
    torch.testing.assert_close(soft, hard, rtol=1e-6, atol=1e-6)


def test_unlikely_classes_are_left_out_of_soft_labels_and_a_weight_is_multiplied(given: Dataset) -> None:
    found = relabel(given.add_column("weight", [2.0] * N), "bayes_soft", CHANNEL, min_prob=0.2)
    table = found.to_pandas()
    np.testing.assert_allclose(table.groupby("id")["weight"].sum(), 2, rtol=1e-6)
    assert table["weight"].min() >= 2 * 0.2
    assert len(table) < N * K
    posterior = bayes_posterior(np.array(given["probs"]), np.array(given["label"]), CHANNEL)
    assert len(table) == int((posterior >= np.minimum(0.2, posterior.max(axis=1, keepdims=True))).sum())
    strict = relabel(given, "bayes_soft", CHANNEL, min_prob=1.0)  # the likeliest class stays in any case
    assert len(strict) == N
    assert set(strict["weight"]) == {1.0}


def test_rows_of_unequal_channels_are_weighed_each_by_its_own(given: Dataset) -> None:
    other = predicted(privatize(rows(N), response(3.0, K, salt="b")), seed=1)
    other = other.map(lambda row: {"id": "o" + row["id"]})
    both = concatenate_datasets([given, other])
    channels = {response(EPSILON, K).channel_id: CHANNEL, response(3.0, K, salt="b").channel_id: RRChannel(3.0, K)}
    expected = [*relabel(given, "bayes", CHANNEL)["label"], *relabel(other, "bayes", RRChannel(3.0, K))["label"]]
    assert relabel(both, "bayes", channels)["label"][:] == expected
    with pytest.raises(ValueError, match="no channel named"):
        relabel(both, "bayes", {response(EPSILON, K).channel_id: CHANNEL})


# --- ledger and report --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["consensus", "full", "bayes", "bayes_soft"])
def test_the_budget_stays_and_the_channel_says_that_the_label_no_longer_comes_out_of_it(
    given: Dataset, mode: str
) -> None:
    done = relabel(given, mode, CHANNEL)
    assert set(done["label_dp_epsilon"]) == {EPSILON}
    assert set(done["label_dp_channel"]) == {f"{response(EPSILON, K).channel_id}+{mode}"}
    assert done.column_names[: len(given.column_names)] == given.column_names
    with pytest.raises(ValueError, match="do not come out of a channel"):
        relabel(done, "bayes", CHANNEL)
    plain = relabel(given.remove_columns(["label_dp_epsilon", "label_dp_channel"]), mode, CHANNEL)
    assert plain["label"][:] == done["label"][:]


def test_the_report_counts_what_happened(given: Dataset, tmp_path: Path) -> None:
    done, report = relabel(given, "consensus", CHANNEL, return_report=True)
    table = given.to_pandas()
    assert isinstance(report, RelabelReport)
    assert (report.rows, report.labels, report.rows_kept) == (N, N, len(done))
    assert report.agreement == pytest.approx((table["label"] == table["pred"]).mean())
    assert report.given == table["label"].value_counts().sort_index().tolist()
    assert report.kept == done.to_pandas()["label"].value_counts().sort_index().tolist()
    assert report.out_of_fold is True
    assert report.accuracy.low < np.mean(np.array(given["pred"]) == np.array(rows(N)["label"])) < report.accuracy.high
    a = report.accuracy.value
    assert report.precision.value == pytest.approx(a * CHANNEL.p / (a * CHANNEL.p + (1 - a) * CHANNEL.q))
    assert "| class 2 |" in report.to_markdown()
    assert "| classes that vanished | none |" in report.to_markdown()
    assert '"vanished": []' in report.save(tmp_path / "deep" / "report.json").read_text()


def test_nothing_reads_a_clean_label_that_stands_beside(given: Dataset) -> None:
    """The same result whatever `label_true` holds, for every function behind the randomisation."""
    from hf_ext.data.relabeling import noisy_accuracy

    rng = np.random.default_rng(0)
    found = []
    for clean in (rows(N)["label"][:], rng.integers(0, K, N).tolist(), ["never"] * N):
        beside = given.add_column("label_true", clean)
        for mode in ("consensus", "full", "bayes", "bayes_soft"):
            done, report = relabel(beside, mode, CHANNEL, return_report=True)
            found.append((mode, done.remove_columns("label_true")[:], report.to_dict()))
        accuracy = noisy_accuracy(beside["label"], beside["pred"], CHANNEL)
        found.append(("filter", beside.filter(ConsensusFilter())["id"][:], accuracy))
    assert found[:5] == found[5:10] == found[10:]


def test_a_class_that_vanishes_is_named(given: Dataset, caplog: pytest.LogCaptureFixture) -> None:
    never = given.map(lambda row: {"pred": 0 if row["pred"] == 3 else row["pred"]})
    with caplog.at_level(logging.WARNING):
        done, report = relabel(never, "consensus", return_report=True)
    assert 3 not in done["label"]
    assert report.vanished == ["class 3"]
    assert "No label is left of 1 class: class 3" in caplog.text


def test_in_sample_predictions_are_noted(given: Dataset) -> None:
    seen = predicted(given.remove_columns(["pred", "probs", "pred_is_out_of_fold"]), out_of_fold=False)
    _, report = relabel(seen, "consensus", CHANNEL, return_report=True)
    assert report.out_of_fold is False
    assert "in-sample predictions" in report.accuracy.notes[-1]
    _, without = relabel(seen, "consensus", return_report=True)
    assert "in-sample predictions" in without.to_markdown()


def test_only_the_train_split_is_relabelled_unless_told(given: Dataset) -> None:
    splits = DatasetDict({"train": given, "test": given})
    done, report = relabel(splits, "consensus", return_report=True)
    assert len(done["train"]) == report.rows_kept < len(done["test"]) == N
    assert len(relabel(splits, "consensus", split="test")["test"]) == report.rows_kept
    with pytest.raises(ValueError, match="no split 'dev'"):
        relabel(splits, split="dev")


# --- tokens -------------------------------------------------------------------------------------------------------


def sentences() -> Dataset:
    rng = np.random.default_rng(0)
    labels = [[-100, *rng.integers(0, K, int(n)).tolist(), -100] for n in rng.integers(1, 9, 80)]
    probs = [rng.dirichlet(np.ones(K), len(row)).tolist() for row in labels]
    columns = {"labels": labels, "probs": probs, "pred": [np.argmax(p, axis=1).tolist() for p in probs]}
    return Dataset.from_dict({"id": list(range(80)), **columns})


@pytest.mark.parametrize("mode", ["consensus", "full", "bayes"])
def test_tokens_are_masked_where_rows_would_be_dropped(mode: str) -> None:
    done, report = relabel(sentences(), mode, CHANNEL, label="labels", return_report=True)
    matrix, kept = channel_matrix(EPSILON, K), 0
    assert len(done) == 80
    for before, after in zip(sentences(), done, strict=True):
        for s, h, f, new in zip(before["labels"], before["pred"], before["probs"], after["labels"], strict=True):
            bayes = int(np.argmax(np.array(f) * matrix[:, s])) if s != -100 else -100
            expected = {"consensus": s if s == h else -100, "full": h, "bayes": bayes}[mode]
            assert new == (-100 if s == -100 else expected)
            kept += new != -100
    assert sum(report.kept) == kept
    assert report.rows_kept == 80


def test_soft_labels_of_tokens_are_a_column() -> None:
    done = relabel(sentences(), "bayes_soft", CHANNEL, label="labels", soft="column", min_prob=0.0)
    matrix = channel_matrix(EPSILON, K)
    for row in done:
        for s, f, target in zip(row["labels"], row["probs"], row["label_probs"], strict=True):
            joint = np.array(f) * matrix[:, s] if s != -100 else np.zeros(K)
            np.testing.assert_allclose(target, joint / max(joint.sum(), 1e-300), atol=1e-6)
    with pytest.raises(ValueError, match="use soft='column'"):
        relabel(sentences(), "bayes_soft", CHANNEL, label="labels")


# --- what is refused ----------------------------------------------------------------------------------------------


def test_an_empty_consensus_is_refused(given: Dataset) -> None:
    other = given.map(lambda row: {"pred": (row["label"] + 1) % K})
    with pytest.raises(ValueError, match="leaves no label: no prediction is the given label"):
        relabel(other)
    with pytest.raises(ValueError, match=r"probability of at least 1\.0"):
        relabel(given, min_prob=1.0)
    with pytest.raises(ValueError, match="no rows"):
        relabel(given.select([]))


def test_arguments_and_columns_that_cannot_be_are_refused(given: Dataset) -> None:
    for arguments, words in (
        ({"mode": "majority"}, "choose one of consensus, full"),
        ({"mode": "bayes"}, "needs channel="),
        ({"soft": "rows"}, "choose 'weight' or 'column'"),
        ({"min_prob": 1.5}, "is no probability"),
        ({"prediction": "guess"}, "no column 'guess'"),
        ({"label": "y"}, "no column 'y'"),
        ({"probs": "p", "min_prob": 0.5}, "no column 'p'"),
    ):
        with pytest.raises(ValueError, match=words):
            relabel(given, **arguments)
    with pytest.raises(TypeError, match="ConsensusFilter"):
        relabel(given.to_iterable_dataset())
    for settings in ({"top_k": 0}, {"min_prob": 2.0, "probs": "probs"}, {"top_k": 2}, {"min_prob": 0.5}):
        with pytest.raises(ValueError, match=r"top_k|probs"):
            ConsensusFilter(**settings)
    with pytest.raises(ValueError, match="one label a row"):
        ConsensusFilter(label="labels")(sentences()[:])


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ([0.5, 0.5], r"expected probabilities of shape \(4,\), found \(2,\)"),
        ([0.5, 0.5, 0.5, 0.5], "that sum to one"),
        ([1.5, -0.5, 0.0, 0.0], "non-negative"),
        ([float("nan")] * 4, "that sum to one"),
    ],
)
def test_a_row_without_a_distribution_is_named(given: Dataset, bad: list, words: str) -> None:
    probs = given["probs"][:]
    probs[7] = bad
    broken = given.remove_columns("probs").add_column("probs", probs, feature=List(Value("float32")))
    with pytest.raises(RowError, match=words) as caught:
        relabel(broken, "bayes", CHANNEL)
    assert caught.value.row_index == 7
    assert "id: 'r7'" in str(caught.value)


def test_predictions_of_other_lengths_are_named() -> None:
    columns = sentences().remove_columns("pred").add_column("pred", [[0]] * 80)
    with pytest.raises(RowError, match="1 predictions for"):
        relabel(columns, label="labels")
    flat = sentences().remove_columns("pred").add_column("pred", [0] * 80)
    with pytest.raises(ValueError, match="one holds a class a row"):
        relabel(flat, label="labels")
    names = rows(20).add_column("pred", ["class 1"] * 20)
    with pytest.raises(RowError, match="row 0, column 'pred'"):
        relabel(names)
    assert isinstance(rows(20).features["label"], ClassLabel)
