"""How messages are rendered, beside the messages themselves.

The invariant: with equal renderings, a template writes equal messages alike, but for
today's date.

This module does not know templates or options.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

NO_DATE = "none"


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
