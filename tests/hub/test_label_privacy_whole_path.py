"""
From true labels to what a stranger downloads: no guess from all of it is better than the stated channels allow.

Every detour a user may take is tried: the ledger lost, mapped again, through pandas, as a stream, in pieces, a second
file, a second epsilon, a second salt. Some are refused, which is well. What is published is downloaded from a Hub in
memory and attacked twice: by the posterior of the stated channels, and by a guesser that has learned, on half of the
rows whose truth it is shown, what any pattern of published labels means.
"""

from __future__ import annotations

import hashlib
import itertools
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, concatenate_datasets
from huggingface_hub import snapshot_download

from hf_ext.data.relabeling import KeyRef, LabelLeakError, RandomizedResponse, carry_ledger, privatize
from hf_ext.data.relabeling.ledger import CHANNEL, EPSILON, PrivacyBudgetError
from hf_ext.hub.push import push_dataset
from tests.data.relabeling.oracle import channel_matrix, prior_matrix
from tests.hub.fake_hub import FakeHub

SECRET = hashlib.sha256(b"a key for the whole path").hexdigest()
os.environ["HF_EXT_WHOLE_PATH_KEY"] = SECRET
N = 1200
ONE_IN_A_MILLION = 4.75  # standard errors

Releases = dict[str, dict[str, tuple[float, int]]]  # id to channel to epsilon of that draw and noisy label


def private(k: int, prior: np.ndarray) -> Dataset:
    rng = np.random.default_rng(k)
    columns = {"id": [f"r{i}" for i in range(N)], "text": [f"a text, number {i}" for i in range(N)]}
    columns["label"] = rng.choice(k, N, p=prior).tolist()
    return Dataset.from_dict(columns).cast_column("label", ClassLabel(names=[f"kind {i}" for i in range(k)]))


def stripped(rows: Dataset) -> Dataset:
    return rows.remove_columns([EPSILON, CHANNEL])


