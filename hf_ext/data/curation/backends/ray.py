"""Curation on many machines: the same steps under Ray Data."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from hf_ext.data.curation.chunks import assembled
from hf_ext.data.curation.drop_ledger import SCHEMA
from hf_ext.data.curation.phases import FeatureTables, RowPhase, SetPhase, phases_of
from hf_ext.data.curation.running import ChunkResult, Reading, decided_chunk, run_chunk, step_names
from hf_ext.data.curation.steps import Decision, Drop, Step
from hf_ext.guards.extras import naming_extras
from hf_ext.guards.row_errors import RowError

if TYPE_CHECKING:
    import ray.data

DROP = "curation_drop"  # what the drop ledger has of a row that goes, beside its id and place
KEY = "curation_key"  # the key beside a step's features, whose columns may have any name
DROP_TYPE = pa.struct([field for field in SCHEMA if field.name not in ("id", "shard", "row")])
PIECES = "kept_pieces"
BATCH_ROWS = 1000


class RayCuration(NamedTuple):
    """
    What a curation under Ray Data gives, both sorted by the key.

    Args:
        rows (`ray.data.Dataset`):
            The documents that stay.
        drops (`ray.data.Dataset`):
            The others: `id` (the key) and the columns of [`DropLedger`] but `shard` and `row`; no text.
    """

    rows: ray.data.Dataset
    drops: ray.data.Dataset


def curate_on_ray(rows: ray.data.Dataset, steps: Sequence[Step], *, key: str) -> RayCuration:
    """
    Curate on all machines of a Ray cluster, with the steps that [`~hf_ext.data.curation.curate`] takes.

    Ray Data promises no order, so what comes back is sorted by a column. That is the order, too, in which steps that
    need every document decide: their features are made on all machines, the decision is one pass over them here. A
    worker that dies costs the time of its batches, which others do again.

    Args:
        rows (`ray.data.Dataset`):
            Documents, as from `ray.data.read_parquet`.
        steps (`Sequence[Step]`):
            In their order.
        key (`str`):
            Column with a different value in every row. Where it grows in the order of the documents, rows and drops
            are those of `curate`.

    Raises:
        ValueError: if the dataset has no column `key`, has a column of a name that is needed, or two rows have the
            same key where a step needs every document.
        RowError: if a row is no document and its step's `on_bad_row` is `"raise"`; Ray puts its own error around it.

    Requirements: `pip install "hf-ext[ray]"`. The documents between two steps that need all of them are held in Ray's
    object store, which spills to the disks of the machines.
    """
    with naming_extras():
        import ray.data  # noqa: F401  # the sentence with the line that installs it, before any work
    names = rows.columns() or []
    if key not in names:
        raise ValueError(f"key={key!r}: the dataset has no such column (it has {names}).")
    if DROP in names:
        raise ValueError(f"The dataset has a column {DROP!r}, which the reasons need. Rename it first.")
    rows = rows.map_batches(_without_drops, batch_format="pyarrow", batch_size=BATCH_ROWS)
    reading = Reading(id_column=key, text_column=DROP)  # no text: nothing is counted here
    for phase in phases_of(steps, step_names(steps), reading):
        if isinstance(phase, SetPhase):
            rows = _decided(rows.materialize(), phase, key)  # read twice: for the features, then for the decisions
        elif phase.steps:
            rows = _mapped(rows, _judged, phase=phase, key=key)
    rows = rows.materialize()
    return RayCuration(_mapped(rows, _staying).sort(key), _mapped(rows, _drops, key=key).sort("id"))


def _mapped(rows: ray.data.Dataset, function: Any, **arguments: Any) -> ray.data.Dataset:
    return rows.map_batches(function, batch_format="pyarrow", batch_size=BATCH_ROWS, fn_kwargs=arguments)


# --- on the workers ----------------------------------------------------------------------------------------------


def _without_drops(table: pa.Table) -> pa.Table:
    return table.append_column(DROP, pa.nulls(len(table), DROP_TYPE))


def _staying(table: pa.Table) -> pa.Table:
    return table.filter(pc.is_null(table[DROP])).drop_columns([DROP])


def _gone(table: pa.Table, key: str) -> pa.Table:
    """The rows that have gone, of which nothing but the reason travels on."""
    return table.filter(pc.is_valid(table[DROP])).select([key, DROP])


def _judged(table: pa.Table, phase: RowPhase, key: str) -> pa.Table:
    """After steps that look at each document by itself."""
    rows = _staying(table)
    try:
        result = run_chunk(rows, phase.steps, names=phase.names, reading=phase.reading)
    except RowError as error:
        raise _named(error, rows, key) from None
    return _after(rows, result, _gone(table, key), key)


def _named(error: RowError, rows: pa.Table, key: str) -> RowError:
    """The error with the key: the number of a row in its batch says nothing."""
    message = f"the row whose {key} is {rows[key][error.row_index].as_py()!r}: {error}"
    return RowError(message, error.row_index, error.column)


def _after(rows: pa.Table, result: ChunkResult, earlier_drops: pa.Table, key: str) -> pa.Table:
    """Rows as a phase left them, and behind them those that went in it or before."""
    staying_rows = _without_drops(assembled(rows, result))
    names = [field.name for field in DROP_TYPE]
    reasons = [{name: getattr(record, name) for name in names} for record in result.drops]
    keys = rows[key].take(pa.array([record.row for record in result.drops], pa.int64()))
    dropped_rows = pa.table({key: keys, DROP: pa.array(reasons, DROP_TYPE)})
    return pa.concat_tables([staying_rows, dropped_rows, earlier_drops], promote_options="default")


def _features(table: pa.Table, phase: SetPhase, key: str) -> pa.Table:
    """What a step needs of the documents that stay; of those that are none, nothing."""
    rows = _staying(table)
    batch = rows.to_pydict()
    try:
        drops = phase.step.unreadable(batch, range(len(rows)))
    except RowError as error:
        raise _named(error, rows, key) from None
    rows = rows.take(pa.array([place for place, drop in enumerate(drops) if drop is None], pa.int64()))
    batch = rows.to_pydict()
    return phase.step.features(batch[phase.step.read_column], batch).append_column(KEY, rows[key])


def _changed(table: pa.Table, phase: SetPhase, key: str, changes: list[ray.ObjectRef]) -> pa.Table:
    """After the decisions of a step, given for the documents that they change."""
    import ray

    rows = _staying(table)
    decisions = [Decision()] * len(rows)
    for change_table in ray.get(changes):
        added = [name for name in change_table.column_names if name not in (KEY, DROP, PIECES)]
        places = pc.index_in(rows[key], value_set=change_table[KEY].combine_chunks())
        for row, change in enumerate(change_table.take(places).to_pylist()):
            drop = change[DROP] and Drop(**{name: change[DROP][name] for name in Drop._fields})
            pieces = None if change[PIECES] is None else tuple(change[PIECES])
            decisions[row] = Decision(drop, pieces, {name: change[name] for name in added})
    unreadable = phase.step.unreadable(rows.to_pydict(), range(len(rows)))
    decisions = [decision for decision, drop in zip(decisions, unreadable, strict=True) if drop is None]
    result = decided_chunk(rows, phase.step, decisions, name=phase.name, reading=phase.reading)
    return _after(rows, result, _gone(table, key), key)


def _drops(table: pa.Table, key: str) -> pa.Table:
    earlier_drops = _gone(table, key)
    columns = {field.name: pc.struct_field(earlier_drops[DROP], field.name) for field in DROP_TYPE}
    return pa.table({"id": earlier_drops[key], **columns})


# --- the one ordered pass ----------------------------------------------------------------------------------------


def _decided(rows: ray.data.Dataset, phase: SetPhase, key: str) -> ray.data.Dataset:
    """Rows after a step that needs every document."""
    import ray

    features = _mapped(rows, _features, phase=phase, key=key).sort(KEY)
    with TemporaryDirectory() as folder:
        paths: list[Path] = []
        keys: list[pa.ChunkedArray] = []
        for table in features.iter_batches(batch_format="pyarrow", batch_size=BATCH_ROWS):
            keys.append(table[KEY])
            paths.append(Path(folder, f"{len(paths):08d}.parquet"))
            pq.write_table(table.drop_columns([KEY]), paths[-1])
        _require_unique(keys, key)
        decisions = phase.step.decide(FeatureTables(paths))
        changes = [_change_table(*pair) for pair in zip(keys, decisions, strict=True)]
    change_tables = [pa.concat_tables(changes, promote_options="default")] if changes else []
    return _mapped(rows, _changed, phase=phase, key=key, changes=[ray.put(table) for table in change_tables])


def _require_unique(keys: list[pa.ChunkedArray], key: str) -> None:
    """Of sorted keys: each stands once."""
    values = (value for array in keys for value in array.to_pylist())
    for first, second in pairwise(values):
        if first == second:
            raise ValueError(f"key={key!r}: two rows have the value {second!r}. The key must tell every row apart.")


def _change_table(keys: pa.ChunkedArray, decisions: list[Decision]) -> pa.Table:
    """The decisions that change something, under their keys."""
    places = [i for i, d in enumerate(decisions) if d.drop or d.kept_pieces is not None or d.columns]
    changes = [decisions[place] for place in places]
    columns: dict[str, Any] = {
        KEY: keys.take(pa.array(places, pa.int64())),
        DROP: pa.array([change.drop and change.drop._asdict() for change in changes], DROP_TYPE),
        PIECES: pa.array([change.kept_pieces for change in changes], pa.list_(pa.int64())),
    }
    for name in {name: None for change in changes for name in change.columns}:
        columns[name] = pa.array([change.columns.get(name) for change in changes])
    return pa.table(columns)
