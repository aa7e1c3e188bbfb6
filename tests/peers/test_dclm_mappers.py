"""Our verdicts and texts are DCLM's: of its own mappers, where there is a clone, and of their stand-ins."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("uniseg")

from hf_ext.data.curation.lines import LineRules
from hf_ext.data.curation.quality import GopherQuality
from hf_ext.data.curation.top_level_domains import TOP_LEVEL_DOMAINS
from tests.data.curation.documents import text_docs
from tests.data.curation.edges import (
    LINE_CASES,
    LINE_PIECES,
    MILLION_DIGITS,
    PROSE,
    QUALITY_EDGES,
    REPETITION_EDGES,
)

ROOT = Path(__file__).resolve().parents[2]
LISTS = {"domains": ["bad.com"], "strict": ["verybad"], "hard": ["evil"], "soft": ["dim", "dull"]}
NUM_LINE_MAPPERS = 9  # the last of the chain: words counted, seven rules of lines, words counted again

Mapper = Callable[[dict[str, Any]], list[dict[str, Any]]]


class Mappers(NamedTuple):
    """Quality and repetition, and the whole chain but language identification."""

    rules: list[Mapper]
    chain: list[Mapper]


def after(mappers: Sequence[Mapper], text: str, url: str = "https://good.net/") -> tuple[str | None, int]:
    """The text that these mappers leave, `None` where they drop the page, and how many let it pass."""
    pages = [{"text": text, "url": url}]
    for number, mapper in enumerate(mappers):
        pages = [result for page in pages for result in mapper(page)]
        if not pages:
            return None, number
    return pages[0]["text"], len(mappers)


@pytest.fixture(scope="module", params=["rewritten", "checkout"])
def mappers(request) -> Iterator[Mappers]:
    """Those that stand in for DCLM's own, and its own from the clone that `HF_EXT_DCLM` names."""
    folder = os.environ.get("HF_EXT_DCLM", "")
    if request.param == "checkout" and not folder:
        pytest.skip("HF_EXT_DCLM names no clone of DCLM's repository")
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        if request.param == "checkout":
            from dclm_checkout import Checkout

            checkout = Checkout(Path(folder))
            yield Mappers(checkout.rules(), checkout.chain(LISTS))
        else:
            import dclm_mappers

            yield Mappers(dclm_mappers.rules(), dclm_mappers.chain(LISTS, sorted(TOP_LEVEL_DOMAINS)))
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))
        sys.modules.pop("dclm_mappers", None)
        sys.modules.pop("dclm_checkout", None)


@pytest.mark.real
@pytest.mark.timeout(3600)
def test_verdict_and_rule_of_real_documents_are_those_on_record(mappers, real_data):
    names = [*(rule.name for rule in GopherQuality().rules), "repetition", None]
    verdicts = {row["id"]: names[after(mappers.rules, row["text"])[1]] for row in text_docs(real_data)}
    assert verdicts == {row["id"]: row["dclm"] for row in text_docs(real_data)}
    assert list(verdicts.values()).count(None) == 542


@pytest.mark.real
@pytest.mark.timeout(3600)
def test_lines_of_real_documents_go_as_with_us(mappers, real_data):
    assert_same_lines(mappers, [row["text"] for row in text_docs(real_data)])


def assert_same_lines(mappers: Mappers, texts: list[str]) -> None:
    step = LineRules(replicate_bugs=True)
    names = [rule.name for rule in step.rules]
    judgement = step.judge({"text": texts})
    for text, line_text, drop in zip(texts, judgement.columns["text"], judgement.drops, strict=True):
        peer_text, num_passed = after(mappers.chain[-NUM_LINE_MAPPERS:], text)
        assert (None if drop else line_text) == peer_text, ascii(text)[:200]
        if drop:  # the mapper of short lines leaves empty ones, and the next finds that they are all
            mapper_rules = names[num_passed - 1 - (drop.rule == "short_lines") : num_passed]
            assert drop.rule in mapper_rules


@pytest.mark.parametrize("edge", QUALITY_EDGES, ids=[edge.rule for edge in QUALITY_EDGES])
def test_both_sides_of_each_bound_of_quality(mappers, edge):
    names = [*(rule.name for rule in GopherQuality().rules), None]
    assert [names[after(mappers.rules[:-1], text)[1]] for text in edge.texts] == edge.verdicts


@pytest.mark.parametrize("edge", REPETITION_EDGES, ids=[edge.rule for edge in REPETITION_EDGES])
def test_both_sides_of_each_bound_of_repetition(mappers, edge):
    assert [after(mappers.rules[-1:], text)[0] is not None for text in edge.texts] == [True, True, False]


def test_lines_on_both_sides_of_each_bound(mappers):
    lines = [*(line for line, _ in LINE_CASES), *MILLION_DIGITS]
    assert_same_lines(mappers, [f"{PROSE}\n{line}\n{PROSE}" for line in lines])
    plain_lines = "\n".join(["five words in a line"] * 19)
    assert_same_lines(mappers, [plain_lines + "\nABC" * count for count in (4, 5, 6)])


@settings(max_examples=500, deadline=None)
@given(pieces=st.lists(st.sampled_from(LINE_PIECES), min_size=1, max_size=25))
def test_lines_of_awkward_pieces_go_as_with_us(mappers, pieces):
    text = "".join(pieces)
    if text.strip():
        assert_same_lines(mappers, [text])


def test_lines_and_addresses_go_as_dclm_has_it(mappers):
    letters = "abcdefghijklmn"
    page = "\n".join(" ".join(["The", *(f"w{first}{second}ord" for second in letters), "of"]) for first in letters)

    def text_after(text: str, url: str = "https://good.net/") -> str | None:
        return after(mappers.chain, text, url)[0]

    assert text_after(page) == page
    assert text_after(page, "http://bad.com/page") is None
    assert text_after(page, "http://www.bad.com/page") == page  # as in the original: the point is left
    assert text_after(page, "http://x.net/very-b.ad") is None
    assert text_after(page, "http://x.net/an-evil-page") is None
    assert text_after(page, "http://x.net/evils") == page
    assert text_after(page, "http://x.net/dim") == page
    assert text_after(page, "http://x.net/dim/dull") is None
    assert text_after(f"{page}\n3 likes\nTWO WORDS\n1234\nshort\nSign-in now please") == f"{page}\nnow please"
    assert text_after(f"A line before\n{page}\nsee http://www.foo.org/x today").endswith("www.foo.org/x today")
    assert text_after(f"{page}\nsee http://www.foo.org/x today") == f"{page}\nsee today"
