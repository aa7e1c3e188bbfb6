"""Texts as the exemplar store compares, splits and draws by them: keys, words, keyed random numbers."""

from __future__ import annotations

import hashlib
import json
import re
import sys
import unicodedata
from dataclasses import dataclass
from functools import cache, lru_cache

# Scripts written without spaces, with Korean, whose words carry their particles: bigrams, as Lucene's CJK analyzer.
_UNSPACED = (
    "\u0e00-\u0eff"  # Thai, Lao
    "\u1000-\u109f"  # Burmese
    "\u1100-\u11ff"  # Hangul letters
    "\u1780-\u17ff"  # Khmer
    "\u3005-\u3007\u3040-\u30ff\u3100-\u318f\u31a0-\u31bf\u31f0-\u31ff"  # Kana, Bopomofo, compatibility letters
    "\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff"  # Han, Hangul
    "\U00020000-\U0003ffff"  # Han, further planes
)


def normalize(text: str) -> str:
    """NFKC, case-folded, white space collapsed: two texts with the same result count as one text."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return " ".join(text.casefold().split())


def text_key(text: str) -> str:
    """128-bit hash of [`normalize`]'s result, as 32 hexadecimal digits."""
    return hashlib.blake2b(normalize(text).encode(), digest_size=16).hexdigest()


@cache
def _pattern() -> re.Pattern[str]:
    """Words with their combining marks (`\\w` alone tears Hindi and Arabic apart), or runs of an unspaced script."""
    marks = [i for i in range(0x300, min(sys.maxunicode, 0x1FFFF)) if unicodedata.category(chr(i))[0] == "M"]
    ranges: list[list[int]] = []
    for i in marks:
        if ranges and ranges[-1][1] == i - 1:
            ranges[-1][1] = i
        else:
            ranges.append([i, i])
    combining = "".join(f"{chr(low)}-{chr(high)}" for low, high in ranges)
    return re.compile(f"([{_UNSPACED}]+)|((?:(?![{_UNSPACED}])[\\w{combining}])+)")


@dataclass(frozen=True)
class WordSplitter:
    """
    Text to index words: case-folded words, and overlapping pairs of characters where a script has no spaces.

    One splitter serves every language: Chinese, Japanese, Korean, Thai, Lao, Khmer and Burmese runs become bigrams
    (a lone character stays one), everything else becomes words. A splitter that knows words only finds no exemplar for
    nine in ten Chinese questions.

    Args:
        stop_words (`tuple[str, ...]`, *optional*):
            Words left out, in lower case. None by default: the BM25 formula gives frequent words little weight.
    """

    stop_words: tuple[str, ...] = ()

    def __call__(self, text: str) -> list[str]:
        """Words in the order of the text, repeats included."""
        if not text.isascii():
            text = unicodedata.normalize("NFKC", text)
        words: list[str] = []
        for match in _pattern().finditer(text.casefold()):
            unspaced = match[1]
            if unspaced is None:
                words.append(match[2])
            else:
                words += [unspaced[i : i + 2] for i in range(max(1, len(unspaced) - 1))]
        return [word for word in words if word not in self.stop_words] if self.stop_words else words


def keyed_integers(count: int, *key: str | int) -> list[int]:
    """
    `count` integers of 64 bits, uniform, that depend on `key` alone.

    Neither the process, nor its hash seed, nor what was drawn before has a say: any worker, and a resumed run, draws
    the same.
    """
    start = json.dumps(key, ensure_ascii=False).encode("utf-8", "surrogatepass")
    integers: list[int] = []
    for block in range(-(-count // 8)):
        digest = hashlib.blake2b(start, salt=block.to_bytes(8, "little")).digest()
        integers += [int.from_bytes(digest[i : i + 8], "little") for i in range(0, 64, 8)]
    return integers[:count]


def keyed_uniform(*key: str | int) -> float:
    """One number in [0, 1), from [`keyed_integers`]."""
    return (keyed_integers(1, *key)[0] >> 11) / 2**53


class TokenCounter:
    """
    A tokenizer as the budgets need it: how many tokens a text has, and where each ends.

    It works on a copy without truncation and padding, so that the tokenizer of a model stays as it is, and needs no
    torch.

    Args:
        tokenizer (`tokenizers.Tokenizer`, `PreTrainedTokenizerFast` or `TokenCounter`):
            Of the model that will read the text.

    Raises:
        TypeError: if the tokenizer is not backed by the `tokenizers` library, so that it gives no character offsets.
    """

    def __init__(self, tokenizer: object) -> None:
        backend = tokenizer._tokenizer if isinstance(tokenizer, TokenCounter) else tokenizer
        backend = getattr(backend, "backend_tokenizer", backend)
        if not hasattr(backend, "to_str") or not hasattr(backend, "num_special_tokens_to_add"):
            raise TypeError(
                f"Token budgets need character offsets, which {type(tokenizer).__name__} does not give. Pass a fast "
                "tokenizer, or a tokenizers.Tokenizer; or set every budget of the formatter to None."
            )
        self.__setstate__(backend.to_str())

    def __getstate__(self) -> str:
        return self._tokenizer.to_str()

    def __setstate__(self, state: str) -> None:
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_str(state)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._clip = lru_cache(maxsize=1 << 16)(self._clipped)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TokenCounter) and self.__getstate__() == other.__getstate__()

    def __hash__(self) -> int:
        return hash(self.__getstate__())

    def count(self, text: str) -> int:
        """Tokens of `text`, special tokens included: what the model will read."""
        return len(self._tokenizer.encode(text, add_special_tokens=True).ids)

    def span(self, text: str, start: int, stop: int) -> tuple[int, int]:
        """Numbers of the first tokens that reach beyond `start` and beyond `stop` characters, special ones counted."""
        ends = [end for _, end in self._tokenizer.encode(text, add_special_tokens=True).offsets]
        behind = max((place for place, end in enumerate(ends, 1) if end), default=0)
        first, last = (next((n for n, end in enumerate(ends) if end > limit), behind) for limit in (start, stop))
        return first, last

    def clip(self, text: str, limit: int) -> str:
        """The longest beginning of `text`, cut between tokens, that alone has at most `limit` tokens (no special)."""
        return self._clip(text, limit)

    def _clipped(self, text: str, limit: int) -> str:
        offsets = self._tokenizer.encode(text, add_special_tokens=False).offsets
        if len(offsets) <= limit:
            return text
        keep = limit
        while keep > 0:
            cut = text[: offsets[keep - 1][1]].rstrip()
            # Cut inside a word, its beginning may need more tokens than it had.
            excess = len(self._tokenizer.encode(cut, add_special_tokens=False).ids) - limit
            if excess <= 0:
                return cut
            keep -= excess
        return ""
