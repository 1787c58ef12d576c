"""Events of an answer as JSON, for other processes.

This module does not know who sends or reads them.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from .parts import Call, Event


def event_to_json(event: Event) -> dict[str, Any]:
    "Answer text as a piece, thinking as reasoning, or a whole call"
    if event.call is not None:
        return {"call": asdict(event.call)}
    return {"reasoning" if event.kind == "reasoning" else "piece": event.text}


def event_of(data: dict[str, Any]) -> Event | None:
    "The event that JSON has, None if it has another kind of message"
    if "piece" in data:
        return Event("text", data["piece"])
    if "reasoning" in data:
        return Event("reasoning", data["reasoning"])
    if "call" in data:
        return Event("call", call=Call(**data["call"]))
    return None
