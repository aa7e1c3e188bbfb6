"""Keyed randomised response as a map callable: a label's one noisy copy, with a ledger beside it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hf_ext.data.relabeling.channel import FloatArray, RRChannel, check_classes, check_epsilon, likely_classes
from hf_ext.data.relabeling.class_names import check_class_count
from hf_ext.data.relabeling.columns import IGNORED_LABEL, ClassColumn, class_column, row_error
from hf_ext.data.relabeling.keys import KeyRef, below, check_key, encoded, keep_threshold, uniforms
from hf_ext.data.relabeling.leaks import refuse_leaks
from hf_ext.data.relabeling.ledger import (
    CHANNEL,
    EPSILON,
    FORMAT,
    TRUE_LABEL,
    PrivacyBudgetError,
    channel_id,
    rounded_up,
    spent,
)
from hf_ext.guards.row_text import describe, plain

IntArray = NDArray[np.int64]
_IDS = (
    "Number the rows once with dataset.map(lambda row, i: {'id': i}, with_indices=True) before anything reorders "
    "them, and give every dataset under one key its own salt."
)


@dataclass(frozen=True)
class RandomizedResponse:
    """
    Replace labels by one noisy copy each, for `Dataset.map(batched=True)`, and write a ledger.

    | column in | type | column out | type |
    |---|---|---|---|
    | `label` | int class; a list of them (and -100) for tokens | `label` | the noisy class, the same type |
    | `id_column` | str or int, unique | `label_dp_epsilon` | float32, nats spent on the row's labels so far |
    | `prior_column`, if given | K numbers | `label_dp_channel` | str, names the channel |

    The noise is no draw but a function of the key, the salt, this object's settings and the row's id: mapping again,
    more workers, a stream, a lost cache or a resumed job give the same noisy label. It says whether the label stays,
    and otherwise which of all K classes replaces it, whatever the label was: on labels that are noisy already, their
    ledger lost, the same noise changes nothing. `privatize` maps a whole dataset and checks what no batch shows: ids
    that occur twice, and columns that give the label away.

    Args:
        epsilon (`float`):
            Nats per label. A row of token labels costs `epsilon` times its labels, and the ledger says so.
        num_classes (`int`):
            K.
        key ([`KeyRef`]):
            Where the secret key is. Whoever has it can take the noise off again.
        label (`str`, *optional*, defaults to `"label"`), id_column (`str`, *optional*, defaults to `"id"`):
            Columns. Two label columns of one row have independent noise.
        prior_column (`str`, *optional*):
            A public prior of each row's label: [`~hf_ext.data.relabeling.RRWithPrior`] instead of plain randomised
            response. It must not depend on the row's own label.
        compose (`bool`, *optional*, defaults to `False`):
            For rows with a ledger whose `label` is the *true* one: a fresh draw; its epsilon is added to the ledger.
        revision (`str`, *optional*):
            Changes whenever the output would.
        salt (`str`, *optional*, defaults to `""`):
            Names the release. Another salt is another draw, and costs again.
        after ([`RRChannel`], *optional*):
            For rows with a ledger whose `label` is noisy already, from one draw of this channel: degrade it further.
            Post-processing costs nothing, and the ledger holds the epsilon of the two channels in a row. If the less
            noisy labels were released as well, theirs is what was spent.
        public_columns (`tuple[str, ...]`, *optional*):
            Columns that may give the label away, because they are public anyway.

    Raises:
        ValueError: if settings do not go together, or there is no key.
        PrivacyBudgetError: if a row has a ledger, and neither `compose` nor `after` is set.
        RowError: if a label lies outside 0..K-1, or an id is missing or not unique in its batch.

    Reference: Warner 1965, *Randomized Response*; Ghazi et al. 2021, Algorithms 1 and 2 (arXiv 2102.06062).
    """

    epsilon: float
    num_classes: int
    key: KeyRef
    label: str = "label"
    id_column: str = "id"
    prior_column: str | None = None
    compose: bool = False
    revision: str = "2"  # changes whenever the output would: datasets hashes this object, not the code behind it
    salt: str = ""
    after: RRChannel | None = None
    public_columns: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_epsilon(self.epsilon)
        check_classes(self.num_classes)
        check_key(self.key)
        for setting in ("label", "id_column", "salt"):
            value = getattr(self, setting)
            if not isinstance(value, str):
                raise ValueError(f"{setting} must be a string, got {describe(value)}.")
        if isinstance(self.public_columns, str):
            raise ValueError(f"public_columns must be a tuple of names, got the string {self.public_columns!r}.")
        if self.after is not None:
            if self.compose:
                raise ValueError("compose draws from the true label, after from a noisy one: leave one of them out.")
            if self.prior_column is not None:
                raise ValueError("after= goes with plain randomised response: leave prior_column out.")
            if self.after.num_classes != self.num_classes:
                raise ValueError(f"after has {self.after.num_classes} classes, num_classes is {self.num_classes}.")
        keep_threshold(self.epsilon, self.num_classes)

    @property
    def channel(self) -> RRChannel:
        """
        What the labels that come out have passed through: for the losses, `noisy_accuracy` and `relabel`.

        Raises:
            ValueError: if there are priors: then every row has its own, [`~hf_ext.data.relabeling.RRWithPrior`].
        """
        if self.prior_column is not None:
            raise ValueError("With prior_column every row has a channel of its own: RRWithPrior(epsilon, prior).")
        channel = RRChannel(self.epsilon, self.num_classes)
        return channel if self.after is None else self.after.then(channel)

    @property
    def channel_id(self) -> str:
        """What the ledger calls the channel."""
        return channel_id(self._mechanism, self.num_classes, self._facts())

    @property
    def _mechanism(self) -> str:
        if self.after is not None:
            return "rr-then-rr"
        return "rr" if self.prior_column is None else "rr-prior"

    def _facts(self) -> bytes:
        """Everything the noise is for. Two releases that share noise give true labels away wherever they differ."""
        first = "" if self.after is None else float(self.after.epsilon).hex()
        epsilon = float(self.epsilon).hex()
        mechanism = ("hf-ext label noise", FORMAT, self._mechanism, self.num_classes)
        return encoded(*mechanism, first, epsilon, self.label, self.salt)

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Noisy labels and ledger of one batch."""
        self.check_features(getattr(getattr(batch, "formatter", None), "features", None))  # as a lazy batch has them
        classes = class_column(batch, self.label, self.num_classes, offset=None)
        rows = len(batch[self.label])
        epsilons, channels = self.ledger_after(batch, classes, rows)
        refuse_leaks(batch, self.label, public=self._public())
        labelled = classes.flat != IGNORED_LABEL
        likely = self.likely(batch, classes)
        messages = self.messages(batch, classes)
        if likely is not None:
            messages = map(bytes.__add__, messages, likely.encoded())
        noise = uniforms(self.key.read(), self._facts(), messages)
        noisy = classes.flat.copy()
        noisy[labelled] = self._draw(classes.flat[labelled], noise, likely)
        return {self.label: classes.rows(noisy), EPSILON: rounded_up(epsilons), CHANNEL: channels}

    def check_features(self, features: Mapping[str, Any] | None) -> None:
        """
        Refuse a label column that cannot hold every class which may come out.

        Raises:
            ValueError: if it is a `ClassLabel` of fewer classes.
        """
        check_class_count(self.num_classes, (features or {}).get(self.label), "the mechanism", self.label)

    def _public(self) -> tuple[str, ...]:
        prior = () if self.prior_column is None else (self.prior_column,)
        return (*self.public_columns, *prior, EPSILON, CHANNEL)

    def ledger_after(self, batch: Mapping[str, Any], classes: ClassColumn, rows: int) -> tuple[FloatArray, list[str]]:
        """
        Epsilon and channel of every row once this draw is made.

        Raises:
            PrivacyBudgetError: if the ledger of a row does not allow it.
        """
        spent_before, names = spent(batch, rows)
        cost = self.epsilon * classes.counts
        with_ledger = [i for i, name in enumerate(names) if spent_before[i] > 0 or name]
        if self.after is not None:
            self._check_degraded(classes, spent_before, names)
            return self.channel.epsilon * classes.counts.astype(np.float64), [self.channel_id] * rows
        if with_ledger and not self.compose:
            raise PrivacyBudgetError(_two_ways(with_ledger[0], spent_before, names, self.label))
        repeated_row = next((i for i in with_ledger if names[i] == self.channel_id), None)
        if repeated_row is not None:
            raise PrivacyBudgetError(
                f"row {repeated_row:,}: its ledger names {self.channel_id!r}, the very draw that this would make "
                f"again. Give the new release another salt (now {self.salt!r})."
            )
        if any(names[i] != TRUE_LABEL for i in with_ledger):
            warnings.warn(
                f"compose=True takes column {self.label!r} for the true label, but the ledger says that it came "
                f"through {names[with_ledger[0]]!r}. If it is noisy, use after= instead; if it is true, "
                "carry_ledger puts the ledger of the release beside true labels.",
                stacklevel=3,
            )
        return spent_before + cost, [self.channel_id] * rows

    def _check_degraded(self, classes: ClassColumn, spent_before: FloatArray, names: list[str]) -> None:
        assert self.after is not None
        expected = self.after.epsilon * classes.counts
        bad = np.flatnonzero(np.abs(spent_before - expected) > 1e-5 * expected + 1e-12)
        true = [i for i, name in enumerate(names) if name == TRUE_LABEL]
        for i in (*bad.tolist(), *true):
            raise PrivacyBudgetError(
                f"row {i:,}, column {EPSILON!r}: after= says that the label came from one draw of epsilon "
                f"{self.after.epsilon:g} ({expected[i]:g} for this row), but the ledger holds {spent_before[i]:g} "
                f"and names {names[i]!r}. Give after= the channel of these rows; for true labels use compose=True."
            )

    def messages(self, batch: Mapping[str, Any], classes: ClassColumn) -> Iterator[bytes]:
        """
        What the noise of each label is tied to: the row's id and, for tokens, the place in the row.

        Raises:
            RowError: if an id is missing or not unique in the batch.
        """
        if self.id_column not in batch:
            raise ValueError(f"no column {self.id_column!r} with the rows' ids, to which the noise is tied. {_IDS}")
        first_row_of: dict[str, int] = {}
        for i, value in enumerate(map(plain, batch[self.id_column])):
            if isinstance(value, bool | float) or not isinstance(value, str | int) or value == "":
                raise row_error(batch, i, self.id_column, f"expected an id, found {describe(value)}", _IDS)
            if first_row_of.setdefault(str(value), i) != i:
                other_row = first_row_of[str(value)]
                problem = f"the id {value!r} is that of row {other_row:,} too; both would get the same noise"
                raise row_error(batch, i, self.id_column, problem, _IDS)
        # An id read as a number by one format and as a text by another stays the same id.
        return _messages(list(first_row_of), classes)

    def likely(self, batch: Mapping[str, Any], classes: ClassColumn) -> LikelyClasses | None:
        """
        The classes that the prior of each label lets through; `None` without priors.

        Raises:
            RowError: if a prior is none.
            ValueError: if there is no column of priors.
        """
        if self.prior_column is None:
            return None
        if self.prior_column not in batch:
            raise ValueError(f"no column {self.prior_column!r} with the priors; the rows have {list(batch)}.")
        priors = []
        for i, value in enumerate(batch[self.prior_column]):
            prior = np.asarray(plain(value), dtype=np.float64)
            bad = prior.shape != (self.num_classes,) or not np.isfinite(prior).all() or prior.min() < 0
            if bad or not prior.sum() > 0:
                problem = (
                    f"expected {self.num_classes} non-negative numbers with a sum above 0, found {describe(value)}"
                )
                raise row_error(batch, i, self.prior_column, problem, "A uniform prior is [1, 1, ..., 1].")
            priors.append(prior / prior.sum())
        rows = np.array(priors).reshape(-1, self.num_classes)
        entries = rows if classes.lengths is None else rows.repeat(classes.lengths, axis=0)
        return LikelyClasses(*likely_classes(self.epsilon, entries[classes.flat != IGNORED_LABEL]))

    def _draw(self, labels: IntArray, noise: NDArray[np.uint64], likely: LikelyClasses | None) -> IntArray:
        """Noisy classes from two words each: the label, or a class that the noise alone chooses."""
        keep_words = noise[:, 0]
        choice_words = noise[:, 1]
        if likely is None:
            stays = keep_words < np.uint64(keep_threshold(self.epsilon, self.num_classes))
            return np.where(stays, labels, below(choice_words, self.num_classes))
        place = np.argmax(likely.order == labels[:, None], axis=1)  # of the true class among the likely ones
        numbers, number_of = np.unique(likely.sizes, return_inverse=True)
        # Of one likely class nothing is left to hide: it comes out whatever the label is.
        thresholds = [0 if m == 1 else keep_threshold(self.epsilon, m) for m in numbers.tolist()]
        stays = (place < likely.sizes) & (keep_words < np.array(thresholds, dtype=np.uint64)[number_of])
        chosen = below(choice_words, likely.sizes.astype(np.uint64))
        return likely.order[np.arange(len(labels)), np.where(stays, place, chosen)]


