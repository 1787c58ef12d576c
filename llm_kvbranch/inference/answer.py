"""What an answer says, token by token.

The idea: the bytes of tokens become text, and a reader tells thinking, text and calls
apart. A stop string counts in the answer only. When a budget of thinking is used up,
the tokens that close the thinking follow, as if the model had generated them.

The invariant: the same tokens give the same events, whichever process reads them.

This module does not know how tokens are decoded or drawn.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Sequence
from typing import Any, Protocol

from ..chat import Call, Chat, Event, Part, Reader, Rendering, message_text
from .text import TextStream

_PROMPT_END = 64  # tokens of a prompt that show whether thinking has begun
_QUOTED = 40  # characters that show where the last message ends among them


class Spelling(Protocol):
    "What is needed of a vocabulary here"

    def piece(self, token: int, /) -> bytes: ...
    def control_text(self, token: int, /) -> str: ...
    def tokenize(self, text: str, special: bool) -> Sequence[int]: ...


class AnswerStream:
    """Takes an answer's tokens, returns its events.

    ``raw`` is the text that the tokens spell, without what a stop string cuts.
    ``budget`` is how many tokens of thinking may be generated, ``closing`` are the
    tokens that close it. ``n_thinking`` counts those of thinking. With ``one_call``
    the answer is over with its first call, and the end that its form asks for.
    """

    def __init__(
        self,
        vocabulary: Spelling,
        reader: Reader,
        stop: Sequence[str] = (),
        budget: int | None = None,
        closing: Sequence[int] = (),
        one_call: bool = False,
    ):
        self._reader = reader
        self._vocabulary = vocabulary
        self._text = TextStream(stop)
        self._budget = budget if closing else None
        self._closing = tuple(closing)
        self._forced: deque[int] = deque()
        self._one_call = one_call
        self._closes_call = False
        self.n_thinking = 0
        self.is_over_budget = False
        self._check_budget()

    @property
    def raw(self) -> str:
        return self._text.text

    @property
    def calls(self) -> list[Call]:
        return self._reader.calls

    @property
    def parts(self) -> list[Part]:
        return self._reader.parts

    @property
    def stopped(self) -> bool:
        "Whether there was a stop string"
        return self._text.stopped

    @property
    def has_begun(self) -> bool:
        "Whether thinking and headers are over"
        return self._reader.may_answer

    @property
    def has_called(self) -> bool:
        "Whether the one call that there may be has come, with what ends it"
        called = self._one_call and bool(self._reader.calls)
        return called and not self._forced

    @property
    def may_call(self) -> bool:
        "Whether a call may come next: thinking is over, a header need not have come"
        return not self._reader.is_thinking

    @property
    def forced(self) -> int | None:
        "The token that comes next whatever the model would generate, if any"
        return self._forced[0] if self._forced else None

    def feed(self, token: int) -> list[Event]:
        "Add a token; returns what is certain now"
        if self._forced:
            self._forced.popleft()
        self.n_thinking += self._reader.is_thinking
        events = self._read(token)
        self._check_budget()
        self._check_call()
        return events

    def _read(self, token: int) -> list[Event]:
        reader, text = self._reader, self._text
        if control := self._vocabulary.control_text(token):
            held = text.release()
            before = reader.feed(held) if held else []
            return [*before, *reader.feed(control, control=True)]
        piece = self._vocabulary.piece(token)
        return reader.feed(text.feed(piece, stops=reader.may_answer))

    def end(self, ended_by: str | None = None) -> list[Event]:
        """The answer has ended; returns what was held back.

        ``ended_by`` is the text of the token that the model ended it with, None if it
        was cut off.
        """
        held = self._text.release()
        before = self._reader.feed(held) if held else []
        return [*before, *self._reader.end(ended_by)]

    def name_again(self, calls: Sequence[Call]) -> None:
        "Give the first calls the ids that another process made for them"
        parts = [part for part in self._reader.parts if part.call is not None]
        for part, call in zip(parts, calls, strict=False):
            part.call = call

    def _check_call(self) -> None:
        "Close the list of calls after the first one"
        if not self._one_call or self._closes_call or not self._reader.calls:
            return
        self._closes_call = True
        if end := self._reader.missing:
            self._forced.extend(self._vocabulary.tokenize(end, special=True))

    def _check_budget(self) -> None:
        "Close the thinking once it has used up its budget, but not inside a character"
        if self._budget is None or self.is_over_budget or not self._reader.is_thinking:
            return
        if self.n_thinking >= self._budget and self._text.is_whole:
            self.is_over_budget = True
            self._forced.extend(self._closing)


def reader_after(
    chat: Chat,
    rendering: Rendering,
    messages: Sequence[Any],
    prompt: array[int],
    several: bool = True,
) -> Reader:
    "What reads an answer to messages, which are the tokens of the prompt"
    begun = _after(messages[-1:], chat.spell(prompt[-_PROMPT_END:]))
    return Reader(chat.dialect, rendering.tools, begun, several)


def _after(last: Sequence[Any], prompt: str) -> str:
    "What the template wrote after the last message, which may quote anything"
    said = "".join(map(message_text, last)).rstrip()[-_QUOTED:]
    return prompt.rpartition(said)[2] if said else prompt
