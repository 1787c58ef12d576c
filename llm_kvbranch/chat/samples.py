"""Sample conversations of all kinds, to see what a template writes.

This module does not know templates.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": "Look up a word",
        "parameters": {
            "type": "object",
            "properties": {
                "word": {"type": "string", "description": "The word"},
                "exact": {"type": "boolean", "description": "Only itself"},
            },
            "required": ["word"],
        },
    },
}


def call(id: str = "abcdef123", name: str = "look_up") -> dict[str, Any]:
    "A call to the tool"
    arguments = {"word": "sea", "exact": True}
    function = {"name": name, "arguments": arguments}
    return {"type": "function", "id": id, "function": function}


def result(id: str = "abcdef123", output: str = "Salt water.") -> dict[str, Any]:
    "What the tool returns"
    return {"role": "tool", "name": "look_up", "tool_call_id": id, "content": output}


def said(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def asked(text: str = "What is the sea?") -> dict[str, Any]:
    return {"role": "user", "content": text}


def system(text: str = "Be brief.") -> dict[str, Any]:
    return {"role": "system", "content": text}


def thought(text: str = "Water, I think.") -> dict[str, Any]:
    "The fields in which templates look for thinking"
    return {"reasoning_content": text, "thinking": text}


def conversations() -> Iterator[tuple[list[dict[str, Any]], dict[str, Any]]]:
    "Conversations, each with the other values that a template is given"
    tools = {"tools": [TOOL]}
    for more in ({}, {"enable_thinking": True}, {"enable_thinking": False}):
        yield [asked()], more
    for start in ([], [system()]):
        plain = [*start, asked(), said("Water."), asked("Why?")]
        yield [*start, asked()], tools
        yield plain, {}
        yield [*start, asked(), said("Water.", **thought()), asked("Why?")], {}
        yield [*start, asked(), said("Water.", **thought())], {}
        tool_round = [*start, asked(), said("", tool_calls=[call()]), result()]
        yield tool_round, tools
        yield [*tool_round, said("Salt."), asked("Why?")], tools
        thinking = said("", tool_calls=[call()], **thought())
        yield [*start, asked(), thinking, result()], tools
