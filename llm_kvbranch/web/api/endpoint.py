"""What every view of ours does: who may, what was sent, and what became of it.

The idea: a view is a function of a ``Call``, which raises what is wrong. Its answer
is sent by the call, streamed or whole.

This module does not know what is answered.
"""

from __future__ import annotations

import contextlib
import functools
import json
import sys
import time
import traceback
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from ...errors import OverloadedError
from ..serving.answers import Answer, Asked
from ..serving.served_model import Server, server_of
from .openai import (
    RequestError,
    about,
    as_request_error,
    chunk,
    completion,
    error_body,
    finish_reason,
    tool_calls,
    usage,
)
from .streams import Event, EventStream, attend, merged

_HEAD = ("GET", "HEAD")  # who may read may ask whether there is something to read
NOT_SERVED = (
    "No model is served here, the log can only be read: start llm kvbranch serve"
)


@dataclass
class Call:
    "A request, what was sent with it, and the server that is to answer"

    datasette: Any
    request: Any
    send: Any
    receive: Any
    server: Server
    body: Any = None

    @property
    def client(self) -> str:
        "Who is asking, for everybody to have a turn"
        actor = (self.request.actor or {}).get("id", "")
        address = (self.request.scope.get("client") or ("",))[0]
        return f"{actor} {address} {getattr(self.body, 'user', None) or ''}"

    async def answer(self, asked: list[Asked]) -> Any:
        "Answer as a chat completion, streamed or whole"
        answers: list[Answer] = []
        try:
            for each in asked:
                answers.append(Answer(self.server, self.datasette, each))
            if self.body.stream:
                return await self._stream(answers)
            return await self._whole(answers)
        finally:
            for answer in answers:
                answer.cancel()

    async def _whole(self, answers: list[Answer]) -> Any:
        async def work() -> None:
            async for _ in merged([answer.pieces() for answer in answers]):
                pass

        if not await attend(self.receive, self.server.stopping, work()):
            raise as_request_error(shutting_down())
        model = self.server.model.model_id
        return json_response(completion(answers, model, int(time.time())))

    async def _stream(self, answers: list[Answer]) -> None:
        await self._send(EventStream(self.send), self._events(answers))

    async def _send(self, stream: EventStream, events: AsyncGenerator[Event]) -> None:
        """Send events to their end, which may be an error.

        Raises one that comes before all of them, to be told by a status.
        """
        try:
            async with contextlib.aclosing(events):
                if not await attend(
                    self.receive, self.server.stopping, stream.run(events)
                ):
                    raise shutting_down()
        except Exception as error:
            if not stream.begun:
                raise
            await stream.put(told(error).body)
            await stream.end()

    async def _events(self, answers: list[Answer]) -> AsyncGenerator[Event]:
        "The events of OpenAI's stream"
        make = functools.partial(
            chunk, answers, self.server.model.model_id, int(time.time())
        )
        begun: set[int] = set()
        async for i, piece in merged([answer.pieces() for answer in answers]):
            answer = answers[i]
            delta: dict[str, Any]
            if i not in begun:
                begun.add(i)
                delta = {"role": "assistant", "content": piece}
            else:
                delta = {"content": piece} if piece else {}
            if not piece and (calls := tool_calls(answer)):
                delta = {**delta, "tool_calls": calls}
            each = {"index": i, "delta": delta, "finish_reason": None}
            more: dict[str, Any] = {}
            if not piece:
                each["finish_reason"] = finish_reason(answer.facts)
                more = about(answer)
            slot = answer.slot_id
            yield make([each], **{"slot_id": slot, "response_id": answer.id, **more})
        options = self.body.stream_options
        if options is not None and options.include_usage:
            yield make([], usage=usage(answers))
        yield "[DONE]"

    async def lines(self, events: AsyncGenerator[Event]) -> None:
        "Answer with lines of JSON as they come"
        await self._send(EventStream(self.send, lines=True), events)


View = Callable[[Call], Awaitable[Any]]


