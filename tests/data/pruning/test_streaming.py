"""`prune` on streams: with room for all of it the same rows as on a dataset, with less room still a good mean."""

import numpy as np
import pytest
from datasets import Dataset, IterableDataset, concatenate_datasets

from hf_ext.data.pruning import gm_matching, prune
from hf_ext.guards.rows import RowError
from tests.data.pruning.oracle import cloud, unit
from tests.data.pruning.test_dataset import numbers, rows_with

N = 600


@pytest.fixture
def x():
    return cloud(N, 6)


def texts_of(stream):
    return [int(row["text"].split()[1]) for row in stream]


@pytest.mark.parametrize("method", ["gm", "herding"])
@pytest.mark.parametrize("by", [None, "label"])
def test_with_room_for_every_row_the_picks_are_those_of_a_dataset(x, method, by):
    dataset = rows_with(x)
    stream = prune(dataset.to_iterable_dataset(num_shards=3), 50, method=method, by=by, batch_size=7)
    expected = prune(dataset, 50, method=method, by=by)
    assert isinstance(stream, IterableDataset)
    rows = list(stream)
    assert [row["text"] for row in rows] == expected["text"][:]
    assert [row["prune_rank"] for row in rows] == expected["prune_rank"][:]
    assert list(stream) == rows, "a second epoch"
    assert stream.features == expected.features


@pytest.mark.parametrize("buffer_rows", [37, 150])
def test_theta_goes_on_from_buffer_to_buffer(x, buffer_rows):
    """The picks' mean is nearer to the target than that of picks made apart in each buffer, far nearer than chance."""
    kept = texts_of(prune(rows_with(x).to_iterable_dataset(), 60, buffer_rows=buffer_rows, batch_size=1))
    assert len(kept) == 60
    center = gm_matching(x, 1).center

    def error(rows):
        return np.linalg.norm(unit(x)[rows].mean(0) - center)

    buffers = [slice(first, first + buffer_rows) for first in range(0, N, buffer_rows)]
    counts = [max(1, round(len(x[place]) / 10)) for place in buffers]
    picks = [gm_matching(x[place], m, center=center).indices for place, m in zip(buffers, counts, strict=True)]
    apart = np.concatenate([place.start + own for place, own in zip(buffers, picks, strict=True)])
    random = np.mean([error(np.random.default_rng(s).permutation(N)[:60]) for s in range(20)])
    assert error(kept) < 0.2 * random
    assert error(kept) < error(apart)


@pytest.mark.parametrize("buffer_rows", [1, 13, 600])
def test_shares_of_labels_lose_no_remainder_whatever_the_buffers(x, buffer_rows):
    rows = list(
        prune(rows_with(x).to_iterable_dataset(), fraction=0.115, by="label", buffer_rows=buffer_rows, batch_size=1)
    )
    expected = prune(rows_with(x), fraction=0.115, by="label")
    assert len(rows) == 69
    for label in range(3):
        ranks = [row["prune_rank"] for row in rows if row["label"] == label]
        assert len(ranks) == expected["label"][:].count(label)
        assert sorted(ranks) == list(range(len(ranks)))


def test_a_small_reservoir_still_finds_the_median_under_attack(x):
    x = np.concatenate([x, np.tile([[40.0, -40.0, 0, 0, 0, 0]], (N // 3, 1)).astype(np.float32)])
    order = np.random.default_rng(0).permutation(len(x))
    kept = texts_of(prune(rows_with(x[order]).to_iterable_dataset(), 40, reservoir_rows=100, buffer_rows=200))
    assert np.mean(order[kept] >= N) < 0.1  # a random subset has a quarter of them


def test_an_encoder_and_the_seed_and_the_generator_of_rows(x):
    def rows():
        for i in range(80):
            yield {"text": f"row {i}"}

    def encode(batch):
        return x[[int(text.split()[1]) for text in batch["text"]]]

    stream = IterableDataset.from_generator(rows)
    kept = texts_of(prune(stream, 10, encoder=encode))
    assert kept == sorted(gm_matching(x[:80], 10).indices.tolist())
    small = [texts_of(prune(stream, 10, encoder=encode, reservoir_rows=5, seed=s)) for s in (0, 0, 1)]
    assert small[0] == small[1] != small[2]


def test_a_dataset_s_own_stream_may_be_shuffled_afterwards(x):
    stream = prune(rows_with(x).to_iterable_dataset(), 30)
    assert sorted(texts_of(stream.shuffle(seed=1, buffer_size=30))) == texts_of(stream)


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (None, "there is no vector"),
        ([1.0] * 5, "the vector has 5 numbers, that of row 0 has 6"),
        ([0.0] * 6, "the vector is zero"),
        ([1.0, float("nan"), 0.0, 0.0, 0.0, 0.0], "dimension 1 of the vector is nan"),
    ],
)
def test_a_bad_row_is_named_by_its_place_in_the_stream(x, value, problem):
    values = x.tolist()
    values[123] = value
    bad = rows_with(x).remove_columns("embedding").add_column("embedding", values).to_iterable_dataset()
    with pytest.raises(RowError, match=f"row 123, column 'embedding': {problem}[^$]*text: 'row 123'"):
        prune(bad, 20)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"method": "k_center"}, "needs all rows at hand"),
        ({"trim": 0.1}, "trim=0.1 cannot be used with a stream"),
        ({"return_report": True}, "return_report=True needs all rows"),
        ({"score_column": "s"}, "score_column='s' needs all rows"),
        ({"column": "vectors"}, "no column 'vectors'"),
        ({"by": "kind"}, "by='kind': the stream has no such column"),
        ({"k": 601}, "from 1 to 600"),
        ({"fraction": 0.5}, "both given"),
    ],
)
def test_what_a_stream_cannot_do_is_said(x, arguments, words):
    with pytest.raises(ValueError, match=words):
        prune(rows_with(x).to_iterable_dataset(), **{"k": 5, **arguments})


def test_empty_and_changing_streams_are_refused(x):
    with pytest.raises(ValueError, match="The stream is empty"):
        prune(IterableDataset.from_generator(lambda: iter(())), 1)
    reads = []

    def shrinking():
        reads.append(1)
        yield from ({"embedding": row.tolist()} for row in x[: N if len(reads) == 1 else 100])

    with pytest.raises(ValueError, match="changed between the passes"):
        prune(IterableDataset.from_generator(shrinking), 50)


def test_several_pieces_one_after_another_are_one_stream(x):
    parts = concatenate_datasets([rows_with(x[:100]), rows_with(x[100:])])
    assert isinstance(parts, Dataset)
    parts = parts.remove_columns("text").add_column("text", [f"row {i}" for i in range(N)])
    assert texts_of(prune(parts.to_iterable_dataset(), 20)) == numbers(prune(parts, 20))
