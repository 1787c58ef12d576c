"""The protocol of client.py: answers for other processes of the same user.

The idea: the other process gets an answer's events and facts, logs the answer itself,
and then says so; only then is the state stored.

The invariant: a request names no file and no address. llm reads an attachment's path
when it hashes a message, so there are none here; nor are there settings of the model.

This module does not know the log.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncGenerator
from types import SimpleNamespace
from typing import Annotated, Any, Literal, Optional, Union

import llm
from pydantic import BaseModel, ConfigDict, Field, field_validator

from ...chat import event_to_json
from ...inference import HostedAnswer
from ...model import request_of
from ...models import KVLlamaOptions
from ..door import GENERATE
from ..errors import RequestError
from .answering import stream_events
from .endpoint import Call, json_response, view
from .streams import Sent

# Limits for answers that are not logged yet and may hold rows in memory until then.
# A command logs its answer at once, or never.
_MOST = 256
_SECONDS = 120


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")

    provider_metadata: Optional[dict[str, Any]] = None


class _Text(_Strict):
    type: Literal["text"]
    text: str


class _Reasoning(_Strict):
    type: Literal["reasoning"]
    text: str
    redacted: bool = False


class _ToolCall(_Strict):
    type: Literal["tool_call"]
    name: str
    arguments: dict[str, Any]
    tool_call_id: Optional[str] = None
    server_executed: bool = False


class _ToolResult(_Strict):
    type: Literal["tool_result"]
    name: str
    output: str
    tool_call_id: Optional[str] = None
    server_executed: bool = False
    exception: Optional[str] = None


class _Message(_Strict):
    "A message as llm's to_dict() writes it, without attachments"

    role: str
    parts: list[
        Annotated[
            Union[_Text, _Reasoning, _ToolCall, _ToolResult],
            Field(discriminator="type"),
        ]
    ] = []

    @field_validator("parts", mode="before")
    @classmethod
    def _no_attachments(cls, value: Any) -> Any:
        for part in value if isinstance(value, list) else ():
            if isinstance(part, dict) and part.get("type") == "attachment":
                raise ValueError(
                    "kvllama does not support message parts of type attachment"
                )
        return value

    def message(self) -> Any:
        given: Any = self.model_dump(exclude_unset=True)
        return llm.parts.Message.from_dict(given)


class RunRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")

    messages: list[_Message]
    options: KVLlamaOptions
    schema_: dict[str, Any] | None = None
    tools: list[dict[str, Any]] = []


class CommitRequest(BaseModel):
    ticket: str
    response_id: str
    thread_id: str | None = None


class TailRequest(BaseModel):
    text: str
    n: Annotated[int, Field(ge=0, le=100_000)]


@view("POST", GENERATE, RunRequest)
async def run(call: Call) -> Any:
    "Answer llm messages, with kvllama's options; the client logs the answer"
    body, server = call.body, call.server
    try:
        messages = [each.message() for each in body.messages]
        prompt = SimpleNamespace(messages=messages, schema=body.schema_)
        request = request_of(prompt, body.options, server.host.sampling, body.tools)
    except (ValueError, KeyError, TypeError) as error:
        raise RequestError(400, str(error)) from None

    async def events() -> AsyncGenerator[Sent]:
        last = None
        stream = server.host.stream(request, call.client)
        async with contextlib.aclosing(stream) as said:
            async for answer, event in said:
                last = answer
                if event is not None:
                    yield event_to_json(event)
        if last is None or not last.facts:
            raise RequestError(400, "The answer was cancelled before it began")
        yield {
            "facts": last.facts,
            "name": server.host.name,
            "ticket": _keep(server.uncommitted, last),
        }

    def failed(error: RequestError) -> list[Sent]:
        return [call.form(error)]

    return await stream_events(call, events(), failed, lines=True)


def _keep(uncommitted: dict[str, HostedAnswer], answer: HostedAnswer) -> str:
    while len(uncommitted) >= _MOST:
        del uncommitted[next(iter(uncommitted))]
    name = secrets.token_urlsafe(16)
    uncommitted[name] = answer
    asyncio.get_running_loop().call_later(_SECONDS, uncommitted.pop, name, None)
    return name


@view("POST", GENERATE, CommitRequest)
async def commit(call: Call) -> Any:
    "Store the state of an answer that was logged"
    body, server = call.body, call.server
    answer = server.uncommitted.pop(body.ticket, None)
    if answer is None:
        raise RequestError(404, "There is no such answer to store")
    future = server.host.commit(answer, body.response_id, body.thread_id)
    stored = await asyncio.wrap_future(future)
    return json_response({"stored": bool(stored)})


@view("POST", GENERATE, TailRequest)
async def tail(call: Call) -> Any:
    "The text of the last tokens of a text"
    future = call.server.host.tail(call.body.text, call.body.n)
    return json_response({"text": await asyncio.wrap_future(future)})
