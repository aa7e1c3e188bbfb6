"""A server by token ids: exact rows, and each way in which a server fails is retried, then named; nothing is lost."""

from __future__ import annotations

import threading
import time

import pytest

from hf_ext import BackendError, CompletionsBackend
from hf_ext.data.backends import completions
from hf_ext.data.backends.protocol import RowRequest
from hf_ext.data.context_free import generate_context_free
from tests.data.backends.engines import PlainEngine, top_k
from tests.data.backends.server import Server
from tests.data.symbol_models import BOS, EOS, first_token_p, symbol_model, symbol_tokenizer, two_token_p

ROWS = [RowRequest((BOS, number), 6, number) for number in range(2, 10)]
SETTINGS = {"max_new_tokens": 12, "batch_size": 4, "seed": 3, "show_progress": False}


@pytest.fixture(scope="module")
def model():
    return symbol_model(64)


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr(completions, "FIRST_WAIT", 0.02)


def generate(folder, num_tokens, model, **arguments):
    return generate_context_free(model, symbol_tokenizer(64), num_tokens, output_dir=folder, **(SETTINGS | arguments))


def test_rows_follow_the_exact_softmax_and_everything_is_said_aloud(tmp_path, model):
    with Server(PlainEngine(model)) as server:
        backend = CompletionsBackend(server.url + "/v1/")
        store = generate(tmp_path, 4_000, model, backend=backend, batch_size=16)
    rows = [ids[1:] for ids in store.to_dataset()["input_ids"]]
    assert first_token_p(model, rows) > 0.001
    assert two_token_p(model, rows) > 0.001
    assert {shard["backend"]["model"] for shard in store.manifest["shards"]} == {"tiny"}
    assert "127.0.0.1" not in str(store.manifest)
    request = server.requests[-1]
    neutral = {
        "temperature": 1.0, "top_p": 1.0, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0,
        "presence_penalty": 0.0, "frequency_penalty": 0.0, "min_tokens": 0, "ignore_eos": False,
        "n": 1, "return_token_ids": True,
        "stop_token_ids": [EOS], "model": "tiny", "max_tokens": 12, "prompt": [BOS],
    }  # fmt: skip
    assert {name: request[name] for name in neutral} == neutral
    seeds = [body["seed"] for body in server.requests]
    assert len(set(seeds)) == len(seeds)  # two rows of one seed and prompt would be one row


def test_a_server_with_top_k_is_refused_though_it_reports_the_models_log_probabilities(tmp_path, model):
    refused = pytest.raises(BackendError, match=r"completions is refused: .* under top_k=10 ")
    with Server(PlainEngine(model, change=top_k(10))) as server, refused:
        generate(tmp_path, 500, model, backend=CompletionsBackend(server.url))


# --- transient -------------------------------------------------------------------------------------------------------


def once(action):
    """A fault that meets each prompt once."""
    met, lock = set(), threading.Lock()

    def fault(handler, answer):
        prompt = tuple(answer["choices"][0]["prompt_token_ids"])
        with lock:
            is_new = prompt not in met
            met.add(prompt)
        return is_new and action(handler, answer) is not False

    return fault


def close(handler, answer):
    handler.close_connection = True
    handler.connection.close()


def half(handler, answer):
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices"')
    handler.close_connection = True


def trickle(handler, answer):
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    for _ in range(60):
        handler.wfile.write(b" ")
        handler.wfile.flush()
        time.sleep(0.1)


def changed(**fields):
    def action(handler, answer):
        handler.send({"choices": [answer["choices"][0] | fields]})

    return action


PASSING = {
    "closed": (close, "."),
    "half": (half, "breaks off|IncompleteRead"),
    "stalled": (lambda handler, answer: time.sleep(6), "timed out"),
    "trickling": (trickle, "no whole answer within 2 seconds"),
    "status_500": (lambda handler, answer: handler.send(b"out of memory", 500), "status 500: 'out of memory'"),
    "status_429": (lambda handler, answer: handler.send(b"later", 429), "status 429"),
    "no_json": (lambda handler, answer: handler.send(b"<html>hello</html>"), "no JSON: '<html>hello"),
    "no_choices": (lambda handler, answer: handler.send({"choices": []}), "no completion"),
    "a_list": (lambda handler, answer: handler.send([1]), "no completion"),
    "huge": (lambda handler, answer: handler.send(b" " * 2**22), "more than"),
    "no_ids": (changed(token_ids=["a", "b"]), "no numbers"),
    "empty": (changed(token_ids=[]), "no token was sampled|"),
    "negative": (changed(token_ids=[-5, 4], logprobs=None), "outside"),
    "too_long": (changed(token_ids=[5] * 50), "50 tokens were sampled"),
    "cut_early": (changed(token_ids=[5, 6], finish_reason="length", logprobs=None), "stopped after 2 of 6"),
    "nan": (changed(token_ids=[5] * 6, logprobs={"token_logprobs": [float("nan")] * 6}), "not a number"),
}


