"""The OpenAI chat API's forms: requests to llm's messages, answers to its objects.

This module does not know how an answer is made, nor HTTP.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import llm

from ...errors import (
    BusyError,
    ContextError,
    HistoryError,
    KVBranchError,
    OverloadedError,
)

if TYPE_CHECKING:
    from ..serving.answers import Answer
    from .schemas import ChatMessage, ChatRequest

# What is kept of a generation's facts beside OpenAI's usage
_FACTS = (
    "prompt_tokens",
    "restored_tokens",
    "resident_tokens",
    "prefilled_tokens",
    "generated_tokens",
    "miss_reason",
    "restore_ms",
    "prefill_ms",
    "queue_ms",
    "ttft_ms",
    "decode_tps",
    "state_bytes",
)


class RequestError(Exception):
    "A request that cannot be answered: HTTP status, and OpenAI's error object"

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ):
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after
        self.body = error_body(status, message, param, code)


def error_body(
    status: int, message: str, param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    kind = "invalid_request_error" if status < 500 else "server_error"
    kind = {401: "authentication_error", 403: "permission_error"}.get(status, kind)
    kind = "rate_limit_error" if status == 429 else kind
    error = {"message": message, "type": kind, "param": param, "code": code}
    return {"error": error}


def as_request_error(error: BaseException) -> RequestError:
    "What a client is told of an error of ours"
    if isinstance(error, RequestError):
        return error
    text = str(error)
    if isinstance(error, OverloadedError):
        status = 503 if "shutting down" in text else 429
        return RequestError(status, text, retry_after=error.retry_after)
    if isinstance(error, BusyError):
        return RequestError(429, text, retry_after=1)
    if isinstance(error, KVBranchError):
        missing = isinstance(error, HistoryError) and text.startswith("No response")
        long = isinstance(error, ContextError)
        code = "context_length_exceeded" if long else None
        return RequestError(404 if missing else 400, text, code=code)
    return RequestError(500, "The server failed to answer: see its terminal")


def messages_of(request: ChatRequest) -> list[Any]:
    "llm's messages; raises RequestError for those that it has not"
    messages = []
    names: dict[str, str] = {}  # of called tools, which their results do not repeat
    for i, message in enumerate(request.messages):
        names |= {c.id: c.function.name for c in message.tool_calls or () if c.id}
        name = message.name or names.get(message.tool_call_id or "", "")
        messages.append(_message(message, f"messages.{i}", name))
    return messages


def tools_of(request: ChatRequest) -> list[Any]:
    "llm's tools, without what they do"
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
    parts: list[Any] = [llm.parts.TextPart(text=text)] if text else []
    for call in message.tool_calls or ():
        try:
            arguments = json.loads(call.function.arguments or "{}")
        except ValueError:
            arguments = None
        if not isinstance(arguments, dict):
            raise RequestError(400, "a tool call's arguments are no JSON object", param)
        parts.append(
            llm.parts.ToolCallPart(
                name=call.function.name, arguments=arguments, tool_call_id=call.id
            )
        )
    return llm.parts.Message(role="assistant", parts=parts)


def json_schema_of(response_format: Any) -> dict[str, Any] | None:
    "The JSON schema that an answer must follow; raises RequestError"
    if response_format is None or response_format.type == "text":
        return None
    if response_format.type == "json_object":
        return {"type": "object"}
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


def usage(answers: list[Answer]) -> dict[str, Any]:
    "Tokens of several answers to one prompt, counted as OpenAI does"
    facts = [answer.facts for answer in answers]
    prompt = facts[0].get("prompt_tokens", 0)
    generated = sum(each.get("generated_tokens", 0) for each in facts)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": generated,
        "total_tokens": prompt + generated,
        "prompt_tokens_details": {"cached_tokens": facts[0].get("restored_tokens", 0)},
    }


def chunk(
    answers: list[Answer],
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
    if calls := tool_calls(answer):
        message = {**message, "content": answer.text or None, "tool_calls": calls}
    return {
        "index": index,
        "message": {**message, "refusal": None},
        "finish_reason": finish_reason(answer.facts),
        "logprobs": None,
        **about(answer),
    }


def tool_calls(answer: Answer) -> list[dict[str, Any]]:
    return [
        {
            "index": i,
            "id": call.id,
            "type": "function",
            "function": {"name": call.name, "arguments": json.dumps(call.arguments)},
        }
        for i, call in enumerate(answer.calls)
    ]


def about(answer: Answer) -> dict[str, Any]:
    "What is ours in a choice"
    return {
        "slot_id": answer.slot_id,
        "response_id": answer.id,
        "thread_id": answer.thread_id,
        "kvbranch": {name: answer.facts.get(name) for name in _FACTS},
    }


def completion(answers: list[Answer], model: str, created: int) -> dict[str, Any]:
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
