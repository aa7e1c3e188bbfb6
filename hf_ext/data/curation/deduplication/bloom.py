"""Paragraphs and documents whose n-grams earlier documents have, by a Bloom filter: BFF of DataComp-LM, repeatable."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from hf_ext.data.curation.deduplication.bloom_filter import BloomFilter, OverfullError, bloom_size
from hf_ext.data.curation.hashing import Hashes, ngram_hashes, word_hashes
from hf_ext.data.curation.steps import Batch, Decision, Drop, Notes, Rule, SetStep
from hf_ext.data.curation.unicode_tables import code_points, unicode_versions
from hf_ext.data.curation.words import segment_spans

if TYPE_CHECKING:
    import pyarrow as pa

_NEWLINE = ord("\n")
# Unicode's White_Space, which is not quite what str.isspace asks for; nothing beyond U+3000 has it
_WHITE_POINTS = [*range(9, 14), 32, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F, 0x205F, 0x3000]
_IS_WHITE = np.zeros(0x3002, bool)
_IS_WHITE[_WHITE_POINTS] = True
_NO_TOKEN = -1  # in place of a piece's number of n-grams


@dataclass(frozen=True, kw_only=True)
class BloomDeduplication(SetStep):
    """
    Cut paragraphs out of documents whose n-grams earlier text has, and drop documents of such n-grams.

    A text is cut at each newline into pieces. Tokens are the segments between Unicode's word boundaries (UAX#29) that
    are not white space; punctuation is one. A piece of at least `ngram` tokens has the n-grams within it, a shorter
    one of at least `min_ngram` tokens is one by itself; a piece without an n-gram always stays. In their order,
    documents are looked up in a filter of all n-grams so far.

    `mode="old-both"`, which made DCLM-Baseline: a piece goes if more than `threshold` of its n-grams are known, and
    the n-grams of one that stays are known at once, to the next piece as well. A document goes if more than
    `threshold` of all its n-grams were known; what its pieces that would have stayed put in remains, as in BFF.

    `mode="both"`: n-grams run across newlines. A document goes if at least `threshold` of its n-grams are known from
    earlier documents, and leaves nothing in the filter. Of another, pieces go of whose n-grams at least `threshold`
    are known; all n-grams that touch no such piece become known. White space at the end goes too.

    The filter is sized by counting n-grams, so that it is never over-full, and nothing is random: two runs are equal.
    A different order of documents, or cutting them into several sets, gives another result. Memory: 1.2 bytes an
    n-gram at `fp_rate=0.01`, about as many n-grams as tokens; 8 bytes of disk each meanwhile.

    | column in | type | column out | type |
    |---|---|---|---|
    | `text_column` | str | `text_column` | str, without the pieces that went |

    Args:
        mode (`str`, *optional*, defaults to `"old-both"`):
            As above.
        ngram, min_ngram (`int`, *optional*, default to 13):
            Tokens of an n-gram, and of the shortest piece (in `"both"`, document) that is one.
        threshold (`float`, *optional*, defaults to 0.8):
            Share of known n-grams, in (0, 1].
        fp_rate (`float`, *optional*, defaults to 0.01):
            Greatest probability that the full filter takes a new n-gram for a known one. [`decide`] measures it and
            notes it down.
        max_memory (`int`, *optional*, defaults to 4 GiB):
            Largest filter, in bytes.
        seed (`int`, *optional*, defaults to 0):
            Of the hashes.
        text_column, on_bad_row, max_chars, revision:
            As of every step.

    Raises:
        OverfullError: from [`decide`], if the set has more n-grams than a filter of `max_memory` can tell apart.

    Reference: Li et al. 2024, *DataComp-LM: In search of the next generation of training sets for language models*
    (arXiv 2406.11794), section 4.3.
    """

    mode: str = "old-both"
    ngram: int = 13
    min_ngram: int = 13
    threshold: float = 0.8
    fp_rate: float = 0.01
    max_memory: int = 4 << 30
    seed: int = 0

    name: ClassVar[str] = "bloom"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mode not in ("old-both", "both"):
            raise ValueError(f'mode must be "old-both" or "both", got {self.mode!r}.')
        if not 1 <= self.ngram <= 1_000:
            raise ValueError(f"ngram must lie in [1, 1000], got {self.ngram!r}.")
        if not 1 <= self.min_ngram <= self.ngram:
            raise ValueError(f"min_ngram must lie in [1, ngram={self.ngram!r}], got {self.min_ngram!r}.")
        if not 0 < self.threshold <= 1:
            raise ValueError(f"threshold must lie in (0, 1], got {self.threshold!r}.")
        if not 0 < self.fp_rate < 1:
            raise ValueError(f"fp_rate must lie in (0, 1), got {self.fp_rate!r}.")
        if not 0 <= self.seed < 1 << 64:
            raise ValueError(f"seed must lie in [0, 2^64), got {self.seed!r}.")

    @property
    def rules(self) -> tuple[Rule, ...]:
        """Too many of a document's n-grams are known; or each of its pieces went."""
        return (Rule("known_ngrams", maximum=self.threshold, exclusive=self.mode == "both"), Rule("no_piece_left"))

    @property
    def versions(self) -> dict[str, str]:
        """Of the tables that say where a word ends."""
        return unicode_versions()

    def features(self, texts: list[str], batch: Batch) -> pa.Table:
        """
        Hashes of the n-grams of each document, in order, and how many each piece has: -1 where it has not even a
        token. In mode `"both"` n-grams that run across newlines are apart, each with its first and its last piece.
        """
        documents = [self._ngrams(text) for text in texts]
        columns = {
            "ngrams": _lists([document.ngrams for document in documents], np.uint64),
            "piece_sizes": _lists([document.piece_sizes for document in documents], np.int32),
        }
        if self.mode == "both":
            columns["bridges"] = _lists([document.bridges for document in documents], np.uint64)
            columns["first_pieces"] = _lists([document.first_pieces for document in documents], np.int32)
            columns["last_pieces"] = _lists([document.last_pieces for document in documents], np.int32)
        import pyarrow as pa

        return pa.table(columns)

    def decide(self, tables: Sequence[pa.Table], notes: Notes | None = None) -> Iterator[list[Decision]]:
        """Count the n-grams, then look them up and insert them, document by document."""
        notes = {} if notes is None else notes
        num_ngrams = 0
        for table in tables:
            num_ngrams += sum(
                len(_flat(table, name)[0]) for name in ("ngrams", "bridges") if name in table.column_names
            )
        size = bloom_size(num_ngrams, self.fp_rate)[0]
        if size > self.max_memory:
            raise OverfullError(
                f"The documents have {num_ngrams:,} n-grams, for which a Bloom filter of fp_rate={self.fp_rate} takes "
                f"{size:,} bytes; max_memory is {self.max_memory:,}. Raise max_memory, allow more errors with "
                "fp_rate, or deduplicate parts of the set by themselves, which finds fewer duplicates."
            )
        bloom_filter = BloomFilter(num_ngrams, self.fp_rate)
        decide = self._decide_old_both if self.mode == "old-both" else self._decide_both
        for table in tables:
            columns = [_flat(table, name) for name in _Ngrams._fields if name in table.column_names]
            decisions = []
            for row in range(table.num_rows):
                document = _Ngrams(*(values[offsets[row] : offsets[row + 1]] for values, offsets in columns))
                decisions.append(decide(bloom_filter, document))
            yield decisions
        notes["ngrams"] = num_ngrams
        notes["filter_bytes"] = size
        notes["hash_functions"] = bloom_filter.num_hashes
        notes["filter_fill"] = bloom_filter.fill
        notes["false_positive_rate"] = bloom_filter.measured_fp_rate(self.seed)

    def rewrite(self, text: str, kept_pieces: tuple[int, ...]) -> str:
        """The pieces of these numbers, each but the first of the text with the newline before it."""
        first, *others = text.split("\n")
        pieces = [first, *(f"\n{piece}" for piece in others)]
        rest = "".join(pieces[number] for number in kept_pieces)
        return rest.rstrip() if self.mode == "both" else rest

    def _decide_old_both(self, bloom_filter: BloomFilter, document: _Ngrams) -> Decision:
        num_known = 0
        start = 0
        piece_numbers = []
        for number, size in enumerate(document.piece_sizes.tolist()):
            if size > 0:
                ngrams = document.ngrams[start : start + size]
                start += size
                num_piece_known = bloom_filter.count(ngrams)
                num_known += num_piece_known
                if num_piece_known / size > self.threshold:
                    continue
                bloom_filter.insert(ngrams)
            piece_numbers.append(number)
        return self._decision(num_known, start, piece_numbers, document)

    def _decide_both(self, bloom_filter: BloomFilter, document: _Ngrams) -> Decision:
        sizes = document.piece_sizes
        ends = np.cumsum(np.maximum(sizes, 0)).tolist()
        pieces = [
            document.ngrams[end - size : end] for size, end in zip(sizes.tolist(), ends, strict=True) if size > 0
        ]
        counts = [bloom_filter.count(ngrams) for ngrams in pieces]
        num_known = sum(counts) + bloom_filter.count(document.bridges)
        num_ngrams = len(document.ngrams) + len(document.bridges)
        if num_ngrams and num_known / num_ngrams >= self.threshold:
            return self._decision(num_known, num_ngrams, [], document)
        is_cut = np.zeros(len(sizes), bool)
        for number, ngrams, count in zip(np.flatnonzero(sizes > 0).tolist(), pieces, counts, strict=True):
            is_cut[number] = count / len(ngrams) >= self.threshold
            if not is_cut[number]:
                bloom_filter.insert(ngrams)
        # BFF forgets all that come after a piece that goes; here only those n-grams that touch it are unknown
        num_cut = np.concatenate(([0], np.cumsum(is_cut)))
        is_whole = num_cut[document.last_pieces + 1] == num_cut[document.first_pieces]
        bloom_filter.insert(document.bridges[is_whole])
        return self._decision(num_known, num_ngrams, np.flatnonzero(~is_cut).tolist(), document)

    def _decision(self, num_known: int, num_ngrams: int, piece_numbers: list[int], document: _Ngrams) -> Decision:
        share = num_known / num_ngrams if num_ngrams else 0.0
        rule, empty_rule = self.rules
        if num_ngrams and rule.broken_bound(share) is not None:
            return Decision(Drop(rule.name, share, self.threshold))
        if len(piece_numbers) == len(document.piece_sizes):
            return Decision()
        if (document.piece_sizes[piece_numbers] == _NO_TOKEN).all():
            return Decision(Drop(empty_rule.name, share))
        return Decision(kept_pieces=tuple(piece_numbers))

    def _ngrams(self, text: str) -> _Ngrams:
        points = code_points(text)
        starts, ends = segment_spans(text)
        # a segment that starts and ends white is white: a mark after a space would be its end
        is_token = ~(_is_white(points[starts]) & _is_white(points[ends - 1]))
        starts, ends = starts[is_token], ends[is_token]
        tokens = word_hashes(points, starts, ends, self.seed)
        newlines = np.flatnonzero(points == _NEWLINE)
        num_pieces = len(newlines) + 1
        piece_of_token = np.searchsorted(newlines, starts, side="right")
        token_counts = np.bincount(piece_of_token, minlength=num_pieces)
        hashes = ngram_hashes(tokens, self.ngram)
        first_pieces = piece_of_token[: len(hashes)]
        last_pieces = piece_of_token[self.ngram - 1 :]
        is_within = first_pieces == last_pieces
        sizes = np.maximum(token_counts - self.ngram + 1, 0)
        no_bridges = _Ngrams(hashes[is_within], np.where(token_counts, sizes, _NO_TOKEN))
        if self.mode == "old-both":
            is_short = (token_counts >= self.min_ngram) & (sizes == 0)
            return (
                self._with_short_pieces(no_bridges, tokens, token_counts, is_short) if is_short.any() else no_bridges
            )
        if not len(hashes) and len(tokens) >= self.min_ngram:  # a short document is one n-gram, of no piece
            document_hash = ngram_hashes(tokens, len(tokens))
            return no_bridges._replace(
                bridges=document_hash, first_pieces=piece_of_token[:1], last_pieces=piece_of_token[-1:]
            )
        return no_bridges._replace(
            bridges=hashes[~is_within], first_pieces=first_pieces[~is_within], last_pieces=last_pieces[~is_within]
        )

    def _with_short_pieces(
        self,
        document: _Ngrams,
        tokens: Hashes,
        token_counts: npt.NDArray[np.integer],
        is_short: npt.NDArray[np.bool_],
    ) -> _Ngrams:
        """With an n-gram of all tokens of each short piece, in its place among the others."""
        sizes = np.maximum(document.piece_sizes, 0)
        places = (np.cumsum(sizes) - sizes)[is_short]
        ends = np.cumsum(token_counts)[is_short].tolist()
        spans = zip(ends, token_counts[is_short].tolist(), strict=True)
        short = [ngram_hashes(tokens[end - count : end], count) for end, count in spans]
        return _Ngrams(
            np.insert(document.ngrams, places, np.concatenate(short)), np.where(is_short, 1, document.piece_sizes)
        )