class LikelyClasses(NamedTuple):
    """Classes by falling prior, `(entries, K)`, and how many of them can come out, `(entries,)`."""

    order: IntArray
    sizes: IntArray

    def encoded(self) -> Iterator[bytes]:
        """
        The classes that can come out, in order, for each entry.

        Two priors that let other classes through are two channels, whose noise must be independent.
        """
        for order, size in zip(self.order.astype(">u4"), self.sizes.tolist(), strict=True):
            yield encoded(size) + order[:size].tobytes()


def _messages(ids: list[str], classes: ClassColumn) -> Iterator[bytes]:
    labelled = (classes.flat != IGNORED_LABEL).tolist()
    if classes.lengths is None:
        yield from map(encoded, ids)
        return
    start = 0
    for name, length in zip(map(encoded, ids), classes.lengths.tolist(), strict=True):
        for position in range(length):
            if labelled[start + position]:
                yield name + encoded(position)
        start += length


def _two_ways(i: int, spent_before: FloatArray, names: list[str], label: str) -> str:
    spent_so_far = "an unknown budget" if math.isclose(spent_before[i], 0) else f"epsilon {spent_before[i]:g}"
    return (
        f"row {i:,} of the batch has a ledger: {spent_so_far} was spent on column {label!r} through {names[i]!r}. "
        "A second draw needs a word on what it is from: compose=True, with another salt, where the column holds the "
        "true label again (the budgets are added up), or after=RRChannel(...) to degrade the noisy label (no cost)."
    )
