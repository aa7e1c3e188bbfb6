"""The rules written down as slowly as they are stated: tuples, counters and sets of positions, given the words."""

from __future__ import annotations

import re
from collections import Counter

import regex

QUALITY_BOUNDS = {
    "word_count": (50, 100_000), "mean_word_len": (3, 10), "symbol_ratio": (None, 0.1), "bullet": (None, 0.9),
    "ellipsis": (None, 0.3), "alpha": (None, 0.2), "stop_words": (2, None),
}  # fmt: skip
REPETITION_BOUNDS = {
    "line_count": 0.30, "paragraph_count": 0.30, "line_chars": 0.20, "paragraph_chars": 0.20,
    "top_2_gram": 0.20, "top_3_gram": 0.18, "top_4_gram": 0.16, "repeated_5_gram": 0.15, "repeated_6_gram": 0.14,
    "repeated_7_gram": 0.13, "repeated_8_gram": 0.12, "repeated_9_gram": 0.11, "repeated_10_gram": 0.10,
}  # fmt: skip


def words_by_regex(text: str) -> list[str]:
    """Words by the boundaries of `regex`, which glues an apostrophe to a vowel after it, as UAX#29 does not."""
    segments = []
    for segment in regex.split(r"(?V1w)\b", text):
        is_glued = len(segment) > 1 and segment[0] in "'’" and segment[1].isalnum()
        segments += [segment[0], segment[1:]] if is_glued else [segment]
    return [segment for segment in segments if segment and segment[0].isalnum()]


def quality(text: str) -> dict[str, float]:
    words = text.split()
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    tokens = [token for token in re.split(r"[ \n\r\t\v\f\0]", text) if token]
    stop_words = ("the", "be", "to", "of", "and", "that", "have", "with")
    return {
        "word_count": len([token for token in tokens if token[0].isalnum()]),
        "mean_word_len": sum(len(word) for word in words) / len(words),
        "symbol_ratio": sum(text.count(symbol) for symbol in ("#", "...", ". . .", "…")) / len(words),
        "bullet": len([line for line in lines if line[0] in "●•*-"]) / len(lines),
        "ellipsis": len([line for line in lines if line.endswith(("...", ". . .", "…"))]) / len(lines),
        "alpha": len([word for word in words if not any(c.isalpha() for c in word)]) / len(words),
        "stop_words": len([word for word in words if word.lower() in stop_words]),
    }


def pieces(text: str, separator: str) -> tuple[float, float]:
    """Shares of the lines or paragraphs that occur more than once, by number and by characters."""
    segments = [piece.strip() for piece in text.split(separator) if piece.strip()]
    if len(segments) == 1:
        return 0.0, 0.0
    counts = Counter(segments)
    repeated = [segment for segment in segments if counts[segment] > 1]
    return len(repeated) / len(segments), sum(map(len, repeated)) / sum(map(len, segments))


def ngram(words: list[str], size: int) -> float:
    grams = [tuple(words[start : start + size]) for start in range(len(words) - size + 1)]
    counts = Counter(grams)
    if not grams or max(counts.values()) == 1:
        return 0.0
    if size <= 4:
        highest = max(counts.values())
        longest = max(sum(map(len, gram)) for gram, count in counts.items() if count == highest)
        return longest * highest / sum(map(len, words))
    positions = {start + k for start, gram in enumerate(grams) if counts[gram] > 1 for k in range(size)}
    return sum(len(words[position]) for position in positions) / sum(map(len, words))


def repetition(text: str, words: list[str]) -> dict[str, float]:
    line_count, line_chars = pieces(text, "\n")
    paragraph_count, paragraph_chars = pieces(text, "\n\n")
    shares = [line_count, paragraph_count, line_chars, paragraph_chars]
    return dict(zip(REPETITION_BOUNDS, shares + [ngram(words, size) for size in range(2, 11)], strict=True))


def quality_verdict(values: dict[str, float]) -> str | None:
    for rule, (minimum, maximum) in QUALITY_BOUNDS.items():
        if (minimum is not None and values[rule] < minimum) or (maximum is not None and values[rule] > maximum):
            return rule
    return None


def repetition_verdict(values: dict[str, float]) -> str | None:
    return next((rule for rule, bound in REPETITION_BOUNDS.items() if values[rule] > bound), None)


def delete_lines(text: str, replicate_bugs: bool = False) -> tuple[str, str | None]:
    """Rules 19 to 26 on one document, each on the text that the one before left: the text, and why it goes."""
    plural = "s" if replicate_bugs else "s?"
    names = [
        "like",
        "share",
        "comment",
        "retweet",
        "repost",
        "quote",
        "bookmark",
        "upvote",
        "downvote",
        "download",
        "view",
        "follower",
    ]
    counter = rf"^\W*\d(?:,|\.|\d)*(?:k|m|b)?\s+(?:{'|'.join(name + plural for name in names)})\W*$"
    num_words = len(words_ft(text))
    lines = [line for line in text.split("\n") if not line or sum(c.isupper() for c in line) / len(line) <= 0.5]
    if not (text := "\n".join(lines).strip()):
        return text, "uppercase_lines"
    lines = [line for line in text.split("\n") if not line or sum(c.isdigit() for c in line) / len(line) <= 0.999999]
    if not (text := "\n".join(lines).strip()):
        return text, "numeric_lines"
    text = "\n".join(line for line in text.split("\n") if not re.search(counter, line.lower())).strip()
    if not text:
        return text, "counter_lines"
    text = "\n".join(line for line in text.split("\n") if not line or len(line.split()) >= 2)
    if not text.strip():
        return text, "short_lines"
    read_more = "read more..." if replicate_bugs else r"read more\.\.\."
    phrases = {"items_in_cart": r"\s?items in cart", "read_more": rf"\s?{read_more}$", "sign_in": r"^sign-in\s?"}
    for rule, pattern in phrases.items():
        lines = []
        for line in text.split("\n"):
            cut = re.sub(pattern, "", line, flags=re.IGNORECASE) if len(line.split()) <= 10 else line
            if not line or cut.strip():
                lines.append(cut)
        if not (text := "\n".join(lines).strip()):
            return text, rule
    is_short = not num_words or (num_words - len(words_ft(text))) / num_words > 0.05
    return text, "removed_words" if is_short else None


def words_ft(text: str) -> list[str]:
    return [token for token in re.split(r"[ \n\r\t\v\f\0]", text) if token and token[0].isalnum()]
