"""Formats that comparing a template's renderings cannot find out, by name.

The idea: gpt-oss and muse-glimmer write an answer as messages, each with a header that
says whom it is for: ``<|channel|>analysis<|message|>`` is thinking, a header with
``to=functions.get_time`` makes the message the arguments of a call. What a message is
depends on its header, not on what is around it, so it is read here.

The invariant: a message to a function is a call only if it is complete: its end came,
or the model ended the answer with it, and its arguments can be read.

This module does not know where a model's text comes from, or which functions there are.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["text", "reasoning", "call"]
Found = list[tuple[str, dict[str, Any]]]  # calls: names and arguments

_RECIPIENT = re.compile(r"\bto=([^\s<]+)")
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)")
# What a header is before its first control token, while it is being written
_ROLE = re.compile(r"(a(s(s(i(s(t(a(n(t)?)?)?)?)?)?)?)?)?( (t(o(=\S*)?)?)?)?")
_LONGEST_HEADER = 200


def _json_object(name: str, text: str) -> Found | None:
    try:
        arguments = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None
    return [(name, arguments)] if isinstance(arguments, dict) else None


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


@dataclass(frozen=True)
class Messages:
    """How the messages that an answer consists of are written.

    ``thinking`` is what stands around it. ``calls`` reads the text of a message to a
    function; None if it is not a call.
    """

    thinking: tuple[str, str]
    start: str
    message: str
    ends: tuple[str, ...]
    others: tuple[str, ...] = ()  # in headers
    calls: Callable[[str, str], Found | None] = _json_object

    def markers(self) -> tuple[str, ...]:
        return (self.start, self.message, *self.ends, *self.others)


GPT_OSS = Messages(
    ("<|channel|>analysis<|message|>", "<|end|>"),
    "<|start|>",
    "<|message|>",
    ("<|end|>", "<|call|>", "<|return|>"),
    ("<|channel|>", "<|constrain|>"),
)


def messages_of(source: str) -> Messages | None:
    "The messages that a template writes answers as, if it is one of those"
    return GPT_OSS if "<|channel|>analysis<|message|>" in source else None


@dataclass
class Said:
    "Something that has become certain: text, or a call with the text it was read from"

    kind: Kind
    text: str
    calls: Found


class MessageReader:
    """Reads an answer that consists of messages, token by token.

    ``prompt`` is the end of the prompt. Once a marker has come as a control token,
    text that spells one is text.
    """

    def __init__(self, messages: Messages, prompt: str = ""):
        self._messages = messages
        self._spelled = re.compile("|".join(map(re.escape, messages.markers())))
        self._controls = False
        self._held = ""  # may be the beginning of a marker
        self._state: Literal["between", "header", "body"] = "between"
        self._header = ""
        self._started = False  # by the control token that comes before a header
        self._kind: Kind = "text"
        self._name = self._body = ""
        for _ in self._text(prompt):
            pass  # what the prompt says already
        self._body = ""

    @property
    def in_answer(self) -> bool:
        "Whether what comes now is the text of the answer"
        return self._state == "body" and self._kind == "text"

    def feed(self, text: str, control: bool = False) -> Iterator[Said]:
        "Add the text of one token"
        if control:
            yield from self._release()
            if text in self._messages.markers():
                self._controls = True
                yield from self._marker(text)
        elif self._controls:
            yield from self._plain(text)
        else:
            yield from self._text(text)

    def end(self, ended_by: str | None) -> Iterator[Said]:
        "The answer has ended; None if it was cut off"
        yield from self._release()
        if self._state == "body" and self._kind == "call":
            yield from self._close(ended_by is not None)
        elif self._state == "header" and not self._spelled.search(self._header):
            yield from self._not_a_header()

    def _text(self, text: str) -> Iterator[Said]:
        "Text that may spell markers"
        text, done = self._held + text, 0
        self._held = ""
        for match in self._spelled.finditer(text):
            yield from self._plain(text[done : match.start()])
            yield from self._marker(match[0])
            done = match.end()
        rest = text[done:]
        hold = _begun(rest, self._messages.markers())
        self._held = rest[len(rest) - hold :]
        yield from self._plain(rest[: len(rest) - hold])

    def _release(self) -> Iterator[Said]:
        held, self._held = self._held, ""
        yield from self._plain(held)

    def _plain(self, text: str) -> Iterator[Said]:
        if not text:
            return
        if self._state == "between" and text.strip():
            self._state, self._header, self._started = "header", "", False
        if self._state == "header":
            self._header += text
            marked = self._spelled.search(self._header)
            fits = marked or _ROLE.fullmatch(self._header.lstrip("\n"))
            if not fits or len(self._header) > _LONGEST_HEADER:
                yield from self._not_a_header()
        elif self._state == "body":
            if self._kind == "call":
                self._body += text
            else:
                yield Said(self._kind, text, [])

    def _marker(self, marker: str) -> Iterator[Said]:
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

    def _close(self, complete: bool) -> Iterator[Said]:
        "The end of a message"
        body, self._body = self._body, ""
        if self._state != "body" or self._kind != "call":
            return
        calls = self._messages.calls(self._name, body) if complete else None
        yield Said("call" if calls else "text", body, calls or [])

    def _not_a_header(self) -> Iterator[Said]:
        "The model left the header out: what it wrote is the answer"
        header, self._header = self._header, ""
        self._state, self._kind = "body", "text"
        if self._started:
            header = header.removeprefix("assistant")
        if header:
            yield Said("text", header, [])


def _section(header: str) -> tuple[Kind, str]:
    "What a message is, and the name of the function that it is for"
    recipients, channels = _RECIPIENT.findall(header), _CHANNEL.findall(header)
    recipient = recipients[-1] if recipients else ""
    if recipient not in ("", "assistant", "user", "self"):
        return "call", recipient.removeprefix("functions.")
    thought = recipient == "self" or channels[-1:] == ["analysis"]
    return ("reasoning" if thought else "text"), ""


def _begun(text: str, markers: tuple[str, ...]) -> int:
    "How many of a text's last characters may be the beginning of a marker"
    longest = max(map(len, markers)) - 1
    for length in range(min(longest, len(text)), 0, -1):
        if any(marker.startswith(text[-length:]) for marker in markers):
            return length
    return 0
