"""The keyed draw: against its channel on a million rows, its budget in integers, and what must not change it."""

from __future__ import annotations

import hashlib
import os
import pickle
import stat
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from datasets.fingerprint import Hasher
from scipy.stats import chisquare

from hf_ext.data.relabeling import KeyRef, RandomizedResponse, make_key_file, realised_epsilon
from hf_ext.data.relabeling.keys import WORD, below, keep_threshold, uniforms
from tests.data.relabeling.oracle import channel_matrix, chi_square_p, key, prior_matrix, response

SETTINGS = [(0.1, 2), (0.1, 150), (1.0, 7), (1.0, 77), (2.0, 10), (3.0, 77), (5.0, 150), (8.0, 2), (8.0, 150)]
N = 1_000_000


@pytest.fixture(scope="module")
def million() -> np.ndarray:
    """Two words each of a million ids, drawn once."""
    messages = (i.to_bytes(4, "big") for i in range(N))
    return uniforms(bytes(range(32)), "test of the channel", messages)


@pytest.mark.parametrize(("epsilon", "k"), SETTINGS)
def test_a_million_keyed_draws_follow_the_channel(million: np.ndarray, epsilon: float, k: int) -> None:
    true = np.arange(N) % k
    noisy = response(epsilon, k)._draw(true, million, None)
    counts = np.bincount(true * k + noisy, minlength=k * k).reshape(k, k)
    assert chi_square_p(counts, channel_matrix(epsilon, k)) > 1e-4


def test_a_budget_two_per_cent_off_is_noticed_by_the_same_test(million: np.ndarray) -> None:
    true = np.arange(N) % 7
    noisy = response(1.02, 7)._draw(true, million, None)
    counts = np.bincount(true * 7 + noisy, minlength=49).reshape(7, 7)
    assert chi_square_p(counts, channel_matrix(1.0, 7)) < 1e-6


@pytest.mark.parametrize(("epsilon", "k"), [(0.5, 5), (2.0, 8), (1.0, 3)])
def test_draws_under_a_prior_follow_the_written_out_matrix(million: np.ndarray, epsilon: float, k: int) -> None:
    words = million[:120_000]
    true = np.arange(len(words)) % k
    for prior in (*np.random.default_rng(k).dirichlet(np.full(k, 0.5), 3), np.eye(k)[1], np.full(k, 1 / k)):
        noisy = response(epsilon, k)._draw(true, words, np.tile(prior, (len(words), 1)))
        counts = np.bincount(true * k + noisy, minlength=k * k).reshape(k, k)
        chances = [float(prior @ np.diag(prior_matrix(epsilon, prior, m))) for m in range(1, k + 1)]
        assert chi_square_p(counts, prior_matrix(epsilon, prior, int(np.argmax(chances)) + 1)) > 1e-4


def exactly(epsilon: float) -> tuple[Fraction, Fraction]:
    """Bounds of exp(epsilon), 1e-40 apart, by another library."""
    import mpmath

    with mpmath.workdps(80):
        value = mpmath.exp(mpmath.mpf(epsilon))
        low = Fraction(int(mpmath.floor(value * 10**45)), 10**45)
    return low, low + Fraction(1, 10**45)


