"""Addresses of pages: what host they have, which lists they are on, and what is no address at all."""

from __future__ import annotations

import pickle
import random
from collections import defaultdict

import numpy as np
import pytest

from hf_ext.data.curation.patterns import trie_pattern
from hf_ext.data.curation.steps import Drop
from hf_ext.data.curation.urls import UrlRules, host_of
from hf_ext.guards.rows import RowError


@pytest.fixture
def list_of(tmp_path):
    def write(*lines: str) -> str:
        path = tmp_path / f"list{len(list(tmp_path.iterdir()))}.txt"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return str(path)

    return write


def rules_broken(step: UrlRules, urls: list[str]) -> list[str | None]:
    return [drop.rule if drop else None for drop in step.judge({"url": urls}).drops]


@pytest.mark.parametrize(("url", "host"), [
    ("http://bad.com/page", "bad.com"), ("HTTPS://WWW.Bad.Com", "www.bad.com"), ("bad.com", "bad.com"),
    ("bad.com:80", "bad.com"), ("bad.com:80/page", "bad.com"), ("//bad.com/x", "bad.com"), ("t.co/x", "t.co"),
    ("http://user:word@bad.com:8080/?a@b", "bad.com"), ("http://good.com@bad.com", "bad.com"),
    ("http://bad.com./", "bad.com"), ("https:\\\\bad.com\\page", "bad.com"), ("http:bad.com", "bad.com"),
    (" \x00http://bad.com\n", "bad.com"), ("http://b\nad.com", "bad.com"), ("http://bad%2Ecom", "bad.com"),
    ("http://bad.com?x=http://ok.com", "bad.com"), ("http://bad.com#x", "bad.com"),
    # RFC 3490's own registry form
    ("http://bücher.example", "xn--bcher-kva.example"), ("http://BÜCHER.example", "xn--bcher-kva.example"),
    ("http://例え。jp", "xn--r8jz45g.jp"), ("http://[2001:DB8::1]:80/", "[2001:db8::1]"),
    ("http://10.0.0.1:8080", "10.0.0.1"),
    ("javascript:alert(1)", None), ("mailto:a@bad.com", None), ("data:text/html,x", None), ("", None), ("  ", None),
    ("http://", None), ("http://two words/", None), ("http://\ud800.com", None), ("http://\x00", None),
    ("http://" + "a" * 300 + ".com", None), ("http://..", None),
])  # fmt: skip
def test_host(url, host):
    assert host_of(url) == host


def test_a_domain_takes_with_it_all_below_it_and_nothing_beside_it(list_of):
    step = UrlRules(
        domains=list_of("Bad.com", "www.worse.org", "bücher.example", "# a comment", "", "10.0.0.1", "com")
    )
    gone = [
        "http://bad.com/", "www.bad.com", "https://a.b.bad.com:80/x", "bad.com:80", "http://u@bad.com", "WORSE.org",
        "shop.worse.org", "http://xn--bcher-kva.example", "http://www.bücher.example/", "http://10.0.0.1:80/",
    ]  # fmt: skip
    staying = [
        "http://notbad.com",
        "http://bad.com.ok.net",
        "http://ok.net/bad.com",
        "http://ok.com",
        "http://110.0.0.1",
    ]
    assert rules_broken(step, gone + staying) == ["domains"] * len(gone) + [None] * len(staying)
    assert rules_broken(pickle.loads(pickle.dumps(step)), ["bad.com"]) == ["domains"]


def test_a_list_of_odd_lines_bans_no_more_than_it_says(list_of):
    step = UrlRules(domains=list_of("https://bad.com/", "*.wild.com", "site.com/user", "two words", "\ufeffbom.com"))
    urls = ["x.bad.com", "a.wild.com", "site.com/user", "site.com", "words", "ok.com"]
    assert rules_broken(step, urls) == ["domains", "domains", None, None, None, None]


def test_domains_are_found_in_long_lists_as_in_a_set(list_of):
    rng = random.Random(0)
    names = [f"{rng.getrandbits(20):x}.com" for _ in range(20_000)]
    step = UrlRules(domains=list_of(*names))
    urls = [f"{rng.getrandbits(20):x}.com" for _ in range(3000)] + names[:1000]
    listed = set(names)
    assert rules_broken(step, urls) == ["domains" if url in listed else None for url in urls]


