"""Any server of OpenAI's `/v1/completions` that takes and gives token ids: vLLM, SGLang and others."""

from __future__ import annotations

import http.client
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar
from urllib.parse import urlsplit

from hf_ext.data.backends.protocol import RowRequest, SampledRow, problem_of
from hf_ext.guards.engines import BackendError

T = TypeVar("T")

FIRST_WAIT = 1.0  # seconds before the second attempt, doubled before each further one
LONGEST_WAIT = 30.0
TRANSIENT = (408, 425, 429)  # beside 500 and above
NO_LIMIT = 2**63
INTACT = "What is stored is intact: repeat the call when the server is well, also with another backend."
TAKES_IDS = "vLLM and SGLang do (their option return_token_ids); transformers serve and TGI know text alone"


class _Transient(Exception):
    """What may be another answer the next time."""


class _Final(Exception):
    """What stays as it is."""


class CompletionsBackend:
    """
    Rows from a server of OpenAI's `/v1/completions`, one request a row, ids in and ids out.

    A request that fails, stalls or is answered by nonsense is made again, after 1, 2, 4, ... seconds, at most 30. What
    fails every time is named with its row; the call then ends, and what is stored is intact.

    Args:
        url (`str`):
            Of the server, such as `http://localhost:8000`.
        model (`str`, *optional*):
            Name it is served by. Defaults to the first one that the server lists.
        timeout (`float`, *optional*, defaults to `600.0`):
            Seconds for the whole answer of a request.
        attempts (`int`, *optional*, defaults to `8`):
            Of a request, the first one included: waits of 91 seconds in all.
        connections (`int`, *optional*, defaults to `64`):
            Requests at a time; the server makes batches of them.
        api_key (`str`, *optional*):
            Sent as a bearer token. Defaults to the variable `HF_EXT_BACKEND_KEY` of the environment, if it is set.

    Raises:
        ValueError: if the url is none of `http` or `https`, or a number is out of range.
    """

    def __init__(
        self,
        url: str,
        *,
        model: str | None = None,
        timeout: float = 600.0,
        attempts: int = 8,
        connections: int = 64,
        api_key: str | None = None,
    ) -> None:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        is_whole = parts.scheme in ("http", "https") and parts.hostname and not (parts.query or parts.fragment)
        if not is_whole or parts.hostname is None:
            raise ValueError(f"The url of a server looks like http://localhost:8000, got {url!r}.")
        if not (timeout > 0 and attempts >= 1 and connections >= 1):
            raise ValueError(
                f"timeout must be above 0, attempts and connections at least 1: got {timeout}, {attempts} and "
                f"{connections}."
            )
        path = parts.path.rstrip("/").removesuffix("/completions").removesuffix("/v1")
        self.is_secure = parts.scheme == "https"
        self.host = parts.hostname
        self.port = parts.port
        self.path = path
        host = f"[{self.host}]" if ":" in self.host else self.host
        self.url = f"{parts.scheme}://{host}{'' if self.port is None else f':{self.port}'}{path}"
        self.model = model
        self.timeout = timeout
        self.attempts = attempts
        self.connections = connections
        key = os.environ.get("HF_EXT_BACKEND_KEY") if api_key is None else api_key
        self.headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        self._failure: BackendError | None = None
        self._stopped = threading.Event()
        self._open: set[http.client.HTTPConnection] = set()
        self._lock = threading.Lock()

    @property
    def description(self) -> dict[str, Any]:
        """What a manifest says of it: not the url, which may be nobody's business."""
        return {"name": "completions", "model": self.model}

    def sample(self, rows: Sequence[RowRequest], temperature: float, eos_ids: Sequence[int]) -> list[SampledRow]:
        """
        Sample the rows.

        Raises:
            BackendError: if a row could not be had; the message names the url, the row and the reason.
        """
        self._failure = None
        self._stopped.clear()
        if self.model is None:
            self.model = self._insistent(
                "the list of models", lambda: _first_model(self._asked("GET", "models", None))
            )
        with ThreadPoolExecutor(self.connections) as pool:
            futures = [
                pool.submit(self._row, f"row {number:,} of {len(rows):,}", row, temperature, eos_ids)
                for number, row in enumerate(rows)
            ]
            try:
                return [future.result() for future in futures]
            except BaseException as error:
                self._stop()
                pool.shutdown(wait=False, cancel_futures=True)
                # One row's failure ends the others: its reason is the one to tell.
                if isinstance(error, _Transient) and self._failure is not None:
                    raise self._failure from None
                raise

    def close(self) -> None:
        """Close what is open."""
        self._stop()

    # --- a request ---------------------------------------------------------------------------------------------------

    def _row(self, subject: str, row: RowRequest, temperature: float, eos_ids: Sequence[int]) -> SampledRow:
        body = {
            "model": self.model,
            "prompt": list(row.prompt),
            "max_tokens": row.max_new_tokens,
            "temperature": temperature,
            "seed": row.seed,
            "n": 1,
            "stream": False,
            "logprobs": 1,
            "return_token_ids": True,
            "stop_token_ids": list(eos_ids),
            # Said aloud: a server may take what is not said from the checkpoint's generation config.
            "top_p": 1.0,
            "top_k": -1,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "min_tokens": 0,
            "ignore_eos": False,
            "skip_special_tokens": False,
        }
        return self._insistent(subject, lambda: _sampled(self._asked("POST", "completions", body), row, eos_ids))

    def _insistent(self, subject: str, attempt: Callable[[], T]) -> T:
        """What `attempt` returns, tried again while its failure may pass."""
        problem = ""
        for number in range(self.attempts):
            if self._stopped.wait(min(FIRST_WAIT * 2 ** (number - 1), LONGEST_WAIT) if number else 0):
                break
            try:
                return attempt()
            except _Final as error:
                raise self._failed(f"{self.url}, {subject}: {error}.") from error
            except (OSError, http.client.HTTPException, _Transient) as error:
                problem = str(error) or type(error).__name__
        if self._stopped.is_set():
            raise _Transient("another row failed")
        times = "once" if self.attempts == 1 else f"{self.attempts} times"
        raise self._failed(f"{self.url}, {subject}: failed {times}, at last because of: {problem}. {INTACT}")

    def _failed(self, message: str) -> BackendError:
        """The failure that ends the call: the first one."""
        with self._lock:
            self._failure = self._failure or BackendError(message)
        self._stop()
        return self._failure

    def _asked(self, verb: str, place: str, body: Mapping[str, Any] | None) -> Any:
        """The server's answer, parsed."""
        kind = http.client.HTTPSConnection if self.is_secure else http.client.HTTPConnection
        connection = kind(self.host, self.port, timeout=min(self.timeout, LONGEST_WAIT))
        with self._lock:
            self._open.add(connection)
        try:
            connection.connect()
            connection.sock.settimeout(self.timeout)  # a server may think longer than it may take to answer the door
            content = None if body is None else json.dumps(body).encode()
            connection.request(verb, f"{self.path}/v1/{place}", content, self.headers)
            text = self._read(connection.getresponse(), body)
        finally:
            with self._lock:
                self._open.discard(connection)
            connection.close()
        try:
            return json.loads(text)
        except ValueError:
            raise _Transient(f"an answer that is no JSON: {_excerpt(text)}") from None

    def _read(self, response: http.client.HTTPResponse, body: Mapping[str, Any] | None) -> bytes:
        """The body of an answer, if it came in time and is no longer than it may be."""
        longest = 2**20 + 2**12 * (0 if body is None else int(body["max_tokens"]) + len(body["prompt"]))
        deadline = time.monotonic() + self.timeout  # of the whole: a server may send a byte now and then
        text = b""
        while piece := response.read1(2**16):
            text += piece
            if len(text) > longest:
                raise _Transient(f"an answer of more than {longest:,} bytes")
            if time.monotonic() > deadline:
                raise _Transient(f"no whole answer within {self.timeout:g} seconds")
        if response.length:  # what was announced and did not come
            raise _Transient("an answer that breaks off")
        if response.status >= 500 or response.status in TRANSIENT:
            raise _Transient(f"status {response.status}: {_excerpt(text)}")
        if response.status != 200:
            raise _Final(f"refused with status {response.status}: {_excerpt(text)}")
        return text

    def _stop(self) -> None:
        """End waits and open requests."""
        self._stopped.set()
        with self._lock:
            for connection in self._open:
                if connection.sock is not None:
                    with suppress(OSError):
                        connection.sock.shutdown(socket.SHUT_RDWR)


