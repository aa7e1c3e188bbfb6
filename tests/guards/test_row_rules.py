"""The words for one value: a cut value is short, starts as it starts, and is closed as it was opened."""

from __future__ import annotations

import pytest

from hf_ext.guards.row_text import shorten


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("a" * 30, "'aaaaaaaaaaaaaaa...'"),
        ("it's" * 30, "\"it'sit'sit'sit'...\""),
        (b"a" * 30, "b'aaaaaaaaaaaaaa...'"),
        (["one", "two", "three"], "['one', 'two', '...]"),
        ({"role": "assistant", "content": "No."}, "{'role': 'assist...}"),
        (10**30, "1000000000000000...0"),
        ("a" * 18, "'" + "a" * 18 + "'"),
        ([1, 2], "[1, 2]"),
    ],
    ids=["string", "quote", "bytes", "list", "dict", "number", "string_that_fits", "list_that_fits"],
)
def test_a_cut_value_is_closed_as_it_was_opened(value: object, expected: str) -> None:
    assert shorten(value, 20) == expected
    assert len(expected) <= 20


def test_a_megabyte_is_not_written_out_to_show_its_beginning() -> None:
    class Counted(str):
        longest = 0

        def __repr__(self) -> str:
            Counted.longest = max(Counted.longest, len(self))
            return super().__repr__()

        def __getitem__(self, key: object) -> Counted:
            return Counted(super().__getitem__(key))

    assert shorten(Counted("x" * 1_000_000)) == "'" + "x" * 75 + "...'"
    assert Counted.longest <= 81
