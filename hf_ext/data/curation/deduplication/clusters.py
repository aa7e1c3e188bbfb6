"""Clusters of documents that are taken for one, each named after its first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from hf_ext.data.curation.steps import Batch, Decision, Drop, Notes, SetStep
from hf_ext.guards.extras import naming_extras
from hf_ext.guards.markdown import well_formed

if TYPE_CHECKING:
    import pyarrow as pa

Rows = npt.NDArray[np.int64]

CLUSTER_ID = "cluster_id"


class Clusters:
    """
    Sets of documents that grow together, each named by its smallest position.

    Args:
        count (`int`):
            Number of documents, each a cluster by itself at first.
    """

    def __init__(self, count: int) -> None:
        self.smallest: Rows = np.arange(count)  # the name of each document's cluster

    def join(self, first_rows: Rows, second_rows: Rows) -> None:
        """Unite the clusters of each pair of documents; both arrays have the shape `(pairs,)`."""
        names = np.stack((self.smallest[first_rows], self.smallest[second_rows]))
        names = names[:, names[0] != names[1]]
        if not names.size:
            return
        with naming_extras():
            from scipy.sparse import coo_array
            from scipy.sparse.csgraph import connected_components

        # only the clusters that meet are a graph: it has as many nodes as they, not as documents
        meeting, nodes = np.unique(names, return_inverse=True)
        nodes = nodes.reshape(names.shape)
        edges = np.ones(names.shape[1], np.int8)
        graph = coo_array((edges, (nodes[0], nodes[1])), shape=(len(meeting), len(meeting)))
        components = connected_components(graph, directed=False)[1]
        first_nodes = np.unique(components, return_index=True)[1]
        names_after = np.arange(len(self.smallest))
        names_after[meeting] = meeting[first_nodes][components]
        self.smallest = names_after[self.smallest]


def equal_runs(keys: npt.NDArray[np.uint64], rows: Rows) -> tuple[Rows, Rows, Rows]:
    """
    Rows of equal keys.

    Args:
        keys (`np.ndarray` of shape `(rows,)`):
            A key a row.
        rows (`np.ndarray` of shape `(rows,)`):
            Their positions, ascending.

    Returns:
        For every row that is not the first of its key: that first one, the one before it, and itself.
    """
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    repeats = np.flatnonzero(ordered[1:] == ordered[:-1]) + 1
    starts = np.arange(len(keys))
    starts[repeats] = 0
    starts = np.maximum.accumulate(starts)  # where the run of each begins
    return rows[order[starts[repeats]]], rows[order[repeats - 1]], rows[order[repeats]]


@dataclass(frozen=True, kw_only=True)
class ClusterStep(SetStep):
    """Base of the steps that keep the first document of each cluster."""

    id_column: str | None = None

    def column_of(self, batch: Batch, name: str) -> Sequence[Any]:
        """A column that a field names."""
        if name not in batch:
            raise ValueError(
                f"{type(self).__name__} needs a column {name!r}; this dataset has {sorted(batch)}. Rename yours with "
                "dataset.rename_column, or name another."
            )
        return batch[name]

    def ids_of(self, batch: Batch) -> dict[str, list[str]]:
        """What names each document, a column of the features."""
        if self.id_column is None:
            return {}
        return {"id": [well_formed(str(value)) for value in self.column_of(batch, self.id_column)]}

    def decisions(
        self, tables: Sequence[pa.Table], clusters: Clusters, notes: Notes, values: Sequence[float] = ()
    ) -> Iterator[list[Decision]]:
        """
        Keep the first document of each cluster.

        Args:
            tables (`Sequence[pa.Table]`):
                The features; their column `id`, if there is one, names documents.
            clusters ([`Clusters`]):
                Of all documents.
            notes (`dict`):
                Gets the number of clusters of several documents, the size of the largest and its first document.
            values (`Sequence[float]`, *optional*):
                What was measured of each document that goes, in their order.
        """
        sizes = np.bincount(clusters.smallest, minlength=1)
        ids: dict[int, str] = {}
        rule = self.rules[0]
        shares = iter(values)
        start = 0
        for table in tables:
            stop = start + table.num_rows
            for position in (start + np.flatnonzero(sizes[start:stop] > 1)).tolist():
                has_ids = "id" in table.column_names
                ids[position] = table["id"][position - start].as_py() if has_ids else str(position)
            decisions = []
            for position, cluster_id in enumerate(clusters.smallest[start:stop].tolist(), start):
                is_first = position == cluster_id
                drop = None if is_first else Drop(rule.name, next(shares, None), rule.minimum, ids[cluster_id])
                decisions.append(Decision(drop, columns={CLUSTER_ID: cluster_id}))
            yield decisions
            start = stop
        notes["clusters_of_several"] = len(ids)
        notes["largest_cluster"] = int(sizes.max())
        if ids:
            notes["largest_cluster_example"] = ids[int(np.argmax(sizes))]
