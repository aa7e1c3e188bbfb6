"""Metrics of `evaluate`: each beside a computation by hand, an independent library, and our own function."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

evaluate = pytest.importorskip("evaluate")

from sklearn.metrics import ndcg_score  # noqa: E402

from hf_ext.evaluation.metrics import CentredAccuracy, KLOriginalToNew, NDCGAt10  # noqa: E402
from hf_ext.evaluation.retrieval import graded_ndcg  # noqa: E402
from hf_ext.losses.kl import exact_kl  # noqa: E402


@pytest.fixture
def folder(tmp_path):
    """Where the metrics keep their rows until they are computed."""
    return {"cache_dir": str(tmp_path)}


def test_centred_accuracy_is_that_of_a_computation_by_hand(folder):
    metric = CentredAccuracy(random_baseline=0.25, **folder)
    assert metric.compute(predictions=[0, 3, 2, 1], references=[0, 3, 2, 2]) == {"centred_accuracy": 2 / 3}
    assert metric.compute(predictions=[1, 1], references=[0, 0])["centred_accuracy"] == pytest.approx(-1 / 3)
    assert metric.compute(predictions=["B", "A"], references=["B", "B"])["centred_accuracy"] == pytest.approx(1 / 3)


def test_a_class_that_is_no_whole_number_is_not_cut_to_one(folder):
    metric = CentredAccuracy(random_baseline=0, **folder)
    assert metric.compute(predictions=np.array([0.7, 1.0]), references=np.array([0, 1])) == {"centred_accuracy": 0.5}


@pytest.mark.parametrize("baseline", [1, 1.5, -0.1, math.nan, "0.5", None])
def test_a_baseline_that_is_no_share_below_one_is_refused(baseline):
    with pytest.raises(ValueError, match="random_baseline must be a share"):
        CentredAccuracy(random_baseline=baseline)


def test_ndcg_is_that_of_a_computation_by_hand(folder):
    metric = NDCGAt10(**folder)
    # Grades 0, 2, 1 by falling score: 2 / log2(3) + 1 / log2(4), over 2 / log2(2) + 1 / log2(3).
    first = (2 / math.log2(3) + 0.5) / (2 + 1 / math.log2(3))
    assert metric.compute(predictions=[[0.1, 0.9, 0.5]], references=[[1, 0, 2]])["ndcg@10"] == pytest.approx(first)
    scores = [[0.1, 0.9, 0.5], [3.0, 1.0], [5.0, 2.0]]
    grades = [[1, 0, 2], [1, 0], [0, 0]]  # the last query has nothing relevant and does not count
    assert metric.compute(predictions=scores, references=grades)["ndcg@10"] == pytest.approx((first + 1) / 2)


def test_ndcg_is_our_evaluators_and_scikit_learns_with_ties_shared(folder):
    rng = np.random.default_rng(0)
    metric = NDCGAt10(**folder)
    for number in range(40):
        size = int(rng.integers(2, 30))
        grades = rng.integers(0, 4, size).astype(float)
        grades[0] = 1
        scores = rng.permutation(size) if number % 2 else rng.integers(0, 4, size)
        value = metric.compute(predictions=[scores], references=[grades])["ndcg@10"]
        assert value == pytest.approx(float(ndcg_score([grades], [scores], k=10)), abs=1e-12)
        if number % 2:  # no ties
            ranking = [str(place) for place in np.argsort(-scores)]
            own = graded_ndcg(ranking, {str(place): grade for place, grade in enumerate(grades)}, 10)
            assert value == pytest.approx(own, abs=1e-12)


def test_what_the_search_did_not_return_stays_in_the_ideal_ranking_and_padding_does_not(folder):
    metric = NDCGAt10(**folder)
    missed = metric.compute(predictions=[[2.0, 1.0, -math.inf]], references=[[1, 0, 1]])["ndcg@10"]
    assert missed == pytest.approx((1 + 0.5) / (1 + 1 / math.log2(3)))
    padded = metric.compute(predictions=[[-200.0, -300.0, -100.0]], references=[[1, 0, -100]])["ndcg@10"]
    assert padded == 1


@pytest.mark.parametrize(
    ("scores", "grades", "words"),
    [
        ([[1.0, 2.0], [1.0]], [[1, 0], [1, 0]], "Query 1 has 1 scores and 2 grades"),
        ([[math.nan, 2.0]], [[1, 0]], "Query 0 has a score that is NaN"),
        ([[1.0, 2.0]] * 2, [[1, 0], [math.nan, 1]], "Query 1 has a grade that is not finite"),
        ([[1.0, 2.0]], [[math.inf, 1]], "Query 0 has a grade that is not finite"),
        ([[1.0, 2.0]], [[0, -1]], "No query has a relevant candidate"),
    ],
)
def test_ndcg_refuses_what_it_cannot_measure(folder, scores, grades, words):
    with pytest.raises(ValueError, match=words):
        NDCGAt10(**folder).compute(predictions=scores, references=grades)


def test_kl_is_that_of_a_computation_by_hand_and_of_our_own_function(folder):
    metric = KLOriginalToNew(**folder)
    p, q = [0.5, 0.25, 0.25], [0.25, 0.25, 0.5]
    by_hand = 0.5 * math.log(2) + 0.25 * math.log(0.5)
    value = metric.compute(predictions=np.log([q, p]), original_logits=np.log([p, p]))
    assert value["kl_original_to_new"] == pytest.approx(by_hand / 2, abs=1e-7)
    generator = torch.Generator().manual_seed(0)
    original, new = torch.randn(2, 50, 300, generator=generator)
    value = metric.compute(predictions=new, original_logits=original)["kl_original_to_new"]
    assert value == pytest.approx(exact_kl(original, new).mean().item(), rel=1e-6)
    assert metric.compute(predictions=original, original_logits=original)["kl_original_to_new"] == 0


@pytest.mark.parametrize(
    ("new", "original", "error", "words"),
    [
        ([[0.0, 1.0]], [[0.0, 1.0, 2.0]], ValueError, "have 2 and 3 logits"),
        ([[0.0, 1.0], [0.0]], [[0.0, 1.0], [0.0, 1.0]], ValueError, "those of predictions differ"),
        ([[0.0, 1.0], [math.nan, 1.0]], [[0.0, 1.0]] * 2, FloatingPointError, "Position 1: the KL is nan"),
    ],
)
def test_kl_refuses_what_it_cannot_measure(folder, new, original, error, words):
    with pytest.raises(error, match=words):
        KLOriginalToNew(**folder).compute(predictions=new, original_logits=original)


def test_metrics_are_combined_by_evaluate_and_take_batches(folder):
    scores, grades = np.array([[2.0, 1.0, 0.0], [0.0, 1.0, 2.0]]), np.array([[1, 0, 0], [1, 0, 0]])
    both = evaluate.combine([NDCGAt10(**folder), KLOriginalToNew(**folder)])
    values = both.compute(predictions=scores, references=grades, original_logits=scores)
    assert values == {"ndcg@10": pytest.approx(0.75), "kl_original_to_new": 0}
    metrics = {"four": CentredAccuracy(0.25, **folder), "two": CentredAccuracy(0.5, **folder)}
    both = evaluate.combine(metrics)
    for pick, gold in ((1, 1), (0, 1)):
        both.add_batch(predictions=[pick], references=[gold])
    assert both.compute() == {"four_centred_accuracy": pytest.approx(1 / 3), "two_centred_accuracy": 0}


def test_a_trainer_reports_them_by_compute_metrics(tmp_path, folder):
    from datasets import Dataset
    from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

    small = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(vocab_size=20, num_labels=4, **small))
    ids = [[i % 20, (3 * i) % 20, 5] for i in range(24)]
    rows = Dataset.from_dict(
        {"input_ids": ids, "attention_mask": [[1] * 3] * 24, "labels": [i % 4 for i in range(24)]}
    )
    start = torch.randn(24, 4, generator=torch.Generator().manual_seed(1))
    accuracy, kl = CentredAccuracy(0.25, **folder), KLOriginalToNew(**folder)

    def compute_metrics(scores):
        picks = scores.predictions.argmax(-1)
        return accuracy.compute(predictions=picks, references=scores.label_ids) | kl.compute(
            predictions=scores.predictions, original_logits=start
        )

    args = TrainingArguments(str(tmp_path / "out"), use_cpu=True, report_to="none", disable_tqdm=True)
    metrics = Trainer(model, args, eval_dataset=rows, compute_metrics=compute_metrics).evaluate()
    with torch.no_grad():
        logits = model.eval()(**{name: torch.tensor(rows[name][:]) for name in ("input_ids", "attention_mask")}).logits
    right = (logits.argmax(-1) == torch.tensor(rows["labels"][:])).double().mean().item()
    assert metrics["eval_centred_accuracy"] == pytest.approx((right - 0.25) / 0.75)
    assert metrics["eval_kl_original_to_new"] == pytest.approx(exact_kl(start, logits).mean().item(), rel=1e-5)
