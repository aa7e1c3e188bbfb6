"""Small web pages, good and bad, as a WARC file that curation reads."""

from __future__ import annotations

import gzip
import random
from pathlib import Path

NOUNS = [
    "river", "stone", "garden", "letter", "window", "bridge", "market", "doctor", "music", "paper", "winter",
    "kitchen", "harbour", "teacher", "story",
]  # fmt: skip
VERBS = ["keeps", "finds", "carries", "remembers", "watches", "follows", "builds", "answers", "paints", "repairs"]
ADJECTIVES = ["quiet", "old", "narrow", "bright", "heavy", "distant", "careful", "green", "wooden", "early"]
ENDS = ["near the harbour", "after the rain", "with some patience", "for the first time", "to this day", "in the end"]


def article(seed: int, num_sentences: int = 14) -> str:
    """English of no sense that the rules of Gopher take: common words, no line and no longer phrase twice."""
    generator = random.Random(seed)
    pick = generator.choice
    sentences = [
        f"The {pick(ADJECTIVES)} {pick(NOUNS)} {pick(VERBS)} {generator.randint(2, 99)} and a {pick(ADJECTIVES)} "
        f"{pick(NOUNS)} of the {pick(NOUNS)} that we have {pick(ENDS)}."
        for _ in range(num_sentences)
    ]
    return "\n".join(" ".join(sentences[start : start + 4]) for start in range(0, num_sentences, 4))


def pages(num_articles: int = 30) -> dict[str, str]:
    """Addresses and texts: articles, four of them once more, and what DCLM's rules drop."""
    texts = {f"https://news.example/{number}": article(number) for number in range(num_articles)}
    texts |= {f"https://mirror.example/{number}": article(number) for number in range(4)}
    texts["https://shop.example/short"] = "Buy it now. Read more..."
    texts["https://shop.example/list"] = "\n".join(["Buy this thing with us and be one of those that have it"] * 30)
    texts["https://shop.example/symbols"] = "# of ... the # and # ... that " * 40
    return texts


def write_warc(path: Path, texts: dict[str, str]) -> None:
    """A gzipped WARC file, a member a record, whose pages have a heading, the text in paragraphs, and a menu."""
    with open(path, "wb") as file:
        for number, (url, text) in enumerate(texts.items()):
            paragraphs = "".join(f"<p>{line}</p>" for line in text.split("\n"))
            page = (
                f"<html><head><title>Page</title></head><body><nav>Home</nav><main>{paragraphs}</main></body></html>"
            )
            body = b"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\n\r\n" + page.encode()
            head = (
                f"WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: {url}\r\nWARC-Date: 2024-05-01T00:00:00Z\r\n"
                f"WARC-Record-ID: <urn:uuid:{number:032x}>\r\nContent-Type: application/http; msgtype=response\r\n"
                f"Content-Length: {len(body)}\r\n\r\n"
            )
            file.write(gzip.compress(head.encode() + body + b"\r\n\r\n", mtime=0))
