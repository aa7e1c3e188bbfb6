"""
DCLM's chain of mappers, written after its specification with the cost of the original: one page at a time, one pass a
rule, words from uniseg, n-grams as tuples in a `Counter`.

`curation_speed.py` runs these where no checkout of DCLM is given. A mapper takes a page, a dictionary, and gives the
list of pages that it becomes: itself, perhaps rewritten, or nothing.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from urllib.parse import urlparse

from uniseg.wordbreak import words as words_of_uniseg

Page = dict[str, Any]
Mapper = Callable[[Page], list[Page]]

STOP_WORDS = {"the", "be", "to", "of", "and", "that", "have", "with"}
BULLETS = ("●", "•", "*", "-")
ELLIPSES = ("...", ". . .", "…")
SYMBOLS = ("#", *ELLIPSES)
COUNTED = "likes shares comments retweets reposts quotes bookmarks upvotes downvotes downloads views followers"
FASTTEXT_TOKENS = re.compile("[^ \n\r\t\v\f\0]+")


def words_by_uniseg(text: str) -> list[str]:
    """Word segments that begin with a letter or digit."""
    return [word for word in words_of_uniseg(text) if word[0].isalnum()]


def words_by_fasttext(text: str) -> list[str]:
    """Tokens between fastText's separators that begin with a letter or digit."""
    return [word for word in FASTTEXT_TOKENS.findall(text) if word[0].isalnum()]


def segments(text: str, separator: str) -> list[str]:
    """Lines or paragraphs, stripped, without empty ones."""
    return [segment for piece in re.split(separator, text) if (segment := piece.strip())]


def _verdict(page: Page, keep: bool) -> list[Page]:
    return [page] if keep else []


def _rewritten(page: Page, text: str) -> list[Page]:
    if text == "":
        return []
    page["text"] = text
    return [page]


# --- addresses ---------------------------------------------------------------------------------------------------


def blocked_domains(domains: Sequence[str]) -> Mapper:
    """The host, without "www", is none of these."""
    blocked = {domain.lower() for domain in domains}
    return lambda page: _verdict(page, urlparse(page["url"]).netloc.lower().replace("www", "") not in blocked)


def blocked_words(words: Sequence[str], minimum: int = 1, whole_words: bool = False, ignored: str = "") -> Mapper:
    """Fewer than `minimum` different ones of these stand in the address."""
    pattern = trie_pattern([word.lower() for word in words])
    expression = re.compile(rf"\b{pattern}\b" if whole_words else pattern, re.IGNORECASE)

    def judge(page: Page) -> list[Page]:
        url = page["url"].lower()
        for char in ignored:
            url = url.replace(char, "")
        return _verdict(page, len(set(expression.findall(url))) < minimum)

    return judge


def trie_pattern(words: Sequence[str]) -> str:
    """A pattern of the words whose alternatives share their beginnings, as the original's has it."""
    root: dict[str, Any] = {}
    for word in words:
        node = root
        for char in word:
            node = node.setdefault(char, {})
        node[""] = {}

    def pattern(node: dict[str, Any]) -> str:
        branches = [re.escape(char) + pattern(child) for char, child in sorted(node.items()) if char]
        if not branches:
            return ""
        return f"(?:{'|'.join(branches)}){'?' if '' in node else ''}"

    return pattern(root)


def removed_addresses(top_domains: Sequence[str]) -> Mapper:
    """Addresses go from a text that begins with the letters of a top-level domain; then numbers of hosts."""
    tail = r"[-a-zA-Z0-9()@:%_\+.~#?&//=]*"
    ending = trie_pattern(top_domains)
    beginning = re.compile(ending, re.IGNORECASE)
    address = re.compile(rf"\s{{0,10}}(?:(?:https?|ftp)://)?[-a-zA-Z0-9@:%._\+~#=]{{1,256}}\.{ending}\b{tail}")
    number = re.compile(rf"\s{{0,10}}\b(?:(?:https?|ftp)://)?(?:[0-2]?[0-9]{{1,2}}\.){{3}}[0-2]?[0-9]{{1,2}}{tail}")

    def rewrite(page: Page) -> list[Page]:
        text = page["text"]
        if beginning.match(text):
            text = address.sub("", text)
        return _rewritten(page, number.sub("", text))

    return rewrite


