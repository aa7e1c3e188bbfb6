"""Secret keys and the noise they fix: the same row gets the same draw, whoever asks, however often."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import secrets
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

__all__ = ["DEFAULT_ENV", "KeyRef", "encoded", "keep_threshold", "make_key_file", "uniforms"]

logger = logging.getLogger(__name__)

DEFAULT_ENV = "HF_EXT_LABEL_KEY"
MIN_BYTES, MAX_BYTES = 32, 64
_HEX = re.compile(r"[0-9a-fA-F]+")
_HOW = "Make one once with 'hf-ext data privatize --make-key FILE', and keep it from whoever gets the labels."
WORD = 2**64


@dataclass(frozen=True)
class KeyRef:
    """
    Where a secret key is: in an environment variable or in a file, as 64 to 128 hexadecimal digits.

    The key itself is read when noise is drawn. It is in no attribute, so that no repr, hash of `datasets`, card, cache
    or pickle holds it; `key_id` names it there.

    Args:
        env (`str`, *optional*):
            Name of the environment variable; `HF_EXT_LABEL_KEY` where neither is given.
        file (`str`, *optional*):
            Path of the file.
        key_id (`str`, *optional*):
            The name of the key, a one-way hash. Read off the key where it is not given; otherwise the key must fit it.

    Raises:
        ValueError: both places, no key there, one of fewer than 32 bytes, or another key than `key_id` says.
    """

    env: str | None = None
    file: str | None = None
    key_id: str = ""

    def __post_init__(self) -> None:
        if self.env is not None and self.file is not None:
            raise ValueError(f"A key is in one place: give env={self.env!r} or file={self.file!r}, not both.")
        if self.env is None and self.file is None:
            object.__setattr__(self, "env", DEFAULT_ENV)
        if self.file is not None:
            object.__setattr__(self, "file", os.fspath(self.file))
        self.read()

    def read(self) -> bytes:
        """
        The key, at least 32 bytes. Do not keep, print or log it.

        Raises:
            ValueError: see above.
        """
        key = _decoded(self._text(), self._place())
        key_id = hashlib.blake2b(key, digest_size=8, person=b"hf-ext key id").hexdigest()
        if not self.key_id:
            object.__setattr__(self, "key_id", key_id)
        if self.key_id != key_id:
            raise ValueError(
                f"{self._place()} holds key {key_id}, but key {self.key_id} was asked for: other noise would be "
                "drawn, and two draws of one label cost twice. Bring the first key back."
            )
        return key

    def _place(self) -> str:
        return f"environment variable {self.env}" if self.env is not None else f"file {self.file!r}"

    def _text(self) -> str:
        if self.env is not None:
            if not os.environ.get(self.env):
                raise ValueError(f"No key: {self._place()} is not set. {_HOW}")
            return os.environ[self.env]
        path = Path(str(self.file))
        if not path.is_file():
            raise ValueError(f"No key: there is no {self._place()}. {_HOW}")
        if os.name == "posix" and stat.S_IMODE(path.stat().st_mode) & 0o077:
            logger.warning("%s can be read by others on this machine: chmod 600 it.", self._place())
        return path.read_text(encoding="utf-8", errors="replace")


def _decoded(text: str, place: str) -> bytes:
    digits = "".join(text.split())
    if not _HEX.fullmatch(digits) or len(digits) % 2:
        raise ValueError(f"The key in {place} is not made of hexadecimal digits, two a byte. {_HOW}")
    if not 2 * MIN_BYTES <= len(digits) <= 2 * MAX_BYTES:
        raise ValueError(
            f"The key in {place} has {len(digits) // 2} bytes; {MIN_BYTES} to {MAX_BYTES} are needed, or the noise "
            f"could be guessed. {_HOW}"
        )
    return bytes.fromhex(digits)


def make_key_file(path: str | Path) -> KeyRef:
    """
    Write 32 random bytes into a new file that only its owner can read.

    Args:
        path (`str` or `Path`):
            Of the file; the folder must be there.

    Returns:
        [`KeyRef`]: to the file.

    Raises:
        FileExistsError: the file is there already: another key would be a second draw.
    """
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
    whole = bytearray()
    for part in parts:
        # A command line that is no UTF-8 reaches Python as lone surrogates, which plain UTF-8 refuses.
        content = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else str(int(part)).encode()
        whole += (b"t" if isinstance(part, str) else b"i") + len(content).to_bytes(8, "big") + content
    return bytes(whole)


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
    half, mask = np.uint64(32), np.uint64(0xFFFFFFFF)
    low = ((words & mask) * bound) >> half
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
        ValueError: no threshold has the budget.
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
