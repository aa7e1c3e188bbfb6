"""Documents just within, at and just beyond the bound of each rule, which break no other: the first two stay."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple


class Edge(NamedTuple):
    """A rule, and a document on each side of its bound and at it."""

    rule: str
    within: str
    at_bound: str
    beyond: str

    @property
    def texts(self) -> list[str]:
        return [self.within, self.at_bound, self.beyond]

    @property
    def verdicts(self) -> list[str | None]:
        return [None, None, self.rule]


def prose(num_words: int) -> str:
    """Plain words, `num_words` by every count, two of them stop words."""
    return " ".join(["the", "of", *(f"word{two_letters(k)}" for k in range(num_words - 2))])


def two_letters(number: int) -> str:
    return chr(97 + number % 26) + chr(97 + number // 26 % 26)


def lines(num_marked: int, marked: str, num_plain: int, plain: str) -> str:
    return "\n".join([marked] * num_marked + [plain] * num_plain)


# A hundred words, or lines, so that one more or less is just beyond or within.
MANY_SYMBOLS = prose(96) + " #a#... …. . ."  # a hundred words and five symbols

QUALITY_EDGES = [
    Edge("word_count", prose(51), prose(50), prose(49)),
    Edge("word_count", *("the of " + "abcd " * count for count in (99_997, 99_998, 99_999))),
    Edge("mean_word_len", *("the of " + "abcd " * count + "abc " * 60 for count in (2, 1, 0))),
    Edge("mean_word_len", *("the of " + "abcdefghij " * 58 + "a" * size for size in (24, 25, 26))),
    Edge("symbol_ratio", prose(91) + " #ab" * 9, prose(90) + " #ab" * 10, prose(90) + " #ab" * 9 + " ##a"),
    Edge("symbol_ratio", *(MANY_SYMBOLS + "#" * count for count in (4, 5, 6))),
    Edge("bullet", *(lines(n, "* " + prose(6), 100 - n, prose(6)) for n in (89, 90, 91))),
    Edge("ellipsis", *(lines(n, prose(6) + " . . .", 100 - n, prose(6)) for n in (29, 30, 31))),
    Edge("alpha", prose(81) + " 1234" * 19, prose(80) + " 1234" * 20, prose(79) + " 1234" * 21),
    Edge("stop_words", "THE Of be " + prose(60)[7:], "THE Of " + prose(60)[7:], "THE of, " + prose(60)[7:]),
]


def run_of(size: int) -> str:
    return " ".join(f"r{chr(97 + k)}zz" for k in range(size))


def unique_words(count: int) -> list[str]:
    return [f"q{two_letters(k)}{chr(97 + k // 676)}" for k in range(count)]


def repeated(size: int, copies: int, num_words: int) -> str:
    """`copies` of a run of `size` words apart from each other among words that occur once; all of four letters."""
    unique = unique_words(num_words - copies * size)
    return " ".join(word for k in range(copies) for word in [run_of(size), *unique[k::copies]])


def spread(separator: str, num_copies: int, piece: str, others: Sequence[str]) -> str:
    """Copies of a piece apart from each other among others."""
    pieces = list(others)
    for number in range(num_copies):
        pieces.insert(2 * number, piece)
    return separator.join(pieces)


def numbers(count: int, size: int) -> list[str]:
    return [f"{number:0{size}}" for number in range(count)]


def pairs_of_lines(count: int) -> list[str]:
    return [f"{number:03}\n{number + 500:03}" for number in range(count)]


def triples_of_lines(last: int) -> list[str]:
    """Five paragraphs of 39 characters and a number's, fifteen lines."""
    return [f"{k}1\n{k}2\n{k}3" for k in range(1, 5)] + [f"{last}\n52\n53"]


REPETITION_EDGES = [
    Edge("line_count", *(spread("\n", n, "ab", numbers(m, 8)) for n, m in ((30, 71), (30, 70), (31, 70)))),
    Edge("paragraph_count", *(spread("\n\n", n, "ab", pairs_of_lines(m)) for n, m in ((30, 71), (30, 70), (31, 70)))),
    Edge("line_chars", *(spread("\n", 2, "abcde", [*numbers(4, 8), "9" * size]) for size in (9, 8, 7))),
    Edge("paragraph_chars", *(spread("\n\n", 2, "a\nb\nc", triples_of_lines(last)) for last in (510, 51, 5))),
    *(
        Edge(f"{kind}_{size}_gram", *(repeated(size, copies, 100 * size + more) for more in (1, 0, -1)))
        for size, kind, copies in zip(
            range(2, 11), ["top"] * 3 + ["repeated"] * 6, (20, 18, 16, 15, 14, 13, 12, 11, 10), strict=True
        )
    ),
]

# --- lines -------------------------------------------------------------------------------------------------------

PROSE = "\n".join(["a line of plain words that nobody would want to delete"] * 6)

