"""A server with clients that disconnect, misbehave and are killed, for a long time.

The idea: clients act at random, most of them badly. The good ones must be answered as
if they were alone, and when all have left, nothing may remain but the logged answers.
"""

from __future__ import annotations

import contextlib
import json
import random
import re
import signal
import socket
import sqlite3
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
import sqlite_utils

from llm_kvbranch.log.history import History
from llm_kvbranch.log.text import message_text

from ..support.engines import engine_of
from ..support.homes import Homes
from ..support.servers import ENDLESS, Judge, Server, assistant, chat, until, user
from ..support.serving import environment
from ..support.shell import document

pytestmark = pytest.mark.model

N_CLIENTS = 6
QUESTIONS = (
    "Why is the sky blue?",
    "What is the capital of France?",
    "What is a lighthouse for?",
    "Who wrote Hamlet?",
)
# A client that prints when its answer begins, and reads on until it is killed
VICTIM = """
import socket, sys
client = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
client.sendall(sys.stdin.buffer.read())
while data := client.recv(9999):
    if b"data: " in data:
        print("begun", flush=True)
"""


class Client(threading.Thread):
    "A client that acts until there is nothing left to do"

    def __init__(self, soak, number):
        super().__init__(daemon=True)
        self.soak, self.server = soak, soak.server
        self.random = random.Random(f"{soak.seed} {number}")
        self.failure = None
        self.start()

    def run(self):
        try:
            while (what := self.soak.next(self.random)) is not None:
                getattr(self, what)()
                self.soak.done[what] += 1
        except BaseException as error:
            self.failure = error

    # -- good ones -----------------------------------------------------------

    def asks(self):
        question = self.random.choice(QUESTIONS)
        reply = self.server.chat(question, max_tokens=6)
        if reply.text != self.soak.answers[question]:
            self.soak.others.append(reply)

    def goes_on(self):
        question = self.random.choice(QUESTIONS)
        answer = self.soak.answers[question]
        messages = [user(question), assistant(answer), user("Thanks!")]
        with self.server.streaming(messages, max_tokens=3) as stream:
            *_, last, end = stream
        assert end is None
        assert last["kvbranch"]["restored_tokens"] > 30

    def branches(self):
        path, more = self.random.choice(
            [
                ("/retry", {}),
                ("/continue", {"prompt": "And then?"}),
                ("/v1/chat/branch", {"parent_id": "last", "prompt": "Why?", "n": 2}),
                (
                    "/focus",
                    {"followup": "What?", "char_start": 0, "char_end": 2},
                ),
            ]
        )
        body = {"message_id": self.soak.parent, "max_tokens": 3, **more}
        assert self.server.post(path, body).status == 200

    def looks(self):
        for path in ("/-/kvbranch/slots", "/metrics", "/branch/tree", "/v1/models"):
            assert self.server.get(path).status == 200

    # -- those that leave ------------------------------------------------------

    def leaves_while_it_is_answered(self):
        n = self.random.randint(1, 4)
        with self.server.streaming(ENDLESS, max_tokens=200, n=n) as stream:
            for _ in range(self.random.randint(1, 5)):
                next(stream)

    def leaves_while_its_prompt_is_read(self):
        text = document(self.random.randint(200, 500), self.random.random())
        with self.server.unread(chat(text, stream=self.random.random() < 0.5)):
            time.sleep(self.random.random())

    def leaves_at_once(self):
        with self.server.unread(chat(ENDLESS, max_tokens=200)):
            pass

    def resets(self):
        with self._connected(self._request(chat(ENDLESS, stream=True))) as client:
            client.recv(self.random.choice([1, 2000]))
            linger = struct.pack("ii", 1, 0)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)

    def leaves_in_the_middle_of_its_request(self):
        "Inside the headers, before the body, or inside it"
        request = self._request(chat(ENDLESS))
        with self._connected(request[: self.random.randint(1, len(request) - 1)]):
            time.sleep(0.2 * self.random.random())

    def is_killed(self):
        with self._victim() as victim:
            assert victim.stdout.readline() == b"begun\n"
            victim.send_signal(signal.SIGKILL)

    # -- those that send nonsense ---------------------------------------------------

    def sends_nonsense(self):
        good = json.dumps(chat("Hi")).encode()
        bad = self.random.choice(
            [
                self.random.randbytes(self.random.randint(0, 300)),
                good[: self.random.randint(0, len(good) - 1)],
                json.dumps({**chat("Hi"), "messages": self.random.random()}).encode(),
                json.dumps({**chat("Hi"), "n": -1}).encode(),
                b"[" * 10_000,
                json.dumps(chat("word " * 9000)).encode(),
            ]
        )
        reply = self.server.post("/v1/chat/completions", bad)
        assert reply.status == 400, (bad, reply.body)
        assert reply.error

    def speaks_no_http(self):
        with self._connected(self.random.randbytes(200) + b"\r\n\r\n") as client:
            client.settimeout(5)
            with contextlib.suppress(OSError):
                client.recv(1000)

    def sends_too_much(self):
        reply = self.server.post("/generate", b"x" * (9 << 20))
        assert reply.status == 413

    def _request(self, body):
        data = json.dumps(body).encode()
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\n"
            f"Authorization: Bearer {self.server.token}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        )
        return head.encode() + data

    @contextlib.contextmanager
    def _connected(self, data):
        with socket.create_connection(("127.0.0.1", self.server.port), 60) as client:
            client.sendall(data)
            yield client

    @contextlib.contextmanager
    def _victim(self):
        request = self._request(chat(ENDLESS, stream=True, max_tokens=200))
        with subprocess.Popen(
            [sys.executable, "-S", "-c", VICTIM, str(self.server.port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as victim:
            victim.stdin.write(request)
            victim.stdin.close()
            yield victim


WHAT = {  # how often each happens, in percent
    "asks": 20,
    "goes_on": 10,
    "branches": 8,
    "looks": 6,
    "leaves_while_it_is_answered": 12,
    "leaves_while_its_prompt_is_read": 5,
    "leaves_at_once": 8,
    "resets": 6,
    "leaves_in_the_middle_of_its_request": 10,
    "is_killed": 4,
    "sends_nonsense": 8,
    "speaks_no_http": 2,
    "sends_too_much": 1,
}


class Soak:
    "The clients of a server, and the resources that it uses"

    def __init__(self, server, seed):
        self.server, self.seed = server, seed
        self.done, self.left = Counter(), 0
        self.due = list(WHAT)  # each happens once, whatever chance says
        self._lock = threading.Lock()
        self.answers = {q: server.chat(q, max_tokens=6).text for q in QUESTIONS}
        self.others = []  # replies that differ
        hello = server.chat("Say hello.")
        self.parent, self.hello = hello.id, hello.text

    def next(self, chance):
        "The next action; None at the end"
        with self._lock:
            self.left -= 1
            if self.left < 0:
                return None
            if self.due:
                return self.due.pop()
        return chance.choices(list(WHAT), list(WHAT.values()))[0]

    def run(self, n):
        self.left = n
        clients = [Client(self, i) for i in range(N_CLIENTS)]
        for client in clients:
            client.join()
        for client in clients:
            if client.failure is not None:
                raise client.failure

    def rest(self):
        "Wait until the server is idle"
        self.server.until_idle()
        until(lambda: self.server.metrics()["kvbranch_running"] == 0, "none runs")
        time.sleep(0.5)

    def check_others(self):
        "Another answer is correct where rounding decided between two tokens"
        judge = Judge()
        for reply in self.others[:20]:
            assert judge.is_right(self.server, reply.id), reply.text

    def takes(self):
        "Threads, open files and memory of the server and its engine, in MB"
        server = self.server.process.pid
        taken = {"threads": 0, "files": 0, "MB": 0.0}
        for pid in (server, engine_of(server)):
            process = Path(f"/proc/{pid}")
            memory = re.search(r"VmRSS:\s+(\d+)", (process / "status").read_text())
            taken["threads"] += len(list((process / "task").iterdir()))
            taken["files"] += len(list((process / "fd").iterdir()))
            taken["MB"] += int(memory[1]) / 1000
        return taken


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("n", [50, pytest.param(1000, marks=pytest.mark.slow)])
def test_nothing_is_left_of_clients_but_what_they_were_answered(tmp_path, n, capsys):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    env = {"TMPDIR": str(temporary)}
    with Server(tmp_path, "--slots", "4", "--queue", "100", **env) as server:
        soak = Soak(server, n)
        soak.run(max(40, n // 5))  # everything that is created once exists by then
        soak.rest()
        before = soak.takes()
        soak.run(n)
        soak.rest()
        after = soak.takes()
        report = f"{before} -> {after}; {dict(soak.done)}"
        with capsys.disabled():
            sys.stdout.write(f"\n{report}\n")
        assert after["threads"] <= before["threads"] + 2, report
        assert after["files"] <= before["files"] + 3, report
        assert after["MB"] <= before["MB"] + 40 + n / 50, report
        counts = server.metrics()
        ended = sum(v for k, v in counts.items() if k.startswith("kvbranch_answers"))
        assert ended == counts["kvbranch_requests_total"]
        assert counts["kvbranch_refused_total"] == 0
        left = soak.done["leaves_while_it_is_answered"] + soak.done["is_killed"]
        assert counts['kvbranch_answers_total{end="cancelled"}'] >= left / 2
        assert set(soak.done) >= set(WHAT) - {"sends_too_much", "speaks_no_http"}
        soak.check_others()
        assert server.chat("Say hello.").text == soak.hello
        _check_log(server)
        server.end()
    assert not list(temporary.iterdir())


def _check_log(server):
    "Every turn can be read and continued, and nothing else was stored"
    home = server.home
    with contextlib.closing(sqlite3.connect(home / "logs.db")) as connection:
        assert connection.execute("pragma integrity_check").fetchone() == ("ok",)
        history = History(sqlite_utils.Database(connection))
        turns = {row["id"]: row for row in history.db.query("select * from turns")}
        for response_id, row in turns.items():
            said = history.response(response_id)
            assert said.sent
            assert said.text or row["output_tokens"] <= 1
            assert message_text(said.sent[-1])
            facts = history.facts(response_id)
            assert facts["generated_tokens"] == row["output_tokens"]
        dangling = connection.execute(
            "select count(*) from kvbranch_branches"
            " where response_id not in (select id from turns)"
            " or thread_id not in (select id from threads)"
        )
        assert dangling.fetchone() == (0,)
        empty = connection.execute(
            "select count(*) from threads where id not in (select thread_id from turns)"
        )
        assert empty.fetchone() == (0,)
    kept = home / "kvbranch"
    assert {path.stem for path in kept.glob("states/*/*")} == set(turns)
    assert {path.suffix for path in kept.glob("states/*/*")} == {".safetensors"}
    others = {path.name for path in kept.iterdir() if not path.name.startswith("index")}
    private = {"settings.json", "server.json", "session-secret", "token"}
    assert others <= {"states", "lock", "tmp"} | private
    assert not list((kept / "tmp").iterdir())
    assert "no problem" in Homes(home.parent)("llm", "kvbranch", "verify")


def test_commands_that_are_killed(tmp_path):
    "llm itself, killed at any moment of a server's answer"
    with Server(tmp_path, "--slots", "2") as server:
        expected = server.chat("Why is the sky blue?").text
        command = [sys.executable, "-m", "llm", "-m", "kvllama", ENDLESS]
        for wait in (0.3, None, None):
            with subprocess.Popen(
                [*command, "-o", "max_tokens", "2000", "-o", "temperature", "0"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                env=environment(tmp_path),
            ) as process:
                if wait is None:
                    assert process.stdout.read(1)
                else:
                    time.sleep(wait)
                process.kill()
            assert server.until_idle() < 60
        assert server.count() == 1
        assert server.chat("Why is the sky blue?").text == expected
        _check_log(server)
        server.end()
