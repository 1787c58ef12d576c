"""The login link, which works once and needs no password.

The idea: whoever can read the terminal that runs the server may use its pages. The
link sets datasette's own cookie for ``root``, signed with the server's secret.

A client with the API token can request another link by POST, for a second browser,
without restarting the server.

This module does not know how a request was let in.
"""

from __future__ import annotations

from typing import Any

from ..compat import allowed
from .door import HOME, door_of
from .guard import Refusal
from .permissions import GENERATE

_A_MONTH = 30 * 24 * 3600


async def log_in(datasette: Any, request: Any) -> Any:
    from datasette.utils.asgi import Response

    door = door_of(datasette)
    if door is None:
        return _refuse(request, 404, "There is no login here: see llm kvbranch serve")
    if request.method == "POST":
        if not await allowed(datasette, request.actor, GENERATE):
            return _refuse(request, 403, "This token may not log in")
        return Response.json({"path": door.new_link()})
    if request.method != "GET" or not door.use_link(request.args.get("token") or ""):
        return _refuse(
            request,
            403,
            "This link has been used or replaced by a newer one. "
            "llm kvbranch serve prints a new one whenever it starts",
        )
    response = Response.redirect(datasette.urls.path(HOME))
    response.headers["Cache-Control"] = "no-store"
    response.headers["Referrer-Policy"] = "no-referrer"
    response.set_cookie(
        "ds_actor",
        datasette.sign({"a": {"id": "root"}}, "actor"),
        max_age=_A_MONTH,  # it ends with the server's secret, if that is a new one
        httponly=True,
        samesite="lax",
    )
    return response


def _refuse(request: Any, status: int, message: str) -> Any:
    from datasette.utils.asgi import Response

    kind, body = Refusal(status, message, "login_refused").rendered(request.scope)
    return Response(body, status=status, content_type=kind)
