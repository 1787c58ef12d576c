"""Attacks of a malicious web page on the server, in real Chromium.

The visitor is logged in as root in the same browser. Every request of another page
reaches the server, which refuses it or its preflight, and nothing is generated. Our
own page is answered, which shows that the attacks could have worked.

A proxy between browser and server records the traffic, since the browser hides the
responses to preflights and those that a page may not read.
"""

from __future__ import annotations

import contextlib
import http.server
import re
import shutil
import threading
import time
from typing import NamedTuple

import pytest

from ..support.serving import Serving

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or ""
pytestmark = [
    pytest.mark.model,
    pytest.mark.skipif(not CHROMIUM, reason="no chromium here"),
]
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update"),
    *("--disable-sync", "--host-resolver-rules=MAP evil.test 127.0.0.1"),
]


class Attack(NamedTuple):
    """The code of a page, and the page's origin.

    ``page``: "evil" is another site, "port" another port of this machine, "rebound"
    a host name of the attacker's that now resolves to the server.
    """

    name: str
    page: str
    code: str
    path: str = "/generate"


PLAIN = """
fetch(url, {method: "POST", mode: "no-cors", credentials: "include",
  headers: {"content-type": "text/plain"}, body: prompt}).catch(() => 0)"""
UNTYPED = """
fetch(url, {method: "POST", mode: "no-cors", credentials: "include",
  body: new Blob([prompt])}).catch(() => 0)"""
AS_JSON = """
fetch(url, {method: "POST", credentials: "include",
  headers: {"content-type": "application/json"}, body: prompt}).catch(() => 0)"""
PUT = """
fetch(url, {method: "PUT", credentials: "include", body: prompt}).catch(() => 0)"""
BEACON = "navigator.sendBeacon(url, prompt)"
FORM = """
const form = document.createElement("form"), field = document.createElement("input")
form.method = "POST"; form.action = url; form.enctype = "ENCTYPE"
// As text/plain this is JSON: {"prompt": "Hi", "x": "="}
field.name = '{"prompt": "Hi", "x": "'; field.value = '"}'
form.append(field); TARGET
document.body.append(form); form.submit()"""
IN_FRAME = """
const frame = document.createElement("iframe"); frame.name = "f"
document.body.append(frame); form.target = "f" """
READ = 'fetch(url, {mode: "no-cors", credentials: "include"}).catch(() => 0)'
READ_CORS = 'fetch(url, {credentials: "include"}).catch(() => 0)'
EMBED = """
const element = document.createElement("TAG"); element.src = url
document.body.append(element)"""


def form(enctype, target=""):
    return FORM.replace("ENCTYPE", enctype).replace("TARGET", target)


URLENCODED = "application/x-www-form-urlencoded"
LOGGED = "/logs/turns.json"
ATTACKS = [
    Attack("text/plain fetch", "evil", PLAIN),
    Attack("text/plain fetch, OpenAI route", "evil", PLAIN, "/v1/chat/completions"),
    Attack("untyped fetch", "evil", UNTYPED),
    Attack("beacon", "evil", BEACON),
    Attack("text/plain form", "evil", form("text/plain")),
    Attack("text/plain form in a frame", "evil", form("text/plain", IN_FRAME)),
    Attack("urlencoded form", "evil", form(URLENCODED)),
    Attack("multipart form", "evil", form("multipart/form-data")),
    Attack("login form", "evil", form(URLENCODED), "/-/kvbranch/login"),
    Attack("JSON fetch", "evil", AS_JSON),
    Attack("PUT", "evil", PUT),
    Attack("read", "evil", READ, LOGGED),
    Attack("read with CORS", "evil", READ_CORS, LOGGED),
    Attack("text/plain fetch", "port", PLAIN),
    Attack("untyped fetch", "port", UNTYPED),
    Attack("beacon", "port", BEACON),
    Attack("text/plain form", "port", form("text/plain")),
    Attack("text/plain form in a frame", "port", form("text/plain", IN_FRAME)),
    Attack("JSON fetch", "port", AS_JSON),
    Attack("read", "port", READ, LOGGED),
    Attack("read with CORS", "port", READ_CORS, LOGGED),
    Attack("script", "port", EMBED.replace("TAG", "script"), LOGGED),
    Attack("image", "port", EMBED.replace("TAG", "img"), LOGGED),
    Attack("frame", "port", EMBED.replace("TAG", "iframe"), "/logs"),
    Attack("new login link", "port", PLAIN, "/-/kvbranch/login"),
    Attack("login form", "port", form(URLENCODED), "/-/kvbranch/login"),
    Attack("logout form", "port", form(URLENCODED), "/-/logout"),
    Attack("read", "rebound", READ_CORS, LOGGED),
    Attack("read the tree", "rebound", READ_CORS, "/branch/tree"),
    Attack("read the page", "rebound", READ_CORS, "/"),
    Attack("JSON fetch", "rebound", AS_JSON),
    Attack("JSON fetch, OpenAI route", "rebound", AS_JSON, "/v1/chat/completions"),
    Attack("text/plain fetch", "rebound", PLAIN),
    Attack("form", "rebound", form(URLENCODED)),
]


class Site(http.server.BaseHTTPRequestHandler):
    "The attacker's site, with an empty page at every path and for every host name"

    def do_GET(self):
        self.send_response(200)
        self.send_header("content-type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!doctype html><title>attack</title>")

    def log_message(self, *_):
        pass


