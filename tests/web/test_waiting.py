"""What one request waits for does not keep others waiting.

datasette reads every database with a few threads. These tests need no model.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from types import SimpleNamespace

import pytest

from llm_kvbranch.web.door import Door, close_door
from llm_kvbranch.web.serving import launch
from llm_kvbranch.web.serving.served_model import attach

from ..support.asgi import TOKEN, Client, started
from ..support.logged import Log


class Hung:
    "A host whose engine never answers"

    def __init__(self):
        self.waiting = []

    def tail(self, *arguments):
        self.waiting.append(Future())
        return self.waiting[-1]

    place = tail

    async def status(self):
        return {"slots": []}


@pytest.fixture
async def served(user_path):
    "A datasette on a log, with a model that hangs"
    log = Log(user_path / "logs.db")
    log.begin("Why is the sky blue?", "Because of the light.")
    log.close()
    datasette, name = launch.build(log.path)
    close_door(datasette, Door(TOKEN))
    hung = Hung()
    datasette.server = SimpleNamespace(
        host=hung,
        database=name,
        stopping=asyncio.Event(),
    )
    attach(datasette, datasette.server)
    await started(datasette)
    yield datasette
    for future in hung.waiting:
        if not future.done():  # or datasette's threads would not end
            future.set_exception(RuntimeError("The test is over"))


class TestEngine:
    "Fails if a request waits for the engine in one of datasette's threads"

    @pytest.mark.parametrize(
        "body",
        [
            {"token_range": [0, 2]},
            {"branch_mode": "fresh", "context_window": 2},
            {"branch_mode": "fresh", "text_excerpt": "light", "context_window": 2},
        ],
    )
    async def test_pages_are_answered_while_it_hangs(self, served, body):
        client = Client(served, TOKEN)
        body = {"parent_id": "last", "prompt": "Go on.", **body}
        n = served.setting("num_sql_threads")
        asked = [
            asyncio.create_task(client.post("/v1/chat/branch", body))
            for _ in range(2 * n)
        ]
        while len(served.server.host.waiting) < n:
            await asyncio.sleep(0.01)
            assert not any(task.done() for task in asked)
        try:
            for path in ("/logs/turns.json", "/-/kvbranch/tree.json?id=last"):
                answer = await asyncio.wait_for(client.get(path), 10)
                assert answer.status_code == 200
        finally:
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)
