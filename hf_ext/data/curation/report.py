"""The report of a curation: what is left after each step, what each rule took, and what may be wrong with that."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_ext.data.curation.counts import CurationCounts, StepCounts
from hf_ext.data.curation.report_page import Chart, Table, histogram_chart, render_page
from hf_ext.data.curation.steps import Rule
from hf_ext.guards.markdown import escape
from hf_ext.guards.reports import SavedReport, markdown_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["CurationReport", "DropExample", "SampleFacts"]

MOST_OF_A_STEP = 0.9  # a step that takes this share of the rows that come to it is warned of
MOST_OF_A_SOURCE = 0.5  # and one that takes more than this share of a source's rows
FEWEST_ROWS = 20  # of a step or a source, for a warning: of three rows two are no sign of anything
_OTHER_BOUNDS = (0.5, 0.8, 1.25, 2.0)  # times the bound; rounded to two digits, where the counts are exact
_SHOWN_SOURCES = 20
_NAMED_SOURCES = 5


@dataclass(frozen=True)
class DropExample:
    """A document that a step would drop: its id, step, rule, value, bound and the beginning of its text."""

    id: str
    step: str
    rule: str
    value: float | None
    threshold: float | None
    excerpt: str


@dataclass(frozen=True)
class SampleFacts:
    """
    Of a sample, what it says of the whole set.

    Attributes:
        rows, shards (`int`):
            Documents in the sample, and the files they are from.
        seed (`int`):
            Of the draw.
        rows_of_set (`int`, *optional*):
            Documents in the whole set: counted, or reckoned from the bytes that the sample was read from.
        seconds (`float`, *optional*):
            Expected for the whole set, of one process.
        bloom_bytes (`dict[str, int]`):
            Expected memory of each step that keeps a Bloom filter.
    """

    rows: int
    shards: int
    seed: int
    rows_of_set: int | None = None
    seconds: float | None = None
    bloom_bytes: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class CurationReport(SavedReport):
    """
    What a curation did, or would do.

    Attributes:
        counts ([`CurationCounts`]):
            Rows, tokens, drops, measurements and times.
        examples (`list[DropExample]`):
            Of a dry run; left out of what is pushed.
        sample ([`SampleFacts`], *optional*):
            Of a dry run: what was drawn, and what it says of the whole set.
        notes (`list[str]`):
            What was done that was not asked for.
    """

    counts: CurationCounts
    examples: list[DropExample] = field(default_factory=list)
    sample: SampleFacts | None = None
    notes: list[str] = field(default_factory=list)

    file_name = "curation"
    plot_size = (9.0, 5.0)

    @classmethod
    def of_folder(cls, folder: str | Path) -> CurationReport:
        """
        The report of a folder that `curate` wrote.

        Raises:
            FileNotFoundError: if it holds no counts.
            ValueError: if the counts are damaged.
        """
        return cls(CurationCounts.read(folder))

    @property
    def follows_paper(self) -> bool:
        """Whether rules of the method's paper were among the steps."""
        return any(step.name.startswith("gopher_") for step in self.counts.steps)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values that `json` takes; `from_dict` reads it back."""
        return asdict(self) | {"counts": self.counts.to_dict()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> CurationReport:
        """The report that `to_dict` gave."""
        return cls(
            CurationCounts.from_dict(values["counts"]),
            [DropExample(**example) for example in values["examples"]],
            None if values["sample"] is None else SampleFacts(**values["sample"]),
            values["notes"],
        )

    def without_dropped_rows(self) -> CurationReport:
        """The report to publish: no text of a document that was dropped."""
        return replace(self, examples=[])

    def files(self) -> dict[str, str]:
        """What `save` writes beside the plot: JSON, Markdown and the HTML page."""
        return super().files() | {f"{self.file_name}.html": self.to_html()}

    def summary(self) -> list[tuple[str, str]]:
        """The figures of the whole set, name to text, each with its unit."""
        counts = self.counts
        lines = [("documents read", f"{counts.rows_read:,}")]
        if self.sample is not None:
            lines = _sample_lines(self.sample)
        lines.append(("documents kept", f"{counts.rows_kept:,} ({_percent(counts.rows_kept, counts.rows_read)})"))
        tokens_read = self._tokens_read()
        tokens_kept = counts.steps[-1].tokens_out if counts.steps else None
        if tokens_read is not None and tokens_kept is not None:
            lines.append((f"{counts.unit} kept", f"{tokens_kept:,} ({_percent(tokens_kept, tokens_read)})"))
        seconds = sum(step.seconds for step in counts.steps)
        lines.append(("time in the steps, all processes together", f"{seconds:,.1f} s"))
        if counts.peak_bytes:
            lines.append(("most memory of a process", f"{counts.peak_bytes / 2**20:,.0f} MiB"))
        return lines

    def warnings(self) -> list[str]:
        """What a reader should look at: a step that takes nearly all, or most of one source."""
        return [*self._greedy_steps(), *self._one_sided_steps(), *self.notes]

    def to_markdown(self) -> str:
        """The report as Markdown: figures of the whole set, warnings, and the tables."""
        parts = [markdown_table(["what", "value"], self.summary())]
        parts += [f"> **{escape(warning)}**" for warning in self.warnings()]
        for table in self.tables():
            numbers = range(table.num_texts, len(table.names))
            parts.append(f"### {table.title}\n\n" + markdown_table(table.names, table.rows, numbers=numbers))
            parts += [table.note] if table.note else []
        return "\n\n".join(parts) + "\n"

    def to_html(self) -> str:
        """The report as one HTML page that loads nothing; every text of the data is escaped."""
        title = "What a curation would drop" if self.sample is not None else "What a curation dropped"
        funnel = [(step.name, rows, tokens) for step, rows, tokens in self._shares()]
        charts = [histogram_chart(f"{step}: {counts.rule.name}", counts) for step, counts in self.counts.rules()]
        shown_charts: list[Chart] = [chart for chart in charts if chart is not None]
        unit = self.counts.unit
        return render_page(title, self.summary(), self.warnings(), funnel, unit, self.tables(), shown_charts)

    def tables(self) -> list[Table]:
        """The tables of Markdown and page: steps, rules, other bounds, sources, examples; those with a row."""
        tables = [self._steps_table(), self._rules_table(), self._bounds_table()]
        tables += [self._notes_table(), self._sources_table(), self._examples_table()]
        return [table for table in tables if table.rows]

    # --- the tables --------------------------------------------------------------------------------------------------

    def _steps_table(self) -> Table:
        unit = self.counts.unit
        rows = []
        for step, share, token_share in self._shares():
            speed = _speed(step.rows_in / step.seconds) if step.seconds else ""
            tokens = [_number(step.tokens_out), "" if token_share is None else f"{token_share:.1%}"]
            num_dropped = step.rows_in - step.rows_out
            rows.append([step.name, f"{num_dropped:,}", f"{step.rows_out:,}", f"{share:.1%}", *tokens, speed])
        names = ("step", "dropped", "documents left", "of all", f"{unit} left", "of all", "documents/s")
        return Table("Steps", names, rows, "Documents a second of one process, of those that came to the step.")

    def _rules_table(self) -> Table:
        rows = [
            [step, counts.rule.name, _bounds(counts.rule), f"{counts.num_dropped:,}", f"{counts.num_dropped_alone:,}"]
            for step, counts in self.counts.rules()
            if counts.num_dropped or _bounds(counts.rule)
        ]
        scope = "of all steps" if self.sample is not None else "of its step"
        note = (
            f"A document goes by the first rule that it breaks; 'this rule alone': those that break no other {scope}."
        )
        return Table("Rules", ("step", "rule", "stays", "dropped", "this rule alone"), rows, note, num_texts=3)

    def _bounds_table(self) -> Table:
        rows = []
        for step, counts in self.counts.rules():
            for bound, other_rules in _other_rules(counts.rule):
                cells = [f"{counts.values.num_beyond(rule):,} ({_number(value)})" for value, rule in other_rules]
                current = f"{counts.values.num_beyond(counts.rule):,} ({bound})"
                if any(not cell.startswith("0 ") for cell in (current, *cells)):
                    rows.append([step, counts.rule.name, current, *cells])
        names = ("step", "rule", "beyond the bound", *(f"{factor:g} times it" for factor in _OTHER_BOUNDS))
        scope = "in the sample" if self.sample is not None else "that came to the step"
        note = f"Documents {scope} that are beyond each bound, whatever other rules say. Rows of zeros are left out."
        return Table("Other bounds", names, rows, note, num_texts=2)

    def _notes_table(self) -> Table:
        """What steps over the whole set say of it: sizes of clusters, a filter's rate of errors, a threshold."""
        rows = [
            [step.name, name.replace("_", " "), value if isinstance(value, str) else _number(value)]
            for step in self.counts.steps
            for name, value in step.notes.items()
        ]
        return Table("Of the whole set", ("step", "what", "value"), rows, num_texts=2)

    def _sources_table(self) -> Table:
        sources = sorted(self.counts.sources.items(), key=lambda item: -item[1].rows_read)
        rows = []
        for name, counts in sources[:_SHOWN_SOURCES]:
            step, most = max(counts.drops_by_step.items(), key=lambda item: item[1], default=("", 0))
            num_dropped = sum(counts.drops_by_step.values())
            share = _percent(counts.rows_read - num_dropped, counts.rows_read)
            rows.append([name, step, f"{most:,}" if most else "", f"{counts.rows_read:,}", share])
        more = (
            f"And {len(sources) - len(rows):,} smaller ones; curation.json has them." if sources[len(rows) :] else ""
        )
        names = ("source", "step that takes most", "it takes", "documents", "kept")
        return Table("Sources", names, rows, more, num_texts=2)

    def _examples_table(self) -> Table:
        rows = [
            [
                example.step,
                example.rule,
                example.id,
                example.excerpt,
                _number(example.value),
                _number(example.threshold),
            ]
            for example in self.examples
        ]
        names = ("step", "rule", "id", "beginning of the text", "value", "bound")
        return Table("Examples of what goes", names, rows, num_texts=4)

    # --- figures -----------------------------------------------------------------------------------------------------

    def _tokens_read(self) -> int | None:
        """Tokens of the first step at which there was text: there are none before pages are extracted."""
        numbers = (count for step in self.counts.steps for count in (step.tokens_in, step.tokens_out))
        return next((count for count in numbers if count is not None), None)

    def _shares(self) -> Iterator[tuple[StepCounts, float, float | None]]:
        """Each step with the shares of rows and of tokens left after it."""
        tokens_read = self._tokens_read()
        for step in self.counts.steps:
            tokens = None if step.tokens_out is None else step.tokens_out / max(tokens_read or 0, 1)
            yield step, step.rows_out / max(self.counts.rows_read, 1), tokens

    def _greedy_steps(self) -> Iterator[str]:
        for step in self.counts.steps:
            num_dropped = step.rows_in - step.rows_out
            if step.rows_in >= FEWEST_ROWS and num_dropped >= MOST_OF_A_STEP * step.rows_in:
                rule = max(step.rules.values(), key=lambda counts: counts.num_dropped, default=None)
                by = "" if rule is None else f", most of them by {rule.rule.name} ({rule.num_dropped:,})"
                yield (
                    f"{step.name} drops {num_dropped:,} of the {step.rows_in:,} documents that come to it{by}: look "
                    "at some of them before you go on."
                )

    def _one_sided_steps(self) -> Iterator[str]:
        for step in self.counts.steps:
            losers = [
                f"{counts.drops_by_step[step.name]:,} of the {counts.rows_read:,} documents of {name}"
                for name, counts in self.counts.sources.items()
                if counts.rows_read >= FEWEST_ROWS
                and counts.drops_by_step.get(step.name, 0) > MOST_OF_A_SOURCE * counts.rows_read
            ]
            if losers:
                others = (
                    f" and most of {len(losers) - _NAMED_SOURCES:,} more sources" if losers[_NAMED_SOURCES:] else ""
                )
                yield f"{step.name} drops {', '.join(losers[:_NAMED_SOURCES])}{others}."

    # --- the plot ----------------------------------------------------------------------------------------------------

    def missing_for_plot(self) -> str | None:
        """What a plot needs and the report lacks."""
        return None if self.counts.rows_read else "documents"

    def draw(self, figure: Figure) -> None:
        """Draw the shares of rows and of tokens left after each step, the first step at the top."""
        axes = figure.subplots()
        shares = list(self._shares())
        heights = range(len(shares), 0, -1)
        names = [step.name.replace("$", r"\$") for step, _, _ in shares]  # matplotlib sets what stands between two
        axes.barh([height + 0.18 for height in heights], [rows for _, rows, _ in shares], 0.34, label="documents")
        if self._tokens_read() is not None:
            tokens = [share or 0.0 for _, _, share in shares]
            axes.barh([height - 0.18 for height in heights], tokens, 0.34, color="0.65", label=self.counts.unit)
        axes.set_yticks(list(heights), names)
        axes.set_xlim(0, 1)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        axes.set_xlabel("left after the step, of all that were read")
        figure.legend(*axes.get_legend_handles_labels(), frameon=False, loc="outside upper right", ncols=2)