class Wire(http.server.ThreadingHTTPServer):
    """A proxy to the server that records method, path and status of each request.

    Its port differs from the server's, which does not check it. The attacker's host
    name led to the attacker's own page at first.
    """

    daemon_threads = True

    def __init__(self, serving):
        super().__init__(("127.0.0.1", 0), Passing)
        self.serving = serving
        self.passed: list[tuple[str, str, int]] = []
        self.port = self.server_address[1]


class Passing(Site):
    "Pass a request on unchanged"

    server: Wire

    def do_GET(self):
        if self.path == "/attack":
            super().do_GET()
        else:
            self.do_POST()

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        with contextlib.closing(self.server.serving.connection()) as connection:
            connection.putrequest(
                self.command, self.path, skip_host=True, skip_accept_encoding=True
            )
            for name, value in self.headers.items():
                connection.putheader(name, value)
            connection.endheaders(body)
            answer = connection.getresponse()
            text = answer.read()
        self.server.passed.append((self.command, self.path, answer.status))
        self.send_response_only(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "content-length"):
                self.send_header(name, value)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_PUT = do_OPTIONS = do_HEAD = do_POST


@contextlib.contextmanager
def running(site):
    threading.Thread(target=site.serve_forever, daemon=True).start()
    yield site
    site.shutdown()
    site.server_close()


@pytest.fixture(scope="module")
def attacker():
    "The port of the attacker's site"
    with running(http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site)) as site:
        yield site.server_address[1]


@pytest.fixture(scope="module")
def serving(tmp_path_factory):
    with Serving(tmp_path_factory.mktemp("home"), "--port", "0") as serving:
        yield serving


@pytest.fixture(scope="module")
def wire(serving):
    with running(Wire(serving)) as wire:
        yield wire


@pytest.fixture(scope="module")
def page(tmp_path_factory, serving, wire):
    "A window of a logged-in user's browser"
    with playwright.sync_playwright() as driver:
        context = driver.chromium.launch_persistent_context(
            str(tmp_path_factory.mktemp("profile")),
            executable_path=CHROMIUM,
            headless=True,
            args=FLAGS,
            timeout=120_000,
        )
        context.set_default_timeout(120_000)
        page = context.new_page()
        page.goto(serving.login)
        assert page.goto(f"http://127.0.0.1:{wire.port}/logs").status == 200
        yield page
        context.close()


@pytest.fixture
def open_page(page, wire, attacker):
    "The attacker's page, opened"

    def opened(kind):
        host = "127.0.0.1" if kind == "port" else "evil.test"
        port = wire.port if kind == "rebound" else attacker
        page.goto(f"http://{host}:{port}/attack")
        assert page.title() == "attack"
        return page

    return opened


def target(attack_page, wire, scheme="http"):
    "The server's address for a page"
    host = "evil.test" if attack_page == "rebound" else "127.0.0.1"
    return f"{scheme}://{host}:{wire.port}"


def asked(serving):
    "How many requests the model has had since the server started"
    status, _, text = serving.ask("GET", "/metrics")
    assert status == 200
    (n,) = re.findall(r"^\w*requests_total (\d+)", text, re.MULTILINE)
    return int(n)


@pytest.mark.parametrize(
    "attack", ATTACKS, ids=lambda attack: f"{attack.page}: {attack.name}"
)
def test_nothing_comes_of_it(serving, wire, open_page, attack):
    before = asked(serving)
    page = open_page(attack.page)
    wire.passed.clear()
    page.evaluate(
        "([url, prompt]) => {" + attack.code + "}",
        [target(attack.page, wire) + attack.path, '{"prompt": "Hi"}'],
    )
    deadline = time.monotonic() + 60
    while not wire.passed and time.monotonic() < deadline:
        page.wait_for_timeout(50)
    page.wait_for_timeout(200)
    arrived = [each for each in wire.passed if each[1] == attack.path]
    assert arrived
    assert {status for _, _, status in arrived} == {403}, arrived
    assert asked(serving) == before
    assert serving.count() == 0


@pytest.mark.parametrize("kind", ["evil", "port", "rebound"])
def test_no_web_socket_opens(wire, open_page, kind):
    wire.passed.clear()
    outcome = open_page(kind).evaluate(
        """url => new Promise(tell => {
            const socket = new WebSocket(url)
            socket.onopen = () => tell("open"); socket.onclose = () => tell("closed")
        })""",
        target(kind, wire, "ws") + "/v1/models",
    )
    assert outcome == "closed"
    assert ("GET", "/v1/models", 403) in wire.passed


@pytest.mark.parametrize("kind", ["evil", "port"])
def test_a_link_opens_a_page_that_the_linking_one_cannot_read(wire, open_page, kind):
    opener = open_page(kind)
    with opener.expect_popup() as popup:
        opener.evaluate("url => { window.w = open(url) }", target(kind, wire) + "/logs")
    popup.value.wait_for_load_state()
    assert "logs" in popup.value.title()
    with pytest.raises(playwright.Error, match=r"cross-origin|security policy"):
        opener.evaluate("w.document.body.innerHTML")
    popup.value.close()


def test_our_own_page_is_answered(serving, page):
    "The last test of this module: it does what the others must not achieve"
    page.goto(f"{serving.url}/-/logout")
    status = page.evaluate(
        """async () => {
            const field = document.querySelector("input[name=csrftoken]")
            const headers = {"content-type": "application/json"}
            if (field) headers["x-csrftoken"] = field.value
            const body = JSON.stringify({prompt: "Hi", max_tokens: 3})
            return (await fetch("/generate", {method: "POST", headers, body})).status
        }"""
    )
    assert status == 200
    assert asked(serving) == 1
    assert serving.count() == 1
