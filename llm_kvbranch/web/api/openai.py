"""OpenAI's chat API: its requests as llm messages, answers as its objects.

This module does not know how an answer is generated, or HTTP.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import llm

from ..errors import RequestError

if TYPE_CHECKING:
    from ...chat import Call, Event
    from ..serving import Answer
    from .schemas import ChatMessage, ChatRequest

# The facts of a generation that a choice has beside OpenAI's usage
_FACTS = (
    "prompt_tokens",
    "restored_tokens",
    "resident_tokens",
    "prefilled_tokens",
    "generated_tokens",
    "thinking_tokens",
    "thinking_cut",
    "miss_reason",
    "restore_ms",
    "prefill_ms",
    "queue_ms",
    "restarts",
    "ttft_ms",
    "decode_tps",
    "state_bytes",
)


def messages_of(request: ChatRequest) -> list[Any]:
    "A request's messages as llm has them; raises RequestError"
    messages = []
    names: dict[str, str] = {}  # of tools by call, since results do not repeat them
    for i, message in enumerate(request.messages):
        names |= {c.id: c.function.name for c in message.tool_calls or () if c.id}
        name = message.name or names.get(message.tool_call_id or "", "")
        messages.append(_message(message, f"messages.{i}", name))
    return messages


def tools_of(request: ChatRequest) -> list[Any]:
    "A request's tools as llm has them, without implementations"
    if request.tool_choice == "none":
        return []
    return [
        llm.Tool(
            name=tool.function.name,
            description=tool.function.description,
            input_schema=tool.function.parameters or {"type": "object"},
        )
        for tool in request.tools or ()
    ]


def must_call(request: ChatRequest) -> tuple[str, ...]:
    "The tools of which the answer must call one; raises RequestError"
    choice, names = request.tool_choice, [t.function.name for t in request.tools or ()]
    if choice is None or choice in ("none", "auto"):
        return ()
    if not names:
        raise RequestError(
            400, "tool_choice needs tools: there are none", "tool_choice"
        )
    for other in ("grammar", "regex"):
        if getattr(request, other) is not None:
            raise RequestError(
                400, f"tool_choice and {other} exclude each other: leave one out", other
            )
    if isinstance(choice, str):
        return tuple(names)
    if (name := choice.function.name) not in names:
        raise RequestError(
            400, f"tool_choice names {name!r}, which is not in tools", "tool_choice"
        )
    return (name,)


def _message(message: ChatMessage, param: str, name: str) -> Any:
    text = message.text()
    if message.role in ("system", "developer"):
        return llm.system(text)
    if message.role == "user":
        return llm.user(text)
    if message.role == "assistant":
        return _assistant(message, text, param)
    if not message.tool_call_id:
        raise RequestError(400, "a tool message needs a tool_call_id", param)
    part = llm.parts.ToolResultPart(
        name=name, output=text, tool_call_id=message.tool_call_id
    )
    return llm.parts.Message(role="tool", parts=[part])


def _assistant(message: ChatMessage, text: str, param: str) -> Any:
    parts: list[Any] = []
    if message.reasoning_content:
        parts.append(llm.parts.ReasoningPart(text=message.reasoning_content))
    if text:
        parts.append(llm.parts.TextPart(text=text))
    for call in message.tool_calls or ():
        try:
            arguments = json.loads(call.function.arguments or "{}")
        except ValueError:
            arguments = None
        if not isinstance(arguments, dict):
            raise RequestError(
                400, "a tool call's arguments are not a JSON object", param
            )
        parts.append(
            llm.parts.ToolCallPart(
                name=call.function.name, arguments=arguments, tool_call_id=call.id
            )
        )
    return llm.parts.Message(role="assistant", parts=parts)


def json_schema_of(response_format: Any) -> dict[str, Any] | None:
    "The JSON schema that an answer must match; raises RequestError"
    if response_format is None or response_format.type == "text":
        return None
    if response_format.type == "json_object":
        given: dict[str, Any] | None = response_format.schema_
        return {"type": "object"} if given is None else given
    if response_format.json_schema is None:
        raise RequestError(
            400, "response_format json_schema needs a json_schema", "response_format"
        )
    schema: dict[str, Any] = response_format.json_schema.schema_
    return schema


def finish_reason(facts: dict[str, Any]) -> str:
    reason = facts.get("finish_reason")
    if reason == "tool_calls":
        return "tool_calls"
    return "length" if reason in ("length", "context") else "stop"


def usage(answers: Sequence[Answer]) -> dict[str, Any]:
    "Token counts of several answers to one prompt, as OpenAI has them"
    facts = [answer.facts for answer in answers]
    prompt = facts[0].get("prompt_tokens", 0)
    generated = sum(each.get("generated_tokens", 0) for each in facts)
    thinking = sum(each.get("thinking_tokens") or 0 for each in facts)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": generated,
        "total_tokens": prompt + generated,
        "completion_tokens_details": {"reasoning_tokens": thinking},
        "prompt_tokens_details": {"cached_tokens": facts[0].get("restored_tokens", 0)},
    }


def chunk(
    answers: Sequence[Answer],
    model: str,
    created: int,
    choices: list[dict[str, Any]],
    **more: Any,
) -> dict[str, Any]:
    "An event of a stream"
    return {
        "id": answers[0].id,
        "object": "chat.completion.chunk",
        "created": created,
        "model": model,
        "choices": choices,
        **more,
    }


def choice(answer: Answer, index: int) -> dict[str, Any]:
    "A choice of a whole answer"
    message: dict[str, Any] = {"role": "assistant", "content": answer.text}
    if answer.reasoning:
        message["reasoning_content"] = answer.reasoning
    if answer.calls:
        calls = [_tool_call(call, i) for i, call in enumerate(answer.calls)]
        message = {**message, "content": answer.text or None, "tool_calls": calls}
    return {
        "index": index,
        "message": {**message, "refusal": None},
        "finish_reason": finish_reason(answer.facts),
        "logprobs": None,
        **about(answer),
    }


def delta(event: Event, n_calls: int) -> dict[str, Any]:
    "What an event adds to a message that has some calls already"
    if event.call is not None:
        return {"tool_calls": [_tool_call(event.call, n_calls)]}
    name = "reasoning_content" if event.kind == "reasoning" else "content"
    return {name: event.text}


def _tool_call(call: Call, index: int) -> dict[str, Any]:
    return {
        "index": index,
        "id": call.id,
        "type": "function",
        "function": {"name": call.name, "arguments": json.dumps(call.arguments)},
    }


def about(answer: Answer) -> dict[str, Any]:
    "The fields of a choice that OpenAI does not have"
    return {
        "slot_id": answer.slot_id,
        "response_id": answer.id,
        "thread_id": answer.thread_id,
        "kvbranch": {name: answer.facts.get(name) for name in _FACTS},
    }


def completion(answers: Sequence[Answer], model: str, created: int) -> dict[str, Any]:
    "A whole completion"
    return {
        "id": answers[0].id,
        "object": "chat.completion",
        "created": created,
        "model": model,
        "choices": [choice(answer, i) for i, answer in enumerate(answers)],
        "usage": usage(answers),
        "slot_id": answers[0].slot_id,
        "system_fingerprint": None,
    }
