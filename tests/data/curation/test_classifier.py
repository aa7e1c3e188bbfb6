"""The quality classifier: what it tells apart, its report, and its files."""

from __future__ import annotations

import gzip
import json
import logging
import pickle
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from datasets import Dataset, IterableDataset
from safetensors.numpy import save_file

from hf_ext.data.curation.classifier import QualityClassifier, fit_quality_classifier
from hf_ext.data.curation.quality_filter import load_classifier
from hf_ext.guards.rows import RowError

GOOD = "the cat and the dog have to sit on the mat of that house number"
BAD = "buy cheap pills now click here best price free offer win big"


def documents(words, count, seed):
    generator = np.random.default_rng(seed)
    return [" ".join(generator.choice(words.split(), 30)) for _ in range(count)]


@pytest.fixture(scope="module")
def classifier():
    return fit_quality_classifier(documents(GOOD, 120, 0), documents(BAD, 110, 1))


@pytest.fixture(scope="module")
def judged(real_data):
    with gzip.open(real_data / "web_docs/text_docs.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    return [[row["text"] for row in rows if row["quality_label"] == label] for label in (1, 0)]


@pytest.mark.real
def test_on_documents_that_people_judged_the_classifier_beats_their_length(judged):
    reports = [fit_quality_classifier(*judged, seed=seed).report for seed in range(5)]
    aucs = [report.auc for report in reports]
    assert min(aucs) >= 0.86
    lengths = [[len(text.split()) for text in texts] for texts in judged]
    pairs = [(a > b) + (a == b) / 2 for a, b in product(*lengths)]
    assert reports[0].length_auc == pytest.approx(np.mean(pairs))
    assert np.mean(aucs) > reports[0].length_auc + 0.1
    assert reports[0].warnings == []


@pytest.mark.real
def test_labels_drawn_at_random_are_told_apart_no_better_than_by_chance(judged):
    texts = [*judged[0], *judged[1]]
    order = np.random.default_rng(0).permutation(len(texts))
    halves = [[texts[number] for number in order[start::2]] for start in (0, 1)]
    # the standard error of an AUC of 180 against 180 documents is 0.03
    assert abs(fit_quality_classifier(*halves).report.auc - 0.5) < 0.12


def test_scores_are_probabilities_of_the_positive_class(classifier):
    scores = classifier.score([*documents(GOOD, 20, 5), *documents(BAD, 20, 6)])
    assert (scores[:20] > 0.9).all()
    assert (scores[20:] < 0.1).all()
    assert classifier.report.auc == 1.0
    assert classifier.score([]).shape == (0,)


def test_a_score_depends_on_its_text_alone(classifier):
    texts = [*documents(GOOD, 9, 5), *documents(BAD, 9, 6), "", "\0\ud800", "…" * 999]
    scores = classifier.score(texts)
    assert np.isfinite(scores).all()
    assert [classifier.score([text])[0] for text in texts] == scores.tolist()


def test_the_same_documents_and_seed_give_the_same_classifier_from_any_kind_of_set(classifier):
    positives = Dataset.from_dict({"body": documents(GOOD, 120, 0), "n": range(120)})
    negatives = IterableDataset.from_generator(lambda: ({"body": text} for text in documents(BAD, 110, 1)))
    again = fit_quality_classifier(positives, negatives, text_column="body")
    assert again.fingerprint == classifier.fingerprint
    assert again.training_digest == classifier.training_digest
    other = fit_quality_classifier(documents(GOOD, 120, 0), documents(BAD, 110, 1), seed=1)
    assert other.fingerprint != classifier.fingerprint
    assert other.training_digest == classifier.training_digest


def test_a_saved_classifier_scores_as_before_and_is_replaced_whole(classifier, tmp_path):
    texts = documents(GOOD + " " + BAD, 20, 7)
    kept = classifier.with_threshold(0.25, keep_share=0.1)
    folder = kept.save(tmp_path / "classifier")
    assert sorted(file.name for file in folder.iterdir()) == ["classifier.json", "classifier.safetensors"]
    loaded = load_classifier(folder)
    assert loaded.score(texts).tolist() == classifier.score(texts).tolist()
    assert (loaded.threshold, loaded.keep_share, loaded.report) == (0.25, 0.1, classifier.report)
    assert loaded.fingerprint == kept.fingerprint == pickle.loads(pickle.dumps(kept)).fingerprint
    classifier.save(folder)
    assert QualityClassifier.load(folder).threshold is None
    assert sorted(file.name for file in tmp_path.iterdir()) == ["classifier"]


def test_a_folder_that_holds_something_else_is_not_replaced(classifier, tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match=r"holds 'thesis.tex'"):
        classifier.save(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"revision": "0"}, "of revision '0'.*train it again"),
        ({"statistics": ["length"]}, "train it again"),
        ({"ngram_range": [1, 9]}, "must be a whole number from 1 to 5, got 9"),
        ({"ngram_range": []}, "IndexError"),
        ({"hash_seed": -1}, "must be a whole number"),
        ({"intercept": float("nan")}, "not finite"),
        ({"intercept": None}, "TypeError"),
        ({"threshold": "high"}, "could not convert"),
        ({"sha256": "0"}, "another or damaged"),
        ({"report": {"auc": 1}}, "TypeError"),
    ],
)
def test_settings_that_are_none_are_refused(classifier, tmp_path, change, message):
    classifier.save(tmp_path)
    path = tmp_path / "classifier.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=rf"classifier.json is not the settings of a quality classifier: .*{message}"):
        load_classifier(tmp_path)