def collapsed_newlines(page: Page) -> list[Page]:
    """At most two newlines follow each other."""
    page["text"] = re.sub("\n{3,}", "\n\n", page["text"])
    return [page]


# --- quality -----------------------------------------------------------------------------------------------------


def word_count(page: Page) -> list[Page]:
    """50 to 100,000 words."""
    return _verdict(page, 50 <= len(words_by_fasttext(page["text"])) <= 100_000)


def mean_word_length(page: Page) -> list[Page]:
    """Words of 3 to 10 characters on average."""
    words = page["text"].split()
    return _verdict(page, bool(words) and 3 <= sum([len(word) for word in words]) / len(words) <= 10)


def symbol_ratio(page: Page) -> list[Page]:
    """At most a hash sign or ellipsis in ten words."""
    count = sum(page["text"].count(symbol) for symbol in SYMBOLS)
    words = page["text"].split()
    return _verdict(page, bool(words) and count / len(words) <= 0.1)


def bullets(page: Page) -> list[Page]:
    """At most 90 % of the lines begin with a bullet."""
    lines = segments(page["text"], "\n")
    count = sum([any(line.startswith(bullet) for bullet in BULLETS) for line in lines])
    return _verdict(page, count <= 0.9 * len(lines))


def ellipses(page: Page) -> list[Page]:
    """At most 30 % of the lines end in an ellipsis."""
    lines = segments(page["text"], "\n")
    count = sum([any(line.endswith(ellipsis) for ellipsis in ELLIPSES) for line in lines])
    return _verdict(page, count <= 0.3 * len(lines))


def alphabetic_words(page: Page) -> list[Page]:
    """At most a fifth of the words have no letter."""
    words = page["text"].split()
    count = sum(not any(char.isalpha() for char in word) for word in words)
    return _verdict(page, bool(words) and count / len(words) <= 0.2)


def stop_words(page: Page) -> list[Page]:
    """At least two stop words."""
    count = 0
    for word in page["text"].split():
        if word.lower() in STOP_WORDS:
            count += 1
            if count >= 2:
                return [page]
    return []


# --- repetition --------------------------------------------------------------------------------------------------


def _repeats_segments(text: str, separator: str, bound: float, by_chars: bool) -> bool:
    pieces = segments(text, separator)
    if len(pieces) < 2:
        return not pieces
    counts = Counter(pieces)
    if by_chars:
        repeated = sum(len(piece) * count for piece, count in counts.items() if count > 1)
        return repeated / sum(len(piece) for piece in pieces) > bound
    return sum(count for count in counts.values() if count > 1) / len(pieces) > bound


def _top_ngram_share(counts: Counter[tuple[str, ...]], total: int) -> float:
    ordered = counts.most_common()
    most = ordered[0][1]
    length = 0
    for ngram, count in ordered:
        if count != most:
            break
        length = max(length, sum(len(word) for word in ngram))
    return length * most / total


def _repeated_share(
    words: list[str], ngrams: list[tuple[str, ...]], counts: Counter[tuple[str, ...]], total: int
) -> float:
    covered: set[int] = set()
    for place, ngram in enumerate(ngrams):
        if counts[ngram] > 1:
            covered.update(range(place, place + len(ngram)))
    return sum(len(words[place]) for place in covered) / total


def repetition(page: Page) -> list[Page]:
    """Few lines, paragraphs and n-grams come again."""
    text = page["text"]
    for by_chars, bound in ((False, 0.3), (True, 0.2)):
        if any(_repeats_segments(text, separator, bound, by_chars) for separator in ("\n", "\n\n")):
            return []
    words = words_by_uniseg(text)
    total = sum(len(word) for word in words)
    for n, bound in zip(range(2, 11), (0.20, 0.18, 0.16, 0.15, 0.14, 0.13, 0.12, 0.11, 0.10), strict=True):
        ngrams = list(zip(*(words[start:] for start in range(n)), strict=False))
        if not ngrams:
            continue
        counts = Counter(ngrams)
        if max(counts.values()) == 1:
            continue
        share = _top_ngram_share(counts, total) if n < 5 else _repeated_share(words, ngrams, counts, total)
        if share > bound:
            return []
    return [page]


