"""Text of models, datasets and labels in Markdown: shown as it is, and no markup of its own. Imports nothing heavy."""

from __future__ import annotations

import html
import re
import unicodedata

__all__ = ["Markdown", "code", "escape", "fenced", "one_line", "python_literal", "unescape", "well_formed"]

# A tab, and the joiners of Persian, Indic scripts and emoji. All else of their kind cannot be seen, or turns the line.
_VISIBLE_CONTROLS = "\t\u200c\u200d"
_CONTROL = {"Cc", "Cf"}
_SPECIAL = re.compile(
    r"[\\`*~$|\[\]]"  # always
    r"|(?<![^\W_])_|_(?![^\W_])"  # an underscore inside a word is no emphasis
    r"|(?<=\])\("
    r"|@(?=\w)"  # a mention, an address
    r"|(?:(?<=\s)|^)#"  # a heading, or the end of one
    r"|^[-+=](?=\s|$|[-+=])"  # a list, a line
    r"|(?<=^\d)[.)](?=\s|$)|(?<=^\d\d)[.)](?=\s|$)"
)
_PLAIN = re.compile(r"[\w /.,:;=@%+\-()]+")


class Markdown(str):
    """Markdown that we wrote: [`escape`] leaves it as it is."""

    __slots__ = ()


def escape(value: object) -> str:
    """
    A value as one line of Markdown that shows its text: no element, link, heading, mention, cell or code of its own.

    Args:
        value (`object`):
            Text, or what `str` makes text of. Control characters and marks that turn the direction are left out.

    Returns:
        `str`: to stand anywhere in a line, a table's cell included. [`Markdown`] is returned as it is.
    """
    if isinstance(value, Markdown):
        return value
    text = one_line(str(value))
    text = re.sub(r"&(?=[#\w])", "&amp;", text)
    text = _SPECIAL.sub(lambda match: f"\\{match[0]}", text)
    return Markdown(text.replace("<", "&lt;").replace(">", "&gt;"))


def unescape(text: str) -> str:
    """
    The text that [`escape`] made into Markdown, or that [`code`] did.

    Args:
        text (`str`):
            Of a cell or a heading.

    Returns:
        `str`: one line.
    """
    if re.fullmatch(r"`[^`]+`", text):
        return text[1:-1]
    parts = re.split(r"\\([!-/:-@\[-`{-~])", text)  # an entity behind a backslash is none
    return "".join(part if i % 2 else html.unescape(part) for i, part in enumerate(parts))


def code(value: object) -> str:
    """
    A name as a span of code where it is made of plain characters, else escaped text.

    Args:
        value (`object`):
            A name, such as that of a setting or a column.

    Returns:
        `str`: one line of Markdown.
    """
    text = one_line(str(value))
    return Markdown(f"`{text}`" if _PLAIN.fullmatch(text) else escape(text))


def python_literal(value: object) -> str:
    """
    A text as a literal of Python in double quotes that means the same, on one line, every character visible.

    Args:
        value (`object`):
            A text, such as a model's name.

    Returns:
        `str`: Python, and safe in a fenced block of Markdown.
    """
    letters = []
    for letter in str(value):
        if letter in '"\\':
            letters.append(f"\\{letter}")
        elif letter.isprintable() and letter not in "<`":
            letters.append(letter)
        else:
            number = ord(letter)
            form = f"\\x{number:02x}" if number < 256 else f"\\u{number:04x}"
            letters.append(form if number < 65_536 else f"\\U{number:08x}")
    return Markdown(f'"{"".join(letters)}"')


def fenced(text: str, language: str = "") -> str:
    """
    A block of code whose fence no line of the text can close.

    Args:
        text (`str`):
            Some lines.
        language (`str`, *optional*):
            Its name, for colours.

    Returns:
        `str`: some lines of Markdown.
    """
    runs = [len(run) for run in re.findall(r"`+", text)]
    fence = "`" * max(3, 1 + max(runs, default=0))
    lines = "\n".join(one_line(line, squeeze=False) for line in text.splitlines())
    return Markdown(f"{fence}{language}\n{lines}\n{fence}")


def well_formed(text: str) -> str:
    """
    Text that every file of text can hold: half a surrogate pair becomes U+FFFD, and NUL goes.

    Args:
        text (`str`):
            Any.

    Returns:
        `str`: the text.
    """
    return re.sub("[\ud800-\udfff]", "\ufffd", text).replace("\0", "")


def one_line(text: str, squeeze: bool = True) -> str:
    """
    Text without line ends, and without characters that cannot be seen or that turn the direction of a line.

    Args:
        text (`str`):
            Any.
        squeeze (`bool`, *optional*, defaults to `True`):
            Whether runs of white space become one space.

    Returns:
        `str`: one line; no markup is escaped in it.
    """
    text = well_formed(text)
    if not squeeze:
        return "".join(filter(_is_visible, text))
    return " ".join("".join(filter(_is_visible, " ".join(text.split()))).split())


def _is_visible(letter: str) -> bool:
    return letter in _VISIBLE_CONTROLS or unicodedata.category(letter) not in _CONTROL
