"""``llm kvbranch serve`` as users run it: a process, a terminal, Ctrl-C."""

from __future__ import annotations

import contextlib
import html
import http.client
import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from llm_kvbranch.web.door.guard import MAX_BODY
from llm_kvbranch.web.serving import launch

from ..support.servers import ENDLESS
from ..support.serving import Serving, environment

pytestmark = pytest.mark.model

# Stopping at once takes half a second, longer on a busy disk; the answers and prompts
# of these tests take minutes
SOON = 10


def refused(home, *arguments, **env):
    "The one line of a server that does not start"
    (home / "llm").mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-m", "llm", "kvbranch", "serve", *arguments],
        capture_output=True,
        text=True,
        env=environment(home, **env),
        timeout=60,
        check=False,
    )
    assert done.returncode == 1, (done.stdout, done.stderr)
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("Error: ")
    return line


@pytest.fixture(scope="module")
def serving(tmp_path_factory):
    "A server shared by the tests that do not stop it"
    home = tmp_path_factory.mktemp("home")
    os.umask(0o022)
    with Serving(home, "--port", "0") as serving:
        yield serving
        code, seconds = serving.stop()
        assert (code, serving.errors) == (0, [])
        assert seconds < SOON


class TestStart:
    "Fails if the terminal does not say how to use the server"

    def test_it_says_where_it_is(self, serving):
        assert serving.seconds < 20
        assert len(serving.lines) == 3
        assert "SmolLM2" in serving.lines[0]
        assert serving.login.startswith(f"{serving.url}/-/kvbranch/login?token=")

    def test_the_printed_key_opens_the_printed_address(self, serving):
        status, _, text = serving.ask("GET", "/v1/models")
        assert status == 200
        assert json.loads(text)["data"]
        assert serving.ask("GET", "/v1/models", token="other")[0] == 401
        assert serving.ask("GET", "/v1/models", token=False)[0] == 401

    def test_the_link_logs_in_once(self, serving):
        path = serving.login.removeprefix(serving.url)
        assert serving.ask("GET", "/logs", token=False)[0] == 401
        status, headers, _ = serving.ask("GET", path, token=False)
        assert status == 302
        cookie = headers["set-cookie"].partition(";")[0]
        for page in (headers["Location"], "/logs", "/logs/turns.json"):
            assert serving.ask("GET", page, token=False, cookie=cookie)[0] == 200
        status, headers, _ = serving.ask("GET", path, token=False)
        assert status == 403
        assert "set-cookie" not in headers

    def test_the_log_is_there_with_all_its_tables(self, serving):
        for table in ("turns", "threads", "messages", "kvbranch_branches"):
            assert serving.ask("GET", f"/logs/{table}.json")[0] == 200

    def test_nothing_waits_for_more_to_be_sent(self, serving):
        "Nagle's algorithm would delay every second response of a connection by 40 ms"
        with contextlib.closing(serving.connection()) as connection:
            seconds = []
            for _ in range(8):
                headers = {"authorization": f"Bearer {serving.token}"}
                started = time.monotonic()
                connection.request("GET", "/v1/models", headers=headers)
                connection.getresponse().read()
                seconds.append(time.monotonic() - started)
        assert min(seconds[1::2]) < 0.03
        assert min(seconds[2::2]) < 0.03

    def test_what_is_private_is_for_us_alone(self, serving):
        for name in ("token", "server.json"):
            path = serving.home / "kvbranch" / name
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            assert serving.token in path.read_text()
        assert stat.S_IMODE((serving.home / "kvbranch").stat().st_mode) == 0o700

    def test_it_listens_to_this_machine_alone(self, serving):
        with open(f"/proc/{serving.process.pid}/net/tcp") as file:
            rows = [line.split() for line in file][1:]
        listening = [row[1] for row in rows if row[3] == "0A"]
        assert f"0100007F:{serving.port:04X}" in listening
        assert f"00000000:{serving.port:04X}" not in listening


