"""How a template is told whether to have the model think, and how hard.

The idea: templates have their own names for it. Which one a template reads, and what
each value does, is found by rendering a conversation with and without it.

The invariant: what a template does not know is refused, with what it knows.

This module does not know how thinking is written.
"""

from __future__ import annotations

import datetime
import functools
import re
from collections.abc import Callable
from typing import Any

from ..errors import ChatError
from .jinja import variables
from .samples import asked, said, system, thought

# Variables that turn thinking on and off, and the values that do so
_SWITCHES: tuple[tuple[str, Any, Any], ...] = (
    ("enable_thinking", True, False),
    ("thinking", True, False),
    ("reasoning", True, False),
    ("thinking_mode", "enabled", "disabled"),
    ("thinking_option", "on", "off"),
    ("thinking_budget", -1, 0),
)
_EFFORTS = ("reasoning_effort", "thinking_effort", "reasoning_strength")
_USUAL = ("low", "medium", "high")
LEVELS = ("minimal", *_USUAL, "xhigh", "max")
_OFF = ("none", "no_think", "minimal")
_ANY = "moderate-7"  # no template knows it

Show = Callable[..., str]


class Effort:
    """What one template can be told about thinking.

    ``show`` renders messages, as chat templates take them, with values of variables.
    """

    def __init__(self, source: str, show: Show):
        self.source = source
        self._read = variables(source)[0]
        self._show = show
        self._found: dict[str, dict[str, Any]] = {}

    @functools.cached_property
    def known(self) -> tuple[str, ...]:
        "The values of ``think`` that have a meaning here"
        levels = self._levels
        if self._switch or (levels and self._off):
            return ("true", "false", *levels)
        return ("true", *levels) if levels else ()

    def values(self, think: str) -> dict[str, Any]:
        "The template's variables that say so; raises ChatError"
        if not self.known:
            raise ChatError(
                "The model's chat template cannot turn thinking on or off: leave out "
                "think"
            )
        if think not in self.known:
            raise ChatError(
                f"The model's chat template does not know think {think}. It knows "
                + ", ".join(self.known)
            )
        if think not in self._found:
            self._found[think] = self._find(think)
        return self._found[think]

    def _find(self, think: str) -> dict[str, Any]:
        if think in self._levels:
            return {**self._on, str(self._effort): think}
        if self._switch is None:
            # No variable where the template does the same without it: equal prompts
            # are then known to be equal
            if think == "false":
                return self._off if self._differs(self._off) else {}
            thinks = not self._off or self._differs(self._off)
            return {} if thinks else self._loudest
        name, on, off = self._switch
        wanted = {name: on if think == "true" else off}
        return wanted if self._differs(wanted) else {}

    def nearest(self, effort: str) -> dict[str, Any]:
        "The variables for the nearest that the template knows; empty if it knows none"
        if effort == "none":
            wanted = ["false"]
        else:
            at = LEVELS.index(effort)
            near = sorted(LEVELS, key=lambda level: abs(LEVELS.index(level) - at))
            wanted = [*(level for level in near if level in self._levels), "true"]
        return next((self.values(each) for each in wanted if each in self.known), {})

    @functools.cached_property
    def _switch(self) -> tuple[str, Any, Any] | None:
        for name, on, off in _SWITCHES:
            if name in self._read:
                shown = self._shown({name: on}), self._shown({name: off})
                if None not in shown and shown[0] != shown[1]:
                    return name, on, off
        return None

    @property
    def _on(self) -> dict[str, Any]:
        return {self._switch[0]: self._switch[1]} if self._switch else {}

    @functools.cached_property
    def _effort(self) -> str | None:
        return next((name for name in _EFFORTS if name in self._read), None)

    @functools.cached_property
    def _levels(self) -> tuple[str, ...]:
        "How hard the template can be told to think"
        if self._effort is None:
            return ()
        free = _ANY in (self._shown(self._at(_ANY)) or "")
        named = [level for level in LEVELS if self._names(level)]
        return tuple(
            level
            for level in LEVELS
            if (level in named or (free and level in _USUAL))
            and self._shown(self._at(level)) is not None
        )

    @functools.cached_property
    def _off(self) -> dict[str, Any]:
        "The effort that is no thinking, where there is no switch; empty if none is"
        thinks = self._loudest
        for level in (*_OFF, *self._levels):
            value = {str(self._effort): level}
            if self._names(level) and self._begins(value) != self._begins(thinks):
                return value
        return {}

    @property
    def _loudest(self) -> dict[str, Any]:
        return {str(self._effort): self._levels[-1]}

    def _at(self, level: str) -> dict[str, Any]:
        return {**self._on, str(self._effort): level}

    def _names(self, value: str) -> bool:
        return re.search(f"['\"]{value}['\"]", self.source) is not None

    def _differs(self, values: dict[str, Any]) -> bool:
        "Whether the template does something else with values than without"
        return self._shown(values) != self._shown({})

    def _begins(self, values: dict[str, Any]) -> str:
        "How an answer begins"
        shown = self._shown(values) or ""
        return shown.rpartition(_ASKED)[2]

    def _shown(self, values: dict[str, Any]) -> str | None:
        "Conversations with a template's values; None if it refuses them"
        shown = []
        for messages in (_SHORT, _LONG):
            try:
                copy = [dict(message) for message in messages]
                more = {"add_generation_prompt": True, "strftime_now": _DAY.strftime}
                shown.append(self._show(copy, **more, **values))
            except ChatError:
                shown.append("")
        return "\0".join(shown) if shown[0] else None


_DAY = datetime.date(2000, 1, 1)
_ASKED = "What is the sea?"
_SHORT = [asked(_ASKED)]
_LONG = [
    *(system(), asked("Hello"), said("Hi.", **thought("A greeting."))),
    asked(_ASKED),
]
