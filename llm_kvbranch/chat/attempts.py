"""Telling calls from text: attempts to read a call at one place of an answer.

The idea: all forms are tried at once, each with its own reader. An attempt fails at
the first character that cannot be part of a call. The first form in the list that
reads a call wins.

The invariant: what no attempt reads is left as it is.

This module does not know what comes before the place, or who receives the calls.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from .formats import Form, Found, Offered, calls
from .scanning import Mismatch, Scanner, Source

_OPENING = re.compile(r"(?:^|[\s(\[{])[\"'“‘«]$|[“‘«]$")  # noqa: RUF001
# A fence, the end of a paragraph, or backticks
_CODE = re.compile(r"^\s*(?P<fence>```|~~~)|\n\s*\n|(?P<run>`+)", re.MULTILINE)
_MAY_GROW = "`~ \t\n\r\f\v"


class _Attempt:
    "A form being tried, and the calls it has read"

    def __init__(self, form: Form, source: Source, at: int, offered: Offered):
        self.form = form
        self.scanner = Scanner(source, at)
        self.reading = calls(form, self.scanner, offered)
        self.found: list[Found] = []
        self.over = False
        self.failed = False

    def read(self) -> None:
        "Read on, as far as the text goes"
        while not self.over:
            try:
                found = next(self.reading)
            except StopIteration:
                self.over = True
            except Mismatch:
                self.over = True
                self.failed = self.form.whole or not self.found
            else:
                if found is None:
                    return
                self.found.append(found)

    @property
    def rest(self) -> str:
        return self.scanner.source.text[self.scanner.at :]


class Attempts:
    "All forms tried at a place; ``calls`` are those of the form that won"

    def __init__(
        self, forms: Iterable[Form], source: Source, at: int, offered: Offered
    ):
        self.at = at
        self._source = source
        self._offered = offered
        self._left = [_Attempt(form, source, at, offered) for form in forms]
        self._won: _Attempt | None = None

    def read(self) -> bool:
        "Read on; False if there is no call here"
        if self._won is not None:
            self._won.read()
            return True
        for attempt in self._left:
            attempt.read()
        self._left = [attempt for attempt in self._left if not self._failed(attempt)]
        if not self._left:
            return False
        first = self._left[0]
        if self._has_call(first) and (
            not first.form.whole or (first.over and self._source.done)
        ):
            self._won = first
        return True

    def _failed(self, attempt: _Attempt) -> bool:
        if attempt.failed or not attempt.over:
            return attempt.failed
        text_follows = attempt.form.whole and bool(attempt.rest.strip())
        return text_follows or not self._has_call(attempt)

    def _has_call(self, attempt: _Attempt) -> bool:
        return any(found.name in self._offered for found in attempt.found)

    @property
    def calls(self) -> list[Found]:
        "The calls so far, including calls to tools that were not offered"
        return self._won.found if self._won else []

    @property
    def missing(self) -> str:
        "What ends the list of calls that is open"
        won = self._won
        return won.form.end if won is not None and not won.over else ""

    @property
    def end(self) -> int | None:
        "Where the calls end in the text, once that is known"
        return self._won.scanner.at if self._won and self._won.over else None


class Quotes:
    """Whether places in a text are inside code or quotes.

    Ask in order: each character is read once, because a model that repeats itself may
    write thousands of marks.
    """

    def __init__(self) -> None:
        self._at = 0  # everything before has been read
        self._state = _Code()

    def holds(self, text: str) -> bool:
        "Whether what follows a text is quoted; the text must extend the last one"
        state, at = self._state, self._at
        for found in _CODE.finditer(text, at):
            if found.end() == len(text):  # it may become longer
                break
            state, at = state.after(found), found.end()
        self._state = state
        self._at = max(at, len(text.rstrip(_MAY_GROW)))
        for found in _CODE.finditer(text, self._at):
            state = state.after(found)
        return state.fenced or state.run > 0 or bool(_OPENING.search(text[-2:]))


@dataclass(frozen=True)
class _Code:
    "Whether a fence is open, and how many backticks opened code in a paragraph"

    fenced: bool = False
    run: int = 0

    def after(self, found: re.Match[str]) -> _Code:
        if found["fence"]:
            return _Code(not self.fenced)
        if found["run"] is None:
            return _Code(self.fenced)
        length = len(found["run"])
        if not self.run:
            return _Code(self.fenced, length)
        return _Code(self.fenced) if length == self.run else self
