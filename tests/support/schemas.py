"""Schemas to try a constraint with: those that must hold, and hostile ones."""

from __future__ import annotations

import json
from typing import Any

POINT = {
    "type": "object",
    "properties": {"x": {"type": "number"}, "y": {"type": "number"}},
    "required": ["x", "y"],
}


def a(schema: dict[str, Any], **more: Any) -> dict[str, Any]:
    "An object with one property of a schema"
    return {
        "type": "object",
        "properties": {"a": schema},
        "required": ["a"],
        **more,
    }


def kind(name: str, **more: Any) -> dict[str, Any]:
    "An option of a tagged union; its tag has a default, as pydantic writes it"
    tag = {"const": name, "default": name, "type": "string"}
    return {"type": "object", "properties": {"kind": tag, **more}}


_FORMATS = "date time date-time duration email hostname ipv4 ipv6 uuid uri"
_PATTERNS = (
    *(
        r"^a|b$",
        r"^.+$",
        r"^[^,]+$",
        r"^\d{3}-\w+$",
        r"^\s\S$",
        r"^[^\s]{2}$",
        r"^\D\W$",
    ),
    *(
        r"^\u00e9\x41\/$",
        r"^[a-c&&b]$",
        r"^[[]x$",
        r"^(?:ab|c)+?$",
        r"^\"\\$",
        r"^a.c$",
    ),
    r"^[\w.-]+@[\w-]+\.\w{2,4}$",
)
_ODD = 'a\n"\\'
OWN: list[Any] = [
    True,
    {},
    {"type": "object"},
    {"title": "Anything"},
    *(a({"type": "string", "format": name}) for name in _FORMATS.split()),
    *(a({"type": "string", "pattern": pattern}) for pattern in _PATTERNS),
    {"type": "integer", "minimum": 1, "maximum": 5},
    {"type": "integer", "exclusiveMinimum": -3, "exclusiveMaximum": 1},
    {"type": "integer", "multipleOf": 7, "minimum": -50, "maximum": 50},
    {"type": "integer", "format": "int8"},
    {"type": "number", "minimum": 0.5, "maximum": 2.25},
    {"type": "number", "exclusiveMinimum": 0, "maximum": 1, "multipleOf": 0.25},
    {"enum": ["a\nb", "a\\b", 'q"q', "é", "😀", 1, 2.5, None, True, [1], {"b": 2}]},
    {"const": {"a": [1, {"b": "c\td"}]}},
    a({"const": 0.1}),
    {
        "type": "object",
        "properties": {'a\n"\\': {"type": "null"}},
        "required": ['a\n"\\'],
    },
    {"type": "string", "minLength": 2, "maxLength": 4},
    {"type": "string", "pattern": "^[ab]+$", "minLength": 3, "maxLength": 5},
    {"type": ["string", "null"], "maxLength": 3},
    {"type": "array", "items": POINT, "minItems": 1, "maxItems": 3},
    {"type": "array", "prefixItems": [{"type": "integer"}, True], "items": False},
    {"type": "array", "prefixItems": [{"type": "null"}], "items": {"type": "boolean"}},
    {"type": "array", "items": {}},
    {"type": "object", "additionalProperties": {"type": "integer"}},
    a({"type": "integer"}, additionalProperties={"type": "string"}),
    {"type": "object", "patternProperties": {"^n_": {"type": "integer"}}},
    {"type": "object", "propertyNames": {"pattern": "^[a-z]{1,3}$"}},
    {"type": "object", "propertyNames": {"enum": ["a", "b"]}},
    {"type": "object", "additionalProperties": {"type": "null"}, "minProperties": 1},
    {"type": "object", "additionalProperties": {"type": "null"}, "maxProperties": 2},
    {"type": "object", "properties": {"a": {}, "b": {}}, "minProperties": 1},
    {"type": "object", "properties": {"a": POINT}, "required": ["b", "a"]},
    {
        "allOf": [
            a({"type": "integer"}),
            {"properties": {"b": POINT}, "required": ["b"]},
        ]
    },
    {"allOf": [{"enum": [1, 2, 3]}, {"enum": [2, 3, 4]}]},
    a({"$ref": "#/$defs/P"}, **{"$defs": {"P": POINT}}),
    a({"$ref": "#/$defs/a~1b%25"}, **{"$defs": {"a/b%": {"type": "boolean"}}}),
    a({"$ref": "#point"}, **{"$defs": {"P": {"$anchor": "point", **POINT}}}),
    {
        "type": "object",
        "properties": {"v": {"type": "integer"}, "next": {"$ref": "#"}},
        "required": ["v"],
    },
    {
        "$ref": "#/$defs/T",
        "$defs": {"T": {"type": "array", "items": {"$ref": "#/$defs/T"}}},
    },
    {
        "$ref": "#/$defs/T",
        "$defs": {
            "T": {"anyOf": [{"type": "null"}, a({"$ref": "#/$defs/T"})]},
        },
    },
    {"oneOf": [kind("cat", lives={"type": "integer"}), kind("dog")]},
    {"oneOf": [{"type": "string"}, {"type": "integer"}, POINT]},
    {"oneOf": [{"enum": [1, 2]}, {"const": 3}]},
    {
        "oneOf": [{"$ref": "#/$defs/C"}, {"$ref": "#/$defs/D"}],
        "discriminator": {"propertyName": "kind"},
        "$defs": {"C": kind("c"), "D": kind("d", x={"type": "null"})},
    },
    {"anyOf": [{"type": "null"}, {"type": "array", "items": {"type": "boolean"}}]},
    {"type": "object", "properties": {f"p{i}": {"type": "null"} for i in range(30)}},
    {"type": "array", "items": {"type": "boolean"}, "uniqueItems": False},
]

