"""Small web pages, good and bad, as a WARC file that curation reads."""

from __future__ import annotations

import gzip
import random
from pathlib import Path

_TEXT = (
    "river stone garden letter window bridge market doctor music paper winter kitchen harbour teacher story quiet old "
    "narrow bright heavy distant careful green wooden early keeps finds carries remembers watches follows builds "
    "answers paints repairs slowly often never rather almost people houses hills boats lamps songs maps clouds bread "
    "salt wheels"
)
WORDS = _TEXT.split()
COMMON = ("the", "of", "and", "to", "that", "with", "have", "be", "in", "a")


def article(seed: int, num_sentences: int = 12) -> str:
    """English of no sense that the rules of Gopher take: common words, and no phrase twice."""
    generator = random.Random(seed)
    sentences = []
    for _ in range(num_sentences):
        length = generator.randint(9, 15)
        words = [generator.choice(COMMON if place % 3 == 0 else WORDS) for place in range(length)]
        sentences.append(" ".join(words).capitalize() + ".")
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
