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
POST = b"POST /body HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n"


async def app(scope, receive, send):
    if scope["path"] == "/slow":
        await asyncio.sleep(1)
    while scope["path"] == "/body" and (await receive()).get("more_body"):
        pass
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

    @pytest.mark.parametrize("path", [b"/", b"/body"])
    async def test_it_ends_after_an_answer(self, path):
        "Whether the body came or not"
        async with listening(10, 0.3) as connect:
            reader, writer = await connect()
            writer.write(POST.replace(b"/body", path))
            if path == b"/body":
                writer.write(b"x" * 9)
            assert b" 204 " in await reader.readuntil(b"\r\n\r\n")
            assert await is_closed(reader)

    async def test_a_body_may_take_longer(self):
        "The guard has a limit of its own"
        async with listening(10, 0.2) as connect:
            reader, writer = await connect()
            writer.write(POST)
            for _ in range(9):
                await asyncio.sleep(0.05)
                writer.write(b"x")
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

    async def test_one_whose_body_does_not_come_makes_room(self):
        "One whose body comes does not"
        async with listening(3, 60) as connect:
            coming, sending = await connect()
            sending.write(POST)
            silent = [await connect() for _ in range(2)]
            for _, writer in silent:
                writer.write(POST + b"x")
            await asyncio.sleep(0.1)
            sending.write(b"x")
            await asyncio.sleep(0.1)
            for waiting, _ in silent:
                reader, writer = await connect()
                writer.write(GET.replace(b"/", b"/slow", 1))
                assert await is_closed(waiting)
                assert b" 204 " in await reader.readuntil(b"\r\n\r\n")
                writer.close()
            sending.write(b"x" * 8)
            assert b" 204 " in await coming.readuntil(b"\r\n\r\n")

    async def test_where_all_are_busy_the_next_is_refused(self):
        async with listening(2, 60) as connect:
            for _ in range(2):
                _, writer = await connect()
                writer.write(GET.replace(b"/", b"/slow", 1))
            await asyncio.sleep(0.1)
            reader, _ = await connect()
            assert await is_closed(reader, 0.5)


ATTACK = """
import resource, socket, sys, time
port, seconds, drip = int(sys.argv[1]), float(sys.argv[2]), sys.argv[3].encode()
start = sys.stdin.buffer.read()
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))

def opened():
    made = socket.create_connection(("127.0.0.1", port), 30)
    made.sendall(start)
    made.setblocking(False)
    return made

def is_open(connection, drip):
    try:
        if connection.recv(4096) == b"":
            return False
    except BlockingIOError:
        pass
    except OSError:
        return False
    try:
        if drip:
            connection.send(drip)
    except BlockingIOError:
        pass
    except OSError:
        return False
    return True

held = [opened() for _ in range(1100)]
ends = time.monotonic() + seconds
turn, n_opened = 0, len(held)
print("there", flush=True)
while time.monotonic() < ends:
    time.sleep(0.1)
    turn += 1
    due = drip if turn % 10 == 0 else b""
    held = [connection for connection in held if is_open(connection, due)]
    for _ in range(min(50, 1100 - len(held))):
        try:
            held.append(opened())
            n_opened += 1
        except OSError:
            pass
print(n_opened, flush=True)
"""
FORM = (
    "POST /-/kvbranch/login HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 9999\r\n"
    "content-type: application/x-www-form-urlencoded\r\n\r\n"
)
PROMPT = (
    "POST /generate HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 9999\r\n"
    "content-type: application/json\r\nauthorization: Bearer {}\r\n\r\n"
)
# What each connection sends, and once a second from then on
ATTACKS = {
    "silent": ("", ""),
    "a header that stops": ("POST /generate HTTP/1.1\r\nhost: 127.0.0.1\r\n", ""),
    "a header by the byte": ("POST /generate HTTP/1.1\r\nx: ", "x"),
    "no key, no body": (PROMPT.replace("authorization", "x-nothing"), ""),
    "a form without a body": (FORM, ""),
    "a form by the byte": (FORM, "x"),
    "the key, no body": (PROMPT, ""),
    "the key, a body by the byte": (PROMPT, "x"),
}


@pytest.fixture
def limited(tmp_path, monkeypatch):
    "A server with a common limit of descriptors, which it cannot raise"
    wrapper = tmp_path / "python"
    wrapper.write_text(f'#!/bin/sh\nulimit -n 1024\nexec {sys.executable} "$@"\n')
    wrapper.chmod(0o700)
    with monkeypatch.context() as patched:
        patched.setattr(sys, "executable", str(wrapper))
        serving = Serving(tmp_path, "--port", "0")
    with serving:
        yield serving


def attacked(serving, attack, seconds):
    "How long the owner waited for each answer, while others held 1,100 connections"
    start, drip = ATTACKS[attack]
    command = [sys.executable, "-c", ATTACK, str(serving.port), str(seconds), drip]
    attacker = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        attacker.stdin.write(start.format(serving.token))
        attacker.stdin.close()
        assert attacker.stdout.readline() == "there\n"
        ends = time.monotonic() + seconds
        waited = []
        while time.monotonic() < ends:
            started = time.monotonic()
            assert serving.ask("GET", "/v1/models")[0] == 200
            waited.append(time.monotonic() - started)
            time.sleep(0.5)
        n_opened = int(attacker.stdout.readline())
        assert n_opened >= 1100
    finally:
        attacker.kill()
        attacker.wait()
        attacker.stdout.close()
    sys.stdout.write(
        f"{attack}: {n_opened:,} connections in {seconds} s, {len(waited)} answers, "
        f"the longest {max(waited):.2f} s, {len(serving.errors)} lines on stderr\n"
    )
    return waited


@pytest.mark.model
def test_a_thousand_without_a_key(limited):
    "Their owner is answered all the time"
    assert max(attacked(limited, "silent", 12)) < 2
    assert limited.stop()[0] == 0
    assert len(limited.errors) < 20


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_minute_of_each_kind(limited):
    "Those that were closed come back, 500 a second. -s prints the figures"
    for attack in ATTACKS:
        assert max(attacked(limited, attack, 60)) < 2
    assert limited.stop()[0] == 0
    assert len(limited.errors) < 20
