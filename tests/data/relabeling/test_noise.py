"""The keyed draw: against its channel on a million rows, its budget in integers, and what must not change it."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from scipy.stats import chisquare

from hf_ext.data.relabeling import KeyRef, RandomizedResponse, RRChannel, realised_epsilon
from hf_ext.data.relabeling.channel import likely_classes
from hf_ext.data.relabeling.keys import WORD, below, encoded, keep_threshold, uniforms
from hf_ext.data.relabeling.randomize import LikelyClasses
from tests.data.relabeling.oracle import channel_matrix, chi_square_p, key, prior_matrix, response

SETTINGS = [(0.1, 2), (0.1, 150), (1.0, 7), (1.0, 77), (2.0, 10), (3.0, 77), (5.0, 150), (8.0, 2), (8.0, 150)]
N = 1_000_000
SECRETS = [hashlib.sha256(text).hexdigest() for text in (b"one key", b"another key")]


@pytest.fixture(scope="module")
def million() -> np.ndarray:
    """Two words each of a million ids, drawn once."""
    messages = (i.to_bytes(4, "big") for i in range(N))
    return uniforms(key().read(), b"test of the channel", messages)


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
        likely = LikelyClasses(*likely_classes(epsilon, np.tile(prior, (len(words), 1))))
        noisy = response(epsilon, k)._draw(true, words, likely)
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
    sizes = {WORD // k, -(-WORD // k)} | {words_of(j, k) for j in (*range(min(k, 40)), k - 1)}
    for size in sizes:  # of 2**64 words, for the class that the noise chooses
        assert kept * WORD + (WORD - kept) * size <= low * (WORD - kept) * size, "a label says more than epsilon"
    more = kept + 1
    assert more * WORD > (high - 1) * (WORD - more) * min(sizes), "there was room for a higher threshold"
    assert epsilon * (1 - 1e-12) <= realised_epsilon(epsilon, k) <= epsilon


def test_words_fall_on_indices_as_exact_arithmetic_says() -> None:
    rng = np.random.default_rng(0)
    words = np.concatenate([rng.integers(0, WORD, 2000, dtype=np.uint64), np.array([0, WORD - 1], dtype=np.uint64)])
    for bound in (1, 2, 3, 76, 149, 2**31, 2**32 - 1):
        expected = [int(word) * bound // WORD for word in words.tolist()]
        assert below(words, bound).tolist() == expected


def test_a_word_is_the_keyed_blake2b_of_domain_and_id() -> None:
    """Any implementation of BLAKE2b gives the same noise: a released dataset can be reproduced for ever."""
    secret, domain = bytes(range(40)), b"domain"
    message = len(domain).to_bytes(8, "big") + domain + b"row 7"
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
    os.environ["HF_EXT_TEST_SECOND_KEY"] = SECRETS[0]
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


# --- the same noise twice -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [2, 3, 7])
@pytest.mark.parametrize("epsilon", [0.2, 1.0, 4.0])
def test_the_same_noise_again_changes_no_label(epsilon: float, k: int) -> None:
    """Labels that lost their ledger: were the noise to move them again, it would move them back."""
    n = 5000
    ids, true = [f"r{i}" for i in range(n)], np.random.default_rng(k).integers(0, k, n)
    once = np.array(response(epsilon, k)({"id": ids, "label": true})["label"])
    assert 0 < (once != true).mean() < 1
    again = response(epsilon, k)({"id": ids, "label": once})["label"]
    assert again.tolist() == once.tolist()
    lists = {"id": ids[:500], "label": [[*row, -100] for row in true[:2000].reshape(500, 4).tolist()]}
    first = response(epsilon, k)(lists)["label"]
    second = response(epsilon, k)({**lists, "label": first})["label"]
    assert np.concatenate(first).tolist() == np.concatenate(second).tolist()


def test_the_same_noise_again_under_a_prior_changes_no_label_whether_likely_or_not() -> None:
    n, k = 6000, 5
    rng = np.random.default_rng(0)
    priors = rng.dirichlet(np.full(k, 0.4), n).tolist()
    batch = {"id": list(range(n)), "label": rng.integers(0, k, n), "prior": priors}
    for epsilon in (0.3, 1.5):
        mechanism = response(epsilon, k, prior_column="prior")
        once = np.array(mechanism(batch)["label"])
        assert (once != batch["label"]).mean() > 0.1
        assert mechanism({**batch, "label": once})["label"].tolist() == once.tolist()


def test_degrading_again_after_a_lost_ledger_changes_no_label() -> None:
    n, k = 3000, 4
    ids = [f"r{i}" for i in range(n)]
    noisy = response(1.0, k)({"id": ids, "label": np.arange(n) % k})
    mechanism = response(0.5, k, after=RRChannel(1.0, k))
    once = mechanism({"id": ids, **noisy})["label"]
    assert (once != noisy["label"]).mean() > 0.3
    assert mechanism({"id": ids, **noisy, "label": once})["label"].tolist() == once.tolist()


class WrongOrRight(RandomizedResponse):
    """Textbook randomised response: keep, or one of the other classes, which depends on the label."""

    def _draw(self, labels, noise, likely):
        stays = noise[:, 0] < np.uint64(int(self.channel.p * WORD))
        other = below(noise[:, 1], self.num_classes - 1)
        return np.where(stays, labels, other + (other >= labels))


@pytest.mark.parametrize("k", [2, 3])
def test_nobody_guesses_better_from_two_draws_under_one_salt_than_from_one(k: int) -> None:
    """The best rule on both labels, chosen with the truth in hand, is right as often as the channel allows for one."""
    n, epsilon = 20_000, 1.0
    ids, true = [str(i) for i in range(n)], np.arange(n) % k
    bound = float(np.exp(epsilon) / (np.exp(epsilon) + k - 1))
    slack = 5 * (bound * (1 - bound) / n) ** 0.5
    best = {}
    for mechanism in (response(epsilon, k), WrongOrRight(epsilon, k, key())):
        once = mechanism({"id": ids, "label": true})["label"]
        twice = mechanism({"id": ids, "label": once})["label"]
        table = np.zeros((k * k, k))
        np.add.at(table, (once * k + twice, true), 1)
        best[type(mechanism)] = table.max(axis=1).sum() / n
    assert abs(best[RandomizedResponse] - bound) < slack
    assert best[WrongOrRight] > bound + 5 * slack, "a draw that undoes itself must fail this test"


# --- noise of two releases ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("epsilon", "settings"), [(1.0, {"salt": "second"}), (0.5, {}), (1.0 + 1e-12, {}), (1.0, {"salt": "\u00e9"})]
)
def test_two_releases_are_jointly_the_product_of_their_channels(epsilon: float, settings: dict) -> None:
    n, k = 20_000, 3
    ids, true = [str(i) for i in range(n)], np.arange(n) % k
    one = np.array(response(1.0, k)({"id": ids, "label": true})["label"])
    two = np.array(response(epsilon, k, **settings)({"id": ids, "label": true})["label"])
    counts = np.zeros((k, k * k), dtype=np.int64)
    np.add.at(counts, (true, one * k + two), 1)
    first, second = channel_matrix(1.0, k), channel_matrix(epsilon, k)
    product = np.array([np.outer(first[y], second[y]).ravel() for y in range(k)])
    assert chi_square_p(counts, product) > 1e-4
    shared = np.zeros_like(counts)
    np.add.at(shared, (true, one * k + one), 1)
    assert chi_square_p(shared, product) < 1e-100, "releases that share their noise must fail this test"


def test_priors_that_let_other_classes_through_have_independent_noise() -> None:
    n, k, epsilon = 20_000, 4, 1.0
    true = np.zeros(n, dtype=np.int64)
    releases = []
    for prior in ([0.4, 0.3, 0.3, 0.0], [0.4, 0.3, 0.0, 0.3]):
        batch = {"id": list(range(n)), "label": true, "prior": [prior] * n}
        releases.append(np.array(response(epsilon, k, prior_column="prior")(batch)["label"]))
    rows = [prior_matrix(epsilon, np.array(p), 3)[0] for p in ([0.4, 0.3, 0.3, 0.0], [0.4, 0.3, 0.0, 0.3])]
    counts = np.zeros((1, k * k), dtype=np.int64)
    np.add.at(counts[0], releases[0] * k + releases[1], 1)
    assert chi_square_p(counts, np.outer(*rows).reshape(1, -1)) > 1e-4


def test_no_two_lists_of_texts_and_numbers_are_encoded_alike() -> None:
    parts = [
        "",
        "a",
        "b",
        "ab",
        "\x1f",
        "a\x1fb",
        "1",
        "01",
        1,
        0,
        -1,
        "\u00e9",
        "e\u0301",
        "\udc80",
        "True",
        "t",
        "i",
    ]
    lists = [[p] for p in parts] + [[p, q] for p in parts for q in parts] + [[]]
    assert len({encoded(*entries) for entries in lists}) == len(lists)


def test_columns_and_salts_with_separators_in_them_share_no_noise_and_no_name() -> None:
    batch = {"id": [str(i) for i in range(4000)]}
    settings = [("a", "b"), ("a\x1fb", ""), ("", "a\x1fb"), ("ab", ""), ("", "ab"), ("a", "b\x00"), ("a", "B")]
    names, noisy = [], []
    for column, salt in settings:
        mechanism = response(1.0, 8, label=column, salt=salt)
        names.append(mechanism.channel_id)
        noisy.append(np.array(mechanism({**batch, column: [0] * 4000})[column]))
    assert len(set(names)) == len(settings)
    p = channel_matrix(1.0, 8)[0]
    chance = float((p**2).sum())
    agreement = [float((x == y).mean()) for i, x in enumerate(noisy) for y in noisy[:i]]
    assert max(abs(a - chance) for a in agreement) < 5 * (chance / 4000) ** 0.5


@pytest.mark.parametrize("value", [1, True, 1.0, None, b"a"])
def test_a_salt_that_is_no_text_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="salt must be a string"):
        response(1.0, 3, salt=value)


def test_a_label_can_be_drawn_again_from_the_definition_alone() -> None:
    """Format 2, written out: who has key, id and settings can check a release with any BLAKE2b."""

    def part(value: str | int) -> bytes:
        content = str(value).encode()
        return (b"t" if isinstance(value, str) else b"i") + len(content).to_bytes(8, "big") + content

    k, epsilon, salt = 6, 1.5, "spring"
    facts = ["hf-ext label noise", "2", "rr", k, "", epsilon.hex(), "label", salt]
    domain = b"".join(map(part, facts))
    a = (Fraction(exactly(epsilon)[0]) - 1) / (exactly(epsilon)[0] - 1 + k)
    expected = []
    for name in map(str, range(300)):
        text = len(domain).to_bytes(8, "big") + domain + part(name)
        digest = hashlib.blake2b(text, key=key().read(), digest_size=16).digest()
        keep, which = int.from_bytes(digest[:8], "big"), int.from_bytes(digest[8:], "big")
        expected.append(4 if Fraction(keep, WORD) < a else which * k // WORD)
    mechanism = response(epsilon, k, salt=salt)
    assert mechanism({"id": list(range(300)), "label": [4] * 300})["label"].tolist() == expected
    assert mechanism.channel_id == f"rr-6-v2-{hashlib.sha256(domain).hexdigest()[:12]}"