def detours(true: Dataset, mechanism: RandomizedResponse, k: int) -> Iterator[tuple[str, Callable[[], Dataset]]]:
    """What users do before they push, each as a function that gives rows or is refused."""
    epsilon, key = mechanism.epsilon, mechanism.key
    noisy = privatize(true, mechanism)
    yield "plain", lambda: noisy
    yield "again on lost ledgers", lambda: privatize(stripped(noisy), mechanism)
    yield "mapped on lost ledgers", lambda: stripped(noisy).map(mechanism, batched=True, batch_size=77)
    yield "thrice", lambda: privatize(stripped(privatize(stripped(noisy), mechanism)), mechanism)
    yield "on its own ledger", lambda: privatize(noisy, mechanism)
    yield "through pandas", lambda: privatize(Dataset.from_pandas(stripped(noisy).to_pandas()), mechanism)
    yield "as a stream", lambda: Dataset.from_list(list(privatize(true.to_iterable_dataset(), mechanism)))
    halves = (range(0, N, 2), range(1, N, 2))
    yield "in pieces", lambda: concatenate_datasets([privatize(true.select(half), mechanism) for half in halves])
    yield "a second file", lambda: privatize(true.shuffle(seed=3).select(range(N // 2)), mechanism)
    yield "true beside noisy", lambda: concatenate_datasets([noisy, true.select(range(50))])
    again = RandomizedResponse(epsilon / 2, k, key, compose=True, salt="second")
    yield "a second epsilon", lambda: privatize(carry_ledger(true, noisy), again)
    other = RandomizedResponse(epsilon, k, key, salt="third")
    yield "a second salt", lambda: privatize(true, other)
    yield "a second salt, twice", lambda: privatize(stripped(privatize(true, other)), other)


def published(hub: FakeHub, repositories: list[str], folder: Path) -> tuple[Releases, str]:
    """All labels that a stranger can download, and all texts beside them."""
    releases: Releases = defaultdict(dict)
    texts = []
    for repository in repositories:
        there = Path(snapshot_download(repository, repo_type="dataset", local_dir=folder / repository))
        for path in there.rglob("*"):
            if path.suffix == ".parquet":
                for row in pq.read_table(path).to_pylist():
                    labels = releases[row["id"]]
                    label = (row[EPSILON], row["label"])
                    # The same draw shows the same label, wherever it is shown: else it was drawn twice.
                    assert labels.setdefault(row[CHANNEL], label)[1] == label[1], repository
            elif path.is_file() and ".cache" not in path.parts:
                texts.append(path.read_text(errors="replace"))
    return releases, "\n".join(texts)


def chance_to_guess(matrices: list[np.ndarray], prior: np.ndarray) -> float:
    """How often the best guess from independent draws is right: the sum over outcomes of the likeliest truth."""
    k = len(prior)
    return sum(
        max(prior[y] * np.prod([m[y, s] for m, s in zip(matrices, outcome, strict=True)]) for y in range(k))
        for outcome in itertools.product(range(k), repeat=len(matrices))
    )


def allowed(rates: list[float]) -> float:
    """Right guesses out of rows with these chances that happen by luck once in a million tests."""
    chances = np.array(rates)
    return float(chances.sum() + ONE_IN_A_MILLION * np.sqrt((chances * (1 - chances)).sum()) + 1)


@pytest.mark.parametrize(
    ("k", "epsilon", "shares"), [(2, 1.0, "even"), (3, 1.5, "uneven"), (10, 2.0, "even"), (4, 1.5, "prior")]
)
def test_no_guess_from_all_that_is_published_beats_the_stated_channels(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, k: int, epsilon: float, shares: str
) -> None:
    monkeypatch.chdir(tmp_path)
    prior = np.full(k, 1 / k) if shares == "even" else np.arange(k, 0, -1) / np.arange(1, k + 1).sum()
    true = private(k, prior)
    if shares == "prior":
        true = true.add_column("prior", [prior.tolist()] * N)
    truth = dict(zip(true["id"], true["label"], strict=True))
    settings = {"prior_column": "prior"} if shares == "prior" else {}
    if shares == "uneven":  # beside a key's file a record holds what was released, and refuses more detours
        (tmp_path / "labels.key").write_text(SECRET)
        (tmp_path / "labels.key").chmod(0o600)
        key = KeyRef(file=str(tmp_path / "labels.key"))
    else:
        key = KeyRef(env="HF_EXT_WHOLE_PATH_KEY")
    mechanism = RandomizedResponse(epsilon, k, key, **settings)
    repositories, refused = [], set()
    for i, (name, make) in enumerate(detours(true, mechanism, k)):
        try:
            push_dataset(make(), f"me/push{i}", public_columns=["prior"] if settings else [])
            repositories.append(f"me/push{i}")
        except (PrivacyBudgetError, LabelLeakError):
            refused.add(name)
    assert {"on its own ledger", "true beside noisy"} <= refused
    assert ("a second salt" in refused) == (shares == "uneven")
    assert not {"plain", "a second epsilon"} & refused

    releases, texts = published(hub, repositories, tmp_path / "got")
    assert len(releases) == N
    assert SECRET not in texts
    assert not any(SECRET[i : i + 16] in texts for i in range(0, len(SECRET) - 16, 8))

    # The draws of each row, with the epsilon that each of them cost: a composed ledger holds the sum.
    cost = {channel: epsilon for row in releases.values() for channel in row}
    for row in releases.values():
        for channel, (spent, _) in row.items():
            cost[channel] = min(cost[channel], spent if np.isclose(spent, epsilon) else spent - epsilon)
    kept = int(np.argmax(np.cumsum(prior) / (1 + np.arange(k) * np.exp(-epsilon)))) + 1
    matrices = {
        channel: prior_matrix(spent, prior, kept) if channel.startswith("rr-prior") else channel_matrix(spent, k)
        for channel, spent in cost.items()
    }
    by_draws = {tuple(sorted(row)) for row in releases.values()}
    bound_of = {draws: chance_to_guess([matrices[d] for d in draws], prior) for draws in by_draws}

    # First attack: the likeliest truth, given every draw.
    right = 0
    for name, row in releases.items():
        posterior = prior * np.prod([matrices[channel][:, label] for channel, (_, label) in row.items()], axis=0)
        right += int(posterior.argmax()) == truth[name]
    assert right <= allowed([bound_of[tuple(sorted(row))] for row in releases.values()])

    # Second attack: patterns of equal and unequal labels, learned on one half of the rows, tried on the other.
    patterns = {}
    for name, row in releases.items():
        labels = [label for _, (_, label) in sorted(row.items())]
        patterns[name] = (
            tuple(sorted(row)),
            tuple(labels[: 2 if k < 5 else 1]),
            tuple(label == labels[0] for label in labels),
        )
    learned: dict[object, Counter[int]] = defaultdict(Counter)
    names = sorted(releases)
    for name in names[::2]:
        learned[patterns[name]][truth[name]] += 1
    tried = [name for name in names[1::2] if learned[patterns[name]]]
    right = sum(learned[patterns[name]].most_common(1)[0][0] == truth[name] for name in tried)
    assert len(tried) > 0.8 * N / 2
    assert right <= allowed([bound_of[tuple(sorted(releases[name]))] for name in tried])


def test_the_attacks_would_see_a_draw_too_many() -> None:
    """A control: the same bound, but labels that were drawn afresh three times under one name."""
    rng, k = np.random.default_rng(4), 3
    prior, matrix = np.full(k, 1 / k), channel_matrix(1.5, k)
    truth = rng.integers(0, k, N)
    draws = np.array([[rng.choice(k, p=matrix[y]) for y in truth] for _ in range(3)])
    votes = np.array([np.bincount(column, minlength=k).argmax() for column in draws.T])
    assert (votes == truth).sum() > allowed([chance_to_guess([matrix], prior)] * N)
    assert (draws[0] == truth).sum() <= allowed([chance_to_guess([matrix], prior)] * N)
