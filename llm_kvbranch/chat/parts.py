"""What an answer consists of: thinking, text and tool calls.

The idea: events report them as they come, to other processes as JSON.

This module does not know how they are read, or who is told.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Kind = Literal["text", "reasoning", "call"]


@dataclass(frozen=True)
class Call:
    "A tool call that the model asks for"

    id: str
    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Event:
    "Something new in an answer: text, or a whole call"

    kind: Kind
    text: str = ""
    call: Call | None = None


def event_to_json(event: Event) -> dict[str, Any]:
    "Answer text as a piece, thinking as reasoning, or a whole call"
    if event.call is not None:
        return {"call": asdict(event.call)}
    return {"reasoning" if event.kind == "reasoning" else "piece": event.text}


def event_of(data: dict[str, Any]) -> Event | None:
    "The event in a JSON message, None if the message is something else"
    if "piece" in data:
        return Event("text", data["piece"])
    if "reasoning" in data:
        return Event("reasoning", data["reasoning"])
    if "call" in data:
        return Event("call", call=Call(**data["call"]))
    return None


@dataclass
class Part:
    "A part of an answer, as llm logs it, made of the feeds [begin, end)"

    kind: Kind
    text: str = ""
    call: Call | None = None
    begin: int = 0
    end: int = 0


@dataclass
class Record:
    "Everything read of an answer, and the events not taken yet"

    text: str = ""
    reasoning: str = ""
    calls: list[Call] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)
    _events: list[Event] = field(default_factory=list)

    def add(self, kind: Kind, text: str, begin: int, end: int) -> None:
        "Add text that came in the feeds [begin, end)"
        if not text:
            return
        if kind == "text":
            self.text += text
        else:
            self.reasoning += text
        if not self.parts or self.parts[-1].kind != kind:
            self.parts.append(Part(kind, begin=begin))
        self.parts[-1].text += text
        self.parts[-1].end = end
        self._events.append(Event(kind, text))

    def add_call(self, call: Call, begin: int, end: int) -> None:
        "Add a call that came in the feeds [begin, end)"
        self.calls.append(call)
        self.parts.append(Part("call", "", call, begin, end))
        self._events.append(Event("call", "", call))

    def take(self) -> list[Event]:
        "The events since this was last called"
        events, self._events = self._events, []
        return events
