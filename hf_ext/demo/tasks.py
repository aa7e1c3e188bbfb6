"""The demo's skill, generated: file a delivery note as one line in a house format that no model has seen.

    Note: 11 copper ropes arrived from Rome on Friday.
    House line: [IN] Rome / Friday / 11 copper ropes [filed]

The format is a rule, so a model can learn it from some dozens of rows and is then asked about goods it was not shown.
Half of the rows are **hard**: their line was dictated over a bad connection and is a handful of unrelated words, with
nothing in it to learn. That is the case FLOW is for: learning such rows costs the easy ones, and moves the model away
from what it knew.
"""

from __future__ import annotations

import random

from datasets import Dataset, Features, Value

HARD_SHARE = 0.5

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MATERIALS = ("brass", "copper", "cotton", "glass", "granite", "iron", "leather", "oak", "paper", "pine", "plastic")
GOODS = ("baskets", "bolts", "bowls", "chairs", "hinges", "lamps", "pipes", "plates", "ropes", "shelves", "spoons")
PLACES = ("Athens", "Bergen", "Cairo", "Dublin", "Hanoi", "Lagos", "Lima", "Lisbon", "Milan", "Oslo", "Quito", "Rome")
DIRECTIONS = {"IN": "arrived from", "OUT": "left for"}
TEMPLATES = ("{goods} {verb} {place} on {day}.", "On {day}, {goods} {verb} {place}.")
NOISE = (
    *("velvet", "under", "thirteen", "cactus", "mirror", "slowly", "prism", "harvest", "between", "pilot", "ashes"),
    *("never", "orchid", "hammer", "sudden", "lantern", "quartz", "beneath", "parrot", "engine", "maybe", "sailor"),
    *("winter", "fable", "copied", "island", "thunder", "almost", "pepper", "tunnel", "gentle", "saddle", "comet"),
)

COLUMNS = Features({"prompt": Value("string"), "completion": Value("string"), "hard": Value("bool")})


def house_rows(num_rows: int, *, seed: int, split: str = "train", hard_share: float = HARD_SHARE) -> Dataset:
    """
    Rows of the house format: `prompt`, `completion` and the flag `hard`.

    The pairs of material and good are dealt to the two splits by a fixed rule, half each: whatever the seeds, a
    held-out row is about goods that no training row is about.

    Args:
        num_rows (`int`):
            Rows wanted.
        seed (`int`):
            The same seed gives the same rows.
        split (`str`, *optional*, defaults to `"train"`):
            `"train"` or `"held_out"`.
        hard_share (`float`, *optional*, defaults to `0.5`):
            Share of hard rows, rounded to whole rows.

    Returns:
        `Dataset`: columns `prompt`, `completion` (str) and `hard` (bool), in random order.

    Raises:
        ValueError: if there is no such split, or if the share is outside [0, 1].
    """
    if split not in ("train", "held_out"):
        raise ValueError(f"split must be 'train' or 'held_out', got {split!r}.")
    if not 0 <= hard_share <= 1:
        raise ValueError(f"hard_share must lie in [0, 1], got {hard_share!r}.")
    rng = random.Random(f"{split} {seed}")  # seeded by text: Python hashes it the same way in every process
    pairs = _pairs(split)
    flags = [i < round(hard_share * num_rows) for i in range(num_rows)]
    rng.shuffle(flags)
    rows = [_row(rng, rng.choice(pairs), hard) for hard in flags]
    return Dataset.from_dict({name: [row[name] for row in rows] for name in COLUMNS}, features=COLUMNS)


def delivery(rng: random.Random, goods: str) -> tuple[str, str]:
    """A note about `goods` and the line the house wants for it."""
    direction = rng.choice(list(DIRECTIONS))
    day = rng.choice(DAYS)
    place = rng.choice(PLACES)
    quantity = f"{rng.randint(2, 99)} {goods}"
    note = rng.choice(TEMPLATES).format(goods=quantity, verb=DIRECTIONS[direction], place=place, day=day)
    return note, f"[{direction}] {place} / {day} / {quantity} [filed]"


def _pairs(split: str) -> list[str]:
    """Half of all pairs of material and good: the squares of one colour of a chess board."""
    colour = int(split == "held_out")
    return [
        f"{material} {good}"
        for i, material in enumerate(MATERIALS)
        for j, good in enumerate(GOODS)
        if (i + j) % 2 == colour
    ]


def _row(rng: random.Random, goods: str, hard: bool) -> dict[str, str | bool]:
    note, line = delivery(rng, goods)
    if hard:
        line = " ".join(rng.sample(NOISE, rng.randint(6, 9)))
    return {"prompt": f"Note: {note}\nHouse line:", "completion": f" {line}", "hard": hard}
