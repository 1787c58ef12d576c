"""The one decorator of all endpoints: method, permission, body and errors.

The idea: an endpoint is a function of a ``Call`` that returns a response, or raises
what is wrong. The decorator makes a datasette view of it.

This module does not know what an endpoint answers.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from ...errors import TimeLimitError, UnavailableError
from ...log import History, deadline
from ..compat import allowed, is_interrupted
from ..errors import Form, RequestError, openai_form, to_request_error
from ..serving import Log, Server, find_log, server_of
from .streams import attend, leaving

_HEAD = ("GET", "HEAD")  # HEAD is allowed wherever GET is
Result = TypeVar("Result")
LESS = "ask for less, or have the limit raised"
NOT_SERVED = (
    "No model is served here, the log can only be read: start llm kvbranch serve"
)


@dataclass
class Call:
    "An authorized request, its checked body, and the log that it is about"

    datasette: Any
    request: Any
    send: Any
    receive: Any
    log: Log
    form: Form = openai_form
    body: Any = None

    @property
    def server(self) -> Server:
        "The served model; raises RequestError where there is none"
        server = self.log.server
        if server is None:
            raise RequestError(503, NOT_SERVED)
        return server

    @property
    def client(self) -> str:
        "Identifies the client, since clients take turns"
        actor = (self.request.actor or {}).get("id", "")
        address = (self.request.scope.get("client") or ("",))[0]
        return f"{actor} {address} {getattr(self.body, 'user', None) or ''}"

    async def read(
        self, function: Callable[[History], Result], hint: str = LESS
    ) -> Result:
        """The result of a function of the log, run in one of datasette's threads.

        It ends when the client leaves. Raises RequestError, which gives the ``hint``,
        when it takes longer than datasette's time limit.
        """
        until = deadline.Deadline(self.datasette.setting("sql_time_limit_ms") / 1000)
        reading = asyncio.ensure_future(self.log.read(function, until))
        leaves = asyncio.ensure_future(leaving(self.receive))
        try:
            await asyncio.wait([reading, leaves], return_when=asyncio.FIRST_COMPLETED)
            if not reading.done():
                until.cancel()
            return await reading
        except TimeLimitError:
            raise _time_limit(self.datasette, hint) from None
        finally:
            until.cancel()  # this task may have been cancelled
            leaves.cancel()

    async def read_json(
        self, function: Callable[[History], Any], hint: str = LESS
    ) -> Any:
        "The response with the result of a function of the log, as JSON"
        text = await self.read(lambda history: json.dumps(function(history)), hint)
        return _json_text(text)

    async def finish(self, work: Any) -> None:
        "Do some work; raises an error if the client leaves or the server stops first"
        if not await attend(self.receive, self.server.stopping, work):
            raise UnavailableError()


Endpoint = Callable[[Call], Awaitable[Any]]
Refuse = Callable[[Any, Any, Exception], Awaitable[Any]]


def view(
    method: str,
    action: str | None = None,
    schema: Any = None,
    refuse: Refuse | None = None,
    form: Form = openai_form,
) -> Callable[[Endpoint], Any]:
    """Make a datasette view of a function of a Call.

    With ``action``, it is for actors who may do that, and needs a served model.
    Without, it is for actors who may see the log that ``db`` names, and only reads.
    ``schema`` is the pydantic model of the body. An error is printed in a ``form``,
    unless ``refuse`` makes the response.
    """

    def wrap(function: Endpoint) -> Any:
        async def handle(datasette: Any, request: Any, send: Any, receive: Any) -> Any:
            try:
                check_method(request, method)
                log = await _authorize(datasette, request, action)
                call = Call(datasette, request, send, receive, log, form)
                if schema is not None:
                    call.body = _parse(schema, await request.post_body())
                return await function(call)
            except Exception as error:
                told = _time_limit(datasette) if is_interrupted(error) else error
                if refuse is not None:
                    return await refuse(datasette, request, told)
                return error_response(to_request_error(told), form)

        handle.__name__, handle.__doc__ = function.__name__, function.__doc__
        handle.form = form  # type: ignore[attr-defined]
        if refuse is None:  # part of the API, which OpenAPI describes
            handle.method, handle.schema = method, schema  # type: ignore[attr-defined]
        return handle

    return wrap


def form_of_view(view: Any) -> Form:
    "The form in which a view prints errors"
    found: Form = getattr(view, "form", openai_form)
    return found


def _time_limit(datasette: Any, hint: str = LESS) -> RequestError:
    limit = datasette.setting("sql_time_limit_ms")
    return RequestError(
        400,
        f"This took longer than datasette's limit of {limit:,} ms (its setting "
        f"sql_time_limit_ms): {hint}",
        code="time_limit",
    )


def check_method(request: Any, method: str) -> None:
    "Raises RequestError if a request uses another method"
    if request.method != method and (method, request.method) != _HEAD:
        raise RequestError(
            405, f"Use {method} here", None, "method_not_allowed", {"allow": method}
        )


async def _authorize(datasette: Any, request: Any, action: str | None) -> Log:
    "The log that a request is about, if the actor may do what it asks for"
    if action is None:
        return await find_log(datasette, request)
    if await allowed(datasette, request.actor, action):
        server = server_of(datasette)
        if server is None:
            raise RequestError(503, NOT_SERVED)
        return Log(datasette, server.database)
    if request.headers.get("authorization") and not request.actor:
        raise RequestError(
            401, "This is not the server's token: llm kvbranch serve prints it"
        )
    raise RequestError(
        403,
        "Log in with the link that llm kvbranch serve prints, or send its token as "
        "Authorization: Bearer",
    )


def _parse(schema: Any, body: bytes) -> Any:
    "A request's body, validated; raises RequestError that names what is wrong"
    from pydantic import ValidationError

    try:
        text = body.decode(json.detect_encoding(body))
        data = json.loads(text)
        if "\\u" in text:  # may be a lone surrogate, which SQLite cannot store
            json.dumps(data, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        raise RequestError(400, "The body is not valid JSON") from None
    if not isinstance(data, dict):
        raise RequestError(400, "The body is not a JSON object")
    try:
        return schema.model_validate(data)
    except ValidationError as error:
        # Of the forms that a value may take, report on the one that fits furthest
        worst = max(error.errors(), key=lambda each: len(each["loc"]))
        param = _path(data, worst["loc"], worst["type"] == "missing")
        why = worst["msg"].removeprefix("Value error, ")
        raise RequestError(400, f"{param}: {why}", param) from None


def _path(data: Any, location: tuple[int | str, ...], missing: bool) -> str:
    "A location in the data, without pydantic's names for the forms that it tried"
    path = []
    for i, part in enumerate(location):
        if isinstance(data, dict) and part in data:
            data = data[str(part)]
        elif isinstance(data, list) and isinstance(part, int) and part < len(data):
            data = data[part]
        elif not (missing and i == len(location) - 1):
            continue
        path.append(str(part))
    return ".".join(path)


def json_response(data: Any, status: int = 200, headers: Any = None) -> Any:
    return _json_text(json.dumps(data), status, headers)


def _json_text(text: str, status: int = 200, headers: Any = None) -> Any:
    from datasette import Response

    headers = {"cache-control": "no-store", **(headers or {})}
    return Response(
        text,
        status=status,
        headers=headers,
        content_type="application/json; charset=utf-8",
    )


def error_response(error: RequestError, form: Form = openai_form) -> Any:
    headers = dict(error.headers)
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    return json_response(form(error), error.status, headers)


def failure_response(
    datasette: Any, exception: Exception, form: Form = openai_form
) -> Any:
    "The response to an exception outside of any endpoint, whose text it may not show"
    from datasette.utils.asgi import Base400, NotFound, Response

    if is_interrupted(exception):
        return error_response(_time_limit(datasette), form)
    expected = isinstance(exception, Base400)
    status = getattr(exception, "status", 500) if expected else 500
    message = str(exception) if expected else "The server failed to answer this request"
    if isinstance(exception, NotFound):
        message = "There is nothing at this path"
    return Response.json(form(RequestError(status, message)), status=status)
