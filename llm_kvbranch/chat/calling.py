"""Answers that must be calls of tools, as a grammar for llguidance.

The idea: a form that calls are read in says what is written around names and arguments;
a tool's schema says what its arguments may be. Together they are a grammar.

The invariant: what the grammar allows, a Reader of the same dialect reads as calls, and
what of a tool's schema cannot be enforced is refused by its name.

This module does not know models; who calls it knows which texts are control tokens.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from ..errors import ChatError
from .bounds import SchemaError
from .dialect import Dialect
from .formats import KEY, Form, Json, Object, Tagged
from .named import Messages
from .scanning import ANY
from .schema import json_rule, lark
from .values import takes_text, typed

# The control tokens that a text spells, in order: their texts and numbers. A number is
# None for a token that ends the answer.
Controls = Callable[[str], Sequence[tuple[str, int | None]]]

_HERMES = Form(Object(), before="<tool_call>\n", after="\n</tool_call>", between="\n")
_TEXTS = '{"name": "', '", "arguments": ', "}"
_IDS = {True: "/[a-zA-Z0-9]{9}/", False: "/[0-9]{1,2}/"}
_PARAMETERS = (
    *("type", "properties", "required", "additionalProperties", "$defs"),
    *("definitions", "title", "description", "$schema", "$id", "$comment", "examples"),
)
# Keywords with which a string is not any text
_LIMITED = ("pattern", "format", "minLength", "maxLength", "allOf", "not", "if")
_KINDS = ("number", "boolean", "null", "object", "array")


def call_grammar(
    dialect: Dialect,
    tools: Sequence[dict[str, Any]],
    names: Sequence[str],
    several: bool,
    controls: Controls,
) -> str:
    """A grammar for a call of one of the named tools; for ``several``, also more calls.

    Raises ChatError if the model's form of calls has none, and for a tool whose
    arguments cannot be enforced.
    """
    messages = dialect.messages
    rules: _Rules | _MessageRules
    if messages is None:
        rules = _Rules(_form(dialect), dialect.short_ids, controls)
    elif messages.call is not None:
        rules = _MessageRules(messages, messages.call, controls)
    else:
        raise ChatError(
            "tool_choice cannot be enforced for this model: leave it out, or set it "
            "to auto"
        )
    functions = {tool["function"]["name"]: tool["function"] for tool in tools}
    for name in names:
        if name not in functions:
            raise ChatError(f"tool_choice names {name!r}, which is not in tools")
        try:
            rules.add(name, functions[name].get("parameters") or {})
        except SchemaError as error:
            raise ChatError(
                f"tool_choice cannot be enforced for the tool {name}: {error}"
            ) from None
    return rules.grammar(several)


def _form(dialect: Dialect) -> Form:
    "The form that the template shows, or one that every reader knows"
    form = dialect.forms[0] if dialect.forms else _HERMES
    how = form.arguments
    if isinstance(how, Tagged) and len(how.others) not in (0, 1, len(_KINDS)):
        return _HERMES
    return form if isinstance(how, Json | Object | Tagged) else _HERMES


class _Grammar:
    "The rules of a grammar, as they are made"

    def __init__(self, controls: Controls, id: str = ""):
        self._controls = controls
        self._id = id
        self._rules: list[str] = []
        self._calls: list[str] = []

    def _rule(self, rule: str, attributes: str = "") -> str:
        "Give a rule a name"
        name = f"r{len(self._rules)}"
        self._rules.append(f"{name}{attributes}: {rule}")
        return name

    def _text(self, text: str) -> str:
        "What the form has, with control tokens by their numbers; ANY is an id"
        found: list[str] = []
        for control, token in self._controls(text):
            before, _, text = text.partition(control)
            found += self._plain(before)
            if token is None:  # nothing follows the end of an answer
                return " ".join(found)
            found.append(f"<[{token}]>")
        return " ".join([*found, *self._plain(text)])

    def _plain(self, text: str) -> list[str]:
        found: list[str] = []
        for i, part in enumerate(text.split(ANY)):
            found += [self._id] if i else []
            found += [json.dumps(part, ensure_ascii=False)] if part else []
        return found

    def _until(self, end: str) -> str:
        "Any text up to a closing mark, and that mark"
        stop = end.split(maxsplit=1)[0]
        controls = self._controls(stop)
        if controls and stop.startswith(controls[0][0]):
            return f"{self._rule('/(?s:.*)/')} {self._text(end)}"
        text = self._rule("/(?s:.*)/", f"[suffix={json.dumps(stop)}]")
        return f"{text} {self._text(end.partition(stop)[2])}"

    def _whole(self, start: str) -> str:
        "The grammar of an answer with the calls added"
        calls = " | ".join(self._calls)
        return lark("\n".join([f"start: {start}", f"call: {calls}", *self._rules]))


class _MessageRules(_Grammar):
    "Rules where an answer is messages: thinking may come before the call"

    def __init__(self, messages: Messages, call: tuple[str, str], controls: Controls):
        super().__init__(controls)
        self._messages = messages
        self._around = call

    def add(self, name: str, parameters: dict[str, Any]) -> None:
        "Add the call of a tool"
        before, after = self._around
        arguments = self._rule(json_rule(_of_an_object(parameters)))
        lead = self._text(before.replace(ANY, name))
        self._calls.append(self._rule(f"{lead} {arguments} {self._text(after)}"))

    def grammar(self, several: bool) -> str:
        "A model that writes messages waits for the result of its first call"
        open, close = self._messages.thinking
        role = self._text(self._messages.start + "assistant")
        thought = f"{self._text(open)} {self._until(close)} {role}"
        return self._whole(f"({role})? ({thought})? call")


class _Rules(_Grammar):
    "Rules where calls have marks around them"

    def __init__(self, form: Form, short_ids: bool, controls: Controls):
        short = short_ids or isinstance(form.arguments, Object)
        super().__init__(controls, _IDS[short])
        self._form = form

    def add(self, name: str, parameters: dict[str, Any]) -> None:
        "Add the call of a tool"
        form, how = self._form, self._form.arguments
        parameters = _of_an_object(parameters)
        after = form.after.rstrip()
        if isinstance(how, Tagged):
            lead = form.before + name + form.middle
            call = f"{self._text(lead)} {self._tagged(how, parameters)}"
        else:
            before, behind = _object(how, name) if isinstance(how, Object) else ("", "")
            before = before or name + form.middle
            arguments = self._rule(json_rule(parameters))
            call, after = (
                f"{self._text(form.before + before)} {arguments}",
                (behind + after),
            )
        self._calls.append(self._rule(f"{call} {self._text(after)}"))

    def grammar(self, several: bool) -> str:
        form = self._form
        begin = form.begin.lstrip()
        space = form.after[len(form.after.rstrip()) :]
        end = space + form.end.rstrip() if form.end.strip() else ""
        between = space + form.between + ("" if end else begin)
        more = ""
        if several and (end or not form.whole):
            more = f"({self._text(between)} call)*"
        return self._whole(f"{self._text(begin)} call {more} {self._text(end)}")

    def _tagged(self, how: Tagged, parameters: dict[str, Any]) -> str:
        "Arguments between tags, in the order of the schema"
        for key in parameters:
            if key not in _PARAMETERS:
                raise SchemaError(f"its parameters have {key}, which is not supported")
        properties = parameters.get("properties") or {}
        required = parameters.get("required") or ()
        if missing := [key for key in required if key not in properties]:
            raise SchemaError(f"the parameter {missing[0]} has no schema")
        written = []
        for key, schema in properties.items():
            rule = self._rule(self._argument(how, key, schema, parameters))
            written.append(rule if key in required else f"{rule}?")
        return " ".join(written)

    def _argument(
        self, how: Tagged, key: str, schema: Any, parameters: dict[str, Any]
    ) -> str:
        end = how.end.replace(KEY, key)
        lead = how.key + key
        if takes_text(schema, parameters):
            lead = self._text(lead + how.value)
            if (choices := _choices(schema)) is not None:
                for each in choices:
                    if typed(_spelled(each), schema, parameters) != each:
                        raise SchemaError(
                            f"a value of {key} would be read as another one"
                        )
                rule = " | ".join(self._text(_spelled(each)) for each in choices)
                return f"{lead} ({rule}) {self._text(end)}"
            if limit := _limit(schema):
                raise SchemaError(f"{limit} of the parameter {key} cannot be enforced")
            if how.cdata:
                text = self._until("]]>")
                return f'{lead} "<![CDATA[" {text} {self._text(end)}'
            return f"{lead} {self._until(end)}"
        definitions = {
            name: parameters[name]
            for name in ("$defs", "definitions")
            if name in parameters
        }
        rule = json_rule({**schema, **definitions} if schema is not True else {})
        value = how.value
        if how.others:
            value = how.others[0]
            kind = schema.get("type") if isinstance(schema, dict) else None
            kind = "number" if kind == "integer" else kind
            if len(how.others) == len(_KINDS) and kind in _KINDS:
                value = how.others[_KINDS.index(kind)]
        return f"{self._text(lead + value)} {self._rule(rule)} {self._text(end)}"


def _of_an_object(parameters: dict[str, Any]) -> dict[str, Any]:
    if parameters.get("type", "object") != "object":
        raise SchemaError("its parameters are not an object")
    return {**parameters, "type": "object"}


def _object(how: Object, name: str) -> tuple[str, str]:
    "What is written before and behind the arguments, if the call is an object"
    if not how.name:
        return f'{{"{name}": ', "}"
    before, between, behind = how.texts or _TEXTS
    return before + name + between, behind


def _choices(schema: Any) -> list[Any] | None:
    "The values that a schema lists"
    if "const" in schema:
        return [schema["const"]]
    listed = schema.get("enum")
    return listed if isinstance(listed, list) else None


def _spelled(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _limit(schema: Any) -> str | None:
    "What a schema asks of a string, if it does"
    for key in _LIMITED:
        if key in schema:
            return key
    for key in ("anyOf", "oneOf"):
        for each in schema.get(key) or ():
            if each.get("type") == "string" or "type" not in each:
                found = "enum" if _choices(each) is not None else _limit(each)
                if found or "$ref" in each:
                    return found or "$ref"
    return "$ref" if "$ref" in schema else None
