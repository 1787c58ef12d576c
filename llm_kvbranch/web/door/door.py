"""The door: who may come in at all.

The idea: under ``llm kvbranch serve`` there is a door in front of the whole instance.
It lets in the holder of the API token and the person who logged in, and nobody else:
other plugins' routes do not ask who is there, and the log is as private as a diary.
A person logs in by the API token, or by a link that works once.
A plain datasette has no door, only a guard around this plugin's own paths.

The invariant: secrets are compared in constant time.

This module does not know what is behind the door, which paths are this plugin's, or
what the login page looks like.
"""

from __future__ import annotations

import asyncio
import hmac
import secrets
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from ...errors import OverloadedError
from ..compat import actor_of
from ..errors import Form
from .guard import (
    LOOPBACK,
    App,
    Guard,
    Message,
    Receive,
    Refusal,
    Scope,
    Send,
    host_names,
    media_type,
    paths_of,
    wants_page,
)
from .permissions import API_ACTOR, is_known
from .sessions import Session, Sessions, new_session

HOME = "/-/kvbranch"  # the pages, and all addresses that no other API has
LOGIN = f"{HOME}/login"
_LOGOUT = "/-/logout"  # datasette's
_PLUGIN = "llm-kvbranch"
_FORM = "application/x-www-form-urlencoded"
_DELAY = 1.0  # seconds until a wrong key is answered
_TRIES = 10  # how many wrong keys may wait at once


class Entrance(NamedTuple):
    "What strangers may see: the login page, and the files that it needs"

    page: Callable[[Any, Scope], Awaitable[Refusal]]
    is_public: Callable[[Scope], bool]


class Door:
    """What ``llm kvbranch serve`` lets in: its token, its host names, its sessions.

    Sessions end with the process unless they are given. Requests that are still being
    sent when ``closing`` is set are not waited for.
    """

    def __init__(
        self,
        token: str,
        hosts: Iterable[str] = LOOPBACK,
        sessions: Sessions | None = None,
    ):
        self.hosts = frozenset(hosts)
        self.sessions = sessions or Sessions(secrets.token_hex(), token, 0)
        self.closing = asyncio.Event()
        self._token = token
        self._link: tuple[str, Session] | None = None
        self._n_wrong = 0

    def fits(self, token: str) -> bool:
        return _same(token, self._token)

    async def is_key(self, given: str) -> bool:
        """Whether this is the API token; a wrong one is answered after a second.

        Raises OverloadedError without comparing it while too many wrong ones wait.
        """
        if self._n_wrong >= _TRIES:
            raise OverloadedError("Too many wrong keys: try again in a second", 1)
        if self.fits(given):
            return True
        self._n_wrong += 1
        try:
            await asyncio.sleep(_DELAY)
        finally:
            self._n_wrong -= 1
        return False

    def new_link(self, session: Session | None = None) -> str:
        "A path that begins a session once, root's by default; it replaces the last one"
        self._link = secrets.token_urlsafe(32), session or new_session({})
        return f"{LOGIN}?token={self._link[0]}"

    def use_link(self, given: str) -> Session | None:
        "The session of the current link, which is used up by asking; None otherwise"
        if self._link is None or not _same(given, self._link[0]):
            return None
        session, self._link = self._link[1], None
        return None if session.has_ended else session


def _same(given: str, wanted: str) -> bool:
    return hmac.compare_digest(given.encode(), wanted.encode())


_doors: WeakKeyDictionary[Any, Door] = WeakKeyDictionary()


def close_door(datasette: Any, door: Door) -> None:
    "Put a door in front of a datasette"
    _doors[datasette] = door


def door_of(datasette: Any) -> Door | None:
    "The door of a datasette; None unless ``llm kvbranch serve`` started it"
    return _doors.get(datasette)


def guarded(
    app: Any,
    datasette: Any,
    is_ours: Callable[[Any, Scope], bool],
    entrance: Entrance,
    form_of: Callable[[Scope], Form],
) -> Guard:
    """The guard around an instance; ``is_ours`` knows this plugin's paths.

    ``form_of`` gives the form of the errors of a path.

    Behind a door it guards everything. Otherwise only this plugin's paths, which the
    host names in the plugin's setting ``allowed_hosts`` reach, too.
    """

    def ours(scope: Scope) -> bool:
        return is_ours(datasette, scope)

    if door := door_of(datasette):

        async def admit(scope: Scope) -> Refusal | None:
            return await _admit(datasette, scope, entrance)

        return Guard(
            _logging_out(app, door.sessions),
            ours,
            door.hosts,
            everything=True,
            admit=admit,
            is_form=is_login_form,
            closing=door.closing,
            form_of=form_of,
        )
    config = datasette.plugin_config(_PLUGIN) or {}
    names = config.get("allowed_hosts") or []
    return Guard(app, ours, LOOPBACK | host_names(names), form_of=form_of)


def is_login_form(scope: Scope) -> bool:
    "Whether a request is the login page's form, which a stranger may send"
    is_form = scope["method"] == "POST" and media_type(scope) == _FORM
    return is_form and _is_at(scope, LOGIN)


def _is_at(scope: Scope, address: str) -> bool:
    "Whether a path is an address, in every way that datasette may match it"
    return all(path == address for path in paths_of(scope))


def _logging_out(app: App, sessions: Sessions) -> App:
    "An app whose logout ends the session here as well"

    async def inner(scope: Scope, receive: Receive, send: Send) -> None:
        async def ending(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] < 400:
                cookie = (b"set-cookie", sessions.end().encode())
                message = {**message, "headers": [*message.get("headers", []), cookie]}
            await send(message)

        leaves = scope.get("method") == "POST" and _is_at(scope, _LOGOUT)
        await app(scope, receive, ending if leaves else send)

    return inner


async def _admit(datasette: Any, scope: Scope, entrance: Entrance) -> Refusal | None:
    "Why a request may not come in; None if it may"
    is_login = scope["method"] == "GET" and _is_at(scope, LOGIN)
    if is_login or is_login_form(scope) or entrance.is_public(scope):
        return None
    from datasette.utils.asgi import Request

    request = Request(scope, None)
    if is_known(await actor_of(datasette, request)):
        return None
    if wants_page(scope):
        return await entrance.page(datasette, scope)
    is_given = "authorization" in request.headers
    given = "The API key is wrong" if is_given else "No API key"
    return Refusal(
        401,
        f"{given}: send the one that llm kvbranch serve printed, "
        "as Authorization: Bearer KEY",
        "invalid_api_key",
    )


def actor_of_request(datasette: Any, request: Any) -> dict[str, Any] | None:
    "The actor of a request with the token, or in a session of ours"
    headers = request.headers
    actor = actor_of_token(datasette, headers.get("authorization"))
    session = session_of(datasette, request)
    return actor or (session.actor if session else None)


def session_of(datasette: Any, request: Any) -> Session | None:
    "The session that a request belongs to; None where there is no door"
    door = door_of(datasette)
    cookies = request.headers.get("cookie")
    return door.sessions.find(cookies) if door and cookies else None


def actor_of_token(datasette: Any, authorization: str | None) -> dict[str, str] | None:
    "The API's actor for a request with the token"
    door = door_of(datasette)
    scheme, _, token = (authorization or "").partition(" ")
    if door is None or scheme.lower() != "bearer" or not door.fits(token.strip()):
        return None
    return {"id": API_ACTOR}