@pytest.mark.parametrize("name", PASSING)
def test_what_may_pass_is_tried_again_and_named_if_it_does_not(model, name):
    action, words = PASSING[name]
    with Server(PlainEngine(model), once(action)) as server:
        backend = CompletionsBackend(server.url, model="tiny", timeout=2.0, attempts=2)
        rows = backend.sample(ROWS, 1.0, [EOS])
        assert len(rows) == len(ROWS)
        assert len(server.requests) == 2 * len(ROWS)
    with Server(PlainEngine(model), lambda handler, answer: action(handler, answer) is not False) as server:
        backend = CompletionsBackend(server.url, model="tiny", timeout=2.0, attempts=2, connections=2)
        started = time.monotonic()
        with pytest.raises(BackendError, match=rf"{server.url}, row \d of 8: failed 2 times.*({words}).*intact"):
            backend.sample(ROWS, 1.0, [EOS])
        assert time.monotonic() - started < 30
        assert len(server.requests) < 2 * len(ROWS)  # one row's end is the call's


# --- for good --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("action", "words"),
    [
        (lambda handler, answer: handler.send({"detail": "no such model"}, 404), "status 404: .*no such model"),
        (lambda handler, answer: handler.send({"detail": "prompt must be a string."}, 400), "prompt must be a string"),
        (changed(token_ids=None, text="hello"), "text and no token ids.*return_token_ids.*transformers serve"),
        (changed(prompt_token_ids=[BOS, BOS, 2]), r"read '\[0, 0, 2\]' where it was sent .*beginning token"),
    ],
)
def test_what_stays_is_named_at_once(model, action, words):
    with Server(PlainEngine(model), lambda handler, answer: action(handler, answer) is not False) as server:
        backend = CompletionsBackend(server.url, model="tiny", connections=1)
        with pytest.raises(BackendError, match=f"row 0 of 8: .*{words}"):
            backend.sample(ROWS, 1.0, [EOS])
        assert len(server.requests) == 1


def test_an_end_token_that_a_server_leaves_out_is_put_back(model):
    def leave_out(said):
        def fault(handler, answer):
            choice = answer["choices"][0]
            if choice["finish_reason"] == "stop":
                handler.send({"choices": [choice | {"token_ids": choice["token_ids"][:-1]} | said]})
                return True
            return False

        return fault

    rows = [RowRequest((BOS, 3), 60, number) for number in range(30)]
    for said in ({}, {"stop_reason": EOS}, {"matched_stop": EOS}):
        with Server(PlainEngine(model), leave_out(said)) as server:
            sampled = CompletionsBackend(server.url, model="tiny").sample(rows, 1.0, [EOS])
        ended = [row for row in sampled if len(row.ids) < 60]
        assert ended
        assert {row.ids[-1] for row in ended} == {EOS}
        assert all(len(row.logps) == len(row.ids) for row in ended)


# --- a whole run -----------------------------------------------------------------------------------------------------


def test_a_server_that_dies_and_comes_back_costs_nothing(tmp_path, model):
    first = Server(PlainEngine(model))

    def die_in_the_middle():
        while len(first.requests) < 400:
            time.sleep(0.01)
        first.die()
        time.sleep(0.3)
        revived.append(Server(PlainEngine(model), port=first.port))

    revived: list[Server] = []
    thread = threading.Thread(target=die_in_the_middle, daemon=True)
    thread.start()
    backend = CompletionsBackend(first.url, attempts=12, timeout=5)  # one taken as the server dies is never answered
    store = generate(tmp_path, 3_000, model, backend=backend)
    thread.join(timeout=10)
    revived[0].die()
    assert store.manifest["complete"]
    assert revived[0].requests


def test_a_server_that_stays_dead_is_named_and_another_backend_goes_on(tmp_path, model):
    server = Server(PlainEngine(model), lambda handler, answer: len(server.requests) > 480 and server.die() is None)
    with pytest.raises(BackendError, match=rf"{server.url}, row [\d,]+ of 32: failed 2 times.*intact"):
        generate(tmp_path, 5_000, model, backend=CompletionsBackend(server.url, attempts=2, timeout=3))
    kept = sorted(file.name for file in tmp_path.glob("shard-*"))
    assert kept
    store = generate(tmp_path, 5_000, model)
    names = [shard.get("backend", {}).get("name") for shard in store.manifest["shards"]]
    assert names == ["completions"] * len(kept) + [None] * (len(names) - len(kept))
    assert sum(len(ids) - 1 for ids in store.to_dataset()["input_ids"]) == store.manifest["tokens"]


@pytest.mark.parametrize("url", ["", "ftp://host", "http://", "http://host?x=1", "http://host:port"])
def test_an_url_that_is_none_is_refused(url):
    with pytest.raises(ValueError, match=r"looks like http://localhost:8000|[Pp]ort"):
        CompletionsBackend(url)


@pytest.mark.parametrize("number", [{"timeout": 0}, {"attempts": 0}, {"connections": 0}])
def test_numbers_out_of_range_are_refused(number):
    with pytest.raises(ValueError, match="attempts and connections at least 1"):
        CompletionsBackend("localhost:8000", **number)


def test_the_key_goes_with_each_request_and_nowhere_else(monkeypatch):
    monkeypatch.setenv("HF_EXT_BACKEND_KEY", "secret")
    backend = CompletionsBackend("https://[::1]:8000/some/path/v1/completions")
    assert backend.url == "https://[::1]:8000/some/path"
    assert backend.headers["Authorization"] == "Bearer secret"
    assert "secret" not in str(backend.description)
