"""What is known of each data set: its columns, its pool of exemplars, the prompt of its queries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from datasets import Dataset, IterableDataset

from hf_ext.data.exemplars import ExemplarStore, Target
from hf_ext.data.exemplars.roles import ColumnRoles, is_document, is_list_of_texts, read_roles
from hf_ext.data.exemplars.rows import as_id
from hf_ext.data.exemplars.sources import holds_ids, require_rows, text_columns
from hf_ext.guards.matches import MATCHES, MatchRule
from hf_ext.guards.retrieval_rows import only_matches
from hf_ext.guards.rows import ROW_INDEX


@dataclass(frozen=True)
class RetrievalColumns:
    """
    The columns of a data set.

    Args:
        query, positive (`str`): texts; losses take the first text column for the query, the second for its document.
        negatives (`tuple[str, ...]`): further texts, documents to avoid.
        id, doc_id (`str`, *optional*): columns of ids of the query and of its positive.
        apart (`tuple[str, ...]`): ids, which no model reads.
    """

    query: str
    positive: str
    negatives: tuple[str, ...] = ()
    id: str | None = None
    doc_id: str | None = None
    apart: tuple[str, ...] = ()

    @property
    def texts(self) -> tuple[str, ...]:
        """What the model reads, the query first."""
        return (self.query, self.positive, *self.negatives)


def find_columns(
    dataset: Dataset | IterableDataset,
    *,
    query: str | None = None,
    positive: str | None = None,
    id: str | None = None,
    doc_id: str | None = None,
    dataset_name: str = "train",
) -> RetrievalColumns:
    """
    The columns of a data set, as the loss will read them.

    Args:
        dataset (`Dataset` or `IterableDataset`):
            Its features must be known.
        query, positive, id, doc_id (`str`, *optional*):
            Names where they are given; found as [`read_roles`] finds them otherwise.
        dataset_name (`str`, *optional*):
            Named in messages.

    Raises:
        ValueError: if a column is missing, there are no two texts, or names and order of the columns disagree.
        TypeError: if a column is not text, or ids are neither text nor integers.
    """
    features = dataset.features
    if features is None:
        raise ValueError(f"The {dataset_name} dataset is a stream that does not tell its columns: use cast(Features).")
    names = [name for name in features if name != ROW_INDEX]
    for name in filter(None, (query, positive, id, doc_id)):
        if name not in names:
            raise ValueError(f"The {dataset_name} dataset has no column {name!r}; it has {names}.")
    texts = [name for name in text_columns(dataset) if name != ROW_INDEX]
    for name in filter(None, (query, positive)):
        if name not in texts:
            raise TypeError(
                f"Column {name!r} of the {dataset_name} dataset is not text but {features[name]}. "
                "Exemplars are texts: name another column."
            )
    roles = read_roles(names, texts, query=query, document=positive, id=id, doc_id=doc_id)
    query, positive = _require_texts(features, names, texts, roles, dataset_name)
    _require_order(names, roles, dataset_name)
    id = _column_of_ids(features, roles.id, id, dataset_name)
    doc_id = _column_of_ids(features, roles.doc_id, doc_id, dataset_name)
    return RetrievalColumns(query, positive, roles.negatives, id, doc_id, roles.ids)


def _require_texts(
    features: Mapping[str, Any], names: Sequence[str], texts: Sequence[str], roles: ColumnRoles, dataset_name: str
) -> tuple[str, str]:
    """The columns of query and document; what the trainer would read as a text and is none is refused."""
    other = [name for name in names if name not in (*texts, *roles.ids, *roles.labels)]
    other += [name for name in roles.labels if name in texts]
    if roles.query is None or roles.document is None:
        kinds = {name: str(feature) for name, feature in features.items() if name != ROW_INDEX}
        raise ValueError(
            f"The {dataset_name} dataset needs two text columns, query and document; it has {kinds}. Of lists and "
            "mappings make columns of strings with dataset.map: 'query', 'positive', negative_1, negative_2."
        )
    if not other:
        return roles.query, roles.document
    name = other[0]
    remedy = f"leave it out with dataset.select_columns({[column for column in roles.order if column != name]})."
    if name in roles.labels:
        raise TypeError(f"Column {name!r} of the {dataset_name} dataset holds texts, and labels are numbers: {remedy}")
    if is_list_of_texts(features[name]):
        remedy = (
            f"write each text into a column of its own, as negative_1 and negative_2, with dataset.map, or {remedy}"
        )
    elif is_document(name) and not is_document(roles.document):  # `passages` of MS MARCO, beside a `query_type`
        remedy = f"write the text of a document into a column 'positive' with dataset.map, or {remedy}"
    elif name in MATCHES:
        remedy = f"keep the pairs that match with dataset.filter, then {remedy} Nothing reads a label of this name."
    raise TypeError(
        f"Column {name!r} of the {dataset_name} dataset is not text but {features[name]}. The trainer reads every "
        f"column but ids and labels as text: {remedy}"
    )


def _require_order(names: Sequence[str], roles: ColumnRoles, dataset_name: str) -> None:
    """Refuse columns whose names say something else than their order, by which losses go."""
    texts = [name for name in names if name not in (*roles.ids, *roles.labels)]
    if texts[:2] == [roles.query, roles.document] and not roles.other:
        return
    parts = f"the query is {roles.query!r}, its document {roles.document!r}"
    if roles.negatives:
        parts += f", documents to avoid are {list(roles.negatives)}"
    if roles.other:
        parts += f", and {list(roles.other)} is none of these"
    raise ValueError(
        f"Reorder the columns of the {dataset_name} dataset: dataset.select_columns({roles.order}). They are {texts}; "
        "losses take the first for the query, the second for its document and others for documents to avoid, and by "
        f"name {parts}. If names mislead, set query_column and positive_column; a further document to avoid is a "
        "column whose name begins with 'negative'."
    )


def _column_of_ids(
    features: Mapping[str, Any], name: str | None, user_name: str | None, dataset_name: str
) -> str | None:
    """The column, if it holds ids; other numbers are refused, a list or a dict only where the caller named it."""
    if name is None:
        return None
    kind = getattr(features[name], "dtype", None)
    if isinstance(kind, str) and ("int" in kind or "string" in kind):
        return name
    if name == user_name or holds_ids(features[name]):
        raise TypeError(
            f"Column {name!r} of the {dataset_name} dataset holds {features[name]}, and an id is a string or an "
            "integer. Convert it with dataset.cast_column."
        )
    return None


@dataclass(frozen=True)
class Pool:
    """
    One data set's exemplars and how its rows are read.

    Args:
        store ([`ExemplarStore`]): the exemplars.
        columns ([`RetrievalColumns`]): of the data set.
        prompt (`str`): before a query.
        own_rows (`Mapping[int, int]`, *optional*): row of the store by `row_index`, where it is made of the data set's
            own rows.
    """

    store: ExemplarStore
    columns: RetrievalColumns
    prompt: str = ""
    own_rows: Mapping[int, int] | None = None

    def targets(self, rows: Sequence[Mapping[str, Any]]) -> list[Target]:
        """What is known of each row of a batch; a pool's default ids, its row numbers, are no ids of the rows."""
        columns = self.columns
        own_rows = self.own_rows or {}
        name = None if self.store.numbered else columns.id
        return [
            Target(
                id=_id_of(row, name),
                positive=row[columns.positive],
                doc_id=_id_of(row, columns.doc_id),
                negatives=tuple(row[column] for column in columns.negatives if column in row),
                row=own_rows.get(row.get(ROW_INDEX, -1)),
            )
            for row in rows
        ]


