"""``llm kvbranch serve`` in a process and a home of its own."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

LINE = re.compile(r"  API   export OPENAI_BASE_URL=(\S+)/v1 OPENAI_API_KEY=(\S+)")


def environment(home: Path, **more: str) -> dict[str, str]:
    "The environment of a user with this home and none of our settings"
    env = {k: v for k, v in os.environ.items() if not k.startswith("LLM_")}
    return {
        **env,
        "HOME": str(home),
        "LLM_USER_PATH": str(home / "llm"),
        "LLM_LOAD_PLUGINS": "llm-kvbranch",
        **more,
    }


class Serving:
    """A running server; ``stop`` it or leave the with block.

    ``seconds`` is the time it took to print its address.
    """

    def __init__(self, home: Path, *arguments: str, **env: str):
        (home / "llm").mkdir(parents=True, exist_ok=True)
        self.home = home / "llm"
        started = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "llm", "kvbranch", "serve", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(home, **env),
        )
        self.lines: list[str] = []
        self.errors: list[str] = []
        self._ready = threading.Event()
        for stream, kept in (
            (self.process.stdout, self.lines),
            (self.process.stderr, self.errors),
        ):
            threading.Thread(
                target=self._read, args=(stream, kept), daemon=True
            ).start()
        if not self._ready.wait(120) or not any(map(LINE.match, self.lines)):
            self.kill()
            raise AssertionError("".join((*self.lines, *self.errors)))
        self.seconds = time.monotonic() - started
        found = next(filter(None, map(LINE.match, self.lines)))
        self.url, self.token = found.groups()
        self.login = re.search(r"Page  (\S+)", "".join(self.lines)).group(1)
        self.port = urlsplit(self.url).port
        self.host = "127.0.0.1"

    def _read(self, stream, kept):
        for line in stream:
            kept.append(line)
            if LINE.match(line):
                self._ready.set()
        self._ready.set()

    def __enter__(self) -> Serving:
        return self

    def __exit__(self, *_) -> None:
        self.kill()

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def stop(self, number: int = signal.SIGINT) -> tuple[int, float]:
        "Stop it; returns its exit code and the seconds that took"
        started = time.monotonic()
        self.process.send_signal(number)
        code = self.process.wait(timeout=60)
        return code, time.monotonic() - started

    def connection(self, timeout: float = 120) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(self.host, self.port, timeout=timeout)

    def ask(self, method: str, path: str, body=None, token=True, **headers):
        "Send a request; returns status, headers and text. Other bodies become JSON"
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if token:
            key = self.token if token is True else token
            sent.setdefault("authorization", f"Bearer {key}")
        if body is not None and not isinstance(body, str | bytes):
            body = json.dumps(body)
            sent.setdefault("content-type", "application/json")
        with contextlib.closing(self.connection()) as connection:
            connection.request(method, path, body, sent)
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read().decode()

    def stream(self, prompt: str, max_tokens: int = 2000):
        "Start a streamed answer; returns the open connection and its response"
        connection = self.connection()
        body = {
            "model": "kvllama",
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": max_tokens,
            "temperature": 0,
            "stream": True,
        }
        headers = {
            "authorization": f"Bearer {self.token}",
            "content-type": "application/json",
        }
        connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        return connection, connection.getresponse()

    def count(self, table: str = "turns") -> int:
        "Rows in the log"
        import sqlite3

        with contextlib.closing(sqlite3.connect(self.home / "logs.db")) as db:
            return db.execute(f"select count(*) from {table}").fetchone()[0]
