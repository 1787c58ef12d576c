"""What an answer must look like, as a grammar for llguidance.

The idea: a JSON schema is read once and written again in the part of JSON Schema that
llguidance enforces to the letter: references become flat, formats become patterns, a
oneOf whose options exclude each other becomes an anyOf. Where a schema leaves a choice,
the answer may be narrower than the schema, never wider.

The invariant: what cannot be enforced is refused by its name, never ignored. Reading a
schema takes milliseconds, however it is made.

This module does not know models, tokens, or llama.cpp.
"""

from __future__ import annotations

import json
import math
from decimal import Decimal
from typing import Any

from . import bounds
from .analysis import TooManyError, apart, endless, patterns_together
from .bounds import WHOLE, SchemaError, is_text, refused, shown
from .patterns import FREE_FORMATS, PatternError, format_pattern, rust
from .references import References

# Escapes that spell a character in one way only, so that a name cannot be spelled twice
_OPTIONS = {
    "item_separator": ",",
    "key_separator": ":",
    "whitespace_pattern": r" |\n[ \t]{0,20}",
    "json_allowed_escapes": 'nrbtf\\"',
}
_TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")
_REFUSED = (
    *("not", "if", "contains", "uniqueItems", "propertyNames", "dependencies"),
    *("dependentRequired", "dependentSchemas", "unevaluatedItems", "extends"),
    *("unevaluatedProperties", "$dynamicRef", "$recursiveRef", "disallow"),
    "divisibleBy",
)
# Keywords that speak of the names of an object, or may
_SPEAKING = (
    *("properties", "patternProperties", "additionalProperties", "propertyNames"),
    *("required", "$ref", "allOf", "anyOf", "oneOf"),
)
# With these values they ask nothing
_HARMLESS: dict[str, tuple[Any, ...]] = {
    "uniqueItems": (False,),
    "propertyNames": (True, {}),
    "dependencies": ({},),
    "dependentRequired": ({},),
    "dependentSchemas": ({},),
    "unevaluatedItems": (True, {}),
    "unevaluatedProperties": (True, {}),
}
_INTEGERS = {
    "int8": (-(2**7), 2**7 - 1),
    "int16": (-(2**15), 2**15 - 1),
    "int32": (-(2**31), 2**31 - 1),
    "int64": (-bounds.MOST, bounds.MOST),
    "uint8": (0, 2**8 - 1),
    "uint16": (0, 2**16 - 1),
    "uint32": (0, 2**32 - 1),
    "uint64": (0, bounds.MOST),
}
_FLOATS = ("float", "double", "decimal")


def json_grammar(schema: Any) -> str:
    "A grammar for JSON that a schema accepts; raises SchemaError"
    return lark(f"start: {json_rule(schema)}")


def regex_grammar(pattern: str) -> str:
    "A grammar for texts that a regular expression matches as a whole"
    if not pattern:
        raise SchemaError("The regular expression is empty: give one that matches text")
    try:
        text = rust(pattern.removeprefix("^"))
    except PatternError as error:
        raise SchemaError(f"The regular expression cannot be used: {error}") from None
    if text.endswith("$") and not text.endswith(r"\$"):
        text = text[:-1]
    return lark(f"start: /{text}/")


def lark(rules: str) -> str:
    "A Lark grammar that never asks for the tokens of a text"
    return f'%llguidance {{"no_forcing": true}}\n{rules}\n'


def json_rule(schema: Any) -> str:
    "JSON that a schema accepts, as a part of a rule; raises SchemaError"
    found = _Reader(schema).read()
    return f"%json {json.dumps({'x-guidance': _OPTIONS, **found})}"


