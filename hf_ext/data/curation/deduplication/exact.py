"""Documents that are equal, or of one address: the first stays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from hf_ext.data.curation.deduplication.clusters import Clusters, ClusterStep
from hf_ext.data.curation.steps import Batch, Decision, Notes, Rule

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, kw_only=True)
class ExactDeduplication(ClusterStep):
    """
    Drop documents whose text, stripped and in lower case, is that of an earlier one.

    Texts are compared by 128-bit hashes (BLAKE2b). Memory: 60 bytes a document while it decides.

    | column in | type | column out | type |
    |---|---|---|---|
    | `text_column` | str | `cluster_id` | int64: position of the document that stays |
    | `url_column`, if given | str or null | | |

    Args:
        url_column (`str`, *optional*):
            Compare this column, as it stands, instead of the text; rows without an address all stay.
        id_column (`str`, *optional*):
            Column whose value names the document that a dropped one repeats; its position in the set by default.
        text_column, on_bad_row, max_chars, revision:
            As of every step.
    """

    url_column: str | None = None

    name: ClassVar[str] = "exact"

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The one for which its documents go."""
        return (Rule("same_url" if self.url_column else "same_text"),)

    def features(self, texts: list[str], batch: Batch) -> pa.Table:
        """The 128-bit key of each document, in halves."""
        import pyarrow as pa

        if self.url_column is None:
            values: Sequence[str | None] = [text.strip().lower() for text in texts]
        else:
            values = self.column_of(batch, self.url_column)
        digests = b"".join(_digest(value) for value in values)
        halves = np.frombuffer(digests, np.dtype("<u8")).reshape(-1, 2)
        has_key = [bool(value) for value in values]
        columns = {"high": halves[:, 0], "low": halves[:, 1], "has_key": has_key}
        return pa.table(columns | self.ids_of(batch))

    def decide(self, tables: Sequence[pa.Table], notes: Notes | None = None) -> Iterator[list[Decision]]:
        """Find equal keys by sorting them."""
        parts = []
        for table in tables:
            halves = [table[name].to_numpy() for name in ("high", "low", "has_key")]
            parts.append(halves)
        high, low, has_key = (
            np.concatenate([part[i] for part in parts] or [np.empty(0, np.uint64)]) for i in range(3)
        )
        keyed = np.flatnonzero(has_key)
        order = keyed[np.lexsort((low[keyed], high[keyed]))]  # stable: equal keys in the order of the documents
        is_first = np.ones(len(order), bool)
        is_first[1:] = (high[order[1:]] != high[order[:-1]]) | (low[order[1:]] != low[order[:-1]])
        clusters = Clusters(len(high))
        clusters.smallest[order] = order[np.flatnonzero(is_first)][np.cumsum(is_first) - 1]
        yield from self.decisions(tables, clusters, {} if notes is None else notes)


def _digest(value: str | None) -> bytes:
    return blake2b((value or "").encode("utf-8", "surrogatepass"), digest_size=16).digest()
