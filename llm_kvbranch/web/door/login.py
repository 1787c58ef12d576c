"""The link that logs a person in: once, and without a password.

The idea: who can read the terminal that the server was started in may use its pages.
The link gives datasette's own cookie for ``root``, signed with the server's secret,
and is used up by that.

A client that holds the API token can ask for another link with POST: a second
browser needs one, and the server need not be started anew for it.
"""

from __future__ import annotations

import re
from typing import Any

from .access import HOME, LOGIN, door_of
from .guard import Refusal

_A_MONTH = 30 * 24 * 3600


async def login(datasette: Any, request: Any) -> Any:
    from datasette.utils.asgi import Response

    door = door_of(datasette)
    if door is None:
        return _refuse(request, 404, "Nobody logs in here: see llm kvbranch serve")
    if request.method == "POST":  # of somebody known: nobody else gets here
        return Response.json({"path": door.new_link()})
    if request.method != "GET" or not door.use_link(request.args.get("token") or ""):
        return _refuse(
            request,
            403,
            "This link was used before, or another one was made after it. "
            "llm kvbranch serve prints one whenever it starts",
        )
    response = Response.redirect(datasette.urls.path(HOME))
    response.headers["Cache-Control"] = "no-store"
    response.headers["Referrer-Policy"] = "no-referrer"
    response.set_cookie(
        "ds_actor",
        datasette.sign({"a": {"id": "root"}}, "actor"),
        max_age=_A_MONTH,  # no longer than the server runs: its secret ends with it
        httponly=True,
        samesite="lax",
    )
    return response


ROUTE = (re.escape(LOGIN) + "$", login)


def _refuse(request: Any, status: int, message: str) -> Any:
    from datasette.utils.asgi import Response

    kind, body = Refusal(status, message, "login_refused").rendered(request.scope)
    return Response(body, status=status, content_type=kind)
