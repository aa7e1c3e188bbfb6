"""Addresses taken out of texts: the letter of DCLM by its own search, and what is mended."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_ext.data.curation.patterns import trie_pattern
from hf_ext.data.curation.remove_urls import RemoveUrls
from hf_ext.data.curation.steps import Drop
from hf_ext.data.curation.top_level_domains import TOP_LEVEL_DOMAINS

NAMES = trie_pattern(TOP_LEVEL_DOMAINS)
TAIL = r"[-a-zA-Z0-9()@:%_+.~#?&/=]*"
HOST = re.compile(rf"\s{{0,10}}(?:(?:https?|ftp)://)?[-a-zA-Z0-9@:%._+~#=]{{1,256}}\.{NAMES}\b{TAIL}")
NUMBERS = re.compile(rf"\s{{0,10}}\b(?:(?:https?|ftp)://)?(?:[0-2]?[0-9]{{1,2}}\.){{3}}[0-2]?[0-9]{{1,2}}{TAIL}")
BEGINNING = re.compile(NAMES, re.IGNORECASE)


def searched_everywhere(text: str) -> str:
    """What DCLM does, as one search that tries every character."""
    if BEGINNING.match(text):
        text = HOST.sub("", text)
    return re.sub(r"\n{3,}", "\n\n", NUMBERS.sub("", text))


def cleaned(text: str, **settings) -> str:
    return RemoveUrls(**settings).judge({"text": [text]}).columns["text"][0]


PIECES = st.sampled_from([
    "http://", "https://", "ftp://", "sftp://", "www.", "foo", ".", "com", ".co", ".uk", ".рф", "a" * 130, " ", "\n",
    "  \t", "1.2.3.4", "10.0.0.", "1", ":80", "/x(y)", "?q=1", "is", "the ", "é", "@", "//", "://", "http:", "\u3000",
    ".com", ".in", "_", "999.1.1.1", "\r\n", "\ud800", "\0",
])  # fmt: skip


@given(st.lists(PIECES, min_size=1, max_size=14).map("".join), st.booleans())
@settings(max_examples=120, deadline=None)
def test_the_letter_is_that_of_a_search_of_every_character(text, begins):
    text = "The " * begins + text
    if text.strip():
        assert cleaned(text, replicate_bugs=True) == searched_everywhere(text)


@pytest.mark.real
def test_the_letter_on_real_documents(real_data):
    import gzip
    import json

    with gzip.open(real_data / "web_docs/text_docs.jsonl.gz") as file:
        texts = [json.loads(line)["text"] for line in file][::6]
    assert RemoveUrls(replicate_bugs=True).judge({"text": texts}).columns["text"] == [*map(searched_everywhere, texts)]


@pytest.mark.parametrize(("text", "letter", "mended"), [
    # the letter looks only into texts that begin with the letters of a top-level domain
    ("hello\nvisit http://example.com now", None, "hello\nvisit now"),
    ("This URL https://a.com/x?y=1 goes", "This URL goes", "This URL goes"),
    ("This is version 1.2.3.4 of it", "This is version of it", None),
    ("This line\nwww.foo.org is one", "This line is one", "This line\nis one"),
    ("This line\nwww.foo.org\nnext", "This line\nnext", "This line\nnext"),
    ("This http://1.2.3.4/x and 10.0.0.1:8080 and 10.0.0.1/a", "This and and", "This and and"),
    ("This 300.1.1.1:8080 stays", "This 300.1.1.1:8080 stays", None),
    ("This\n\n\n\nand\n\nthat", "This\n\nand\n\nthat", "This\n\nand\n\nthat"),
    ("This a.com b.org c", "This c", "This c"),
    ("U.S.A. e.g. 3.14 and end.Next", None, None), ("no address at all", None, None),
    ("see foo.рф now", "see now", "see now"), ("  http://a.com rest", None, "rest"),
])  # fmt: skip
def test_the_letter_and_what_is_mended(text, letter, mended):
    assert cleaned(text, replicate_bugs=True) == (text if letter is None else letter)
    assert cleaned(text) == (text if mended is None else mended)


@given(st.lists(PIECES, min_size=1, max_size=14).map("".join))
@settings(max_examples=100, deadline=None)
def test_nothing_but_addresses_spaces_and_line_ends_is_taken(text):
    if not text.strip():
        return
    rest = iter(text)
    # what is left is in the text in its order
    assert all(character in rest for character in cleaned(text))
    if not (HOST.search(text) or NUMBERS.search(text) or "\n\n\n" in text):
        assert cleaned(text) == text


def test_a_document_of_which_nothing_is_left_goes():
    judgement = RemoveUrls().judge({"text": ["http://a.com\nwww.b.org", "x"]})
    assert judgement.drops == [Drop("no_text", 0.0, 1), None]
    assert RemoveUrls(replicate_bugs=True).judge({"text": ["a.com"]}).drops == [None]
    assert RemoveUrls(replicate_bugs=True).judge({"text": ["the.com"]}).drops == [Drop("no_text", 0.0, 1)]


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "text", ["a" * 1_000_000, "a." * 300_000, "a.com" * 200_000, " " * 500_000 + "a.com", "1." * 300_000]
)
def test_hostile_texts_take_time_in_proportion_to_their_length(text):
    assert len(cleaned(text)) <= len(text)
