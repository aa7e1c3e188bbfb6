"""Curation on many machines: the same steps under Ray Data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple, overload

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from hf_ext.data.curation.steps import (
    DROP_REASON,
    DROP_THRESHOLD,
    DROP_VALUE,
    Decision,
    RowStep,
    SetStep,
    Step,
)
from hf_ext.guards.extras import naming_extras
from hf_ext.guards.row_errors import RowError

if TYPE_CHECKING:
    import ray.data

DROP_TYPES = {DROP_REASON: pa.string(), DROP_VALUE: pa.float64(), DROP_THRESHOLD: pa.float64()}
KEY = "curation_key"  # the key beside a step's features, whose columns may have any name
BATCH_ROWS = 1000


class RayCuration(NamedTuple):
    """
    What a curation under Ray Data gives, both sorted by the key.

    Args:
        rows (`ray.data.Dataset`):
            The documents that stay.
        drops (`ray.data.Dataset`):
            The others: `id` (the key), `step`, `rule`, `value`, `threshold`; no text.
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
    taken = [name for name in DROP_TYPES if name in names]
    if taken:
        raise ValueError(f"The dataset has a column {taken[0]!r}, which the reasons need. Rename it first.")
    rows = rows.map_batches(_with_reasons, batch_format="pyarrow", batch_size=BATCH_ROWS)
    for phase in _phases(steps):
        if isinstance(phase, SetStep):
            rows = _decided(rows.materialize(), phase, key)  # read twice: for the features, then for the decisions
        else:
            rows = _mapped(rows, _judged, steps=phase, key=key)
    rows = rows.materialize()
    return RayCuration(_mapped(rows, _staying).sort(key), _mapped(rows, _drops, key=key).sort("id"))


def _phases(steps: Sequence[Step]) -> Iterator[SetStep | list[RowStep]]:
    run: list[RowStep] = []
    for step in steps:
        if isinstance(step, RowStep):
            run.append(step)
            continue
        if run:
            yield run
        yield step
        run = []
    if run:
        yield run


def _mapped(rows: ray.data.Dataset, function: Any, **arguments: Any) -> ray.data.Dataset:
    return rows.map_batches(function, batch_format="pyarrow", batch_size=BATCH_ROWS, fn_kwargs=arguments)


# --- on the workers ----------------------------------------------------------------------------------------------


def _with_reasons(table: pa.Table) -> pa.Table:
    """With empty reasons, of a type that every batch shares."""
    for name, kind in DROP_TYPES.items():
        table = table.append_column(name, pa.nulls(len(table), kind))
    return table


def _judged(table: pa.Table, steps: list[RowStep], key: str) -> pa.Table:
    """After steps that look at each document by itself."""
    batch = table.to_pydict()
    for step in steps:
        try:
            batch |= step(batch)
        except RowError as error:
            place = f"the row whose {key} is {batch[key][error.row_index]!r}"
            raise RowError(f"{place}, in its batch {error}", error.row_index, error.column) from None
    return _emptied(_table(batch, table.schema), key)


def _table(batch: dict[str, list[Any]], schema: pa.Schema) -> pa.Table:
    """Columns keep their types: a batch of empty values tells none."""
    types = dict(zip(schema.names, schema.types, strict=True))
    return pa.table({name: pa.array(values, types.get(name)) for name, values in batch.items()})


def _emptied(table: pa.Table, key: str) -> pa.Table:
    """Nothing but key and reason of the rows that go: their text need not travel on."""
    stays = pc.is_null(table[DROP_REASON])
    for place, name in enumerate(table.column_names):
        if name != key and name not in DROP_TYPES:
            nothing = pa.scalar(None, table.schema.field(name).type)
            table = table.set_column(place, name, pc.if_else(stays, table[name], nothing))
    return table


def _features(table: pa.Table, step: SetStep, key: str) -> pa.Table:
    """What a step needs of the documents that stay."""
    table = table.filter(pc.is_null(table[DROP_REASON]))
    batch = table.to_pydict()
    return step.features(batch[step.text_column], batch).append_column(KEY, table[key])


