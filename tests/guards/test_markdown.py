"""Escaped text shows what it says, to an independent parser of Markdown, wherever on a line it stands."""

from __future__ import annotations

import ast
import unicodedata

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from hf_ext.guards.markdown import Markdown, code, escape, fenced, python_literal, unescape

PARSER = MarkdownIt("commonmark").enable(["table", "strikethrough"])
PIECES = ["<script>", "</td>", "<!--", "&amp;", "&lt;", "&#64;", "](javascript:x)", "[x]", "---", "```", "`", "||"]
PIECES += ["\\", "\\|", "\u202e", "\u2066", "\u2028", "\0", "\x1b[31m", "{{ x }}", "@all", "a_b", "_c_", "**d**"]
PIECES += ["~~e~~", "$$f$$", "# ", "## g", "1. ", "- ", "+", "=", "> ", "\n", "\t", " ", "é", "\U0001f600", "\ud800"]
PIECES += ['"', "'", "!"]
TEXTS = st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=6).map("".join)
fuzz = settings(max_examples=400, derandomize=True, database=None, deadline=None, suppress_health_check=[*HealthCheck])


def visible(text: str) -> str:
    """One line of `text`, without characters that cannot be seen."""
    letters = " ".join(text.replace("\0", "").split())
    letters = "".join("\ufffd" if "\ud800" <= letter <= "\udfff" else letter for letter in letters)
    shown = [x for x in letters if x in "\u200c\u200d" or unicodedata.category(x) not in ("Cc", "Cf")]
    return " ".join("".join(shown).split())


def inline(markdown: str) -> list[list[tuple[str, str]]]:
    """The pieces of each run of text, as kind and content."""
    runs = [token.children for token in PARSER.parse(markdown) if token.type == "inline"]
    return [[(piece.type, piece.content) for piece in run] for run in runs]


def only_text(pieces: list[tuple[str, str]]) -> str:
    assert {kind for kind, _ in pieces} <= {"text", "text_special"}, pieces
    return "".join(content for _, content in pieces).strip()


@given(TEXTS)
@fuzz
def test_any_text_is_shown_in_a_cell_a_heading_and_a_paragraph(text: str) -> None:
    escaped = escape(text)
    cells = inline(f"| a | b |\n|---|---|\n| {escaped} | end |\n")
    assert [only_text(cell) for cell in cells] == ["a", "b", visible(text), "end"]
    tokens = PARSER.parse(f"# {escaped}\n\n{escaped}\n\nSee {escaped}.\n")
    assert {token.type for token in tokens} <= {
        "heading_open", "heading_close", "paragraph_open", "paragraph_close", "inline"
    }  # fmt: skip
    assert only_text(inline(f"# {escaped}\n")[0]) == visible(text)
    assert unescape(escaped) == visible(text)


@given(TEXTS)
@fuzz
def test_any_name_is_shown_as_code_or_text_and_comes_back(text: str) -> None:
    cells = inline(f"| a | b |\n|---|---|\n| {code(text)} | end |\n")
    assert {kind for kind, _ in cells[2]} <= {"text", "text_special", "code_inline"}
    assert "".join(content for _, content in cells[2]).strip() == visible(text)
    assert unescape(code(text)) == visible(text)


@given(TEXTS)
@fuzz
def test_any_text_is_the_literal_that_python_reads_back(text: str) -> None:
    literal = python_literal(text)
    assert ast.literal_eval(literal) == text
    assert literal.isprintable()
    (block,) = [token for token in PARSER.parse(f"```python\nload({literal})\n```\n") if token.type != "inline"]
    assert block.content == f"load({literal})\n"


@given(TEXTS)
@fuzz
def test_no_line_of_a_text_closes_the_fence_around_it(text: str) -> None:
    (block,) = PARSER.parse(fenced(text, "bibtex"))
    assert (block.type, block.info) == ("fence", "bibtex")


@pytest.mark.parametrize(
    ("text", "markdown"),
    [
        ("learning_rate", "learning_rate"),
        ("2e-05", "2e-05"),
        ("-1.5", "-1.5"),
        ("a | b", r"a \| b"),
        ("<b>", "&lt;b&gt;"),
        ("C# and #1", r"C# and \#1"),
        ("me@example.org", r"me\@example.org"),
        ("AT&T", "AT&amp;T"),
        ("[x](javascript:y)", r"\[x\]\(javascript:y)"),
        (Markdown("**ours**"), "**ours**"),
    ],
)
def test_what_needs_no_escape_has_none(text: str, markdown: str) -> None:
    assert escape(text) == markdown
