"""Values of arguments that are not written as JSON.

The idea: some models write Python literals, some write objects with unquoted keys, and
some write bare text between tags, whose type only the tool's schema tells.

The invariant: a text has the type that the schema asks for. It stays text if the
schema allows that and it is not clearly something else.

This module does not know calls.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from .bounds import SchemaError
from .references import References
from .scanning import DEPTH, Mismatch, Reading, Scanner, read_json, scalar

Schema = Mapping[str, Any]

_IDENTIFIER = re.compile(r"[\w$-]{0,128}")
_QUOTED = {
    quote: re.compile(rf"[^\\{quote}]*(?:\\.[^\\{quote}]*)*", re.DOTALL)
    for quote in "'\""
}
_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|(.))", re.DOTALL)
_ESCAPED = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "\n": ""}
_ESCAPED |= {char: char for char in "\\'\""}
_PYTHON = {"True": True, "False": False, "None": None}


def python_arguments(scanner: Scanner) -> Reading[dict[str, Any]]:
    "Keyword arguments in parentheses, with Python or JSON literals as values"
    found: dict[str, Any] = {}
    yield from scanner.exact("(")
    while (yield from scanner.item(")", not found)):
        key = yield from _identifier(scanner, "=", found)
        found[key] = yield from _python(scanner, DEPTH)
    return found


def _identifier(scanner: Scanner, behind: str, found: dict[str, Any]) -> Reading[str]:
    yield from scanner.skip()
    key = yield from scanner.run(_IDENTIFIER)
    if not key or key in found:
        raise Mismatch
    yield from scanner.mark(behind)
    return key


def _python(scanner: Scanner, depth: int) -> Reading[Any]:
    char = yield from scanner.skip()
    if char in _QUOTED:
        return (yield from _quoted(scanner, char))
    if char not in "{[(":
        return _scalar((yield from scanner.word()))
    if not depth:
        raise Mismatch
    yield from scanner.exact(char)
    if char != "{":
        items: list[Any] = []
        while (yield from scanner.item("]" if char == "[" else ")", not items)):
            items.append((yield from _python(scanner, depth - 1)))
        return items
    found: dict[str, Any] = {}
    while (yield from scanner.item("}", not found)):
        quote = yield from scanner.skip()
        if quote not in _QUOTED:
            raise Mismatch
        key = yield from _quoted(scanner, quote)
        if key in found:
            raise Mismatch
        yield from scanner.mark(":")
        found[key] = yield from _python(scanner, depth - 1)
    return found


def _scalar(text: str) -> Any:
    return _PYTHON[text] if text in _PYTHON else scalar(text)


def _quoted(scanner: Scanner, quote: str) -> Reading[str]:
    scanner.at += 1
    begin = search = scanner.at
    while True:
        match = _QUOTED[quote].match(scanner.source.text, search)
        search = match.end() if match else search
        if scanner.source.text[search : search + 1] == quote:
            break
        yield from scanner.more()
    scanner.at = search + 1
    text = _ESCAPE.sub(_unescaped, scanner.source.text[begin:search])
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Mismatch from None
    return text


def _unescaped(found: re.Match[str]) -> str:
    if code := found[1] or found[2]:
        return chr(int(code, 16))
    return _ESCAPED.get(found[3], found[0])


def bare_object(
    scanner: Scanner, quote: str, depth: int = DEPTH
) -> Reading[dict[str, Any]]:
    "An object with unquoted keys; ``quote`` is around strings"
    found: dict[str, Any] = {}
    yield from scanner.exact("{")
    while (yield from scanner.item("}", not found)):
        key = yield from _identifier(scanner, ":", found)
        found[key] = yield from _bare(scanner, quote, depth)
    return found


def _bare(scanner: Scanner, quote: str, depth: int) -> Reading[Any]:
    char = yield from scanner.skip()
    if char == quote[0]:
        yield from scanner.exact(quote)
        text = yield from scanner.upto(quote)
        yield from scanner.exact(quote)
        return text
    if char not in "{[":
        return scalar((yield from scanner.word()))
    if not depth:
        raise Mismatch
    if char == "{":
        return (yield from bare_object(scanner, quote, depth - 1))
    items: list[Any] = []
    yield from scanner.exact("[")
    while (yield from scanner.item("]", not items)):
        items.append((yield from _bare(scanner, quote, depth - 1)))
    return items


# Text whose type comes from the schema


def typed(text: str, schema: Any, root: Schema) -> Any:
    "The value of bare text by its argument's schema, whose $refs are in ``root``"
    types = _types(schema, root)
    value: Any = text
    try:
        value = _PYTHON[text.strip()] if text.strip() in _PYTHON else read_json(text)
    except Mismatch:
        return text
    if isinstance(value, str):
        # Strings are written unquoted
        return value if types and "string" not in types else text
    if types is None or "string" not in types or _type(value) & types:
        return value
    return text


def takes_text(schema: Any, root: Schema) -> bool:
    "Whether an argument may be a string"
    return "string" in (_types(schema, root) or ())


def part(schema: Any, root: Schema, key: str) -> Any:
    "The schema of a property or item"
    schema = _resolved(schema, root)
    for each in (schema, *_alternatives(schema)):
        inner = _resolved(each, root)
        properties = inner.get("properties")
        if isinstance(properties, dict) and key in properties:
            return properties[key]
        if inner.get("type") == "array" and "items" in inner:
            return inner["items"]
    return {}


def _alternatives(schema: Schema) -> list[Any]:
    lists = [schema.get(key) for key in ("anyOf", "oneOf", "allOf")]
    return [each for found in lists if isinstance(found, list) for each in found]


def _resolved(schema: Any, root: Schema) -> Schema:
    for _ in range(8):
        if not isinstance(schema, Mapping):
            return {}
        target = schema.get("$ref")
        if not isinstance(target, str) or not target.startswith("#"):
            return schema
        try:
            schema = References(root).target(target)
        except SchemaError:
            return {}
    return {}


def _types(schema: Any, root: Schema, depth: int = 8) -> set[str] | None:
    "The JSON types that a schema allows; None if it does not say"
    schema = _resolved(schema, root)
    given = schema.get("type")
    if isinstance(given, str):
        return {given}
    if isinstance(given, list):
        return {each for each in given if isinstance(each, str)}
    if "const" in schema:
        return _type(schema["const"])
    if isinstance(schema.get("enum"), list):
        return {name for each in schema["enum"] for name in _type(each)}
    found: set[str] = set()
    for each in _alternatives(schema) if depth else ():
        types = _types(each, root, depth - 1)
        if types is None:
            return None
        found |= types
    return found or None


def _type(value: Any) -> set[str]:
    if value is None:
        return {"null"}
    if isinstance(value, bool):
        return {"boolean"}
    if isinstance(value, int | float):
        return {"integer", "number"}
    if isinstance(value, str):
        return {"string"}
    return {"array"} if isinstance(value, list) else {"object"}
