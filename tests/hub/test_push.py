"""A push survives what networks do: every fault of R14, against a Hub in memory that fails by script."""

from __future__ import annotations

import time
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi

from hf_ext.hub.push import PushError, files_to_push, push_folder
from hf_ext.hub.retry import Retry
from tests.hub.fake_hub import FOR_EVER, TOKEN, FakeHub

MESSAGE = "Upload with hf-ext"


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def push(folder: Path, repo: str = "me/tiny", **kwargs: Any) -> Any:
    return push_folder(folder, repo, **{"backoff": 0.001, "timeout": 0.25, **kwargs})


def assert_pushed_once(hub: FakeHub, folder: Path, before: dict[str, bytes]) -> None:
    assert contents(folder) == before, "the local copy changed"
    assert hub.files("me/tiny") == before
    assert hub.titles("me/tiny") == [MESSAGE]


def test_a_folder_arrives_whole_in_one_commit(hub: FakeHub, folder: Path) -> None:
    before = contents(folder)
    info = push(folder)
    assert_pushed_once(hub, folder, before)
    assert info.oid == hub.repo("me/tiny").find("main").oid
    assert {"sub/notes.md", "config.json", "weights.safetensors"} == set(before)


@pytest.mark.parametrize("route", ["create", "validate-yaml", "info", "commit"])
@pytest.mark.parametrize(
    ("kind", "times"),
    [(503, 1), (503, 3), (500, 1), (429, 1), ("timeout", 1), ("reset", 1), ("lost", 1), ("lost_504", 1), ("html", 1)],
)
def test_a_fault_that_passes_is_waited_out(
    hub: FakeHub, folder: Path, route: str, kind: int | str, times: int
) -> None:
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# tiny\n")
    before = contents(folder)
    hub.fail(route, kind, times)
    push(folder)
    assert_pushed_once(hub, folder, before)
    assert hub.faults[0].times == 0, "the fault was never met"
    if route == "commit":
        repeats = 0 if kind in ("lost", "lost_504") else times  # what was applied is seen, and not sent again
        assert hub.count("commit") == 1 + repeats


def test_a_fault_of_the_upload_of_hashes_is_waited_out(
    hub: FakeHub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)  # the client waits by itself
    before = contents(folder)
    hub.fail("preupload", 503, 2)
    hub.fail("preupload", "reset")
    push(folder)
    assert_pushed_once(hub, folder, before)


@pytest.mark.parametrize("kind", [409, 412, "race"])
def test_a_head_that_moved_is_read_again_and_nobodys_commit_is_undone(
    hub: FakeHub, folder: Path, kind: int | str
) -> None:
    hub.make_repo("me/tiny")
    hub.fail("commit", kind)
    push(folder)
    theirs = {"theirs.txt": b"theirs"} if kind == "race" else {}
    assert hub.files("me/tiny") == contents(folder) | theirs
    assert hub.titles("me/tiny") == (["somebody else"] if theirs else []) + [MESSAGE]
    assert hub.count("info") == 2


@pytest.mark.parametrize("kind", [503, "reset", "timeout", 409])
def test_a_fault_for_ever_ends_in_an_error_that_says_where_the_files_are(
    hub: FakeHub, folder: Path, kind: int | str
) -> None:
    before = contents(folder)
    hub.fail("commit", kind, FOR_EVER)
    said = r"model me/tiny was not pushed.*Gave up after 3 tries.*your files are in"
    with pytest.raises(PushError, match=said) as error:
        push(folder, attempts=3)
    assert str(folder.resolve()) in str(error.value)
    assert hub.count("commit") == 3
    assert contents(folder) == before
    assert hub.titles("me/tiny") == []
    hub.faults.clear()
    push(folder)
    assert_pushed_once(hub, folder, before)


def test_six_tries_are_the_default(hub: FakeHub, folder: Path) -> None:
    hub.fail("commit", 503, FOR_EVER)
    with pytest.raises(PushError, match="after 6 tries"):
        push(folder)
    assert hub.count("commit") == 6


