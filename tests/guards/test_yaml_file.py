"""YAML of somebody else's making: read as PyYAML reads it, or refused in one sentence before it costs anything."""

from __future__ import annotations

import time
import tracemalloc
from datetime import date
from pathlib import Path

import pytest
import yaml

from hf_ext.guards.yaml_file import MAX_BYTES, MAX_DEPTH, YamlError, parse_yaml, read_yaml

EXPONENTS = "a: 1e-5\nb: {c: 1e-5, d: '1e-5', e: [1E3, .5e2, 3e4x, e5, 1.0e-5]}\n"


@pytest.mark.parametrize("level", [0, 1, 2])
def test_a_bare_exponent_is_a_number_from_the_level_asked_for_and_a_quoted_one_never(level: int) -> None:
    found = parse_yaml(EXPONENTS, "a", exponents_from=level)
    assert found == {
        "a": "1e-5" if level > 1 else 1e-5,
        "b": {"c": 1e-5, "d": "1e-5", "e": [1000.0, 50.0, "3e4x", "e5", 1e-5]},
    }
    assert parse_yaml(EXPONENTS, "a") == yaml.safe_load(EXPONENTS)
    assert parse_yaml("1e-6", "a", exponents_from=0) == 1e-6


def aliases(levels: int) -> str:
    """A list of ten, ten times in a list, and so on: 10**levels values in a few hundred letters."""
    lines = ["&l0 [x,x,x,x,x,x,x,x,x,x]"] + [f"&l{i} [{','.join([f'*l{i - 1}'] * 10)}]" for i in range(1, levels)]
    return "a:\n" + "".join(f"  - {line}\n" for line in lines)


def merges(levels: int) -> str:
    lines = [f"x{i}: &x{i} {{<<: [{','.join([f'*x{i - 1}'] * 10)}]}}\n" for i in range(1, levels)]
    return "x0: &x0 {a: 1}\n" + "".join(lines)


@pytest.mark.parametrize(
    "text",
    [
        "a: 1\nb: [1, 2.5, text, null, true]\nc: {d: 2024-01-31}\n",
        "base: &b {a: 1, c: 2}\nmine:\n  <<: *b\n  a: 3\n",
        "a: |\n  two\n  lines\nb: 'quoted: text'\n",
        aliases(3),
        "a: !!set {x, y}\n? 5\n: five\n",
        "",
        "# nothing\n",
        "a: " + "[" * (MAX_DEPTH - 1) + "]" * (MAX_DEPTH - 1),
        "a: 0x1F\nb: 1_000\nc: 1e5\nd: .inf\n",
    ],
)
def test_what_is_harmless_is_read_as_pyyaml_reads_it(text: str) -> None:
    assert parse_yaml(text, "f.yaml") == yaml.safe_load(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (aliases(9), ["100,000 values"]),
        (merges(9), ["100,000 values"]),
        ("a: &x [*x]", ["line 1", "*x stands inside itself"]),
        ("b: 1\na: &x\n  c: *x", ["line 3", "*x stands inside itself"]),
        ("a: *nothing", ["line 1", "undefined alias"]),
        ("a: 1\nb: 2\na: 3", ["line 3", "'a' is given twice"]),
        ("a:\n- b: 1\n  b: 1", ["line 3", "'b' is given twice"]),
        ("1: a\ntrue: b", ["line 2", "True is given twice"]),
        ("a: " + "[" * 3000 + "]" * 3000, ["line 1", "nested too deeply"]),
        ("{" * 500_000, ["nested too deeply"]),
        ("- " * 3000, ["nested too deeply"]),
        ("? " * 3000, ["nested too deeply"]),
        ("\ta: 1", ["line 1", "is no YAML file"]),
        ('a: "x\\0y"', ["line 1", "NUL"]),
        ("a: x\0y", ["NUL"]),
        ('a: "\\ud800"', ["line 1"]),
        ("a: \ud800", ["surrogate"]),
        ("a: 1\nb: 2024-13-40", ["line 2", "'2024-13-40' cannot be read as timestamp"]),
        ("a: 2024-01-01 99:99:99", ["line 1", "timestamp"]),
        ("a: " + "9" * 5000, ["line 1", "a number of 5,000 digits"]),
        ("a: 0x" + "f" * 500_000, ["line 1", "digits"]),
        ("a: 1" + ":59" * 50_000, ["line 1", "digits"]),
        ("a: !!int x", ["line 1", "'x' cannot be read as int"]),
        ("a: !!int ''", ["line 1", "cannot be read as int"]),
        ("a: !!bool maybe", ["line 1", "'maybe' cannot be read as bool"]),
        ("a: !!timestamp soon", ["line 1", "timestamp"]),
        ("a: !!binary é", ["line 1"]),
        ("a: !!set [x]", ["is no YAML file"]),
        ("a: !!python/object/apply:os.system [exit]", ["line 1", "os.system"]),
        ("a: !mine x", ["line 1", "!mine"]),
        ("? [a]\n: x", ["unhashable key"]),
        ("<<: [1]", ["merging"]),
        ("a: 1\n---\nb: 2", ["single document"]),
        ("a: [\n", ["line"]),
        ("a" * (MAX_BYTES + 1), ["1,048,576"]),
    ],
)
def test_what_is_hostile_or_wrong_is_one_line_at_once(text: str, words: list[str]) -> None:
    tracemalloc.start()
    began = time.process_time()
    with pytest.raises(YamlError) as raised:
        parse_yaml(text, "f.yaml")
    seconds = time.process_time() - began
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    message = str(raised.value)
    assert message.startswith("f.yaml")
    assert all(word in message for word in words), message
    assert message.isprintable()
    assert len(message) < 300
    assert seconds < 3  # under tracemalloc, which doubles it; a bomb takes minutes
    assert peak < 50e6


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (bytes(range(256)), "no UTF-8"),
        ("a: ü".encode("latin-1"), "no UTF-8 text (byte 3)"),
        ("a: x".encode("utf-16"), "no UTF-8"),
        (b"a: " + b"x" * MAX_BYTES, "more than 1,048,576 bytes"),
    ],
)
def test_a_file_that_is_no_text_is_named(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "f.yaml").write_bytes(content)
    with pytest.raises(YamlError, match=r"f\.yaml") as raised:
        read_yaml(tmp_path / "f.yaml")
    assert words in str(raised.value)


def test_a_byte_order_mark_and_windows_line_ends_are_no_hindrance(tmp_path: Path) -> None:
    (tmp_path / "f.yaml").write_bytes(b"\xef\xbb\xbfa: 2024-02-29\r\nb: x\r\n")
    assert read_yaml(tmp_path / "f.yaml") == {"a": date(2024, 2, 29), "b": "x"}


def test_the_longest_metadata_of_a_real_card_are_read() -> None:
    """As long as the MTEB results of the embedding models with most of them."""
    result = "  - task:\n      type: Classification\n    metrics:\n    - type: accuracy\n      value: 75.1\n"
    values = parse_yaml("license: mit\nmodel-index:\n" + result * 7_000, "README.md")
    assert values["license"] == "mit"
    assert len(values["model-index"]) == 7_000
