"""The record of releases: what adds up, what is the same release again, and what is refused."""

from __future__ import annotations

import errno
import json
import logging
import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, concatenate_datasets

from hf_ext.data.relabeling import (
    KeyRef,
    PrivacyBudgetError,
    RandomizedResponse,
    RRChannel,
    carry_ledger,
    make_key_file,
    privatize,
)
from hf_ext.guards.disk import DiskFullError
from tests.data.relabeling.oracle import rows

K = 4


@pytest.fixture
def key(tmp_path: Path) -> KeyRef:
    return make_key_file(tmp_path / "labels.key")


def drawn(key: KeyRef, epsilon: float = 1.0, **settings: object) -> RandomizedResponse:
    return RandomizedResponse(epsilon, K, key, **settings)


def lines(key: KeyRef) -> list[dict]:
    return [json.loads(line) for line in Path(f"{key.file}.releases.jsonl").read_text().splitlines()]


def relabelled(dataset: Dataset, share: float, seed: int = 7) -> Dataset:
    """Rows of which a share has other labels."""
    rng = np.random.default_rng(seed)
    labels = np.array(dataset["label"][:])
    edited = rng.choice(len(labels), round(share * len(labels)), replace=False)
    labels[edited] = (labels[edited] + rng.integers(1, K, len(edited))) % K
    feature = dataset.features["label"]
    return dataset.remove_columns("label").add_column("label", labels.tolist()).cast_column("label", feature)


# --- the same release ---------------------------------------------------------------------------------------------


def test_the_same_release_again_in_any_order_or_part_costs_nothing_and_more_rows_are_added(key: KeyRef) -> None:
    first = privatize(rows(), drawn(key))
    label_of = dict(zip(first["id"], first["label"], strict=True))
    for again in (rows(), rows().shuffle(seed=1), rows().select(range(50)), rows().remove_columns("x")):
        done = privatize(again, drawn(key))
        assert done["label"][:] == [label_of[name] for name in again["id"]]
        assert set(done["label_dp_epsilon"]) == {1.0}
    (line,) = lines(key)
    assert (line["labels"], line["epsilon"], line["salt"], line["column"]) == (400, 1.0, "", "label")
    grown = concatenate_datasets([rows(), rows(100, seed=3).map(lambda row: {"id": row["id"] + "+"})])
    privatize(grown, drawn(key))
    assert [line["labels"] for line in lines(key)] == [400, 100]
    assert lines(key)[0] == line


def test_rows_that_lost_their_ledger_are_named_for_what_they_are(key: KeyRef) -> None:
    stripped = privatize(rows(), drawn(key)).select_columns(["id", "label", "x"])
    with pytest.raises(PrivacyBudgetError, match="noisy labels of that release, another draw is not needed"):
        privatize(stripped, drawn(key))


def test_a_noisier_copy_of_noisy_labels_is_no_release_of_the_true_ones(key: KeyRef) -> None:
    noisy = privatize(rows(), drawn(key))
    privatize(noisy, drawn(key, 0.5, after=RRChannel(1.0, K)))
    assert len(lines(key)) == 1


# --- a second release ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{"epsilon": 0.5}, {"salt": "b"}, {"label": "y"}, {"prior_column": "prior"}])
def test_a_second_release_of_the_same_labels_is_refused_until_it_is_meant_and_then_adds_up(
    key: KeyRef, settings: dict
) -> None:
    privatize(rows(), drawn(key))
    again = rows().add_column("prior", [[1.0, 2.0, 1.0, 1.0]] * 400)
    again = again.rename_column("label", "y") if "label" in settings else again
    with pytest.raises(PrivacyBudgetError, match=r"400 of 400 labels .* holds epsilon 1, last with salt ''"):
        privatize(again, drawn(key, **settings))
    assert len(lines(key)) == 1, "what is refused is not recorded"
    done = privatize(again, drawn(key, compose=True, **settings))
    total = 1.0 + settings.get("epsilon", 1.0)
    assert set(done["label_dp_epsilon"]) == {total}
    repeated = privatize(again, drawn(key, compose=True, **settings))
    assert repeated[:] == done[:], "the second release again is the second release"
    assert len(lines(key)) == 2
    assert privatize(rows(), drawn(key))["label_dp_epsilon"][0] == 1.0, "and so is the first"


def test_a_ledger_that_was_carried_over_is_not_counted_twice(key: KeyRef) -> None:
    private = carry_ledger(rows(), privatize(rows(), drawn(key)))
    second = privatize(private, drawn(key, 0.5, salt="b", compose=True))
    assert set(second["label_dp_epsilon"]) == {1.5}
    third = privatize(carry_ledger(rows(), second), drawn(key, 0.25, salt="c", compose=True))
    assert set(third["label_dp_epsilon"]) == {1.75}


