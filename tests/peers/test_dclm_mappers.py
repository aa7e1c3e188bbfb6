"""The mappers that stand in for DCLM's own in `benchmarks/curation_speed.py` keep what DCLM's keep."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("uniseg")

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def mappers():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        import dclm_mappers

        yield dclm_mappers
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))
        sys.modules.pop("dclm_mappers", None)


@pytest.mark.real
def test_quality_and_repetition_keep_the_documents_that_dclm_keeps(mappers, real_data):
    def rows_of(name: str) -> list[dict]:
        with gzip.open(real_data / "web_docs" / name, "rt", encoding="utf-8") as lines:
            return [json.loads(line) for line in lines]

    rows = rows_of("text_docs.jsonl.gz")
    for mapper in mappers.rules():
        rows = [page for row in rows for page in mapper(row)]
    kept = {row["id"] for row in rows_of("peer_verdicts.jsonl.gz") if row["dclm"] is None}
    assert {row["id"] for row in rows} == kept
    assert len(kept) == 542


def test_lines_and_addresses_go_as_dclm_has_it(mappers):
    lists = {"domains": ["bad.com"], "strict": ["verybad"], "hard": ["evil"], "soft": ["dim", "dull"]}
    chain = mappers.chain(lists, ["com", "org", "th"])
    letters = "abcdefghijklmn"
    page = "\n".join(" ".join(["The", *(f"w{first}{second}ord" for second in letters), "of"]) for first in letters)

    def after(text: str, url: str = "https://good.net/") -> str | None:
        pages = [{"text": text, "url": url}]
        for mapper in chain:
            pages = [out for given in pages for out in mapper(given)]
        return pages[0]["text"] if pages else None

    assert after(page) == page
    assert after(page, "http://bad.com/page") is None
    assert after(page, "http://www.bad.com/page") == page  # as in the original: the point is left
    assert after(page, "http://x.net/very-b.ad") is None
    assert after(page, "http://x.net/an-evil-page") is None
    assert after(page, "http://x.net/evils") == page
    assert after(page, "http://x.net/dim") == page
    assert after(page, "http://x.net/dim/dull") is None
    assert after(f"{page}\n3 likes\nTWO WORDS\n1234\nshort\nSign-in now please") == f"{page}\nnow please"
    assert after(f"A line before\n{page}\nsee http://www.foo.org/x today").endswith("www.foo.org/x today")
    assert after(f"{page}\nsee http://www.foo.org/x today") == f"{page}\nsee today"
