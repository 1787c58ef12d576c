"""What a client is told when one of our routes fails in a way that nobody foresaw.

The invariant: no text of the exception, which may hold a prompt or a path.
"""

from __future__ import annotations

from typing import Any

from ..door.access import is_ours


def answer(datasette: Any, request: Any, exception: Exception) -> Any:
    "An error in OpenAI's form for our paths, None to leave it to datasette"
    if not is_ours(datasette, request.scope):
        return None
    from datasette.utils.asgi import Base400, NotFound, Response

    expected = isinstance(exception, Base400)
    status = getattr(exception, "status", 500) if expected else 500
    message = str(exception) if expected else "The server failed at this request"
    if isinstance(exception, NotFound):
        message = "There is nothing at this path: see /openapi.json"
    error = {
        "message": message,
        "type": "invalid_request_error" if expected else "server_error",
        "param": None,
        "code": None,
    }
    return Response.json({"error": error}, status=status)
