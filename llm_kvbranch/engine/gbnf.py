"""Whether a grammar in GBNF is small enough for llama.cpp to parse.

The idea: llama.cpp writes repetitions out as rules, and follows references by
recursion, both without limits. This module writes them out as well, counts, and stops
early.

The invariant: what passes takes llama.cpp little time and memory to parse. Drawing from
it may still take long. Mistakes that llama.cpp finds are left to llama.cpp.

This module does not know tokens, or what a grammar accepts.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

from ..errors import KVBranchError

MAX_TEXT = 100_000  # characters
MAX_NAME = 200  # characters of a rule's name
MAX_NESTED = 100  # parentheses within each other
MAX_TIMES = 2_000  # above which llama.cpp ignores a bound
MAX_ELEMENTS = 200_000  # characters, ranges and references, with repetitions
MAX_RULES = 20_000
MAX_STEPS = 5_000_000  # of llama.cpp's search for left recursion
MAX_CHAIN = 2_500  # rules that begin with each other
MAX_STARTS = 10_000  # ways in which an answer may begin
MAX_STACKED = 1_000_000  # places in rules that these wait at, together

_TOKEN = re.compile(
    r"""(?P<space>[ \t\r\n]+|\#[^\r\n]*)
    |(?P<text>"(?:[^"\\]|\\.)*" | \[(?:[^\]\\]|\\.)*\])
    |(?P<one>\.|!?<[^>]*>)
    |(?P<is>::=)
    |(?P<name>[a-zA-Z0-9-]+)
    |(?P<sign>[(){},|*+?])""",
    re.VERBOSE | re.DOTALL,
)
_SURROGATE = re.compile("[\ud800-\udfff]")
_CHARACTER, _OR = -1, -2  # elements of a rule; others are references
_SIMPLE = {"*": (0, None), "+": (1, None), "?": (0, 1)}


def check(grammar: str) -> None:
    "Raise KVBranchError for a grammar that is empty, or too large to be parsed"
    if len(grammar) > MAX_TEXT:
        raise _too("is longer than", MAX_TEXT, "characters")
    if _SURROGATE.search(grammar):
        raise _refused("it has characters that are not valid Unicode")
    rules = _Rules(grammar)
    root = rules.numbers.get("root", -1)
    if not rules.tokens or root in rules.blank:
        raise _refused("its root rule is empty")
    _Beginnings(rules.rules).check()
    if root in rules.rules:
        _check_starts(rules.rules, root)


def _refused(why: str) -> KVBranchError:
    return KVBranchError(f"The grammar cannot be used: {why}")


def _too(verb: str, n: int, what: str) -> KVBranchError:
    return _refused(f"it {verb} {n:,} {what}")


class _Rules:
    "The rules of a grammar, with repetitions and parentheses written out as rules"

    def __init__(self, grammar: str):
        self.numbers: dict[str, int] = {}
        self.rules: dict[int, list[int]] = {}
        self.blank: set[int] = set()  # rules with nothing after their ::=
        self._n_rules = self._n_elements = 0
        self.tokens = _tokens(grammar)
        self._at = 0
        self._number, self._rule = 0, list[int]()  # that is being read
        self._last = 0  # where its last part begins, which may be repeated
        self._outer: list[tuple[int, list[int]]] = []
        while self._at < len(self.tokens) and self._read(*self.tokens[self._at]):
            pass

    def _read(self, kind: str, text: str) -> bool:
        "Read a token; False if llama.cpp will say what is wrong with it"
        self._at += 1
        if kind == "name" and self._peek() == "::=":
            self._at += 1
            self._begin(self._find(text))
            self._outer = []
            self.blank.add(self._number)
            return True
        self.blank.discard(self._number)
        if not self._number:
            return False
        if kind in ("text", "one"):
            self._add([_CHARACTER] * (len(text) - 2 if kind == "text" else 1))
        elif kind == "name":
            self._add([self._find(text)])
        elif text == "|":
            self._add([_OR])
            self._last += 1
        elif text in "()":
            return self._open() if text == "(" else self._close()
        else:
            return self._repeats(text)
        return True

    def _begin(self, number: int) -> None:
        self._number, self._rule, self._last = number, [], 0
        self.rules[number] = self._rule

    def _open(self) -> bool:
        self._outer.append((self._number, self._rule))
        if len(self._outer) > MAX_NESTED:
            raise _too("has more than", MAX_NESTED, "nested parentheses")
        self._begin(self._new())
        return True

    def _close(self) -> bool:
        if not self._outer:
            return False
        inner = self._number
        self._number, self._rule = self._outer.pop()
        self._add([inner])
        return True

    def _repeats(self, sign: str) -> bool:
        times = self._times() if sign == "{" else _SIMPLE.get(sign)
        if times is None or self._last == len(self._rule):
            return False
        self._repeat(self._rule, self._last, *times)
        return True

    def _peek(self) -> str:
        return self.tokens[self._at][1] if self._at < len(self.tokens) else ""

    def _find(self, name: str) -> int:
        "The number of a rule by its name"
        if len(name) > MAX_NAME:
            raise _too("has a name longer than", MAX_NAME, "characters")
        if name not in self.numbers:
            self.numbers[name] = self._new()
        return self.numbers[name]

    def _new(self) -> int:
        self._n_rules += 1
        if self._n_rules > MAX_RULES:
            raise _too("has more than", MAX_RULES, "rules, with its repetitions")
        return self._n_rules

    def _count(self, n: int) -> None:
        self._n_elements += n
        if self._n_elements > MAX_ELEMENTS:
            raise _too("has more than", MAX_ELEMENTS, "parts, with its repetitions")

    def _add(self, elements: list[int]) -> None:
        "Add a part to the rule that is being read"
        self._count(len(elements))
        self._last = len(self._rule)
        self._rule += elements

    def _times(self) -> tuple[int, int | None] | None:
        "What stands in braces; None if llama.cpp will refuse it"
        words: list[str] = []
        while self._peek() not in ("}", ""):
            words.append(self._peek())
            self._at += 1
        self._at += 1
        if not re.fullmatch(r"[0-9]+(,([0-9]+)?)?", " ".join(words).replace(" ", "")):
            return None
        numbers = [word.lstrip("0") or "0" for word in words if word != ","]
        if any(len(word) > 6 or int(word) > MAX_TIMES for word in numbers):
            raise _too("repeats something more than", MAX_TIMES, "times")
        least = int(numbers[0])
        most = int(numbers[-1]) if len(numbers) > 1 or words[-1] != "," else None
        if most is not None and most < least:
            raise _refused(f"it repeats something at least {least:,}, at most {most:,}")
        return least, most

    def _repeat(self, rule: list[int], last: int, least: int, most: int | None) -> None:
        "Write out a repetition of what a rule ends with, as llama.cpp does"
        before = rule[last:]
        n_rules = 1 if most is None else most - least
        n_copies = max(least - 1, 0)
        self._count(len(before) * (n_copies + n_rules) + 2 * n_rules + 1)
        if least == 0:
            del rule[last:]
        rule += before * n_copies
        reference = 0
        for _ in range(n_rules):
            number = self._new()
            following = number if most is None else reference
            self.rules[number] = [*before, *([following] if following else ()), _OR]
            reference = number
        if n_rules:
            rule.append(reference)


def _tokens(grammar: str) -> list[tuple[str, str]]:
    found, at = [], 0
    while at < len(grammar):
        match = _TOKEN.match(grammar, at)
        if match is None:
            shown = " ".join(grammar[at : at + 40].split())
            raise _refused(f"error parsing it at {shown!r}")
        at = match.end()
        if match.lastgroup != "space":
            found.append((str(match.lastgroup), match.group()))
    return found


class _Beginnings:
    "Which rules the alternatives of a rule begin with, as llama.cpp follows them"

    def __init__(self, rules: dict[int, list[int]]):
        self._rules = rules
        self._empty = {number for number, rule in rules.items() if _may_be_empty(rule)}
        self._known: dict[int, tuple[int, int]] = {}  # steps, and depth, of a rule

    def check(self) -> None:
        for number in self._rules:
            if number not in self._known:
                self._visit(number)
        if sum(steps for steps, _ in self._known.values()) > MAX_STEPS:
            raise _refused("its rules refer to each other in too many ways")

    def _visit(self, number: int) -> None:
        "Learn of a rule and of all that it begins with"
        path, opened = [(number, self._references(number))], {number}
        while path:
            at, left = path[-1]
            while left and left[-1] in self._known:
                left.pop()
            if left:
                if left[-1] in opened:
                    raise _refused("a rule begins with itself (left recursion)")
                if len(path) > MAX_CHAIN:
                    raise _too("has more than", MAX_CHAIN, "rules in a chain")
                opened.add(left[-1])
                path.append((left[-1], self._references(left[-1])))
                continue
            path.pop()
            opened.discard(at)
            below = [self._known[each] for each in self._references(at)]
            steps = 1 + sum(n for n, _ in below)
            depth = 1 + max((n for _, n in below), default=0)
            if steps > MAX_STEPS:
                raise _refused("its rules refer to each other in too many ways")
            if depth > MAX_CHAIN:
                raise _too("has more than", MAX_CHAIN, "rules in a chain")
            self._known[at] = steps, depth

    def _references(self, number: int) -> list[int]:
        found, at_start = [], True
        for element in self._rules.get(number, ()):
            if element == _OR:
                at_start = True
            elif at_start and element > 0:
                found.append(element)
                at_start = element in self._empty
            else:
                at_start = False
        return found


def _may_be_empty(rule: list[int]) -> bool:
    ends = [-1, *(i for i, each in enumerate(rule) if each == _OR), len(rule)]
    return any(end - begin == 1 for begin, end in pairwise(ends))


def _check_starts(rules: dict[int, list[int]], root: int) -> None:
    "Refuse a grammar whose answers may begin in too many ways"
    # A stack is the place to go on at, and the stack of what follows: nested pairs
    waiting: list[tuple[Any, int]]
    waiting = [((place, None), 1) for place in _alternatives(rules, root)]
    seen: set[Any] = set()
    n_stacked = 0
    while waiting:
        stack, depth = waiting.pop()
        if stack is None or stack in seen:
            continue
        seen.add(stack)
        n_stacked += depth
        if len(seen) > MAX_STARTS or n_stacked > MAX_STACKED:
            raise _refused("an answer may begin in too many ways")
        (number, at), below = stack
        rule = rules.get(number, [])
        if at >= len(rule) or rule[at] == _OR:
            waiting.append((below, depth - 1))
            continue
        element = rule[at]
        if element <= 0:
            continue
        ends = at + 1 >= len(rule) or rule[at + 1] == _OR
        rest, n = (below, depth - 1) if ends else (((number, at + 1), below), depth)
        for place in _alternatives(rules, element):
            waiting.append(((place, rest), n + 1))


def _alternatives(rules: dict[int, list[int]], number: int) -> list[tuple[int, int]]:
    rule = rules.get(number, [])
    return [(number, 0), *((number, i + 1) for i, e in enumerate(rule) if e == _OR)]
