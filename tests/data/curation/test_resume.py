"""Killed at any moment and run again, a curation ends as an undisturbed one; only what changed is done again."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import time
from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hf_ext.data.curation import phases, pipeline, sources
from hf_ext.data.curation.pipeline import curate
from hf_ext.guards.disk import DiskFullError
from hf_ext.guards.locks import InUseError
from hf_ext.guards.runs import claimed_folder
from tests.data.curation.chain import CHAIN, Words, documents
from tests.data.curation.test_pipeline import QUIET, everything, rows_of
from tests.forks import forked

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="forks and signals of POSIX")

TEXTS = documents(300, seed=1)


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch, tmp_path):
    monkeypatch.setattr(sources, "CHUNK_ROWS", 40)


@pytest.fixture
def place(tmp_path):
    """Three shards."""
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(3):
        rows = rows_of(TEXTS[100 * number : 100 * (number + 1)], 100 * number)
        pq.write_table(pa.table(rows), folder / f"{number}.parquet")
    return folder


@pytest.fixture
def commits(monkeypatch):
    """The shards and numbers of the chunks that are written, by phase."""
    written = []
    commit = phases.commit

    def noting(path, *content):
        written.append((path.parent.name, path.name))
        commit(path, *content)

    monkeypatch.setattr(phases, "commit", noting)
    return written


def run(place, output, num_proc=1, steps=CHAIN):
    return curate(place, steps, output=output, id_column="id", source_column="source", num_proc=num_proc, **QUIET)


def killed_at_replacement(number):
    """From now on the process dies at that call that gives a file or folder its name."""
    replace = os.replace
    calls = []

    def dying(*args, **kwargs):
        calls.append(args)
        if len(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(*args, **kwargs)

    os.replace = dying


def test_a_killed_run_goes_on_behind_the_last_chunk_and_ends_as_an_undisturbed_one(place, tmp_path, commits):
    run(place, tmp_path / "whole")
    expected = everything(tmp_path / "whole")
    assert len(commits) == 27
    # names given in turn: 9 chunks read, 9 tables of features, 9 chunks decided, notes, 9 chunks, 4 of the result
    chunk_names = [*range(1, 10), *range(19, 28), *range(29, 38)]
    moments = (random.Random(0).randrange(2, 9), random.Random(1).randrange(19, 42))
    for moment in moments:
        output = tmp_path / f"killed at {moment}"

        def work(output=output, moment=moment):
            killed_at_replacement(moment)
            run(place, output)

        _, status = os.waitpid(forked(work), 0)
        assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
        commits.clear()
        run(place, output)
        assert everything(output) == expected
        assert len(commits) == sum(name >= moment for name in chunk_names)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("num_proc", [1, 2])
def test_ten_random_kills_change_nothing(place, tmp_path, num_proc):
    start = time.monotonic()
    run(place, tmp_path / "whole", num_proc)
    duration = time.monotonic() - start
    expected = everything(tmp_path / "whole")
    moments = random.Random(num_proc)
    num_killed = 0
    outputs = [tmp_path / "killed"]
    while num_killed < 10:
        process = forked(partial(run, place, outputs[-1], num_proc))
        time.sleep(moments.uniform(0, 0.6 * duration))
        os.kill(process, signal.SIGKILL)
        _, status = os.waitpid(process, 0)
        if os.waitstatus_to_exitcode(status) == -signal.SIGKILL:
            num_killed += 1
        else:  # it had come to its end
            outputs.append(tmp_path / f"killed {len(outputs)}")
    for output in outputs:
        run(place, output, num_proc)
        assert everything(output) == expected


def test_a_finished_curation_is_not_done_again(place, tmp_path, commits):
    first = run(place, tmp_path / "out")
    expected = everything(tmp_path / "out")
    commits.clear()
    assert run(place, tmp_path / "out").to_dict() == first.to_dict()
    assert commits == []
    assert everything(tmp_path / "out") == expected


def test_a_changed_step_redoes_its_phase_and_what_follows(place, tmp_path, commits):
    run(place, tmp_path / "out")
    commits.clear()
    changed = (*CHAIN[:2], Words(min_words=4))
    run(place, tmp_path / "out", steps=changed)
    assert len(commits) == 9
    run(place, tmp_path / "fresh", steps=changed)
    assert everything(tmp_path / "out") == everything(tmp_path / "fresh")
    commits.clear()
    run(place, tmp_path / "out", steps=(Words(revision="2"), *CHAIN[1:]))
    assert len(commits) == 27


def test_a_changed_shard_alone_is_redone_where_no_step_over_the_set_is(place, tmp_path, commits):
    run(place, tmp_path / "out", steps=CHAIN[:1])
    commits.clear()
    pq.write_table(pa.table(rows_of(documents(90, seed=5), 100)), place / "1.parquet")
    run(place, tmp_path / "out", steps=CHAIN[:1])
    assert len(commits) == 3
    run(place, tmp_path / "fresh", steps=CHAIN[:1])
    assert everything(tmp_path / "out") == everything(tmp_path / "fresh")
    (place / "2.parquet").unlink()
    commits.clear()
    counts = run(place, tmp_path / "out", steps=CHAIN[:1])
    assert (len(commits), counts.rows_read) == (0, 190)


def test_what_an_earlier_curation_left_is_removed(place, tmp_path):
    run(place, tmp_path / "out")
    run(place, tmp_path / "out", steps=CHAIN[:1])
    assert len(list((tmp_path / "out" / ".hf-ext-chunks").iterdir())) == 3
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"data", "drops", "counts.json", "manifest.json", ".hf-ext-chunks"}


def test_a_damaged_or_missing_part_is_made_again(place, tmp_path, commits):
    output = tmp_path / "out"
    run(place, output)
    expected = everything(output)
    chunks = sorted((output / ".hf-ext-chunks").glob("*/*/counts.json"))[::4]
    assert len({chunk.parent.parent for chunk in chunks}) >= 3  # of every phase
    for chunk in chunks:
        chunk.write_text('{"end": ')
        (output / "manifest.json").write_text("{")
        commits.clear()
        run(place, output)
        assert (everything(output), len(commits)) == (expected, 1)
    shutil.rmtree(output / "data")
    run(place, output)
    assert (everything(output), len(commits)) == (expected, 1)
    shutil.rmtree(output / ".hf-ext-chunks")
    run(place, output)
    assert (everything(output), len(commits)) == (expected, 1)
    run(place, output, steps=CHAIN[:1])
    assert len(commits) == 10


def test_a_folder_that_another_process_writes_or_that_holds_something_else_is_refused(place, tmp_path):
    message = tmp_path / "message"

    def work():
        try:
            run(place, tmp_path / "out")
        except InUseError as error:
            message.write_text(str(error))

    with claimed_folder(tmp_path / "out"):
        os.waitpid(forked(work), 0)
    assert "is being written by process" in message.read_text()
    assert "name another output" in message.read_text()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    with pytest.raises(ValueError, match=r"not empty and holds no manifest\.json.*'thesis\.tex'.*Name another output"):
        run(place, tmp_path / "other")


def test_a_full_disk_is_one_sentence_and_the_chunks_before_are_kept(place, tmp_path, commits):
    resource = pytest.importorskip("resource")
    run(place, tmp_path / "whole")
    outcome = tmp_path / "outcome"

    def work():
        resource.setrlimit(resource.RLIMIT_FSIZE, (6000, resource.RLIM_INFINITY))  # data alone is larger
        try:
            run(place, tmp_path / "out")
        except DiskFullError as error:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            outcome.write_text(str(error))

    os.waitpid(forked(work), 0)
    assert "No room to write the curated rows" in outcome.read_text()
    assert "The chunks so far are kept: free some space and run again." in outcome.read_text()
    num_kept = sum(1 for _ in (tmp_path / "out" / ".hf-ext-chunks").glob("*/*/counts.json"))
    commits.clear()
    run(place, tmp_path / "out")
    assert everything(tmp_path / "out") == everything(tmp_path / "whole")
    assert len(commits) == 27 - num_kept


@pytest.mark.parametrize("room", [3000, 500])  # less than the rows of the new result take, then than its counts do
def test_a_full_disk_while_the_result_is_put_in_place_leaves_the_former_one_whole(place, tmp_path, monkeypatch, room):
    resource = pytest.importorskip("resource")
    output = tmp_path / "out"
    run(place, output, steps=CHAIN[:1])
    former = everything(output)
    whole = {path.name: path.read_bytes() for path in output.iterdir() if path.is_file()}
    publish = pipeline.publish

    def without_room(*args):
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
        try:
            publish(*args)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "publish", without_room)
        with pytest.raises(DiskFullError, match="No room to write the curated rows"):
            run(place, output)
    assert everything(output) == former
    assert {path.name: path.read_bytes() for path in output.iterdir() if path.is_file()} == whole
    run(place, output)
    run(place, tmp_path / "fresh")
    assert everything(output) == everything(tmp_path / "fresh")


def test_a_shard_that_changes_while_it_is_read_is_named_and_read_anew(place, tmp_path, monkeypatch):
    plan = pipeline.Curation.plan
    texts = documents(90, seed=5)

    def then_changed(curation):
        values = plan(curation)
        pq.write_table(pa.table(rows_of(texts, 100)), place / "1.parquet")
        return values

    with monkeypatch.context() as patch:
        patch.setattr(pipeline.Curation, "plan", then_changed)
        with pytest.raises(ValueError, match=r"shard '1\.parquet' was changed while it was read\. Run again"):
            run(place, tmp_path / "out")
    run(place, tmp_path / "out")
    run(place, tmp_path / "fresh")
    assert everything(tmp_path / "out") == everything(tmp_path / "fresh")


def test_a_chunk_whose_rows_cannot_be_read_is_named_with_the_remedy(place, tmp_path, commits):
    output = tmp_path / "out"
    run(place, output)
    expected = everything(output)
    chunk = output / ".hf-ext-chunks" / commits[-1][0] / commits[-1][1]
    (chunk / "rows.parquet").write_bytes(b"PAR1")
    (output / "manifest.json").unlink()
    with pytest.raises(ValueError, match=rf"{chunk.name} is damaged: delete that folder and run again"):
        run(place, output)
    shutil.rmtree(chunk)
    run(place, output)
    assert everything(output) == expected
