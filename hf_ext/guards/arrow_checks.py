"""Which rows of an Arrow table need a closer look: column-wise tests that never overlook a bad row.

They only save time. What is wrong with a row, if anything, is decided by `row_rules` alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from hf_ext.guards.row_rules import IGNORED_LABEL, MESSAGE_KEYS, SHAREGPT_KEYS, SHAREGPT_ROLES, Role, RowRules

Mask = npt.NDArray[np.bool_]


def _is_string(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def suits(kind: pa.DataType, role: Role, keys: tuple[str, str] = MESSAGE_KEYS) -> bool:
    """Whether an Arrow type is the plain one for a role; any other type is judged row by row."""
    if role == "string":
        return _is_string(kind)
    if role == "weight":
        return _is_number(kind) or (_is_list(kind) and _is_number(kind.value_type))
    if role in ("row_weight", "number"):
        return _is_number(kind)
    if role == "label":
        return bool(pa.types.is_boolean(kind))
    if role == "match":
        return _is_number(kind) or bool(pa.types.is_boolean(kind))
    if role in ("ids", "labels", "mask", "attention"):
        return _is_list(kind) and bool(pa.types.is_integer(kind.value_type))
    if role == "messages":
        if not (_is_list(kind) and pa.types.is_struct(kind.value_type)):
            return False
        fields = {field.name: field.type for field in kind.value_type}
        return all(key in fields and _is_string(fields[key]) for key in keys)
    return False


def suspects(table: pa.Table, rules: RowRules) -> Mask:
    """
    Find the rows that may break a rule.

    Args:
        table (`pyarrow.Table`):
            A batch of rows, with at least the columns of `rules.roles()`.
        rules ([`RowRules`]):
            The rules of the dataset.

    Returns:
        `numpy.ndarray` of shape `(rows,)`, bool: true for every bad row, and for a few good ones.
    """
    is_suspect: Mask = np.zeros(table.num_rows, dtype=bool)
    speakers: Mask = np.zeros(table.num_rows, dtype=bool)
    num_tokens = _lengths(table, "input_ids") if rules.data_type == "input_ids" else None
    for name, role in rules.roles().items():
        column = table.column(name).combine_chunks()
        if isinstance(column, pa.ChunkedArray):  # pyarrow keeps some types chunked
            column = pa.concat_arrays(column.chunks)
        # an unusual type (a view, a dictionary, an extension type): every row is read by itself
        if not suits(column.type, role, rules.keys):
            return np.ones(table.num_rows, dtype=bool)
        if role == "string":
            is_suspect |= _nulls(column) | (_numpy(pc.binary_length(column)) == 0)
        elif role == "messages":
            bad, assistant = _messages(column, rules)
            is_suspect |= bad
            speakers |= assistant
        elif role == "match":
            is_suspect |= _nulls(column) | rules.wrong_matches(_numpy(column))
        else:
            is_suspect |= _numbers(column, role, num_tokens)
    if rules.assistant_only_loss and "messages" in rules.roles().values():
        is_suspect |= ~speakers
    # whether a pair's responses differ shows only in two columns side by side
    if rules.data_type == "preference":
        chosen, rejected = (table.column(side).combine_chunks() for side in ("chosen", "rejected"))
        is_suspect |= _same_responses(chosen, rejected)
        if rules.conversational and "prompt" not in rules.columns:
            is_suspect |= _other_beginning(chosen, rejected)
    return is_suspect


def _numpy(array: pa.Array) -> npt.NDArray[Any]:
    """Values as numpy, with zero (or false) in place of null."""
    return array.fill_null(False if pa.types.is_boolean(array.type) else 0).to_numpy(zero_copy_only=False)


def _nulls(array: pa.Array) -> Mask:
    return array.is_null().to_numpy(zero_copy_only=False)


def _lengths(table: pa.Table, name: str) -> npt.NDArray[np.int64] | None:
    column = table.column(name).combine_chunks()
    return _numpy(pc.list_value_length(column)) if _is_list(column.type) else None


def _parents(column: pa.Array) -> npt.NDArray[np.int64]:
    """Row of each entry of `pc.list_flatten(column)`, which leaves out what may lie under a null."""
    return np.repeat(np.arange(len(column)), _numpy(pc.list_value_length(column)))


def _any_in_list(column: pa.Array, bad_entries: Mask) -> Mask:
    """Spread a mask over the entries of a list column to the rows that hold them."""
    rows: Mask = np.zeros(len(column), dtype=bool)
    rows[_parents(column)[bad_entries]] = True
    return rows


def _messages(column: pa.Array, rules: RowRules) -> tuple[Mask, Mask]:
    """Rows with a defect in some message, and rows that hold a message of the assistant."""
    messages = pc.list_flatten(column)
    speaker, content = (pc.struct_field(messages, [key]) for key in rules.keys)
    entries = _nulls(messages)
    for field in (speaker, content):
        entries |= _nulls(field) | (_numpy(pc.binary_length(field)) == 0)
    if rules.keys == SHAREGPT_KEYS:  # what a call holds is judged row by row
        entries |= ~_is_in(speaker, SHAREGPT_ROLES) | _is_in(speaker, ["function_call"])
    rows = _nulls(column) | (_numpy(pc.list_value_length(column)) == 0) | _any_in_list(column, entries)
    return rows, _any_in_list(column, _is_in(speaker, rules.assistants))


def filled_rows(column: pa.Array, keys: tuple[str, ...]) -> Mask:
    """Rows in which a dict under `keys`, through lists and dicts, or a dict inside of it, has a null entry."""
    if _is_list(column.type):
        return _any_in_list(column, filled_rows(pc.list_flatten(column), keys))
    rows: Mask = np.zeros(len(column), dtype=bool)
    if not pa.types.is_struct(column.type):
        return rows
    names = [field.name for field in column.type]
    if keys:
        return filled_rows(pc.struct_field(column, [keys[0]]), keys[1:]) if keys[0] in names else rows
    for name in names:
        entries = pc.struct_field(column, [name])
        rows |= _nulls(entries) | filled_rows(entries, ())
    return rows & ~_nulls(column)


def _is_in(strings: pa.Array, value_set: Iterable[str]) -> Mask:
    return _numpy(pc.is_in(strings, value_set=pa.array(sorted(value_set), strings.type))).astype(bool)


def _same_responses(chosen: pa.Array, rejected: pa.Array) -> Mask:
    """Rows whose two responses are the same string, or equally many messages of the same contents."""
    if _is_string(chosen.type):
        return _numpy(pc.equal(chosen, rejected)).astype(bool)
    is_same: Mask = _numpy(pc.list_value_length(chosen)) == _numpy(pc.list_value_length(rejected))
    sides = [column.filter(pa.array(is_same)) for column in (chosen, rejected)]
    contents = [pc.struct_field(pc.list_flatten(side), ["content"]) for side in sides]
    agree = _numpy(pc.equal(*contents)).astype(bool) | (_nulls(contents[0]) & _nulls(contents[1]))
    # entries count among the rows of equal length alone: back to rows of the whole table
    is_same[np.flatnonzero(is_same)[_parents(sides[0])[~agree]]] = False
    return is_same


def _other_beginning(chosen: pa.Array, rejected: pa.Array) -> Mask:
    """Rows whose two conversations may not begin with the same message."""
    others: Mask = np.zeros(len(chosen), dtype=bool)
    has_both = (_numpy(pc.list_value_length(chosen)) > 0) & (_numpy(pc.list_value_length(rejected)) > 0)
    firsts = [_first_messages(column.filter(pa.array(has_both))) for column in (chosen, rejected)]
    differ: Mask = np.zeros(int(has_both.sum()), dtype=bool)
    # Arrow compares no structs, so field by field; one that only a single side has must be null there
    for field in {field.name for first in firsts for field in first.type}:
        sides = [pc.struct_field(first, [field]) for first in firsts if first.type.get_field_index(field) >= 0]
        if len(sides) == 2 and all(_is_string(side.type) for side in sides):
            differ |= ~_numpy(pc.equal(*sides)).astype(bool)  # a null equals nothing
        else:
            differ |= ~np.logical_and.reduce([_nulls(side) for side in sides])
    others[has_both] = differ
    return others


def _first_messages(column: pa.Array) -> pa.Array:
    """The first message of each row's list; none is empty."""
    lengths = _numpy(pc.list_value_length(column))
    return pc.list_flatten(column).take(pa.array(np.cumsum(lengths) - lengths))