@pytest.mark.parametrize(
    ("status", "remedy"),
    [(401, "hf auth login"), (403, "write permission"), (404, "check repo_id"), (402, "billing"), (400, "not help")],
)
@pytest.mark.parametrize("route", ["create", "commit"])
def test_a_refusal_is_not_tried_again_and_names_the_remedy(
    hub: FakeHub, folder: Path, route: str, status: int, remedy: str
) -> None:
    before = contents(folder)
    hub.fail(route, status)
    with pytest.raises(PushError, match=remedy) as error:
        push(folder)
    assert f"HTTP {status}: injected" in str(error.value)
    assert str(folder.resolve()) in str(error.value)
    assert hub.count(route) == 1
    assert contents(folder) == before


def test_a_wrong_token_and_a_foreign_namespace_are_refused(hub: FakeHub, folder: Path) -> None:
    with pytest.raises(PushError, match=r"401.*hf auth login"):
        push(folder, token="hf_wrong")
    with pytest.raises(PushError, match=r"403.*write permission"):
        push(folder, "somebody/tiny")
    assert not hub.repos


def test_offline_mode_is_named(hub: FakeHub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(PushError, match="unset it"):
        push(folder)
    assert not hub.requests


def test_a_hub_that_is_not_there_is_tried_and_then_named(folder: Path, hub: FakeHub) -> None:
    with pytest.raises(PushError, match=r"ConnectError.*Gave up after 2 tries"):
        push(folder, endpoint="http://127.0.0.1:9", attempts=2)


def test_pushing_the_same_folder_twice_makes_one_commit(hub: FakeHub, folder: Path) -> None:
    before = contents(folder)
    first, second = push(folder), push(folder, commit_message="again")
    assert_pushed_once(hub, folder, before)
    assert first.oid == second.oid
    (folder / "config.json").write_text('{"a": 2}')
    push(folder, commit_message="changed")
    assert hub.titles("me/tiny") == [MESSAGE, "changed"]
    assert hub.files("me/tiny")["config.json"] == b'{"a": 2}'


def test_token_private_revision_and_message_are_passed_on(hub: FakeHub, folder: Path) -> None:
    push(folder, token=TOKEN, private=True, revision="dev", commit_message="mine", path_in_repo="a/b")
    assert hub.repo("me/tiny").private
    assert hub.titles("me/tiny", revision="dev") == ["mine"]
    assert hub.titles("me/tiny") == []
    assert set(hub.files("me/tiny", revision="dev")) == {f"a/b/{name}" for name in contents(folder)}
    push(folder, revision="dev", commit_message="again")  # the branch is there now
    push(folder, "public", private=False)
    assert not hub.repo("me/public").private


@pytest.mark.parametrize("kind", [None, "lost", "reset", 503, "lost_504"])
def test_one_pull_request_is_opened_whatever_happens_to_the_answer(
    hub: FakeHub, folder: Path, kind: int | str | None
) -> None:
    hub.make_repo("me/tiny").pull_requests[1] = MESSAGE  # an older one with the same title and other files
    hub.repo("me/tiny").refs["refs/pr/1"] = list(hub.repo("me/tiny").refs["main"])
    if kind is not None:
        hub.fail("commit", kind)
    info = push(folder, create_pr=True)
    assert list(hub.repo("me/tiny").pull_requests) == [1, 2]
    assert hub.files("me/tiny", revision="refs/pr/2") == contents(folder)
    assert hub.titles("me/tiny") == []
    assert info.pr_num == 2
    with pytest.raises(ValueError, match="leave one out"):
        push(folder, create_pr=True, revision="dev")


def test_files_gone_here_are_removed_there_only_where_asked(hub: FakeHub, folder: Path) -> None:
    push(folder)
    (folder / "sub" / "notes.md").unlink()
    push(folder, delete=("*.json",))
    assert "sub/notes.md" in hub.files("me/tiny")
    hub.fail("commit", "lost")
    push(folder, delete=("sub/*", "*.json"))
    assert hub.files("me/tiny") == contents(folder)


def test_an_empty_or_absent_folder_is_refused_before_any_request(hub: FakeHub, tmp_path: Path) -> None:
    with pytest.raises(NotADirectoryError, match="save the model"):
        push(tmp_path / "absent")
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / "optimizer.pt").write_text("x")
    with pytest.raises(ValueError, match="Nothing to push"):
        push(tmp_path / "only")
    assert not hub.requests


