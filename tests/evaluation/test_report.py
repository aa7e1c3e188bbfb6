"""Table, plot files and card entries of a report whose numbers are known."""

from __future__ import annotations

import logging
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from hf_ext.evaluation.intervals import Estimate
from hf_ext.evaluation.report import ForgettingReport, RunResult
from hf_ext.guards import reports


def _estimate(mean: float, half: float | None = 0.01) -> Estimate:
    return Estimate(mean, half, 50, 1200)


def _run(name: str, target: float, kl: float | None = None, general: float = 2.1) -> RunResult:
    start = name == "original"
    return RunResult(
        name=name,
        target_loss=_estimate(target, 0.03),
        target_change=None if start else _estimate(target - 2.467, 0.012),
        kl_original_to_new=None if kl is None else _estimate(kl, 0.08 * kl),
        general_loss=_estimate(general),
        general_change=None if start else _estimate(general - 2.078),
        group_loss={"hard=False": _estimate(target - 0.2), "hard=True": _estimate(target + 0.6)},
    )


@pytest.fixture
def report() -> ForgettingReport:
    runs = [
        _run("SFT", 2.164, 0.327, 2.352),
        _run("FLOW", 2.165, 0.328, 2.352),
        _run("context-free", 2.243, 0.064, 2.110),
        _run("both | λ=1", 2.244, 0.063, 2.109),
    ]
    return ForgettingReport(_run("original", 2.467, None, 2.078), runs, {"unit": "nats per token"})


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").replace("\\|", "¦").split("|")]


def test_table_has_a_row_a_run_a_unit_a_column_and_the_numbers(report: ForgettingReport) -> None:
    lines = report.to_markdown().splitlines()
    header, rows = _cells(lines[0]), [_cells(line) for line in lines[2:7]]
    assert all(len(row) == len(header) == len(_cells(lines[1])) for row in rows)
    assert all("nats/token" in title for title in header[1:])
    assert [row[0] for row in rows] == ["original", "SFT", "FLOW", "context-free", "both ¦ λ=1"]
    table = {row[0]: dict(zip(header, row, strict=True)) for row in rows}
    assert table["SFT"]["target loss (nats/token)"] == "2.1640 ± 0.0300"
    assert table["SFT"]["change of target loss (nats/token)"] == "-0.3030 ± 0.0120"
    assert table["context-free"]["KL(original‖new) (nats/token)"].startswith("0.0640")
    assert table["original"]["KL(original‖new) (nats/token)"] == ""
    assert table["FLOW"]["target loss, hard=True (nats/token)"].startswith("2.7650")
    assert "50 fresh context-free samples" in report.to_markdown()


def test_columns_that_were_not_measured_are_left_out() -> None:
    only_kl = ForgettingReport(RunResult("original"), [RunResult("new", kl_original_to_new=_estimate(0.1, None))])
    header, _, *rows = only_kl.to_markdown().splitlines()
    assert _cells(header) == ["run", "KL(original‖new) (nats/token)"]
    assert _cells(rows[1]) == ["new", "0.1000"]


def test_saved_report_loads_back_and_the_plots_are_images(tmp_path: Path, report: ForgettingReport) -> None:
    pytest.importorskip("matplotlib")
    folder = report.save(tmp_path / "deep" / "report")
    assert ForgettingReport.load(folder) == report
    assert (folder / "forgetting.md").read_text(encoding="utf-8") == report.to_markdown()
    assert (folder / "forgetting.png").read_bytes().startswith(b"\x89PNG")
    assert ElementTree.parse(folder / "forgetting.svg").getroot().tag.endswith("svg")


def test_plot_names_every_run_once_without_overlap(report: ForgettingReport) -> None:
    pytest.importorskip("matplotlib")
    figure = report.plot()
    figure.draw_without_rendering()
    texts = figure.axes[0].texts
    assert sorted(text.get_text() for text in texts) == sorted(["original", *[run.name for run in report.runs]])
    boxes = [text.get_window_extent() for text in texts]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_missing_matplotlib_warns_with_the_install_line_and_keeps_the_rest(
    tmp_path: Path, report: ForgettingReport, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(reports, "find_spec", lambda name: None)
    with caplog.at_level(logging.WARNING):
        report.save(tmp_path)
    assert 'pip install "hf-ext[plots]"' in caplog.text
    assert {path.name for path in tmp_path.iterdir()} == {"forgetting.json", "forgetting.md"}


def test_a_report_with_nothing_to_plot_against_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    report = ForgettingReport(
        RunResult("original", target_loss=_estimate(2.0)), [RunResult("new", target_loss=_estimate(1.0))]
    )
    report.save(tmp_path)
    assert "it needs target and one of" in caplog.text
    with pytest.raises(ValueError, match="needs target"):
        report.plot()


def test_card_entries_hold_the_runs_numbers(report: ForgettingReport) -> None:
    values = {result.metric_type: result.metric_value for result in report.eval_results("context-free")}
    assert values["target_loss"] == pytest.approx(2.243)
    assert values["kl_original_to_new"] == pytest.approx(0.064)
    assert values["general_change"] == pytest.approx(0.032)
    with pytest.raises(ValueError, match="name one of them"):
        report.eval_results()


def test_a_report_written_with_the_key_arms_is_read_without_a_word(
    report: ForgettingReport, recwarn: pytest.WarningsRecorder
) -> None:
    values = report.to_dict()
    values["arms"] = values.pop("runs")
    assert ForgettingReport.from_dict(values) == report
    assert not recwarn.list


def test_the_names_with_arm_work_and_give_the_new_ones(report: ForgettingReport) -> None:
    with pytest.warns(FutureWarning, match=r"ForgettingReport\.arms is now called runs"):
        assert report.arms is report.runs
    with pytest.warns(FutureWarning, match=r"ForgettingReport\.arm is now called run"):
        assert report.arm("FLOW") is report.runs[1]
    with pytest.warns(FutureWarning, match=r"eval_results\(arm=\.\.\.\) is now called run="):
        assert report.eval_results(arm="FLOW") == report.eval_results(run="FLOW")
    with pytest.raises(TypeError, match="two names of one argument"):
        report.eval_results(arm="SFT", run="FLOW")
