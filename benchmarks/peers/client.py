"""A client of chat servers, and what came of what it asked.

The client is asyncio on a bare socket, with a new connection for each request, so
that what it costs is little, and the same for all. Times are taken where bytes leave
and arrive: an answer begins with its first event that has text.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import subprocess
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Message = dict[str, str]


@dataclass
class Reply:
    """What came of a request, by ``time.perf_counter``.

    ``texts`` are the pieces of the answer, with when each one came.
    """

    sent: float
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    texts: list[tuple[float, str]] = field(default_factory=list)
    ended: float = 0.0
    last: dict[str, Any] = field(default_factory=dict)  # the event that says it ended
    usage: dict[str, Any] = field(default_factory=dict)
    timings: dict[str, Any] = field(default_factory=dict)  # llama-server's
    body: bytes = b""

    @property
    def ttft(self) -> float:
        "Seconds from sending to the first text"
        return self.texts[0][0] - self.sent

    @property
    def text(self) -> str:
        return "".join(text for _, text in self.texts)

    @property
    def generated(self) -> int:
        "Tokens; by the pieces of text where the server does not say"
        return int(self.usage.get("completion_tokens") or len(self.texts))

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    def take(self, event: bytes, now: float) -> None:
        "An event of the stream"
        data = event.removeprefix(b"data: ").strip()
        if not event.startswith(b"data: ") or data == b"[DONE]":
            return
        body = json.loads(data)
        if "error" in body:
            raise RuntimeError(body["error"].get("message") or str(body["error"]))
        self.usage = body.get("usage") or self.usage
        self.timings = body.get("timings") or self.timings
        for choice in body.get("choices") or ():
            if text := choice["delta"].get("content"):
                self.texts.append((now, text))
            if choice.get("finish_reason"):
                self.last = {**body, **choice}


async def dechunked(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    "The parts of a body that is sent in chunks"
    while size := int((await reader.readline()).partition(b";")[0], 16):
        data = await reader.readexactly(size + 2)
        yield data[:-2]
    await reader.readline()


@dataclass
class Server:
    "A running server: where it is, and its process"

    name: str
    port: int
    token: str
    process: subprocess.Popen[str]
    home: Path
    started: float  # seconds that starting took

    async def ask(
        self, method: str, path: str, body: Any = None, reply: Reply | None = None
    ) -> Reply:
        "The reply to a request; one given is filled as it comes"
        data = json.dumps(body).encode() if body is not None else b""
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\n"
            f"Authorization: Bearer {self.token}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(data)}\r\nConnection: close\r\n\r\n"
        )
        reply = reply or Reply(0)
        reply.sent = time.perf_counter()
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(head.encode() + data)
            await read_reply(reader, reply)
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
        if reply.status != 200:
            raise RuntimeError(f"{self.name} {reply.status}: {reply.body.decode()}")
        return reply

    async def chat(
        self,
        messages: list[Message],
        max_tokens: int,
        path: str = "/v1/chat/completions",
        reply: Reply | None = None,
        **more: Any,
    ) -> Reply:
        "A streamed answer, greedy"
        body = {
            "max_tokens": max_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
            **more,
        }
        if path == "/v1/chat/completions":
            body["messages"] = messages
        return await self.ask("POST", path, body, reply)

    def pause(self) -> None:
        "Have it use no processor while it is another's turn"
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        if self.process.poll() is None:
            self.resume()
            self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


async def read_reply(reader: asyncio.StreamReader, reply: Reply) -> None:
    "Fill a reply with what a server sends"
    reply.status = int((await reader.readline()).split()[1])
    while line := (await reader.readline()).decode().strip():
        name, _, value = line.partition(":")
        reply.headers[name.lower()] = value.strip().lower()
    if reply.headers.get("transfer-encoding") != "chunked":
        reply.body = await reader.read()
        return
    streams = reply.headers["content-type"].startswith("text/event-stream")
    rest = b""
    async for data in dechunked(reader):
        now = time.perf_counter()
        reply.ended = now
        rest += data
        if not streams:
            continue
        rest = rest.replace(b"\r\n", b"\n")
        while b"\n\n" in rest:
            event, _, rest = rest.partition(b"\n\n")
            reply.take(event, now)
    reply.body = rest


def system(text: str) -> Message:
    return {"role": "system", "content": text}


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}
