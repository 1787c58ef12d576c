"""OpenAI's chat API: its requests as AnswerRequests, its answers by a Writer.

The idea: the endpoints that branch answer in this form as well.

This module does not know how answers are generated.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ...chat import Event
from ..door import GENERATE
from ..errors import RequestError
from ..serving import Answer, AnswerRequest
from . import schemas
from .answering import Writer, respond
from .endpoint import Call, view
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
from .streams import Sent


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
    return await answer(
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
    return await answer(call, messages=messages, name=body.prompt)


async def answer(call: Call, **fields: Any) -> Any:
    "Generate as many answers as the body wants; ``fields`` are those of AnswerRequest"
    requests = _requests(call, **fields)
    return await respond(call, requests, ChatWriter, bool(call.body.stream))


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


class ChatWriter(Writer):
    "Writes a chat completion, or its chunks"

    def __init__(self, call: Call, answers: Sequence[Answer]):
        super().__init__(call, answers)
        self._begun: set[int] = set()
        self._n_calls = [0] * len(answers)

    def whole(self) -> Any:
        return completion(self.answers, self.model, self.created)

    def said(self, index: int, event: Event) -> Iterable[Sent]:
        said = delta(event, self._n_calls[index])
        self._n_calls[index] += "tool_calls" in said
        return [self._chunk(index, said)]

    def ended(self, index: int) -> Iterable[Sent]:
        answer = self.answers[index]
        reason, more = finish_reason(answer.facts), about(answer)
        return [self._chunk(index, {}, reason, **more)]

    def end(self) -> Iterable[Sent]:
        options = self.call.body.stream_options
        if options is not None and options.include_usage:
            yield self._made([], usage=usage(self.answers))
        yield "[DONE]"

    def _chunk(
        self, index: int, said: dict[str, Any], reason: str | None = None, **more: Any
    ) -> dict[str, Any]:
        if index not in self._begun:
            self._begun.add(index)
            said = {"role": "assistant", **(said or {"content": ""})}
        answer = self.answers[index]
        made = {"index": index, "delta": said, "finish_reason": reason}
        known = {"slot_id": answer.slot_id, "response_id": answer.id}
        return self._made([made], **{**known, **more})

    def _made(self, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        return chunk(self.answers, self.model, self.created, choices, **more)