@pytest.mark.parametrize(
    "tensors",
    [
        {"coefficients": np.zeros(1000, np.float32)},
        {"coefficients": np.full(2**18, np.nan, np.float32)},
        {"statistics": np.ones((3, 11))},
        {"statistics": np.zeros((3, 12))},
    ],
)
def test_weights_that_are_none_are_refused(classifier, tmp_path, tensors):
    replace(classifier, **tensors).save(tmp_path)
    with pytest.raises(ValueError, match="is not the settings of a quality classifier"):
        load_classifier(tmp_path)


def test_damaged_and_missing_weights_are_refused(classifier, tmp_path):
    classifier.save(tmp_path)
    save_file({"coefficients": np.zeros(4, np.float32)}, tmp_path / "classifier.safetensors")
    with pytest.raises(ValueError, match="another or damaged"):
        load_classifier(tmp_path)
    (tmp_path / "classifier.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="safetensors"):
        load_classifier(tmp_path)


def test_a_class_without_documents_is_refused():
    with pytest.raises(ValueError, match="negatives has no document: a classifier needs both classes"):
        fit_quality_classifier(documents(GOOD, 3, 0), [])


def test_few_documents_and_scores_that_hardly_differ_are_warned_of(caplog):
    with caplog.at_level(logging.WARNING, logger="hf_ext"):
        report = fit_quality_classifier(documents(GOOD, 20, 0), documents(BAD, 30, 1)).report
    assert "Only 20 documents of a class" in caplog.text
    assert "Only 20 documents of a class" in report.warnings[0]
    report = fit_quality_classifier([GOOD] * 120, [GOOD] * 120).report
    assert "Held-out scores spread over 0.0" in report.warnings[0]
    report = fit_quality_classifier([GOOD] * 3, [BAD] * 3).report
    assert report.auc is None
    assert report.length_auc == 1.0


def test_a_row_that_is_no_document_is_named():
    rows = Dataset.from_dict({"text": ["a", None]})
    with pytest.raises(RowError, match="row 1 of negatives, column 'text': expected a string, found None"):
        fit_quality_classifier(["a"], rows)
    with pytest.raises(ValueError, match=r"positives has no column 'body', but \['text'\]"):
        fit_quality_classifier(rows, rows, text_column="body")


@pytest.mark.parametrize(
    "setting", [{"longest_ngram": 0}, {"inverse_penalty": float("nan")}, {"folds": 1}, {"seed": -1}]
)
def test_numbers_out_of_bounds_are_refused(setting):
    with pytest.raises(ValueError, match=f"{next(iter(setting))} must be"):
        fit_quality_classifier(["a"], ["b"], **setting)
