r"""
Columns that go with noisy labels as the true label does, though nobody here knows the true label.

Let the label stay with probability $p$ and become each other class with $q$, and $c = p - q$. A column that
determines the true label, whose classes have shares $\pi$, agrees with the noisy one more than by chance in
$c\,(1 - \sum \pi^2)$ of the rows if it spells the class, and two rows with the same value have the same noisy label
more than by chance in $c^2 (1 - \sum \pi^2)$ of the pairs, whatever its values mean. An unrelated column has 0, a
prediction of accuracy $a$ about $a$ and $a^2$ of it. A column that goes with the noisy label *more* than the true one
can is a copy of the noisy label.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hf_ext.data.relabeling.leaks import WORD, Leak, association, classes_named, codes_of, comparable
from hf_ext.data.relabeling.views import views
from hf_ext.guards.row_text import shorten

_LABEL = r"(labels?|class|classes|tags?|target|y|intent|category|diagnosis|answer)"
_TRUE = r"(true|clean|gold|golden|real|original|orig|correct|raw|unnoised|private|secret)"
CLEAN_NAME = re.compile(rf"{_TRUE}_?{_LABEL}|{_LABEL}_?{_TRUE}|gold|ground_?truth|y_?true")
"""A column of such a name beside a ledger is taken for the clean label, whatever it holds."""

LABEL_NAME = re.compile(r"(.*_)?(labels?|y|target|class)(_?(name|names|text|txt|str|string|id|idx|code|\d+))?|.*_tags")
# Whether the noise fell on a row is as good as the label of two classes.
NOISE_NAME = re.compile(
    r"(label_?)?(is_?|was_?)?(label_?)?(un)?(noisy|noised|noise|flipped|flip|kept|keep|changed|random|randomi[sz]ed|same|"
    r"correct|right|wrong|clean|true|corrupted|mislabell?ed)(_?labels?)?"
)
LINE = 0.9  # of the way from an unrelated column to the true label, by pairs
DOUBT = 2.5  # standard errors that a column may fall short and still be the true label
NEVER_BELOW = 0.6  # of the way, however few the rows: below are features
BINNED_LINE = 0.75  # bins of a number's ranks go over the borders of classes
MANY_CLASSES = 8  # so many values, and just as many as there are classes, are no chance
FEW_COPIES = 16  # rows
PAIRS_SURE = 5.0  # standard errors above chance
SPELT_SURE = 4.0
ONE_IN_A_MILLION = 1e-6
Position = Literal["beside", "elsewhere", "in order"]
JOINT_COLUMNS = 16
JOINT_VALUES = 64
JOINT_ERROR = 0.1  # there are many pairs of columns, of which each may say something: no doubt is given here
LARGE_BIN = 8
_PIECE = re.compile(r"[a-zA-Z]+|\d+")


@dataclass(frozen=True)
class NoisyLabels:
    """
    Labels that came out of a channel.

    Args:
        classes (`numpy.ndarray` of shape `(n,)`):
            Noisy class of each row.
        contrast (`numpy.ndarray` of shape `(n,)`):
            `p - q` of each row's channel.
        num_classes (`int`):
            K.
        names (`Sequence[str]`, *optional*):
            Of the classes.
        has_prior (`bool`, *optional*, defaults to `False`):
            Whether labels went through a channel with a prior, which keeps more of them than `contrast` says.
    """

    classes: NDArray[np.int64]
    contrast: NDArray[np.float64]
    num_classes: int
    names: Sequence[str] | None = None
    has_prior: bool = False

    def of(self, rows: NDArray[Any]) -> NoisyLabels:
        """Those of some rows."""
        return NoisyLabels(self.classes[rows], self.contrast[rows], self.num_classes, self.names, self.has_prior)

    @property
    def kept(self) -> float:
        """Mean p; under a prior the most it can be."""
        mean = float(self.contrast.mean())
        p = mean + (1 - mean) / self.num_classes
        if not self.has_prior or p >= 1:
            return p
        odds = 1 + mean * self.num_classes / max(1 - mean, 1e-12)  # e^epsilon
        return odds / (odds + 1)

    def cannot_all_be_true(self, rows: int) -> bool:
        """Whether so many labels in a row that are equal to the noisy ones are no chance event."""
        return rows * math.log(max(min(self.kept, 1 - 1e-12), 1e-12)) < math.log(ONE_IN_A_MILLION)


@dataclass(frozen=True)
class Measure:
    """Where a column stands between an unrelated one (0) and the true label (1), with its standard error."""

    place: float
    error: float
    above_chance: float
    text: str
    sure: float
    line: float
    made_from_noisy: bool = False
    has_classes: bool = False  # as many values as there are classes, and many: only evidence against it lets it pass

    @property
    def true(self) -> bool:
        """The column goes with the noisy label as the true one would."""
        if self.made_from_noisy:
            return False
        line = max(min(self.line, 1 - DOUBT * self.error), NEVER_BELOW)
        return (self.above_chance >= self.sure and self.place >= line) or (self.has_classes and not self.never)

    @property
    def never(self) -> bool:
        """The column goes less or more with it, beyond doubt."""
        return self.made_from_noisy or self.place + 3 * self.error < self.line


def find_clean_columns(
    columns: Mapping[str, Sequence[Any]],
    noisy: NoisyLabels | None,
    *,
    public: Iterable[str] = (),
    label: str | None = None,
    position: Position = "beside",
) -> list[Leak]:
    """
    Columns that give the true label away beside a noisy one.

    Args:
        columns (`Mapping[str, Sequence]`):
            Columns of `n` rows, without the noisy label and the ledger.
        noisy ([`NoisyLabels`], *optional*):
            Of the same rows; without it only names are looked at.
        public (`Iterable[str]`, *optional*):
            Columns that may.
        label (`str`, *optional*):
            Name of the noisy label's column.
        position (`str`, *optional*, defaults to `"beside"`):
            `"beside"` the noisy label, in rows with a ledger; `"elsewhere"`, where a column that is called as the
            label is, or holds class numbers, is suspected too; or `"in order"`, in a table with as many rows, which
            may be others: there only what the columns hold counts, not what they are called.

    Returns:
        `list[Leak]`: in the order of the columns, at most one a column.
    """
    names = set(public)
    leaks: dict[str, Leak] = {}
    few: dict[str, tuple[str, NDArray[np.int64]]] = {}
    for column, values in columns.items():
        if column in names or column.split(".")[0] in names:
            continue
        for path, view in views(column, values):
            excerpt = shorten(str(next((value for value in view if value is not None), "")))
            finding = _how(path, view, noisy, label, position)
            if finding is not None:
                leaks[column] = Leak(column, finding if path == column else f"{finding} ({path})", excerpt)
                break
            codes = _few_values(view) if noisy is not None and len(few) < JOINT_COLUMNS else None
            if codes is not None and noisy is not None and not any(m.place > 0.5 for m in _pairs(codes, noisy, "")):
                few[path] = (column, codes)
    if noisy is not None:
        for leak in _jointly({path: entry for path, entry in few.items() if entry[0] not in leaks}, noisy):
            leaks.setdefault(leak.column, leak)
    return [leaks[column] for column in columns if column in leaks]


def _how(path: str, view: list[Any], noisy: NoisyLabels | None, label: str | None, position: Position) -> str | None:
    """What a column does that it must not; `None` for nothing."""
    name = re.split(r"[.\[\s]", path)[-1].casefold()
    if position != "in order" and CLEAN_NAME.fullmatch(name):
        return "its name says that it is the clean label"
    if noisy is None:
        same_name = position == "elsewhere" and name == (label or "").casefold()
        return "it is called as the noisy label is" if same_name else None
    filled = np.array([value is not None for value in view], dtype=bool)
    values = [value for value in view if value is not None]
    labels = noisy.of(filled)
    if not values:
        return None
    spelt = classes_spelt(values, labels)
    equal = spelt is not None and bool((spelt == labels.classes).all())
    if (equal and labels.cannot_all_be_true(len(values))) or (position == "beside" and _copies(values, labels)):
        return None  # a copy of the noisy label, which says nothing that does not stand beside it
    if position == "elsewhere" and label is not None and name == label.casefold():
        return "it is called as the noisy label is, and is no copy of it"
    if position != "in order" and NOISE_NAME.fullmatch(name) and _marks_the_noise(values, labels):
        return "it marks the rows on which the noise fell"
    measures = list(_measures(values, labels, spelt))
    for measure in measures:
        if measure.true:
            return measure.text
    if position == "in order":
        return None
    words = spelt is not None and any(isinstance(value, str) and not _is_number(value) for value in values[:100])
    numbers = spelt is not None and position == "elsewhere" and _spread(spelt, labels)
    suspect = words or numbers or (LABEL_NAME.fullmatch(name) is not None and codes_of(values).max() < len(values) / 2)
    if suspect and not any(measure.never for measure in measures) and not _copies(values, labels):
        kind = "names" if words else "numbers"
        reason = f"it holds {kind} of classes" if spelt is not None else "its name says that it is a label"
        return f"{reason}, and nothing tells it from the true label"
    return None


def _measures(values: list[Any], noisy: NoisyLabels, spelt: NDArray[np.int64] | None) -> Iterator[Measure]:
    """How closely values, or what can be made of them, go with the labels."""
    other_numbers = False
    if spelt is not None:
        measure = _spelling(spelt, noisy, "spells the label's class")
        other_numbers = measure is not None and measure.never
        if measure is not None:
            yield measure
            if measure.above_chance >= SPELT_SURE:
                return  # pairs would say the same, less precisely
    keys = [comparable(value) for value in values]
    codes = codes_of(keys)
    shaped = (
        not other_numbers
        and codes.max() + 1 == noisy.num_classes >= MANY_CLASSES
        and len(values) >= 2 * noisy.num_classes
    )
    yield from (replace(measure, has_classes=shaped) for measure in _pairs(codes, noisy, "determines the label"))
    numeric = all(isinstance(value, int | float) for value in values)
    if numeric and codes.max() >= len(values) / 4:
        for bins in (16, 4):  # a class: finer ones are purer, coarser ones hold more pairs
            ranks = _bins(values, bins * noisy.num_classes)
            yield from _pairs(ranks, noisy, "determines the label by its size", binned=True)
    if all(isinstance(value, str | int) for value in values):
        yield from _in_words([str(value) for value in values], noisy)


def _in_words(texts: list[str], noisy: NoisyLabels) -> Iterator[Measure]:
    if noisy.names:
        class_lists = classes_named(texts, noisy.names)
        only_class = np.array([classes[0] if len(classes) == 1 else -1 for classes in class_lists], dtype=np.int64)
        has_name = only_class >= 0
        if has_name.sum() > 0.3 * len(texts):
            measure = _spelling(only_class[has_name], noisy.of(has_name), "holds the name of the label's class")
            if measure is not None:
                yield measure
    if sum(any(c.isspace() for c in text) for text in texts) > 0.1 * len(texts):
        return  # a text, not an id: its words are features
    parts = [WORD.split(text) for text in texts]
    pieces = [_PIECE.findall(text) for text in texts]
    readings: list[tuple[str, list[str]]] = []
    for i in range(6):
        readings.append((f"its part {i + 1}", [part[i] if i < len(part) else "" for part in parts]))
    for i in (1, 2, 3):
        readings.append((f"its part {i} from the end", [part[-i] if i <= len(part) else "" for part in parts]))
    for i in range(4):
        readings.append((f"its part {i + 1}", [piece[i] if i < len(piece) else "" for piece in pieces]))
    readings.append(("its last piece", [piece[-1] if piece else "" for piece in pieces]))
    readings.append(("its first character", [text[:1] for text in texts]))
    readings.append(("its last character", [text[-1:] for text in texts]))
    earlier_codes: set[bytes] = set()
    for place, words in readings:
        codes = codes_of(words)
        if codes.max() < 1 or codes.tobytes() in earlier_codes:
            continue
        earlier_codes.add(codes.tobytes())
        yield from _pairs(codes, noisy, f"holds the label: {place}, such as {shorten(words[0], 40)}, determines it")


def _spelling(spelt: NDArray[np.int64], noisy: NoisyLabels, text: str) -> Measure | None:
    """From the share of rows where the class that is spelt is the noisy one."""
    n = len(spelt)
    k = max(noisy.num_classes, int(spelt.max()) + 1, int(noisy.classes.max()) + 1)
    shares = np.bincount(spelt, minlength=k) / n
    chance = float(shares @ (np.bincount(noisy.classes, minlength=k) / n))
    agree = float((spelt == noisy.classes).mean())
    contrast = float(noisy.contrast.mean())
    expected = contrast * (1 - float(shares @ shares))
    if expected <= 0 or n < 2:
        return None
    true_agree = min(chance + expected, 1 - 1 / n)
    error = math.sqrt(max(true_agree * (1 - true_agree), chance * (1 - chance), 1e-12) / n)
    above = (agree - chance) / math.sqrt(max(chance * (1 - chance), 1e-12) / n)
    finding = f"{text}: {agree:.1%} of the rows agree with the noisy label, of the true one {true_agree:.1%} would"
    place = (agree - chance) / expected
    # Closer than the true label: a copy, or predictions of a model that memorised the noise.
    made_from_noisy = place > 1 + 5 * error / expected and not noisy.has_prior
    return Measure(place, error / expected, above, finding, SPELT_SURE, math.sqrt(LINE), made_from_noisy)


def _pairs(codes: NDArray[np.int64], noisy: NoisyLabels, text: str, binned: bool = False) -> Iterator[Measure]:
    """From the share of pairs of rows with the same value that have the same noisy label."""
    measured = association(codes.tolist(), noisy.classes)
    if not measured.told or measured.chance >= 1:
        return
    contrast = float(noisy.contrast.mean())
    k = noisy.num_classes
    square = float((noisy.contrast**2).mean())
    spread = 1 - (measured.chance - (1 - contrast**2) / k) / contrast**2  # 1 - sum of the squared shares of the truth
    expected = square * min(spread, 1 - 1 / k)
    if expected <= 0:  # one class is so common that the noise hides nothing in it
        return
    p = contrast + (1 - contrast) / k
    error = math.sqrt(measured.error**2 + 4 * contrast**2 * p * (1 - p) / measured.rows) / expected
    place = (measured.same - measured.chance) / expected
    above = (measured.same - measured.chance) / max(measured.error, 1e-9)
    finding = (
        f"{text}: of two rows with the same value {measured.same:.1%} have the same noisy label, by chance "
        f"{measured.chance:.1%}, as closely as the true label does"
    )
    closer_than_true = place > 1 + 5 * error and not noisy.has_prior
    made_from_noisy = closer_than_true and (binned or _same_relation(codes, noisy))
    yield Measure(place, error, above, finding, PAIRS_SURE, BINNED_LINE if binned else LINE, made_from_noisy)


def _same_relation(codes: NDArray[np.int64], noisy: NoisyLabels) -> bool:
    """Whether the noisy label determines the column as well as the column does the noisy label: it is no finer."""
    back = association(noisy.classes.tolist(), codes)
    forth = association(codes.tolist(), noisy.classes)
    return back.determined >= 0.9 * forth.determined


def _copies(values: list[Any], noisy: NoisyLabels) -> bool:
    """Whether the values are the noisy labels under other names, one for one."""
    codes = codes_of([comparable(value) for value in values])
    pairs = len(np.unique(codes * (int(noisy.classes.max()) + 1) + noisy.classes))
    return bool(pairs == int(codes.max()) + 1 == len(np.unique(noisy.classes))) and len(values) >= pairs + FEW_COPIES


def _marks_the_noise(values: list[Any], noisy: NoisyLabels) -> bool:
    codes = codes_of([comparable(value) for value in values])
    if int(codes.max()) != 1:
        return False
    share = float(codes.mean())
    error = math.sqrt(0.25 / len(values))  # of a share, at most
    return min(abs(share - noisy.kept), abs(1 - share - noisy.kept)) <= 4 * error


def classes_spelt(values: Sequence[Any], noisy: NoisyLabels) -> NDArray[np.int64] | None:
    """The class that each value spells, as its number or its name; `None` where a value spells none."""
    names = {name.casefold().strip(): i for i, name in enumerate(noisy.names or ())}
    class_of: dict[Any, int | None] = {}
    spelt = np.empty(len(values), dtype=np.int64)
    for i, value in enumerate(values):
        if not isinstance(value, str | int | float):
            return None
        if value not in class_of:
            class_of[value] = _class_of(value, names, noisy.num_classes)
        number = class_of[value]
        if number is None:
            return None
        spelt[i] = number
    return spelt


def _class_of(value: str | float, names: Mapping[str, int], num_classes: int) -> int | None:
    if isinstance(value, str) and value.casefold().strip() in names:
        return names[value.casefold().strip()]
    try:
        number = float(value)
    except ValueError:
        return None
    nearest = round(number) if math.isfinite(number) else -1
    return nearest if 0 <= nearest < num_classes and abs(number - nearest) < 0.2 else None


def _jointly(few: dict[str, tuple[str, NDArray[np.int64]]], noisy: NoisyLabels) -> Iterator[Leak]:
    """Two columns that determine the label together, as the halves of a secret do."""
    for (path, (column, codes)), (other, (_, more)) in combinations(few.items(), 2):
        pair_codes = codes_of((codes * (int(more.max()) + 1) + more).tolist())
        for measure in _pairs(pair_codes, noisy, f"determines the label together with {other!r}"):
            if measure.true and measure.place >= LINE and measure.error <= JOINT_ERROR:
                yield Leak(column, measure.text if path == column else f"{measure.text} ({path})", path)


def _few_values(view: list[Any]) -> NDArray[np.int64] | None:
    if any(isinstance(value, list | dict) for value in view[:100]):
        return None
    codes = codes_of([comparable(value) for value in view])
    return codes if 1 <= codes.max(initial=0) < JOINT_VALUES else None


def _spread(spelt: NDArray[np.int64], noisy: NoisyLabels) -> bool:
    """Whether numbers go over the classes as labels do, rather than being small numbers of something else."""
    return len(np.unique(spelt)) >= 0.5 * min(noisy.num_classes, 0.6 * len(spelt)) and len(np.unique(spelt)) > 1


def _bins(values: list[Any], most: int) -> NDArray[np.int64]:
    """Ranks in at most so many bins, of 8 rows at least."""
    order = np.argsort(np.nan_to_num(np.asarray(values, dtype=np.float64)), kind="stable")
    bins = max(1, min(most, len(values) // LARGE_BIN))
    ranks = np.empty(len(values), dtype=np.int64)
    ranks[order] = np.arange(len(values)) * bins // len(values)
    return ranks


def _is_number(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True
