"""The verbs of curation under trouble: killed, without room, in each other's way, with other documents than before."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from functools import partial
from pathlib import Path

import pytest

from hf_ext.cli import main
from hf_ext.data.curation import CurationReport, GopherQuality, sources
from hf_ext.guards.runs import claimed_file, claimed_folder
from tests.data.curation.test_pipeline import comparable, everything
from tests.data.curation.test_resume import killed_at_replacement
from tests.forks import forked
from tests.pages import article, pages

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="forks, signals and limits of POSIX"),
    pytest.mark.timeout(1800),  # a classifier is trained at each of many kills
]

# `{}` stands for a folder: what a verb saves beside its output is its own in every run
VERBS = {
    "curate": "curate --config c.yaml",
    "dedup": "dedup --method exact",
    "classify": "classify --positives good.jsonl --negatives bad.jsonl --save {}.model --keep-share 0.5",
    "decontaminate": "decontaminate --benchmark bench.jsonl --columns text --save-index {}.parquet",
}
DATASET = ["--dataset", "texts.jsonl"]
IN_MAKE_TEST = "decontaminate"  # saves an index, then curates, then reports: every kind of writing
VERBS_TO_TRY = [
    IN_MAKE_TEST, *(pytest.param(verb, marks=pytest.mark.slow) for verb in VERBS if verb != IN_MAKE_TEST)
]  # fmt: skip


@pytest.fixture(autouse=True)
def _documents(tmp_path, monkeypatch):
    """The current directory, with documents, examples of either class, a benchmark and a chain."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("hf_ext.guards.reports.find_spec", lambda name: None)  # no plots: a second each
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sources, "CHUNK_ROWS", 10)
    write("texts.jsonl", [*pages().values()])
    write("good.jsonl", [article(number) for number in range(100, 110)])
    write("bad.jsonl", [f"Buy {number} of these now and here" for number in range(10)])
    write("bench.jsonl", [" ".join(article(number).split()[20:60]) for number in (7, 20)])
    Path("c.yaml").write_text("steps: [{GopherQuality: {min_words: 60}}, ExactDeduplication, LineRules]")


def write(name: str, texts: list[str]) -> None:
    rows = [{"id": f"t{number}", "text": text} for number, text in enumerate(texts)]
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def run(verb: str, output: str, *words: str) -> int:
    command = [*VERBS[verb].format(output).split(), *DATASET, "--output", output, "--id-column", "id"]
    return main(["data", *command, *words])


def result(output: str) -> tuple:
    """Rows, drop ledger, counts and report, without what differs from run to run: times and memory."""
    report = CurationReport.load(Path(output, "report"))
    assert {path.suffix for path in Path(output, "report").iterdir() if path.name[0] != "."} == {
        ".json",
        ".md",
        ".html",
    }
    return *everything(output), comparable(report.counts), report.notes


def names_given(monkeypatch, work) -> int:
    """How many files and folders `work` gives their names."""
    calls = []
    replace = os.replace
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *args, **kwargs: (calls.append(args), replace(*args, **kwargs)))
        assert work() == 0
    return len(calls)


@pytest.mark.parametrize("verb", VERBS_TO_TRY)
def test_killed_at_any_name_it_gives_a_command_ends_as_an_undisturbed_one(verb, monkeypatch):
    assert run(verb, "whole") == 0  # `datasets` has cached what is loaded
    count = names_given(monkeypatch, partial(run, verb, "counted"))
    moments = [random.Random(0).randrange(1, 5), count - 4] if verb == IN_MAKE_TEST else range(1, count + 1)
    for moment in moments:
        output = f"killed-{moment}"

        def work(output=output, moment=moment):
            killed_at_replacement(moment)
            run(verb, output)

        _, status = os.waitpid(forked(work), 0)
        assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL, moment
        assert run(verb, output, "--overwrite") == 0
        assert result(output) == result("whole")


@pytest.mark.skipif(sys.platform != "linux", reason="the workers are forks, which take the planted kill along")
def test_a_worker_that_is_killed_is_one_line_with_the_remedy_and_the_command_again_goes_on(capfd, monkeypatch):
    command_process = os.getpid()
    judge = GopherQuality.judge

    def judge_or_be_killed(step, batch, indices=None):
        if os.getpid() != command_process and 30 in indices:
            os.kill(os.getpid(), signal.SIGKILL)
        return judge(step, batch, indices)

    with monkeypatch.context() as patch:
        patch.setattr(GopherQuality, "judge", judge_or_be_killed)
        assert run("curate", "killed", "--num-proc", "2") == 1
    last_line = capfd.readouterr().err.splitlines()[-1]
    assert last_line.startswith("hf-ext data curate: error: A process was killed, most likely by the system because")
    assert last_line.endswith("run again with a smaller num_proc.")
    chunks = [*Path("killed/.hf-ext-chunks").glob("*/*/rows.parquet")]
    times = [path.stat().st_mtime_ns for path in chunks]
    assert run("curate", "killed") == run("curate", "whole") == 0
    assert chunks
    assert [path.stat().st_mtime_ns for path in chunks] == times
    assert result("killed") == result("whole")


