"""Parsing text that is still being written.

The idea: parsers are generators. They yield when they need more text, return what they
have read, and raise Mismatch as soon as the text cannot match. So the first character
that differs decides, and text is read once however slowly it comes.

The invariant: JSON is strict. What two readers of JSON could understand differently
(NaN, a duplicate key, half a surrogate pair) does not match.

This module does not know calls or models.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Generator, Iterable, Sequence
from typing import Any, TypeVar

T = TypeVar("T")
Reading = Generator[None, None, T]

# A placeholder in a mark for a number or an id, which is read and kept
ANY = "\ue010"

_WORD = re.compile(r"```|(?:(?!```)\S)+")  # white space may surround a fence
_SPACE = re.compile(r"\s*")
_ANY = re.compile(r"[\w.:-]{0,128}")
_STRING_END = re.compile(r'[^"\\\x00-\x1f]*(?:\\.[^"\\\x00-\x1f]*)*', re.DOTALL)
_SCALAR = re.compile(r"[-+.\w]*")
_NUMBER = re.compile(r"-?(?:0|[1-9]\d*)(\.\d+)?([eE][-+]?\d+)?", re.ASCII)
_LITERALS = {"true": True, "false": False, "null": None}
DEPTH = 64  # of nested values
_DIGITS = 400


class Mismatch(Exception):
    "The text is not what is being read"


class Source:
    "A text that grows until ``done``; ``ended`` if it was not cut off"

    def __init__(self) -> None:
        self.text = ""
        self.done = False
        self.ended = False


class Marks:
    "Texts to look for, each with its kind; where two match, the longer one counts"

    def __init__(self, kinds: Iterable[tuple[str, str]]):
        # The first kind given for a mark counts
        self.kinds = {mark: kind for mark, kind in reversed([*kinds]) if mark}
        marks = sorted(self.kinds, key=len, reverse=True)
        self.pattern = re.compile("|".join(map(re.escape, marks)) or "(?!)")
        self._begun = {mark[:n] for mark in marks for n in range(1, len(mark))}
        self._longest = max(map(len, marks), default=0)
        firsts = "".join(sorted({mark[0] for mark in marks}))
        self._firsts = re.compile(f"[{re.escape(firsts)}]" if firsts else "(?!)")

    def may_begin(self, text: str) -> bool:
        "Whether a text has a character that a mark begins with"
        return self._firsts.search(text) is not None

    def find(self, source: Source, at: int) -> re.Match[str] | None:
        "The next mark, unless more text could make it a longer one"
        found = self.pattern.search(source.text, at)
        if found and not source.done and source.text[found.start() :] in self._begun:
            return None
        return found

    def begun(self, text: str, at: int) -> int:
        "Where a mark may have begun at the end of a text; its length if none has"
        for begin in range(max(at, len(text) - self._longest), len(text)):
            if text[begin:] in self._begun:
                return begin
        return len(text)


class Scanner:
    "A place in a text, and parsers that advance it"

    def __init__(self, source: Source, at: int = 0):
        self.source = source
        self.at = at
        self.kept: list[str] = []  # the texts in place of ANY

    def more(self) -> Reading[None]:
        "Wait for more text"
        if self.source.done:
            raise Mismatch
        yield

    def space(self) -> None:
        "Advance past the white space so far"
        found = _SPACE.match(self.source.text, self.at)
        assert found is not None
        self.at = found.end()

    def skip(self) -> Reading[str]:
        "Advance to the next character that is not white space"
        while True:
            self.space()
            if self.at < len(self.source.text):
                return self.source.text[self.at]
            yield from self.more()

    def exact(self, word: str) -> Reading[None]:
        "Read these characters; ANY among them is read as an id"
        first, *others = word.split(ANY)
        yield from self._exact(first)
        for part in others:
            self.kept.append((yield from self.run(_ANY, part)))
            yield from self._exact(part)

    def _exact(self, word: str) -> Reading[None]:
        while True:
            text = self.source.text[self.at : self.at + len(word)]
            if text == word:
                self.at += len(word)
                return
            if not word.startswith(text):
                raise Mismatch
            yield from self.more()

    def run(self, pattern: re.Pattern[str], stop: str = "") -> Reading[str]:
        "Characters that match a pattern, up to the first that does not, or a stop"
        while True:
            found = pattern.match(self.source.text, self.at)
            text = found[0] if found else ""
            cut = text.find(stop) if stop else -1
            if cut >= 0:
                text = text[:cut]
            elif self.at + len(text) >= len(self.source.text) and not self.source.done:
                yield
                continue
            self.at += len(text)
            return text

    def mark(self, mark: str) -> Reading[None]:
        "A template's own text; the amount of white space in it may differ"
        for word in _WORD.findall(mark):
            yield from self.skip()
            yield from self.exact(word)

    def choose(self, marks: Sequence[str]) -> Reading[int]:
        "Read the first of several marks that matches; returns its index"
        start = self.at
        for n, mark in enumerate(marks):
            self.at = start
            try:
                yield from self.mark(mark)
            except Mismatch:
                continue
            return n
        raise Mismatch

    def upto(self, stop: str) -> Reading[str]:
        "Everything before a stop, which is left unread"
        begin = search = self.at
        while (end := self.source.text.find(stop, search)) < 0:
            search = max(begin, len(self.source.text) - len(stop) + 1)
            yield from self.more()
        self.at = end
        return self.source.text[begin:end]

    def value(self, depth: int = DEPTH) -> Reading[Any]:
        "A JSON value"
        char = yield from self.skip()
        if char == '"':
            return (yield from self.string())
        if char == "{":
            return (yield from self.object(depth))
        if char == "[":
            return (yield from self.array(depth))
        return scalar((yield from self.word()))

    def word(self) -> Reading[str]:
        "The characters of a number or a literal"
        return (yield from self.run(_SCALAR))

    def string(self) -> Reading[str]:
        "A JSON string"
        yield from self.exact('"')
        begin = search = self.at
        while True:
            found = _STRING_END.match(self.source.text, search)
            end = found.end() if found else search
            if end < len(self.source.text):
                if self.source.text[end] == '"':
                    break
                if self.source.text[end] != "\\":  # a control character
                    raise Mismatch
            search = end
            yield from self.more()
        self.at = end + 1
        try:
            text: str = json.loads(self.source.text[begin - 1 : end + 1])
            text.encode()
        except ValueError:
            raise Mismatch from None
        return text

    def object(self, depth: int = DEPTH) -> Reading[dict[str, Any]]:
        "A JSON object"
        found: dict[str, Any] = {}
        yield from self.exact("{")
        while (yield from self.item("}", not found)):
            yield from self.skip()
            key = yield from self.string()
            yield from self.mark(":")
            if key in found:
                raise Mismatch
            found[key] = yield from self._inner(depth)
        return found

    def array(self, depth: int = DEPTH) -> Reading[list[Any]]:
        "A JSON array"
        found: list[Any] = []
        yield from self.exact("[")
        while (yield from self.item("]", not found)):
            found.append((yield from self._inner(depth)))
        return found

    def item(self, end: str, first: bool) -> Reading[bool]:
        "Whether another item follows; if not, reads the end of the list"
        char = yield from self.skip()
        if char == end or not first:
            if char not in (end, ","):
                raise Mismatch
            self.at += 1
        return char != end

    def _inner(self, depth: int) -> Reading[Any]:
        if not depth:
            raise Mismatch
        return (yield from self.value(depth - 1))


def scalar(text: str) -> Any:
    "A JSON number, true, false or null"
    if text in _LITERALS:
        return _LITERALS[text]
    number = _NUMBER.fullmatch(text)
    if number is None or len(text) > _DIGITS:
        raise Mismatch
    if number[1] is None and number[2] is None:
        return int(text)
    if not math.isfinite(value := float(text)):
        raise Mismatch
    return value


def run(reading: Reading[T]) -> T:
    "The result of parsing a text that is done"
    try:
        next(reading)
    except StopIteration as end:
        value: T = end.value
        return value
    raise Mismatch


def read_json(text: str) -> Any:
    "Parse a text that is one JSON value; raises Mismatch"
    source = Source()
    source.text, source.done = text.strip(), True
    scanner = Scanner(source)
    value = run(scanner.value())
    if scanner.at != len(source.text):
        raise Mismatch
    return value
