"""What a model says, as events: thinking, text and tool calls.

The idea: an answer is read token by token, with the control tokens that users never
see, in the form that the template's dialect describes.

The invariant: text that is neither thinking nor part of a call is returned as text,
and a call only once it is complete.

This module does not know models, tokens' numbers, or who shows the events.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .answer import AnswerReader
from .dialect import Dialect
from .named import MessageReader
from .parts import Call, Event, Part, Record


class Reader:
    """Takes an answer, one token at a time, and returns events.

    ``tools`` are as chat templates take them. ``prompt`` is what the template wrote
    after the last message, plus what a continued answer has so far: it shows whether
    thinking has already begun. Without ``several`` there is at most one call; further
    ones are text.
    """

    def __init__(
        self,
        dialect: Dialect,
        tools: Sequence[dict[str, Any]] = (),
        prompt: str = "",
        several: bool = True,
    ):
        functions = [tool["function"] for tool in tools]
        offered = {each["name"]: each.get("parameters") or {} for each in functions}
        record = self._record = Record()
        self._answer: AnswerReader | MessageReader
        if dialect.messages is None:
            self._answer = AnswerReader(dialect, offered, prompt, record, several)
        else:
            self._answer = MessageReader(
                dialect.messages, offered, prompt, record, dialect.new_id, several
            )

    @property
    def text(self) -> str:
        "The text of the answer so far"
        return self._record.text

    @property
    def reasoning(self) -> str:
        "The thinking so far"
        return self._record.reasoning

    @property
    def calls(self) -> list[Call]:
        "The calls so far"
        return self._record.calls

    @property
    def parts(self) -> list[Part]:
        "Thinking, text and calls so far, in order, as llm logs them"
        return self._record.parts

    @property
    def in_answer(self) -> bool:
        "Whether the answer itself has begun, or begins with the next token"
        return self._answer.in_answer

    @property
    def may_answer(self) -> bool:
        """Whether the answer may begin here: neither thinking nor a header is open.

        A constraint holds from here on, and stop strings count.
        """
        return self._answer.may_answer

    @property
    def is_thinking(self) -> bool:
        "Whether thinking has begun and is not over; False in a header"
        return self._answer.is_thinking

    @property
    def missing(self) -> str:
        "What must follow to complete the calls so far, if anything"
        return self._answer.missing

    def feed(self, text: str, control: bool = False) -> list[Event]:
        "Add the text of one token; ``control`` if it is a control token's name"
        self._answer.feed(text, control)
        return self._record.take()

    def end(self, ended_by: str | None = None) -> list[Event]:
        """End the answer; returns what was held back.

        ``ended_by`` is the text of the token that the model ended it with, None if it
        was cut off.
        """
        self._answer.end(ended_by)
        return self._record.take()
