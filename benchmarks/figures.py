"""
Measured figures in the texts, each from a key of a committed result. `figures.txt` says which from which.

    python benchmarks/figures.py            # names every figure that is not what its result says
    python benchmarks/figures.py --write    # writes them into the texts, after a benchmark ran again

`figures.txt` has blocks of three kinds. A snippet is text as it stands in the page, its figures in braces, however
its lines are broken there; below it stands, indented, one expression a figure. `EXPRESSION for a b` stands for two,
`{}` replaced. Where the figure is a share in %, the expression says so with `100 *`.

    == docs/page.md: result            figures of benchmarks/results/result.json
    == docs/page.md: made by FILE      figures that a test or script of the repository prints
    == docs/page.md: not committed     figures without a source; the page says "not committed"
    == docs/page.md: no measurement    settings, limits and mathematics; the reason stands below

A result that is not there yet counts as not committed.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from decimal import ROUND_HALF_EVEN, Decimal
from functools import cache, partial
from statistics import fmean
from typing import Any

from measured import HERE, RESULTS, ROOT

TABLE = HERE / "figures.txt"
FIGURE = re.compile(r"\{([^{}]+)\}")
DATE = re.compile(r"\d{4}-\d\d-\d\d")


@dataclass(frozen=True)
class Entry:
    """A snippet of a text with its figures, and where they come from."""

    text: str  # path from the root
    source: str  # name of a result, "made by FILE" or "no measurement"
    snippet: str  # one line, figures in braces
    lines: tuple[str, ...]  # as they stand below it

    @property
    def figures(self) -> list[str]:
        """The figures as the text shows them."""
        return FIGURE.findall(self.snippet)

    @property
    def pattern(self) -> re.Pattern[str]:
        """The snippet wherever its lines are broken, a group a figure."""
        words = [FIGURE.split(word) for word in self.snippet.split()]  # text and figure in turn
        parts = ["".join(f"({re.escape(p)})" if i % 2 else re.escape(p) for i, p in enumerate(word)) for word in words]
        return re.compile(r"\s+".join(parts))

    @property
    def expressions(self) -> list[str]:
        """One a figure."""
        each = []
        for line in self.lines:
            expression, _, values = line.rpartition(" for ")
            each += [expression.replace("{}", value) for value in values.split()] if "{}" in line else [line]
        return each

    @property
    def result(self) -> str | None:
        """Name of the result, for measured figures."""
        return self.source if (RESULTS / f"{self.source}.json").exists() else None


def entries() -> list[Entry]:
    """The blocks of `figures.txt`."""
    blocks: list[Entry] = []
    text = source = ""
    for line in TABLE.read_text(encoding="utf-8").splitlines():
        if line.startswith("== "):
            text, _, source = line[3:].partition(": ")
        elif line.startswith("    "):
            blocks[-1] = replace(blocks[-1], lines=(*blocks[-1].lines, line.strip()))
        elif line.strip() and not line.startswith("# "):
            blocks.append(Entry(text, source, line.strip(), ()))
    return blocks


class Rows:
    """What an expression can name: `h` the headline, `result`, and `values`, `mean`, `groups`, `points` over rows."""

    def __init__(self, result: dict[str, Any]) -> None:
        self.result = result

    def values(self, path: str, of: str = "rows", **columns: Any) -> list[float]:
        """A key of the rows with these values; dots go down."""
        rows = [row for row in self.result[of] if all(row[key] == value for key, value in columns.items())]
        if not rows:
            raise ValueError(f"no row with {columns}")
        values = []
        for row in rows:
            value: Any = row
            for key in path.split("."):
                value = value[key]
            values.append(value)
        return values

    def groups(self, *keys: str) -> list[tuple[tuple[Any, ...], Callable[[str], float]]]:
        """The rows by their values of `keys`: those, and a function that gives the group's mean of a path."""
        names = sorted({tuple(row[key] for key in keys) for row in self.result["rows"]})
        means = [partial(self.mean, **dict(zip(keys, values, strict=True))) for values in names]
        return list(zip(names, means, strict=True))

    def mean(self, path: str, of: str = "rows", **columns: Any) -> float:
        """Mean over rows."""
        return fmean(self.values(path, of, **columns))

    def points(self, arm: str, task: str, column: str, leaked: str = "01") -> float:
        """nDCG in points: mean over seeds and queries of `rare_retrieval`, of those whose flag is in `leaked`."""
        rows = [row for row in self.result["rows"] if (row["arm"], row["task"]) == (arm, task)]
        pairs = [pair for row in rows for pair in zip(row[column].split(), row["leaked"], strict=True)]
        return fmean(int(value) for value, flag in pairs if flag in leaked) / 100

    def names(self) -> dict[str, Any]:
        """Names of an expression."""
        functions = {name: getattr(self, name) for name in ("values", "groups", "mean", "points", "result")}
        return functions | {"h": self.result["headline"], "fmean": fmean}