class _Ngrams(NamedTuple):
    """A document's n-grams within pieces, how many each piece has, and those that run across newlines."""

    ngrams: Hashes
    piece_sizes: npt.NDArray[np.integer]
    bridges: Hashes = np.empty(0, np.uint64)
    first_pieces: npt.NDArray[np.integer] = np.empty(0, np.int32)
    last_pieces: npt.NDArray[np.integer] = np.empty(0, np.int32)


def _is_white(points: npt.NDArray[np.uint32]) -> npt.NDArray[np.bool_]:
    return _IS_WHITE[np.minimum(points, len(_IS_WHITE) - 1)]


def _lists(rows: list[npt.NDArray[np.generic]], dtype: type[np.generic]) -> pa.Array:
    """A column of lists."""
    import pyarrow as pa

    offsets = np.zeros(len(rows) + 1, np.int64)
    np.cumsum([len(row) for row in rows], out=offsets[1:])
    values = np.concatenate([*rows, np.empty(0, dtype)]).astype(dtype, copy=False)
    return pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(values))


def _flat(table: pa.Table, name: str) -> tuple[npt.NDArray[Any], list[int]]:
    """A column of lists as its values and where each row's begin and end."""
    column = table[name].combine_chunks()
    offsets = column.offsets.to_numpy()
    values = column.values.to_numpy()
    return values, offsets.tolist()
