"""Whether the options of a oneOf exclude each other.

The idea: an answer that fulfils one of them must fulfil no other. That is certain where
their types differ, where they list different values, or where a property of both has
values that exclude each other; such a property becomes required in all of them.

The invariant: what is not certain is not claimed.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

_MOST = 200  # options
_STEPS = 20_000  # schemas that are looked at
_DEEP = 8  # references, and properties in properties
_SCALARS = ("null", "boolean", "number", "string")
_ALL = frozenset((*_SCALARS, "array", "object"))
Resolve = Callable[[str], Any]


def apart(options: list[Any], resolve: Resolve) -> list[Any] | None:
    """The options, with what keeps them apart required; None if they may overlap.

    ``resolve`` gives a definition by its name.
    """
    if len(options) > _MOST:
        return None
    n_left = _STEPS

    def look(name: str) -> Any:
        nonlocal n_left
        n_left -= 1
        return resolve(name) if n_left > 0 else True

    shapes = [_Shape(option, look) for option in options]
    wanted: list[set[str]] = [set() for _ in options]
    for i, one in enumerate(shapes):
        for j in range(i):
            if one.types & shapes[j].types - {"object"} and not _listed(one, shapes[j]):
                return None
            if {"object"} <= one.types & shapes[j].types and not _listed(
                one, shapes[j]
            ):
                name = _telling(one, shapes[j], look)
                if name is None:
                    return None
                wanted[i].add(name)
                wanted[j].add(name)
    return [
        {"allOf": [option, {"required": sorted(names)}]} if names else option
        for option, names in zip(options, wanted, strict=True)
    ]


class _Shape:
    "What is certain of the values that a schema accepts"

    def __init__(self, schema: Any, resolve: Resolve, depth: int = 0):
        self.types: frozenset[str] = _ALL if schema is not False else frozenset()
        self.values: set[str] | None = None  # all that it accepts, if they are listed
        self.properties: dict[str, Any] = {}
        if not isinstance(schema, dict) or depth > _DEEP:
            return
        if "type" in schema:
            given = schema["type"]
            names = given if isinstance(given, list) else [given]
            self.types = frozenset("number" if n == "integer" else n for n in names)
        self._add_values(schema)
        self.properties = dict(schema.get("properties", {}))
        parts = list(schema.get("allOf", ()))
        if "$ref" in schema:
            parts.append(resolve(schema["$ref"].rpartition("/")[2]))
        for part in parts:
            shape = _Shape(part, resolve, depth + 1)
            self.types &= shape.types
            if shape.values is not None:
                known: set[str] | None = self.values
                self.values = shape.values if known is None else known & shape.values
            self.properties = {**shape.properties, **self.properties}
        if any_of := schema.get("anyOf"):
            shapes = [_Shape(each, resolve, depth + 1) for each in any_of]
            self.types &= frozenset().union(*(shape.types for shape in shapes))
            found = [shape.values for shape in shapes]
            if self.values is None and all(each is not None for each in found):
                self.values = {value for each in found for value in each or ()}

    def _add_values(self, schema: dict[str, Any]) -> None:
        values = schema.get("enum")
        if "const" in schema:
            values = [schema["const"]]
        if values is None:
            return
        self.values = {json.dumps(value, sort_keys=True) for value in values}
        self.types &= frozenset(map(_type, values))


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


def _listed(one: _Shape, other: _Shape) -> bool:
    "Whether both list their values, and none is in both"
    if one.values is None or other.values is None:
        return False
    return not one.values & other.values


def _telling(one: _Shape, other: _Shape, resolve: Resolve) -> str | None:
    "A property of both whose values exclude each other"
    for name, schema in one.properties.items():
        if name not in other.properties:
            continue
        mine = _Shape(schema, resolve, 1)
        others = _Shape(other.properties[name], resolve, 1)
        if not mine.types & others.types or _listed(mine, others):
            return name
    return None
