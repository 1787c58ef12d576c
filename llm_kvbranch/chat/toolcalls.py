"""Tool calls in what a model says.

The idea: models write tool calls in different formats, most of which cannot be mistaken
for anything else: JSON between tags, an answer that is nothing but JSON with a tool's
name in it, a tool's name and JSON, or Python calls. All formats are read, whatever the
model; only the names of tools that were offered count.

The invariant: text that is not part of a call is given out as text.

This module does not know models or tokens.
"""

from __future__ import annotations

import ast
import json
import re
import secrets
from collections.abc import Collection, Iterator
from typing import Any

from .parts import Call

_TAGS = ("<tool_call>", "<function=", "[TOOL_CALLS]", "<|python_tag|>")
_FENCE = re.compile(r"```(?:json)?\s*(.*?)\s*```", re.DOTALL)
_BLOCK = re.compile(r"<tool_call>\s*(.*?)\s*(?:</tool_call>|$)", re.DOTALL)
_FUNCTION = re.compile(r"<function=([^>\s]+)>\s*(.*?)\s*(?:</function>|$)", re.DOTALL)
_PARAMETER = re.compile(
    r"<parameter=([^>\s]+)>\n?(.*?)\n?(?:</parameter>|(?=<parameter=)|$)", re.DOTALL
)
_NAMED = re.compile(r"\s*([A-Za-z0-9_.-]+)\s*(?:\[ARGS\])?\s*(?=\{)")


class ToolStream:
    """Takes an answer's text, returns the text that is not part of a call.

    ``names`` are those of the tools that were offered. ``text`` is all that was
    returned so far, ``calls`` the calls, once the answer has ended.
    """

    def __init__(self, names: Collection[str]):
        self.text = ""
        self.calls: list[Call] = []
        self._names = frozenset(names)
        self._held = ""

    def feed(self, text: str) -> str:
        "Add text; returns what is certain not to be part of a call"
        self._held += text
        if not self._names:
            return self._give(len(self._held))
        # White space before a call is dropped
        return self._give(len(self._held[: self._free()].rstrip()))

    def end(self) -> str:
        "The answer has ended: returns what was held back and is not a call"
        begin = self._begin()
        if begin is not None:
            self.calls = list(parse(self._held[begin:], self._names))
        if self.calls:
            given = self._give(len(self._held[:begin].rstrip()))
            self._held = ""
            return given
        return self._give(len(self._held))

    def _free(self) -> int:
        "How many of the held characters cannot be part of a call"
        begin = self._begin()
        if begin is not None:
            return begin
        for n in range(min(max(map(len, _TAGS)) - 1, len(self._held)), 0, -1):
            if any(tag.startswith(self._held[-n:]) for tag in _TAGS):
                return len(self._held) - n
        return len(self._held)

    def _begin(self) -> int | None:
        "Where a call may begin in the held text"
        found = [at for tag in _TAGS if (at := self._held.find(tag)) >= 0]
        if found:
            return min(found)
        if self.text.strip():
            return None
        start = self._held.lstrip()
        if not start:
            return 0
        bare = start[0] in "{[`" or any(
            start.startswith(name) or name.startswith(start) for name in self._names
        )
        return 0 if bare else None

    def _give(self, n: int) -> str:
        given, self._held = self._held[:n], self._held[n:]
        self.text += given
        return given


def parse(text: str, names: Collection[str]) -> Iterator[Call]:
    "The calls that a text consists of; none if it has anything else in it"
    text = text.strip()
    for tag in ("[TOOL_CALLS]", "<|python_tag|>"):
        text = text.removeprefix(tag)
    if fenced := _FENCE.fullmatch(text):
        text = fenced[1]
    if blocks := _BLOCK.findall(text):
        found = [call for block in blocks for call in _in_block(block)]
    else:
        found = _functions(text) or _from_json(text) or _named(text) or _python(text)
    if all(name in names for name, _ in found):
        for name, arguments in found:
            yield Call(f"call_{secrets.token_hex(8)}", name, arguments)


_Found = list[tuple[str, dict[str, Any]]]


def _in_block(text: str) -> _Found:
    return _functions(text) or _from_json(text) or _named(text) or [("", {})]


def _functions(text: str) -> _Found:
    "Newer Qwen models: <function=name><parameter=key>value</parameter></function>"
    return [
        (name, {key: _value(value) for key, value in _PARAMETER.findall(body)})
        for name, body in _FUNCTION.findall(text)
    ]


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _from_json(text: str) -> _Found:
    "One call or a list of them; several may follow one another"
    decoder, at, found = json.JSONDecoder(), 0, []
    while at < len(text):
        try:
            value, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            return []
        found += value if isinstance(value, list) else [value]
        at += len(text[at:]) - len(text[at:].lstrip(" \n\t;,"))
    calls = [_call(each) for each in found]
    return [call for call in calls if call is not None] if None not in calls else []


def _call(value: Any) -> tuple[str, dict[str, Any]] | None:
    if not isinstance(value, dict):
        return None
    if isinstance(value.get("function"), dict):
        value = value["function"]
    name = value.get("name", value.get("function"))
    arguments = value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):
        arguments = _value(arguments)
    if isinstance(name, str) and isinstance(arguments, dict):
        return name, arguments
    return None


def _named(text: str) -> _Found:
    "A name, and its arguments as JSON; several may follow one another"
    decoder, found = json.JSONDecoder(), []
    while text.strip():
        begin = _NAMED.match(text)
        if begin is None:
            return []
        try:
            arguments, end = decoder.raw_decode(text, begin.end())
        except (ValueError, RecursionError):
            return []
        found.append((begin[1], arguments))
        text = text[end:].removeprefix("[TOOL_CALLS]")
    return found


def _python(text: str) -> _Found:
    "Python calls, or a list of them, with literals as keyword arguments"
    try:
        node = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    found: _Found = []
    for call in node.elts if isinstance(node, ast.List) else [node]:
        if not isinstance(call, ast.Call) or call.args:
            return []
        try:
            arguments = {
                str(keyword.arg): ast.literal_eval(keyword.value)
                for keyword in call.keywords
            }
            json.dumps(arguments)
        except (ValueError, TypeError):
            return []
        found.append((ast.unparse(call.func), arguments))
    return found
