"""Logging in: the page for strangers, its form, and the link that works once.

The idea: whoever can read the terminal that runs the server may use its pages. The link
is in no history, since it works once; the API key is sent in a form's body, never in an
address. After logging in, people are on the page that they asked for.

A client with the API token can request another link by POST, for a second browser,
without restarting the server.

This module does not know how sessions are kept.
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import parse_qs

from ...errors import OverloadedError
from ..compat import allowed, render_plain
from ..door import (
    API_ACTOR,
    GENERATE,
    HOME,
    LOGIN,
    Entrance,
    Refusal,
    door_of,
    is_known,
    is_login_form,
    new_session,
    paths_of,
)
from .pages import HEADERS
from .static_files import address

_LINK = "Open the link that llm kvbranch serve printed, or enter the key."
_USED = "This link has been used or replaced by a newer one."
_WRONG = "That is not the key of this server."
_FILES = "early.js|icon.svg|login.css|css/base.css"  # that the page needs
_PUBLIC = re.compile(rf"{HOME}/static/[0-9a-f]+/({_FILES})")
# A path of this server, with its query: no browser takes it for another host
_OWN_PATH = re.compile(r"/(?![/\\])[!-~]{0,8000}")


def _is_public(scope: dict[str, Any]) -> bool:
    return scope["method"] in ("GET", "HEAD") and all(
        _PUBLIC.fullmatch(path) for path in paths_of(scope)
    )


async def _stranger(datasette: Any, scope: dict[str, Any]) -> Refusal:
    "The login page, in place of the page that was asked for"
    from datasette.utils.asgi import Request

    wanted = Request(scope, None).full_path
    return await _page(datasette, 403, wanted, code="not_logged_in")


ENTRANCE = Entrance(_stranger, _is_public)


async def log_in(datasette: Any, request: Any) -> Any:
    door = door_of(datasette)
    if door is None:
        message = "This server has no login page: see llm kvbranch serve"
        return _response(request, Refusal(404, message, "login_refused"))
    if is_login_form(request.scope):
        return await _by_key(datasette, request, door)
    if request.method == "POST":
        return await _new_link(datasette, request, door)
    given = request.args.get("token")
    if session := door.use_link(given or ""):
        return _enter(datasette.urls.path(HOME), cookie=door.sessions.header(session))
    if is_known(request.actor):  # the link was opened again
        return _enter(datasette.urls.path(HOME))
    refusal = await _page(datasette, 403, HOME, _USED if given else "")
    return _response(request, refusal)


async def _by_key(datasette: Any, request: Any, door: Any) -> Any:
    "The answer to the login page's form"
    fields = parse_qs((await request.post_body()).decode("latin-1"))
    given = fields.get("key", [""])[0].strip()
    wanted = fields.get("next", [HOME])[0]
    try:
        if await door.is_key(given):
            cookie = door.sessions.header(new_session({"id": API_ACTOR}))
            return _enter(_own_path(wanted), 303, cookie)
        refusal = await _page(datasette, 403, wanted, _WRONG)
    except OverloadedError as error:
        refusal = await _page(datasette, 429, wanted, f"{error}.")
    return _response(request, refusal, is_page=True)


async def _new_link(datasette: Any, request: Any, door: Any) -> Any:
    "Another link, for a client with a token: a session cannot extend itself"
    from datasette.utils.asgi import Response

    actor = request.actor or {}
    has_token = actor.get("id") == API_ACTOR or "token" in actor
    if not (has_token and await allowed(datasette, actor, GENERATE)):
        refusal = Refusal(403, "This token cannot be used to log in", "login_refused")
        return _response(request, refusal)
    return Response.json({"path": door.new_link(new_session(actor))})


def _own_path(wanted: str) -> str:
    "Where to go after the login"
    is_own = _OWN_PATH.fullmatch(wanted) and not wanted.startswith(LOGIN)
    return wanted if is_own else HOME


async def _page(
    datasette: Any,
    status: int,
    wanted: str,
    message: str = "",
    code: str = "login_refused",
) -> Refusal:
    "The login page, or its message for a client that wants JSON"
    values = {
        "static": address(datasette),
        "login": datasette.urls.path(LOGIN),
        "next": _own_path(wanted),
        "message": message,
        "link": _LINK,
    }
    page = await render_plain(datasette, "kvbranch_login.html", values)
    return Refusal(status, message or _LINK, code, page, tuple(HEADERS.items()))


def _enter(path: str, status: int = 302, cookie: str | None = None) -> Any:
    "A redirect; the cookie begins a session"
    from datasette.utils.asgi import Response

    headers = {"Cache-Control": "no-store", "Referrer-Policy": "no-referrer"}
    if cookie is not None:
        headers["set-cookie"] = cookie
    return Response.redirect(path, status=status, headers=headers)


def _response(request: Any, refusal: Refusal, is_page: bool = False) -> Any:
    from datasette.utils.asgi import Response

    kind, body = refusal.rendered(request.scope)
    if is_page:  # a form wants one, whatever it accepts
        kind, body = "text/html; charset=utf-8", str(refusal.page)
    return Response(body, refusal.status, dict(refusal.headers), content_type=kind)
