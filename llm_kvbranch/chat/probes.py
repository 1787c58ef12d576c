"""Conversations with known words, as a template writes them, to be compared.

The idea: the words are unlike any template's own, so that what stands around them is
the template's.

The invariant: nothing is raised; what a template refuses or fails on is None.

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

_SECONDS = 10.0  # that all renderings of a template may take together

# Renders messages, as chat templates take them, with other values of the template
Render = Callable[..., str]

QUESTION = "Kvquestion"
ANSWER = "Kvanswer"
THOUGHT = "Kvthought"
NAMES = "kv_alpha", "kv_beta"
KEYS = "kvkey_one", "kvkey_two"
VALUES = "kvvalue_one", "kvvalue_two"
IDS = "kvid00001", "kvid00002"  # in the strictest form that a template is known to ask

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

# What thinking and calls may have to be asked for with; the plain way comes first
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
    "A template, and what it writes behind a known question"

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
        "An answer and what is around it; None if the template does not take it"
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
    "A call of one of two tools"
    return {
        "type": "function",
        "id": id or IDS[n],
        "function": {"name": NAMES[n], "arguments": Arguments(arguments)},
    }


def common_prefix(one: str, other: str) -> str:
    "What two texts begin with, not ending inside a tag or a word"
    pairs = zip(_TOKEN.findall(one), _TOKEN.findall(other), strict=False)
    return "".join(a for a, b in takewhile(lambda pair: pair[0] == pair[1], pairs))


def common_suffix(one: str, other: str) -> str:
    "What two texts end with, not beginning inside a tag or a word"
    pairs = zip(
        reversed(_TOKEN.findall(one)), reversed(_TOKEN.findall(other)), strict=False
    )
    same = [a for a, b in takewhile(lambda pair: pair[0] == pair[1], pairs)]
    return "".join(reversed(same))