class TestBodies:
    "Fails if a client does not hear that its body is too long, or the body is kept"

    def test_a_long_one_is_refused_in_words(self, serving):
        for n in (MAX_BODY + 1, 20_000_000):
            status, _, text = serving.ask(
                "POST", "/generate", "x" * n, content_type="application/json"
            )
            assert status == 413
            assert json.loads(text)["error"]["code"] == "request_too_large"

    def test_in_chunks_of_unknown_number(self, serving):
        with contextlib.closing(serving.connection()) as connection:
            connection.request(
                "POST",
                "/generate",
                iter([b"x" * 2**20] * 12),
                {
                    "authorization": f"Bearer {serving.token}",
                    "content-type": "application/json",
                    "transfer-encoding": "chunked",
                },
                encode_chunked=True,
            )
            assert connection.getresponse().status == 413

    @pytest.mark.parametrize("promised", [MAX_BODY, MAX_BODY + 1])
    def test_one_that_never_comes(self, serving, promised):
        before = memory(serving.process.pid)
        head = (
            f"POST /generate HTTP/1.1\r\nhost: 127.0.0.1\r\n"
            f"authorization: Bearer {serving.token}\r\n"
            f"content-type: application/json\r\ncontent-length: {promised}\r\n\r\n"
        )
        open_ones = []
        for _ in range(20):
            client = socket.create_connection(("127.0.0.1", serving.port), 30)
            client.sendall(head.encode())
            open_ones.append(client)
        assert serving.ask("GET", "/v1/models")[0] == 200
        assert memory(serving.process.pid) - before < 20_000_000
        for client in open_ones:
            client.close()

    def test_more_than_was_promised_is_no_part_of_it(self, serving):
        "Bytes after the body are another request, here not valid HTTP"
        head = (
            f"POST /generate HTTP/1.1\r\nhost: 127.0.0.1\r\n"
            f"authorization: Bearer {serving.token}\r\n"
            "content-type: application/json\r\ncontent-length: 2\r\n\r\n"
        )
        with socket.create_connection(("127.0.0.1", serving.port), 30) as client:
            client.sendall(head.encode() + b"{}" + b"x" * 1000)
            assert b" 400 " in client.recv(100)


def memory(pid: int) -> int:
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * 4096


class TestStop:
    "Fails if the server does not stop on a signal, whatever it is doing"

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
    def test_in_the_middle_of_an_answer(self, tmp_path, number):
        with Serving(tmp_path, "--port", "0") as serving:
            connection, answer = serving.stream(ENDLESS)
            for _ in range(8):
                answer.readline()
            code, seconds = serving.stop(number)
            answer.read()  # to the end, without an error
            connection.close()
            assert (code, serving.errors) == (0, [])
            assert seconds < SOON
            assert not (serving.home / "kvbranch" / "server.json").exists()
            assert serving.count() == 1  # the text so far

    def test_in_the_middle_of_a_prompt(self, tmp_path):
        with Serving(tmp_path, "--port", "0") as serving:
            connection = serving.connection()
            body = {"prompt": "word " * 6000, "stream": True}
            headers = {
                "authorization": f"Bearer {serving.token}",
                "content-type": "application/json",
            }
            connection.request("POST", "/generate", json.dumps(body), headers)
            time.sleep(1.5)
            code, seconds = serving.stop()
            with contextlib.suppress(http.client.HTTPException, OSError):
                connection.getresponse().read()
            connection.close()
            assert (code, serving.errors) == (0, [])
            assert seconds < SOON

    def test_with_an_engine_that_hangs(self, tmp_path):
        (tmp_path / "sitecustomize.py").write_text(
            "import time\n"
            "from llm_kvbranch.inference.session import Session\n"
            "Session.step = lambda self: time.sleep(600)\n"
        )
        with Serving(tmp_path, "--port", "0", PYTHONPATH=str(tmp_path)) as serving:
            connection = serving.connection()
            connection.request(
                "POST",
                "/generate",
                json.dumps({"prompt": "Hi", "stream": True}),
                {
                    "authorization": f"Bearer {serving.token}",
                    "content-type": "application/json",
                },
            )
            time.sleep(1.5)
            code, seconds = serving.stop()
            connection.close()
            assert code == 0
            assert seconds < 5.5  # and a moment for a busy machine
            (said,) = serving.errors
            assert "The engine did not stop" in said
            assert not list((serving.home / "kvbranch").glob("server*.json"))

    def test_with_clients_that_say_nothing(self, tmp_path):
        with Serving(tmp_path, "--port", "0") as serving:
            idle = [
                socket.create_connection(("127.0.0.1", serving.port)) for _ in range(5)
            ]
            idle[0].sendall(b"POST /generate HTTP/1.1\r\nhost: 127.0.0.1\r\n")
            idle[1].sendall(
                b"POST /generate HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 9\r\n"
                b"content-type: application/json\r\nauthorization: Bearer "
                + serving.token.encode()
                + b"\r\n\r\n{"
            )
            time.sleep(0.2)
            code, seconds = serving.stop()
            assert (code, serving.errors) == (0, [])
            assert seconds < SOON

    def test_nothing_is_left_to_trip_over(self, tmp_path):
        "Even after a kill"
        with Serving(tmp_path, "--port", "0") as serving:
            port = str(serving.port)
            token = serving.token
        with Serving(tmp_path, "--port", port) as serving:
            assert serving.port == int(port)
            assert serving.token == token
            assert serving.ask("GET", "/v1/models")[0] == 200
            assert serving.stop()[0] == 0