def test_checkpoints_and_private_folders_stay(folder: Path) -> None:
    for name in ("checkpoint-3/model.safetensors", "_push-1/config.json", ".git/HEAD", "runs/events"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text("x")
    assert set(files_to_push(folder)) == {"config.json", "weights.safetensors", "sub/notes.md", "runs/events"}
    assert "config.json" not in files_to_push(folder, ignore=("config.json",))


def test_a_folder_named_like_a_trainers_own_goes_with_a_dataset_and_not_with_a_model(
    hub: FakeHub, folder: Path
) -> None:
    (folder / "context_free").mkdir()
    (folder / "context_free" / "rows.jsonl").write_text("{}")
    push(folder)
    push(folder, repo_type="dataset")
    assert "context_free/rows.jsonl" not in hub.files("me/tiny")
    assert "context_free/rows.jsonl" in hub.files("me/tiny", "dataset")


def test_a_broken_card_is_refused_with_the_hubs_words(hub: FakeHub, folder: Path) -> None:
    (folder / "README.md").write_text("---\n- no mapping\n---\n")
    with pytest.raises(PushError, match=r"Invalid metadata in README.md.*no mapping"):
        push(folder)


# --- how long it waits -----------------------------------------------------------------------------------------------


def test_waits_double_with_jitter_up_to_a_minute() -> None:
    slept: list[float] = []

    def fails(_: Exception | None) -> None:
        raise ConnectionResetError("gone")

    with pytest.raises(PushError):
        Retry("x", attempts=9, backoff=2.0, sleep=slept.append)(fails)
    expected = [2, 4, 8, 16, 32, 60, 60, 60]
    assert len(slept) == len(expected)
    for wait, middle in zip(slept, expected, strict=True):
        assert 0.75 * middle <= wait <= 1.25 * middle
    assert len(set(slept)) == len(slept)


@pytest.mark.parametrize(
    ("status", "form"), [(429, "seconds"), (503, "seconds"), (429, "date"), (503, "date"), (429, "ratelimit")]
)
def test_the_hubs_wish_to_be_left_alone_is_kept(
    hub: FakeHub, folder: Path, monkeypatch: pytest.MonkeyPatch, status: int, form: str
) -> None:
    slept: list[float] = []
    monkeypatch.setattr("hf_ext.hub.retry.time.sleep", slept.append)
    headers = {
        "seconds": {"Retry-After": "7"},
        "date": {"Retry-After": formatdate(time.time() + 7.5, usegmt=True)},
        "ratelimit": {"RateLimit": '"api";r=0;t=7'},
    }[form]
    hub.fail("commit", status, headers=headers)
    push(folder)
    assert len(slept) == 1
    assert 6 <= slept[0] <= 8.5


def test_a_hub_that_asks_for_an_hour_is_given_up_at_once(hub: FakeHub, folder: Path) -> None:
    hub.fail("commit", 503, headers={"Retry-After": "3600"})
    with pytest.raises(PushError, match="Gave up after 1 try"):
        push(folder)


def test_the_shared_client_is_left_as_it_was(hub: FakeHub, folder: Path) -> None:
    from huggingface_hub import get_session

    before = get_session().timeout, get_session().event_hooks
    push(folder)
    assert (get_session().timeout, get_session().event_hooks) == before


def test_the_fake_hub_serves_what_was_pushed_to_the_stock_client(hub: FakeHub, folder: Path, tmp_path: Path) -> None:
    push(folder)
    got = Path(HfApi().snapshot_download("me/tiny", local_dir=tmp_path / "got"))
    there = {name: content for name, content in contents(got).items() if not name.startswith((".cache", ".git"))}
    assert there == contents(folder)
