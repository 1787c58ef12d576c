"""Messages as llm logs them, in the form that chat templates take.

The idea: what other models wrote, and what other programs send, is put into the form
that this model's template takes: system prompts, thinking, ids of calls, several calls
at once.

The invariant: no text is lost, and each message stays in its place.

This module does not know how templates write messages.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import xxhash

from ..errors import ChatError
from .capabilities import Capabilities, in_parts

_SHORT_ID = re.compile(r"[A-Za-z0-9]{9}")
_DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

# How gpt-oss begins a part of its answer; its template expects the bare parts
CHANNEL = "<|channel|>"
_CHANNELS = re.compile(
    r"(?:<\|end\|>)?(?:<\|start\|>assistant)?<\|channel\|>(\w+).*?<\|message\|>"
)

Chat = dict[str, Any]


def chats_of(messages: Sequence[Any], takes: Capabilities) -> list[Chat]:
    "All messages, in the form that a template takes; raises ChatError"
    groups = [to_chat(message) for message in messages]
    for i, (message, group) in enumerate(zip(messages, groups, strict=True)):
        if message.role == "system" and takes.folds_system:
            _fold(groups, i)
        elif message.role == "assistant":
            groups[i] = [each for chat in group for each in _answer(chat, takes)]
            if len(groups[i]) > 1 and not takes.calls:
                groups[i] = [_texts(groups[i])]
    chats = [chat for group in groups for chat in group]
    if any("tool_calls" in chat for chat in chats) and takes.short_ids:
        _shorten_ids(chats)
    return chats


def _fold(groups: list[list[Chat]], index: int) -> None:
    "Put a system prompt before the next question"
    group, groups[index] = groups[index], []
    text = "".join(chat["content"] for chat in group)
    for later in groups[index + 1 :]:
        if later and later[0]["role"] == "user":
            if text:
                later[0]["content"] = f"{text}\n{later[0]['content']}"
            return
    groups[index] = [{"role": "user", "content": text}]


def with_tools(
    chats: Sequence[Chat], tools: Sequence[dict[str, Any]], takes: Capabilities
) -> list[Chat]:
    "Messages whose system prompt tells which tools there are"
    told = ["## Tools\nYou have access to the following tools:"]
    for each in (tool["function"] for tool in tools):
        parameters = json.dumps(each.get("parameters") or {}, ensure_ascii=False)
        about = f"Description: {each.get('description') or ''}"
        told.append(f"### {each['name']}\n{about}\nParameters: {parameters}")
    text, first = "\n\n".join(told), chats[0] if chats else {"role": ""}
    if first["role"] == "system":
        return [{**first, "content": f"{first['content']}\n\n{text}"}, *chats[1:]]
    if first["role"] == "user" and takes.folds_system:
        return [{**first, "content": f"{text}\n\n{first['content']}"}, *chats[1:]]
    return [{"role": "system", "content": text}, *chats]


def _answer(chat: Chat, takes: Capabilities) -> Iterator[Chat]:
    "An answer, in as many messages as the template needs"
    thought, calls = chat.get("thinking"), chat.get("tool_calls", ())
    if thought and calls and chat["content"] and takes.joins_thinking:
        thought = f"{thought}\n{chat['content']}"
        chat = {**chat, "content": "", "reasoning_content": thought}
        chat["thinking"] = thought
    if thought and (field := takes.thinking_field):
        if field == "parts":
            chat = {**chat, "content": in_parts(chat["content"], thought)}
        else:
            if field in chat:
                del chat["reasoning_content"], chat["thinking"]
            chat = {**chat, field: thought}
    if len(calls) > 1 and takes.one_call:
        yield {**chat, "tool_calls": [calls[0]]}
        for call in calls[1:]:
            yield {"role": chat["role"], "content": "", "tool_calls": [call]}
    else:
        yield chat


def _texts(chats: list[Chat]) -> Chat:
    "Messages as one, without calls and their results"
    answers = [chat for chat in chats if chat["role"] == "assistant"]
    text = "".join(chat["content"] for chat in answers)
    kept = {k: v for chat in answers for k, v in chat.items() if k != "tool_calls"}
    return {**kept, "role": "assistant", "content": text}


def _shorten_ids(chats: list[Chat]) -> None:
    "Give calls, and the results that belong to them, ids of 9 letters and digits"
    for chat in chats:
        for call in chat.get("tool_calls", ()):
            if "id" in call:
                call["id"] = short_id(call["id"])
        if "tool_call_id" in chat:
            chat["tool_call_id"] = short_id(chat["tool_call_id"])


def short_id(id: str) -> str:
    "An id itself if it has 9 letters and digits, else one that is made from it"
    if _SHORT_ID.fullmatch(id):
        return id
    number, digits = xxhash.xxh3_64_intdigest(id.encode("utf-8", "surrogatepass")), ""
    for _ in range(9):
        number, digit = divmod(number, len(_DIGITS))
        digits += _DIGITS[digit]
    return digits


def to_chat(message: Any) -> list[Chat]:
    """An llm message in the form that chat templates take.

    Usually one dictionary. One for each result if the message has tool results, and
    those of another model's own tools between what it said before and after. Raises
    ChatError for an attachment.
    """
    chats: list[Chat] = []
    for part in message.to_dict()["parts"]:
        if part["type"] == "tool_result":
            chats.append(_tool_result(part))
            continue
        if not chats or chats[-1]["role"] == "tool":
            role = "user" if message.role == "tool" else message.role
            chats.append({"role": role, "content": ""})
        chat = chats[-1]
        if part["type"] == "text":
            chat["content"] += part["text"]
        elif part["type"] == "reasoning":
            thought = chat.get("thinking", "") + part["text"]
            if thought:
                # Templates use either name
                chat["reasoning_content"] = chat["thinking"] = thought
        elif part["type"] == "tool_call":
            chat.setdefault("tool_calls", []).append(_tool_call(part))
        else:
            raise ChatError(
                f"kvllama does not support message parts of type {part['type']}"
            )
    return chats or [{"role": message.role, "content": ""}]


def message_text(message: Any) -> str:
    "The text of a message, as its author wrote it"
    chats = to_chat(message)
    if message.role == "assistant":
        chats = [chat for chat in chats if chat["role"] != "tool"]
    return "".join(str(chat["content"]) for chat in chats)


def without_channels(message: Any) -> Any:
    "An answer of gpt-oss, its thinking separated from its final text"
    from llm.parts import ReasoningPart, TextPart

    text = message_text(message)
    said, *rest = _CHANNELS.split(text.removesuffix("<|end|>"))
    if not rest:
        return message
    thought = ""
    for channel, part in zip(rest[::2], rest[1::2], strict=True):
        if channel == "final":
            said += part
        else:
            thought += part
    parts = [p for p in message.parts if p.to_dict()["type"] != "text"]
    at = sum(p.to_dict()["type"] == "reasoning" for p in parts)
    parts.insert(at, TextPart(text=said))
    if thought:
        parts.insert(at, ReasoningPart(text=thought))
    return replace(message, parts=parts)


class Arguments(dict[str, Any]):
    "A call's arguments: a mapping, or JSON where a template expects a string"

    def __str__(self) -> str:
        return json.dumps(self, ensure_ascii=False)

    def __add__(self, other: str) -> str:
        return str(self) + other

    def __radd__(self, other: str) -> str:
        return other + str(self)


def _tool_call(part: dict[str, Any]) -> Chat:
    function = {"name": part["name"], "arguments": Arguments(part["arguments"])}
    call = {"type": "function", "function": function, "id": part.get("tool_call_id")}
    return {key: value for key, value in call.items() if value is not None}


def _tool_result(part: dict[str, Any]) -> Chat:
    if part.get("attachments"):
        raise ChatError("kvllama does not support attachments in tool results")
    chat = {"role": "tool", "name": part["name"], "content": part["output"]}
    if part.get("tool_call_id") is not None:
        chat["tool_call_id"] = part["tool_call_id"]
    return chat
