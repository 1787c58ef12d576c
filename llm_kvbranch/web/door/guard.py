"""ASGI middleware against cross-site requests and DNS rebinding.

The idea: a browser sends requests for any page that is open in it. Our own page is
told from the others by headers that no page can set: the host name it used
(``Host``), its origin (``Sec-Fetch-Site``, ``Origin``), and a content type that needs
a CORS preflight, which nothing here answers. The login form has no such type.

The invariant: a refused request is not passed on and its body is not kept; one that
is passed on has been received in full, and its body is at most ``MAX_BODY`` long.

This module does not know datasette or who may do what: ``admit`` does.
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

from ...errors import SettingError
from ..errors import Form, RequestError, openai_form

Scope = dict[str, Any]
Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

LOOPBACK = frozenset({"127.0.0.1", "localhost", "[::1]"})
MAX_BODY = 8 * 2**20
# How much of a body that is too long is read and discarded, and for how long
DRAINED = 8 * MAX_BODY
PATIENCE = 5.0
IDLE = 60.0  # seconds to wait for the next piece of a body
MAX_FORM = 16 * 2**10
FORM_SECONDS = 10.0  # to send a whole form

_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::\d{1,5})?")
_READING = ("GET", "HEAD", "OPTIONS")
_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"referrer-policy", b"same-origin"),
]


@dataclass(frozen=True)
class Refusal:
    "A response that refuses a request: an error in JSON, or a page in a browser"

    status: int
    message: str
    code: str
    page: str | None = None  # HTML for a browser, instead of the message alone
    headers: tuple[tuple[str, str], ...] = ()

    def rendered(self, scope: Scope, form: Form = openai_form) -> tuple[str, str]:
        "The content type and body for this client"
        if wants_page(scope):
            return "text/html; charset=utf-8", self.page or _page(self.message)
        error = RequestError(self.status, self.message, code=self.code)
        return "application/json", json.dumps(form(error))

    async def send(self, scope: Scope, send: Send, form: Form = openai_form) -> None:
        kind, text = self.rendered(scope, form)
        body = text.encode()
        headers = {
            "content-type": kind,
            "content-length": str(len(body)),
            "cache-control": "no-store",
            "connection": "close",  # the request's body may still be coming
            **dict(self.headers),
        }
        if self.status == 401:
            headers["www-authenticate"] = "Bearer"
        sent = [(name.encode(), value.encode()) for name, value in headers.items()]
        start = {"type": "http.response.start", "status": self.status, "headers": sent}
        await send(start)
        await send({"type": "http.response.body", "body": body})


class Guard:
    """ASGI middleware that refuses what another site's page could have sent.

    ``is_ours`` says which paths take only JSON; ``everything`` guards all others, too.
    ``hosts`` are the allowed host names. ``admit`` is asked last, before the body is
    read. ``is_form`` says which requests are a form of ours, that strangers may send:
    it must be short and arrive soon. Once ``closing`` is set, no body is waited for.
    ``form_of`` gives the form of the errors of a path.
    """

    def __init__(
        self,
        app: App,
        is_ours: Callable[[Scope], bool],
        hosts: Iterable[str] = LOOPBACK,
        everything: bool = False,
        admit: Callable[[Scope], Awaitable[Refusal | None]] | None = None,
        is_form: Callable[[Scope], bool] = lambda scope: False,
        closing: asyncio.Event | None = None,
        form_of: Callable[[Scope], Form] = lambda scope: openai_form,
    ):
        self.app = app
        self.is_ours = is_ours
        self.hosts = frozenset(hosts)
        self.everything = everything
        self.admit = admit
        self.is_form = is_form
        self.closing = closing or asyncio.Event()
        self.form_of = form_of

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
                receive = await self._received(scope, receive)
            except _Unread as error:
                refusal = error.refusal
        if refusal is not None:
            return await refusal.send(scope, send, self.form_of(scope))
        return await self.app(scope, receive, send)

    async def _received(self, scope: Scope, receive: Receive) -> Receive:
        "Wait for the body; raises _Unread"
        if not self.is_form(scope):
            return await _with_body(scope, receive, self.closing)
        form = _with_body(scope, receive, self.closing, MAX_FORM)
        try:
            return await asyncio.wait_for(form, FORM_SECONDS)
        except asyncio.TimeoutError:
            raise _Unread(_TOO_SLOW) from None

    def _refuse(self, scope: Scope, ours: bool) -> Refusal | None:
        headers = _Headers(scope)
        host = headers.only("host")
        if host_name(host) not in self.hosts:
            return Refusal(
                403,
                "Host not allowed: see --allow-host of llm kvbranch serve, or the "
                "setting allowed_hosts of the plugin llm-kvbranch",
                "host_not_allowed",
            )
        if _is_foreign(scope["method"], headers, host):
            return Refusal(403, "Cross-site requests are refused", "cross_site_request")
        reads = scope["method"] in _READING or self.is_form(scope)
        if ours and not reads and media_type(scope) != "application/json":
            return Refusal(
                415,
                "Send the body as JSON, with Content-Type: application/json",
                "unsupported_media_type",
            )
        return None


def wants_page(scope: Scope) -> bool:
    "Whether a request is a browser's for a page"
    return scope["method"] == "GET" and "text/html" in _Headers(scope).get("accept", "")


def media_type(scope: Scope) -> str:
    "The type of a request's body, without parameters"
    kind = _Headers(scope).get("content-type", "")
    return kind.split(";")[0].strip().lower()


def paths_of(scope: Scope, base_url: str = "/") -> list[str]:
    """The paths that datasette may match against its routes.

    It matches the raw path, and strips the base URL where there is one.
    """
    raw = (scope.get("raw_path") or b"").decode("latin-1").partition("?")[0]
    paths = [path for path in (scope["path"], raw) if path]
    if base_url != "/":
        paths += [
            "/" + path[len(base_url) :] for path in paths if path.startswith(base_url)
        ]
    return paths


def host_name(host: str) -> str | None:
    "The name in a Host header, without its port; None if it is malformed"
    found = _HOST.fullmatch(host.strip().lower())
    return found.group(1) if found else None


def host_names(names: Iterable[str] | str) -> frozenset[str]:
    "Names from options, as a Host header has them; raises SettingError"
    found = set()
    for name in [names] if isinstance(names, str) else names:
        bare = f"[{name}]" if name.count(":") > 1 and name[:1] != "[" else name
        host = host_name(bare)
        if host is None:
            raise SettingError(
                f"{name!r} is not a host name: write it like box.example"
            )
        found.add(host)
    return frozenset(found)


class _Headers(dict[str, str]):
    "A request's headers by lower-case name; only() ignores one that is sent twice"

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

    Following a link to one of our pages is allowed: the other page cannot read the
    response, and a GET changes nothing.
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
    "A body that could not be read in full, and the refusal for it"

    def __init__(self, refusal: Refusal):
        super().__init__(refusal.message)
        self.refusal = refusal


def _too_long(most: int) -> Refusal:
    return Refusal(413, f"The body is longer than {most:,} bytes", "request_too_large")


_TOO_SLOW = Refusal(
    408, "The rest of the body did not arrive in time", "request_timeout"
)
_CLOSING = Refusal(503, "The server is stopping", "server_stopping")


async def _with_body(
    scope: Scope, receive: Receive, closing: asyncio.Event, most: int = MAX_BODY
) -> Receive:
    """A receive() that returns the whole body at once, then what follows it.

    Raises _Unread. The length is counted, whatever Content-Length says.
    """
    headers = _Headers(scope)
    promised = headers.get("content-length", "")
    if promised.isdecimal() and int(promised) > most:
        if headers.get("expect", "").lower() != "100-continue":
            await _drain(receive, closing)
        raise _Unread(_too_long(most))
    body, more = bytearray(), True
    while more:
        message = await _next(receive, closing, IDLE)
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > most:
            body.clear()
            if more:
                await _drain(receive, closing)
            raise _Unread(_too_long(most))
    whole: list[Message] = [
        {"type": "http.request", "body": bytes(body), "more_body": False}
    ]

    async def replay() -> Message:
        return whole.pop() if whole else await receive()

    return replay


async def _drain(receive: Receive, closing: asyncio.Event) -> None:
    """Read and discard a body, up to a limit of bytes and time.

    A client that is still sending when its connection closes never sees the response.
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
    "The next message of a client; raises _Unread when none comes"
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
        raise _Unread(_TOO_SLOW)  # which nobody will read
    return message


def _with_headers(send: Send) -> Send:
    "Forbid framing, embedding and sniffing of the response"

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