# --- lines -------------------------------------------------------------------------------------------------------


def counted_words(page: Page) -> list[Page]:
    """Note how many words there are before lines go."""
    page["previous_word_count"] = len(words_by_fasttext(page["text"]))
    return [page]


def lines_where(keeps: Callable[[str], bool], strips: bool = True) -> Mapper:
    """Only these lines stay."""

    def rewrite(page: Page) -> list[Page]:
        text = "\n".join([line for line in page["text"].split("\n") if keeps(line)])
        return _rewritten(page, text.strip() if strips else text)

    return rewrite


def _is_not_upper(line: str) -> bool:
    return not line or sum(char.isupper() for char in line) / len(line) <= 0.5


def _is_not_number(line: str) -> bool:
    return not line or sum(char.isdigit() for char in line) / len(line) <= 0.999999


def counter_lines() -> Mapper:
    """Lines such as "3 likes" go."""
    names = COUNTED.replace(" ", "|")
    counter = re.compile(rf"^\W*\d(?:,|\.|\d)*(?:k|m|b)?\s+(?:{names})\W*$")
    return lines_where(lambda line: not counter.search(line.lower()))


def without_phrase(pattern: str) -> Mapper:
    """A phrase goes from lines of at most ten words, and lines of nothing else."""
    expression = re.compile(pattern, re.IGNORECASE)

    def rewrite(page: Page) -> list[Page]:
        lines = []
        for line in page["text"].split("\n"):
            if len(line.split()) <= 10:
                rest = expression.sub("", line)
                if line and not rest.strip():
                    continue
                lines.append(rest)
            else:
                lines.append(line)
        return _rewritten(page, "\n".join(lines).strip())

    return rewrite


def removed_words(page: Page) -> list[Page]:
    """At most 5 % of the words went with the lines."""
    count = page["previous_word_count"]
    removed = count - len(words_by_fasttext(page["text"]))
    return _verdict(page, count > 0 and removed / count <= 0.05)


def rules() -> list[Mapper]:
    """Quality, then repetition."""
    quality = [word_count, mean_word_length, symbol_ratio, bullets, ellipses, alphabetic_words, stop_words]
    return [*quality, repetition]


def chain(lists: dict[str, list[str]], top_domains: Sequence[str]) -> list[Mapper]:
    """
    The whole chain but language identification.

    Args:
        lists (`dict[str, list[str]]`):
            `"domains"`, `"strict"`, `"hard"` and `"soft"`: what addresses must not hold.
        top_domains (`Sequence[str]`):
            Top-level domains, by which addresses in the text are known.
    """
    return [
        blocked_domains(lists["domains"]),
        blocked_words(lists["strict"], ignored="-."),
        blocked_words(lists["hard"], whole_words=True),
        blocked_words(lists["soft"], minimum=2, whole_words=True),
        removed_addresses(top_domains),
        collapsed_newlines,
        *rules(),
        counted_words,
        lines_where(_is_not_upper),
        lines_where(_is_not_number),
        counter_lines(),
        lines_where(lambda line: not line or len(line.split()) >= 2, strips=False),
        without_phrase(r"\s?items in cart"),
        without_phrase(r"\s?read more...$"),
        without_phrase(r"^sign-in\s?"),
        removed_words,
    ]


def words_given(texts: Sequence[str]) -> Callable[[], AbstractContextManager[None]]:
    """A context in which word breaking costs nothing: what it gives for these texts is looked up."""
    breakers = {"words_by_uniseg": words_by_uniseg, "words_by_fasttext": words_by_fasttext}
    tables = {name: {text: breaker(text) for text in texts} for name, breaker in breakers.items()}

    @contextmanager
    def context() -> Iterator[None]:
        globals().update({name: table.__getitem__ for name, table in tables.items()})
        try:
            yield
        finally:
            globals().update(breakers)

    return context