def _changed(table: pa.Table, step: SetStep, key: str, changes: list[ray.ObjectRef]) -> pa.Table:
    """After the decisions of a step, which are listed for the documents that they change."""
    import ray

    decisions: pa.Table = ray.get(changes[0])
    batch = table.to_pydict()
    fixed = (KEY, *DROP_TYPES, "kept_pieces")
    added = [name for name in decisions.column_names if name not in fixed]
    batch |= {name: batch.get(name, [None] * len(table)) for name in added}
    places = pc.index_in(table[key], value_set=decisions[KEY].combine_chunks()).to_pylist()
    for row, place in enumerate(places):
        if place is None:
            continue
        decision = {name: decisions[name][place].as_py() for name in decisions.column_names}
        for name in (*DROP_TYPES, *added):
            batch[name][row] = decision[name]
        if decision["kept_pieces"] is not None:
            text = batch[step.text_column][row]
            batch[step.text_column][row] = step.rewrite(text, tuple(decision["kept_pieces"]))
    types = [*table.schema, *(decisions.schema.field(name) for name in added if name not in table.column_names)]
    return _emptied(_table(batch, pa.schema(types)), key)


def _staying(table: pa.Table) -> pa.Table:
    return table.filter(pc.is_null(table[DROP_REASON])).drop_columns(list(DROP_TYPES))


def _drops(table: pa.Table, key: str) -> pa.Table:
    table = table.filter(pc.is_valid(table[DROP_REASON]))
    steps_and_rules = [reason.split(":", 1) for reason in table[DROP_REASON].to_pylist()]
    columns = {
        "id": table[key],
        "step": pa.array([step for step, _ in steps_and_rules], pa.string()),
        "rule": pa.array([rule for _, rule in steps_and_rules], pa.string()),
        "value": table[DROP_VALUE],
        "threshold": table[DROP_THRESHOLD],
    }
    return pa.table(columns)


# --- the one ordered pass ----------------------------------------------------------------------------------------


class _TableFiles(Sequence[pa.Table]):
    """Tables in files of a folder, each read when it is asked for."""

    def __init__(self, folder: Path) -> None:
        self.files: list[Path] = []
        self.folder = folder

    def append(self, table: pa.Table) -> None:
        self.files.append(self.folder / f"{len(self.files):08d}.parquet")
        pq.write_table(table, self.files[-1])

    def __len__(self) -> int:
        return len(self.files)

    @overload
    def __getitem__(self, place: int) -> pa.Table: ...
    @overload
    def __getitem__(self, place: slice) -> list[pa.Table]: ...
    def __getitem__(self, place: int | slice) -> pa.Table | list[pa.Table]:
        if isinstance(place, slice):
            return [pq.read_table(file) for file in self.files[place]]
        return pq.read_table(self.files[place])


def _decided(rows: ray.data.Dataset, step: SetStep, key: str) -> ray.data.Dataset:
    """Rows after a step that needs every document."""
    import ray

    features = _mapped(rows, _features, step=step, key=key).sort(KEY)
    with TemporaryDirectory() as folder:
        keys = _TableFiles(Path(folder, "keys"))
        tables = _TableFiles(Path(folder, "features"))
        for files in (keys, tables):
            files.folder.mkdir()
        last = None
        for table in features.iter_batches(batch_format="pyarrow", batch_size=BATCH_ROWS):
            last = _unique(table[KEY], last, key)
            keys.append(table.select([KEY]))
            tables.append(table.drop_columns([KEY]))
        changes = [
            _change_table(key_table[KEY], decisions, step.name)
            for key_table, decisions in zip(keys, step.decide(tables), strict=True)
        ]
    if not changes:  # nothing came to it
        return rows
    whole = pa.concat_tables(changes, promote_options="default")
    return _mapped(rows, _changed, step=step, key=key, changes=[ray.put(whole)])


def _unique(keys: pa.ChunkedArray, last: Any, key: str) -> Any:
    """The last of sorted keys, where each stands once."""
    values = [last, *keys.to_pylist()]
    for first, second in pairwise(values):
        if first == second:
            raise ValueError(f"key={key!r}: two rows have the value {second!r}. The key must tell every row apart.")
    return values[-1]


def _change_table(keys: pa.ChunkedArray, decisions: list[Decision], step_name: str) -> pa.Table:
    """The decisions that change something, under their keys."""
    places = [i for i, d in enumerate(decisions) if d.drop or d.kept_pieces is not None or d.columns]
    changes = [decisions[place] for place in places]
    drops = [change.drop for change in changes]
    columns: dict[str, Any] = {
        KEY: keys.take(pa.array(places, pa.int64())),
        DROP_REASON: pa.array([drop and f"{step_name}:{drop.rule}" for drop in drops], pa.string()),
        DROP_VALUE: pa.array([drop and drop.value for drop in drops], pa.float64()),
        DROP_THRESHOLD: pa.array([drop and drop.threshold for drop in drops], pa.float64()),
        "kept_pieces": pa.array([change.kept_pieces for change in changes], pa.list_(pa.int64())),
    }
    for name in {name: None for change in changes for name in change.columns}:
        columns[name] = pa.array([change.columns.get(name) for change in changes])
    return pa.table(columns)
