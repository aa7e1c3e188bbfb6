"""Pages out of WARC files: all of them, and what broken records cost."""

from __future__ import annotations

import gzip
import math
import os
import random
import tracemalloc
import zlib

import pyarrow.parquet as pq
import pytest

from hf_ext.data.curation.warc import read_warc

HTML = b"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=windows-1252\r\nContent-Language: fr\r\n"


def record(page: bytes, number: int = 0, http: bytes = HTML, kind: str = "response", length: object = None) -> bytes:
    block = http + b"\r\n" + page
    head = (
        f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Record-ID: <urn:x:{number}>\r\nWARC-Target-URI: http://a.b/{number}\r\n"
        "WARC-Date: 2020-02-03T04:05:06Z\r\nContent-Type: application/http; msgtype=response\r\n"
        f"Content-Length: {len(block) if length is None else length}\r\n\r\n"
    )
    return head.encode() + block + b"\r\n\r\n"


def pages(count: int) -> list[bytes]:
    rng = random.Random(count)
    return [f"<p>page {number} {rng.randbytes(200 + 100 * number).hex()}".encode() for number in range(count)]


def rows_of(tmp_path, data: bytes, **settings):
    path = tmp_path / "shard.warc"
    path.write_bytes(data)
    return list(read_warc(path, **settings))


def texts_and_reasons(rows):
    return [row["html"] for row in rows if row["html"] is not None], [
        row["drop_reason"] for row in rows if row["drop_reason"]
    ]


def joined(records: list[bytes], is_gzip: bool) -> bytes:
    return b"".join(gzip.compress(item) if is_gzip else item for item in records)


@pytest.mark.real
def test_the_sample_gives_the_pages_it_was_made_from(real_data):
    table = pq.read_table(real_data / "web_docs/html_docs.parquet", columns=["url", "html", "lang"])
    page_of = {row["url"]: row for row in table.to_pylist()}
    rows = list(read_warc(real_data / "web_docs/sample.warc.gz"))
    assert len(rows) == 120
    for row in rows:
        assert row["drop_reason"] == ""
        assert row["html"] == page_of[row["url"]]["html"].encode()
        assert (row["charset"], row["content_language"]) == ("utf-8", page_of[row["url"]]["lang"])
    assert len({row["id"] for row in rows}) == 120


def test_a_row_has_the_headers_and_only_responses_are_rows(tmp_path):
    others = [record(b"x", 7, kind=kind) for kind in ("warcinfo", "request", "metadata", "revisit")]
    (row,) = rows_of(tmp_path, others[0] + others[1] + record(b"<p>caf\xe9", 3) + others[2] + others[3])
    assert (row.pop("drop_value"), row.pop("drop_threshold")) == (pytest.approx(math.nan, nan_ok=True),) * 2
    assert row == {
        "id": "urn:x:3", "url": "http://a.b/3", "html": b"<p>caf\xe9", "charset": "windows-1252",
        "content_language": "fr", "date": "2020-02-03T04:05:06Z", "drop_reason": "",
    }  # fmt: skip


def test_what_is_no_page_says_why(tmp_path):
    png = b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\n"
    untyped = b"HTTP/1.1 200 OK\r\nServer: x\r\n"
    data = record(b"\x89PNG", 0, png) + record(b"<p>x", 1, untyped) + record(b"<p>y", 2, b"\xff\x00\xfe\r\n")
    rows = rows_of(tmp_path, data + record(b"<p>" + b"z" * 98, 3), max_page_bytes=100)
    assert [row["drop_reason"] for row in rows] == [
        "read_warc:not_html",
        "",
        "read_warc:not_http",
        "read_warc:too_long",
    ]
    assert (rows[3]["drop_value"], rows[3]["drop_threshold"], rows[3]["html"]) == (101.0, 100.0, None)


@pytest.mark.parametrize("is_gzip", [True, False])
def test_a_file_cut_anywhere_gives_the_pages_before_and_at_most_one_broken_record(tmp_path, is_gzip):
    contents = pages(4)
    records = [joined([record(page, number)], is_gzip) for number, page in enumerate(contents)]
    whole = b"".join(records)
    ends = [len(b"".join(records[: number + 1])) for number in range(4)]
    for size in range(1, len(whole), 13):
        html, reasons = texts_and_reasons(rows_of(tmp_path, whole[:size]))
        # a plain record is whole without the two line ends that follow it
        count = sum(end - (0 if is_gzip else 4) <= size for end in ends)
        assert html == contents[:count], size
        is_at_end = any(end - (0 if is_gzip else 4) <= size <= end for end in ends)
        assert reasons == ([] if is_at_end else ["read_warc:broken_record"]), size


