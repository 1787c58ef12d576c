"""Streams of events, and their keep-alives."""

from __future__ import annotations

import asyncio

import pytest

from llm_kvbranch.errors import KVBranchError
from llm_kvbranch.web.api import streams
from llm_kvbranch.web.api.streams import EventStream


class Client:
    "What a client receives from a stream"

    def __init__(self):
        self.kinds = []
        self.text = ""

    async def send(self, message):
        await asyncio.sleep(0)  # as a slow client does, which lets other tasks send
        self.kinds.append(message["type"].rpartition(".")[2])
        self.text += message.get("body", b"").decode()


async def slowly(*events):
    "Events with long pauses between them"
    for event in events:
        await asyncio.sleep(10 * streams.QUIET)
        yield event


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(streams, "QUIET", 0.01)


class TestSilence:
    "Fails if a client cannot tell a busy server from one that hangs"

    def test_lines_are_empty_meanwhile(self):
        client = Client()
        asyncio.run(EventStream(client.send, lines=True).run(slowly({"a": 1}, {})))
        before, event, after = client.text.partition('{"a": 1}\n')
        assert event
        assert before
        assert after.endswith("{}\n")
        assert not before.strip("\n")
        assert after.startswith("\n")
        assert client.kinds == ["start"] + ["body"] * (len(client.kinds) - 1)

    def test_events_have_comments_between_them(self):
        client = Client()
        asyncio.run(EventStream(client.send).run(slowly({"a": 1}, "[DONE]")))
        first, *comments, last, end = client.text.split("\n\n")
        assert (first, last, end) == ('data: {"a": 1}', "data: [DONE]", "")
        assert comments
        assert set(comments) == {":"}

    def test_an_event_stream_can_be_refused_until_it_begins(self):
        "With its own status, however long that takes"
        client = Client()

        async def refused():
            await asyncio.sleep(5 * streams.QUIET)
            raise KVBranchError("refused")
            yield

        with pytest.raises(KVBranchError):
            asyncio.run(EventStream(client.send).run(refused()))
        assert client.kinds == []
