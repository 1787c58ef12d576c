"""Messages as llm logs them, in the form that chat templates take.

This module does not know templates.
"""

from __future__ import annotations

import json
from typing import Any

from ..errors import ChatError


def to_chat(message: Any) -> list[dict[str, Any]]:
    """An llm message in the form that chat templates take.

    Usually one dictionary, but one for each result if the message has tool results.
    Raises ChatError for an attachment.
    """
    parts = message.to_dict()["parts"]
    if results := [part for part in parts if part["type"] == "tool_result"]:
        return [_tool_result(part) for part in results]
    texts, reasoning, calls = [], [], []
    for part in parts:
        if part["type"] == "text":
            texts.append(part["text"])
        elif part["type"] == "reasoning":
            reasoning.append(part["text"])
        elif part["type"] == "tool_call":
            calls.append(_tool_call(part))
        else:
            raise ChatError(
                f"kvllama does not support message parts of type {part['type']}"
            )
    chat: dict[str, Any] = {"role": message.role, "content": "".join(texts)}
    if any(reasoning):
        # Templates use either name
        chat["reasoning_content"] = chat["thinking"] = "".join(reasoning)
    if calls:
        chat["tool_calls"] = calls
    return [chat]


def message_text(message: Any) -> str:
    "The text of a message, as its author wrote it"
    return "".join(str(chat["content"]) for chat in to_chat(message))


class Arguments(dict[str, Any]):
    "A call's arguments: a mapping, or JSON where a template expects a string"

    def __str__(self) -> str:
        return json.dumps(self, ensure_ascii=False)

    def __add__(self, other: str) -> str:
        return str(self) + other

    def __radd__(self, other: str) -> str:
        return other + str(self)


def _tool_call(part: dict[str, Any]) -> dict[str, Any]:
    function = {"name": part["name"], "arguments": Arguments(part["arguments"])}
    call = {"type": "function", "function": function, "id": part.get("tool_call_id")}
    return {key: value for key, value in call.items() if value is not None}


def _tool_result(part: dict[str, Any]) -> dict[str, Any]:
    chat = {"role": "tool", "name": part["name"], "content": part["output"]}
    if part.get("tool_call_id") is not None:
        chat["tool_call_id"] = part["tool_call_id"]
    return chat