def _numbers(column: pa.Array, role: Role, num_tokens: npt.NDArray[np.int64] | None) -> Mask:
    """Rows with a number, or a list of numbers, that the role does not allow."""
    nulls = _nulls(column)
    if not _is_list(column.type):
        return nulls | _wrong_number(column, role)
    entries = pc.list_flatten(column)
    lengths = _numpy(pc.list_value_length(column))
    rows = nulls | (lengths == 0) | _any_in_list(column, _nulls(entries) | _wrong_number(entries, role))
    if num_tokens is not None:
        rows |= lengths != num_tokens
    if role == "labels":
        # nothing to learn where no label is supervised
        rows |= ~_any_in_list(column, _supervised(column, entries))
    if role == "attention":
        rows |= ~_any_in_list(column, _numpy(entries) == 1)
    return rows


def _wrong_number(values: pa.Array, role: Role) -> Mask:
    numbers = _numpy(values)
    if role == "labels":
        return (numbers < 0) & (numbers != IGNORED_LABEL)
    if role in ("mask", "attention"):
        return (numbers < 0) | (numbers > 1)
    if role == "number":
        return ~np.isfinite(numbers)
    return ~np.isfinite(numbers) | (numbers < 0)


def _supervised(column: pa.Array, entries: pa.Array) -> Mask:
    """Entries that are a supervised label; a row's first label is never predicted."""
    parents = _parents(column)
    # an entry is its row's first where its row is another than that of the entry before
    first = np.ones(len(parents), dtype=bool)
    first[1:] = parents[1:] != parents[:-1]
    return (_numpy(entries) != IGNORED_LABEL) & ~first


def largest_weight(table: pa.Table) -> float:
    """The largest `weight` of a batch, or entry of its lists (a null counts as zero); infinity where they are none."""
    column = table.column("weight").combine_chunks()
    entries = pc.list_flatten(column) if _is_list(column.type) else column
    return float(np.max(_numpy(entries), initial=0.0)) if _is_number(entries.type) else math.inf