def test_a_flipped_bit_costs_its_gzip_member_alone(tmp_path):
    contents = pages(5)
    members = [gzip.compress(record(page, number), mtime=0) for number, page in enumerate(contents)]
    rng = random.Random(0)
    for _ in range(80):
        number = rng.randrange(5)
        position = rng.randrange(10, len(members[number]))  # after the member's header, whose flags say little
        damaged = bytearray(members[number])
        damaged[position] ^= 1 << rng.randrange(8)
        data = b"".join(bytes(damaged) if place == number else member for place, member in enumerate(members))
        html, reasons = texts_and_reasons(rows_of(tmp_path, data))
        assert html == contents[:number] + contents[number + 1 :], (number, position)
        assert reasons == ["read_warc:broken_record"]


@pytest.mark.parametrize("length", [5, 300, 10**12, "9" * 5000, "banana", -1])
@pytest.mark.parametrize("is_gzip", [True, False])
def test_a_false_length_costs_its_record_alone(tmp_path, length, is_gzip):
    contents = pages(4)
    records = [record(page, number, length=length if number == 1 else None) for number, page in enumerate(contents)]
    html, reasons = texts_and_reasons(rows_of(tmp_path, joined(records, is_gzip)))
    assert html == [contents[0], *contents[2:]]
    assert reasons == ["read_warc:broken_record"]


@pytest.mark.parametrize("junk", [b"junk\r\n" * 50, b"\0" * 300, b"\x1f\x8b\x08" * 50])
@pytest.mark.parametrize("is_gzip", [True, False])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_junk_between_records_is_told_and_costs_no_page(tmp_path, junk, is_gzip, place):
    contents = pages(2)
    records = [joined([record(page, number)], is_gzip) for number, page in enumerate(contents)]
    records.insert(place, junk)
    html, reasons = texts_and_reasons(rows_of(tmp_path, b"".join(records)))
    if place == 0 and is_gzip != junk.startswith(b"\x1f\x8b"):
        # what a file is, its first bytes say: this one is no longer of its kind
        assert (html, reasons) in (([], ["read_warc:broken_record"]), (contents, ["read_warc:broken_record"]))
    else:
        assert html == contents
        assert reasons == ["read_warc:broken_record"]


def test_one_gzip_member_may_hold_every_record(tmp_path):
    contents = pages(6)
    data = gzip.compress(b"".join(record(page, number) for number, page in enumerate(contents)))
    assert texts_and_reasons(rows_of(tmp_path, data)) == (contents, [])


@pytest.mark.parametrize("data", [b"", b"no archive at all\n" * 9])
def test_a_file_without_records(tmp_path, data):
    assert texts_and_reasons(rows_of(tmp_path, data)) == ([], ["read_warc:broken_record"] if data else [])


def test_what_is_no_file_is_refused_before_it_is_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.warc")
    for path, error in (
        (tmp_path / "pipe.warc", ValueError),
        (tmp_path, ValueError),
        ("gone.warc", FileNotFoundError),
    ):
        with pytest.raises(error):
            next(read_warc(path))


def test_a_page_is_decoded_as_its_header_says_and_left_as_it_is_where_that_is_false(tmp_path):
    zipped = HTML + b"Content-Encoding: gzip\r\n"
    chunked = HTML + b"Transfer-Encoding: chunked\r\n"
    data = record(gzip.compress(b"<p>a"), 0, zipped) + record(b"<p>b", 1, zipped) + record(b"<p>c", 2, chunked)
    data += record(b"4\r\n<p>d\r\n0\r\n\r\n", 3, chunked)
    assert texts_and_reasons(rows_of(tmp_path, data)) == ([b"<p>a", b"<p>b", b"<p>c", b"<p>d"], [])


def test_bombs_are_neither_held_in_memory_nor_read_as_pages(tmp_path):
    zeros = zlib.compressobj(9, wbits=31)
    size = 60_000_000
    block = HTML + b"\r\n"
    head = "WARC/1.0\r\nWARC-Type: response\r\nContent-Type: application/http\r\n"
    member = zeros.compress(f"{head}Content-Length: {size + len(block)}\r\n\r\n".encode() + block)
    for _ in range(60):
        member += zeros.compress(b"\0" * (size // 60))
    member += zeros.compress(b"\r\n\r\n") + zeros.flush()
    encoded = record(gzip.compress(b"\0" * 50_000_000), 1, HTML + b"Content-Encoding: gzip\r\n")
    tracemalloc.start()
    rows = rows_of(
        tmp_path, member + gzip.compress(encoded) + gzip.compress(record(b"<p>ok", 2)), max_page_bytes=1_000_000
    )
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [row["drop_reason"] for row in rows] == ["read_warc:too_long", "read_warc:too_long", ""]
    assert rows[0]["drop_value"] == size
    assert peak < 20_000_000
