"""Connections that send nothing do not keep others out."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import time

import pytest
import uvicorn
from uvicorn.server import ServerState

from llm_kvbranch.web.serving import connections

from ..support.serving import Serving

GET = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"


async def app(scope, receive, send):
    if scope["path"] == "/slow":
        await asyncio.sleep(1)
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body"})


@contextlib.asynccontextmanager
async def listening(most, seconds):
    "A server; yields a function that connects to it"
    config = uvicorn.Config(app, lifespan="off", log_config=None, ws="none")
    state = ServerState()
    make = connections.protocol(most, seconds)
    server = await asyncio.get_running_loop().create_server(
        lambda: make(config=config, server_state=state, app_state={}), "127.0.0.1", 0
    )
    opened = []

    async def connect():
        address = server.sockets[0].getsockname()
        reader, writer = await asyncio.open_connection(*address)
        opened.append(writer)
        return reader, writer

    yield connect
    for writer in opened:
        writer.close()
    server.close()


async def is_closed(reader, seconds=5):
    with contextlib.suppress(ConnectionResetError):
        return await asyncio.wait_for(reader.read(), seconds) == b""
    return True


class TestSilence:
    "Fails if a connection without a request stays open"

    @pytest.mark.parametrize("sent", [b"", b"GET / HT", GET[:-2], GET + b"GET"])
    async def test_it_ends(self, sent):
        async with listening(10, 0.3) as connect:
            reader, writer = await connect()
            writer.write(sent)
            if sent.startswith(GET):
                assert b" 204 " in await reader.readuntil(b"\r\n\r\n")
            started = time.monotonic()
            assert await is_closed(reader)
            assert time.monotonic() - started < 3

    async def test_a_drop_now_and_then_does_not_count(self):
        async with listening(10, 0.5) as connect:
            reader, writer = await connect()
            for byte in GET[:-1]:
                writer.write(bytes([byte]))
                await asyncio.sleep(0.05)
                if reader.at_eof() or reader.exception():
                    break
            assert await is_closed(reader, 1)

    async def test_an_answer_may_take_longer(self):
        async with listening(10, 0.2) as connect:
            reader, writer = await connect()
            for path in (b"/slow", b"/"):
                writer.write(GET.replace(b"/", path, 1))
                assert b" 204 " in await reader.readuntil(b"\r\n\r\n")


class TestNumber:
    "Fails if silent connections leave no room for others"

    async def test_the_longest_silent_one_makes_room(self):
        async with listening(3, 60) as connect:
            busy, writer = await connect()
            writer.write(GET.replace(b"/", b"/slow", 1))
            await asyncio.sleep(0.1)
            silent = [await connect() for _ in range(5)]
            reader, writer = await connect()
            writer.write(GET)
            assert b" 204 " in await reader.readuntil(b"\r\n\r\n")
            assert b" 204 " in await busy.readuntil(b"\r\n\r\n")
            for reader, _ in silent[:-1]:
                assert await is_closed(reader)

    async def test_where_all_are_busy_the_next_is_refused(self):
        async with listening(2, 60) as connect:
            for _ in range(2):
                _, writer = await connect()
                writer.write(GET.replace(b"/", b"/slow", 1))
            await asyncio.sleep(0.1)
            reader, _ = await connect()
            assert await is_closed(reader, 0.5)


IDLE = """
import resource, socket, sys, time
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
held = [socket.create_connection(("127.0.0.1", int(sys.argv[1])), 30)
        for _ in range(1100)]
print("there", flush=True)
time.sleep(60)
"""


@pytest.mark.model
def test_a_thousand_without_a_key(tmp_path, monkeypatch):
    "With a common limit of descriptors; their owner is answered all the time"
    wrapper = tmp_path / "python"
    wrapper.write_text(f'#!/bin/sh\nulimit -n 1024\nexec {sys.executable} "$@"\n')
    wrapper.chmod(0o700)
    with monkeypatch.context() as patched:
        patched.setattr(sys, "executable", str(wrapper))
        serving = Serving(tmp_path, "--port", "0")
    with serving:
        command = [sys.executable, "-c", IDLE, str(serving.port)]
        idle = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert idle.stdout.readline() == "there\n"
            ends = time.monotonic() + 15
            seconds = []
            while time.monotonic() < ends:
                started = time.monotonic()
                assert serving.ask("GET", "/v1/models")[0] == 200
                seconds.append(time.monotonic() - started)
                time.sleep(0.5)
            assert max(seconds) < 2
        finally:
            idle.kill()
            idle.wait()
        assert serving.stop()[0] == 0
        assert len(serving.errors) < 20
