"""A server with two clients: OpenAI's own, and one that sees every byte."""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from llm_kvbranch.engine import Engine, Feed, Load, Settings, Weights
from llm_kvbranch.models.catalog import embedded_model
from llm_kvbranch.store.store import Store

from .serving import Serving
from .toys import logits

PATIENCE = 120  # seconds to wait before a test fails
# Logits: with other batch sizes, rounding may swap tokens that are nearly equally
# likely; after a wrong row they differ by several units
CLOSE = 0.5
MODEL = "SmolLM2-135M-Instruct.Q4_1"
BUSY = ("reading", "answering")
# A greedy answer to this only stops at the limit
ENDLESS = "Count from one to ten thousand, and write every number in words."
SKY = "Why is the sky blue?"
AHEAD = 5  # tokens that start every next turn, prefilled while idle


def until(condition: Callable[[], Any], what: str, seconds: float = PATIENCE) -> Any:
    "Wait until a condition is true and return its value"
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"still not: {what}"
        time.sleep(0.02)
    return found


class Reply:
    "A complete response"

    def __init__(self, response: http.client.HTTPResponse):
        self.status = response.status
        self.headers = {k.lower(): v for k, v in response.getheaders()}
        self.body = response.read()

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        "The error, in OpenAI's format and nothing else"
        assert set(self.json) == {"error"}
        assert set(self.json["error"]) == {"message", "type", "param", "code"}
        return dict(self.json["error"])

    @property
    def choice(self) -> dict[str, Any]:
        "The first choice of a chat completion"
        assert self.status == 200, self.body
        return dict(self.json["choices"][0])

    @property
    def text(self) -> str:
        return str(self.choice["message"]["content"])

    @property
    def facts(self) -> dict[str, Any]:
        "Our facts about the answer: tokens, times, reuse"
        return dict(self.choice["kvbranch"])

    @property
    def id(self) -> str:
        "The id of the logged response"
        return str(self.choice["response_id"])

    @property
    def cached(self) -> int:
        return int(self.json["usage"]["prompt_tokens_details"]["cached_tokens"])


class Server(Serving):
    "A server as its clients see it, on a free port"

    def __init__(self, home: Path, *options: str, **env: str):
        one_thread(home / "llm" / "kvbranch")
        super().__init__(home, "--port", "0", *options, **env)

    def end(self, number: int = signal.SIGINT) -> None:
        "Stop it with Ctrl-C, and check that it printed no errors"
        code, _ = self.stop(number)
        assert (code, self.errors) == (0, [])

    @contextlib.contextmanager
    def opened(
        self, method: str, path: str, body: Any = None, **headers: Any
    ) -> Iterator[http.client.HTTPResponse]:
        "Send a request; yields the unread response, then closes the connection"
        sent = {"authorization": f"Bearer {self.token}"}
        if body is not None:
            sent["content-type"] = "application/json"
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        sent = {name: value for name, value in sent.items() if value is not None}
        with contextlib.closing(self.connection(PATIENCE)) as connection:
            connection.request(method, path, body, sent)
            yield connection.getresponse()

    @contextlib.contextmanager
    def unread(self, body: Any, path: str = "/v1/chat/completions") -> Iterator[None]:
        "Send a request and never read the answer; closes the connection at the end"
        sent = {
            "authorization": f"Bearer {self.token}",
            "content-type": "application/json",
        }
        with contextlib.closing(self.connection(PATIENCE)) as connection:
            connection.request("POST", path, json.dumps(body), sent)
            yield

    def get(self, path: str, **headers: Any) -> Reply:
        "Get a complete response; headers that are None are not sent"
        with self.opened("GET", path, **headers) as response:
            return Reply(response)

    def post(self, path: str, body: Any, **headers: Any) -> Reply:
        with self.opened("POST", path, body, **headers) as response:
            return Reply(response)

    def chat(self, messages: Any, **more: Any) -> Reply:
        "A greedy chat completion"
        return self.post("/v1/chat/completions", chat(messages, **more))

    @contextlib.contextmanager
    def streaming(self, messages: Any, **more: Any) -> Iterator[Iterator[Any]]:
        "The events of a greedy chat completion as they arrive"
        body = chat(messages, stream=True, **more)
        with self.opened("POST", "/v1/chat/completions", body) as response:
            yield events(response)

    def openai(self, **options: Any) -> Any:
        "OpenAI's client, without automatic retries"
        from openai import OpenAI

        given = {"max_retries": 0, "timeout": PATIENCE, **options}
        return OpenAI(base_url=f"{self.url}/v1", api_key=self.token, **given)

    # -- its state ---------------------------------------------------------

    def slots(self) -> dict[str, Any]:
        return dict(self.get("/-/kvbranch/slots").json)

    def busy(self) -> list[dict[str, Any]]:
        "The slots in use"
        return [s for s in self.slots()["slots"] if s["state"] in BUSY]

    def until_idle(self, seconds: float = PATIENCE) -> float:
        "Wait until all slots are free and the queue is empty; returns the seconds"
        started = time.monotonic()
        until(
            lambda: not self.busy() and not self.slots()["n_waiting"],
            "all slots free",
            seconds,
        )
        return time.monotonic() - started

    def metrics(self) -> dict[str, float]:
        "All samples, by name with labels"
        text = self.get("/metrics").body.decode()
        samples = [line.rpartition(" ") for line in text.splitlines() if line[0] != "#"]
        return {name: float(value) for name, _, value in samples}


def one_thread(directory: Path) -> None:
    """Set a model to one thread.

    Threads that wait for each other crawl when other processes are busy.
    """
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "settings.json"
    if not path.exists():
        path.write_text(json.dumps({"models": {MODEL: {"n_threads": 1}}}))


def chat(messages: Any, **more: Any) -> dict[str, Any]:
    "The body of a greedy chat completion; a string is a user message"
    if isinstance(messages, str):
        messages = [user(messages)]
    return {"messages": messages, "temperature": 0, "max_tokens": 16, **more}


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def events(response: http.client.HTTPResponse) -> Iterator[Any]:
    "The events of a stream as they arrive; [DONE] becomes None"
    assert response.status == 200, response.read()
    for line in response:
        if line.strip() and not line.startswith(b":"):  # a sign of life
            assert line.startswith(b"data: ")
            data = line.removeprefix(b"data: ").strip()
            yield None if data == b"[DONE]" else json.loads(data)


class Judge:
    "Checks an answer's tokens against the model's own choices"

    def __init__(self):
        self.weights = Weights(Load(embedded_model()))

    def tokens(self, server: Server, response_id: str) -> tuple[Any, int]:
        "The tokens of a prompt and its answer, and where the answer begins"
        with contextlib.closing(Store(server.home / "kvbranch")) as store:
            (entry,) = (
                entry
                for entry in store.entries()
                if entry.state.response_id == response_id
            )
            return store.chain(entry).tokens, entry.state.answer

    def beaten_by(self, tokens: Any, at: int) -> float:
        "The largest margin by which another token beat the chosen one, in logits"
        engine = Engine(self.weights, Settings(n_threads=1, n_seq=1))
        engine.reserve(len(tokens))
        (index,) = engine.decode([Feed(0, 0, tokens[:at])])
        worst = 0.0
        for position in range(at, len(tokens)):
            scores = logits(engine, index)
            worst = max(worst, float(scores.max() - scores[tokens[position]]))
            feed = Feed(0, position, tokens[position : position + 1])
            (index,) = engine.decode([feed])
        return worst

    def is_right(self, server: Server, response_id: str) -> bool:
        return self.beaten_by(*self.tokens(server, response_id)) < CLOSE
