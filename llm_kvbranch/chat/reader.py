"""What a model says, as events: thinking, text, and calls of tools.

The idea: an answer is read token by token, with the control tokens that users never
see, in the form that the template's dialect describes.

The invariant: text that is neither thinking nor part of a call is given out as text,
and a call only when it is complete.

This module does not know models, tokens' numbers, or who shows the events.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from .dialect import Dialect
from .named import MessageReader, Said
from .toolcalls import Call, ToolStream

Kind = Literal["text", "reasoning", "call"]


@dataclass(frozen=True)
class Event:
    "What has become certain about an answer: new text, or a whole call"

    kind: Kind
    text: str = ""
    call: Call | None = None


@dataclass
class Part:
    "A part of an answer, as llm logs it, made of the feeds [begin, end)"

    kind: Kind
    text: str = ""
    call: Call | None = None
    begin: int = 0
    end: int = 0


class Reader:
    """Takes an answer, one token at a time, and returns events.

    ``tools`` are as chat templates take them. ``prompt`` is the end of the rendered
    prompt: it shows whether thinking has begun already.
    """

    def __init__(
        self,
        dialect: Dialect,
        tools: Sequence[dict[str, Any]] = (),
        prompt: str = "",
    ):
        self.text = ""
        self.reasoning = ""
        self.calls: list[Call] = []
        self.parts: list[Part] = []
        self._dialect = dialect
        self._thinking = dialect.thinking
        self._names = {tool["function"]["name"] for tool in tools}
        self._stream = ToolStream(self._names)
        self._messages = dialect.messages and MessageReader(dialect.messages, prompt)
        self._held = ""
        self._feeds = 0
        # Whether thinking may still begin, has begun, or is over
        self._stage = "before" if dialect.thinking else "after"
        if dialect.thinking and dialect.thinking.starts_open(prompt):
            self._stage = "inside"

    @property
    def in_answer(self) -> bool:
        "Whether thinking is over: a constraint begins here, and stop strings count"
        if self._messages:
            return self._messages.in_answer
        return self._stage == "after"

    def feed(self, text: str, control: bool = False) -> list[Event]:
        "Add the text of one token; ``control`` if it is a control token's name"
        self._feeds += 1
        if self._messages:
            return self._take(self._messages.feed(text, control))
        marks = self._thinking and (self._thinking.open, self._thinking.close)
        if control and not (marks and text in marks):
            return []
        return self._read(text)

    def end(self, ended_by: str | None = None) -> list[Event]:
        """The answer has ended: returns what was held back.

        ``ended_by`` is the text of the token that the model ended it with; None if it
        was cut off.
        """
        if self._messages:
            return self._take(self._messages.end(ended_by))
        held, self._held = self._held, ""
        if self._stage == "inside":
            return self._give("reasoning", held.rstrip())
        self._stage = "after"
        events = self._give("text", self._stream.feed(held) + self._stream.end())
        for call in self._stream.calls:
            self.calls.append(call)
            self.parts.append(Part("call", "", call, self._feeds, self._feeds))
            events.append(Event("call", "", call))
        return events

    def _read(self, text: str) -> list[Event]:
        if self._stage == "after":
            if self.reasoning and not self.text:
                text = text.lstrip()
            return self._give("text", self._stream.feed(text))
        assert self._thinking is not None
        self._held += text
        if self._stage == "before":
            start = self._held.lstrip()
            if not start or (
                self._thinking.open.startswith(start) and start != self._thinking.open
            ):
                return []
            held, self._held = self._held, ""
            if not start.startswith(self._thinking.open):
                self._stage = "after"
                return self._read(held)
            self._stage, self._held = "inside", start[len(self._thinking.open) :]
        if not self.reasoning:
            self._held = self._held.lstrip()
        thought, close, rest = self._held.partition(self._thinking.close)
        if close:
            self._stage, self._held = "after", ""
            events = self._give("reasoning", thought.rstrip())
            return events + self._read(rest)
        sure = len(thought)
        while sure and not self._thinking.close.startswith(thought[-sure:]):
            sure -= 1
        sure = len(thought[: len(thought) - sure].rstrip())
        self._held = thought[sure:]
        return self._give("reasoning", thought[:sure])

    def _take(self, found: Iterable[Said]) -> list[Event]:
        "What was read of an answer that is messages"
        events = []
        for said in found:
            if said.kind != "call":
                events += self._give(said.kind, said.text)
            elif not {name for name, _ in said.calls} <= self._names:
                events += self._give("text", said.text)
            else:
                for name, arguments in said.calls:
                    call = Call(self._dialect.new_id(), name, arguments)
                    begin = self.parts[-1].end if self.parts else 0
                    self.calls.append(call)
                    self.parts.append(Part("call", "", call, begin, self._feeds))
                    events.append(Event("call", "", call))
        return events

    def _give(self, kind: Kind, text: str) -> list[Event]:
        if not text:
            return []
        if kind == "text":
            self.text += text
        else:
            self.reasoning += text
        if not self.parts or self.parts[-1].kind != kind:
            self.parts.append(Part(kind, begin=self._feeds - 1))
        self.parts[-1].text += text
        self.parts[-1].end = self._feeds
        return [Event(kind, text)]
