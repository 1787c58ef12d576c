"""The two servers that serve.py compares, and the client that asks both.

The client is asyncio on a bare socket, with a new connection for each request, so
that what it costs is little, and the same for both. Times are taken where bytes
leave and arrive: an answer begins with its first event that has text.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CMAKE = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DGGML_NATIVE=ON",  # as when pip builds llama-cpp-python
    "-DBUILD_SHARED_LIBS=OFF",
    "-DLLAMA_BUILD_SERVER=ON",
    "-DLLAMA_CURL=OFF",
    "-DLLAMA_OPENSSL=OFF",
    *(f"-DLLAMA_BUILD_{each}=OFF" for each in ("TESTS", "EXAMPLES", "APP", "UI")),
    "-DLLAMA_USE_PREBUILT_UI=OFF",  # it would be downloaded
)
READY_LINE = re.compile(r"OPENAI_BASE_URL=http://127\.0\.0\.1:(\d+)/v1 .*KEY=(\S+)")


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
    def prompt_tokens(self) -> int:
        return int(self.usage["prompt_tokens"])

    @property
    def generated(self) -> int:
        return int(self.usage["completion_tokens"])

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
            await self._read(reader, reply)
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
        if reply.status != 200:
            raise RuntimeError(f"{self.name} {reply.status}: {reply.body.decode()}")
        return reply

    async def _read(self, reader: asyncio.StreamReader, reply: Reply) -> None:
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
            while streams and b"\n\n" in rest:
                event, _, rest = rest.partition(b"\n\n")
                reply.take(event, now)
        reply.body = rest

    async def chat(
        self,
        messages: list[dict[str, str]],
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

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def environment(home: Path) -> dict[str, str]:
    "That of a user with this home, and no settings of ours"
    kept = {k: v for k, v in os.environ.items() if not k.startswith("LLM_")}
    return {**kept, "LLM_USER_PATH": str(home)}


def start_ours(home: Path, n_ctx: int, slots: int) -> Server:
    "``llm kvbranch serve``"
    started = time.perf_counter()
    command = [
        *(sys.executable, "-m", "llm", "kvbranch", "serve", "--port", "0"),
        *("--ctx", str(n_ctx), "--slots", str(slots), "--no-open"),
    ]
    process = subprocess.Popen(
        command,
        env=environment(home),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if found := READY_LINE.search(line):
            took = time.perf_counter() - started
            port, token = found.groups()
            return Server("llm kvbranch serve", int(port), token, process, took)
    sys.exit("llm kvbranch serve does not start")


def start_theirs(
    program: Path, model: Path, home: Path, n_ctx: int, slots: int, n_threads: int
) -> Server:
    "``llama-server``, with its defaults beside what both have in common"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = time.perf_counter()
    home.mkdir(parents=True, exist_ok=True)
    command = [
        *(str(program), "-m", str(model), "--host", "127.0.0.1", "--port", str(port)),
        *("-c", str(n_ctx), "-np", str(slots), "--kv-unified", "--no-context-shift"),
        *("-t", str(n_threads), "-tb", str(n_threads)),
        *("--slot-save-path", str(home), "--metrics"),
    ]
    with open(home / "log", "w") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, text=True
        )
    server = Server("llama-server", port, "none", process, 0)
    while process.poll() is None:
        with contextlib.suppress(OSError):  # 503 while it loads the model
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5)
            server.started = time.perf_counter() - started
            return server
        time.sleep(0.02)
    sys.exit(f"{program} does not start: see\n{(home / 'log').read_text()[-2000:]}")


def forget_pages(folder: Path) -> int:
    "Have the kernel drop a folder's files from its page cache; bytes"
    nbytes = 0
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                nbytes += os.fstat(descriptor).st_size
            finally:
                os.close(descriptor)
    return nbytes


def build(folder: Path) -> Path:
    "llama-server of the same llama.cpp that llama-cpp-python has here; its path"
    made = folder / "build" / "bin" / "llama-server"
    if made.exists():
        return made
    for tool in ("cmake", "c++"):
        if not shutil.which(tool):
            sys.exit(f"Cannot build llama-server: there is no {tool}")
    folder.mkdir(parents=True, exist_ok=True)
    source = next(folder.glob("llama_cpp_python-*/vendor/llama.cpp"), None)
    source = source or unpacked(folder)
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    jobs = ["-j", str(os.cpu_count() or 1)]
    for step in (
        ["cmake", "-S", str(source), "-B", str(folder / "build"), *generator, *CMAKE],
        ["cmake", "--build", str(folder / "build"), "--target", "llama-server", *jobs],
    ):
        subprocess.run(step, check=True, stdout=sys.stderr)
    return made


def unpacked(folder: Path) -> Path:
    "The source of llama.cpp as llama-cpp-python has it"
    version = importlib.metadata.version("llama-cpp-python")
    with tempfile.TemporaryDirectory(dir=folder) as download:
        subprocess.run(
            [
                *(sys.executable, "-m", "pip", "download", "--no-deps"),
                *("--no-binary", ":all:", f"llama-cpp-python=={version}"),
                *("--dest", download),
            ],
            check=True,
            stdout=sys.stderr,
        )
        (archive,) = Path(download).glob("*.tar.gz")
        with tarfile.open(archive) as file:
            file.extractall(folder, filter="data")
    return next(folder.glob("llama_cpp_python-*/vendor/llama.cpp"))


def version_of(program: Path) -> str:
    "What llama-server says of itself"
    done = subprocess.run(
        [program, "--version"], capture_output=True, text=True, check=True
    )
    return " ".join((done.stdout + done.stderr).split()[1:3])


def features_of_ours() -> str:
    "The instructions that llama-cpp-python's library was built for"
    code = (
        "import llama_cpp.llama_cpp as l; print(l.llama_print_system_info().decode())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    return features(done.stdout)


def features(text: str) -> str:
    "What a line of llama.cpp's system info says is there"
    return " ".join(sorted(set(re.findall(r"(\w+) = 1\b", text))))


def features_of_theirs(home: Path) -> str:
    "The same for llama-server, by its log"
    lines = (home / "log").read_text().splitlines()
    return features(next((line for line in lines if "AVX = 1" in line), ""))
