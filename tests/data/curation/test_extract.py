"""The text of pages: what resiliparse says, whatever their encoding, and a page that kills it alone is lost."""

from __future__ import annotations

import pickle
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from datasets import Dataset, load_dataset

from hf_ext.data.curation import extract
from hf_ext.data.curation.extract import HtmlToText
from hf_ext.data.curation.pipeline import curate
from hf_ext.data.curation.steps import Drop
from hf_ext.guards.rows import RowError

ARTICLE = "<html><body><p>{}</p></body></html>"


def extracted(page, charset=None, **settings):
    judgement = HtmlToText(**settings).judge({"html": [page], "charset": [charset]})
    (text,), (is_fallback,), (drop,) = judgement.columns["text"], judgement.columns["decode_fallback"], judgement.drops
    return drop.rule if drop else text, is_fallback


@pytest.mark.real
def test_text_is_that_of_resiliparse_called_in_this_process(real_data):
    from resiliparse.extract.html2text import extract_plain_text

    pages = pq.read_table(real_data / "web_docs/html_docs.parquet", columns=["html"])["html"].to_pylist()[::40]
    direct = [extract_plain_text(page, main_content=True) for page in pages]
    for batch in (pages, [page.encode() for page in pages]):
        judgement = pickle.loads(pickle.dumps(HtmlToText())).judge({"html": batch})
        assert judgement.columns["text"] == direct
        assert judgement.columns["decode_fallback"] == [False] * len(pages)
        assert judgement.drops == [None] * len(pages)


@pytest.mark.parametrize(("encoding", "charset", "text"), [
    ("utf-8", "utf-8", "naïve café"), ("utf-8", None, "naïve café"), ("utf-8-sig", None, "naïve café"),
    ("cp1252", "ISO-8859-1", "naïve “café”"), ("cp1252", "utf-8", "naïve “café”"),
    ("cp1252", "nonsense", "naïve café"),
    ("utf-16", None, "naïve café"), ("utf-16", "utf-8", "naïve café"), ("utf-16-le", "utf-16le", "naïve café"),
    ("shift_jis", "x-sjis", "日本語の文章"), ("koi8-r", "koi8-r", "Привет, мир"), ("gb18030", "GB2312", "中文网页"),
    ("iso2022_jp", "iso-2022-jp", "日本語の文章"),
    ("utf-8", "rot13", "naïve café"), ("utf-8", "é\ud800" * 99, "naïve café"),
])  # fmt: skip
def test_bytes_are_decoded_by_what_fits_them(encoding, charset, text):
    assert extracted(ARTICLE.format(text).encode(encoding), charset) == (text, False)


def test_a_page_may_name_its_charset():
    page = '<html><head><meta charset="koi8-r"></head><body><p>Привет, мир</p></body></html>'
    assert extracted(page.encode("koi8-r")) == ("Привет, мир", False)


def test_what_no_encoding_fits_is_replaced_and_flagged():
    # 0x81 is no character of Windows-1252, and neither is this UTF-8
    assert extracted(b"<p>good \xff\x81 text", "utf-8") == ("good \ufffd\ufffd text", True)
    assert extracted("<p>good \ud800 text") == ("good \ufffd text", True)
    assert extracted("<p>good\0 text")[1] is False


def test_the_letter_keeps_strict_utf8_alone():
    assert extracted("<p>café".encode("latin-1"), "iso-8859-1", replicate_bugs=True) == ("undecodable", False)
    assert extracted("<p>café".encode(), "iso-8859-1", replicate_bugs=True) == ("café", False)


def test_a_page_without_text_goes_and_so_does_an_empty_one():
    judgement = HtmlToText().judge({"html": ["<html><body></body></html>", "", b" \n", "<p>x"]})
    assert judgement.drops == [Drop("no_text", 0.0, 1), Drop("empty"), Drop("empty"), None]
    assert judgement.columns["text"] == ["", None, None, "x"]


def test_a_page_that_takes_too_long_costs_itself_alone():
    bomb = "<div>" * 40_000  # the parser's time grows with the square of the depth: 40 seconds
    judgement = HtmlToText(max_seconds=0.3).judge({"html": ["<p>a", bomb, "<p>b", bomb, bomb]})
    assert judgement.drops == [
        None,
        Drop("too_slow", 1.0, 0),
        None,
        Drop("too_slow", 1.0, 0),
        Drop("too_slow", 1.0, 0),
    ]
    assert judgement.columns["text"] == ["a", "", "b", "", ""]


def test_a_page_that_needs_too_much_memory_costs_itself_alone(monkeypatch):
    monkeypatch.setattr(extract, "MAX_MEMORY", 150 << 20)
    page = "<p>many <b>words</b></p>" * 160_000  # 4 MB, whose tree takes thirty times that
    judgement = HtmlToText().judge({"html": ["<p>a", page, "<p>b"]})
    assert judgement.drops == [None, Drop("parser_crash", 1.0, 0), None]
    assert judgement.columns["text"] == ["a", "", "b"]


def test_a_worker_that_does_not_start_is_an_error_and_drops_no_page(monkeypatch, tmp_path):
    broken = tmp_path / "worker.py"
    broken.write_text("import no_such_module")
    monkeypatch.setattr(extract, "WORKER_FILE", broken)
    with pytest.raises(RuntimeError, match=r"(?s)did not start \(exit status 1\).*no_such_module"):
        HtmlToText().judge({"html": ["<p>a"]})


def test_a_page_of_50_mb_is_read():
    page = ARTICLE.format("word " * 10_000_000)
    text, is_fallback = extracted(page, max_chars=60_000_000)
    assert (len(text), text[:9], is_fallback) == (49_999_999, "word word", False)


def test_a_folder_of_the_user_that_shadows_a_library_changes_nothing(tmp_path, monkeypatch):
    (tmp_path / "struct.py").write_text("raise SystemExit(3)")
    monkeypatch.chdir(tmp_path)
    assert extracted("<p>a") == ("a", False)
    assert Path("struct.py").exists()


def test_curate_keeps_the_text_alone_of_datasets_files_and_streams(tmp_path):
    pages = Dataset.from_dict({"html": ["<p>some words", "<html></html>", "<p>more words"], "n": [1, 2, 3]})
    rows = {"text": ["some words", "more words"], "n": [1, 3], "decode_fallback": [False, False]}
    assert curate(pages, [HtmlToText()], num_proc=1).to_dict() == rows
    stream = curate(pages.to_iterable_dataset(), [HtmlToText()])
    assert list(stream) == [dict(zip(rows, values, strict=True)) for values in zip(*rows.values(), strict=True)]
    pages.to_parquet(tmp_path / "pages.parquet")
    curate(tmp_path / "pages.parquet", [HtmlToText()], output=tmp_path / "output")
    assert load_dataset(str(tmp_path / "output"), split="train").to_dict() == rows


def test_a_charset_column_of_nulls_and_nans_is_no_charset():
    assert extracted("<p>café".encode(), float("nan")) == ("café", False)


def test_what_is_neither_text_nor_bytes_is_named():
    with pytest.raises(RowError, match=r"row 0, column 'html': expected a string or bytes, found"):
        HtmlToText().judge({"html": [None]})
    with pytest.raises(ValueError, match=r"needs a column 'html'.*pass html_column="):
        HtmlToText().judge({"text": ["x"]})
    with pytest.raises(ValueError, match="max_seconds must be a positive, finite number"):
        HtmlToText(max_seconds=float("nan"))
