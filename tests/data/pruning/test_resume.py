import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from hf_ext.data.pruning import engines, gm_matching, one_group
from tests.data.pruning.oracle import cloud

CASES = {
    "int8": {"engine": "int8"},
    "f32": {"engine": "f32"},
    "torch": {"engine": "f32", "backend": "torch"},
    "pool": {"engine": "pool", "pool_picks": 8, "pool_rows": 50},
    "groups": {"groups": np.arange(600) % 5},
    "trim": {"trim": 0.2},
    "raw": {"metric": "raw", "center": "mean"},
}


@pytest.mark.parametrize("stop", [1, 3, 9])
@pytest.mark.parametrize("case", CASES)
def test_stopped_run_continues_to_the_same_picks(case, stop, tmp_path, monkeypatch):
    rows, options, path = cloud(600, 6), CASES[case], tmp_path / "picks.npz"
    whole = gm_matching(rows, 150, **options)
    monkeypatch.setattr(one_group, "_PIECE_SECONDS", 0.0)  # one pick, or one round, a piece
    calls, make = [], engines.make

    def failing(*args):
        engine = make(*args)
        picks = engine.picks

        def some(count):
            calls.append(count)
            if len(calls) > stop:
                raise KeyboardInterrupt
            return picks(count)

        engine.picks = some
        return engine

    monkeypatch.setattr(engines, "make", failing)
    with pytest.raises(KeyboardInterrupt):
        gm_matching(rows, 150, **options, resume_path=path, save_every=0, num_threads=1)
    assert path.exists()
    monkeypatch.setattr(engines, "make", make)
    monkeypatch.setattr(one_group, "solve", lambda *_, **__: pytest.fail("the centre is kept, too"))
    if case in ("groups", "raw"):
        monkeypatch.undo()  # groups not begun have no centre yet
    again = gm_matching(rows, 150, **options, resume_path=path, num_threads=1)
    assert again.indices.tolist() == whole.indices.tolist()
    assert np.array_equal(again.theta_norm, whole.theta_norm)
    for label, part in whole.groups.items():
        assert again.groups[label].moment_error == part.moment_error
        assert again.groups[label].verdict == part.verdict
    assert not path.exists()


def test_any_exact_engine_may_continue_what_another_began(tmp_path, monkeypatch):
    rows, path = cloud(300, 5), tmp_path / "picks.npz"
    monkeypatch.setattr(one_group, "_PIECE_SECONDS", 0.0)
    monkeypatch.setattr(one_group._Group, "save", stop_after(40, one_group._Group.save))
    with pytest.raises(KeyboardInterrupt):
        gm_matching(rows, 100, engine="f32", resume_path=path, save_every=0)
    monkeypatch.undo()
    assert (
        gm_matching(rows, 100, engine="int8", resume_path=path).indices.tolist()
        == gm_matching(rows, 100).indices.tolist()
    )


def stop_after(count, keep):
    def kept(group, write_now=False):
        keep(group, write_now)
        if group.count >= count:
            raise KeyboardInterrupt

    return kept


@pytest.mark.parametrize("change", ["k", "row", "turned row", "center", "metric", "pool"])
def test_a_file_of_another_matching_is_refused(change, tmp_path, monkeypatch):
    rows, path = cloud(300, 5), tmp_path / "picks.npz"
    monkeypatch.setattr(one_group._Group, "save", stop_after(10, one_group._Group.save))
    with pytest.raises(KeyboardInterrupt):
        gm_matching(rows, 100, resume_path=path, save_every=0)
    monkeypatch.undo()
    options = {"center": {"center": "mean"}, "metric": {"metric": "raw"}, "pool": {"engine": "pool"}}.get(change, {})
    if change == "row":
        rows[123] *= 1.001
    if change == "turned row":  # as long as it was
        rows[123] = rows[123, ::-1].copy()
    name = {"k": "counts", "center": "aims", "metric": "aims"}.get(change, change)
    words = "other rows" if change in ("row", "turned row") else f"{name} was .*, is "
    with pytest.raises(ValueError, match=f"was begun with other settings: {words}.*give another resume_path"):
        gm_matching(rows, 99 if change == "k" else 100, resume_path=path, **options)
    path.write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="no file of a matching under way"):
        gm_matching(rows, 100, resume_path=path)


CHILD = """
import sys
import numpy as np
from hf_ext.data.pruning import gm_matching
rows = np.load(sys.argv[1], mmap_mode="r")
gm_matching(rows, 4000, engine="int8", num_threads=1, resume_path=sys.argv[2], save_every=0.05, show_progress=False)
"""


@pytest.mark.skipif(os.name == "nt", reason="kills a process by a signal")
def test_killed_process_on_a_memory_map_resumes_to_the_same_picks(tmp_path):
    rows, path = cloud(20_000, 64), tmp_path / "picks.npz"
    np.save(tmp_path / "rows.npy", rows)
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path / "rows.npy"), str(path)])
    try:
        deadline = time.monotonic() + 200
        while time.monotonic() < deadline and child.poll() is None:
            if path.exists() and len(np.load(path)["0/numbers"]) > 0:
                break
            time.sleep(0.02)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert path.exists(), "the run ended or never saved"
    assert 0 < len(np.load(path)["0/numbers"]) < 4000
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    again = gm_matching(mapped, 4000, engine="int8", resume_path=path)
    assert again.indices.tolist() == gm_matching(rows, 4000, engine="f32").indices.tolist()
