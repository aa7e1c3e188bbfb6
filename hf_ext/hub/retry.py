"""Trying a request to the Hub again where that can help, and saying what to do where it cannot."""

from __future__ import annotations

import json
import logging
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, TypeVar

from hf_ext.guards.yaml_file import YamlError

__all__ = ["ATTEMPTS", "BACKOFF", "PushError", "Retry"]

logger = logging.getLogger(__name__)

ATTEMPTS = 6
"""Tries of one request."""

BACKOFF = 2.0
"""Seconds before the second try; each further wait is twice as long, up to `LONGEST_WAIT`."""

REQUEST_SECONDS = 300.0
"""Seconds after which a request without an answer has failed; the client alone would wait for ever."""

LONGEST_WAIT = 60.0
LONGEST_RETRY_AFTER = 900.0  # seconds; a Hub that asks for more is down for this run

Answer = TypeVar("Answer")


class PushError(RuntimeError):
    """A push failed for good. The message says why, what to do about it, and where the files are."""


@dataclass(frozen=True)
class Retry:
    """
    Call something that talks to the Hub, again after failures that pass: 408, 409, 412, 425, 429, 5xx, a time-out, a
    lost connection.

    Args:
        subject (`str`):
            What is pushed, for messages: `"model me/tiny"`.
        folder (`str` or `Path`, *optional*):
            Where the files are, for messages.
        attempts (`int`, *optional*):
            Tries; [`ATTEMPTS`] by default.
        backoff (`float`, *optional*):
            Seconds before the second try; [`BACKOFF`] by default.
        timeout (`float`, *optional*, defaults to 300):
            Seconds that one request may go without an answer.
        sleep (`Callable`, *optional*):
            Waits so many seconds; `time.sleep` by default.

    Raises:
        PushError: if it was refused, or failed at every try.
        ValueError: if `attempts` is below 1.
    """

    subject: str
    folder: str | Path | None = None
    attempts: int | None = None
    backoff: float | None = None
    timeout: float = REQUEST_SECONDS
    sleep: Callable[[float], None] | None = None

    def __post_init__(self) -> None:
        if self.attempts is not None and self.attempts < 1:
            raise ValueError(f"attempts must be at least 1, got {self.attempts}.")

    def __call__(self, call: Callable[[Exception | None], Answer]) -> Answer:
        """Return `call(error)`, where `error` is what the try before raised, `None` the first time."""
        attempts = ATTEMPTS if self.attempts is None else self.attempts
        last_error: Exception | None = None
        for attempt in range(1, attempts + 1):
            try:
                with _bounded_requests(self.timeout):
                    return call(last_error)
            except Exception as error:
                if not _may_pass(error):
                    raise self.failure(_short(error), _remedy(error)) from error
                wait = self._wait(error, attempt)
                if attempt == attempts or wait is None:
                    tries = f"{attempt} {'try' if attempt == 1 else 'tries'}"
                    raise self.failure(_short(error), f"Gave up after {tries}: push again later.") from error
                logger.warning(
                    "Push of %s failed at try %d of %d (%s); next try in %.1f s.",
                    self.subject, attempt, attempts, _short(error), wait,
                )  # fmt: skip
                (self.sleep or time.sleep)(wait)
                last_error = error
        raise AssertionError("unreachable")

    def _wait(self, error: Exception, attempt: int) -> float | None:
        """Seconds to wait: what the Hub asks for, else exponential with jitter; `None` if it asks for too much."""
        hub_wait = _retry_after(error)
        if hub_wait is not None:
            return hub_wait + random.random() if hub_wait <= LONGEST_RETRY_AFTER else None
        backoff = BACKOFF if self.backoff is None else self.backoff
        # jitter: processes that failed together do not come back together
        return min(LONGEST_WAIT, backoff * 2 ** (attempt - 1)) * random.uniform(0.75, 1.25)

    def failure(self, reason: str, remedy: str) -> PushError:
        """The error that says what was not pushed, why, what to do, and where the files are."""
        location = ""
        if self.folder is not None:
            location = f" Nothing is lost: your files are in {Path(self.folder).resolve()}."
        return PushError(f"{self.subject} was not pushed: {reason}. {remedy}{location}")


def _status(error: Exception) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _may_pass(error: Exception) -> bool:
    """Whether the request may succeed later. A 409 or 412 says that the head moved: the next try reads it anew."""
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled

    status = _status(error)
    if status is not None:
        return status in (408, 409, 412, 425, 429) or (status >= 500 and status != 501)
    if isinstance(error, OfflineModeIsEnabled | HfHubHTTPError):
        return False
    if isinstance(error, HTTPError):  # of the transport: time-outs, resets, half an answer
        return type(error).__name__ not in ("UnsupportedProtocol", "TooManyRedirects")
    # The Xet client raises plain errors; a proxy's page instead of JSON comes with a server error.
    return isinstance(error, ConnectionError | TimeoutError | RuntimeError | json.JSONDecodeError)


def _retry_after(error: Exception) -> float | None:
    """Seconds that a 429 or 503 asks to wait, from `Retry-After` (seconds or a date) or the Hub's own `RateLimit`."""
    from huggingface_hub.utils import parse_ratelimit_headers

    headers = getattr(getattr(error, "response", None), "headers", {})
    value = headers.get("retry-after", "").strip()
    if value.isdigit():
        return float(value)
    if value:
        try:
            return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
        except ValueError:
            return None
    limit = parse_ratelimit_headers(headers) if _status(error) == 429 else None
    return float(limit.reset_in_seconds) if limit is not None and limit.remaining == 0 else None


def _remedy(error: Exception) -> str:
    from huggingface_hub.errors import LocalTokenNotFoundError, OfflineModeIsEnabled

    status = _status(error)
    if status == 401 or isinstance(error, LocalTokenNotFoundError):
        return "The Hub does not know you: run `hf auth login`, set HF_TOKEN, or pass token=."
    if status == 403:
        return "Your token may not write there: make one with write permission for it and run `hf auth login`."
    if status == 404:
        return "It is not there, or hidden from you: check repo_id, revision and the token (`hf auth whoami`)."
    if status == 402:
        return "The account's storage or plan does not allow it: see its billing page."
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set: unset it and push again."
    if isinstance(error, YamlError):
        return "Mend the card on the Hub, or leave the one here out with ignore='README.md'."
    return "Trying again would not help."


def _short(error: Exception) -> str:
    """The error in one line, without the request's ids and advice of the client."""
    status = _status(error)
    text = " ".join((getattr(error, "server_message", None) or str(error)).split())[:300].rstrip(".")
    name = f"HTTP {status}" if status is not None else type(error).__name__
    return f"{name}: {text}" if text else name


@contextmanager
def _bounded_requests(seconds: float) -> Iterator[None]:
    """Inside, the Hub's shared client gives up on a request that would wait for an answer without limit."""
    from huggingface_hub import get_session

    def bound(request: Any) -> None:
        timeouts = request.extensions.get("timeout") or {}
        kinds = ("connect", "read", "write", "pool")
        request.extensions["timeout"] = {kind: timeouts.get(kind) or seconds for kind in kinds}

    session = get_session()
    event_hooks = session.event_hooks
    # A hook and not the client's own time-out: some of the client's calls pass `timeout=None` by themselves.
    session.event_hooks = {**event_hooks, "request": [*event_hooks["request"], bound]}
    try:
        yield
    finally:
        session.event_hooks = event_hooks
