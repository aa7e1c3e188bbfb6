"""Documents that are nearly equal, by MinHash signatures cut into bands: the first of each cluster stays."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import numpy.typing as npt

from hf_ext.data.curation.deduplication.clusters import Clusters, ClusterStep, Rows, equal_runs
from hf_ext.data.curation.deduplication.folded_text import folded_ngrams
from hf_ext.data.curation.hashing import mixed
from hf_ext.data.curation.steps import Batch, Decision, Notes, Rule
from hf_ext.data.curation.unicode_tables import unicode_versions
from hf_ext.guards.compiling import compiled_module

if TYPE_CHECKING:
    import pyarrow as pa

Signatures = npt.NDArray[np.uint32]  # (documents, bands * rows)

MINHASH_PRESETS = {"fineweb": (14, 8), "dclm": (93, 15), "refinedweb": (450, 20)}
"""Bands and hashes a band of well-known settings."""

_KERNEL = "hf_ext.data.curation.deduplication.minhash_kernel"
_MEMORY = 1 << 28  # bytes of band keys, or of signatures, held at a time
_VALUES = 1 << 16  # of hash functions, worked out at a time where numba is missing
_GIANT_CLUSTER = 1_000  # a cluster is worth a warning from this size,
_GIANT_SHARE = 0.01  # if it is this share of the set, too


@dataclass(frozen=True, kw_only=True)
class MinHashDeduplication(ClusterStep):
    r"""
    Drop documents whose word 5-grams are nearly those of an earlier one.

    Texts are compared in lower case, without accents, compatibility forms (full-width letters, ligatures), punctuation
    and white space: what copies of one page differ in. Words are runs of letters, marks and digits; a character of a
    script without spaces, such as Chinese, is one by itself. A document of fewer than `ngram` words is one n-gram by
    itself; one without a word stays.

    Two documents of Jaccard similarity $s$ become candidates with probability $1-(1-s^r)^b$ for $b$ bands of $r$
    hashes. Candidates are joined into clusters, also by way of others, and of each cluster the first document stays.

    Memory: 256 MB, and 70 bytes a document while it decides: 70 MB for a million. Disk: 4 bytes a hash and document,
    so for a million 0.45 GB (`fineweb`), 5.6 GB (`dclm`) or 36 GB (`refinedweb`).

    | column in | type | column out | type |
    |---|---|---|---|
    | `text_column` | str | `cluster_id` | int64: position of the document that stays |

    Args:
        bands, rows (`int`, *optional*, default to 14 and 8):
            Number of bands and of hashes in each, FineWeb's by default: half of the pairs at similarity 0.68 are
            candidates. [`MinHashDeduplication.preset`] knows `"dclm"` (93, 15) and `"refinedweb"` (450, 20), too.
        ngram (`int`, *optional*, defaults to 5):
            Words of an n-gram.
        min_similarity (`float`, *optional*):
            Join candidates only if this share of all their hashes agrees, an estimate of $s$; none is compared by
            default, as in FineWeb.
        seed (`int`, *optional*, defaults to 1):
            Of the hashes.
        id_column (`str`, *optional*):
            Column whose value names the document that a dropped one repeats; its position in the set by default.
        text_column, on_bad_row, max_chars, revision:
            As of every step.

    Reference: Broder 1997, *On the resemblance and containment of documents*; Penedo et al. 2024, *The FineWeb
    Datasets* (arXiv 2406.17557), section 3.4.
    """

    bands: int = 14
    rows: int = 8
    ngram: int = 5
    min_similarity: float | None = None
    seed: int = 1

    name: ClassVar[str] = "minhash"

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("bands", "rows", "ngram"):
            if not 1 <= getattr(self, field) <= 1_000:
                raise ValueError(f"{field} must lie in [1, 1000], got {getattr(self, field)!r}.")
        if self.min_similarity is not None and not 0 < self.min_similarity <= 1:
            raise ValueError(f"min_similarity must lie in (0, 1], got {self.min_similarity!r}.")
        if not 0 <= self.seed < 1 << 64:
            raise ValueError(f"seed must lie in [0, 2^64), got {self.seed!r}.")

    @classmethod
    def preset(cls, setting: str, **fields: object) -> MinHashDeduplication:
        """The step with the bands and rows of `"fineweb"`, `"dclm"` or `"refinedweb"`; other fields as given."""
        if setting not in MINHASH_PRESETS:
            raise ValueError(f"There is no MinHash preset {setting!r}; there are {sorted(MINHASH_PRESETS)}.")
        bands, rows = MINHASH_PRESETS[setting]
        return cls(bands=bands, rows=rows, **fields)  # type: ignore[arg-type]

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The one for which its documents go."""
        return (Rule("near_duplicate"),)

    @property
    def versions(self) -> dict[str, str]:
        """Of the tables that say what a word is."""
        return unicode_versions()

    def features(self, texts: list[str], batch: Batch) -> pa.Table:
        """The signature of each document."""
        import pyarrow as pa

        shingles = [folded_ngrams(text, self.ngram, self.seed) for text in texts]
        signatures = self._signatures(shingles)
        flat = pa.array(signatures.reshape(-1))
        column = pa.FixedSizeListArray.from_arrays(flat, self.bands * self.rows)
        return pa.table({"signature": column, "has_words": list(map(bool, map(len, shingles))), **self.ids_of(batch)})

    def decide(self, tables: Sequence[pa.Table], notes: Notes | None = None) -> Iterator[list[Decision]]:
        """Join what agrees in a whole band, some bands at a time, as the memory allows."""
        notes = {} if notes is None else notes
        words = [table["has_words"].to_numpy() for table in tables]
        eligible = np.flatnonzero(np.concatenate(words)) if words else np.empty(0, np.int64)
        clusters = Clusters(sum(map(len, words)))
        bands_at_once = max(1, _MEMORY // (8 * max(1, len(clusters.smallest))))
        for first_band in range(0, self.bands, bands_at_once):
            bands = slice(first_band, min(first_band + bands_at_once, self.bands))
            for keys in self._band_keys(tables, bands):
                self._join_candidates(clusters, tables, *equal_runs(keys[eligible], eligible))
        repeats = np.flatnonzero(clusters.smallest != np.arange(len(clusters.smallest)))
        shares = self._agreement(tables, clusters.smallest[repeats], repeats)
        yield from self.decisions(tables, clusters, notes, shares.tolist())
        size = int(notes["largest_cluster"])
        if size >= max(_GIANT_CLUSTER, _GIANT_SHARE * len(clusters.smallest)):
            warnings.warn(
                f"MinHash takes {size:,} of {len(clusters.smallest):,} documents for one, of which only the first, "
                f"{notes['largest_cluster_example']}, stays. Where they are not alike, boilerplate that they share "
                "has joined them: remove it before, or set min_similarity=.",
                stacklevel=2,
            )

    def _signatures(self, shingles: list[npt.NDArray[np.uint32]]) -> Signatures:
        """The least value of each hash function over the n-grams of each document."""
        ngrams = np.concatenate([*shingles, np.empty(0, np.uint32)])
        ends = np.cumsum([len(hashes) for hashes in shingles], dtype=np.int64)
        factors, addends = _hash_functions(self.bands * self.rows, self.seed)
        kernel = compiled_module(_KERNEL)
        if kernel is not None:
            return kernel.signatures(ngrams, ends, factors, addends)
        signatures = np.full((len(shingles), len(factors)), 0xFFFFFFFF, np.uint32)
        at_once = max(1, _VALUES // len(factors))
        for signature, hashes, end in zip(signatures, shingles, ends.tolist(), strict=True):
            for start in range(end - len(hashes), end, at_once):
                values = ngrams[start : min(start + at_once, end), None] * factors + addends  # modulo 2^32
                np.minimum(signature, values.min(axis=0), out=signature)
        return signatures

    def _band_keys(self, tables: Sequence[pa.Table], bands: slice) -> npt.NDArray[np.uint64]:
        """A 64-bit key of each of some bands of each document; `(bands, documents)`."""
        factors = mixed(np.arange(self.bands * self.rows, dtype=np.uint64) + np.uint64(1)) | np.uint64(1)
        columns = slice(bands.start * self.rows, bands.stop * self.rows)
        num_bands = bands.stop - bands.start
        parts = [np.empty((num_bands, 0), np.uint64)]
        for table in tables:
            products = self._signatures_of(table)[:, columns] * factors[columns]
            parts.append(mixed(products.reshape(table.num_rows, num_bands, self.rows).sum(axis=2)).T)
        return np.concatenate(parts, axis=1)

    def _join_candidates(
        self, clusters: Clusters, tables: Sequence[pa.Table], firsts: Rows, earlier: Rows, rows: Rows
    ) -> None:
        """Join the documents of one band's equal keys, the like ones alone if that is asked for."""
        if self.min_similarity is None:
            clusters.join(firsts, rows)
            return
        # against the first and the one before: linear in the number of equal keys, where all pairs are quadratic
        for partners in (firsts, earlier):
            is_apart = clusters.smallest[partners] != clusters.smallest[rows]
            partner_rows, candidate_rows = partners[is_apart], rows[is_apart]
            is_like = self._agreement(tables, partner_rows, candidate_rows) >= self.min_similarity
            clusters.join(partner_rows[is_like], candidate_rows[is_like])

    def _agreement(
        self, tables: Sequence[pa.Table], partner_rows: Rows, candidate_rows: Rows
    ) -> npt.NDArray[np.float64]:
        """The share of equal hashes of pairs of documents, an estimate of their similarity; `(pairs,)`."""
        shares = np.zeros(len(partner_rows))
        partners, partner_numbers = np.unique(partner_rows, return_inverse=True)
        block = max(1, _MEMORY // (4 * self.bands * self.rows))
        for start in range(0, len(partners), block):
            signatures = self._rows_of(tables, partners[start : start + block])
            pairs = np.flatnonzero((partner_numbers >= start) & (partner_numbers < start + block))
            pairs = pairs[np.argsort(candidate_rows[pairs], kind="stable")]
            offset = 0
            for table in tables:
                inside = pairs[slice(*np.searchsorted(candidate_rows[pairs], (offset, offset + table.num_rows)))]
                if len(inside):
                    others = self._signatures_of(table)[candidate_rows[inside] - offset]
                    shares[inside] = (signatures[partner_numbers[inside] - start] == others).mean(axis=1)
                offset += table.num_rows
        return shares

    def _rows_of(self, tables: Sequence[pa.Table], rows: Rows) -> Signatures:
        """The signatures of some documents, whose positions ascend."""
        parts = [np.empty((0, self.bands * self.rows), np.uint32)]
        offset = 0
        for table in tables:
            inside = rows[slice(*np.searchsorted(rows, (offset, offset + table.num_rows)))]
            if len(inside):
                parts.append(self._signatures_of(table)[inside - offset])
            offset += table.num_rows
        return np.concatenate(parts)

    def _signatures_of(self, table: pa.Table) -> Signatures:
        column = table["signature"].combine_chunks()
        return column.flatten().to_numpy().reshape(table.num_rows, self.bands * self.rows)


@lru_cache(maxsize=8)
def _hash_functions(count: int, seed: int) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint32]]:
    """
    Factors and addends of functions $a x + b$ modulo $2^{32}$.

    As the factors are odd, no two n-grams have the same value: a hash that agrees is an n-gram that agrees.
    """
    # the numbers of splitmix64
    draws = mixed(np.uint64(seed) + np.arange(1, 2 * count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    factors, addends = (draws >> np.uint64(32)).astype(np.uint32).reshape(2, count)
    return factors | np.uint32(1), addends
