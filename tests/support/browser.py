"""A real Chromium that reports everything a page of ours must not do.

The idea: our pages log no errors, never violate their Content-Security-Policy, open no
dialogs and send requests to their own server only. A ``Tab`` collects violations, and a
test that ends with any of them fails.
"""

from __future__ import annotations

import contextlib
import functools
import http.server
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import llm_kvbranch.web

CHROMIUM = shutil.which("chromium") or ""
STATIC = Path(llm_kvbranch.web.__file__).parent / "page" / "static"
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update"),
    *("--disable-sync", "--disable-extensions"),
]
PATIENCE = 60  # seconds to wait before a test fails
DESKTOP = {"width": 1440, "height": 900}
PHONE = {"width": 390, "height": 844}


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    "A browser, shared by the tests of a module"
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=CHROMIUM, headless=True, args=FLAGS, timeout=120_000
        )
        yield browser
        browser.close()


class Tab:
    """A browser page; ``login`` returns a login link for its user.

    ``complaints`` collects what must not happen.
    """

    def __init__(
        self, browser: Any, url: str, login: Callable[[], str] | None = None, **context
    ):
        context = {"viewport": DESKTOP, "color_scheme": "dark", **context}
        self.context = browser.new_context(accept_downloads=True, **context)
        self.context.set_default_timeout(PATIENCE * 1000)
        self.url = url
        self.complaints: list[str] = []
        self.expected: list[str] = []  # patterns of complaints to allow
        self.page = self.context.new_page()
        self._watch()
        if login is not None:
            self.page.goto(login())
            self.complaints.clear()

    def _watch(self) -> None:
        page, host = self.page, urlsplit(self.url).netloc

        def console(message: Any) -> None:
            if message.type in ("error", "warning"):
                self.complaints.append(f"console: {message.text}")

        def request(asked: Any) -> None:
            parts = urlsplit(asked.url)
            if parts.scheme in ("http", "https") and parts.netloc != host:
                self.complaints.append(f"asked elsewhere: {asked.url}")

        def dialog(opened: Any) -> None:
            self.complaints.append(f"dialog: {opened.message}")
            opened.dismiss()

        page.on("console", console)
        page.on("pageerror", lambda error: self.complaints.append(f"error: {error}"))
        page.on("request", request)
        page.on("dialog", dialog)
        page.add_init_script(
            "addEventListener('securitypolicyviolation',"
            " e => console.error('policy: ' + e.violatedDirective + ' ' + e.sample))"
        )

    def expect(self, pattern: str) -> None:
        "Allow complaints that match a pattern"
        self.expected.append(pattern)

    def reset(self) -> None:
        "Clear this tab for the next test, and fail if there were complaints"
        self.page.unroute_all(behavior="ignoreErrors")
        with contextlib.suppress(Exception):
            self.js("localStorage.clear(), sessionStorage.clear()")
        self.page.goto("about:blank")
        self.check()

    def close(self) -> None:
        self.context.close()
        self.check()

    def check(self) -> None:
        "Fail if there were complaints that no test expected"
        bad = [
            each
            for each in self.complaints
            if not any(re.search(pattern, each) for pattern in self.expected)
        ]
        self.complaints.clear()
        self.expected.clear()
        assert bad == [], "\n".join(bad)

    # -- looking -----------------------------------------------------------

    def js(self, code: str, *values: Any) -> Any:
        "Evaluate an expression in the page, or a function of the given values"
        if not values:
            return self.page.evaluate(code)
        return self.page.evaluate(f"values => ({code})(...values)", list(values))

    def until(self, code: str, *values: Any, seconds: float = PATIENCE) -> Any:
        "Wait until an expression is true and return its value"
        deadline = time.monotonic() + seconds
        while True:
            with contextlib.suppress(Exception):  # during navigation
                if found := self.js(code, *values):
                    return found
            assert time.monotonic() < deadline, f"still not: {code} {values}"
            self.page.wait_for_timeout(30)

    def json(self, path: str) -> Any:
        "The JSON at a path, fetched by the page"
        return self.js("async p => (await fetch(p)).json()", path)

    # -- the tree page -----------------------------------------------------

    def open(self, path: str) -> Tab:
        "Open a tree's page and wait until it is ready"
        self.page.goto(f"{self.url}{path}")
        return self.ready()

    def ready(self) -> Tab:
        self.until("Boolean(window.kvbranch)")
        return self

    @property
    def selected(self) -> str:
        "The id of the selected response"
        return str(self.js("kvbranch.state.selected"))

    @property
    def nodes(self) -> list[dict[str, Any]]:
        "This tree's nodes, as the server has them"
        root = self.js("kvbranch.state.tree.root")
        return list(self.json(f"/-/kvbranch/tree.json?id={root}")["nodes"])

    def keys(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    def type(self, text: str) -> None:
        self.page.keyboard.insert_text(text)

    def turn(self, id: str) -> Any:
        "A turn of the conversation, as a locator"
        return self.page.locator(f'.turn[data-id="{id}"]')

    def select_words(self, id: str, words: str) -> None:
        "Select words of an answer with the mouse"
        box = self.js(
            """(id, words) => {
                const answer = document.querySelector(`.turn[data-id="${id}"] .answer`)
                const range = document.createRange()
                const walker = document.createTreeWalker(answer, NodeFilter.SHOW_TEXT)
                const nodes = []
                while (walker.nextNode()) nodes.push(walker.currentNode)
                const text = nodes.map(node => node.data).join("")
                const start = text.indexOf(words)
                if (start < 0) throw new Error("no such words: " + text)
                const find = at => {
                    for (const node of nodes) {
                        if (at <= node.length) return [node, at]
                        at -= node.length
                    }
                }
                range.setStart(...find(start))
                range.setEnd(...find(start + words.length))
                range.startContainer.parentElement.scrollIntoView({block: "center"})
                const rects = [...range.getClientRects()].filter(r => r.width > 0)
                const [first, last] = [rects[0], rects.at(-1)]
                const middle = rect => rect.top + rect.height / 2
                return [first.left, middle(first), last.right, middle(last)]
            }""",
            id,
            words,
        )
        mouse = self.page.mouse
        mouse.move(box[0] + 0.5, box[1])
        mouse.down()
        mouse.move((box[0] + box[2]) / 2, (box[1] + box[3]) / 2, steps=3)
        mouse.move(box[2] - 0.5, box[3], steps=3)
        mouse.up()
        self.page.locator(".selection-toolbar").wait_for(state="visible")

    def sampling(self, **values: Any) -> None:
        "Set sampling options, as the form does"
        self.js(
            "v => localStorage.setItem('kvbranch:sampling', JSON.stringify(v))", values
        )

    def answered(self) -> str:
        "Wait until the selected response is logged and return its id"
        self.until(
            "!kvbranch.state.runs.size"
            " && !kvbranch.state.tree.get(kvbranch.state.selected)?.run"
        )
        return self.selected


def accessible(tab: Tab) -> list[str]:
    "The serious and critical issues that axe-core finds"
    from axe_playwright_python.sync_playwright import Axe

    n = len(tab.complaints)
    found = Axe().run(tab.page, options={"preload": False}).response["violations"]
    del tab.complaints[n:]  # axe tries to add styles, which the policy blocks
    return [
        f"{each['id']}: {node['html'][:160]} {node['failureSummary'][:200]}"
        for each in found
        if each["impact"] in ("serious", "critical")
        for node in each["nodes"]
    ]


@contextlib.contextmanager
def files() -> Iterator[str]:
    "Serve our static files alone, for tests of single modules; yields the URL"

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            if self.path != "/":
                super().do_GET()
                return
            self.send_response(200)
            self.send_header("content-type", "text/html")
            self.end_headers()
            self.wfile.write(b'<!doctype html><link rel="icon" href="/icon.svg">')

    serve = functools.partial(Quiet, directory=str(STATIC))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), serve) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def overlaps(boxes):
    "Pairs of boxes that overlap"
    found, open_ = [], []
    for i, box in sorted(enumerate(boxes), key=lambda each: each[1]["x"]):
        open_ = [o for o in open_ if boxes[o]["x"] + boxes[o]["w"] > box["x"]]
        found += [
            (o, i)
            for o in open_
            if boxes[o]["y"] < box["y"] + box["h"]
            and box["y"] < boxes[o]["y"] + boxes[o]["h"]
        ]
        open_.append(i)
    return found
