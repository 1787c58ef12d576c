"""Enough of C++ to read the cases of llama.cpp's test-chat.cpp from its source.

The idea: such a test file is data written as code: constants, helper functions that
build messages, and chains of calls such as ``tst.test(...).tools(...).run()``. Its
functions are interpreted statement by statement, with Python functions in place of the
few helpers that are more than one ``return``.

The invariant: a statement that cannot be evaluated is skipped, unless it contains a
chain of calls to ``test``: then ``Unreadable`` is raised, so that no case is lost.

This module does not know what the values mean.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

_TOKEN = re.compile(
    r"""(?P<space>\s+|//[^\n]*|/\*.*?\*/|^[ ]*\#[^\n]*)
      | (?:R"(?P<fence>[^\s()\\]{0,16})\((?P<raw>.*?)\)(?P=fence)")
      | "(?P<string>(?:[^"\\\n]|\\.)*)"
      | '(?:[^'\\\n]|\\.)+'
      | (?P<number>\d[\w.]*)
      | (?P<name>[A-Za-z_]\w*(?:::~?\w+)*)
      | (?P<sign>->|<<|>>|==|!=|<=|>=|&&|\|\||\+\+|--|\+=|-=|.)""",
    re.VERBOSE | re.DOTALL | re.MULTILINE,
)
_OPENING = {"(": ")", "{": "}", "[": "]"}
_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|x[0-9a-fA-F]+|[0-7]{1,3}|.)", re.DOTALL)


class Unreadable(Exception):
    "A part of the file that this module does not understand"


class Token(NamedTuple):
    kind: str  # string, number, name, sign
    text: str
    line: int


@dataclass
class Object:
    "An object: its class, constructor arguments and assigned fields"

    kind: str
    values: list[Any]
    fields: dict[str, Any] = field(default_factory=dict)


@dataclass
class Chain:
    "Calls one after another: ``tst.test(a).tools(b).run()``"

    base: Any
    calls: list[tuple[str, list[Any]]]
    line: int


@dataclass
class Function:
    parameters: list[tuple[str, list[Token]]]  # name, default
    body: list[Token]


class _Return(Exception):
    def __init__(self, value: Any):
        self.value = value


def tokens_of(source: str) -> list[Token]:
    found, line = [], 1
    for match in _TOKEN.finditer(source):
        kind = match.lastgroup or "sign"
        if match["raw"] is not None:
            found.append(Token("string", match["raw"], line))
        elif kind == "string":
            found.append(Token(kind, _unescape(match["string"]), line))
        elif kind != "space":
            found.append(Token(kind, match[0], line))
        line += match[0].count("\n")
    return found


def _unescape(text: str) -> str:
    "A string literal's value; \\x are bytes of UTF-8"

    def one(match: re.Match[str]) -> str:
        code = match[1]
        if code[0] == "u":
            return chr(int(code[1:], 16))
        if code[0] == "x" and len(code) > 1:
            byte = int(code[1:], 16)
            return chr(byte if byte < 0x80 else 0xDC00 + byte)  # decoded below
        if code[0].isdigit():
            return chr(int(code, 8))
        return str(ast.literal_eval(f'"\\{code}"')) if code in "abfnrtv" else code

    plain = _ESCAPE.sub(one, text)
    return plain.encode("utf-8", "surrogateescape").decode("utf-8")


class Program:
    """A file's constants and functions, and the chains found by running a function.

    ``helpers`` are Python functions in place of the file's own.
    """

    def __init__(self, source: str, helpers: Mapping[str, Callable[..., Any]]):
        self.helpers = helpers
        self.functions: dict[str, Function] = {}
        self.globals: dict[str, Any] = {}
        self.chains: list[Chain] = []
        self._read(tokens_of(source))

    def run(self, name: str, *arguments: Any) -> list[Chain]:
        "The chains of calls that a function makes, in order"
        self.chains = []
        self._call(name, list(arguments))
        return self.chains

    def _read(self, tokens: list[Token]) -> None:
        for statement in _statements(tokens):
            texts = [token.text for token in statement]
            if "{" in texts and ")" in texts[: texts.index("{")]:
                self._define(statement)
            else:
                self._execute(statement, [self.globals], strict=False)

    def _define(self, statement: list[Token]) -> None:
        begin = next(i for i, token in enumerate(statement) if _is(token, "("))
        end = _closing(statement, begin)
        body = next(
            (i for i in range(end, len(statement)) if _is(statement[i], "{")), None
        )
        if begin == 0 or body is None or statement[begin - 1].kind != "name":
            return
        parameters = []
        for part in _split(statement[begin + 1 : end]):
            signs = [i for i, token in enumerate(part) if _is(token, "=")]
            cut = signs[0] if signs else len(part)
            if part and part[cut - 1].kind == "name":
                parameters.append((part[cut - 1].text, part[cut + 1 :]))
        inner = statement[body + 1 : _closing(statement, body)]
        self.functions[statement[begin - 1].text] = Function(parameters, inner)

    def _call(self, name: str, arguments: list[Any]) -> Any:
        if name in self.helpers:
            return self.helpers[name](*arguments)
        function = self.functions[name]
        local: dict[str, Any] = {}
        for i, (parameter, default) in enumerate(function.parameters):
            if i < len(arguments):
                local[parameter] = arguments[i]
            elif default:
                local[parameter] = self._value(default, [self.globals])
        try:
            self._block(function.body, [self.globals, local])
        except _Return as returned:
            return returned.value
        return None

    def _block(self, tokens: list[Token], scopes: list[dict[str, Any]]) -> None:
        scopes = [*scopes, {}]
        for statement in _statements(tokens):
            self._execute(statement, scopes)

    def _execute(
        self, statement: list[Token], scopes: list[dict[str, Any]], strict: bool = True
    ) -> None:
        first = statement[0]
        try:
            if _is(first, "{"):
                self._block(statement[1:-1], scopes)
            elif first.text == "for":
                self._loop(statement, scopes)
            elif first.text == "return":
                raise _Return(self._value(statement[1:], scopes))
            else:
                self._simple(statement, scopes)
        except (Unreadable, KeyError, IndexError, TypeError, AttributeError) as error:
            if strict and _holds_test(statement):
                raise Unreadable(f"line {first.line}: {error!r}") from error

    def _loop(self, statement: list[Token], scopes: list[dict[str, Any]]) -> None:
        "for (const char * name : { ... }) { ... }"
        end = _closing(statement, 1)
        head = statement[2:end]
        colon = next((i for i, token in enumerate(head) if _is(token, ":")), None)
        if colon is None:
            raise Unreadable("not a loop over values")
        values = self._value(head[colon + 1 :], scopes)
        for value in values:
            scope = {head[colon - 1].text: value}
            self._block(statement[end + 2 : -1], [*scopes, scope])

    def _simple(self, statement: list[Token], scopes: list[dict[str, Any]]) -> None:
        "A declaration, an assignment or an expression"
        equals = _outer(statement, "=")
        if equals is not None:
            target, value = statement[:equals], statement[equals + 1 :]
            if len(target) == 3 and _is(target[1], "."):
                owner = _lookup(target[0].text, scopes)
                owner.fields[target[2].text] = self._value(value, scopes)
            else:
                scopes[-1][target[-1].text] = self._value(value, scopes)
            return
        names = [token for token in statement if token.kind == "name"]
        brace = _outer(statement, "{")
        if brace is not None and brace >= 2 and statement[brace - 1].kind == "name":
            values = self._value(statement[brace:], scopes)
            kind = statement[brace - 2].text
            listed = _is(statement[brace - 2], ">")
            made = values if listed else Object(kind, values)
            scopes[-1][statement[brace - 1].text] = made
        elif len(names) == len(statement) == 2:
            scopes[-1][names[1].text] = Object(names[0].text, [])
        else:
            value = self._value(statement, scopes)
            if isinstance(value, Chain):
                self.chains.append(value)

    def _value(self, tokens: list[Token], scopes: list[dict[str, Any]]) -> Any:
        terms = _split(tokens, "+")
        if len(terms) > 1:
            return "".join(self._value(term, scopes) for term in terms)
        return self._term(tokens, scopes)

    def _term(self, tokens: list[Token], scopes: list[dict[str, Any]]) -> Any:
        if not tokens:
            raise Unreadable("nothing")
        if all(token.kind == "string" for token in tokens):
            return "".join(token.text for token in tokens)
        first = tokens[0]
        if _is(first, "{") and _closing(tokens, 0) == len(tokens) - 1:
            return self._list(tokens[1:-1], scopes)
        if first.kind == "number" and len(tokens) == 1:
            return ast.literal_eval(first.text)
        if first.kind != "name":
            raise Unreadable(f"line {first.line}: {first.text}")
        at = 1
        value: Any
        if at < len(tokens) and _is(tokens[at], "("):
            end = _closing(tokens, at)
            arguments = self._list(tokens[at + 1 : end], scopes)
            value, at = self._call(first.text, arguments), end + 1
        else:
            value = _lookup(first.text, scopes)
        calls = []
        while at < len(tokens):
            if not _is(tokens[at], ".") or not _is(tokens[at + 2], "("):
                raise Unreadable(f"line {tokens[at].line}: {tokens[at].text}")
            end = _closing(tokens, at + 2)
            arguments = self._list(tokens[at + 3 : end], scopes)
            calls.append((tokens[at + 1].text, arguments))
            at = end + 1
        return Chain(value, calls, first.line) if calls else value

    def _list(self, tokens: list[Token], scopes: list[dict[str, Any]]) -> list[Any]:
        return [self._value(part, scopes) for part in _split(tokens) if part]


def _is(token: Token, text: str) -> bool:
    return token.kind == "sign" and token.text == text


def _lookup(name: str, scopes: list[dict[str, Any]]) -> Any:
    for scope in reversed(scopes):
        if name in scope:
            return scope[name]
    if name in ("true", "false"):
        return name == "true"
    if name.isupper():
        return name  # a constant of an enum
    raise Unreadable(f"{name} is not known")


def _closing(tokens: list[Token], begin: int) -> int:
    "Where the bracket at ``begin`` is closed"
    depth = 0
    for i in range(begin, len(tokens)):
        if tokens[i].kind == "sign":
            depth += (tokens[i].text in "({[") - (tokens[i].text in ")}]")
            if not depth:
                return i
    raise Unreadable(f"line {tokens[begin].line}: {tokens[begin].text} is not closed")


def _outer(tokens: list[Token], sign: str) -> int | None:
    "Where a sign is outside of brackets"
    at = 0
    while at < len(tokens):
        if _is(tokens[at], sign):
            return at
        opens = tokens[at].kind == "sign" and tokens[at].text in _OPENING
        at = (_closing(tokens, at) if opens else at) + 1
    return None


def _split(tokens: list[Token], sign: str = ",") -> list[list[Token]]:
    "The parts between signs that are outside of brackets"
    parts, rest = [], tokens
    while (at := _outer(rest, sign)) is not None:
        parts.append(rest[:at])
        rest = rest[at + 1 :]
    return [*parts, rest]


def _statements(tokens: list[Token]) -> Iterator[list[Token]]:
    "Statements: up to a semicolon, or a block with what precedes it"
    begin = at = 0
    while at < len(tokens):
        token = tokens[at]
        if _is(token, ";"):
            if at > begin:
                yield tokens[begin:at]
            begin = at = at + 1
        elif token.kind == "sign" and token.text in _OPENING:
            end = _closing(tokens, at)
            heads = (
                at == begin
                or _is(tokens[at - 1], ")")
                or tokens[at - 1].text
                in (
                    "else",
                    "try",
                    "do",
                )
            )
            if token.text == "{" and heads:
                yield tokens[begin : end + 1]
                begin = end + 1
            at = end + 1
        else:
            at += 1


def _holds_test(statement: list[Token]) -> bool:
    return any(
        _is(statement[i], ".") and statement[i + 1].text == "test"
        for i in range(len(statement) - 1)
    )
