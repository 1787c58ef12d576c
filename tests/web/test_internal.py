"""The protocol for other processes of the same user: what it takes and refuses.

Whoever has the API key may use these addresses, from this machine or another. They are
given nothing by it that the key does not give: no file, and no engine to themselves.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
from concurrent.futures import Future
from types import SimpleNamespace

import llm
import pytest

from llm_kvbranch.inference import Request
from llm_kvbranch.log.history import open_log
from llm_kvbranch.models import KVLlamaOptions, answer_options, choose
from llm_kvbranch.web.door import Door, close_door
from llm_kvbranch.web.serving import launch
from llm_kvbranch.web.serving.served_model import attach

from ..support.asgi import BEARER, HOST, JSON, TOKEN, send_to


class Engine:
    "The host of a server's engine, which keeps what reaches it"

    def __init__(self):
        self.requests = []
        self.tails = []
        self.sampling = {}

    async def stream(self, request, client):
        self.requests.append(request)
        return
        yield

    def tail(self, text, n):
        future = Future()
        self.tails.append(n)
        future.set_result(text[-n:])
        return future


@pytest.fixture
async def engine():
    return Engine()


@pytest.fixture(scope="module")
def migrated(tmp_path_factory):
    path = tmp_path_factory.mktemp("log") / "logs.db"
    open_log(str(path), create=True).close()
    return path


@pytest.fixture
async def application(user_path, engine, migrated):
    shutil.copy(migrated, user_path / "logs.db")
    datasette, name = launch.build(user_path / "logs.db")
    close_door(datasette, Door(TOKEN))
    server = SimpleNamespace(
        host=engine,
        database=name,
        stopping=asyncio.Event(),
        uncommitted={},
    )
    attach(datasette, server)
    await datasette.invoke_startup()
    application = datasette.app()
    application.server = server  # the datasette's server is kept by a weak reference
    return application


def body_of(*messages, **more):
    return {"messages": list(messages), "options": {}, **more}


def message(*parts, role="assistant"):
    return {"role": role, "parts": list(parts)}


async def ask(application, path, body):
    data = json.dumps(body).encode()
    sent = ("POST", f"/-/kvbranch/{path}", HOST, JSON, BEARER)
    return await asyncio.wait_for(send_to(application, *sent, body=(data,)), 10)


HI = message({"type": "text", "text": "Hi"}, role="user")


class TestFiles:
    "Fails if a request makes the server open a file or an address"

    @pytest.fixture
    def fifo(self, tmp_path):
        path = tmp_path / "fifo"
        os.mkfifo(path)
        return str(path)

    @pytest.mark.parametrize("role", ["user", "assistant", "system", "tool"])
    async def test_attachments_are_refused(self, application, engine, fifo, role):
        content = base64.b64encode(b"x").decode()
        for attachment in (
            {"path": fifo},
            {"path": "/etc/passwd"},
            {"url": "http://127.0.0.1:1/"},
            {"type": "text/plain", "content": content},
            {},
        ):
            result = {"type": "tool_result", "name": "a", "output": "b"}
            for part in (
                {"type": "attachment", "attachment": attachment},
                {"type": "attachment"},
                {**result, "attachments": [attachment]},
            ):
                body = body_of(HI, message(part, role=role))
                answer = await ask(application, "run", body)
                assert answer.status == 400
                assert "attachment" in answer.error["message"]
        assert not engine.requests

    @pytest.mark.parametrize("type_", ["image", "", None, 7, ["text"], {}])
    async def test_so_are_parts_of_unknown_types(self, application, engine, type_):
        body = body_of(HI, message({"type": type_, "text": "x"}))
        assert (await ask(application, "run", body)).status == 400
        assert not engine.requests

    @pytest.mark.parametrize(
        "option", ["chat_template", "lora", "tensor_split", "main_gpu", "nix"]
    )
    async def test_settings_of_the_model_are_no_options(
        self, application, engine, option
    ):
        "Whether a file is there is nobody's business"
        said = set()
        for path in ("/etc/passwd", "/etc/nonexistent"):
            answer = await ask(application, "run", body_of(HI, options={option: path}))
            assert answer.status == 400
            said.add(answer.error["message"])
        assert len(said) == 1
        assert not engine.requests


NUMBERS = [
    name
    for name, field in KVLlamaOptions.model_fields.items()
    if "int" in str(field.annotation) or "float" in str(field.annotation)
]


class TestNumbers:
    "Fails if a number can hold up the engine, or reaches llama.cpp as another one"

    @pytest.mark.parametrize("value", ["1e400", "-1e400", "NaN", str(10**30)])
    @pytest.mark.parametrize("name", NUMBERS)
    async def test_each_has_bounds(self, application, engine, name, value):
        body = json.dumps(body_of(HI, options={name: 0}))
        body = body.replace('": 0}', f'": {value}}}').encode()
        sent = ("POST", "/-/kvbranch/run", HOST, JSON, BEARER)
        answer = await send_to(application, *sent, body=(body,))
        assert answer.status == 400
        assert name in answer.error["message"]
        assert not engine.requests

    async def test_what_counts_as_recent(self, application, engine):
        options = {"repeat_penalty": 1.1, "repeat_last_n": 2**31 - 1}
        answer = await ask(application, "run", body_of(HI, options=options))
        assert answer.status == 400
        assert not engine.requests

    @pytest.mark.parametrize("n", [-1, 10**30, 1 << 31])
    async def test_of_a_tail(self, application, engine, n):
        answer = await ask(application, "tail", {"text": "abc", "n": n})
        assert answer.status == 400
        assert not engine.tails


class TestTaken:
    "Fails if what the command line sends is refused or changed"

    MESSAGES = (
        llm.system("Be brief."),
        llm.user("What is the time?"),
        llm.parts.Message(
            role="assistant",
            parts=[
                llm.parts.ReasoningPart(text="I need a clock.", redacted=True),
                llm.parts.TextPart(text="Wait.", provider_metadata={"a": 1}),
                llm.parts.ToolCallPart(
                    name="clock", arguments={"zone": None}, tool_call_id="1"
                ),
            ],
            provider_metadata={"b": {}},
        ),
        llm.parts.Message(
            role="tool",
            parts=[
                llm.parts.ToolResultPart(
                    name="clock", output="noon", tool_call_id="1", exception="E"
                ),
            ],
        ),
    )

    async def test_messages_are_the_same(self, application, engine):
        body = body_of(*(each.to_dict() for each in self.MESSAGES))
        await ask(application, "run", body)
        (request,) = engine.requests
        assert isinstance(request, Request)
        assert list(request.messages) == list(self.MESSAGES)

    async def test_options_are_the_same(self, application, engine):
        options = {
            "temperature": 0.5,
            "top_k": 0,
            "repeat_last_n": -1,
            "seed": 7,
            "max_tokens": 9,
            "stop": ["a", "b"],
            "n_ctx": 512,
        }
        sent = answer_options(choose(KVLlamaOptions(**options), {}))
        assert sent == options
        await ask(application, "run", body_of(HI, options=sent))
        (request,) = engine.requests
        assert request.sampling.temperature == 0.5
        assert (request.sampling.top_k, request.sampling.repeat_last_n) == (0, -1)
        assert (request.max_tokens, request.n_ctx) == (9, 512)
        assert request.stop == ("a", "b")

    async def test_a_tail(self, application, engine):
        answer = await ask(application, "tail", {"text": "abc", "n": 2})
        assert json.loads(answer.body) == {"text": "bc"}