REFUSED = {
    "uniqueItems": {"type": "array", "uniqueItems": True},
    "contains": {"type": "array", "contains": {"const": 1}},
    "not": {"not": {"type": "null"}},
    "if": {"if": {"type": "null"}, "then": False},
    "dependentRequired": {"type": "object", "dependentRequired": {"a": ["b"]}},
    "unevaluatedProperties": {"type": "object", "unevaluatedProperties": False},
    "propertyNames": {"type": "object", "propertyNames": {"maxLength": 3}},
    "minProperties": {"type": "object", "minProperties": 3},
    "format 'phone'": {"type": "string", "format": "phone"},
    "oneOf": {"oneOf": [{"type": "string"}, {"type": "string", "minLength": 3}]},
    "looks around": {"type": "string", "pattern": "^(?=a)b"},
    "reference to a group": {"type": "string", "pattern": r"(a)\1"},
    "refers to nothing": {"$ref": "https://example.com/schema"},
    "refers to itself": {"$ref": "#"},
    "'#' can never be complete": a({"$ref": "#"}),
    "'#/$defs/T' can never be complete": {
        "anyOf": [{"type": "null"}, {"$ref": "#/$defs/T"}],
        "$defs": {
            "T": {"type": "array", "items": {"$ref": "#/$defs/T"}, "minItems": 1}
        },
    },
    "'#/$defs/A' can never be complete": {
        **a({"$ref": "#/$defs/A"}),
        "$defs": {"A": a({"$ref": "#/$defs/B"}), "B": a({"$ref": "#/$defs/A"})},
    },
    "beyond 2^53": {"const": 2**60},
    "format": {"type": "string", "format": []},
    "(at #/properties/a)": a({"propertyNames": {"enum": [1]}}),
    "(at #/properties/b)": {"properties": {"b": {"propertyNames": {"const": {}}}}},
    "propertyNames cannot": {"type": "object", "propertyNames": {"enum": 5}},
    "type 'any'": {"type": "any"},
}


def _nested(n: int, key: str, leaf: Any) -> Any:
    for _ in range(n):
        leaf = {key: [leaf]} if key == "anyOf" else {"type": "array", key: leaf}
    return leaf


def _names(n: int) -> dict[str, Any]:
    names = ("a" * (i % 60) + "_-."[i % 3] + str(i) for i in range(n))
    return {name: {"type": "string"} for name in names}


HOSTILE: dict[str, Any] = {
    "a chain without end": {
        "$ref": "#/$defs/0",
        "$defs": {f"{i}": a({"$ref": f"#/$defs/{(i + 1) % 900}"}) for i in range(900)},
    },
    "maxLength": {"type": "string", "maxLength": 10**9},
    "maxItems": {"type": "array", "items": {"type": "null"}, "maxItems": 10**9},
    "deep": _nested(20_000, "items", {}),
    "deep anyOf": _nested(20_000, "anyOf", {}),
    "deep const": {"const": json.loads("[" * 400 + "]" * 400)},
    "colliding names": {
        "type": "object",
        "properties": {
            f"{name}{i}": v for i, (name, v) in enumerate(_names(4000).items())
        },
    },
    "many names": {"type": "object", "properties": {f"n{i}": {} for i in range(4000)}},
    "many patterns": {"patternProperties": {f"^x{i}y": {} for i in range(3000)}},
    "patterns at once": {"allOf": [{"pattern": f".*a.{{{i}}}b"} for i in range(2, 30)]},
    "multiples at once": {
        "type": "integer",
        "allOf": [{"multipleOf": n} for n in (7919, 7907, 7901, 7883)],
    },
    "product": {
        "allOf": [
            {"anyOf": [{"properties": {f"k{j}{i}": {"const": i}}} for i in range(10)]}
            for j in range(8)
        ]
    },
    "loop": {"anyOf": [{"$ref": "#"}]},
    "options that list many values": {
        "oneOf": [
            {
                "type": "object",
                "properties": {
                    **{f"p{i}": {"$ref": "#/$defs/A"} for i in range(10)},
                    "k": {"const": n},
                },
            }
            for n in range(200)
        ],
        "$defs": {"A": {"enum": list(range(15_000))}},
    },
    "long pattern": {
        "type": "string",
        "pattern": "(a.{9}b.{9}|x+)+y",
        "maxLength": 9999,
    },
}
