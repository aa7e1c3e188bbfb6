"""
Pages nobody wants, made from a seed, each with the label of its kind, in equal parts of characters.

| kind | what it is |
|---|---|
| `exact_duplicate` | a good document again |
| `near_duplicate` | a good document with 0.5 to 2.5 % of its words replaced or gone, under another heading |
| `word_salad` | sentences of words drawn by how often the good documents have them |
| `boilerplate` | menus, counters, notices of cookies and rights |
| `repeated_ngrams` | a phrase again and again between sentences |
| `other_language` | a real page in another language |
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Any

import numpy as np

KINDS = ("exact_duplicate", "near_duplicate", "word_salad", "boilerplate", "repeated_ngrams", "other_language")
MENU = (
    "Home", "About us", "Contact", "Products", "Services", "Blog", "News", "Careers", "Support", "FAQ", "Sitemap",
    "Sign-in", "Register", "My account", "Cart", "Wish list", "Search", "Next", "Previous", "Back to top", "Share",
    "Tweet", "Print this page", "Read more...", "Related articles", "Most popular", "Latest comments", "Archive",
)  # fmt: skip
NOTICES = (
    "We use cookies to make this site work and to see how you use it",
    "By going on you agree to the terms of use and the privacy policy",
    "All rights reserved and no part of this page may be copied",
    "Subscribe to the newsletter and never miss an offer again",
    "Your browser is out of date and parts of this page may not work",
    "Enter your e-mail address and we send you a new password",
    "This product is not available in your country at the moment",
    "Free delivery on all orders and returns within a month",
)
COUNTERS = ("likes", "comments", "views", "shares", "downloads", "followers")
TARGET_CHARS = 2_500  # of a made page, about


class JunkMaker:
    """
    Makes the pages.

    Args:
        good (`list[dict]`):
            Rows with `id` and `text`.
        foreign (`list[str]`):
            Pages in other languages.
        seed (`int`):
            Of the draws.
    """

    def __init__(self, good: list[dict[str, Any]], foreign: list[str], seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.good = good
        self.foreign = [foreign[place] for place in self.rng.permutation(len(foreign))]
        words = np.array([word for row in good for word in row["text"].split() if word.isalpha()])
        self.vocabulary, counts = np.unique(words, return_counts=True)
        self.shares = counts / counts.sum()

    def words(self, number: int) -> list[str]:
        """Words drawn by frequency."""
        return self.rng.choice(self.vocabulary, number, p=self.shares).tolist()

    def sentence(self) -> str:
        """Six to twenty such words."""
        return " ".join(self.words(int(self.rng.integers(6, 21)))).capitalize() + "."

    def pick(self, options: tuple[str, ...]) -> str:
        """One of them."""
        return options[int(self.rng.integers(len(options)))]

    def word_salad(self) -> str:
        """Paragraphs of such sentences."""
        paragraphs: list[str] = []
        while sum(map(len, paragraphs)) < TARGET_CHARS:
            paragraphs.append(" ".join(self.sentence() for _ in range(int(self.rng.integers(2, 7)))))
        return "\n\n".join(paragraphs)

    def boilerplate(self) -> str:
        """Lines of what stands around a page's text."""
        lines: list[str] = []
        while sum(map(len, lines)) < TARGET_CHARS / 2:
            draw = self.rng.random()
            if draw < 0.6:
                lines.append(self.pick(MENU))
            elif draw < 0.75:
                lines.append(f"{self.rng.integers(1, 5000):,} {self.pick(COUNTERS)}")
            else:
                lines.append(f"{self.pick(NOTICES)} ({self.words(1)[0]} {self.rng.integers(1990, 2026)}).")
        return "\n".join(lines)

    def repeated_ngrams(self) -> str:
        """A phrase of three to eight words between sentences."""
        phrase = " ".join(self.words(int(self.rng.integers(3, 9))))
        parts: list[str] = []
        while sum(map(len, parts)) < TARGET_CHARS:
            repeats = int(self.rng.integers(2, 7))
            parts.append(" ".join([*([phrase] * repeats), self.sentence()]))
        return "\n".join(parts)

    def near_duplicate_of(self, text: str) -> str:
        """The text under another heading, with a few other words."""
        rate = self.rng.uniform(0.005, 0.025)
        lines = []
        for line in text.split("\n"):
            words = line.split(" ")
            for place in np.flatnonzero(self.rng.random(len(words)) < rate):
                words[place] = self.words(1)[0] if self.rng.random() < 0.5 else ""
            lines.append(" ".join(word for word in words if word))
        return "\n".join([self.sentence(), *lines])

    def rows_of(self, kind: str) -> Iterator[dict[str, Any]]:
        """Pages of a kind: other languages while there are any, others without end. A copy names its original."""
        makers = {
            "word_salad": self.word_salad,
            "boilerplate": self.boilerplate,
            "repeated_ngrams": self.repeated_ngrams,
        }
        for number in count():
            original_id = None
            if kind in makers:
                text = makers[kind]()
            elif kind == "other_language":
                if number == len(self.foreign):
                    return
                text = self.foreign[number]
            else:
                original = self.good[int(self.rng.integers(len(self.good)))]
                original_id = original["id"]
                text = original["text"] if kind == "exact_duplicate" else self.near_duplicate_of(original["text"])
            row_id = f"{kind}-{number:05d}"
            yield {"id": row_id, "source": "junk", "text": text, "kind": kind, "copy_of": original_id}


def mixed(good: list[dict[str, Any]], foreign: list[str], seed: int) -> list[dict[str, Any]]:
    """
    The good documents and as many characters of junk, in a random order in which a copy comes after its original.

    Args:
        good (`list[dict]`):
            Rows with `id`, `source` and `text`.
        foreign (`list[str]`):
            Pages in other languages; each is used once.
        seed (`int`):
            Of the junk and the order.

    Returns:
        Rows with `id`, `source`, `text`, `kind` (`"good"` or one of `KINDS`) and `copy_of`.
    """
    maker = JunkMaker(good, foreign, seed)
    budget = sum(len(row["text"]) for row in good) / len(KINDS)
    rows = [{**row, "kind": "good", "copy_of": None} for row in good]
    for kind in KINDS:
        chars = 0
        for row in maker.rows_of(kind):
            if chars >= budget:
                break
            rows.append(row)
            chars += len(row["text"])
    order = maker.rng.permutation(len(rows)).tolist()
    places = {rows[number]["id"]: place for place, number in enumerate(order)}
    families: dict[str, list[str]] = {}
    for row in rows:
        if row["copy_of"]:
            families.setdefault(row["copy_of"], [row["copy_of"]]).append(row["id"])
    for family in families.values():  # the first of a family's places is the original's
        for row_id, place in zip(family, sorted(places[row_id] for row_id in family), strict=True):
            places[row_id] = place
    return sorted(rows, key=lambda row: places[row["id"]])