def test_where_two_releases_overlap_each_row_adds_up_its_own(key: KeyRef) -> None:
    privatize(rows(300).select(range(200)), drawn(key))
    part = rows(300).select(range(100, 300))
    with pytest.raises(PrivacyBudgetError, match="100 of 200 labels"):
        privatize(part, drawn(key, 0.5))
    done = privatize(part, drawn(key, 0.5, compose=True))
    assert done["label_dp_epsilon"][:] == [1.5] * 100 + [0.5] * 100
    last = privatize(rows(300), drawn(key, 0.25, compose=True))
    assert last["label_dp_epsilon"][:] == [1.25] * 100 + [1.75] * 100 + [0.75] * 100


def test_sentences_add_up_all_their_tokens(key: KeyRef) -> None:
    sentences = Dataset.from_dict({"id": ["a", "b"], "labels": [[0, 1, -100, 2], [3]]})
    privatize(sentences, drawn(key, 1.0, label="labels"))
    with pytest.raises(PrivacyBudgetError, match="4 of 4 labels"):
        privatize(sentences, drawn(key, 0.5, label="labels"))
    done = privatize(sentences, drawn(key, 0.5, label="labels", compose=True))
    assert done["label_dp_epsilon"][:] == [4.5, 1.5]


def test_a_second_prior_is_a_second_release_and_the_same_one_in_another_order_is_not(key: KeyRef) -> None:
    rng = np.random.default_rng(0)
    first = rows().add_column("prior", rng.dirichlet(np.full(K, 0.5), 400).tolist())
    privatize(first, drawn(key, prior_column="prior"))
    privatize(first.shuffle(seed=2), drawn(key, prior_column="prior"))
    assert len(lines(key)) == 1
    other = rows().add_column("prior", rng.dirichlet(np.full(K, 0.5), 400).tolist())
    with pytest.raises(PrivacyBudgetError, match="were released before"):
        privatize(other, drawn(key, prior_column="prior"))


# --- edited labels and other rows ---------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0025, 0.1, 1.0])
def test_other_labels_under_the_same_ids_and_noise_are_refused(key: KeyRef, share: float) -> None:
    privatize(rows(), drawn(key))
    with pytest.raises(PrivacyBudgetError, match=f"{round(400 * share)} of 400 labels differ from those .* salt ''"):
        privatize(relabelled(rows(), share), drawn(key))


def test_edited_labels_under_another_salt_are_the_same_rows_still(key: KeyRef) -> None:
    privatize(rows(), drawn(key))
    edited = relabelled(rows(), 0.1)
    with pytest.raises(PrivacyBudgetError, match="400 of 400 labels"):
        privatize(edited, drawn(key, salt="b"))
    assert set(privatize(edited, drawn(key, salt="b", compose=True))["label_dp_epsilon"]) == {2.0}


def test_other_rows_that_are_numbered_alike_and_another_label_of_the_same_rows_are_released_apart(key: KeyRef) -> None:
    privatize(rows(), drawn(key))
    other = rows(seed=11)
    assert set(privatize(other, drawn(key, salt="test"))["label_dp_epsilon"]) == {1.0}
    urgency = rows().rename_column("label", "topic").add_column("urgency", rows(seed=12)["label"][:])
    done = privatize(urgency.remove_columns("topic"), drawn(key, label="urgency"))
    assert set(done["label_dp_epsilon"]) == {1.0}
    assert len(lines(key)) == 3


# --- where it is, and what it is worth ----------------------------------------------------------------------------


def test_links_to_a_key_lead_to_one_record_and_a_variable_names_another(
    key: KeyRef, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    privatize(rows(), drawn(key))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "link").symlink_to(key.file)
    with pytest.raises(PrivacyBudgetError):
        privatize(rows(), drawn(KeyRef(file=str(tmp_path / "elsewhere" / "link")), 0.5))
    monkeypatch.setenv("HF_EXT_LABEL_RECORD", str(tmp_path / "new" / "record"))
    privatize(rows(), drawn(key, 0.5))
    assert (tmp_path / "new" / "record").is_file()


