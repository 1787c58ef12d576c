"""Streams of events, and noticing when the client disconnects.

The idea: ``send`` does not fail after a disconnect; only ``receive`` reports it. So
all work for a client runs beside a task that waits for that.

This module does not know what the events say.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Coroutine
from typing import Any, TypeVar

# An event of a stream: JSON, text as it is, or JSON with a name
Sent = dict[str, Any] | str | tuple[str, dict[str, Any]]
Item = TypeVar("Item")
QUIET = 5.0  # seconds without an event, after which a keep-alive is sent


async def leaving(receive: Any) -> None:
    "Wait until the client disconnects"
    while (await receive())["type"] != "http.disconnect":
        pass


async def attend(
    receive: Any, stopping: asyncio.Event, work: Coroutine[Any, Any, Any]
) -> bool:
    "Finish some work; False if the client disconnects or the server stops first"

    works = (work, leaving(receive), stopping.wait())
    tasks = [asyncio.ensure_future(each) for each in works]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not tasks[0].done():
            return False
        await tasks[0]
        return True
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class EventStream:
    """A response of server-sent events, or of JSON lines.

    It begins with its first event: until then, the request can still be refused with
    a status. Lines begin earlier if that takes long, so that the client can tell a
    busy server from one that hangs.
    """

    def __init__(self, send: Any, lines: bool = False):
        self._send = send
        self._lines = lines
        self._turn = asyncio.Lock()
        self._spoke = 0.0
        self.begun = False

    async def run(self, events: AsyncIterator[Sent]) -> None:
        "Send all events, then end the response"
        beating = asyncio.ensure_future(self._beat())
        try:
            async for event in events:
                await self.put(event)
        finally:
            beating.cancel()
        await self.end()

    async def put(self, event: Sent) -> None:
        name = ""
        if isinstance(event, tuple):
            name, event = f"event: {event[0]}\n", event[1]
        text = event if isinstance(event, str) else json.dumps(event)
        await self._write(f"{text}\n" if self._lines else f"{name}data: {text}\n\n")

    async def _beat(self) -> None:
        "Send an empty line, or a comment, whenever nothing was sent for a while"
        while True:
            await asyncio.sleep(QUIET)
            silent = asyncio.get_running_loop().time() - self._spoke
            if silent >= QUIET and (self._lines or self.begun):
                await self._write("\n" if self._lines else ":\n\n")

    async def _write(self, text: str) -> None:
        async with self._turn:
            await self._begin()
            self._spoke = asyncio.get_running_loop().time()
            data = {"body": text.encode(), "more_body": True}
            await self._send({"type": "http.response.body", **data})

    async def end(self) -> None:
        await self._begin()
        await self._send({"type": "http.response.body", "body": b""})

    async def _begin(self) -> None:
        if self.begun:
            return
        self.begun = True
        kind = b"application/x-ndjson" if self._lines else b"text/event-stream"
        headers = [
            [b"content-type", kind + b"; charset=utf-8"],
            [b"cache-control", b"no-store"],
            [b"x-accel-buffering", b"no"],
        ]
        await self._send(
            {"type": "http.response.start", "status": 200, "headers": headers}
        )


async def merged(
    sources: list[AsyncIterator[Item]],
) -> AsyncIterator[tuple[int, Item | None]]:
    """Items of several sources as they come, each with the number of its source.

    None ends a source. Raises the first error of any of them.
    """
    queue: asyncio.Queue[tuple[int, Item | None, Exception | None]] = asyncio.Queue()

    async def pump(i: int) -> None:
        error: Exception | None = None
        try:
            async for item in sources[i]:
                queue.put_nowait((i, item, None))
        except Exception as failure:
            error = failure
        queue.put_nowait((i, None, error))

    tasks = [asyncio.ensure_future(pump(i)) for i in range(len(sources))]
    left = len(tasks)
    try:
        while left:
            i, item, error = await queue.get()
            if error is not None:
                raise error
            left -= item is None
            yield i, item
    finally:
        for task in tasks:
            task.cancel()
