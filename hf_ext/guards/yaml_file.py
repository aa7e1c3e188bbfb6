"""YAML from strangers: read within bounds, each fault named in one sentence with its line. Imports nothing heavy."""

from __future__ import annotations

import re
from collections.abc import Hashable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from yaml import Event, Node

__all__ = ["MAX_BYTES", "YamlError", "fast_loader", "parse_yaml", "read_text", "read_yaml"]

MAX_BYTES = 2**20
"""Longest YAML read, in bytes. The longest metadata of a card that we know, some 700 kB of MTEB results, fits."""

MAX_DEPTH = 50
"""Deepest nesting; PyYAML recurses once a level."""

MAX_VALUES = 100_000
"""Most values, each alias counted as everything it stands for: a bomb of aliases or merges is refused unopened."""

MAX_DIGITS = 400
"""Longest number; a longer one takes Python long to read, or cannot be printed again."""

# What int, date and the like raise, and PyYAML 6.0 lets pass: '2024-13-40', '!!bool maybe', '!!set [a]'.
NO_VALUE = (ValueError, KeyError, IndexError, AttributeError, TypeError, OverflowError)

# PyYAML reads YAML 1.1, in which these are texts; in YAML 1.2, and to whoever writes them, they are numbers.
_EXPONENT = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+")

_NO_TEXT = re.compile("[\0\ud800-\udfff]")


class YamlError(ValueError):
    """A text is no YAML that can be used; the message says where and why."""


def read_yaml(path: str | Path, *, exponents_from: int | None = None) -> Any:
    """
    Read a YAML file, as [`parse_yaml`] reads a text.

    Args:
        path (`str` or `Path`):
            A file of UTF-8 text.
        exponents_from (`int`, *optional*):
            As [`parse_yaml`] takes it.

    Returns:
        `Any`: plain values: dictionaries, lists, strings, numbers, booleans, dates, `None`.

    Raises:
        YamlError: if the file is too long, no UTF-8, or no YAML that can be used.
        OSError: if it cannot be opened; the message names it.
    """
    return parse_yaml(read_text(path, MAX_BYTES), str(path), exponents_from=exponents_from)


