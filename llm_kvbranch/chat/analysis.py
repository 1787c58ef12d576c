"""What a schema, as it is given to llguidance, is certain to accept.

The idea: three questions. Do the options of a oneOf exclude each other? How many
patterns does a text have to match at once? Which definitions can never be complete,
since they require themselves?

The invariant: what is not certain is not claimed, and each question has limits.

This module does not know what is done with the answers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

_OPTIONS = 200  # of a oneOf
_VALUES = 5_000_000  # listed ones that are looked at
_DEEP = 8  # references, and properties in properties
_SCHEMAS = 100_000  # that are looked at for patterns
_DEEPEST = 60  # of these
_ROUNDS = 50
_ALL = frozenset(("null", "boolean", "number", "string", "array", "object"))
Resolve = Callable[[str], Any]


class TooManyError(Exception):
    "There is too much to look at"


# -- options of a oneOf ------------------------------------------------------


def apart(options: list[Any], resolve: Resolve) -> list[Any] | None:
    """The options, with what keeps them apart required; None if they may overlap.

    ``resolve`` gives a definition by its name.
    """
    if len(options) > _OPTIONS:
        return None
    shapes = _Shapes(resolve)
    found = [shapes.of(option) for option in options]
    wanted: list[set[str]] = [set() for _ in options]
    for i, one in enumerate(found):
        for j, other in enumerate(found[:i]):
            if shapes.exclude(one, other):
                continue
            if one.types & other.types != {"object"}:
                return None
            name = shapes.telling(one, other)
            if name is None:
                return None
            wanted[i].add(name)
            wanted[j].add(name)
    return [
        {"allOf": [option, {"required": sorted(names)}]} if names else option
        for option, names in zip(options, wanted, strict=True)
    ]


@dataclass
class _Shape:
    "What is certain of the values that a schema accepts"

    types: frozenset[str] = _ALL
    values: frozenset[str] | None = None  # all that it accepts, if they are listed
    properties: dict[str, Any] = field(default_factory=dict)


class _Shapes:
    "Those of schemas, each found once"

    def __init__(self, resolve: Resolve):
        self._resolve = resolve
        self._n_left = _VALUES
        self._known: dict[tuple[int, int], _Shape] = {}

    def of(self, schema: Any, depth: int = 0) -> _Shape:
        if not isinstance(schema, dict) or depth > _DEEP or self._n_left < 0:
            return _Shape(_ALL if schema is not False else frozenset())
        key = id(schema), depth
        if key not in self._known:
            self._known[key] = shape = self._find(schema, depth)
            self._n_left -= len(shape.values or ())
        return self._known[key]

    def _find(self, schema: dict[str, Any], depth: int) -> _Shape:
        types, values = _ALL, None
        if "type" in schema:
            given = schema["type"]
            names = given if isinstance(given, list) else [given]
            types = frozenset("number" if n == "integer" else n for n in names)
        listed = [schema["const"]] if "const" in schema else schema.get("enum")
        if listed is not None:
            values = frozenset(json.dumps(value, sort_keys=True) for value in listed)
            types &= frozenset(map(_type, listed))
        properties = dict(schema.get("properties", {}))
        parts = list(schema.get("allOf", ()))
        if "$ref" in schema:
            parts.append(self._resolve(schema["$ref"].rpartition("/")[2]))
        for part in parts:
            shape = self.of(part, depth + 1)
            types &= shape.types
            if shape.values is not None:
                values = shape.values if values is None else values & shape.values
            properties = {**shape.properties, **properties}
        if any_of := schema.get("anyOf"):
            shapes = [self.of(each, depth + 1) for each in any_of]
            types &= frozenset().union(*(shape.types for shape in shapes))
            found = [shape.values for shape in shapes]
            if values is None and all(each is not None for each in found):
                values = frozenset().union(*(each or () for each in found))
        return _Shape(types, values, properties)

    def exclude(self, one: _Shape, other: _Shape) -> bool:
        "Whether no value has both shapes, since types or listed values differ"
        if not one.types & other.types:
            return True
        if one.values is None or other.values is None or self._n_left < 0:
            return False
        self._n_left -= min(len(one.values), len(other.values))
        return one.values.isdisjoint(other.values)

    def telling(self, one: _Shape, other: _Shape) -> str | None:
        "A property of both whose values exclude each other"
        for name, schema in one.properties.items():
            if name in other.properties and self.exclude(
                self.of(schema, 1), self.of(other.properties[name], 1)
            ):
                return name
        return None


def _type(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "number"
    if isinstance(value, str):
        return "string"
    return "array" if isinstance(value, list) else "object"


# -- patterns that one text must match ---------------------------------------


def patterns_together(schema: Any, resolve: Resolve) -> int:
    """The most patterns that apply to one text; raises TooManyError.

    ``resolve`` gives a definition by its name.
    """
    return _Search(resolve).look([schema], 0)


class _Search:
    def __init__(self, resolve: Resolve):
        self._resolve = resolve
        self._n_left = _SCHEMAS
        self._seen: set[tuple[int, ...]] = set()

    def look(self, schemas: list[Any], depth: int) -> int:
        "The most patterns at this place, or at one below it"
        self._n_left -= 1
        key = tuple(sorted({id(schema) for schema in schemas}))
        if key in self._seen:
            return 0
        self._seen.add(key)
        if depth > _DEEPEST or self._n_left < 0:
            raise TooManyError
        parts: list[dict[str, Any]] = []
        for schema in schemas:
            self._spread(schema, parts, set())
        most = sum("pattern" in part for part in parts)
        places: dict[str, list[Any]] = {}
        for part in parts:
            for name, value in part.get("properties", {}).items():
                places.setdefault(f"properties {name}", []).append(value)
            for name, value in part.get("patternProperties", {}).items():
                places.setdefault(f"patterns {name}", []).append(value)
            for i, value in enumerate(part.get("prefixItems", ())):
                places.setdefault(f"item {i}", []).append(value)
            for key_ in ("items", "additionalProperties"):
                if isinstance(part.get(key_), dict):
                    places.setdefault(key_, []).append(part[key_])
        for values in places.values():
            most = max(most, self.look(values, depth + 1))
        return most

    def _spread(self, schema: Any, parts: list[dict[str, Any]], seen: set[str]) -> None:
        "Add everything that applies to the same value"
        self._n_left -= 1
        if self._n_left < 0:
            raise TooManyError
        if not isinstance(schema, dict):
            return
        parts.append(schema)
        for each in schema.get("allOf", ()):
            self._spread(each, parts, seen)
        self._spread_options(schema.get("anyOf", ()), parts, seen)
        if "$ref" in schema:
            name = schema["$ref"].rpartition("/")[2]
            if name not in seen:
                seen.add(name)
                self._spread(self._resolve(name), parts, seen)

    def _spread_options(
        self, options: Any, parts: list[dict[str, Any]], seen: set[str]
    ) -> None:
        "As _spread, for one of several options: the one with the most patterns counts"
        most: list[dict[str, Any]] = []
        for option in options:
            found: list[dict[str, Any]] = []
            self._spread(option, found, set(seen))
            n = sum("pattern" in part for part in found)
            if n > sum("pattern" in part for part in most):
                most, found = found, most
            parts += [_without_pattern(part) for part in found]
        parts += most


def _without_pattern(schema: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in schema.items() if key != "pattern"}


# -- definitions that require themselves -------------------------------------


def endless(definitions: Mapping[str, Any]) -> list[str]:
    "The names of definitions that no value completes; raises TooManyError"
    left = list(definitions)[::-1]  # those that are referred to come after
    complete: set[str] = set()
    for _ in range(_ROUNDS):
        n_before = len(complete)
        for name in left:
            if _ends(definitions[name], complete):
                complete.add(name)
        left = [name for name in left if name not in complete]
        if not left or len(complete) == n_before:
            return left
    raise TooManyError


def _ends(schema: Any, complete: set[str]) -> bool:
    "Whether a value can be complete if it uses only complete definitions"
    if not isinstance(schema, dict):
        return True
    if "$ref" in schema and schema["$ref"].rpartition("/")[2] not in complete:
        return False
    if not all(_ends(each, complete) for each in schema.get("allOf", ())):
        return False
    options = schema.get("anyOf")
    if options and not any(_ends(each, complete) for each in options):
        return False
    return all(_ends(each, complete) for each in _required(schema))


def _required(schema: dict[str, Any]) -> list[Any]:
    "The schemas of what an object or a list cannot be without"
    if schema.get("type") == "object":
        rest = schema.get("additionalProperties", True)
        properties = schema.get("properties", {})
        return [properties.get(name, rest) for name in schema.get("required", ())]
    if schema.get("type") == "array":
        n, first = schema.get("minItems", 0), schema.get("prefixItems", [])
        more = [schema.get("items", True)] if n > len(first) else []
        return [*first[:n], *more]
    return []
