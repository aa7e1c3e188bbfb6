"""`prune` on datasets: which rows, in which columns, and what is said of those that cannot be used."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value, load_from_disk

from hf_ext.data.pruning import gm_matching, prune, select_rows
from hf_ext.data.pruning.selectors import MATCHERS, SELECTORS
from hf_ext.data.vectors import columns as vectors
from hf_ext.guards.rows import RowError
from tests.data.pruning.oracle import cloud

N = 240


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache" / "hf_ext_pruning"


def rows_with(x, fixed=True, **columns):
    """A dataset of vectors, texts that name their row, and labels."""
    features = {"embedding": List(Value("float32"), length=x.shape[1] if fixed else -1), "text": Value("string")}
    features |= {"label": ClassLabel(names=["cat", "dog", "eel"])}
    values = {"embedding": list(x), "text": [f"row {i}" for i in range(len(x))]}
    values |= {"label": [i % 7 % 3 for i in range(len(x))]}
    dataset = Dataset.from_dict(values, features=Features(features))
    for name, column in columns.items():
        dataset = dataset.add_column(name, column)
    return dataset


def numbers(dataset):
    return [int(text.split()[1]) for text in dataset["text"]]


@pytest.fixture
def x():
    return cloud(N, 6)


def test_the_rows_kept_are_the_picks_in_the_rows_order_with_their_place(x):
    picks = gm_matching(x, 40).indices
    pruned = prune(rows_with(x), 40)
    assert numbers(pruned) == sorted(picks.tolist())
    assert [picks[rank] for rank in pruned["prune_rank"]] == numbers(pruned)
    assert pruned.features["prune_rank"] == Value("int32")
    assert {n: f for n, f in pruned.features.items() if n != "prune_rank"} == rows_with(x).features
    np.testing.assert_array_equal(np.array(pruned["embedding"], dtype=np.float32), x[sorted(picks)])


def test_rows_with_a_low_rank_are_what_a_smaller_number_keeps(x):
    large = prune(rows_with(x), 90)
    small = large.filter(lambda row: row["prune_rank"] < 30)
    assert numbers(small) == numbers(prune(rows_with(x), 30))
    grouped = prune(rows_with(x), by="label", budget={"cat": 20, "dog": 30, "eel": 10})
    fewer = prune(rows_with(x), by="label", budget={"cat": 7, "dog": 30, "eel": 1})
    limits = {0: 7, 1: 30, 2: 1}
    kept = [i for i, (rank, label) in enumerate(zip(grouped["prune_rank"], grouped["label"], strict=True))
            if rank < limits[label]]  # fmt: skip
    assert numbers(grouped.select(kept)) == numbers(fewer)


@pytest.mark.parametrize("fraction", [0.1, 0.25, 1 / 3, 0.999])
def test_label_shares_lose_no_remainder_and_follow_the_rows(x, fraction):
    dataset = rows_with(x)
    pruned = prune(dataset, fraction=fraction, by="label")
    wanted = int(fraction * N + 0.5)
    assert len(pruned) == wanted
    for label in range(3):
        exact = wanted * dataset["label"][:].count(label) / N
        assert abs(pruned["label"][:].count(label) - exact) < 1
        assert sorted(r for r, own in zip(pruned["prune_rank"], pruned["label"], strict=True) if own == label) == list(
            range(pruned["label"][:].count(label))
        )


def test_labels_are_matched_on_their_own_rows(x):
    dataset = rows_with(x)
    pruned = prune(dataset, by="label", budget={"cat": 9, "eel": 8})
    expected = []
    for label, count in ((0, 9), (2, 8)):
        own = np.flatnonzero(np.array(dataset["label"]) == label)
        expected += own[gm_matching(x[own], count).indices].tolist()
    assert numbers(pruned) == sorted(expected)


def test_every_selector_goes_through_and_the_method_s_options_reach_it(x):
    dataset = rows_with(x, score=np.linspace(0, 1, N)[np.random.default_rng(0).permutation(N)])
    for method in [*MATCHERS, *SELECTORS]:
        scored = method == "score"
        scores = np.array(dataset["score"]) if scored else None
        pruned = prune(dataset, 20, method=method, score_column="score" if scored else None, seed=3)
        assert numbers(pruned) == sorted(select_rows(method, x, 20, scores=scores, seed=3).indices.tolist())
    low = prune(dataset, 20, method="score", score_column="score", keep="easy")
    assert max(low["score"]) < 20 / N + 1e-9
    trimmed = prune(dataset, 20, trim=0.3, metric="raw")
    assert numbers(trimmed) == sorted(gm_matching(x, 20, trim=0.3, metric="raw").indices.tolist())


@pytest.mark.parametrize(("method", "score_column"), [("random", None), ("score", "score")])
def test_what_needs_no_vectors_runs_without(x, method, score_column):
    dataset = rows_with(x, score=np.arange(N) / 2).remove_columns("embedding")
    pruned, report = prune(dataset, 20, method=method, score_column=score_column, by="label", return_report=True)
    assert len(pruned) == report.kept == 20
    assert report.curve == []
    assert "| rows kept | 20 of 240 (8.3%) |" in report.to_markdown()
    with pytest.raises(ValueError, match="needs vectors"):
        report.plot()


def test_the_same_call_gives_the_same_rows_and_fingerprint_in_any_process(x, tmp_path):
    rows_with(x).save_to_disk(tmp_path / "rows")
    code = (
        "import sys; from datasets import load_from_disk; from hf_ext import prune\n"
        "rows = prune(load_from_disk(sys.argv[1]), 30, by='label', show_progress=False)\n"
        "print(rows._fingerprint, list(rows['text']))"
    )
    environment = os.environ | {"PYTHONHASHSEED": "7", "TQDM_DISABLE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "rows")],
        capture_output=True,
        text=True,
        env=environment,
        check=True,
    )
    here = prune(load_from_disk(tmp_path / "rows"), 30, by="label")
    assert done.stdout.strip() == f"{here._fingerprint} {list(here['text'])}"


def test_of_a_dict_of_splits_one_is_pruned_and_all_keep_one_schema(x, tmp_path):
    splits = DatasetDict({"train": rows_with(x), "test": rows_with(x[:9])})
    pruned = prune(splits, fraction=0.1)
    assert numbers(pruned["train"]) == numbers(prune(rows_with(x), fraction=0.1))
    assert numbers(pruned["test"]) == list(range(9))
    assert pruned["test"]["prune_rank"][:] == [None] * 9
    assert pruned["test"].features == pruned["train"].features
    assert len(prune(splits, 4, split="test")["test"]) == 4
    with pytest.raises(ValueError, match=r"split='dev'.*\['train', 'test'\]"):
        prune(splits, 4, split="dev")


def test_pruning_again_replaces_the_ranks(x):
    again = prune(prune(rows_with(x), 60), 10)
    assert sorted(again["prune_rank"]) == list(range(10))


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_a_formatted_dataset_gives_the_same_rows_and_keeps_its_format(x, kind):
    pruned = prune(rows_with(x).with_format(kind), 20)
    assert pruned.format["type"] == kind
    assert numbers(pruned.with_format(None)) == numbers(prune(rows_with(x), 20))


# Where the vectors come from


def test_a_column_in_one_piece_is_not_copied(x):
    dataset = rows_with(x)
    view, notes = vectors.column_vectors(dataset, "embedding")
    first, again = view.__array_interface__["data"][0], vectors.column_vectors(dataset, "embedding")[0]
    assert again.__array_interface__["data"][0] == first
    assert not view.flags.owndata
    assert notes == ()
    np.testing.assert_array_equal(view, x)


@pytest.mark.parametrize("fixed", [True, False])
@pytest.mark.parametrize("in_memory", [10**9, 0])
def test_pieces_and_chosen_rows_are_gathered_in_memory_or_on_disk(x, fixed, in_memory, monkeypatch, cache):
    from datasets import concatenate_datasets

    monkeypatch.setattr(vectors, "IN_MEMORY", in_memory)
    monkeypatch.setattr(vectors, "BATCH_ROWS", 50)
    pieces = concatenate_datasets([rows_with(x[:100], fixed), rows_with(x[100:], fixed)])
    found, _ = vectors.column_vectors(pieces, "embedding")
    np.testing.assert_array_equal(found, x)
    order = np.random.default_rng(1).permutation(N)[:77]
    found, _ = vectors.column_vectors(pieces.select(order), "embedding")
    np.testing.assert_array_equal(found, x[order])
    assert isinstance(found, np.memmap) == (in_memory == 0)
    assert len(list(cache.glob("column-*.npy"))) == (2 if in_memory == 0 else 0)
    before = {path: path.stat().st_mtime_ns for path in cache.glob("*")}
    vectors.column_vectors(pieces.select(order), "embedding")
    assert {path: path.stat().st_mtime_ns for path in cache.glob("*")} == before


def test_vectors_may_be_an_array_of_their_own(x, tmp_path):
    np.save(tmp_path / "x.npy", x)
    dataset = rows_with(x).remove_columns("embedding")
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert numbers(prune(dataset, 20, column=mapped)) == numbers(prune(rows_with(x), 20))
    with pytest.raises(ValueError, match=r"array of shape \(239, 6\), 240 rows"):
        prune(dataset, 20, column=mapped[:-1])


@pytest.mark.parametrize("kind", ["float64", "float16"])
def test_other_floats_are_cast_with_a_note(x, kind):
    x = x.astype(np.float16).astype(np.float32)
    dataset = rows_with(x).cast_column("embedding", List(Value(kind), length=6))
    pruned, report = prune(dataset, 20, return_report=True)
    kind = {"float64": "double", "float16": "halffloat"}[kind]
    assert report.notes == [f"column 'embedding' cast from {kind} to float32"]
    assert numbers(pruned) == numbers(prune(rows_with(x), 20))


# What cannot be used


def with_vector(x, row, value):
    """The dataset with another value in place of one row's vector; lists may then be of any length."""
    values = [*x.tolist()]
    values[row] = value
    return rows_with(x).remove_columns("embedding").add_column("embedding", values)


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (None, "there is no vector (None)"),
        ([0.5] * 5, "the vector has 5 numbers, that of row 0 has 6"),
        ([], "the vector has 0 numbers, that of row 0 has 6"),
        ([1.0, 2.0, None, 4.0, 5.0, 6.0], "dimension 2 is None"),
        ([1.0, float("nan"), 0.0, 0.0, 0.0, 0.0], "dimension 1 of the vector is nan"),
        ([float("-inf"), 1.0, 0.0, 0.0, 0.0, 0.0], "dimension 0 of the vector is -inf"),
        ([0.0] * 6, "the vector is zero, it has no direction"),
        ([1e35, 0.0, 0.0, 0.0, 0.0, 0.0], "the vector is longer than 1e+30"),
    ],
)
def test_a_bad_vector_is_named_by_row_column_and_excerpt_with_the_remedy(x, value, problem):
    with pytest.raises(RowError) as caught:
        prune(with_vector(x, 123, value), 20)
    error = caught.value
    assert (error.row_index, error.column) == (123, "embedding")
    first, excerpt, remedy = str(error).split("\n")
    assert first.startswith(f"row 123, column 'embedding': {problem}")
    assert excerpt == "  text: 'row 123'"
    assert remedy.startswith(("  Fix the row", "  Drop the row", "  Rescale"))


