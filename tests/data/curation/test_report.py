"""The report of a curation: its figures are those of the counts, and nothing in the data becomes markup."""

from __future__ import annotations

import json
from html.parser import HTMLParser

import numpy as np
import pytest

from hf_ext.data.curation.counts import CurationCounts, RuleCounts, SourceCounts, StepCounts
from hf_ext.data.curation.report import CurationReport, DropExample, SampleFacts
from hf_ext.data.curation.report_page import histogram_chart
from hf_ext.data.curation.steps import Rule

HOSTILE = [
    "</script><script>alert(1)</script>", "<img src=x onerror=alert(1)>", "a|b`c*d_e_[x](http://e.vil)", "\u202egnp.e",
    "tab\there\r\nnew\x00line\x1b[31m", "&lt;b&gt; &#60;", "{{ 7 * 7 }} {% raw %}", "\ud800 half", "-->]]><style>*{}",
    "' onmouseover='x\" style=\"y", "# heading @someone $x^2$ ~~gone~~",
]  # fmt: skip


def rule_counts(rule: Rule, values: list[float], alone: int = 0) -> RuleCounts:
    counts = RuleCounts(rule, int(rule.broken_by(np.array(values)).sum()), alone)
    counts.values.add(np.array(values))
    return counts


def counts_of(step: str = "quality", rule: str = "word_count", sources: dict | None = None) -> CurationCounts:
    """100 documents read, 5 broken, of the others 19 dropped by words, 1 by symbols; 4,000 of 5,000 words stay."""
    words = rule_counts(Rule(rule, minimum=50.0), [10.0] * 10 + [45.0] * 9 + [60.0] * 6 + [200.0] * 70, alone=18)
    symbols = rule_counts(Rule("symbol_ratio", maximum=0.1), [0.02] * 93 + [0.12, 0.2])
    symbols.num_dropped = 1
    steps = [
        StepCounts("read", 100, 95, None, 5000, 0.5, {"empty": RuleCounts(Rule("empty"), 5, 5)}),
        StepCounts(step, 95, 75, 5000, 4000, 0.25, {rule: words, "symbol_ratio": symbols}),
    ]
    return CurationCounts("words", steps, sources or {}, peak_bytes=300 * 2**20)


def table(report: CurationReport, title: str) -> list[list[str]]:
    return next(table.rows for table in report.tables() if table.title == title)


def test_rows_tokens_and_speed_after_each_step_are_the_counts():
    assert table(CurationReport(counts_of()), "Steps") == [
        ["read", "5", "95", "95.0%", "5,000", "100.0%", "200"],
        ["quality", "20", "75", "75.0%", "4,000", "80.0%", "380"],
    ]
    summary = dict(CurationReport(counts_of()).summary())
    assert summary["documents kept"] == "75 (75.0%)"
    assert summary["words kept"] == "4,000 (80.0%)"
    assert summary["most memory of a process"] == "300 MiB"


def test_each_rule_has_its_bound_its_drops_and_those_that_no_other_drops():
    assert table(CurationReport(counts_of()), "Rules") == [
        ["read", "empty", "", "5", "5"],
        ["quality", "word_count", "at least 50", "19", "18"],
        ["quality", "symbol_ratio", "at most 0.1", "1", "0"],
    ]


def test_the_counts_at_other_bounds_are_those_of_the_values():
    values = np.array([10.0] * 10 + [45.0] * 9 + [60.0] * 6 + [200.0] * 70)
    row = table(CurationReport(counts_of()), "Other bounds")[0]
    at = lambda bound: int((values < bound).sum())  # noqa: E731
    assert row == [
        "quality", "word_count", f"{at(50)} (min 50)", f"{at(25)} (25)", f"{at(40)} (40)", f"{at(62)} (62)",
        f"{at(100)} (100)",
    ]  # fmt: skip


def test_a_step_that_takes_nine_tenths_is_warned_of_and_one_that_takes_less_is_not():
    counts = counts_of()
    assert CurationReport(counts).warnings() == []
    counts.steps[1].rows_out = 10
    assert CurationReport(counts).warnings() == []
    counts.steps[1].rows_out = 9
    (warning,) = CurationReport(counts).warnings()
    assert warning.startswith("quality drops 86 of the 95 documents that come to it, most of them by word_count (19)")


def test_a_source_that_loses_most_of_its_rows_to_a_step_is_named():
    sources = {
        "forum": SourceCounts(40, {"quality": 21}), "wiki": SourceCounts(40, {"quality": 20}),
        "tiny": SourceCounts(10, {"quality": 10}),
    }  # fmt: skip
    report = CurationReport(counts_of(sources=sources))
    assert report.warnings() == ["quality drops 21 of the 40 documents of forum."]
    assert table(report, "Sources")[0] == ["forum", "quality", "21", "40", "47.5%"]