class TestSecrets:
    "Fails if a secret of the terminal leaks"

    def test_nothing_is_said_after_the_start(self, tmp_path):
        with Serving(tmp_path, "--port", "0") as serving:
            words = {"prompt": "xylophone", "max_tokens": 3}
            assert serving.ask("POST", "/generate", words)[0] == 200
            assert serving.ask("GET", "/branch/tree?id=xylophone")[0] == 404
            assert serving.ask("POST", "/generate", {"prompt": 7})[0] == 400
            assert serving.ask("GET", "/xylophone")[0] == 404
            with socket.create_connection(("127.0.0.1", serving.port)) as client:
                client.sendall(b"xylophone\r\n\r\n")
                client.recv(1000)
            assert serving.stop()[0] == 0
            assert len(serving.lines) == 3
            assert serving.errors == []
        for path in tmp_path.rglob("*"):
            if path.is_file() and path.name not in ("token", "server.json"):
                assert serving.token.encode() not in path.read_bytes()

    def test_a_token_of_one_s_own(self, tmp_path):
        given = {"LLM_KVBRANCH_TOKEN": "from-the-environment"}
        with Serving(tmp_path, "--port", "0", **given) as serving:
            assert serving.token == "from-the-environment"
            assert serving.ask("GET", "/v1/models")[0] == 200
            assert not (serving.home / "kvbranch" / "token").exists()
        with Serving(tmp_path, "--port", "0", "--token", "x", **given) as serving:
            assert serving.token == "x"

    def test_a_session_lasts_until_there_is_a_new_token(self, tmp_path):
        with Serving(tmp_path, "--port", "0") as serving:
            path = serving.login.removeprefix(serving.url)
            _, headers, _ = serving.ask("GET", path, token=False)
            cookie = headers["set-cookie"].partition(";")[0]
            port, token = str(serving.port), serving.token
            line = refused(tmp_path, "--port", "0", "--new-token")
            assert f"The server on port {port} uses the old token" in line
        for more, status in (((), 200), (("--new-token",), 401), ((), 401)):
            with Serving(tmp_path, "--port", port, *more) as serving:
                assert (serving.token == token) is (status == 200)
                answer = serving.ask("GET", "/logs", token=False, cookie=cookie)
                assert answer[0] == status

    def test_a_session_is_of_one_port(self, tmp_path):
        cookies = []
        for _ in range(2):
            with Serving(tmp_path, "--port", "0") as serving:
                for cookie in cookies:
                    answer = serving.ask("GET", "/logs", token=False, cookie=cookie)
                    assert answer[0] == 401
                path = serving.login.removeprefix(serving.url)
                _, headers, _ = serving.ask("GET", path, token=False)
                cookies.append(headers["set-cookie"].partition(";")[0])
        assert cookies[0] != cookies[1]


class TestAgain:
    "Fails if a new login link takes a restart of the server"

    def again(self, serving, *arguments):
        "The output of a second start"
        done = subprocess.run(
            [sys.executable, "-m", "llm", "kvbranch", "serve", *arguments],
            capture_output=True,
            text=True,
            env=environment(serving.home.parent),
            timeout=60,
            check=True,
        )
        return done.stdout

    def test_the_same_is_not_served_twice(self, tmp_path, monkeypatch):
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        with Serving(tmp_path, "--port", str(port)) as serving:
            for arguments in ((), ("--port", str(port))):
                said = self.again(serving, *arguments)
                assert "is already being served" in said
                assert f"{serving.url}/-/kvbranch/login?token=" in said
                assert serving.token in said
                path = said.split(serving.url)[1].split()[0]
                assert serving.ask("GET", path, token=False)[0] == 302
                assert serving.ask("GET", path, token=False)[0] == 403
            old = serving.login.removeprefix(serving.url)
            assert serving.ask("GET", old, token=False)[0] == 403
            monkeypatch.setenv("LLM_USER_PATH", str(serving.home))
            self.only_the_same(serving)
            assert serving.stop()[0] == 0
            assert launch.already_there(launch.ServeOptions(), serving.token) is None

    def only_the_same(self, serving):
        "With other options it is another server"
        same = launch.ServeOptions(database=str(serving.home / "logs.db"))
        assert launch.already_there(same, serving.token).url == serving.url
        for other in (
            {"port": 0},
            {"port": 1},
            {"host": "localhost"},
            {"allow_hosts": ("box.example",)},
            {"slots": 2},
            {"n_ctx": 512},
            {"log": False},
            {"database": str(serving.home / "other.db")},
        ):
            assert launch.already_there(replace(same, **other), serving.token) is None
        assert launch.already_there(same, "another-token") is None


