"""A small file that would fill the memory is refused by name, and before it does; honest files pass as they are."""

from __future__ import annotations

import gzip
import io
import json
import random
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_ext.guards.parquet_pages import unpacked_bytes
from hf_ext.guards.unpacked import _depths, npz_arrays, require_shallow, text_batches

LAYOUTS: list[dict[str, Any]] = [
    {},
    {"compression": "zstd"},
    {"compression": "none", "data_page_version": "2.0"},
    {"use_dictionary": False},
    {"data_page_size": 500, "write_page_index": True},
    {"row_group_size": 777, "write_page_checksum": True},
]


def honest_rows() -> pa.Table:
    rng = random.Random(0)
    texts = [f"é{rng.randrange(10**9)} " * rng.randrange(1, 30) for _ in range(9000)]
    optional = [None if rng.random() < 0.3 else f"v{rng.randrange(50)}" for _ in range(9000)]
    return pa.table(
        {"a": texts, "b": pa.array(optional).dictionary_encode(), "c": ["same"] * 9000, "d": [[1.0]] * 9000}
    )


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_texts_come_as_arrow_reads_them_and_their_bytes_are_counted(tmp_path: Path, layout: dict[str, Any]) -> None:
    table = honest_rows()
    pq.write_table(table, tmp_path / "rows.parquet", **layout)
    columns: dict[str, list[Any]] = {"a": [], "b": [], "c": []}
    num_bytes = 0
    for batch in text_batches(tmp_path / "rows.parquet", list(columns)):
        num_bytes += batch.num_bytes
        for name, values in batch.columns.items():
            columns[name] += values
    assert columns == {name: table.column(name).to_pylist() for name in columns}
    assert num_bytes == sum(len((text or "").encode()) for values in columns.values() for text in values)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_the_pages_of_an_honest_file_are_as_long_as_its_footer_says(tmp_path: Path, layout: dict[str, Any]) -> None:
    pq.write_table(honest_rows(), tmp_path / "rows.parquet", **layout)
    footer = pq.read_metadata(tmp_path / "rows.parquet")
    groups = [footer.row_group(number) for number in range(footer.num_row_groups)]
    said = sum(group.column(i).total_uncompressed_size for group in groups for i in range(group.num_columns))
    assert 0.99 * said < unpacked_bytes(tmp_path / "rows.parquet", footer) <= said  # the footer counts headers too


def write_one_long_text(path: Path, size: int) -> None:
    pq.write_table(
        pa.table({"a": ["x" * size]}), path, compression="zstd", use_dictionary=False, write_statistics=False
    )


needs_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peaks are read from /proc")
# VmHWM is of this process alone; ru_maxrss starts at the size of the process that started it.
READ = """
import re, sys
from pathlib import Path
from hf_ext.guards.unpacked import text_batches

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

most = peak()
try:
    list(text_batches(sys.argv[1], ["a"]))
except ValueError as error:
    print(error)
print((peak() - most) // 1024)
"""


def refuse_in_little_memory(path: Path) -> None:
    """In a process of its own, which has not held the rows before."""
    done = subprocess.run([sys.executable, "-c", READ, str(path)], capture_output=True, text=True, check=True)
    sentence, mebibytes = done.stdout.splitlines()
    assert re.match(r".*bomb\.parquet has [\d,]+ bytes and unpacks to more than 268,435,456", sentence)
    assert int(mebibytes) < 100


def in_varint(number: int, length: int = 0) -> bytes:
    """A number as Thrift has it (zigzag), filled up to a length with groups of zeros."""
    number, groups = number << 1, []
    while number or len(groups) < max(length, 1):
        groups.append(number & 0x7F)
        number >>= 7
    return bytes([group | 0x80 for group in groups[:-1]] + groups[-1:])