def test_a_histogram_counts_every_document_once_and_parts_them_at_the_bound():
    rule = Rule("x", maximum=0.3)
    counts = RuleCounts(rule)
    values = np.concatenate([np.zeros(50), np.linspace(0, 1, 101)])
    counts.values.add(values)
    chart = histogram_chart("x", counts)
    heights = {
        is_beyond: sum(bar.height**2 for bar in chart.bars if bar.is_beyond == is_beyond) for is_beyond in (0, 1)
    }
    assert heights[1] / sum(heights.values()) == pytest.approx(rule.broken_by(values).mean())
    (place, label) = chart.bounds[0]
    assert label == "0.3"
    assert all(bar.left + bar.width >= place - 1e-9 for bar in chart.bars if bar.is_beyond)
    assert all(bar.left >= 0 and bar.left + bar.width <= 100 + 1e-9 and 0 < bar.height <= 100 for bar in chart.bars)


@pytest.mark.parametrize("values", [[0.0], [5.0] * 3, [-1e12, 1e12], [float("inf"), 1.0], [1e-9, 3.0], [float("nan")]])
@pytest.mark.parametrize("rule", [Rule("r", minimum=0.0), Rule("r", maximum=5.0), Rule("r", 1.0, 100000.0)])
def test_a_histogram_of_odd_values_is_drawn_inside_its_chart(values, rule):
    chart = histogram_chart("r", rule_counts(rule, values))
    if np.isnan(values).all() or len(set(values)) == 1:
        assert chart is None
    else:
        assert all(0 <= bar.left <= 100 and 0 < bar.height <= 100 for bar in chart.bars)
        assert all(0 <= place <= 100 for place, _ in chart.bounds)


class Elements(HTMLParser):
    """The elements and attributes of a page, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, list]] = []
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.elements.append((tag, attrs))

    def handle_data(self, data: str) -> None:
        self.text += data


def hostile_report(text: str) -> CurationReport:
    """Step, rule, source, id and excerpt are all `text`."""
    sources = {text: SourceCounts(40, {text: 30})}
    examples = [DropExample(text, text, text, 1.0, 50.0, text)]
    return CurationReport(
        counts_of(text, text, sources), examples, SampleFacts(100, 3, 0, 10**6, 7e4, {text: 2**30}), [text]
    )


@pytest.mark.parametrize("text", HOSTILE)
def test_no_element_of_the_page_is_made_by_data(text):
    harmless, hostile = (Elements(hostile_report(name).to_html()) for name in ("plain", text))
    assert hostile.elements == harmless.elements
    assert not {"script", "img", "a", "link", "iframe", "object"} & {tag for tag, _ in hostile.elements}
    assert not [name for _, attrs in hostile.elements for name, _ in attrs if name.startswith("on") or name == "href"]
    letters = [letter for letter in text if letter.isalnum()]
    assert "".join(letters) in "".join(letter for letter in hostile.text if letter.isalnum())
    assert not {"\u202e", "\x00", "\x1b"} & set(hostile.text)


@pytest.mark.parametrize("text", HOSTILE)
def test_no_markup_of_the_markdown_is_made_by_data(text):
    markdown_it = pytest.importorskip("markdown_it")
    parser = markdown_it.MarkdownIt("commonmark").enable("table").enable("strikethrough")
    harmless, hostile = (parser.parse(hostile_report(name).to_markdown()) for name in ("plain", text))
    kinds = [
        [token.type for block in blocks for token in [block, *(block.children or [])]]
        for blocks in (harmless, hostile)
    ]
    assert kinds[0] == kinds[1]


@pytest.mark.parametrize("text", ["plain", *HOSTILE])
def test_a_saved_report_is_read_back_and_one_to_publish_has_no_text_of_what_was_dropped(tmp_path, text):
    report = hostile_report(text)
    report.save(tmp_path / "report", plot=False)
    again = CurationReport.load(tmp_path / "report")
    assert again.to_dict() == json.loads(json.dumps(report.to_dict()).replace(r"\ud800", r"\ufffd"))
    public = CurationReport(counts_of(), [DropExample("id7", "quality", "word_count", 1.0, 50.0, "secret text")])
    for name, content in public.without_dropped_rows().files().items():
        assert "secret text" not in content, name
        assert "id7" not in content, name


def test_the_plot_is_drawn_for_counts_with_and_without_tokens(tmp_path):
    counts = counts_of(step="$x$")
    CurationReport(counts).save(tmp_path / "a")
    for step in counts.steps:
        step.tokens_in = step.tokens_out = None
    CurationReport(counts).save(tmp_path / "b")
    for name in ("a", "b"):
        assert {path.suffix for path in (tmp_path / name).iterdir()} == {".json", ".md", ".html", ".svg", ".png"}


def test_counts_of_nothing_give_a_report():
    for counts in (CurationCounts(), CurationCounts("words", [StepCounts("read")])):
        report = CurationReport(counts)
        assert "documents kept" in report.to_markdown()
        assert Elements(report.to_html()).elements