@cache
def _rows_of(name: str) -> Rows:
    return Rows(json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8")))


def value_of(name: str, expression: str) -> Any:
    """What an expression of `figures.txt`, a file of ours, says of a result."""
    rows = _rows_of(name)
    built_in = {"abs": abs, "max": max, "min": min, "len": len, "sum": sum, "zip": zip, "sorted": sorted, "set": set}
    return eval(expression, {"__builtins__": built_in, **rows.names()})


def shown_as(figure: str, value: Any) -> str:
    """The value, written as the figure is: its decimals, its sign, its commas."""
    if isinstance(value, str):
        return value
    decimals = len(figure.partition(".")[2])
    # Results hold rounded numbers: 11.275 is no half-way case but something near it.
    number = Decimal(repr(float(value))).quantize(Decimal(1).scaleb(-decimals), ROUND_HALF_EVEN)
    text = f"{number:+,}" if figure.startswith("+") or (figure.startswith("-") and number > 0) else f"{number:,}"
    return text if "," in figure or abs(number) < 1000 else text.replace(",", "")


def agrees(figure: str, value: Any) -> bool:
    """Whether the figure is the value, rounded to its decimals; a half may go either way."""
    if isinstance(value, str):
        return figure == value
    decimals = len(figure.partition(".")[2])
    return abs(float(figure.replace(",", "")) - float(value)) <= 0.5001 * 10.0**-decimals


def faults() -> Iterator[str]:
    """A sentence for every figure that is not what its result says, and for every snippet that is in no text."""
    for entry in entries():
        text = (ROOT / entry.text).read_text(encoding="utf-8")
        if not entry.pattern.search(text):
            yield f"{entry.text} does not hold: {entry.snippet}"
        if not entry.result:
            continue
        expressions = entry.expressions
        if len(expressions) != len(entry.figures):
            yield f"{entry.text}: {len(entry.figures)} figures, {len(expressions)} expressions: {entry.snippet}"
            continue
        for figure, expression in zip(entry.figures, expressions, strict=True):
            value = value_of(entry.result, expression)
            if not agrees(figure, value):
                yield f"{entry.text} shows {figure}, {entry.result} has {value}: {expression}\n    in: {entry.snippet}"


def write() -> None:
    """Bring figures of texts and table to what the results say."""
    table = TABLE.read_text(encoding="utf-8")
    for entry in entries():
        if not entry.result:
            continue
        path = ROOT / entry.text
        text = path.read_text(encoding="utf-8")
        values = [value_of(entry.result, expression) for expression in entry.expressions]
        numbers = [f if agrees(f, v) else shown_as(f, v) for f, v in zip(entry.figures, values, strict=True)]
        place = entry.pattern.search(text)
        if numbers == entry.figures or place is None:
            continue
        for group in range(len(numbers), 0, -1):  # from the end: positions before it stay true
            start, end = place.span(group)
            text = text[:start] + numbers[group - 1] + text[end:]
        path.write_text(text, encoding="utf-8")
        words = FIGURE.split(entry.snippet)
        words[1::2] = ["{" + figure + "}" for figure in numbers]
        snippet = "".join(words)
        table = table.replace(f"\n{entry.snippet}\n", f"\n{snippet}\n")
        print(f"{entry.text}: {snippet}")
    TABLE.write_text(table, encoding="utf-8")


# --- coverage ------------------------------------------------------------------------------------------------------

LOOKS_MEASURED = re.compile(
    rf"{DATE.pattern}"
    r"|(?<![\w./])[+-]?\d[\d,]*\.\d+(?![\w.]*\d)"
    r"|(?<![\w.,-])[+-]?\d[\d,]*(?=\s?(?:%|times\b|points\b|MB|GB|MiB|GiB|ms\b|s\b|seconds\b|minutes\b|hours\b))"
)
NOT_PROSE = (
    re.compile(r"```.*?```", re.S),
    re.compile(r"(?m)^    \S.*$"),
    re.compile(r"`[^`\n]*`"),
    re.compile(r"arXiv \d+\.\d+"),
    re.compile(r"\]\([^)]*\)"),
)


def uncovered(text: str, table: list[Entry]) -> list[str]:
    """Figures of a text that no entry holds, each with its line."""
    prose = text
    for pattern in NOT_PROSE:
        prose = pattern.sub(lambda match: re.sub(r"\S", "\0", match[0]), prose)
    places: set[int] = set()
    for entry in table:
        for place in entry.pattern.finditer(text):
            for group in range(1, len(entry.figures) + 1):
                places.update(range(*place.span(group)))
    sourceless = []
    for match in LOOKS_MEASURED.finditer(prose):
        if not places & set(range(*match.span())):
            line = text[text.rfind("\n", 0, match.start()) + 1 : text.find("\n", match.end())]
            sourceless.append(f"{match[0]} in: {line.strip()}")
    return sourceless


def main() -> None:
    """Compare, or write."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--write", action="store_true", help="Write the results' figures into the texts.")
    if options.parse_args().write:
        write()
    sentences = list(faults())
    print("\n".join(sentences) or "Every figure is what its result says.")
    sys.exit(bool(sentences))


if __name__ == "__main__":
    main()