def view(method: str, action: str, schema: Any = None) -> Callable[[View], Any]:
    """A view for datasette: for one method, for those who may, with a checked body.

    ``schema`` is a pydantic model, or a function that gives one.
    """

    def wrap(function: View) -> Any:
        async def handle(datasette: Any, request: Any, send: Any, receive: Any) -> Any:
            try:
                call = await _call(datasette, request, send, receive)
                return await function(call)
            except Exception as error:
                return error_response(told(error), method)

        async def _call(datasette: Any, request: Any, send: Any, receive: Any) -> Call:
            from ..door.access import allowed

            check_method(request, method)
            if not await allowed(datasette, request.actor, action):
                raise RequestError(*_unknown(request))
            server = server_of(datasette)
            if server is None:
                raise RequestError(503, NOT_SERVED)
            call = Call(datasette, request, send, receive, server)
            if schema is not None:
                call.body = _parse(schema, await request.post_body())
            return call

        handle.__name__ = function.__name__
        handle.__doc__ = function.__doc__
        handle.schema, handle.method = schema, method  # type: ignore[attr-defined]
        return handle

    return wrap


def check_method(request: Any, method: str) -> None:
    "Raises RequestError for another method than the one that is wanted"
    if request.method != method and (method, request.method) != _HEAD:
        raise RequestError(405, f"Use {method} here", code="method_not_allowed")


def shutting_down() -> OverloadedError:
    return OverloadedError("The server is shutting down", 1)


def told(error: Exception) -> RequestError:
    """What a client is told of an error.

    One that nobody foresaw is for the terminal, too, without its text: that may be
    what somebody asked.
    """
    refused = as_request_error(error)
    if refused.status == 500:
        where = traceback.extract_tb(error.__traceback__)
        lines = [*traceback.format_list(where), f"{type(error).__name__}\n"]
        sys.stderr.write("".join(lines))
    return refused


def _unknown(request: Any) -> tuple[int, str]:
    if request.headers.get("authorization"):
        return 401, "This token is not the server's: llm kvbranch serve prints it"
    return 403, (
        "Sign in by the link that llm kvbranch serve prints, or send its token as "
        "Authorization: Bearer"
    )


def _parse(schema: Any, body: bytes) -> Any:
    "A request's body, checked; raises RequestError naming what is wrong"
    from pydantic import ValidationError

    try:
        text = body.decode(json.detect_encoding(body))
        data = json.loads(text)
        if "\\u" in text:  # may be half a character, which nothing can store
            json.dumps(data, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        raise RequestError(400, "The body is no JSON") from None
    if not isinstance(data, dict):
        raise RequestError(400, "The body is no JSON object")
    try:
        return schema.model_validate(data)
    except ValidationError as error:
        # Where several forms are allowed, the one that fits the furthest is meant
        worst = max(error.errors(), key=lambda each: len(each["loc"]))
        param = _path(data, worst["loc"], worst["type"] == "missing")
        raise RequestError(400, f"{param}: {worst['msg']}", param) from None


def _path(data: Any, location: tuple[int | str, ...], missing: bool) -> str:
    "A location as it is in the data, without the names of forms that were tried"
    path = []
    for i, part in enumerate(location):
        if isinstance(data, dict) and part in data:
            data = data[str(part)]
        elif isinstance(data, list) and isinstance(part, int):
            data = data[part]
        elif not (missing and i == len(location) - 1):
            continue
        path.append(str(part))
    return ".".join(path)


def json_response(data: Any, status: int = 200, headers: Any = None) -> Any:
    from datasette import Response

    headers = {"cache-control": "no-store", **(headers or {})}
    return Response(
        json.dumps(data),
        status=status,
        headers=headers,
        content_type="application/json; charset=utf-8",
    )


def error_response(error: RequestError, method: str = "") -> Any:
    headers = {"allow": method} if error.status == 405 else {}
    if error.retry_after is not None:
        headers["retry-after"] = str(error.retry_after)
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    return json_response(error.body, error.status, headers)


__all__ = ["Call", "error_body", "error_response", "json_response", "view"]
