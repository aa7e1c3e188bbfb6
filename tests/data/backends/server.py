"""
A server of `/v1/completions` on loopback that takes and gives token ids, as vLLM and SGLang do.

The installed transformers' own (`transformers serve`) takes text alone, so that it cannot be what is tested against.
"""

from __future__ import annotations

import json
import queue
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from hf_ext.data.backends.protocol import RowRequest

Fault = Callable[["Handler", dict[str, Any]], bool]
"""What a server does in place of an answer, given the one it would give; False: it gives that one after all."""


class Server:
    """
    Requests that come together are sampled together by an engine of the tests.

    Args:
        engine: samples.
        fault: called for each completion.
        port: 0 for any.
    """

    def __init__(self, engine: Any, fault: Fault = lambda handler, answer: False, port: int = 0) -> None:
        self.engine = engine
        self.fault = fault
        self.requests: list[dict[str, Any]] = []
        self.waiting: queue.Queue = queue.Queue()
        self.http = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.http.daemon_threads = True
        self.http.owner = self  # type: ignore[attr-defined]
        self.connections: set[socket.socket] = set()
        self.is_dead = False
        self.port = self.http.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        threading.Thread(target=self._work, daemon=True).start()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *error: object) -> None:
        self.die()

    def die(self) -> None:
        """As a killed process does: every connection breaks, and the port is closed."""
        if self.is_dead:
            return
        self.is_dead = True
        for connection in list(self.connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self.http.shutdown()
        self.http.server_close()
        self.waiting.put(None)

    def answer_to(self, body: dict[str, Any]) -> dict[str, Any]:
        """The completion of a request, from the batch it falls into."""
        self.requests.append(body)
        reply: queue.Queue = queue.Queue()
        self.waiting.put((body, reply))
        return reply.get()

    def _work(self) -> None:
        while (item := self.waiting.get()) is not None:
            batch = [item]
            time.sleep(0.03)
            while not self.waiting.empty():
                if (item := self.waiting.get()) is None:
                    return
                batch.append(item)
            bodies = [body for body, _ in batch]
            rows = [RowRequest(tuple(body["prompt"]), body["max_tokens"], body["seed"]) for body in bodies]
            sampled = self.engine.sample(rows, bodies[0]["temperature"], bodies[0]["stop_token_ids"])
            for (body, reply), row in zip(batch, sampled, strict=True):
                ends = row.ids[-1] in body["stop_token_ids"]
                choice = {
                    "index": 0,
                    "text": "",
                    "finish_reason": "stop" if ends else "length",
                    "token_ids": list(row.ids),
                    "prompt_token_ids": body["prompt"],
                    "logprobs": None if row.logps is None else {"token_logprobs": list(row.logps)},
                }
                reply.put({"object": "text_completion", "choices": [choice]})


class Handler(BaseHTTPRequestHandler):
    """Of a [`Server`]."""

    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        super().setup()
        self.server.owner.connections.add(self.connection)  # type: ignore[attr-defined]

    def finish(self) -> None:
        with suppress(OSError):
            super().finish()
        self.server.owner.connections.discard(self.connection)  # type: ignore[attr-defined]

    def do_GET(self) -> None:
        self.send({"data": [{"id": "tiny"}, {"id": "an-adapter"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        owner = self.server.owner  # type: ignore[attr-defined]
        assert self.path == "/v1/completions"
        answer = owner.answer_to(body)
        if not owner.fault(self, answer):
            self.send(answer)

    def send(self, answer: Any, status: int = 200) -> None:
        """Send an answer, whole."""
        content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        with suppress(OSError):
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""
