"""Reading an answer that is thinking, text and calls between marks.

The idea: a mark is a text at which something else begins: thinking, its end, a header,
a call. Where a call may begin, text is held back until it is a call or cannot be one.

The invariant: what is neither thinking nor part of a call is recorded as text. A call
is recorded once its end has been read, if its tool was offered and it is not inside
thinking, code or quotes.

This module does not know models or templates, or who is told.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Sequence

from . import known
from .attempts import Attempts, Quotes
from .dialect import Dialect, Thinking
from .formats import Form, Found, Offered
from .parts import Call, Kind, Record
from .scanning import Marks, Source

# For templates that show none; only counts at the beginning of an answer
_THINKING = Thinking("<think>", "</think>")
_SPACE = re.compile(r"\s*")
_CONTROL = re.compile(r"<[|｜]|[|｜]>|\[/?[A-Z_]+\]")  # noqa: RUF001


class AnswerReader:
    "Reads an answer token by token into a record"

    def __init__(
        self,
        dialect: Dialect,
        offered: Offered,
        prompt: str,
        record: Record,
        several: bool = True,
    ):
        self._dialect = dialect
        self._offered = offered
        self._record = record
        self._several = several
        self._source = Source()
        self._starts: list[int] = []  # of each feed, in the text
        self._hidden: deque[tuple[int, int]] = deque()  # control tokens, in the text
        self._at = 0  # everything before was recorded or left out
        self._seen = 0  # no mark begins before
        self._since = 0  # where the current stretch of text or thinking began
        self._quotes = Quotes()  # in this stretch
        self._attempts: Attempts | None = None
        self._given = 0  # of the calls of these attempts
        self._nested: list[Found] = []  # possible calls inside thinking
        self._nested_at = 0
        self._trim = False  # leave out the white space that comes next
        # Nothing was said yet: thinking or a call without a mark may begin
        self._fresh = True
        self._called = False  # the last thing was a call
        self._find_marks(prompt)

    def _find_marks(self, prompt: str) -> None:
        dialect = self._dialect
        thinking = dialect.thinking or _THINKING
        open, close = thinking.tags
        self._thinking = self._trim = thinking.starts_open(prompt)
        if self._thinking and thinking.is_spoken:
            self._record.add("reasoning", thinking.open, 0, 0)
        self._may_think = dialect.thinking is not None and not thinking.is_over(prompt)
        heads = [(head.strip(), "head") for head in dialect.heads]
        self._headed = not heads or any(head in prompt for head, _ in heads)
        tails = [(tail.strip(), "tail") for tail in dialect.tails]
        forms = [*dialect.forms, *known.TAGGED, *known.WHOLE] if self._offered else []
        self._forms = [form for form in forms if not form.whole]
        self._whole = [form for form in forms if form.whole]
        self._quotable = " ".join(form.marks for form in forms)
        calls = [(form.trigger, "call") for form in self._forms]
        closers = [(word, "closer") for form in self._forms for word in form.closers]
        around = [(close, "close"), (open, "open"), *heads]
        self._in_thinking = Marks([*around, *calls])
        self._in_answer = Marks([*around, *tails, *calls, *closers])

    @property
    def in_answer(self) -> bool:
        "Whether the answer itself has begun, or begins with the next token"
        if self._thinking:
            return False
        return bool(self._record.text) or (self._headed and not self._may_think)

    @property
    def may_answer(self) -> bool:
        return not self._thinking and (self._headed or bool(self._record.text))

    @property
    def is_thinking(self) -> bool:
        return self._thinking

    @property
    def missing(self) -> str:
        "What ends the list of calls that is open"
        return self._attempts.missing if self._attempts is not None else ""

    def feed(self, text: str, control: bool) -> None:
        "Add the text of one token"
        begin = len(self._source.text)
        self._starts.append(begin)
        self._source.text += text
        # One that is used in calls is kept, in case there is no call
        if control and text and text not in self._quotable:
            self._hidden.append((begin, begin + len(text)))
        if control or not self._continue(text, begin):
            self._read()

    def _continue(self, text: str, begin: int) -> bool:
        "Record a token in which nothing can begin or end, as in most of an answer"
        marks = self._in_thinking if self._thinking else self._in_answer
        if (
            self._at != begin  # something before it is held back
            or self._fresh
            or self._trim
            or self._attempts is not None
            or not text
            or text[-1].isspace()
            or marks.may_begin(text)
        ):
            return False
        self._at = self._seen = begin + len(text)
        n = len(self._starts)
        if self._thinking:
            self._record.add("reasoning", text, n - 1, n)
        else:
            self._called = False
            self._record.add("text", text, n - 1, n)
        return True

    def end(self, ended_by: str | None) -> None:
        "End the answer; ``ended_by`` is None if it was cut off"
        self._source.done, self._source.ended = True, ended_by is not None
        self._read()
        end = len(self._source.text)
        if self._thinking:
            self._give("reasoning", end, trim=True)
        else:
            self._give("text", end)

    def _read(self) -> None:
        while self._step():
            pass

    def _step(self) -> bool:
        "Read on; False if more text is needed"
        if self._attempts is not None:
            if not self._attempts.read():
                return self._fail()
            return self._try_nested() if self._thinking else self._try()
        if self._trim:
            self._at = self._skip(self._at)
            self._seen = max(self._seen, self._at)
        if self._at == len(self._source.text):
            return False
        return self._think() if self._thinking else self._say()

    def _think(self) -> bool:
        "Read thinking, up to its end or to what may be a call"
        found = self._in_thinking.find(self._source, self._seen)
        if found is None:
            return self._until_mark("reasoning", self._in_thinking)
        kind, at = self._in_thinking.kinds[found[0]], found.start()
        if kind == "call" and self._may_end_thinking(at, found[0]):
            self._give("reasoning", at, trim=True)
            self._nested_at = at
            self._try_forms(self._forms, at)
        elif kind == "call" or (
            kind == "open" and self._source.text[self._since : at].strip()
        ):
            self._seen = at + 1
        else:
            self._give("reasoning", at, trim=True)
            self._pass(found.end())
            if kind != "open":  # repeats the one in the prompt
                self._thinking = self._may_think = False
                self._fresh = True
                self._headed = self._headed or kind == "head"
        return True

    def _may_end_thinking(self, at: int, mark: str) -> bool:
        "Whether a call that begins here could end thinking that is never closed"
        before = self._source.text[self._since : at]
        line = before[before.rfind("\n") + 1 :]
        alone = not line.strip() or bool(_CONTROL.search(mark))
        return alone and not self._quotes.holds(before)

    def _say(self) -> bool:
        "Read the answer, up to the next mark"
        text = self._source.text
        found = self._in_answer.find(self._source, self._seen)
        if self._fresh:
            begin = self._skip(self._at)
            if begin == len(text):
                return False
            if found is None or found.start() > begin:
                if self._in_answer.begun(text, begin) == begin:
                    return False
                self._fresh = self._may_think = False
                if self._whole:
                    self._try_forms(self._whole, begin)
                    return True
        if found is None:
            return self._until_mark("text", self._in_answer)
        kind, at = self._in_answer.kinds[found[0]], found.start()
        if not self._counts(kind, at, found[0]):
            self._seen = at + 1
        elif kind == "call":
            self._give("text", at, trim=True)
            whole = self._whole if self._fresh else []
            self._try_forms([*self._forms, *whole], at)
        else:
            self._give("text", at, trim=True)
            self._pass(found.end())
            self._thinking = kind == "open"
            self._headed = self._headed or kind == "head"
            self._may_think = self._may_think and kind != "close"
        return True

    def _counts(self, kind: str, at: int, mark: str) -> bool:
        "Whether a mark has its meaning here"
        first = not self._source.text[self._at : at].strip()
        if kind == "call":
            return not self._quotes.holds(self._source.text[self._since : at])
        if kind == "closer":
            return first and self._called
        if kind in ("head", "tail"):
            return True
        return (first and (self._fresh or self._called)) or bool(_CONTROL.search(mark))

    def _until_mark(self, kind: Kind, marks: Marks) -> bool:
        "Record the text before a mark that may have begun; False: more is needed"
        text = self._source.text
        self._seen = end = marks.begun(text, max(self._at, self._seen))
        self._give(kind, end, trim=bool(self._offered) or kind == "reasoning")
        return False

    def _try_forms(self, forms: Sequence[Form], at: int) -> None:
        self._attempts = Attempts(forms, self._source, at, self._offered)
        self._given = 0

    def _fail(self) -> bool:
        "There is no call where one was tried"
        assert self._attempts is not None
        self._seen = (self._nested_at if self._thinking else self._attempts.at) + 1
        self._attempts, self._nested = None, []
        self._fresh = self._may_think = False
        return True

    def _try(self) -> bool:
        "Record calls as they come"
        attempts = self._attempts
        assert attempts is not None
        for found in attempts.calls[self._given :]:
            self._given += 1
            if found.name in self._offered:
                self._call(found)
            else:
                self._at = found.begin
                self._give("text", found.end)
        if attempts.end is None:
            return False
        self._attempts = None
        self._pass(attempts.end)
        return True

    def _try_nested(self) -> bool:
        """Calls inside thinking that was not closed.

        They count if the model ended its answer with them. If it goes on thinking,
        they are part of the thinking.
        """
        attempts, text = self._attempts, self._source.text
        assert attempts is not None
        if attempts.end is None:
            return False
        found = [*self._nested, *attempts.calls]
        at = self._skip(attempts.end)
        mark = self._in_answer.find(self._source, at)
        while (
            mark and mark.start() == at and self._in_answer.kinds[mark[0]] == "closer"
        ):
            at = self._skip(mark.end())
            mark = self._in_answer.find(self._source, at)
        if at == len(text) or self._in_answer.begun(text, at) == at:
            if not self._source.done:
                return False
            if not self._source.ended or at < len(text):
                return self._fail()
            self._thinking, self._attempts = False, None
            for each in found:
                if each.name in self._offered:
                    self._call(each)
            self._pass(at)
        elif mark and mark.start() == at and self._in_answer.kinds[mark[0]] == "call":
            self._nested = found
            self._try_forms(self._forms, at)
        else:
            return self._fail()
        return True

    def _call(self, found: Found) -> None:
        if self._record.calls and not self._several:
            self._at = found.begin
            self._give("text", found.end)
            return
        taken = {call.id for call in self._record.calls}
        id = found.id if found.id not in taken else ""
        call = Call(id or self._dialect.new_id(), found.name, found.arguments)
        self._record.add_call(call, *self._feeds(found.begin, found.end))
        self._at = found.end
        self._called, self._fresh = True, False

    def _skip(self, at: int) -> int:
        "Where white space ends"
        found = _SPACE.match(self._source.text, at)
        assert found is not None
        return found.end()

    def _pass(self, at: int) -> None:
        "Leave out everything before a place, and the white space after it"
        self._at = self._seen = self._since = at
        self._quotes = Quotes()
        self._trim = True

    def _give(self, kind: Kind, end: int, trim: bool = False) -> None:
        """Record text up to a place, without control tokens.

        With ``trim``, white space before that place is held back.
        """
        begin = self._at
        if trim:
            end = begin + len(self._source.text[begin:end].rstrip())
        self._at = max(end, begin)
        text = self._visible(begin, end)
        if not text:
            return
        self._trim = False
        if kind == "text":
            self._called = self._fresh = False
        self._record.add(kind, text, *self._feeds(begin, end))

    def _visible(self, begin: int, end: int) -> str:
        text, at = "", begin
        while self._hidden and self._hidden[0][0] < end:
            first, last = self._hidden.popleft()
            if first >= at:
                text += self._source.text[at:first]
                at = last
        return text + self._source.text[at:end]

    def _feeds(self, begin: int, end: int) -> tuple[int, int]:
        "The feeds that [begin, end) of the text came in"
        first = bisect_right(self._starts, begin) - 1
        return first, max(first + 1, bisect_left(self._starts, end))
