"""The door: who may come in at all.

The idea: under ``llm kvbranch serve`` there is a door in front of the whole instance.
It lets in the holder of the API token and the person who logged in, and nobody else:
other plugins' routes do not ask who is there, and the log is as private as a diary.
A plain datasette has no door, only a guard around this plugin's own paths.

The invariant: secrets are compared in constant time.

This module does not know what is behind the door, nor which paths are this plugin's.
"""

from __future__ import annotations

import asyncio
import hmac
import secrets
from collections.abc import Callable, Iterable
from typing import Any
from weakref import WeakKeyDictionary

from ..compat import actor_of
from .guard import LOOPBACK, Guard, Refusal, Scope, host_names
from .permissions import API_ACTOR, is_known

HOME = "/-/kvbranch"  # the pages, and all addresses that no other API has
LOGIN = f"{HOME}/login"
_PLUGIN = "llm-kvbranch"


class Door:
    """What ``llm kvbranch serve`` lets in: its token, its host names, one login link.

    Requests that are still being sent when ``closing`` is set are not waited for.
    """

    def __init__(self, token: str, hosts: Iterable[str] = LOOPBACK):
        self.hosts = frozenset(hosts)
        self.closing = asyncio.Event()
        self._token = token
        self._link: str | None = None

    def fits(self, token: str) -> bool:
        return _same(token, self._token)

    def new_link(self) -> str:
        "A path that logs in once; it replaces the one before"
        self._link = secrets.token_urlsafe(32)
        return f"{LOGIN}?token={self._link}"

    def use_link(self, given: str) -> bool:
        "Whether this is the current link, which is used up by asking"
        if self._link is None or not _same(given, self._link):
            return False
        self._link = None
        return True


def _same(given: str, wanted: str) -> bool:
    return hmac.compare_digest(given.encode(), wanted.encode())


_doors: WeakKeyDictionary[Any, Door] = WeakKeyDictionary()


def close_door(datasette: Any, door: Door) -> None:
    "Put a door in front of a datasette"
    _doors[datasette] = door


def door_of(datasette: Any) -> Door | None:
    "The door of a datasette; None unless ``llm kvbranch serve`` started it"
    return _doors.get(datasette)


def guarded(app: Any, datasette: Any, is_ours: Callable[[Any, Scope], bool]) -> Guard:
    """The guard around an instance; ``is_ours`` knows this plugin's paths.

    Behind a door it guards everything. Otherwise only this plugin's paths, which the
    host names in the plugin's setting ``allowed_hosts`` reach, too.
    """

    def ours(scope: Scope) -> bool:
        return is_ours(datasette, scope)

    if door := door_of(datasette):

        async def admit(scope: Scope) -> Refusal | None:
            return await _admit(datasette, scope)

        return Guard(
            app, ours, door.hosts, everything=True, admit=admit, closing=door.closing
        )
    config = datasette.plugin_config(_PLUGIN) or {}
    names = config.get("allowed_hosts") or []
    return Guard(app, ours, LOOPBACK | host_names(names))


async def _admit(datasette: Any, scope: Scope) -> Refusal | None:
    "Why a request may not come in; None if it may"
    if scope["path"] == LOGIN and scope["method"] == "GET":
        return None
    from datasette.utils.asgi import Request

    request = Request(scope, None)
    if is_known(await actor_of(datasette, request)):
        return None
    headers = request.headers
    if "text/html" in headers.get("accept", "") and scope["method"] == "GET":
        return Refusal(
            403, "Open the link that llm kvbranch serve printed", "not_logged_in"
        )
    given = "The API key is wrong" if "authorization" in headers else "No API key"
    return Refusal(
        401,
        f"{given}: send the one that llm kvbranch serve printed, "
        "as Authorization: Bearer KEY",
        "invalid_api_key",
    )


def actor_of_token(datasette: Any, authorization: str | None) -> dict[str, str] | None:
    "The API's actor for a request with the token"
    door = door_of(datasette)
    scheme, _, token = (authorization or "").partition(" ")
    if door is None or scheme.lower() != "bearer" or not door.fits(token.strip()):
        return None
    return {"id": API_ACTOR}