def test_a_zero_row_is_a_row_in_raw_units(x):
    assert 123 in numbers(prune(with_vector(x, 123, [0.0] * 6), N, metric="raw"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"k": 241}, ["241", "1 to 240"]),
        ({"k": 0}, ["0", "1 to 240"]),
        ({"k": -2}, ["-2", "1 to 240"]),
        ({"k": 2.5}, ["2.5", "1 to 240"]),
        ({"k": True}, ["True", "1 to 240"]),
        ({"k": 5, "fraction": 0.1}, ["k=5", "fraction=0.1", "both"]),
        ({}, ["k=None", "fraction=None"]),
        ({"fraction": 0.0}, ["240 rows", "(0, 1]", "0.0"]),
        ({"fraction": 1.01}, ["240 rows", "(0, 1]", "1.01"]),
        ({"fraction": float("nan")}, ["(0, 1]", "nan"]),
        ({"fraction": True}, ["(0, 1]", "True"]),
        ({"k": 2, "by": "label"}, ["k=2", "3 groups", "'cat'", "rows)"]),
        ({"k": 5, "by": "label", "min_per_group": 2}, ["k=5", "at least 2 rows"]),
        ({"k": 5, "by": "kind"}, ["by='kind'", "'label'"]),
        ({"k": 5, "by": "embedding"}, ["by='embedding'", "not one label"]),
        ({"k": 5, "column": "vectors"}, ["'vectors'", "'embedding'", "encoder="]),
        ({"k": 5, "column": "text"}, ["'text'", "not vectors"]),
        ({"k": 5, "method": "score"}, ["ranks rows by scores"]),
        ({"k": 5, "method": "score", "score_column": "points"}, ["score_column='points'"]),
        ({"k": 5, "method": "score", "score_column": "text"}, ["score_column='text'", "not one number"]),
        ({"k": 5, "method": "scores"}, ["Did you mean 'score'"]),
        ({"k": 5, "seeds": 3}, ["seeds"]),
    ],
)
def test_an_argument_that_cannot_be_used_is_named(x, arguments, words):
    with pytest.raises((ValueError, TypeError)) as caught:
        prune(rows_with(x), **arguments)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_whole_numbers_and_no_rows_and_no_dataset_are_refused(x):
    whole = Dataset.from_dict({"embedding": [[1, 2], [3, 4]]})
    with pytest.raises(ValueError, match=r"lists of int64, not floating point vectors\. Pass embeddings"):
        prune(whole, 1)
    with pytest.raises(ValueError, match="The dataset is empty"):
        prune(rows_with(x).select([]), 1)
    with pytest.raises(TypeError, match="got list"):
        prune([1, 2], 1)


