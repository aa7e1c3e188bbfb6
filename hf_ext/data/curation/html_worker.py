"""
The process that decodes and parses pages: run by its path, so that it starts in milliseconds and dies alone.

It imports nothing of hf-ext. From stdin it takes, a page at a time, whether the page is text already, its charset and
its bytes; to stdout go one byte once it is ready, then an outcome and the text of each page.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from typing import BinaryIO

REQUEST = struct.Struct("<?HQ")  # is_text, bytes of the charset, bytes of the page
REPLY = struct.Struct("<BQ")  # outcome, bytes of the text

EXTRACTED, EXTRACTED_WITH_REPLACEMENTS, UNDECODABLE, PARSER_ERROR = range(4)


def decode(page: bytes, charset: str) -> tuple[str, bool]:
    """
    A page's characters, and whether some had to be replaced.

    The charset of the HTTP header is tried first, then UTF-8, then what the page or its bytes say. Each must fit every
    byte, as pages often declare a charset that they do not keep to.
    """
    for encoding in _encodings(page, charset):
        try:
            return page.decode(encoding or "utf-8").removeprefix("\ufeff"), False
        except (UnicodeDecodeError, LookupError):
            continue
    return page.decode("utf-8", "replace").removeprefix("\ufeff"), True


def _encodings(page: bytes, charset: str) -> Iterator[str | None]:
    from resiliparse.parse.encoding import detect_encoding, map_encoding_to_html5

    if charset and (encoding := map_encoding_to_html5(charset, fallback_utf8=False)):
        yield encoding
    # of a short page detection takes UTF-8 for something else, but what fits UTF-8 by chance is next to nothing;
    # bytes below 128 alone may be ISO-2022-JP or UTF-16
    if not page.isascii():
        yield "utf-8"
    yield detect_encoding(page, from_html_meta=True)
    yield detect_encoding(page)


def outcome_of(page: bytes, charset: str, is_text: bool, strict: bool) -> tuple[int, str]:
    """What became of a page, and its main text."""
    from resiliparse.extract.html2text import extract_plain_text

    try:
        if is_text or strict:
            html = page.decode("utf-8")
            has_replacements = False
        else:
            html, has_replacements = decode(page, charset)
    except UnicodeDecodeError:
        return UNDECODABLE, ""
    try:
        text = extract_plain_text(html, main_content=True)
    # a panic in the native parser is a BaseException of pyo3's
    except BaseException:
        return PARSER_ERROR, ""
    return (EXTRACTED_WITH_REPLACEMENTS if has_replacements else EXTRACTED), text


def bound_memory(num_bytes: int) -> None:
    """Let allocations beyond fail, where the system can, and leave no core file behind."""
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (num_bytes, num_bytes))
    except (ImportError, ValueError, OSError):  # Windows; macOS; a lower limit is set already
        return


def bound_time(seconds: float) -> None:
    """Kill this process once it has computed for so long; 0 stops the clock."""
    import signal

    # CPU time, so that a busy machine changes no verdict; the default action needs no Python to run in a native loop
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, seconds)


def serve(requests: BinaryIO, replies: BinaryIO, max_seconds: float, strict: bool) -> None:
    """Answer requests until there are no more."""
    outcome_of(b"<p>x", "", False, strict)  # the imports, before the clock runs
    replies.write(b"\x01")
    replies.flush()
    while header := requests.read(REQUEST.size):
        is_text, charset_size, page_size = REQUEST.unpack(header)
        charset = requests.read(charset_size).decode("ascii", "replace")
        page = requests.read(page_size)
        bound_time(max_seconds)
        outcome, text = outcome_of(page, charset, is_text, strict)
        bound_time(0)
        encoded = text.encode("utf-8", "replace")
        replies.write(REPLY.pack(outcome, len(encoded)) + encoded)
        replies.flush()


if __name__ == "__main__":
    bound_memory(int(sys.argv[1]))
    serve(sys.stdin.buffer, sys.stdout.buffer, float(sys.argv[2]), sys.argv[3] == "strict")