# --- answers ---------------------------------------------------------------------------------------------------------


def _first_model(answer: Any) -> str:
    try:
        return str(answer["data"][0]["id"])
    except (LookupError, TypeError):
        raise _Transient(f"a list of models that is none: {_excerpt(answer)}") from None


def _sampled(answer: Any, request: RowRequest, eos_ids: Sequence[int]) -> SampledRow:
    """The row in an answer."""
    try:
        choice = answer["choices"][0]
        token_ids = choice.get("token_ids")
        prompt_ids = choice.get("prompt_token_ids", answer.get("prompt_token_ids"))
        reason = choice.get("finish_reason")
        logprobs = (choice.get("logprobs") or {}).get("token_logprobs")
    except (LookupError, TypeError, AttributeError):
        raise _Transient(f"an answer that is no completion: {_excerpt(answer)}") from None
    if token_ids is None:
        raise _Final(
            f"the server answers with text and no token ids, and decoding and encoding would change them; {TAKES_IDS}"
        )
    if prompt_ids is not None and prompt_ids != list(request.prompt):
        raise _Final(
            f"the server read {_excerpt(prompt_ids)} where it was sent {_excerpt(list(request.prompt))}: does it add "
            "a beginning token?"
        )
    try:
        ids = [int(token) for token in token_ids]
        logps = None if logprobs is None else [float(logp) for logp in logprobs]
    except (TypeError, ValueError):
        raise _Transient(f"ids or log-probabilities that are no numbers: {_excerpt(choice)}") from None
    if reason == "stop" and not (ids and ids[-1] in eos_ids) and len(ids) < request.max_new_tokens:
        end = _end_left_out(choice, eos_ids)
        if end is not None:
            ids.append(end)
    if logps is not None and len(logps) == len(ids) - 1:
        logps = None  # the end token's is missing: the model at hand tells them
    row = SampledRow(tuple(ids), None if logps is None else tuple(logps))
    problem = problem_of(row, request, eos_ids, NO_LIMIT)
    if problem is not None:
        raise _Transient(problem)
    return row


def _end_left_out(choice: Mapping[str, Any], eos_ids: Sequence[int]) -> int | None:
    """The end token at which a server stopped without giving it: as it says, or the only one there is."""
    for name in ("stop_reason", "matched_stop"):  # vLLM's and SGLang's word
        token = choice.get(name)
        if isinstance(token, int):
            return token if token in eos_ids else None
    return eos_ids[0] if len(eos_ids) == 1 else None


def _excerpt(value: Any) -> str:
    text = value.decode(errors="replace") if isinstance(value, bytes) else str(value)
    text = " ".join(text.split())
    return repr(text if len(text) <= 160 else text[:160] + "...")
