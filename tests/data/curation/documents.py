"""Real documents for the tests of curation."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq


def text_docs(real_data: Path) -> list[dict[str, Any]]:
    """The 600 documents of web_docs, with what DCLM's own mappers and datatrove said of each."""
    folder = real_data / "web_docs"
    with gzip.open(folder / "text_docs.jsonl.gz", "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    with gzip.open(folder / "peer_verdicts.jsonl.gz", "rt", encoding="utf-8") as lines:
        verdicts = {row["id"]: row for row in map(json.loads, lines)}
    return [row | verdicts[row["id"]] for row in rows]


def html_texts(real_data: Path) -> list[str]:
    """The 1,880 pages of web_docs, in some thirty languages, with their tags cut out."""
    pages = pq.read_table(real_data / "web_docs" / "html_docs.parquet", columns=["html"])["html"].to_pylist()
    return [re.sub(r"<(script|style).*?</\1>|<[^>]*>", "", page, flags=re.DOTALL) for page in pages]
