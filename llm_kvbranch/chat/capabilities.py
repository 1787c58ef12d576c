"""What a chat template takes, found out by rendering.

The idea: a template is given small conversations. What it leaves out, or refuses while
it accepts a similar one, it does not take.

The invariant: nothing raises. Where a template fails for other reasons, it is thought
to take everything, so that its own error is shown.

This module does not know what is done about it.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable
from typing import Any

from ..errors import ChatError
from .samples import TOOL, asked, call, result, said, system, thought

Show = Callable[..., str]
Chats = list[dict[str, Any]]

# No template writes these itself
_SAID, _THOUGHT, _TOLD = "kvSaid1", "kvThought2", "kvTold3"
_FIELDS = ("reasoning_content", "thinking", "reasoning", "thought")
# A message that is written as it is
_AS_IT_IS = re.compile(
    r"type['\"]: ?['\"]thinking|(?:ing|content|thought)['\"]: ?['\"]kv"
)
_LONG_ID = "call_0123456789abcdef"


class Capabilities:
    "``show`` renders messages, as chat templates take them, with other values"

    def __init__(self, show: Show):
        self._show = show

    @functools.cached_property
    def tools(self) -> bool | None:
        "Whether the model is told about tools; None if the template fails"
        shown = self._try([asked()], tools=[TOOL])
        if shown is None and self.folds_system:
            shown = self._try([asked()], tools=[_described(TOOL)])
        return None if shown is None else TOOL["function"]["name"] in shown

    @functools.cached_property
    def folds_system(self) -> bool:
        "Whether the template refuses or leaves out a system prompt"
        shown = self._try([system(_TOLD), asked(_SAID)])
        if shown is not None and _TOLD in shown:
            return False
        return self._has(_SAID, [asked(_SAID)])

    @functools.cached_property
    def thinking_field(self) -> str | None:
        """Where thinking goes, if not into the fields that templates usually read.

        "parts" if into the parts of a content.
        """
        shown = [field for field in _FIELDS if self._shows({field: _THOUGHT})]
        usual = [field for field in shown if field in _FIELDS[:2]]
        if not usual:
            parts = {"content": in_parts(_SAID, _THOUGHT)}
            return next(iter(shown), "parts" if self._shows(parts) else None)
        return usual[0] if self._shows(thought(_THOUGHT), times=2) else None

    @functools.cached_property
    def joins_thinking(self) -> bool:
        "Whether an answer that calls tools may have thinking or text, but not both"
        both, one = (
            [asked(), said(text, tool_calls=[call()], **thought(_THOUGHT)), result()]
            for text in (_SAID, "")
        )
        tools = [TOOL]
        return self._try(both, tools=tools) is None and self._has("", one, tools=tools)

    @functools.cached_property
    def calls(self) -> bool:
        "Whether calls and results of tools are shown"
        tool_round = [asked(), said("", tool_calls=[call()]), result(output=_SAID)]
        shown = self._try(tool_round, tools=[TOOL]) or ""
        return TOOL["function"]["name"] in shown and _SAID in shown

    @functools.cached_property
    def short_ids(self) -> bool:
        "Whether ids of calls must have 9 letters and digits"
        return not self._takes_id(_LONG_ID) and self._takes_id("abcdef123")

    @functools.cached_property
    def one_call(self) -> bool:
        "Whether an answer may have only one call"
        calls = [call("abcdef123"), call("abcdef124")]
        two = said("", tool_calls=calls)
        results = [result("abcdef123"), result("abcdef124")]
        if self._try([asked(), two, *results], tools=[TOOL]) is not None:
            return False
        ones = [said("", tool_calls=[each]) for each in calls]
        return self._has("", [asked(), *ones, *results], tools=[TOOL])

    @functools.cached_property
    def needs_descriptions(self) -> bool:
        "Whether every parameter of a tool must have a description"
        bare = json.loads(json.dumps(TOOL))
        for schema in bare["function"]["parameters"]["properties"].values():
            del schema["description"]
        if self._try([asked()], tools=[bare]) is not None:
            return False
        return self._has("", [asked()], tools=[_described(bare)])

    def _takes_id(self, id: str) -> bool:
        tool_round = [asked(), said("", tool_calls=[call(id)]), result(id)]
        return self._has("", tool_round, tools=[TOOL])

    def _shows(self, fields: dict[str, Any], times: int = 1) -> bool:
        "Whether thinking in these fields is shown, anywhere"
        answer = {**said(_SAID), **fields}
        calling = {**said("", tool_calls=[call()]), **fields}
        if isinstance(fields.get("content"), list):
            calling = answer
        for messages in ([asked(), answer], [asked(), calling, result()]):
            shown = self._try(messages, tools=[TOOL], enable_thinking=True) or ""
            if shown.count(_THOUGHT) >= times and not _AS_IT_IS.search(shown):
                return True
        return False

    def _has(self, text: str, messages: Chats, **values: Any) -> bool:
        shown = self._try(messages, **values)
        return shown is not None and text in shown

    def _try(self, messages: Chats, **values: Any) -> str | None:
        "What the template writes; None if it refuses or fails"
        try:
            return self._show(_copied(messages), add_generation_prompt=True, **values)
        except ChatError:
            return None


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, list) else value


def in_parts(text: str, thinking: str) -> list[dict[str, Any]]:
    "A content whose thinking is a part of its own"
    parts = [{"type": "thinking", "thinking": thinking}]
    return [*parts, {"type": "text", "text": text}] if text else parts


def _described(tool: dict[str, Any]) -> dict[str, Any]:
    return with_descriptions([tool])[0]


def with_descriptions(tools: list[dict[str, Any]]) -> list[dict[str, Any]]:
    "Tools whose parameters all have a description"
    described: list[dict[str, Any]] = _copied(list(tools))
    for tool in described:
        parameters = tool.get("function", {}).get("parameters") or {}
        for schema in (parameters.get("properties") or {}).values():
            if isinstance(schema, dict):
                schema.setdefault("description", "")
    return described
