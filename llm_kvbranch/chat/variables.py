"""How messages are rendered, beside the messages themselves: a template's variables.

The idea: a Rendering says what is wanted, by options, for the date, for old templates;
here it becomes what one template reads.

The invariants: with equal renderings, a template writes equal messages alike, but for
today's date. What a template does not read is refused, and nothing here replaces what
the messages decide.

This module does not know messages.
"""

from __future__ import annotations

import datetime
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import ChatError
from .effort import Effort
from .jinja import to_json, undefined, variables

NO_DATE = "none"
_DAYS = 7  # to look back on
_BUDGET = "thinking_budget"  # Seed-OSS's
_DATES = ("strftime_now", "datetime", "date_string")

# Variables that the messages and the model decide
_OURS = frozenset(
    (
        *("messages", "tools", "functions", "custom_tools", "available_tools"),
        *("add_generation_prompt", "continue_final_message", "bos_token", "eos_token"),
        *("strftime_now", "raise_exception"),
    )
)


@dataclass(frozen=True)
class Rendering:
    """What a chat template is given beside the messages.

    ``tools`` are in the form that chat templates take, with the schemas of their
    parameters. ``values`` are variables of the template, such as ``enable_thinking``.
    ``date`` is the day that a template may write, as YYYY-MM-DD: None for today,
    NO_DATE for the template's own. ``think`` is "true", "false", or how hard to think,
    in the template's own variables; None is the template's default. ``effort`` is the
    same as a wish: the nearest that the template knows, if any. A template that
    knows a budget of thinking is told ``thinking_budget``, in tokens.
    """

    tools: tuple[dict[str, Any], ...] = ()
    values: Mapping[str, Any] = field(default_factory=dict)
    date: str | None = None
    think: str | None = None
    effort: str | None = None
    thinking_budget: int | None = None


def other_dates(date: str | None, now: datetime.datetime) -> list[str | None]:
    "Dates with which an earlier prompt may have been rendered, the latest first"
    days = [str((now - datetime.timedelta(n)).date()) for n in range(1, _DAYS + 1)]
    return [each for each in (*([] if date is None else [None]), *days) if each != date]


class Variables:
    "Those of one template; ``show`` renders messages with values of variables"

    def __init__(self, source: str, show: Callable[..., str]):
        self._source = source
        self._show = show

    @functools.cached_property
    def _effort(self) -> Effort:
        return Effort(self._source, self._show)

    def chosen(self, rendering: Rendering) -> dict[str, Any]:
        "Those that a rendering sets; raises ChatError for unknown ones"
        read, may_set = variables(self._source)
        for name in rendering.values:
            if name in _OURS:
                raise ChatError(f"chat_template_kwargs cannot set {name}")
            if name not in read:
                known = ", ".join(each for each in may_set if each not in _OURS)
                raise ChatError(
                    f"The model's chat template does not read {name}. It reads "
                    f"{known or 'nothing that chat_template_kwargs can set'}"
                )
        values: dict[str, Any] = {}
        if rendering.thinking_budget is not None and _BUDGET in read:
            values[_BUDGET] = rendering.thinking_budget
        if rendering.think is not None:
            values |= self._effort.values(rendering.think)
        elif rendering.effort is not None:
            values |= self._effort.nearest(rendering.effort)
        return {**values, **rendering.values}

    @property
    def may_write_date(self) -> bool:
        "Whether the template reads a variable for the date"
        return not variables(self._source)[0].isdisjoint(_DATES)

    def dates(self, date: str | None, now: datetime.datetime) -> dict[str, Any]:
        "Those with which templates write a date"
        read = variables(self._source)[0]
        if date == NO_DATE:
            return {"strftime_now": undefined()}
        day = now if date is None else datetime.datetime.fromisoformat(date)
        values: dict[str, Any] = {"strftime_now": day.strftime}
        if "datetime" in read:  # of firefunction
            values["datetime"] = day.strftime("%b %d %Y")
        if "date_string" in read and date is not None:  # of Llama 3.x
            values["date_string"] = day.strftime("%d %b %Y")
        return values

    def tools(self, tools: list[dict[str, Any]]) -> dict[str, Any]:
        "Those with which templates write tools"
        values: dict[str, Any] = {"tools": tools} if tools else {}
        if "functions" in variables(self._source)[0]:  # of firefunction
            values["functions"] = to_json(tools, indent=2) if tools else ""
        return values