def words_of(index: int, bound: int) -> int:
    """How many of the 2**64 words fall on `index` of `bound`: those between two multiples of 2**64 / bound."""
    return -(-(index + 1) * WORD // bound) - -(-index * WORD // bound)


@pytest.mark.parametrize("k", [2, 3, 7, 10, 77, 150, 1000])
@pytest.mark.parametrize("epsilon", [0.1, 0.3, 1.0, 2.0, 3.0, 8.0, 20.0])
def test_the_realised_budget_never_exceeds_the_stated_one_in_integers(epsilon: float, k: int) -> None:
    low, high = exactly(epsilon)
    kept = keep_threshold(epsilon, k)
    others = {words_of(j, k - 1) for j in (*range(min(k - 1, 40)), k - 2)}
    sizes = {WORD // (k - 1), -(-WORD // (k - 1))} & others | others
    for other in sizes:
        wrong = (WORD - kept) * other  # of 2**128
        assert kept * WORD <= low * wrong, "keeping the label says more than epsilon"
        assert wrong <= low * kept * WORD, "changing it does"
        assert max(sizes) <= low * min(sizes)
    assert (kept + 1) * WORD > high * (WORD - kept - 1) * (WORD // (k - 1)), "there was room for a higher threshold"
    assert epsilon * (1 - 1e-12) <= realised_epsilon(epsilon, k) <= epsilon


def test_words_fall_on_indices_as_exact_arithmetic_says() -> None:
    rng = np.random.default_rng(0)
    words = np.concatenate([rng.integers(0, WORD, 2000, dtype=np.uint64), np.array([0, WORD - 1], dtype=np.uint64)])
    for bound in (1, 2, 3, 76, 149, 2**31, 2**32 - 1):
        expected = [int(word) * bound // WORD for word in words.tolist()]
        assert below(words, bound).tolist() == expected


def test_a_word_is_the_keyed_blake2b_of_domain_and_id() -> None:
    """Any implementation of BLAKE2b gives the same noise: a released dataset can be reproduced for ever."""
    secret, domain = bytes(range(40)), "domain"
    message = len(domain).to_bytes(8, "big") + domain.encode() + b"row 7"
    digest = hashlib.blake2b(message, key=secret, digest_size=16).digest()
    expected = [int.from_bytes(digest[:8], "big"), int.from_bytes(digest[8:], "big")]
    assert uniforms(secret, domain, [b"row 7"]).tolist() == [expected]


def test_keys_salts_budgets_columns_and_positions_have_independent_noise() -> None:
    """Shared noise between two releases would undo both: at 8 classes, agreement beyond chance is measured."""
    n, k = 20_000, 8
    ids = [f"r{i}" for i in range(n)]
    batch = {"id": ids, "label": [3] * n, "other": [3] * n}
    first = np.array(response(1.0, k)(batch)["label"])
    kept, q = float((first == 3).mean()), float((first == 0).mean())
    chance = kept**2 + (1 - kept) ** 2 / (k - 1)
    os.environ["HF_EXT_TEST_SECOND_KEY"] = bytes(range(2, 34)).hex()
    again = [
        response(1.0, k, salt="second")(batch)["label"],
        response(1.001, k)(batch)["label"],
        response(1.0, k, label="other")(batch)["other"],
        RandomizedResponse(1.0, k, KeyRef(env="HF_EXT_TEST_SECOND_KEY"))(batch)["label"],
        np.concatenate(response(1.0, k)({"id": ids, "label": [[3]] * n})["label"]),
    ]
    assert q < kept
    for second in again:
        agreement = float((first == np.array(second)).mean())
        assert abs(agreement - chance) < 5 * (chance * (1 - chance) / n) ** 0.5
    same = response(1.0, k)({"id": ids[::-1], "label": [3] * n})["label"]
    assert list(same[::-1]) == first.tolist()


def test_classes_that_come_out_wrong_are_equally_likely_whatever_the_true_one() -> None:
    n, k = 20_000, 6
    for true in (0, 3, 5):
        noisy = response(0.5, k)({"id": [f"{true}-{i}" for i in range(n)], "label": [true] * n})["label"]
        counts = Counter(np.array(noisy).tolist())
        others = [counts[s] for s in range(k) if s != true]
        assert chisquare(others).pvalue > 1e-4


# --- keys ---------------------------------------------------------------------------------------------------------


def test_a_key_file_is_made_once_private_and_random(tmp_path) -> None:
    first, second = make_key_file(tmp_path / "a.key"), make_key_file(tmp_path / "b.key")
    assert len(first.read()) == 32
    assert first.read() != second.read()
    assert first.key_id != second.key_id
    if os.name == "posix":
        assert stat.S_IMODE((tmp_path / "a.key").stat().st_mode) == 0o600
    with pytest.raises(FileExistsError, match="may hold the key of a released dataset"):
        make_key_file(tmp_path / "a.key")


def test_the_key_is_in_no_repr_pickle_hash_or_cache(tmp_path) -> None:
    secret = "5a" * 32
    (tmp_path / "k").write_text(secret)
    (tmp_path / "k").chmod(0o600)
    mechanism = RandomizedResponse(1.0, 3, KeyRef(file=tmp_path / "k"))
    mechanism({"id": ["a"], "label": [0]})
    for text in (repr(mechanism), str(mechanism.__dict__), mechanism.channel_id, mechanism.key.key_id):
        assert "5a5a" not in text
    for data in (pickle.dumps(mechanism), Hasher.hash(mechanism).encode()):
        assert bytes.fromhex(secret)[:4] not in data
        assert b"5a5a" not in data
    again = pickle.loads(pickle.dumps(mechanism))
    assert again == mechanism
    (tmp_path / "k").write_text("5b" * 32)
    with pytest.raises(ValueError, match=f"key {mechanism.key.key_id} was asked for"):
        again({"id": ["a"], "label": [0]})


def test_the_fingerprint_moves_with_the_key(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("A_KEY", "11" * 32)
    first = Hasher.hash(RandomizedResponse(1.0, 3, KeyRef(env="A_KEY")))
    assert Hasher.hash(RandomizedResponse(1.0, 3, KeyRef(env="A_KEY"))) == first
    monkeypatch.setenv("A_KEY", "22" * 32)
    assert Hasher.hash(RandomizedResponse(1.0, 3, KeyRef(env="A_KEY"))) != first


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "is not set"),
        ("", "is not set"),
        ("ab" * 31, "31 bytes; 32 to 64 are needed"),
        ("ab" * 65, "65 bytes"),
        ("my very secret pass phrase of many words", "not made of hexadecimal digits"),
        ("abc" * 33, "not made of hexadecimal digits"),
    ],
)
def test_a_key_that_is_missing_or_weak_is_refused_with_the_way_to_make_one(monkeypatch, text, words) -> None:
    monkeypatch.delenv("A_KEY", raising=False)
    if text is not None:
        monkeypatch.setenv("A_KEY", text)
    with pytest.raises(ValueError, match=words) as caught:
        KeyRef(env="A_KEY")
    assert "--make-key" in str(caught.value)
    assert text is None or len(text) < 10 or text not in str(caught.value), "an error must not print a key"


def test_a_key_file_that_is_not_there_both_places_and_a_readable_file(tmp_path, caplog) -> None:
    with pytest.raises(ValueError, match="there is no file"):
        KeyRef(file=str(tmp_path / "none"))
    with pytest.raises(ValueError, match="not both"):
        KeyRef(env="A", file="b")
    (tmp_path / "k").write_text("5a" * 32 + "\n")
    (tmp_path / "k").chmod(0o644)
    KeyRef(file=str(tmp_path / "k"))
    if os.name == "posix":
        assert "chmod 600" in caplog.text
    with pytest.raises(ValueError, match="end up in caches"):
        RandomizedResponse(1.0, 3, key().read())
