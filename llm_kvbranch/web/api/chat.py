"""Chat completions: prompts answered as a whole or as a stream.

The idea: every endpoint that generates turns its request into AnswerRequests, one per
choice, and responds as OpenAI's chat API does.

This module does not know how answers are generated.
"""

from __future__ import annotations

import functools
import time
from collections.abc import AsyncGenerator
from typing import Any

from ..door import GENERATE
from ..errors import RequestError
from ..serving import Answer, AnswerRequest
from . import schemas
from .endpoint import Call, json_response, view
from .openai import (
    about,
    chunk,
    completion,
    delta,
    finish_reason,
    json_schema_of,
    messages_of,
    must_call,
    tools_of,
    usage,
)
from .streams import Event, merged


@view("POST", GENERATE, schemas.ChatRequest)
async def chat_completions(call: Call) -> Any:
    "Answer messages: OpenAI's chat API"
    body = call.body
    messages = messages_of(body)
    if messages[-1].role == "assistant":
        raise RequestError(
            400, "The last message is the assistant's: there is nothing to answer"
        )
    last = next((m for m in reversed(body.messages) if m.role == "user"), None)
    name = last.text() if last else None
    names = must_call(body)
    is_named = bool(names) and not isinstance(body.tool_choice, str)
    return await respond(
        call,
        messages=messages,
        name=name,
        tools=tools_of(body),
        must_call=names,
        # Clients that name a function expect one call
        parallel_calls=body.parallel_tool_calls is not False and not is_named,
    )


@view("POST", GENERATE, schemas.GenerateRequest)
async def generate(call: Call) -> Any:
    "Start a conversation"
    import llm

    body = call.body
    messages = [llm.system(body.system)] if body.system else []
    messages.append(llm.user(body.prompt))
    return await respond(call, messages=messages, name=body.prompt)


async def respond(call: Call, **fields: Any) -> Any:
    "Generate as many answers as the body wants; ``fields`` are those of AnswerRequest"
    answers: list[Answer] = []
    try:
        for request in _requests(call, **fields):
            answers.append(Answer(call.server, call.datasette, request))
        if call.body.stream:
            return await call.stream(_events(call, answers))
        return await _whole(call, answers)
    finally:
        for answer in answers:
            answer.cancel()


def _requests(call: Call, **fields: Any) -> list[AnswerRequest]:
    "One request per answer, each with a seed of its own"
    options, body = call.body.options(), call.body
    requests = []
    for nth in range(body.n or 1):
        chosen = dict(options)
        if "seed" in chosen:
            chosen["seed"] = (chosen["seed"] + nth) % 0xFFFFFFFF
        requests.append(
            AnswerRequest(
                options=chosen,
                # A schema is for text, and an answer that must be calls has none
                schema=None
                if fields.get("must_call")
                else json_schema_of(body.response_format),
                client=call.client,
                nth=nth,
                **fields,
            )
        )
    return requests


async def _whole(call: Call, answers: list[Answer]) -> Any:
    async def work() -> None:
        async for _ in merged([answer.events() for answer in answers]):
            pass

    await call.finish(work())
    model = call.server.model.model_id
    return json_response(completion(answers, model, int(time.time())))


async def _events(call: Call, answers: list[Answer]) -> AsyncGenerator[Event]:
    "The events of OpenAI's stream"
    model = call.server.model.model_id
    make = functools.partial(chunk, answers, model, int(time.time()))
    begun: set[int] = set()
    n_calls = [0] * len(answers)
    async for i, event in merged([answer.events() for answer in answers]):
        answer = answers[i]
        said = delta(event, n_calls[i])
        n_calls[i] += "tool_calls" in said
        if i not in begun:
            begun.add(i)
            said = {"role": "assistant", **(said or {"content": ""})}
        each = {"index": i, "delta": said, "finish_reason": None}
        more: dict[str, Any] = {}
        if event is None:
            each["finish_reason"] = finish_reason(answer.facts)
            more = about(answer)
        slot = answer.slot_id
        yield make([each], **{"slot_id": slot, "response_id": answer.id, **more})
    options = call.body.stream_options
    if options is not None and options.include_usage:
        yield make([], usage=usage(answers))
    yield "[DONE]"