class TestLogging:
    "Fails if something is logged that should not be"

    def test_no_log(self, tmp_path):
        with Serving(tmp_path, "--port", "0", "--no-log") as serving:
            asked = {"prompt": "Hi", "max_tokens": 3}
            assert serving.ask("POST", "/generate", asked)[0] == 200
            assert serving.stop()[0] == 0
            assert serving.count() == 0
            assert not list((serving.home / "kvbranch" / "states").glob("*/*"))

    def test_another_log(self, tmp_path):
        log = tmp_path / "other.db"
        with Serving(tmp_path, "--port", "0", "-d", str(log)) as serving:
            asked = {"prompt": "Hi", "max_tokens": 3}
            assert serving.ask("POST", "/generate", asked)[0] == 200
            status, _, text = serving.ask("GET", "/other/turns.json?_shape=array")
            assert status == 200
            assert len(json.loads(text)) == 1
            assert not (serving.home / "logs.db").exists()


def test_the_page_is_opened_for_you(tmp_path):
    """The link is in no process's arguments, which every user can see.

    The browser gets a file instead, which nobody else can read and which leads there.
    """
    browser, told, shown = (tmp_path / name for name in ("browser", "told", "shown"))
    browser.write_text(
        f'#!/bin/sh\ncat "${{1#file://}}" > {shown}\necho "$1" > {told}\n'
    )
    browser.chmod(0o700)
    arguments = ("--port", "0", "--open")
    with Serving(tmp_path, *arguments, BROWSER=str(browser)) as serving:
        deadline = time.monotonic() + 20
        while not told.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        (address,) = told.read_text().split()
        assert address.startswith("file:///")
        assert "token" not in address
        assert "127.0.0.1" not in address
        file = Path(address.removeprefix("file://"))
        assert file.parent == serving.home / "kvbranch"
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        (link,) = re.findall('content="0; url=([^"]+)"', shown.read_text())
        assert html.unescape(link) == serving.login
        path = serving.login.removeprefix(serving.url)
        assert serving.ask("GET", path, token=False)[0] == 302
        serving.stop()
    assert not file.exists()


def test_by_the_newer_internet_protocol(tmp_path):
    if not os.path.exists("/proc/net/if_inet6"):
        pytest.skip("no IPv6 here")
    with Serving(tmp_path, "--port", "0", "--host", "::1") as serving:
        assert serving.url == f"http://[::1]:{serving.port}"
        serving.host = "::1"
        assert serving.ask("GET", "/v1/models")[0] == 200


class TestRefusals:
    "Fails if a server that cannot start prints anything but one clear line"

    def test_a_port_in_use(self, tmp_path):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = str(taken.getsockname()[1])
            line = refused(tmp_path, "--port", port)
        assert f"Port {port} of 127.0.0.1 is not available" in line
        assert "--port 0" in line

    def test_no_such_model(self, tmp_path):
        assert "nix" in refused(tmp_path, "--port", "0", "-m", "nix")

    def test_no_model_at_all(self, tmp_path):
        bad = tmp_path / "bad.gguf"
        bad.write_text("no model")
        line = refused(tmp_path, "--port", "0", LLM_KVBRANCH_MODEL=str(bad))
        assert "not a GGUF file" in line

    @pytest.mark.parametrize("token", ["", "two words", "\u00fcmlaut"])
    def test_a_token_that_cannot_be_sent(self, tmp_path, token):
        line = refused(tmp_path, "--port", "0", "--token", token)
        assert "without spaces" in line

    def test_others_are_not_let_in_by_the_way(self, tmp_path):
        line = refused(tmp_path, "--port", "0", "--host", "0.0.0.0")
        assert "--allow-host NAME" in line

    def test_a_log_that_is_none(self, tmp_path):
        bad = tmp_path / "bad.db"
        bad.write_text("no database at all, but long enough to be looked at")
        assert "Cannot use the log" in refused(tmp_path, "--port", "0", "-d", str(bad))

    def test_a_log_in_no_directory(self, tmp_path):
        path = str(tmp_path / "no" / "logs.db")
        assert "Cannot use the log" in refused(tmp_path, "--port", "0", "-d", path)


def test_others_may_come_by_a_name_that_was_allowed(tmp_path):
    arguments = ("--port", "0", "--host", "0.0.0.0", "--allow-host", "box.example")
    with Serving(tmp_path, *arguments) as serving:
        assert serving.url == f"http://box.example:{serving.port}"
        for host, status in (
            ("box.example", 200),
            (f"box.example:{serving.port}", 200),
            ("127.0.0.1", 200),
            ("evil.test", 403),
        ):
            assert serving.ask("GET", "/v1/models", host=host)[0] == status
        found = json.loads((serving.home / "kvbranch" / "server.json").read_text())
        assert found["url"] == f"http://127.0.0.1:{serving.port}"
