"""Sessions: a browser stays logged in, over restarts of the server too.

The idea: a cookie of this plugin's own says who logged in and until when. It is signed
with a secret that is kept beside the API token. Browsers send cookies of 127.0.0.1 to
all of its ports, so the cookie is named by the port: logging in to another server does
not end this session.

The invariant: no session outlives the API token, nor the token that was used to log in.

This module does not know how somebody logged in, nor what a session opens.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from itsdangerous import BadSignature, URLSafeSerializer

LIFETIME = 30 * 24 * 3600
_OF_TOKEN = ("token", "token_expires")  # datasette refuses new tokens to such actors


@dataclass(frozen=True)
class Session:
    "Who has logged in, and until when"

    actor: dict[str, Any]
    ends: float

    @property
    def has_ended(self) -> bool:
        return time.time() >= self.ends


def new_session(actor: dict[str, Any]) -> Session:
    "A session of root for an actor with a token, which ends when the token expires"
    ends = time.time() + LIFETIME
    expires = actor.get("token_expires")
    if isinstance(expires, (int, float)):
        ends = min(ends, expires)
    kept = {name: actor[name] for name in _OF_TOKEN if name in actor}
    return Session({"id": "root", **kept}, ends)


class Sessions:
    "The sessions of one server; ``cookie`` is the name of its cookie"

    def __init__(self, secret: str, token: str, port: int):
        self.cookie = f"kvbranch_{port}"
        self._signer = URLSafeSerializer(f"{secret}\n{token}", salt=self.cookie)

    def find(self, cookies: str) -> Session | None:
        "The session in a Cookie header"
        # http.cookies gives up at what other programs of 127.0.0.1 may have set, and of
        # two cookies with one name it drops the first
        for pair in cookies.split(";"):
            name, _, value = pair.strip().partition("=")
            session = self._read(value) if name == self.cookie else None
            if session is not None and not session.has_ended:
                return session
        return None

    def _read(self, value: str) -> Session | None:
        try:
            found = self._signer.loads(value)
        except BadSignature:
            return None
        return Session(found["actor"], found["ends"])

    def header(self, session: Session) -> str:
        "The Set-Cookie header that begins a session"
        left = int(session.ends - time.time())
        value = self._signer.dumps({"actor": session.actor, "ends": session.ends})
        return self._cookie(str(value), max(left, 0))

    def end(self) -> str:
        "The Set-Cookie header that ends the session of a browser"
        return self._cookie("", 0)

    def _cookie(self, value: str, max_age: int) -> str:
        # A Strict one would not be sent when the file of --open leads to the link
        return (
            f"{self.cookie}={value}; Path=/; Max-Age={max_age}; HttpOnly; SameSite=lax"
        )
