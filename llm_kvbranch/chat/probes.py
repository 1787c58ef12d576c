"""Conversations with known words, as a template renders them.

The idea: the words do not occur in any template, so what is around them comes from the
template.

The invariant: nothing is raised; the result is None if a template refuses or fails.

This module does not know what is looked for.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile
from typing import Any

from .history import Arguments

_SECONDS = 10.0  # for all renderings of a template together

# Renders messages, as chat templates take them, with other values of the template
Render = Callable[..., str]

QUESTION = "Kvquestion"
ANSWER = "Kvanswer"
THOUGHT = "Kvthought"
NAMES = "kv_alpha", "kv_beta"
KEYS = "kvkey_one", "kvkey_two"
VALUES = "kvvalue_one", "kvvalue_two"
IDS = "kvid00001", "kvid00002"  # in the strictest format that templates require

_TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": "A tool",
            "parameters": {
                "type": "object",
                "properties": {
                    key: {"type": "string", "description": "A text"} for key in KEYS
                },
                "required": [],
            },
        },
    }
    for name in NAMES
]

# Values that templates may need to show thinking and calls, plainest first
_SETTINGS: tuple[Mapping[str, Any], ...] = (
    {"tools": _TOOLS},
    {},
    {"tools": _TOOLS, "functions": json.dumps(_TOOLS), "datetime": "now"},
)

TAG = r"(?:<\|[^<>|]*\|>|<[^<>\s]+>|\[/?[A-Z][A-Z_ ]*\])"
# A tag, or a word between two
UNIT = re.compile(rf"{TAG}(?:\w+{TAG})?")
_TOKEN = re.compile(r"<\|[^<>|]*\|>|<[^<>\s]*>?|\[[^\[\]\s<>]*\]?|\s+|\w+|.", re.DOTALL)


class Probe:
    "A template, and what it writes after a known question"

    def __init__(self, render: Render):
        self._render = render
        self._until = time.monotonic() + _SECONDS
        self.prompt = ""
        for self._settings in _SETTINGS:
            prompt = self._show([], add_generation_prompt=True)
            if prompt is not None:
                self.prompt = prompt
                break
        self.plain = self.answer(ANSWER) or ""  # an answer of text only

    def answer(
        self,
        content: Any = "",
        reasoning: str = "",
        calls: Sequence[dict[str, Any]] = (),
        values: Mapping[str, Any] | None = None,
    ) -> str | None:
        "An answer and what is around it; None if the template does not accept it"
        message: dict[str, Any] = {"role": "assistant", "content": content}
        if reasoning:
            message |= dict.fromkeys(("reasoning_content", "thinking"), reasoning)
        if calls:
            message["tool_calls"] = list(calls)
        return self._show([message], add_generation_prompt=False, **values or {})

    def _show(self, answers: list[dict[str, Any]], **values: Any) -> str | None:
        messages = [{"role": "user", "content": QUESTION}, *answers]
        if time.monotonic() > self._until:
            return None
        try:
            text = self._render(messages, **self._settings, **values)
        except Exception:  # a template may raise anything
            return None
        _, question, after = text.rpartition(QUESTION)
        return after if question else None


def call(n: int, arguments: dict[str, Any], id: str = "") -> dict[str, Any]:
    "A call to one of two tools"
    return {
        "type": "function",
        "id": id or IDS[n],
        "function": {"name": NAMES[n], "arguments": Arguments(arguments)},
    }


def common_prefix(one: str, other: str) -> str:
    "The common beginning of two texts, in whole tags and words"
    pairs = zip(_TOKEN.findall(one), _TOKEN.findall(other), strict=False)
    return "".join(a for a, b in takewhile(lambda pair: pair[0] == pair[1], pairs))


def common_suffix(one: str, other: str) -> str:
    "The common end of two texts, in whole tags and words"
    pairs = zip(
        reversed(_TOKEN.findall(one)), reversed(_TOKEN.findall(other)), strict=False
    )
    same = [a for a, b in takewhile(lambda pair: pair[0] == pair[1], pairs)]
    return "".join(reversed(same))
