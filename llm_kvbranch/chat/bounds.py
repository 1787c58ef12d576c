"""The limits of a schema, and checks of single values in one.

The invariant: a message names what cannot be enforced, and where it is.

This module does not know what keywords mean.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from ..errors import KVBranchError
from .patterns import PatternError, rust

MAX_NODES = 5_000  # schemas within a schema
MAX_VALUES = 20_000  # values of enum and const
MAX_DEPTH = 40
MAX_TEXT = 1_000_000  # characters of a schema
MAX_LENGTH = 20_000  # of a string
MAX_ITEMS = 2_000  # of a list or an object
MAX_NAME = 1_000  # characters of a property's name
MAX_OPTIONS = 1_000  # of an anyOf
MAX_TOGETHER = 6  # patterns that one text must match
MAX_WORK = 1_500_000  # steps of comparing names with each other and with patterns
MAX_MULTIPLE = 1_000_000  # of all that something must be a multiple of
MOST = 2**53  # of numbers that are exact everywhere
WHOLE = "This schema cannot be enforced"


class SchemaError(KVBranchError):
    "A schema, or something in it, cannot be enforced"


def is_text(value: Any) -> bool:
    return isinstance(value, str)


def is_text_schema(schema: Any) -> bool:
    "Whether propertyNames asks for what can be put into the names of an object"
    if not isinstance(schema, dict):
        return False
    asked = set(schema) - {"type", "title", "description"}
    if asked == {"enum"}:
        return isinstance(schema["enum"], list) and all(map(is_text, schema["enum"]))
    return asked == {"pattern"} or (asked == {"const"} and is_text(schema["const"]))


def check_size(root: Any) -> None:
    "Raise SchemaError for a schema that is large or deep, without recursion"
    n, waiting = 0, [(root, 0)]
    while waiting:
        value, depth = waiting.pop()
        if depth > 3 * MAX_DEPTH:
            raise SchemaError(f"{WHOLE}: it is nested more than {MAX_DEPTH} deep")
        each: Iterable[Any] = ()
        if isinstance(value, dict):
            n += sum(map(len, value)) + 4 * len(value)
            each = value.values()
        elif isinstance(value, list):
            each = value
        n += len(value) if isinstance(value, str) else 4
        if n > MAX_TEXT:
            raise SchemaError(f"{WHOLE}: it is longer than {MAX_TEXT:,} characters")
        waiting += [(one, depth + 1) for one in each]


def refused(what: str, where: str) -> SchemaError:
    at = "" if where == "#" else f" (at {where[:200]})"
    return SchemaError(f"{what} cannot be enforced: leave it out{at}")


def shown(value: Any) -> str:
    return repr(value)[:100]


def number(value: Any, key: str, where: str) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise refused(f"{key} that is not a number", where)
    if isinstance(value, int) and abs(value) > MOST:
        raise refused(f"{key} beyond 2^53", where)
    if not math.isfinite(value) or abs(value) > 1e15 or 0 < abs(value) < 1e-15:
        if isinstance(value, int):
            return value
        raise refused(f"{key} {value}", where)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def count(value: Any, key: str, most: int, where: str) -> int:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise refused(f"{key} that is not a count", where)
    if value > most:
        raise refused(f"{key} above {most:,}", where)
    return value


def pattern(pattern: Any, where: str) -> str:
    if not is_text(pattern):
        raise refused("a pattern that is not a text", where)
    try:
        return rust(pattern)
    except PatternError as error:
        raise SchemaError(
            f"pattern {shown(pattern)} cannot be enforced: {error}"
            + ("" if where == "#" else f" (at {where[:200]})")
        ) from None


def name(name: str) -> str:
    if len(name) > MAX_NAME:
        raise SchemaError(f"{WHOLE}: a name is longer than {MAX_NAME:,} characters")
    return text(name)


def text(text: str) -> str:
    if any(
        (c < " " and c not in "\n\r\t\b\f") or "\ud800" <= c <= "\udfff" for c in text
    ):
        raise SchemaError(f"{WHOLE}: {shown(text)} has control characters")
    return text