@pytest.mark.parametrize("verb", VERBS_TO_TRY)
def test_without_room_a_command_says_so_in_one_line_and_with_room_it_goes_on(verb):
    resource = pytest.importorskip("resource")
    assert run(verb, "whole") == 0
    sizes = [path.stat().st_size for path in Path().rglob("*") if path.is_file() and "whole" in str(path)]
    limits = sorted({size - 1 for size in sizes if size > 100})
    for limit in limits[:: 5 if verb == IN_MAKE_TEST else 1]:
        output = f"full-{limit}"
        reader, writer = os.pipe()

        def work(output=output, limit=limit, writer=writer):
            sys.stdout = sys.stderr = open(writer, "w", buffering=1)  # noqa: SIM115  a file would be cut, too
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
            os._exit(run(verb, output, "--overwrite"))

        process = forked(work)
        os.close(writer)
        with open(reader) as pipe:
            (line,) = [line for line in pipe.read().splitlines() if "error" in line]
        assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 1, limit
        assert f"hf-ext data {verb}: error: No room to write the " in line
        assert "run again" in line
        assert run(verb, output, "--overwrite") == 0
        assert result(output) == result("whole")


@pytest.mark.parametrize("verb", VERBS)
def test_a_place_that_holds_something_else_or_cannot_be_written_is_refused_and_left_alone(verb, capsys):
    Path("other").mkdir()
    Path("other/thesis.tex").write_text("mine")
    Path("file").write_text("mine")
    for output, words in (
        ("other", "other is not empty and holds no manifest.json, which says what a run was begun with, but 'thesis"),
        ("file", "--output 'file' is a file, and a folder is to be written; name another"),
        ("file/x", "Cannot write file/x (Not a directory: file/x)"),
        ("/proc/x", "Cannot write /proc/x"),
        (".", "--output '.' names no file or folder"),
        ("texts.jsonl", "--output 'texts.jsonl' is the --dataset 'texts.jsonl' itself"),
    ):
        assert run(verb, output, "--overwrite") == 2
        assert words in capsys.readouterr().err
    assert Path("other/thesis.tex").read_text() == Path("file").read_text() == "mine"
    assert sorted(path.name for path in Path("other").iterdir()) == ["thesis.tex"]
    # no classifier was trained, and no index made, for nothing
    assert not {path.name for path in Path().iterdir()} - {
        *("other", "file", "cache", "c.yaml", "texts.jsonl", "good.jsonl", "bad.jsonl", "bench.jsonl"),
    }


@pytest.mark.parametrize(
    ("claim", "place", "words"),
    [
        (claimed_folder, "out", "decontaminate --benchmark bench.jsonl --columns text --output out"),
        (claimed_folder, "out-dry-run", "curate --config c.yaml --dry-run --output out"),
        (claimed_folder, "elsewhere", "dedup --output out --report elsewhere"),
        (claimed_file, "model", "classify --positives good.jsonl --negatives bad.jsonl --save model"),
        (claimed_file, "i.parquet", f"{VERBS['decontaminate'].format('i')} --output out"),
    ],
)  # fmt: skip
def test_each_place_that_another_process_writes_is_named_with_the_process(claim, place, words, capfd):
    dataset = [] if "positives" in words else DATASET

    def work():
        os._exit(main(["data", *words.split(), *dataset]))

    with claim(place):
        _, status = os.waitpid(forked(work), 0)
    assert os.waitstatus_to_exitcode(status) == 2
    assert f"{place} is being written by process {os.getpid()} on " in capfd.readouterr().err


@pytest.mark.parametrize("verb", VERBS_TO_TRY)
def test_after_a_change_of_the_documents_the_result_is_that_of_the_new_ones(verb):
    assert run(verb, "out") == 0
    former = result("out")
    write("texts.jsonl", [*pages(20).values()])
    assert run(verb, "out", "--overwrite") == 0
    assert run(verb, "fresh") == 0
    assert result("out") == result("fresh") != former


def test_a_report_elsewhere_is_replaced_only_with_overwrite_and_none_is_written_among_what_is_read(capsys):
    assert run("dedup", "out", "--report", "elsewhere") == 0
    assert run("dedup", "again", "--report", "elsewhere") == 2
    assert (
        "--report 'elsewhere' holds curation.json already; name another, or pass --overwrite"
        in capsys.readouterr().err
    )
    assert not Path("again").exists()
    assert run("dedup", "again", "--report", "elsewhere", "--overwrite") == 0
    assert run("dedup", "third", "--report", "texts.jsonl") == 2
    assert "is the --dataset" in capsys.readouterr().err


def test_a_dry_run_without_room_is_one_line_and_leaves_nothing_half_written(monkeypatch, capsys):
    def full(path):
        raise OSError(28, "No space left on device")

    command = ["data", *VERBS["curate"].split(), *DATASET, "--output", "out", "--dry-run"]
    with monkeypatch.context() as patch:
        patch.setattr("hf_ext.guards.reports.replacing", full)
        assert main(command) == 1
    assert "hf-ext data curate: error: No room to write the report to out-dry-run" in capsys.readouterr().err
    assert {path.name for path in Path("out-dry-run").glob("[!.]*")} == set()
    assert main(command) == 0