def _id_of(row: Mapping[str, Any], column: str | None) -> str | None:
    value = None if column is None else row.get(column)
    return None if value is None else as_id(value, f"column {column!r}")


def own_store(
    dataset: Dataset | IterableDataset, columns: RetrievalColumns, matches: MatchRule | None = None
) -> tuple[ExemplarStore, dict[int, int]]:
    """
    The pool made of a data set's own rows, and the row of the store by `row_index`.

    Args:
        dataset (`Dataset`): with `row_index`.
        columns ([`RetrievalColumns`]): of it.
        matches ([`MatchRule`], *optional*): of the label, where rows that do not match are trained on and not shown.

    Raises:
        TypeError: if it is a stream, which has no rows to index.
        RowError: if a label does not tell whether its pair matches.
        ValueError: if no row matches.
    """
    require_rows(dataset, "A pool of the training rows themselves (exemplars=None)")
    rows = dataset.with_format(None)
    if matches is not None:
        rows = only_matches(rows, matches)
    names = {"query": columns.query, "document": columns.positive, "id": columns.id, "doc_id": columns.doc_id}
    names["negative"] = columns.negatives[0] if columns.negatives else None
    store = ExemplarStore({column: rows[name][:] for column, name in names.items() if name is not None})
    return store, {index: row for row, index in enumerate(rows[ROW_INDEX][:])}