def test_a_key_in_the_environment_has_a_record_where_one_is_named_and_a_warning_otherwise(
    key: KeyRef, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("A_KEY", Path(str(key.file)).read_text())
    environment = KeyRef(env="A_KEY")
    with caplog.at_level(logging.WARNING):
        privatize(rows(), drawn(environment))
        privatize(rows(), drawn(environment, 0.5))
        privatize(rows().to_iterable_dataset(), drawn(key))
    assert caplog.text.count("No record is kept") == 3
    assert "set HF_EXT_LABEL_RECORD" in caplog.text
    monkeypatch.setenv("HF_EXT_LABEL_RECORD", str(tmp_path / "record"))
    privatize(rows(), drawn(environment))
    with pytest.raises(PrivacyBudgetError):
        privatize(rows(), drawn(key, 0.5))


def test_releases_under_another_key_are_passed_over(key: KeyRef, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HF_EXT_LABEL_RECORD", str(tmp_path / "record"))
    other = make_key_file(tmp_path / "other.key")
    privatize(rows(), drawn(other))
    privatize(rows(), drawn(key, 0.5))
    with pytest.raises(PrivacyBudgetError, match="epsilon 1, last"):
        privatize(rows(), drawn(other, 0.25))


def test_the_record_shows_no_key_no_id_and_no_label_to_who_lacks_the_key(key: KeyRef) -> None:
    privatize(rows(), drawn(key))
    record = Path(f"{key.file}.releases.jsonl")
    stored = Path(f"{record}.rows").read_bytes()
    words = np.frombuffer(stored, dtype="<u8").reshape(-1, 2)
    assert len(stored) == 16 * 400
    assert len(np.unique(words[:, 1])) == 400, "labels of one class look alike"
    assert Path(str(key.file)).read_text().strip() not in record.read_text()
    assert "r17" not in record.read_text()


def _release(file: str, epsilon: float, barrier, results) -> None:
    barrier.wait()
    try:
        privatize(rows(), drawn(KeyRef(file=file), epsilon))
        results.put("released")
    except PrivacyBudgetError:
        results.put("refused")


@pytest.mark.skipif(os.name != "posix", reason="forks")
def test_of_two_processes_that_release_the_same_rows_at_once_one_is_refused(key: KeyRef) -> None:
    context = multiprocessing.get_context("fork")
    for attempt in range(3):
        Path(f"{key.file}.releases.jsonl").unlink(missing_ok=True)
        barrier, results = context.Barrier(2), context.Queue()
        budgets = (1.0 + attempt, 0.5 + attempt)
        workers = [context.Process(target=_release, args=(key.file, e, barrier, results)) for e in budgets]
        for worker in workers:
            worker.start()
        assert sorted(results.get(timeout=60) for _ in workers) == ["refused", "released"]
        for worker in workers:
            worker.join()
        assert len(lines(key)) == 1


def test_a_process_that_was_killed_between_the_two_files_leaves_a_record_that_goes_on(key: KeyRef) -> None:
    privatize(rows(), drawn(key))
    stored = Path(f"{key.file}.releases.jsonl.rows")
    whole = stored.read_bytes()
    stored.write_bytes(whole + b"half of another release")
    privatize(rows(seed=11), drawn(key, salt="test"))
    assert stored.read_bytes()[: len(whole)] == whole
    assert stored.stat().st_size == 2 * len(whole)
    with pytest.raises(PrivacyBudgetError):
        privatize(rows(), drawn(key, 0.5))


@pytest.mark.parametrize("harm", ["cut", "changed", "gone", "no json", "no release", "a list", "endless"])
def test_a_damaged_record_is_refused_by_name(key: KeyRef, harm: str) -> None:
    privatize(rows(), drawn(key))
    record = Path(f"{key.file}.releases.jsonl")
    stored = Path(f"{record}.rows")
    content = stored.read_bytes()
    if harm == "cut":
        stored.write_bytes(content[:-1])
    elif harm == "changed":
        stored.write_bytes(content[:100] + bytes([content[100] ^ 1]) + content[101:])
    elif harm == "gone":
        stored.unlink()
    elif harm == "endless":
        record.write_text(json.dumps(lines(key)[0] | {"labels": 10**15}) + "\n")
    else:
        record.write_text({"no json": "{", "no release": '{"labels": 400}', "a list": "[]"}[harm] + "\n")
    left = (record.read_bytes(), stored.read_bytes() if stored.exists() else b"")
    with pytest.raises(ValueError, match=r"record of releases .* is damaged"):
        privatize(rows(), drawn(key, 0.5))
    assert left == (record.read_bytes(), stored.read_bytes() if stored.exists() else b"")


def test_without_room_or_a_place_for_the_record_nothing_is_released(
    key: KeyRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    privatize(rows(), drawn(key))
    recorded = lines(key)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("hf_ext.data.relabeling.releases.append_whole", full)
        with pytest.raises(DiskFullError, match="record of releases"):
            privatize(rows(), drawn(key, 0.5, compose=True))
    assert lines(key) == recorded
    monkeypatch.setenv("HF_EXT_LABEL_RECORD", "/dev/null/record")
    with pytest.raises(ValueError, match="set HF_EXT_LABEL_RECORD to the file of another place"):
        privatize(rows(), drawn(key))