def _sample_lines(sample: SampleFacts) -> list[tuple[str, str]]:
    files = "one file" if sample.shards == 1 else f"{sample.shards:,} files"
    lines = [("documents in the sample", f"{sample.rows:,}, drawn from {files} (seed {sample.seed})")]
    if sample.rows_of_set is not None:
        lines.append(("documents in the set", f"about {sample.rows_of_set:,}"))
    if sample.seconds is not None:
        lines.append(("expected time for the set, one process", _duration(sample.seconds)))
    sizes = sample.bloom_bytes.items()
    return lines + [(f"expected memory of {step}", f"{max(size / 2**20, 1):,.0f} MiB") for step, size in sizes]


def _bounds(rule: Rule) -> str:
    """What a document must have to stay."""
    words = ("above", "below") if rule.exclusive else ("at least", "at most")
    bounds = zip(words, (rule.minimum, rule.maximum), strict=True)
    return ", ".join(f"{word} {_number(bound)}" for word, bound in bounds if bound is not None)


def _other_rules(rule: Rule) -> Iterator[tuple[str, list[tuple[float, Rule]]]]:
    """Each bound of a rule in words, and other values for it with the rule that has them."""
    for field_name, bound in (("minimum", rule.minimum), ("maximum", rule.maximum)):
        if bound:  # nothing is a multiple of 0
            others = [float(f"{factor * bound:.2g}") for factor in _OTHER_BOUNDS]
            rules = [(value, replace(rule, **{field_name: value})) for value in others]  # type: ignore[arg-type]
            yield f"{field_name[:3]} {_number(bound)}", rules


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.4g}"


def _speed(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"


def _percent(part: int, total: int) -> str:
    return f"{part / total:.1%}" if total else "none"


def _duration(seconds: float) -> str:
    for unit, size in (("days", 86_400.0), ("hours", 3_600.0), ("minutes", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:,.1f} seconds"