@needs_proc
@pytest.mark.parametrize("honest_footer", [True, False])
def test_one_page_that_fills_the_memory_is_refused_before_it_is_decompressed(
    tmp_path: Path, honest_footer: bool
) -> None:
    path = tmp_path / "bomb.parquet"
    write_one_long_text(path, 2**28 + 1)
    if not honest_footer:
        chunk = pq.read_metadata(path).row_group(0).column(0)
        content = path.read_bytes()
        end = content.rindex(b"PAR1") - 4
        start = end - int.from_bytes(content[end : end + 4], "little")
        said = in_varint(chunk.total_uncompressed_size)
        footer = content[start:end].replace(said, in_varint(1000, len(said)))
        path.write_bytes(content[:start] + footer + content[end:])
        assert pq.read_metadata(path).row_group(0).column(0).total_uncompressed_size == 1000
    refuse_in_little_memory(path)


@needs_proc
def test_many_rows_that_point_at_one_long_text_are_refused(tmp_path: Path) -> None:
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 8192, pa.int32()), pa.array(["x" * 10**6]))
    pq.write_table(pa.table({"a": column}), tmp_path / "bomb.parquet", compression="zstd")
    refuse_in_little_memory(tmp_path / "bomb.parquet")


def cut(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def point_outside(path: Path) -> None:
    """The first column chunk begins at 0: at the file's mark, where no page is."""
    content = path.read_bytes()
    path.write_bytes(content[:4] + b"\xff" * 40 + content[44:])


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (cut, "is no Parquet file that can be read"),
        (point_outside, "is no Parquet file that can be read"),
        (lambda path: path.write_bytes(b""), "is no Parquet file that can be read"),
        (lambda path: pq.write_table(pa.table({"b": ["x"]}), path), "has no column 'a'"),
        (lambda path: pq.write_table(pa.table({"a": [1]}), path), "column 'a': expected texts, found int64"),
        (lambda path: pq.write_table(pa.table({"a": [b"x"]}), path), "column 'a': expected texts, found binary"),
        (
            lambda path: pq.write_table(pa.table({"a": pa.array([b"\xff"]).view(pa.string())}), path),
            "is no Parquet file that can be read",
        ),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, damage: Any, problem: str) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"a": [str(number) for number in range(1000)]}), path)
    damage(path)
    with pytest.raises(ValueError, match=rf"rows\.parquet.*{problem}"):
        list(text_batches(path, ["a"]))


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("line_ends", ["", "\n"])
def test_json_that_is_nested_deeper_than_a_parser_bears_is_refused(
    tmp_path: Path, packed: bool, line_ends: str
) -> None:
    write = gzip.compress if packed else bytes
    hidden = r'{"a": "]]]]\\\"]", "b": ["\\"]}' + "\n"  # brackets in strings, behind escapes, do not count
    for depth, good in ((999, True), (1001, False)):
        text = hidden * 3 + ("[" + line_ends) * depth + "]" * depth + "\n" + hidden
        (tmp_path / "a.jsonl").write_bytes(write(text.encode()))
        if good:
            require_shallow(tmp_path / "a.jsonl")
        else:
            with pytest.raises(ValueError, match=r"a\.jsonl is nested deeper than 1,000 levels"):
                require_shallow(tmp_path / "a.jsonl")


@given(st.recursive(st.text('[]{}\\"a\n', max_size=5), lambda inner: st.lists(inner, max_size=3)))
def test_the_depth_of_json_is_that_of_its_values(value: Any) -> None:
    def depth(value: Any) -> int:
        return 1 + max(map(depth, value), default=0) if isinstance(value, list) else 0

    depths = _depths(json.dumps(value).encode())
    assert max(depths, default=0) == depth(value)


def test_arrays_of_a_file_are_bounded_by_their_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, a=np.arange(6).reshape(2, 3), b=np.array("text"))
    arrays = npz_arrays(path)
    assert arrays["a"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert str(arrays["b"]) == "text"
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (10**13,)})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", header.getvalue())
    with pytest.raises(ValueError, match=r"a\.npz .*claims more than its"):
        npz_arrays(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", bytes(2**28 + 1))
    with pytest.raises(ValueError, match=r"a\.npz has [\d,]+ bytes and unpacks to more than"):
        npz_arrays(path)
