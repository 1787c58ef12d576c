"""Logging in with a real Chromium: by the key, by the link, and over restarts."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest

from ..support.browser import CHROMIUM, FLAGS, PHONE, Tab, accessible
from ..support.logged import Log
from ..support.serving import Serving

pytest.importorskip("playwright.sync_api")
pytestmark = [
    pytest.mark.model,
    pytest.mark.skipif(not CHROMIUM, reason="no chromium here"),
]
REFUSED = "status of (403|401)"  # Chromium reports each on its console


@pytest.fixture
def restarting(tmp_path):
    "A function that starts a server, always in the same home and on the same port"
    first = Serving(tmp_path, "--port", "0")
    log = Log(first.home / "logs.db")
    id = log.begin("Why is the sky blue?", "Light is scattered.")
    log.close()
    running = [first]

    def restart(*arguments):
        running[-1].stop()
        again = Serving(tmp_path, "--port", str(first.port), *arguments)
        running.append(again)
        return again

    yield SimpleNamespace(first=first, restart=restart, id=id)
    running[-1].kill()


@pytest.fixture
def visitor(browser, restarting):
    "A tab that has not logged in"
    tab = Tab(browser, restarting.first.url)
    tab.expect(REFUSED)
    yield tab
    tab.close()


def enter(tab, key):
    tab.page.get_by_label("Key").fill(key)
    tab.page.get_by_role("button", name="Log in").click()


def test_by_the_key_and_over_restarts(restarting, visitor):
    server, page = restarting.first, visitor.page
    path = f"/-/kvbranch/{restarting.id}?x=%22"
    assert page.goto(server.url + path).status == 403
    assert page.title() == "Log in – llm kvbranch"
    assert page.evaluate("document.activeElement.id") == "key"
    assert accessible(visitor) == []
    enter(visitor, "kv-wrong")
    page.get_by_role("alert").wait_for()
    assert "That is not the key of this server." in page.inner_text("form")
    assert page.input_value("#key") == ""
    assert accessible(visitor) == []
    enter(visitor, server.token)
    page.wait_for_url(f"**/{restarting.id}*")  # where one wanted to go
    visitor.ready()
    server = restarting.restart()
    page.reload()
    assert visitor.ready().selected == restarting.id
    server = restarting.restart("--new-token")
    page.keyboard.press("/")
    page.keyboard.insert_text("sky")
    page.get_by_text("You are logged out. Reload this page to log in.").wait_for()
    page.reload()
    assert page.get_by_role("heading", name="Log in").is_visible()
    enter(visitor, server.token)
    visitor.ready()
    assert server.token not in page.content()
    page.go_back()
    assert server.token not in page.url
    assert server.errors == []


def test_by_the_link_and_out(restarting, visitor):
    server, page = restarting.first, visitor.page
    for _ in range(2):  # the second time it is used up
        page.goto(server.login)
        assert page.url == f"{server.url}/-/kvbranch"
        assert page.title() == "Conversations"
    for path in ("/-/kvbranch", "/"):
        page.goto(server.url + path)
        if path == "/":
            page.locator("details.nav-menu summary").click()
        page.get_by_role("button", name="Log out").click()
        assert page.get_by_role("heading", name="Log in").is_visible()
        enter(visitor, server.token)
        page.wait_for_url(server.url + "/")


def test_two_servers_and_a_datasette(tmp_path, restarting, visitor):
    "Logging in to one does not end the login to another"
    server, page = restarting.first, visitor.page
    page.goto(server.login)
    command = [sys.executable, "-m", "datasette", "--root", "-p", "0"]
    plain = subprocess.Popen(
        [*command, str(server.home / "logs.db")],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        link = plain.stdout.readline().strip()
        if urlsplit(link).port == 0:  # datasette prints the port that was asked for
            said = next(line for line in plain.stdout if "running on" in line)
            found = urlsplit(said.split("running on ")[1].split()[0]).netloc
            link = link.replace(urlsplit(link).netloc, found)
        with Serving(tmp_path / "other", "--port", "0") as second:
            visitor.expect("asked elsewhere")
            for other in (second.login, link):
                assert page.goto(other).status == 200
            for url in (second.url, server.url):
                assert page.goto(f"{url}/-/kvbranch").status == 200
    finally:
        plain.kill()
        plain.wait()


@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_a_phone_is_enough(browser, restarting, scheme):
    phone = {"viewport": PHONE, "has_touch": True, "is_mobile": True}
    tab = Tab(browser, restarting.first.url, color_scheme=scheme, **phone)
    tab.expect(REFUSED)
    tab.page.goto(restarting.first.url)
    assert accessible(tab) == []
    assert tab.js("document.documentElement.scrollWidth") <= PHONE["width"]
    assert tab.page.locator("#key").bounding_box()["height"] >= 40
    tab.close()


SPY = """
import glob, sys, time
seen = set()
while True:
    for path in glob.glob("/proc/[0-9]*/cmdline"):
        try:
            with open(path, "rb") as file:
                text = file.read()
        except OSError:
            continue
        if b"login" b"?token=" in text and path not in seen:
            seen.add(path)
            print("link", flush=True)
        elif b"open" b".html" in text and path not in seen:
            seen.add(path)
            print("file", flush=True)
"""


def test_the_browser_is_led_to_the_link_unseen(tmp_path):
    "Another user reads the arguments of all processes meanwhile, as fast as possible"
    shown, browser = tmp_path / "shown", tmp_path / "browser"
    browser.write_text(
        f"#!/bin/sh\n{CHROMIUM} --headless {' '.join(FLAGS)} --dump-dom "
        f"--user-data-dir={tmp_path}/profile --virtual-time-budget=20000 "
        f'"$1" > {shown}.part 2>/dev/null\nmv {shown}.part {shown}\n'
    )
    browser.chmod(0o700)
    nobody = {"user": 65534, "group": 65534, "extra_groups": []}
    spy = subprocess.Popen(
        ["/usr/bin/env", "python3", "-c", SPY],
        stdout=subprocess.PIPE,
        text=True,
        cwd="/",
        **(nobody if os.getuid() == 0 else {}),
    )
    try:
        arguments = ("--port", "0", "--open")
        with Serving(tmp_path, *arguments, BROWSER=str(browser)) as serving:
            deadline = time.monotonic() + 120
            while not shown.exists() and time.monotonic() < deadline:
                time.sleep(0.1)
            assert "<title>Conversations</title>" in shown.read_text()
            path = serving.login.removeprefix(serving.url)
            assert serving.ask("GET", path, token=False)[0] == 403
    finally:
        spy.kill()
        said = spy.communicate()[0].split()
    assert "file" in said  # it saw the browser
    assert "link" not in said


def test_the_spy_would_see_a_link():
    link = "http://127.0.0.1/-/kvbranch/login?token=x"
    with contextlib.ExitStack() as stack:
        for command in (["sh", "-c", "read _", link], ["python3", "-c", SPY]):
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            stack.callback(process.communicate)
            stack.callback(process.kill)
        assert process.stdout.readline() == "link\n"