def test_the_letter_misses_www_and_ports(list_of):
    step = UrlRules(domains=list_of("bad.com", "nded.org"), replicate_bugs=True)
    urls = ["http://bad.com/x", "http://www.bad.com", "http://bad.com:80", "http://a.bad.com", "http://wwwnded.org"]
    assert rules_broken(step, urls) == ["domains", None, None, None, "domains"]


def test_words_are_counted_as_each_list_says(list_of):
    step = UrlRules(
        strict_words=list_of("badword"),
        hard_words=list_of("evil", "sex-cam"),
        soft_words=list_of("cam", "chat", "poker"),
    )
    urls = [
        "http://a.com/b-a-d.word/x",  # strict: anywhere, without - and .
        "http://a.com/EVIL/x", "http://a.com/medieval", "http://a.com/sex-cam", "http://a.com/evil_x",
        "http://a.com/cam/cam", "http://a.com/cam/chat", "http://a.com/camera/chats",
    ]  # fmt: skip
    broken = ["strict_words", "hard_words", None, "hard_words", None, None, "soft_words", None]
    assert rules_broken(step, urls) == broken
    values = step.judge({"url": urls}).values
    assert values["soft_words"].tolist() == [0, 0, 0, 1, 0, 1, 2, 0]
    assert step.judge({"url": urls[:1]}).drops == [Drop("strict_words", 1.0, 0)]


def test_the_longest_word_of_a_list_is_found_first_and_any_characters_are_literal():
    import re

    pattern = re.compile(trie_pattern(["a", "ab", "abc", "a.c", "x*", "", "a" * 5000]))
    assert pattern.findall("abcab a.cad x*x" + "a" * 5000) == ["abc", "ab", "a.c", "a", "x*", "a" * 5000]
    assert re.compile(trie_pattern([])).search("anything") is None


def test_rows_without_an_address_are_refused_or_kept(list_of):
    path = list_of("bad.com")
    with pytest.raises(RowError, match=r"row 1, column 'url': expected a string, found None"):
        UrlRules(domains=path).judge({"url": ["a.com", None]})
    with pytest.raises(ValueError, match=r"needs a column 'url'.*pass url_column="):
        UrlRules(domains=path).judge({"text": ["x"]})
    step = UrlRules(domains=path, missing_url="keep")
    assert rules_broken(step, [None, "bad.com", "", "javascript:x"]) == [None, "domains", None, None]
    assert step.judge({"text": ["x", "y"]}).drops == [None, None]
    # of a batch that reads a column only when it is asked for, no other column is
    batch = defaultdict(lambda: pytest.fail("a column of no use was read"), {"url": [None]})
    assert step.judge(batch).drops == [None]
    judgement = step.judge({"url": [None, "bad.com", "ok.com", "javascript:x"]})
    assert np.isnan(judgement.values["domains"]).tolist() == [True, False, False, True]
    assert UrlRules(domains=path, on_bad_row="drop").judge({"url": [7]}).drops == [Drop("error:int")]


def test_a_changed_list_is_read_again_and_changes_the_versions(list_of, tmp_path):
    step = UrlRules(domains=list_of("bad.com"))
    versions = step.versions
    assert rules_broken(step, ["worse.com"]) == [None]
    (tmp_path / "list0.txt").write_text("bad.com\nworse.com\n")
    assert rules_broken(step, ["worse.com"]) == ["domains"]
    assert step.versions != versions


def test_settings_that_cannot_be_meant_are_refused(list_of):
    with pytest.raises(ValueError, match="needs a list"):
        UrlRules()
    with pytest.raises(ValueError, match="missing_url must be"):
        UrlRules(domains=list_of("a.com"), missing_url="drop")
    with pytest.raises(FileNotFoundError, match=r"nowhere\.txt is missing"):
        UrlRules(hard_words="nowhere.txt").judge({"url": ["a.com"]})
