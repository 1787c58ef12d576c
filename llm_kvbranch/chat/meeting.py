"""How many patterns a text has to match at once.

The idea: what allOf and references bring together applies to the same value, down to
properties of the same name. Following several patterns at once may take steps without
end, so more than a few are refused before anybody follows them.

This module does not know what a pattern means.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_STEPS = 100_000  # schemas that are looked at
_DEEP = 60

Resolve = Callable[[str], Any]


class TooManyError(Exception):
    "There is too much to look at"


def patterns_together(schema: Any, resolve: Resolve) -> int:
    """The most patterns that apply to one text; raises TooManyError.

    ``resolve`` gives a definition by its name.
    """
    return _Search(resolve).look([schema], 0)


class _Search:
    def __init__(self, resolve: Resolve):
        self._resolve = resolve
        self._n_left = _STEPS
        self._seen: set[tuple[int, ...]] = set()

    def look(self, schemas: list[Any], depth: int) -> int:
        "The most patterns at this place, or at one below it"
        self._n_left -= 1
        key = tuple(sorted({id(schema) for schema in schemas}))
        if key in self._seen:
            return 0
        self._seen.add(key)
        if depth > _DEEP or self._n_left < 0:
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