class _Reader:
    "Reads one schema"

    def __init__(self, root: Any):
        self._root = root
        self._n_left = bounds.MAX_NODES
        self._n_values = bounds.MAX_VALUES
        self._work = bounds.MAX_WORK
        self._multiples: set[int] = set()
        self._names: dict[tuple[int, bool], str] = {}  # of definitions
        self._waiting: list[tuple[str, Any, str, bool]] = []
        self._definitions: dict[str, Any] = {}
        self._written: dict[str, str] = {}  # the reference to a definition
        self._references = References(root)
        self._pairs: list[tuple[dict[str, Any], list[Any], str]] = []

    def read(self) -> dict[str, Any]:
        if not isinstance(self._root, dict | bool):
            raise SchemaError(f"{WHOLE}: it is not an object")
        bounds.check_size(self._root)
        found = self._schema(self._root, "#", 0)
        while self._waiting:
            name, schema, where, alone = self._waiting.pop()
            self._written[name] = where
            self._definitions[name] = self._schema(schema, where, 0, alone)
        for name in self._definitions:
            self._check_end(name)
        for schema, options, where in self._pairs:
            schema["anyOf"] = self._exclusive(options, where)
        self._check_complete()
        self._check_patterns(found)
        if found is False:
            raise SchemaError(f"{WHOLE}: it accepts nothing")
        if found is True:
            found = {}
        return {**found, "$defs": self._definitions} if self._definitions else found

    def _schema(self, schema: Any, where: str, depth: int, alone: bool = True) -> Any:
        """A schema as llguidance enforces it.

        One that stands ``alone`` says all that there is about a value: what it does not
        list, an object need not have. Others may speak of the same object.
        """
        self._n_left -= 1
        if self._n_left < 0:
            raise SchemaError(f"{WHOLE}: it has more than {bounds.MAX_NODES:,} parts")
        if depth > bounds.MAX_DEPTH:
            raise SchemaError(
                f"{WHOLE}: it is nested more than {bounds.MAX_DEPTH} deep"
            )
        if isinstance(schema, bool):
            return schema
        if not isinstance(schema, dict):
            raise SchemaError(f"{WHOLE}: {where[:200]} is not a schema")
        if "$id" in schema and where != "#" and "$ref" in json.dumps(schema):
            raise refused("$id below the top of a schema", where)
        self._check_keywords(schema, where)
        found: dict[str, Any] = {}
        self._add_type(found, schema, where)
        self._add_numbers(found, schema, where)
        self._add_texts(found, schema, where)
        self._add_lists(found, schema, where, depth)
        self._add_objects(found, schema, where, depth)
        self._add_values(found, schema, where)
        self._add_choices(found, schema, where, depth, alone)
        if alone and not any(key in found for key in ("allOf", "anyOf", "$ref")):
            _close(found)
        return found

    def _check_keywords(self, schema: dict[str, Any], where: str) -> None:
        for key in _REFUSED:
            if key not in schema or schema[key] in _HARMLESS.get(key, ()):
                continue
            if key == "uniqueItems" and schema.get("maxItems") in (0, 1):
                continue
            if key == "propertyNames" and bounds.is_text_schema(schema[key]):
                continue
            raise refused(key, where)
        if schema.get("required") in (True, False):
            raise refused("required as a boolean", where)

    # -- keywords of each type -------------------------------------------

    def _add_type(self, found: dict[str, Any], schema: Any, where: str) -> None:
        if "type" not in schema:
            return
        types = schema["type"]
        names = types if isinstance(types, list) else [types]
        for name in names:
            if name not in _TYPES:
                raise SchemaError(
                    f"{WHOLE}: type {shown(name)} is not one of " + ", ".join(_TYPES)
                )
        if not names:
            raise refused("an empty list of types", where)
        found["type"] = names if len(names) > 1 else names[0]

    def _add_numbers(self, found: dict[str, Any], schema: Any, where: str) -> None:
        for key in ("minimum", "maximum", "multipleOf"):
            if key in schema:
                found[key] = bounds.number(schema[key], key, where)
        for key in ("exclusiveMinimum", "exclusiveMaximum"):
            other = key[9:].lower()
            if schema.get(key) is True and other in found:  # draft 4
                found[key] = found.pop(other)
            elif key in schema and not isinstance(schema[key], bool):
                found[key] = bounds.number(schema[key], key, where)
        if "multipleOf" in found:
            self._check_multiple(found["multipleOf"], where)

    def _check_multiple(self, value: Any, where: str) -> None:
        if value <= 0:
            raise refused("a multipleOf that is not positive", where)
        digits = Decimal(str(value)).normalize().as_tuple().digits
        self._multiples.add(int("".join(map(str, digits))))
        if math.prod(self._multiples) > bounds.MAX_MULTIPLE:
            raise refused(f"multipleOf {value}", where)

    def _add_texts(self, found: dict[str, Any], schema: Any, where: str) -> None:
        for key in ("minLength", "maxLength"):
            if key in schema:
                found[key] = bounds.count(schema[key], key, bounds.MAX_LENGTH, where)
        patterns = [schema["pattern"]] if "pattern" in schema else []
        if "format" in schema:
            patterns += self._format(found, schema["format"], where)
        written = [bounds.pattern(each, where) for each in patterns]
        if len(written) == 1:
            found["pattern"] = written[0]
        elif written:
            found["allOf"] = [{"pattern": each} for each in written]

    def _format(self, found: dict[str, Any], name: Any, where: str) -> list[str]:
        "The pattern of a format, if it asks for one"
        if not is_text(name):
            name = shown(name)  # no format has it
        types = found.get("type")
        is_number = types in ("integer", "number")
        if is_number and name in _INTEGERS:
            least, most = _INTEGERS[name]
            found["minimum"] = max(found.get("minimum", least), least)
            found["maximum"] = min(found.get("maximum", most), most)
            return []
        if name in FREE_FORMATS or name in _FLOATS:
            return []
        if types is not None and "string" not in ([types] if is_text(types) else types):
            return []
        pattern = format_pattern(name)
        if pattern is None:
            raise refused(f"format {shown(name)}", where)
        return [pattern]

    def _add_lists(
        self, found: dict[str, Any], schema: Any, where: str, depth: int
    ) -> None:
        for key in ("minItems", "maxItems"):
            if key in schema:
                found[key] = bounds.count(schema[key], key, bounds.MAX_ITEMS, where)
        prefix, items = schema.get("prefixItems"), schema.get("items")
        if isinstance(items, list):  # before draft 2020-12
            prefix, items = items, schema.get("additionalItems")
        if prefix is not None:
            found["prefixItems"] = self._several(prefix, f"{where}/prefixItems", depth)
        if items is not None:
            found["items"] = self._schema(items, f"{where}/items", depth + 1)

    def _add_objects(
        self, found: dict[str, Any], schema: Any, where: str, depth: int
    ) -> None:
        for key in ("minProperties", "maxProperties"):
            if key in schema:
                found[key] = bounds.count(schema[key], key, bounds.MAX_ITEMS, where)
        for key in ("properties", "patternProperties"):
            if key not in schema:
                continue
            if not isinstance(schema[key], dict):
                raise refused(f"{key} that is not an object", where)
            read: dict[str, Any] = {}
            for name, value in schema[key].items():
                new = (
                    bounds.name(name)
                    if key == "properties"
                    else bounds.pattern(name, where)
                )
                read[new] = self._schema(value, f"{where}/{key}/{name}", depth + 1)
            found[key] = read
        if "required" in schema:
            names = schema["required"]
            if not isinstance(names, list) or not all(map(is_text, names)):
                raise refused("required that is not a list of names", where)
            found["required"] = [bounds.name(name) for name in dict.fromkeys(names)]
        if "additionalProperties" in schema:
            found["additionalProperties"] = self._schema(
                schema["additionalProperties"],
                f"{where}/additionalProperties",
                depth + 1,
            )
        if "propertyNames" in schema:
            self._name_properties(found, schema["propertyNames"], where)
        n_names = len(found.get("properties", ())) + len(found.get("required", ()))
        n_patterns = len(found.get("patternProperties", ()))
        self._work -= n_names**2 + 8 * n_names * n_patterns + 80 * n_patterns**2
        if self._work < 0:
            raise SchemaError(f"{WHOLE}: it has too many properties")
        self._check_counts(found, where)

    def _name_properties(self, found: dict[str, Any], names: Any, where: str) -> None:
        "Put what propertyNames asks into what an object may have"
        if names in (True, {}):
            return
        if "patternProperties" in found:
            raise refused("propertyNames", where)
        others = found.get("additionalProperties", True)
        allowed = names.get("enum", [names["const"]] if "const" in names else None)
        properties = found.get("properties", {})
        found["additionalProperties"] = False
        if allowed is not None:
            self._n_values -= len(allowed)
            kept = {name: properties.get(name, others) for name in allowed}
            found["properties"] = {
                bounds.name(name): value for name, value in kept.items()
            }
            return
        if properties:
            raise refused("propertyNames beside properties", where)
        found["patternProperties"] = {bounds.pattern(names["pattern"], where): others}

    def _check_counts(self, found: dict[str, Any], where: str) -> None:
        "Names beyond those listed may come twice, and count once"
        is_open = found.get("additionalProperties", True) is not False
        is_open = is_open or bool(found.get("patternProperties"))
        n_more = found.get("minProperties", 0) - len(found.get("required", ()))
        if is_open and n_more > 1:
            raise refused("minProperties above 1 for names that are not listed", where)

    # -- values, choices, references --------------------------------------

    def _add_values(self, found: dict[str, Any], schema: Any, where: str) -> None:
        if "enum" in schema:
            if not isinstance(schema["enum"], list) or not schema["enum"]:
                raise refused("an enum that is not a list of values", where)
            found["enum"] = [self._value(each, where, 0) for each in schema["enum"]]
        if "const" in schema:
            found["const"] = self._value(schema["const"], where, 0)

    def _value(self, value: Any, where: str, depth: int) -> Any:
        self._n_values -= 1
        if self._n_values < 0:
            raise SchemaError(
                f"{WHOLE}: it lists more than {bounds.MAX_VALUES:,} values"
            )
        if depth > bounds.MAX_DEPTH:
            raise SchemaError(
                f"{WHOLE}: it is nested more than {bounds.MAX_DEPTH} deep"
            )
        if isinstance(value, dict):
            return {
                bounds.name(name): self._value(each, where, depth + 1)
                for name, each in value.items()
            }
        if isinstance(value, list):
            return [self._value(each, where, depth + 1) for each in value]
        if isinstance(value, str):
            return bounds.text(value)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return bounds.number(value, "a value", where)
        return value

    def _add_choices(
        self, found: dict[str, Any], schema: Any, where: str, depth: int, alone: bool
    ) -> None:
        speakers = [key for key in _SPEAKING if key in schema]
        n_all = len(schema["allOf"]) if isinstance(schema.get("allOf"), list) else 0
        alone = alone and len(speakers) == 1 and n_all <= 1
        if "$ref" in schema:
            found["$ref"] = self._reference(schema["$ref"], where, alone)
        if "allOf" in schema:
            given = self._several(schema["allOf"], f"{where}/allOf", depth, alone)
            found["allOf"] = found.get("allOf", []) + given
        if "anyOf" in schema:
            found["anyOf"] = self._several(
                schema["anyOf"], f"{where}/anyOf", depth, alone
            )
        if "oneOf" in schema:
            options = self._several(schema["oneOf"], f"{where}/oneOf", depth, alone)
            choice: dict[str, Any] = {}
            self._pairs.append((choice, options, f"{where}/oneOf"))
            if "anyOf" in found:
                found.setdefault("allOf", []).append(choice)
            else:  # filled in when all references are known
                found["allOf"] = [*found.get("allOf", []), choice]

    def _several(
        self, schemas: Any, where: str, depth: int, alone: bool = True
    ) -> list[Any]:
        if not isinstance(schemas, list) or not schemas:
            raise SchemaError(f"{WHOLE}: {where[:200]} is not a list of schemas")
        if len(schemas) > bounds.MAX_OPTIONS:
            raise SchemaError(
                f"{WHOLE}: {where[:200]} has more than {bounds.MAX_OPTIONS:,}"
            )
        return [
            self._schema(each, f"{where}/{i}", depth + 1, alone)
            for i, each in enumerate(schemas)
        ]

    def _exclusive(self, options: list[Any], where: str) -> list[Any]:
        "The options of a oneOf, of which an answer can fulfil only one"
        found = apart(options, lambda name: self._definitions[name])
        if found is None:
            raise refused("oneOf with options that do not exclude each other", where)
        return found

    def _reference(self, reference: Any, where: str, alone: bool) -> str:
        if not is_text(reference):
            raise refused("$ref that is not a text", where)
        target = self._references.target(reference)
        key = id(target), alone
        name = self._names.get(key)
        if name is None:
            name = self._names[key] = f"r{len(self._names)}"
            self._waiting.append((name, target, reference, alone))
        return f"#/$defs/{name}"

    def _check_patterns(self, found: Any) -> None:
        try:
            n = patterns_together(found, lambda name: self._definitions[name])
        except TooManyError:
            raise SchemaError(f"{WHOLE}: it is too complex") from None
        if n > bounds.MAX_TOGETHER:
            raise SchemaError(
                f"{WHOLE}: more than {bounds.MAX_TOGETHER} patterns and formats apply "
                "to the same text"
            )

    def _check_complete(self) -> None:
        "Raise SchemaError for what requires another one of itself, without end"
        try:
            names = endless(self._definitions)
        except TooManyError:
            raise SchemaError(f"{WHOLE}: it is too complex") from None
        if names:
            what = shown(self._written[names[-1]])
            raise SchemaError(
                f"{WHOLE}: {what} can never be complete, since it requires itself"
            )

    def _check_end(self, name: str) -> None:
        "Raise SchemaError for a reference that only ever refers to others"
        seen: set[str] = set()
        reference: str | None = f"#/$defs/{name}"
        while reference is not None:
            if reference in seen:
                raise SchemaError(f"{WHOLE}: a $ref refers to itself")
            seen.add(reference)
            schema = self._definitions[reference.rpartition("/")[2]]
            reference = schema.get("$ref") if isinstance(schema, dict) else None


def _close(found: dict[str, Any]) -> None:
    "Let an object have only the properties that are listed"
    if "additionalProperties" in found:
        return
    if "properties" in found or "patternProperties" in found:
        listed = found.get("properties", {})
        if "patternProperties" not in found:  # a pattern may stand for a name
            names = [n for n in found.get("required", ()) if n not in listed]
            found["properties"] = {**listed, **dict.fromkeys(names, True)}
        found["additionalProperties"] = False
