"""Randomised labels of datasets: one draw however often it is asked for, a ledger that lasts, rows refused."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from datasets import (
    ClassLabel,
    Dataset,
    DatasetDict,
    Features,
    List,
    Value,
    concatenate_datasets,
    load_dataset,
    load_from_disk,
)

from hf_ext.data.relabeling import HashColumn, PrivacyBudgetError, RRChannel, carry_ledger, privatize
from hf_ext.guards.rows import RowError
from tests.data.relabeling.oracle import key, response, rows

LEDGER = ("label_dp_epsilon", "label_dp_channel")


@pytest.fixture(scope="module")
def released() -> Dataset:
    return privatize(rows(), response(1.0, 4))


def labels(dataset: object) -> list[int]:
    return [row["label"] for row in dataset]


# --- one draw -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings", [{"num_proc": 1}, {"num_proc": 2}, {"batch_size": 7}, {"load_from_cache_file": False}]
)
def test_workers_batches_and_a_lost_cache_draw_nothing_anew(released: Dataset, settings: dict) -> None:
    again = rows().map(response(1.0, 4), batched=True, **settings)
    assert again[:] == released[:]


def test_streams_shuffles_and_parts_draw_nothing_anew(released: Dataset, tmp_path: Path) -> None:
    expected = dict(zip(released["id"], released["label"], strict=True))
    rows().to_parquet(tmp_path / "rows.parquet")
    stream = load_dataset("parquet", data_files=str(tmp_path / "rows.parquet"), split="train", streaming=True)
    found = [
        privatize(stream, response(1.0, 4)),
        privatize(rows().to_iterable_dataset(num_shards=4), response(1.0, 4)),
        privatize(rows().shuffle(seed=1), response(1.0, 4)),
        privatize(rows().select(range(50, 90)), response(1.0, 4)),
    ]
    for dataset in found:
        assert {row["id"]: row["label"] for row in dataset}.items() <= expected.items()


def test_a_stream_that_stops_and_goes_on_draws_nothing_anew(released: Dataset) -> None:
    stream = privatize(rows().to_iterable_dataset(num_shards=2), response(1.0, 4))
    first: list[int] = []
    for row in stream:
        first.append(row["label"])
        if len(first) == 130:
            state = stream.state_dict()
            break
    stream.load_state_dict(state)
    assert first + labels(stream) == labels(released)


def test_only_labels_change_and_features_stay(released: Dataset) -> None:
    assert released.column_names == [*rows().column_names, *LEDGER]
    assert released.features["label"] == rows().features["label"]
    assert released.features["label_dp_epsilon"] == Value("float32")
    assert released.features["label_dp_channel"] == Value("string")
    assert released["id"][:] == rows()["id"][:]
    kept = np.mean(np.array(released["label"]) == np.array(rows()["label"]))
    p = RRChannel(1.0, 4).p
    assert abs(kept - p) < 5 * (p * (1 - p) / 400) ** 0.5


def test_another_key_salt_or_budget_is_another_draw(released: Dataset) -> None:
    for other in (response(1.0, 4, salt="b"), response(1.1, 4), response(1.0, 4, id_column="x2")):
        again = privatize(rows().add_column("x2", [f"n{i}" for i in range(400)]), other)
        assert np.mean(np.array(again["label"]) == np.array(released["label"])) < 0.6


def test_only_the_train_split_is_randomised_unless_told(released: Dataset) -> None:
    splits = DatasetDict({"train": rows(), "test": rows(50)})
    done = privatize(splits, response(1.0, 4))
    assert done["train"][:] == released[:]
    assert done["test"].remove_columns(list(LEDGER))[:] == rows(50)[:]
    assert set(done["test"][LEDGER[0]]) == {0.0}  # one schema for all splits; nothing was spent on these
    assert set(privatize(splits, response(1.0, 4), split="test")["test"][LEDGER[0]]) == {1.0}
    with pytest.raises(ValueError, match="no split 'dev'"):
        privatize(splits, response(1.0, 4), split="dev")


def test_an_integer_id_and_its_text_are_the_same_row() -> None:
    numbers = rows().remove_columns("id").add_column("id", list(range(400)))
    texts = rows().remove_columns("id").add_column("id", [str(i) for i in range(400)])
    assert labels(privatize(numbers, response(1.0, 4))) == labels(privatize(texts, response(1.0, 4)))


def test_pictures_are_not_decoded_and_stay_as_they_were() -> None:
    from datasets import Image

    broken = {"bytes": b"no picture", "path": None}
    pictures = rows(60).add_column("image", [broken] * 60, feature=Image())
    done = privatize(pictures, response(1.0, 4))
    assert done.features["image"] == Image()
    assert done.cast_column("image", Image(decode=False))[0]["image"] == broken


# --- the ledger ---------------------------------------------------------------------------------------------------


def test_the_ledger_survives_map_filter_concatenate_and_disk(released: Dataset, tmp_path: Path) -> None:
    other = privatize(rows(100, seed=1), response(2.0, 4, salt="b"))
    joined = (
        concatenate_datasets([released, other]).map(lambda row: {"y": row["x"] + 1}).filter(lambda row: row["x"] > 0)
    )
    joined.save_to_disk(tmp_path / "d")
    joined.to_parquet(tmp_path / "d.parquet")
    joined.to_json(tmp_path / "d.jsonl")
    found = [
        joined,
        load_from_disk(tmp_path / "d"),
        load_dataset("parquet", data_files=str(tmp_path / "d.parquet"), split="train", cache_dir=str(tmp_path)),
        load_dataset("json", data_files=str(tmp_path / "d.jsonl"), split="train", cache_dir=str(tmp_path)),
    ]
    for dataset in found:
        assert set(zip(dataset["label_dp_epsilon"], dataset["label_dp_channel"], strict=True)) == {
            (1.0, response(1.0, 4).channel_id),
            (2.0, response(2.0, 4, salt="b").channel_id),
        }
        with pytest.raises(PrivacyBudgetError):
            privatize(dataset, response(1.0, 4))


def test_the_ledger_never_understates() -> None:
    for epsilon in (0.1, 0.3, 0.7, 1.1, 2.3, 1 / 3):
        stated = privatize(rows(20), response(epsilon, 4))["label_dp_epsilon"][0]
        assert epsilon <= stated <= epsilon * (1 + 1e-6)


def test_a_second_draw_is_refused_with_what_was_spent_and_the_two_legal_ways(released: Dataset) -> None:
    for attempt in (
        lambda: privatize(released, response(1.0, 4)),
        lambda: released.map(response(3.0, 4), batched=True),
    ):
        with pytest.raises(PrivacyBudgetError) as caught:
            attempt()
        for words in ("epsilon 1 was spent", "compose=True", "after=RRChannel", response(1.0, 4).channel_id):
            assert words in str(caught.value)


def test_a_row_of_a_mixed_dataset_that_has_a_ledger_is_refused(released: Dataset) -> None:
    both = concatenate_datasets([rows(30, seed=3), released.select(range(3))])  # the first part gets nulls
    with pytest.raises(PrivacyBudgetError, match="row 30 of the batch"):
        both.map(response(1.0, 4), batched=True)


def test_a_fresh_draw_from_true_labels_is_added_up(released: Dataset) -> None:
    private = carry_ledger(rows(), released)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        second = privatize(private, response(0.5, 4, compose=True, salt="second"))
    assert set(second["label_dp_epsilon"]) == {1.5}
    assert set(second["label_dp_channel"]) == {response(0.5, 4, compose=True, salt="second").channel_id}
    plain = privatize(rows(), response(0.5, 4, salt="second"))
    assert second["label"][:] == plain["label"][:], "compose changes the ledger, not the draw"
    third = privatize(carry_ledger(rows(), second), response(1.0, 4, compose=True, salt="third"))
    assert set(third["label_dp_epsilon"]) == {2.5}


def test_what_was_spent_counts_in_a_batch_whose_other_rows_have_no_ledger(released: Dataset) -> None:
    second = response(0.5, 4, compose=True, salt="second")
    private = carry_ledger(rows(), released).select(range(30, 33))
    both = concatenate_datasets([rows().select(range(30)), private])  # nulls in the ledger of the first part
    expected = [0.5] * 30 + [1.5] * 3
    assert both.map(second, batched=True)["label_dp_epsilon"][:] == expected
    assert privatize(both, second)["label_dp_epsilon"][:] == expected


def test_the_same_draw_again_is_not_a_fresh_one(released: Dataset) -> None:
    with pytest.raises(PrivacyBudgetError, match="Give the new release another salt"):
        privatize(released, response(1.0, 4, compose=True))


def test_compose_on_labels_that_the_ledger_calls_noisy_warns(released: Dataset) -> None:
    with pytest.warns(UserWarning, match="takes column 'label' for the true label"):
        done = released.map(response(0.5, 4, compose=True, salt="b"), batched=True)
    assert set(done["label_dp_epsilon"]) == {1.5}


def test_carrying_a_ledger_marks_true_labels_and_rows_that_were_not_released(released: Dataset) -> None:
    private = carry_ledger(rows(500), released)
    assert private["label"][:] == rows(500)["label"][:]
    assert set(private["label_dp_epsilon"][:400]) == {1.0}
    assert set(private["label_dp_epsilon"][400:]) == {0.0}
    assert set(private["label_dp_channel"][:400]) == {"true-label"}
    with pytest.raises(PrivacyBudgetError):
        privatize(private, response(1.0, 4, salt="b"))
    with pytest.raises(ValueError, match="no ledger"):
        carry_ledger(rows(), rows())
    apart = privatize(rows(100), response(0.3, 4, salt="b"))
    with pytest.raises(ValueError, match="made apart, pass add=True"):
        carry_ledger(private, apart)
    both = carry_ledger(private, apart, add=True)["label_dp_epsilon"][:]
    assert both[0] == pytest.approx(1.3)
    assert both[0] >= 1.3
    assert both[150] == 1.0
    assert both[450] == 0.0
    with pytest.raises(ValueError, match="no column 'name'"):
        carry_ledger(rows(), released, id_column="name")


def test_degrading_a_noisy_label_replaces_the_channel_and_lowers_the_budget(released: Dataset) -> None:
    mechanism = response(2.0, 4, after=RRChannel(1.0, 4))
    done = privatize(released, mechanism)
    product = RRChannel(1.0, 4).matrix() @ RRChannel(2.0, 4).matrix()
    expected = float(np.log(product[0, 0] / product[1, 0]))
    assert mechanism.channel.epsilon == pytest.approx(expected)
    assert done["label_dp_epsilon"][0] == pytest.approx(expected, rel=1e-6)
    assert done["label_dp_epsilon"][0] >= mechanism.channel.epsilon
    assert done["label_dp_channel"][0].startswith("rr-then-rr-4-")
    assert done["label"][:] != released["label"][:]


def test_degrading_wants_the_channel_that_the_ledger_knows(released: Dataset) -> None:
    with pytest.raises(PrivacyBudgetError, match="the ledger holds 1 "):
        privatize(released, response(2.0, 4, after=RRChannel(1.5, 4)))
    with pytest.raises(PrivacyBudgetError, match="for true labels use compose=True"):
        privatize(carry_ledger(rows(), released), response(2.0, 4, after=RRChannel(1.0, 4)))
    with pytest.raises(PrivacyBudgetError, match="the ledger holds 0 "):
        privatize(rows(), response(2.0, 4, after=RRChannel(1.0, 4)))


def test_degraded_labels_follow_the_product_of_the_channels() -> None:
    from tests.data.relabeling.oracle import channel_matrix, chi_square_p

    n, k = 60_000, 3
    batch = {"id": [f"r{i}" for i in range(n)], "label": (np.arange(n) % k).tolist()}
    noisy = response(1.0, k)(batch)
    twice = response(0.8, k, after=RRChannel(1.0, k))({**batch, **noisy})
    counts = np.bincount(np.array(batch["label"]) * k + np.array(twice["label"]), minlength=9).reshape(3, 3)
    assert chi_square_p(counts, channel_matrix(1.0, k) @ channel_matrix(0.8, k)) > 1e-4


# --- token labels -------------------------------------------------------------------------------------------------


def sentences() -> Dataset:
    rng = np.random.default_rng(0)
    lists = [[-100, *rng.integers(0, 5, int(n)).tolist(), -100] for n in rng.integers(0, 9, 200)]
    features = Features({"id": Value("string"), "labels": List(ClassLabel(num_classes=5))})
    # ClassLabel does not know -100, so that the lists are plain integers, as tokenisation leaves them
    features["labels"] = List(Value("int64"))
    return Dataset.from_dict({"id": [f"s{i}" for i in range(200)], "labels": lists}, features)


def test_every_token_is_randomised_and_a_sentence_costs_as_much_as_its_labels() -> None:
    done = privatize(sentences(), response(0.7, 5, label="labels"))
    same, tokens = 0, 0
    for before, after in zip(sentences(), done, strict=True):
        assert len(before["labels"]) == len(after["labels"])
        assert [i for i, y in enumerate(before["labels"]) if y == -100] == [
            i for i, y in enumerate(after["labels"]) if y == -100
        ]
        n = sum(y != -100 for y in before["labels"])
        assert after["label_dp_epsilon"] == pytest.approx(0.7 * n, rel=1e-6)
        assert after["label_dp_epsilon"] >= 0.7 * n
        same += sum(a == b for a, b in zip(before["labels"], after["labels"], strict=True) if a != -100)
        tokens += n
    p = RRChannel(0.7, 5).p
    assert abs(same / tokens - p) < 5 * (p * (1 - p) / tokens) ** 0.5


def test_tokens_of_a_sentence_have_independent_noise() -> None:
    long = {"id": ["s"], "labels": [[2] * 3000]}
    noisy = np.array(response(1.0, 3, label="labels")(long)["labels"][0])
    kept = noisy == 2
    p = RRChannel(1.0, 3).p
    assert abs(float(np.mean(kept[1:] & kept[:-1])) - p * p) < 5 * (p * p / 3000) ** 0.5


# --- priors -------------------------------------------------------------------------------------------------------


def test_a_prior_that_knows_the_label_keeps_it_more_often() -> None:
    rng, n, k = np.random.default_rng(0), 4000, 6
    true = rng.integers(0, k, n)
    guess = np.where(rng.random(n) < 0.7, true, rng.integers(0, k, n))
    prior = np.full((n, k), 0.3 / (k - 1))
    prior[np.arange(n), guess] = 0.7
    batch = {"id": list(range(n)), "label": true.tolist(), "prior": prior.tolist()}
    plain = np.mean(np.array(response(0.5, k)(batch)["label"]) == true)
    better = np.mean(np.array(response(0.5, k, prior_column="prior")(batch)["label"]) == true)
    assert better > plain + 0.2
    out = response(0.5, k, prior_column="prior")(batch)
    assert set(out["label_dp_epsilon"].tolist()) == {0.5}
    assert out["label_dp_channel"][0].startswith("rr-prior-6-")
    with pytest.raises(ValueError, match="a channel of its own"):
        _ = response(0.5, k, prior_column="prior").channel


def test_priors_of_sentences_are_those_of_their_tokens() -> None:
    batch = {"id": ["a", "b"], "labels": [[0, 1, -100], [2]], "prior": [[1.0, 0.0, 0.0], [0.0, 0.0, 3.0]]}
    out = response(0.5, 3, label="labels", prior_column="prior")(batch)
    assert [list(row) for row in out["labels"]] == [[0, 0, -100], [2]]


@pytest.mark.parametrize("prior", [[0.5, 0.5], [0.0, 0.0, 0.0], [1.0, -0.5, 0.5], [float("nan"), 0.5, 0.5]])
def test_a_prior_that_is_none_is_named_by_its_row(prior: list) -> None:
    batch = {"id": ["a", "b"], "label": [0, 1], "prior": [[1.0, 1.0, 1.0], prior]}
    with pytest.raises(RowError, match="row 1, column 'prior'"):
        response(1.0, 3, prior_column="prior")(batch)
    with pytest.raises(ValueError, match="no column 'priors'"):
        response(1.0, 3, prior_column="priors")(batch)


# --- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (4, "expected a class from 0 to 3, found 4"),
        (-1, "found -1"),
        (-100, "-100 is allowed for tokens only"),
        (None, "found None"),
        (1.0, "found float 1.0"),
        ("class 1", "found str 'class 1'"),
        ([1], "expected an integer class, found list"),
    ],
)
def test_a_label_that_is_no_class_is_named_by_row_value_and_remedy(bad: object, words: str) -> None:
    batch = {"id": ["a", "b", "c"], "label": [0, 3, bad]}
    with pytest.raises(RowError) as caught:
        response(1.0, 4)(batch)
    message = str(caught.value)
    assert "row 2, column 'label'" in message
    assert words in message
    assert "id: 'c'" in message
    assert "class_encode_column('label')" in message
    assert caught.value.row_index == 2


def test_more_classes_than_the_label_column_can_hold_are_refused_before_a_row_is_mapped() -> None:
    five = response(1.0, 5)
    ways = (
        lambda: privatize(rows(8), five),
        lambda: privatize(DatasetDict(train=rows(8)), five),
        lambda: privatize(rows(8).to_iterable_dataset(), five),
        lambda: rows(8).map(five, batched=True),
    )
    for release in ways:
        with pytest.raises(ValueError, match=r"the mechanism has 5 classes, but column 'label' is a ClassLabel of 4"):
            release()
    spare = rows(8).cast_column("label", Value("int64")).cast_column("label", ClassLabel(num_classes=9))
    assert set(privatize(spare, response(1.0, 4))["label"]) <= set(range(4))  # names that no row needs do not matter


@pytest.mark.parametrize("feature", [float, str, bool])
def test_a_whole_column_of_another_type_is_refused(feature: type) -> None:
    values = [feature(y) for y in rows()["label"]]
    dataset = rows().remove_columns("label").add_column("label", values)
    with pytest.raises(RowError, match=r"row 0, column 'label'.*expected an integer class"):
        privatize(dataset, response(1.0, 4))


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ([0, 5], "token 1: expected a class"),
        ([None], "token 0"),
        (3, "expected a list of token labels"),
        ("ab", "list"),
    ],
)
def test_a_token_label_that_is_no_class_is_named(bad: object, words: str) -> None:
    with pytest.raises(RowError, match=words):
        response(1.0, 4, label="labels")({"id": ["a", "b"], "labels": [[0, -100], bad]})


@pytest.mark.parametrize("bad", [None, "", 1.5, True, ["a"]])
def test_an_id_that_is_none_is_refused_with_a_way_to_make_ids(bad: object) -> None:
    with pytest.raises(RowError, match="column 'id'") as caught:
        response(1.0, 4)({"id": ["a", bad], "label": [0, 1]})
    assert "with_indices=True" in str(caught.value)
    assert "salt" in str(caught.value)


def test_an_id_that_comes_twice_is_refused_across_batches_too() -> None:
    with pytest.raises(RowError, match="the id 'a' is that of row 0 too"):
        response(1.0, 4)({"id": ["a", "b", "a"], "label": [0, 1, 2]})
    twice = concatenate_datasets([rows(1500), rows(1)])
    with pytest.raises(RowError, match="is that of row 0 too") as caught:
        privatize(twice, response(1.0, 4))
    assert caught.value.row_index == 1500


def test_missing_columns_and_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="no column 'id'"):
        privatize(rows().remove_columns("id"), response(1.0, 4))
    with pytest.raises(ValueError, match="no column 'id'"):
        response(1.0, 4)({"label": [0]})
    with pytest.raises(ValueError, match="no column 'label'"):
        response(1.0, 4)({"id": ["a"]})
    with pytest.raises(TypeError, match="got list"):
        privatize([{"id": "a", "label": 0}], response(1.0, 4))
    for settings, words in (
        ({"after": RRChannel(1.0, 4), "compose": True}, "leave one of them out"),
        ({"after": RRChannel(1.0, 3)}, "after has 3 classes"),
        ({"after": RRChannel(1.0, 4), "prior_column": "p"}, "leave prior_column out"),
        ({"public_columns": "label_text"}, "must be a tuple"),
    ):
        with pytest.raises(ValueError, match=words):
            response(1.0, 4, **settings)
    for epsilon in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="epsilon must be"):
            response(epsilon, 4)
    with pytest.raises(ValueError, match="num_classes"):
        response(1.0, 1)


def test_it_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        response(1.0, 4).epsilon = 8.0


# --- ids ----------------------------------------------------------------------------------------------------------


def test_hashed_ids_stay_apart_equal_and_cannot_be_guessed(monkeypatch: pytest.MonkeyPatch) -> None:
    import hashlib

    hashed = HashColumn("id", key())({"id": ["a", "b", "a", 7]})["id"]
    assert hashed[0] == hashed[2]
    assert len(set(hashed)) == 3
    guesses = {hashlib.blake2b(b"a", digest_size=16, person=p).hexdigest() for p in (b"", b"hf-ext id hash")}
    assert hashed[0] not in guesses
    for bad in (None, 1.5, True, ["a"]):
        with pytest.raises(RowError, match="row 1, column 'id'"):
            HashColumn("id", key())({"id": ["a", bad]})
    with pytest.raises(ValueError, match="no column 'name'"):
        HashColumn("name", key())({"id": ["a"]})


def numbers() -> Iterator[int]:
    yield from range(3)


def test_a_plain_stream_of_dictionaries_is_randomised_batch_by_batch() -> None:
    from datasets import IterableDataset

    stream = IterableDataset.from_generator(lambda: ({"id": i, "label": i % 3} for i in numbers()))
    assert len(labels(privatize(stream, response(1.0, 3)))) == 3
