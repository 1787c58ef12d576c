"""Formats that cannot be learned by comparing a template's renderings.

The idea: gpt-oss and muse-glimmer write an answer as messages, each with a header that
says whom it is for: ``<|channel|>analysis<|message|>`` is thinking, and a message whose
header has ``to=functions.get_time`` is the arguments of a call. The meaning of a
message depends on its header, not on what is around it, so it is read here.

The invariant: a message to a function is a call only if the function was offered, its
arguments can be read, and its end came or the model ended the answer with it.

This module does not know who receives what was read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from .formats import Form, Offered, Tagged, calls
from .parts import Call, Kind, Record
from .scanning import ANY, Marks, Mismatch, Scanner, Source, read_json

Calls = list[tuple[str, dict[str, Any]]]  # names and arguments

_RECIPIENT = re.compile(r"\bto=([^\s<]+)")
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)")
# The beginning of a header before its first control token, possibly incomplete
_ROLE = re.compile(r"(a(s(s(i(s(t(a(n(t)?)?)?)?)?)?)?)?)?( (t(o(=\S*)?)?)?)?")
_LONGEST_HEADER = 200


@dataclass(frozen=True)
class Messages:
    """How the messages of an answer are written.

    ``thinking`` is what is around thinking. ``others`` occur in headers. ``form`` is
    how a message to a function is written, if it is not just the arguments as JSON;
    ``call`` is what is around these, with ANY for the function's name.
    """

    thinking: tuple[str, str]
    start: str
    message: str
    ends: tuple[str, ...]
    others: tuple[str, ...] = ()
    form: Form | None = None
    call: tuple[str, str] | None = None

    @property
    def markers(self) -> tuple[str, ...]:
        return (self.start, self.message, *self.ends, *self.others)

    def calls(self, name: str, text: str, offered: Offered) -> Calls:
        "The calls in a message to a function; none unless all are to offered tools"
        try:
            found = self._calls(name, text, offered)
        except Mismatch:
            return []
        return found if all(name in offered for name, _ in found) else []

    def _calls(self, name: str, text: str, offered: Offered) -> Calls:
        if self.form is None:
            arguments = read_json(text)
            return [(name, arguments)] if isinstance(arguments, dict) else []
        source = Source()
        source.text, source.done = text.strip(), True
        scanner = Scanner(source)
        found = [call for call in calls(self.form, scanner, offered) if call]
        complete = scanner.at == len(source.text)
        return [(call.name, call.arguments) for call in found] if complete else []


GPT_OSS = Messages(
    ("<|channel|>analysis<|message|>", "<|end|>"),
    "<|start|>",
    "<|message|>",
    ("<|end|>", "<|call|>", "<|return|>"),
    ("<|channel|>", "<|constrain|>"),
    call=(
        f"<|channel|>commentary to=functions.{ANY} <|constrain|>json<|message|>",
        "<|call|>",
    ),
)
MUSE = Messages(
    (" to=self<|message|>", "<|eom|>"),
    "<|start|>",
    "<|message|>",
    ("<|eom|>", "<|eot|>"),
    form=Form(
        Tagged('<atem:parameter name="', '">', "</atem:parameter>"),
        begin="<atem:function_calls>",
        before='<atem:invoke name="',
        middle='">',
        after="</atem:invoke>",
        end="</atem:function_calls>",
    ),
)


def messages_of(source: str) -> Messages | None:
    "How a template writes the messages of an answer, if it is one of these"
    if "<|channel|>analysis<|message|>" in source:
        return GPT_OSS
    return MUSE if "to=self<|message|>" in source and "<atem:" in source else None


@dataclass
class _Said:
    "A stretch of text, or calls with the text they were read from"

    kind: Kind
    text: str
    calls: Calls


class MessageReader:
    """Reads an answer that consists of messages, token by token, into a record.

    ``offered`` are the parameters of the tools, ``prompt`` is the end of the prompt.
    Once a marker has come as a control token, text that spells one is text.
    """

    missing = ""  # no list of calls is open between messages

    def __init__(
        self,
        messages: Messages,
        offered: Offered,
        prompt: str,
        record: Record,
        new_id: Callable[[], str],
        several: bool = True,
    ):
        self._messages = messages
        self._offered = offered
        self._record = record
        self._new_id = new_id
        self._several = several
        self._n_feeds = 0
        self._spelled = Marks((marker, "marker") for marker in messages.markers)
        self._controls = False
        self._held = ""  # possible beginning of a marker
        self._state: Literal["between", "header", "body"] = "between"
        self._header = ""
        self._started = False  # the header follows a start marker
        self._kind: Kind = "text"
        self._name = self._body = ""
        for _ in self._text(prompt):
            pass  # already in the prompt
        self._body = ""

    @property
    def in_answer(self) -> bool:
        "Whether the text of the answer comes next"
        return self._state == "body" and self._kind == "text"

    @property
    def may_answer(self) -> bool:
        return self.in_answer

    @property
    def is_thinking(self) -> bool:
        return self._state == "body" and self._kind == "reasoning"

    def feed(self, text: str, control: bool) -> None:
        "Add the text of one token"
        self._n_feeds += 1
        self._add(self._read(text, control))

    def end(self, ended_by: str | None) -> None:
        "End the answer; ``ended_by`` is None if it was cut off"
        self._add(self._rest(ended_by is not None))

    def _add(self, found: Iterable[_Said]) -> None:
        record, n = self._record, self._n_feeds
        for said in found:
            if said.kind != "call":
                record.add(said.kind, said.text, n - 1, n)
                continue
            begin = record.parts[-1].end if record.parts else 0
            if record.calls and not self._several:
                record.add("text", said.text, begin, n)
                continue
            for name, arguments in said.calls:
                record.add_call(Call(self._new_id(), name, arguments), begin, n)

    def _read(self, text: str, control: bool) -> Iterator[_Said]:
        if control:
            yield from self._release()
            if text in self._messages.markers:
                self._controls = True
                yield from self._marker(text)
            elif self._state == "body" and self._kind == "call":
                self._body += text
        elif self._controls:
            yield from self._plain(text)
        else:
            yield from self._text(text)

    def _rest(self, ended: bool) -> Iterator[_Said]:
        "What was held back; ``ended`` if the answer was not cut off"
        yield from self._release()
        if self._state == "body" and self._kind == "call":
            yield from self._close(ended)
        elif self._state == "header" and not self._spelled.pattern.search(self._header):
            yield from self._not_a_header()

    def _text(self, text: str) -> Iterator[_Said]:
        "Text that may contain markers"
        text, done = self._held + text, 0
        self._held = ""
        for match in self._spelled.pattern.finditer(text):
            yield from self._plain(text[done : match.start()])
            yield from self._marker(match[0])
            done = match.end()
        begun = self._spelled.begun(text, done)
        self._held = text[begun:]
        yield from self._plain(text[done:begun])

    def _release(self) -> Iterator[_Said]:
        held, self._held = self._held, ""
        yield from self._plain(held)

    def _plain(self, text: str) -> Iterator[_Said]:
        if not text:
            return
        if self._state == "between" and text.strip():
            self._state, self._header, self._started = "header", "", False
        if self._state == "header":
            self._header += text
            marked = self._spelled.pattern.search(self._header)
            fits = marked or _ROLE.fullmatch(self._header.lstrip("\n"))
            if not fits or len(self._header) > _LONGEST_HEADER:
                yield from self._not_a_header()
        elif self._state == "body":
            if self._kind == "call":
                self._body += text
            else:
                yield _Said(self._kind, text, [])

    def _marker(self, marker: str) -> Iterator[_Said]:
        messages = self._messages
        if self._state == "header" and marker == messages.message:
            self._state = "body"
            self._kind, self._name = _section(self._header)
            self._body = ""
        elif self._state == "body" and marker == messages.message:
            return
        elif marker in messages.ends or marker == messages.start:
            if self._state == "body":
                yield from self._close(marker in messages.ends)
            self._state = "header" if marker == messages.start else "between"
            self._header, self._started = "", marker == messages.start
        else:
            if self._state != "header":
                yield from self._close(False)
                self._state, self._header, self._started = "header", "", False
            self._header += marker

    def _close(self, complete: bool) -> Iterator[_Said]:
        "The end of a message"
        body, self._body = self._body, ""
        if self._state != "body" or self._kind != "call":
            return
        found = self._messages.calls(self._name, body, self._offered)
        if complete and found:
            yield _Said("call", body, found)
        else:
            yield _Said("text", body, [])

    def _not_a_header(self) -> Iterator[_Said]:
        "The model left out the header: what it wrote is the answer"
        header, self._header = self._header, ""
        self._state, self._kind = "body", "text"
        if self._started:
            header = header.removeprefix("assistant")
        if header:
            yield _Said("text", header, [])


def _section(header: str) -> tuple[Kind, str]:
    "The kind of a message, and the name of the function that it is for"
    recipients, channels = _RECIPIENT.findall(header), _CHANNEL.findall(header)
    recipient = recipients[-1] if recipients else ""
    if recipient not in ("", "assistant", "user", "self"):
        return "call", recipient.removeprefix("functions.")
    thought = recipient == "self" or channels[-1:] == ["analysis"]
    return ("reasoning" if thought else "text"), ""
