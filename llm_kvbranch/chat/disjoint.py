"""Whether the options of a oneOf exclude each other.

The idea: an answer that fulfils one of them must fulfil no other. That is certain where
their types differ, where they list different values, or where a property of both has
values that exclude each other; such a property becomes required in all of them.

The invariant: what is not certain is not claimed.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

_MOST = 200  # options
_STEPS = 5_000_000  # listed values that are looked at
_DEEP = 8  # references, and properties in properties
_ALL = frozenset(("null", "boolean", "number", "string", "array", "object"))
Resolve = Callable[[str], Any]


def apart(options: list[Any], resolve: Resolve) -> list[Any] | None:
    """The options, with what keeps them apart required; None if they may overlap.

    ``resolve`` gives a definition by its name.
    """
    if len(options) > _MOST:
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
        self._n_left = _STEPS
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
