"""Secret keys and the noise they fix: the same row gets the same draw, whoever asks, however often."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import secrets
import stat
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

logger = logging.getLogger(__name__)

DEFAULT_ENV = "HF_EXT_LABEL_KEY"
MIN_BYTES = 32
MAX_BYTES = 64
FEWEST_BYTES = 16  # different ones, of 32 or more
MOST_CHARACTERS = 4096  # of a key file: digits, and white space between them
_HEX = re.compile(r"[0-9a-fA-F]+")
_KEY_ID = re.compile(r"[0-9a-f]{16}")
_DIGITS = re.compile(r"[0-9a-fA-F]{24}")  # a key of which a digit was mistyped holds as many in a row
REMEDY = "Make one once with 'hf-ext data privatize --make-key FILE', and keep it from whoever gets the labels."
WORD = 2**64


class StandInKeyWarning(UserWarning):
    """A key that anybody can guess, taken because it is in an environment variable, where tests put stand-ins."""


@dataclass(frozen=True)
class KeyRef:
    """
    Where a secret key is: in an environment variable or in a file, as 64 to 128 hexadecimal digits.

    The key itself is read when noise is drawn. It is in no attribute, so that no repr, hash of `datasets`, card, cache
    or pickle holds it; `key_id` names it there. No message shows a key, nor a name that looks like one.

    Args:
        env (`str`, *optional*):
            Name of the environment variable; `HF_EXT_LABEL_KEY` where neither is given.
        file (`str`, *optional*):
            Path of the file.
        key_id (`str`, *optional*):
            The name of the key, a one-way hash. Read off the key where it is not given; otherwise the key must fit it.

    Raises:
        ValueError: if both places are named; if there is no key, or one of fewer than 32 bytes; if it can be guessed
            (the same bytes over and over, counting, few different bytes, decimal digits, a text); or if it is another
            key than `key_id` says. One digit over and over in an environment variable, a stand-in that tests use, is
            warned of instead.
    """

    env: str | None = None
    file: str | None = None
    key_id: str = ""

    def __post_init__(self) -> None:
        if self.env is not None and self.file is not None:
            raise ValueError("A key is in one place: give env=NAME or file=PATH, not both.")
        if self.env is None and self.file is None:
            object.__setattr__(self, "env", DEFAULT_ENV)
        for place in ("env", "file"):
            value = getattr(self, place)
            if not isinstance(value, str | os.PathLike | None):
                raise ValueError(f"{place} must be a text that says where the key is, got {type(value).__name__}.")
        if self.file is not None:
            object.__setattr__(self, "file", os.fspath(self.file))
        if self.key_id and not _KEY_ID.fullmatch(self.key_id):
            raise ValueError(
                "key_id is the name of a key, 16 hexadecimal digits such as the ones that --make-key prints (what was "
                "given is not shown: it may be the key)."
            )
        self.read()

    def read(self) -> bytes:
        """
        The key, at least 32 bytes. Do not keep, print or log it.

        Raises:
            ValueError: as in the constructor.
        """
        place = self._place()
        key = _decoded(self._text(place), place)
        weakness = weakness_of(key)
        if weakness is not None and self.env is not None and key != bytes(len(key)) and len(set(key.hex())) == 1:
            warnings.warn(
                f"The key in {place} is one digit over and over: anybody can take the noise off. {REMEDY}",
                StandInKeyWarning,
                stacklevel=2,
            )
        elif weakness is not None:
            raise ValueError(f"The key in {place} {weakness}: the noise could be guessed. {REMEDY}")
        key_id = hashlib.blake2b(key, digest_size=8, person=b"hf-ext key id").hexdigest()
        if not self.key_id:
            object.__setattr__(self, "key_id", key_id)
        if self.key_id != key_id:
            raise ValueError(
                f"{place} holds key {key_id}, but key {self.key_id} was asked for: other noise would be "
                "drawn, and two draws of one label cost twice. Bring the first key back."
            )
        return key

    def _place(self) -> str:
        """The place, in words; a name with a key in it is not repeated, for it ends up in logs."""
        name = self.env if self.env is not None else str(self.file)
        if holds_key(name):
            name = "(its name is not shown: it looks like a key; give the name of the place)"
        elif self.env is None:
            name = repr(name)
        return f"environment variable {name}" if self.env is not None else f"file {name}"

    def _text(self, place: str) -> str:
        if self.env is not None:
            if not os.environ.get(self.env):
                raise ValueError(f"No key: {place} is not set. {REMEDY}")
            return os.environ[self.env]
        path = Path(str(self.file))
        try:
            if not path.is_file():
                raise ValueError(f"No key: there is no {place}. {REMEDY}")
            if os.name == "posix" and stat.S_IMODE(path.stat().st_mode) & 0o077:
                logger.warning("%s can be read by others on this machine: chmod 600 it.", place)
            with path.open(encoding="utf-8", errors="replace") as file:
                return file.read(MOST_CHARACTERS)
        except OSError as error:
            # Not the error itself: it holds the name of the file.
            raise ValueError(f"The key in {place} cannot be read: {error.strerror}.") from None


def holds_key(name: str | os.PathLike[str]) -> bool:
    """Whether the name of a file or variable is likelier to be a key that was given in its place."""
    return bool(_DIGITS.search(os.path.basename(name)))


def check_key(key: object) -> None:
    """
    Refuse anything but a [`KeyRef`]: a key itself would end up in caches.

    Raises:
        ValueError: if it is none; the message does not show it.
    """
    if not isinstance(key, KeyRef):
        raise ValueError(
            f"key must be a KeyRef, which says where the key is, got {type(key).__name__}: a key itself "
            "would end up in caches. Use KeyRef(env='HF_EXT_LABEL_KEY') or KeyRef(file=...)."
        )


def _decoded(text: str, place: str) -> bytes:
    digits = "".join(text.split())
    if not _HEX.fullmatch(digits) or len(digits) % 2:
        raise ValueError(f"The key in {place} is not made of hexadecimal digits, two a byte. {REMEDY}")
    if not 2 * MIN_BYTES <= len(digits) <= 2 * MAX_BYTES:
        raise ValueError(
            f"The key in {place} has {len(digits) // 2} bytes; {MIN_BYTES} to {MAX_BYTES} are needed, or the noise "
            f"could be guessed. {REMEDY}"
        )
    return bytes.fromhex(digits)


def weakness_of(key: bytes) -> str | None:
    """
    Why a key is no random one, as a clause; `None` where nothing speaks against it.

    32 random bytes are taken for one of these less than once in 10**12 times.
    """
    size = len(key)
    steps = {(second - first) % 256 for first, second in pairwise(key)}
    if any(key == (key[:period] * size)[:size] for period in range(1, size // 2 + 1)):
        return "is the same few bytes over and over"
    if len(set(key)) < FEWEST_BYTES:
        return f"has {len(set(key))} different bytes only"
    if len(steps) < FEWEST_BYTES:
        return "goes up or down by rule"
    if key.hex().isdecimal():
        return "has decimal digits only"
    if all(0x20 <= byte < 0x7F or byte in b"\t\r\n" for byte in key):
        return "spells a text"
    return None


def make_key_file(path: str | Path) -> KeyRef:
    """
    Write 32 random bytes into a new file that only its owner can read.

    Args:
        path (`str` or `Path`):
            Of the file; the folder must be there.

    Returns:
        [`KeyRef`]: to the file.

    Raises:
        FileExistsError: if the file is there already: another key would be a second draw.
        ValueError: if a key stands in place of the name of its file.
    """
    if holds_key(path):
        raise ValueError("Name a file in which to write a new key; what was given looks like a key itself.")
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError as error:
        raise FileExistsError(
            f"{str(path)!r} is there already: it may hold the key of a released dataset. Name another file."
        ) from error
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(secrets.token_hex(MIN_BYTES) + "\n")
    return KeyRef(file=str(path))


def encoded(*parts: str | int) -> bytes:
    """Texts and integers as bytes, each with its type and length in front: no two lists of them are the same bytes."""
    encoding = bytearray()
    for part in parts:
        # A command line that is no UTF-8 reaches Python as lone surrogates, which plain UTF-8 refuses.
        content = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else str(int(part)).encode()
        encoding += (b"t" if isinstance(part, str) else b"i") + len(content).to_bytes(8, "big") + content
    return bytes(encoding)


def uniforms(key: bytes, domain: bytes, messages: Iterable[bytes]) -> NDArray[np.uint64]:
    """
    Two independent uniform integers below 2**64 for every message, from keyed BLAKE2b.

    Args:
        key (`bytes`):
            32 to 64 bytes.
        domain (`bytes`):
            What the noise is for, from [`encoded`]: two domains have independent noise.
        messages (`Iterable[bytes]`):
            Such as the ids of the rows.

    Returns:
        `numpy.ndarray` of shape `(messages, 2)`, uint64.

    Reference: Aumasson et al., RFC 7693, section 2.9 (keyed BLAKE2b is a pseudo-random function).
    """
    start = hashlib.blake2b(len(domain).to_bytes(8, "big") + domain, digest_size=16, key=key)
    digests = bytearray()
    for message in messages:
        state = start.copy()
        state.update(message)
        digests += state.digest()
    return np.frombuffer(bytes(digests), dtype=">u8").astype(np.uint64).reshape(-1, 2)


def below(words: NDArray[np.uint64], bounds: NDArray[np.uint64] | int) -> NDArray[np.int64]:
    """Integers in `[0, bounds)` from uniform words: the high half of `words * bounds`, for bounds below 2**32."""
    bound = np.asarray(bounds, dtype=np.uint64)
    # The product has 96 bits: the words' two halves are multiplied apart, and the lower's carry is added.
    half = np.uint64(32)
    low = ((words & np.uint64(0xFFFFFFFF)) * bound) >> half
    return (((words >> half) * bound + low) >> half).astype(np.int64)


@cache
def keep_threshold(epsilon: float, num_classes: int) -> int:
    r"""
    The largest A such that keeping the label when a uniform word is below A costs at most `epsilon`.

    The label is kept with probability $A / W$, $W = 2^{64}$; else a second word chooses among all $K$ classes, the
    rarest of which has $c = \lfloor W / K \rfloor$ words. A class comes out at most $1 + A W / ((W - A)\, c)$ times as
    often when it is the true one, which must not exceed $e^\varepsilon$; of two others it comes out alike. All of it
    is integers; $e^\varepsilon$ is rounded down.

    Args:
        epsilon (`float`):
            Nats.
        num_classes (`int`):
            K, at least 2.

    Returns:
        `int`: in `[1, 2**64 - 1]`.

    Raises:
        ValueError: if no threshold has the budget.
    """
    gain = exp_rounded_down(epsilon) - 1
    rarest = WORD // num_classes
    threshold = min(int(gain * rarest * WORD / (WORD + gain * rarest)), WORD - 1)
    if threshold < 1:
        raise ValueError(f"epsilon={epsilon} is too small for {num_classes} classes and 64 bits of noise.")
    return threshold


def exp_rounded_down(epsilon: float) -> Fraction:
    """A fraction just below exp(epsilon), to 60 digits; 100 nats stand for more, which no 64-bit draw can spend."""
    from decimal import Decimal, localcontext

    with localcontext() as context:
        context.prec = 60
        return Fraction(Decimal(min(float(epsilon), 100.0)).exp().next_minus(context))