# A line and what is left of it in the middle of prose; None if the line goes.
LINE_CASES = [
    ("AB cd", "AB cd"), ("ABC de", "ABC de"), ("ABCD e", None), ("ÀÉÈ d", None), ("12345", None), ("12a 45", "12a 45"),
    ("٣٤", None),
    ("3 likes", None), ("1 like", None), ("(1,024.5k   Views!)", None), ("3 likes and more", "3 likes and more"),
    ("3likes here", "3likes here"), ("word", None), ("", ""), ("two words", "two words"), ("  \t", None),
    ("your 2 Items in Cart now", "your 2 now"), ("items in cart", None), ("itemſ in Kart", "itemſ in Kart"),
    ("and ıtems in cart", "and"), ("items in cart " * 3, None), ("items in cart" + " word" * 8,) * 2,
    ("some text Read more...", "some text"), ("Read More...", None), ("Read more... of it", "Read more... of it"),
    ("we read more of it", "we read more of it"), ("Sign-in to see", "to see"), ("please Sign-in", "please Sign-in"),
    ("ſIGN-ıN now", "now"), ("x Sign-in", "x Sign-in"), ("Sign-iitems in cartn now read more...", "now"),
    ("items in cart" + " word" * 7, " word" * 7), ("word " * 8 + "Read more...", "word " * 7 + "word"),
    ("word " * 9 + "Read more...",) * 2,
    ("Sign-in" + " word" * 9, "word" + " word" * 8), ("Sign-in" + " word" * 10,) * 2,
]  # fmt: skip
MILLION_DIGITS = ["1" * 499_999 + " " + "1" * 500_000, "1" * 500_000 + " " + "1" * 500_000]  # stays, goes

LINE_PIECES = [
    "AB", "ab", " ", "\n", "\n\n", "1", "23", "4 likes", "5 view", "items in cart", "Read more...", "read more of",
    "Sign-in", "Sign-in ", "\u00a0", "word two", "\t", "é", "\x1c", "... ", "two words of prose\n", "\0", "\ud800",
]  # fmt: skip

# --- datatrove's: every mark is a word, of spaCy's and of the stand-in's; copies are counted without the first ------

ROUGH_WORDS = re.compile(r"\.\.+|\w+(?:[-.@/:'’]\w+)*|[^\w\s]")  # near spaCy's, which takes contractions apart, too


def copies_edge(rule: str, size: int, copies: int, length: int) -> Edge:
    """Copies of a run apart from each other in `length` characters, at which the bound is met."""
    unique = unique_words(length // 5 - 1 - copies * size)
    text = " ".join(word for k in range(copies) for word in [run_of(size), *unique[k::copies]])
    return Edge(rule, *(text + " " + "z" * (length + more - len(text) - 1) for more in (1, 0, -1)))


DATATROVE_QUALITY_EDGES = [
    Edge("gopher_short_doc", *(prose(count) + " ! ? ;" for count in (51, 50, 49))),
    Edge("gopher_long_doc", *("the of " + "abcd " * count + "! ? ;" for count in (99_997, 99_998, 99_999))),
    Edge("gopher_below_avg_threshold", *("the of " + "abcd " * count + "abc " * 60 for count in (2, 1, 0))),
    Edge("gopher_above_avg_threshold", *("the of " + "abcdefghij " * 58 + "a" * size for size in (24, 25, 26))),
    Edge("gopher_too_many_hashes", *(prose(100 - n) + " #" * n for n in (9, 10, 11))),
    Edge("gopher_too_many_ellipsis", *(prose(94 - n) + " ..." * n + " …" * 5 + " x" for n in (4, 5, 6))),
    Edge("gopher_too_many_bullets", *(lines(n, f"- {prose(9)}", 100 - n, prose(9)) for n in (89, 90, 91))),
    Edge("gopher_too_many_bullets", *(lines(n, f" • {prose(9)}", 100 - n, f"* {prose(9)}") for n in (89, 90, 91))),
    Edge("gopher_too_many_end_ellipsis", *(lines(n, f"{prose(30)}…", 100 - n, prose(9)) for n in (29, 30, 31))),
    Edge("gopher_below_alpha_threshold", *(prose(100 - n) + " ." * n for n in (19, 20, 21))),
    Edge(
        "gopher_enough_stop_words",
        prose(60) + " and",
        prose(60) + " And of",
        prose(60).replace("of", "The the"),
    ),
]

TOP_SHARES = {2: (20, 9), 3: (18, 9), 4: (16, 8)}  # of n: the bound in hundredths, and copies
COPY_SHARES = {5: (15, 9), 6: (14, 7), 7: (13, 13), 8: (12, 3), 9: (11, 11), 10: (10, 1)}  # copies after the first
WIDE = f"ab{' ' * 36}cd"  # a fifth of the characters, and little of what n-grams count

DATATROVE_REPETITION_EDGES = [
    Edge("dup_para_frac", *(spread("\n\n", n, "ab", pairs_of_lines(m)) for n, m in ((31, 70), (31, 69), (32, 69)))),
    Edge("dup_para_char_frac", *(spread("\n\n", 2, WIDE, [*numbers(4, 20), "9" * size]) for size in (29, 28, 27))),
    Edge("dup_line_frac", *(spread("\n", n, "ab", numbers(m, 8)) for n, m in ((31, 70), (31, 69), (32, 69)))),
    Edge("dup_line_char_frac", *(spread("\n", 2, WIDE, [*numbers(4, 20), "9" * size]) for size in (35, 34, 33))),
    *(
        copies_edge(f"top_{size}_gram", size, copies, (5 * size - 1) * copies * 100 // share)
        for size, (share, copies) in TOP_SHARES.items()
    ),
    *(
        copies_edge(f"duplicated_{size}_n_grams", size, copies + 1, 4 * size * copies * 100 // share)
        for size, (share, copies) in COPY_SHARES.items()
    ),
]
