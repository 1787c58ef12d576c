"""Who may do what: the holder of the API token, and the person who has logged in.

The idea: two actors are known, ``root`` (a signed cookie of datasette's) and
``kvbranch-api`` (the token as a bearer). Under ``llm kvbranch serve`` there is a door
in front of the whole instance, which lets in these two and nobody else: other
plugins' routes do not ask who is there, and the log is as private as a diary.

The invariant: denied unless allowed, and a token is never compared byte by byte.

This module does not know what is done behind the door.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hmac
import os
import re
import secrets
import stat
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ...errors import SettingError
from ...settings import data_directory
from .guard import LOOPBACK, Guard, Refusal, Scope, host_name, paths_of

READ, GENERATE = "kvbranch-read", "kvbranch-generate"
ACTIONS = {
    READ: "Read conversations and what their state is",
    GENERATE: "Have the model answer, and log it",
}
API_ACTOR = "kvbranch-api"
KNOWN = frozenset({"root", API_ACTOR})
HOME = "/-/kvbranch"  # of the pages, and of what is ours alone
LOGIN = f"{HOME}/login"
PLUGIN = "llm-kvbranch"

# All that may ever be ours, with or without a route; other routes add themselves
_OURS = ("/v1(/|$)", HOME)
_ATTRIBUTE = "_llm_kvbranch_door"
_TOKEN = re.compile(r"[!-~]+")


class Door:
    """What ``llm kvbranch serve`` lets in: its token, its host names, one login link.

    Who still sends something when ``closing`` is set is not waited for.
    """

    def __init__(self, token: str, hosts: Iterable[str] = LOOPBACK):
        self.hosts = frozenset(hosts)
        self.closing = asyncio.Event()
        self._token = token
        self._link: str | None = None

    def fits(self, token: str) -> bool:
        return _same(token, self._token)

    def new_link(self) -> str:
        "A path that logs in once, and the one before it no more"
        self._link = secrets.token_urlsafe(32)
        return f"{LOGIN}?token={self._link}"

    def use_link(self, given: str) -> bool:
        "Whether the link is the last that was made; it is used up by that"
        if self._link is None or not _same(given, self._link):
            return False
        self._link = None
        return True


def _same(given: str, wanted: str) -> bool:
    return hmac.compare_digest(given.encode(), wanted.encode())


def close_door(datasette: Any, door: Door) -> None:
    "Let nobody into a datasette whom the door does not know"
    setattr(datasette, _ATTRIBUTE, door)


def door_of(datasette: Any) -> Door | None:
    "The door of a datasette; None where it was started without this plugin's command"
    found: Door | None = getattr(datasette, _ATTRIBUTE, None)
    return found


def guarded(app: Any, datasette: Any) -> Guard:
    """The guard around an instance.

    All of it behind a door. Elsewhere this plugin's paths alone, which may be reached
    by the names in its setting ``allowed_hosts``, too.
    """

    def ours(scope: Scope) -> bool:
        return is_ours(datasette, scope)

    if door := door_of(datasette):

        async def admit(scope: Scope) -> Refusal | None:
            return await _admit(datasette, scope)

        return Guard(
            app, ours, door.hosts, everything=True, admit=admit, closing=door.closing
        )
    config = datasette.plugin_config(PLUGIN) or {}
    names = config.get("allowed_hosts") or []
    return Guard(app, ours, LOOPBACK | host_names(names))


def is_ours(datasette: Any, scope: Scope) -> bool:
    "Whether a path is one of this plugin's, under any name that datasette finds it"
    return any(
        pattern.match(path)
        for path in paths_of(scope, datasette.setting("base_url"))
        for pattern in _patterns()
    )


@functools.cache
def _patterns() -> list[re.Pattern[str]]:
    from ..api.routes import ROUTES

    return [re.compile(pattern) for pattern in (*_OURS, *(each for each, _ in ROUTES))]


def host_names(names: Iterable[str] | str) -> frozenset[str]:
    "Names as a Host header has them; raises SettingError"
    found = set()
    for name in [names] if isinstance(names, str) else names:
        bare = f"[{name}]" if name.count(":") > 1 and name[:1] != "[" else name
        host = host_name(bare)
        if host is None:
            raise SettingError(f"{name!r} is no host name: write it like box.example")
        found.add(host)
    return frozenset(found)


async def _admit(datasette: Any, scope: Scope) -> Refusal | None:
    "Why somebody may not come in, None if they may"
    if scope["path"] == LOGIN and scope["method"] == "GET":
        return None
    from datasette.utils.asgi import Request

    request = Request(scope, None)
    if is_known(await _actor_of(datasette, request)):
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


async def _actor_of(datasette: Any, request: Any) -> dict[str, Any] | None:
    "The actor as datasette itself finds it further in"
    from datasette.plugins import pm
    from datasette.utils import await_me_maybe

    actor, refused = None, False
    for result in pm.hook.actor_from_request(datasette=datasette, request=request):
        try:
            found = await await_me_maybe(result)
        except Exception as error:
            if type(error).__name__ != "TokenInvalid":  # datasette 1.0 has it
                raise
            refused = True
        else:
            actor = actor or found
    return None if refused else actor or request.scope.get("actor")


def is_known(actor: dict[str, Any] | None) -> bool:
    return actor is not None and actor.get("id") in KNOWN


def actor_of_token(datasette: Any, authorization: str | None) -> dict[str, str] | None:
    "The API's actor for whoever sends the token"
    door = door_of(datasette)
    scheme, _, token = (authorization or "").partition(" ")
    if door is None or scheme.lower() != "bearer" or not door.fits(token.strip()):
        return None
    return {"id": API_ACTOR}


async def allowed(datasette: Any, actor: dict[str, Any] | None, action: str) -> bool:
    "Whether somebody may do one of ACTIONS; nobody may by default"
    if hasattr(datasette, "allowed"):  # datasette 1.0
        return bool(await datasette.allowed(action=action, actor=actor))
    return bool(await datasette.permission_allowed(actor, action, default=False))


def check_token(token: str) -> str:
    "A token as it can be sent in a header; raises SettingError"
    if not _TOKEN.fullmatch(token):
        raise SettingError(
            "The token must be letters, digits and signs without spaces, such as "
            + secrets.token_urlsafe(24)
        )
    return token


def kept_token() -> str:
    """The token of this user, made once: clients go on working after a restart.

    One that somebody else could have read is replaced. Raises SettingError.
    """
    path = data_directory() / "token"
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if token := _read_private(path):
            return token
        return _write_private(path, "kv-" + secrets.token_urlsafe(32))
    except OSError as error:
        raise SettingError(
            f"Cannot keep the API token in {path}: {error.strerror}"
        ) from None


def _read_private(path: Path) -> str | None:
    "A token that only we can have read and written"
    with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
        status = os.fstat(file.fileno())
        mine = not hasattr(os, "getuid") or status.st_uid == os.getuid()
        token = file.read(1000).decode("latin-1").strip()
        if (
            mine
            and not stat.S_IMODE(status.st_mode) & 0o077
            and _TOKEN.fullmatch(token)
        ):
            return token
    return None


def _write_private(path: Path, token: str) -> str:
    "Write a token at once and whole, or find the one that another process wrote"
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".token")
    try:
        with open(descriptor, "w") as file:
            file.write(token + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    return _read_private(path) or token