@pytest.mark.parametrize("label", [None, -1, 2])
def test_a_row_without_a_label_is_named(x, label):
    labels = [0] * N
    labels[57] = label
    dataset = rows_with(x).remove_columns("label").add_column("label", labels, feature=Value("int64"))
    if label is not None:
        dataset = dataset.cast_column("label", ClassLabel(names=["cat", "dog"]))  # a cast lets any number in
    for rows in (dataset, dataset.to_iterable_dataset()):
        with pytest.raises(RowError, match=rf"row 57, column 'label': there is no label \({label}[^$]*'row 57'"):
            prune(rows, 20, by="label")


def test_a_score_that_is_not_finite_is_named(x):
    scores = np.arange(N, dtype=float)
    scores[99] = np.nan
    with pytest.raises(RowError, match="row 99, column 'score': the score is nan"):
        prune(rows_with(x, score=scores), 20, method="score", score_column="score")


def test_a_label_smaller_than_its_share_gives_all_its_rows_and_the_report_says_so(x):
    labels = ["rare"] * 3 + ["often"] * (N - 3)
    dataset = rows_with(x).remove_columns("label").add_column("label", labels)
    pruned, report = prune(dataset, 60, by="label", budget="equal", return_report=True)
    assert pruned["label"][:].count("rare") == 3
    assert len(pruned) == 60
    assert report.notes == ["group 'rare' has fewer rows than its share: all 3 were taken"]


