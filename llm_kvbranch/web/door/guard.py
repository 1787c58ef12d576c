"""What no web page of somebody else's may send, refused before anything reads it.

The idea: a browser carries requests for every page that is open in it. What tells
our own page from the others are headers that a page cannot set: the name that it
reached us by (``Host``), where it is from (``Sec-Fetch-Site``, ``Origin``), and a
content type that needs a preflight which nobody here answers.

The invariant: a request that is refused was not passed on, nor its body kept; one
that is passed on has its whole body here, and it is no longer than ``MAX_BODY``.

This module does not know datasette, nor who may do what: ``admit`` does.
"""

from __future__ import annotations

import asyncio
import html
import json
import re
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

Scope = dict[str, Any]
Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

LOOPBACK = frozenset({"127.0.0.1", "localhost", "[::1]"})
MAX_BODY = 8 * 2**20
# How much of a body that is too long is read and thrown away, and for how long
DRAINED = 8 * MAX_BODY
PATIENCE = 5.0
IDLE = 60.0  # seconds that a client may take for the next piece of a body

_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::\d{1,5})?")
_READING = ("GET", "HEAD", "OPTIONS")
_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"referrer-policy", b"same-origin"),
]


@dataclass(frozen=True)
class Refusal:
    "An answer in OpenAI's form, or as a page for a person who reads pages"

    status: int
    message: str
    code: str

    @property
    def body(self) -> dict[str, Any]:
        denied = self.status == 403
        error = {
            "message": self.message,
            "type": "permission_error" if denied else "invalid_request_error",
            "param": None,
            "code": self.code,
        }
        return {"error": error}

    def rendered(self, scope: Scope) -> tuple[str, str]:
        "Its content type and body, for who asked"
        wants_page = "text/html" in _Headers(scope).get("accept", "")
        if scope["method"] == "GET" and wants_page:
            return "text/html; charset=utf-8", _page(self.message)
        return "application/json", json.dumps(self.body)

    async def send(self, scope: Scope, send: Send) -> None:
        kind, text = self.rendered(scope)
        body = text.encode()
        sent = [
            (b"content-type", kind.encode()),
            (b"content-length", str(len(body)).encode()),
            (b"cache-control", b"no-store"),
            (b"connection", b"close"),  # the request's body may be on its way still
        ]
        if self.status == 401:
            sent.append((b"www-authenticate", b"Bearer"))
        start = {"type": "http.response.start", "status": self.status, "headers": sent}
        await send(start)
        await send({"type": "http.response.body", "body": body})


class Guard:
    """ASGI middleware that refuses what a foreign page could have sent.

    ``is_ours`` says which paths take JSON only. ``everything`` guards the others, too.
    ``hosts`` are the names that we may be reached by. ``admit`` is asked last, before
    any body is read. Nobody waits for a body any longer when ``closing`` is set.
    """

    def __init__(
        self,
        app: App,
        is_ours: Callable[[Scope], bool],
        hosts: Iterable[str] = LOOPBACK,
        everything: bool = False,
        admit: Callable[[Scope], Awaitable[Refusal | None]] | None = None,
        closing: asyncio.Event | None = None,
    ):
        self.app = app
        self.is_ours = is_ours
        self.hosts = frozenset(hosts)
        self.everything = everything
        self.admit = admit
        self.closing = closing or asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        ours = self.is_ours(scope)
        if not (ours or self.everything):
            return await self.app(scope, receive, send)
        send = _with_headers(send)
        refusal = self._refuse(scope, ours)
        if refusal is None and self.admit is not None:
            refusal = await self.admit(scope)
        if refusal is None and scope["method"] not in _READING:
            try:
                receive = await _with_body(scope, receive, self.closing)
            except _Unread as error:
                refusal = error.refusal
        if refusal is not None:
            return await refusal.send(scope, send)
        return await self.app(scope, receive, send)

    def _refuse(self, scope: Scope, ours: bool) -> Refusal | None:
        headers = _Headers(scope)
        host = headers.only("host")
        if host_name(host) not in self.hosts:
            return Refusal(
                403,
                "This is not reached by that host name: see --allow-host of llm "
                "kvbranch serve, or allowed_hosts of the plugin llm-kvbranch",
                "host_not_allowed",
            )
        if _is_foreign(scope["method"], headers, host):
            return Refusal(
                403, "Pages from elsewhere cannot use this", "cross_site_request"
            )
        kind = headers.get("content-type", "").split(";")[0].strip().lower()
        if ours and scope["method"] not in _READING and kind != "application/json":
            return Refusal(
                415,
                "Send the body as JSON, with Content-Type: application/json",
                "unsupported_media_type",
            )
        return None


