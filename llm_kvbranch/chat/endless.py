"""Definitions in a schema that can never be complete, since they require themselves.

The idea: a definition can be completed if all that it requires can. Those that never
can are what is left when nothing more can be found to.

This module knows schemas as they are given to llguidance.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .meeting import TooManyError

_ROUNDS = 50


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