def test_a_median_that_is_not_proven_warns_and_raises_where_asked(x, monkeypatch):
    from hf_ext.data.pruning import one_group

    solve = one_group.solve
    monkeypatch.setattr(one_group, "solve", lambda *args, **options: solve(*args, **options | {"max_iter": 1}))
    with pytest.warns(RuntimeWarning, match="stopped after 1 steps with a proven relative gap"):
        prune(rows_with(x), 5)
    with pytest.warns(RuntimeWarning), pytest.raises(RuntimeError, match="Raise max_iter"):
        prune(rows_with(x), 5, strict=True)


def test_a_killed_run_goes_on_from_its_file(x, tmp_path, monkeypatch):
    from hf_ext.data.pruning import one_group

    keep, path = one_group._Group.save, tmp_path / "picks.npz"

    def kept(group, write_now=False):
        keep(group, write_now)
        if group.count >= 20:
            raise KeyboardInterrupt

    monkeypatch.setattr(one_group, "_PIECE_SECONDS", 0.0)
    monkeypatch.setattr(one_group._Group, "save", kept)
    with pytest.raises(KeyboardInterrupt):
        prune(rows_with(x), 60, resume_path=path, save_every=0)
    monkeypatch.undo()
    assert len(np.load(path)["0/numbers"]) == 20
    assert numbers(prune(rows_with(x), 60, resume_path=path)) == numbers(prune(rows_with(x), 60))
    assert not Path(path).exists()