def paths_of(scope: Scope, base_url: str = "/") -> list[str]:
    """The paths that datasette may find a route for.

    It takes the path as it came, and the base URL off it where there is one.
    """
    raw = (scope.get("raw_path") or b"").decode("latin-1").partition("?")[0]
    paths = [path for path in (scope["path"], raw) if path]
    if base_url != "/":
        paths += [
            "/" + path[len(base_url) :] for path in paths if path.startswith(base_url)
        ]
    return paths


def host_name(host: str) -> str | None:
    "The name in a Host header or an option, without its port; None if it is none"
    found = _HOST.fullmatch(host.strip().lower())
    return found.group(1) if found else None


class _Headers(dict[str, str]):
    "A request's headers by their names in lower case; only() wants no second one"

    def __init__(self, scope: Scope):
        self._pairs = [
            (name.decode("latin-1").lower(), value.decode("latin-1"))
            for name, value in scope["headers"]
        ]
        super().__init__(self._pairs)

    def only(self, name: str) -> str:
        values = [value for key, value in self._pairs if key == name]
        return values[0] if len(values) == 1 else ""


def _is_foreign(method: str, headers: _Headers, host: str) -> bool:
    """Whether a page of another origin made the request.

    Opening one of our pages in a window is no request of the page with the link on
    it, which sees nothing of it; nothing changes by a GET, either.
    """
    site = headers.get("sec-fetch-site")
    if site is not None:
        if (
            method in ("GET", "HEAD")
            and headers.get("sec-fetch-mode") == "navigate"
            and headers.get("sec-fetch-dest") == "document"
        ):
            return False
        return site not in ("same-origin", "none")
    origin = headers.get("origin")
    if origin is None:
        return False
    try:
        return urlsplit(origin).netloc.lower() != host.lower()
    except ValueError:
        return True


class _Unread(Exception):
    "A body cannot be had, and what is said of that"

    def __init__(self, refusal: Refusal):
        super().__init__(refusal.message)
        self.refusal = refusal


_TOO_LONG = Refusal(
    413, f"The body is longer than {MAX_BODY:,} bytes", "request_too_large"
)
_TOO_SLOW = Refusal(408, "The rest of the body did not come", "request_timeout")
_CLOSING = Refusal(503, "The server is stopping", "server_stopping")


async def _with_body(scope: Scope, receive: Receive, closing: asyncio.Event) -> Receive:
    """A receive() that gives the whole body at once, then what comes after it.

    Raises _Unread, for a body that is too long whatever its length was said to be.
    """
    headers = _Headers(scope)
    promised = headers.get("content-length", "")
    if promised.isdecimal() and int(promised) > MAX_BODY:
        if headers.get("expect", "").lower() != "100-continue":
            await _drain(receive, closing)
        raise _Unread(_TOO_LONG)
    body, more = bytearray(), True
    while more:
        message = await _next(receive, closing, IDLE)
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > MAX_BODY:
            body.clear()
            if more:
                await _drain(receive, closing)
            raise _Unread(_TOO_LONG)
    whole: list[Message] = [
        {"type": "http.request", "body": bytes(body), "more_body": False}
    ]

    async def replay() -> Message:
        return whole.pop() if whole else await receive()

    return replay


async def _drain(receive: Receive, closing: asyncio.Event) -> None:
    """Read on and keep nothing, to the end or as far as there is patience.

    A client that still writes when its connection is closed does not hear why.
    """
    deadline, total, more = time.monotonic() + PATIENCE, 0, True
    while more and total < DRAINED and (left := deadline - time.monotonic()) > 0:
        try:
            message = await _next(receive, closing, left)
        except _Unread:
            return
        total += len(message.get("body", b""))
        more = message.get("more_body", False)


async def _next(receive: Receive, closing: asyncio.Event, patience: float) -> Message:
    "What a client sends next; raises _Unread when nothing more comes"
    coming = asyncio.ensure_future(receive())
    waiting = [coming, asyncio.ensure_future(closing.wait())]
    try:
        await asyncio.wait(
            waiting, timeout=patience, return_when=asyncio.FIRST_COMPLETED
        )
        if not coming.done():
            raise _Unread(_CLOSING if closing.is_set() else _TOO_SLOW)
        message = coming.result()
    finally:
        for each in waiting:
            each.cancel()
    if message["type"] == "http.disconnect":
        raise _Unread(_TOO_SLOW)  # which nobody hears
    return message


def _with_headers(send: Send) -> Send:
    "Nobody may frame, embed or sniff what is answered"

    async def inner(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = list(message.get("headers", []))
            given = {bytes(name).lower() for name, _ in headers}
            headers += [pair for pair in _HEADERS if pair[0] not in given]
            message = {**message, "headers": headers}
        await send(message)

    return inner


def _page(message: str) -> str:
    return (
        '<!doctype html><meta charset="utf-8"><title>llm kvbranch</title>'
        "<style>body{font:16px system-ui;margin:4em auto;max-width:36em}"
        ":root{color-scheme:light dark}</style>"
        f"<p>{html.escape(message)}"
    )