def read_text(path: str | Path, limit: int) -> str:
    """
    The text of a file of at most `limit` bytes; no more is ever read.

    Args:
        path (`str` or `Path`):
            A file of UTF-8 text, with or without a byte order mark.
        limit (`int`):
            In bytes.

    Returns:
        `str`: the text.

    Raises:
        YamlError: if the file is longer or no UTF-8.
        OSError: if it cannot be opened; the message names it.
    """
    with open(path, "rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise YamlError(f"{path} has more than {limit:,} bytes: it is none of the files meant here, or shorten it")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise YamlError(f"{path} is no UTF-8 text (byte {error.start:,}): save it as UTF-8") from error


def parse_yaml(text: str, name: str, *, exponents_from: int | None = None) -> Any:
    """
    Read a YAML text within bounds.

    Refused, beside what is no YAML: more than `MAX_BYTES` characters, `MAX_DEPTH` levels or `MAX_VALUES` values (an
    alias counts as everything it stands for), a value inside itself, a key given twice in one mapping, a tag for
    anything but plain values, a number or date that is none, and text that holds NUL or half a surrogate pair.

    Args:
        text (`str`):
            One YAML document.
        name (`str`):
            What the message calls it, such as the file's path.
        exponents_from (`int`, *optional*):
            Level of nesting, 0 for the whole document, from which a bare `1e-5` is a number, as YAML 1.2 has it; by
            default it is a text on every level. Whoever knows the types of the upper levels converts those.

    Returns:
        `Any`: plain values.

    Raises:
        YamlError: if the text is any of these; the message is one line.
    """
    import yaml

    # bounds before parsing: PyYAML builds everything that aliases stand for
    if len(text) > MAX_BYTES:
        raise YamlError(f"{name} has more than {MAX_BYTES:,} characters of YAML; shorten it")
    if _NO_TEXT.search(text):
        raise YamlError(f"{name} holds NUL or half a surrogate pair, which no text file does")
    try:
        _check_size(text, name)
        return yaml.load(text, Loader=_loader(exponents_from))  # noqa: S506  a subclass of the safe one
    except yaml.MarkedYAMLError as error:
        place = "" if error.problem_mark is None else f", line {error.problem_mark.line + 1}"
        reason = " ".join(part for part in (error.context, error.problem) if part)
        raise YamlError(f"{name}{place} is no YAML file: {_line(reason)}") from error
    except (yaml.YAMLError, RecursionError, *NO_VALUE) as error:
        if isinstance(error, YamlError):
            raise
        raise YamlError(f"{name} is no YAML file: {_line(str(error))}") from error


def _line(text: str) -> str:
    """A library's message as one short line: it may quote kilobytes of the file."""
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    return line if len(line) <= 200 else f"{line[:197]}..."


def fast_loader() -> Any:
    """The safe loader on libyaml where PyYAML has it; it sets no bounds: for what [`parse_yaml`] has read."""
    import yaml

    # libyaml reads ten times as fast; its events and its faults are the same
    return getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def _check_size(text: str, name: str) -> None:
    """Count depth and values from the stream of events, before anything is built."""
    import yaml

    sizes: dict[str | None, int] = {}  # anchor -> values it stands for, once it is closed
    opened: list[tuple[str | None, int]] = []  # anchor and values so far, outermost first
    total = 0
    for event in yaml.parse(text, Loader=fast_loader()):
        if isinstance(event, yaml.CollectionStartEvent):
            opened.append((event.anchor, 1))
            if len(opened) > MAX_DEPTH:
                raise YamlError(f"{name}, {_place(event)} is nested too deeply: more than {MAX_DEPTH} levels")
            continue
        if isinstance(event, yaml.CollectionEndEvent):
            anchor, size = opened.pop()
        elif isinstance(event, yaml.ScalarEvent):
            anchor = event.anchor
            size = 1
            if _NO_TEXT.search(event.value):  # written as an escape
                raise YamlError(f"{name}, {_place(event)}: a text holds NUL or half a surrogate pair")
        elif isinstance(event, yaml.AliasEvent):
            if any(event.anchor == anchor for anchor, _ in opened):
                raise YamlError(f"{name}, {_place(event)}: *{event.anchor:.40} stands inside itself")
            anchor = None
            size = sizes.get(event.anchor, 1)
        else:
            continue
        if anchor is not None:
            sizes[anchor] = size
        if opened:
            opened[-1] = (opened[-1][0], opened[-1][1] + size)
        total = size if not opened else opened[-1][1]
        if total > MAX_VALUES:
            raise YamlError(
                f"{name}, {_place(event)}: more than {MAX_VALUES:,} values, each alias counted as what it stands for"
            )


def _place(event: Event) -> str:
    return "line ?" if event.start_mark is None else f"line {event.start_mark.line + 1}"


def _number_exponents(node: Node, level: int, visited_ids: set[int]) -> None:
    """Tag bare scalars such as `1e-5` as numbers, from `level` levels below `node` on."""
    import yaml

    if isinstance(node, yaml.ScalarNode):
        is_bare = not node.style and node.tag == "tag:yaml.org,2002:str"
        if level <= 0 and is_bare and _EXPONENT.fullmatch(node.value):
            node.tag = "tag:yaml.org,2002:float"
        return
    if id(node) in visited_ids:  # an alias: once is enough
        return
    visited_ids.add(id(node))
    pairs = node.value if isinstance(node, yaml.MappingNode) else [(None, entry) for entry in node.value]
    for _, entry in pairs:
        _number_exponents(entry, level - 1, visited_ids)


def _loader(exponents_from: int | None) -> Any:
    """The safe loader, with keys given twice and values that are none refused where they stand."""
    from yaml.constructor import ConstructorError

    base: Any = fast_loader()

    class Loader(base):
        def get_single_node(self) -> Node | None:
            node = super().get_single_node()
            if node is not None and exponents_from is not None:
                _number_exponents(node, exponents_from, set())
            return node

        def construct_object(self, node: Node, deep: bool = False) -> Any:
            kind = node.tag.rpartition(":")[2]
            if kind in ("int", "float") and len(node.value) > MAX_DIGITS:
                raise ConstructorError(None, None, f"a number of {len(node.value):,} digits", node.start_mark)
            try:
                return super().construct_object(node, deep)
            except NO_VALUE as error:
                problem = f"{str(node.value)[:40]!r} cannot be read as {kind}"
                raise ConstructorError(None, None, problem, node.start_mark) from error

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
            keys: set[Hashable] = set()
            for key_node, _ in list(getattr(node, "value", ())):
                key = "<<" if key_node.tag == "tag:yaml.org,2002:merge" else self.construct_object(key_node, deep=True)
                if isinstance(key, Hashable) and key in keys:
                    raise ConstructorError(None, None, f"the key {key!r:.80} is given twice", key_node.start_mark)
                if isinstance(key, Hashable):
                    keys.add(key)
            return super().construct_mapping(node, deep)

    return Loader
