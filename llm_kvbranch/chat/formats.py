"""The forms in which models write tool calls.

The idea: a form is the texts around calls, names and arguments, and a way to write
arguments. One function reads any number of calls, given a form. ``dialect`` learns
forms from templates; ``known`` has those that models write whatever their template
says.

The invariant: a call is returned only once its end has been read.

This module does not know templates, or what is done with calls.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any

from .scanning import ANY, Mismatch, Reading, Scanner, read_json
from .values import Schema, bare_object, part, python_arguments, takes_text, typed

# Placeholders: the argument's key in a tag, the tool's name in an id
KEY = "\ue011"
NAME = "\ue012"


@dataclass(frozen=True)
class Json:
    "Arguments are a JSON object after the name"

    opening = "{"


@dataclass(frozen=True)
class Python:
    "Arguments are keyword arguments of a Python call; JSON's literals are read too"

    opening = "("


@dataclass(frozen=True)
class Bare:
    "Arguments are an object with unquoted keys; ``quote`` is around strings"

    quote: str
    opening = "{"


@dataclass(frozen=True)
class Tagged:
    """Each argument is a key and a value between tags.

    ``value`` is between a key and its value; ``others`` are used there if the value is
    JSON. KEY in ``end`` is the key again. ``item`` is the key of a list's items if
    lists and objects are written as tags too.
    """

    key: str
    value: str
    end: str
    others: tuple[str, ...] = ()
    item: str = ""
    cdata: bool = False
    opening = ""


@dataclass(frozen=True)
class Object:
    """Name and arguments are values of a JSON object.

    Without a ``name`` the object's only key is the name. ``texts`` are what a template
    writes before the name, between it and the arguments, and after them.
    """

    name: str = "name"
    arguments: str = "arguments"
    id: str = "id"
    texts: tuple[str, str, str] | None = None
    opening = "{"


@dataclass(frozen=True)
class Form:
    """How calls are written.

    ``begin`` and ``end`` are around all calls, ``between`` separates them. ``before``
    and ``after`` are around each call, ``middle`` is between its name and its
    arguments. ``id`` is a call's id, if the model writes one: ANY in it is what the
    model writes, NAME the tool's name. A ``whole`` form has nothing that tells it from
    text, so it counts only if it is the whole answer.
    """

    arguments: Json | Python | Bare | Tagged | Object
    begin: str = ""
    before: str = ""
    middle: str = ""
    after: str = ""
    between: str = ""
    end: str = ""
    id: str = ""
    whole: bool = False

    @property
    def trigger(self) -> str:
        "What the first call begins with"
        return _start(self.begin + self.before)

    @property
    def marks(self) -> str:
        "Everything written around names and values"
        how = self.arguments
        inner = (how.key, how.value, how.end) if isinstance(how, Tagged) else ()
        quote = how.quote if isinstance(how, Bare) else ""
        parts = (self.begin, self.before, self.middle, *inner, quote)
        return " ".join((*parts, self.after, self.between, self.end))

    @property
    def closers(self) -> tuple[str, ...]:
        "What may be left over after a call"
        return tuple(w for w in (self.after + " " + self.end).split() if len(w) > 3)


def _start(mark: str) -> str:
    "What a mark begins with, up to white space or an id"
    words = mark.split()
    return words[0].partition(ANY)[0] if words else ""


@dataclass(frozen=True)
class Found:
    "A call that was read, at [begin, end) of the text"

    name: str
    arguments: dict[str, Any]
    id: str
    begin: int
    end: int


Offered = Mapping[str, Schema]
# Brackets around a list, which may have white space around them
_LIST = re.compile(r"(?<=[^\[])(\[)\s*$")
_LIST_END = re.compile(r"^\s*\]")
_NAME = re.compile(r"[\w.:/-]{0,128}")
_KEY = re.compile(r"[^<>\n\"]{0,128}")


def calls(
    form: Form, scanner: Scanner, offered: Offered
) -> Generator[Found | None, None, None]:
    """Read calls as they come; yields None when it needs more text.

    Raises Mismatch if the text is something else; the scanner is then just after the
    last call. Some of several calls may be to tools that are not in ``offered``.
    """
    yield from scanner.mark(_LIST.sub(r" \1 ", form.begin))
    first = True
    while True:
        behind = scanner.at
        try:
            yield (yield from _call(form, scanner, offered, first))
            first = False
            behind = scanner.at
            if not form.end and not form.whole:
                return
            if form.end:
                if (yield from _is_end(form, scanner)):
                    return
                yield from scanner.mark(form.between)
            elif (yield from _is_over(scanner)):
                return
        except Mismatch:
            scanner.at = behind
            raise


def _is_end(form: Form, scanner: Scanner) -> Reading[bool]:
    "Read what ends all calls, if it comes next rather than another call"
    start = scanner.at
    following = (form.between + form.before).strip() or form.arguments.opening
    end = _LIST_END.sub("] ", form.end)
    if not (yield from scanner.choose((end, following))):
        return True
    scanner.at = start
    return False


def _is_over(scanner: Scanner) -> Reading[bool]:
    "Whether no call follows, in a form without an end or clear separators"
    try:
        if (yield from scanner.skip()) in ";,":
            scanner.at += 1
            yield from scanner.skip()
    except Mismatch:
        return True
    return False


def _call(
    form: Form, scanner: Scanner, offered: Offered, first: bool
) -> Reading[Found]:
    how, id = form.arguments, ""
    only = offered if form.whole and first else None
    scanner.kept.clear()
    yield from scanner.skip()
    begin = scanner.at
    yield from scanner.mark(form.before)
    yield from scanner.skip()
    if isinstance(how, Object):
        name, arguments, id = yield from _object(how, scanner, only)
    else:
        name = yield from _name(form, scanner, offered, only)
        yield from scanner.mark(form.middle)
        arguments = yield from _arguments(form, scanner, offered.get(name, {}))
    if name not in offered and not form.end:
        raise Mismatch
    yield from _after(form, scanner)
    given = id or "".join(scanner.kept[:1])
    id = form.id.replace(NAME, name).replace(ANY, given) if given else ""
    return Found(name, arguments, id, begin, scanner.at)


def _after(form: Form, scanner: Scanner) -> Reading[None]:
    """Read what follows a call.

    If the model ended its answer there, tags that only close the call may be missing.
    """
    least = isinstance(form.arguments, Tagged)
    for n, word in enumerate(form.after.split()):
        start = scanner.at
        try:
            yield from scanner.mark(word)
        except Mismatch:
            rest = scanner.source.text[start:]
            if n >= least and scanner.source.ended and not rest.strip():
                return
            raise


def _name(
    form: Form, scanner: Scanner, offered: Offered, only: Offered | None
) -> Reading[str]:
    while only is not None:  # most answers are not calls: fail early
        text = scanner.source.text[scanner.at :]
        if not any(name.startswith(text) for name in only):
            if not any(text.startswith(name) for name in only):
                raise Mismatch
            break
        yield from scanner.more()
    name = yield from scanner.run(_NAME, _start(form.middle))
    if not name or (name not in offered and (only is not None or not form.end)):
        raise Mismatch
    return name


def _arguments(form: Form, scanner: Scanner, schema: Schema) -> Reading[dict[str, Any]]:
    how = form.arguments
    if isinstance(how, Tagged):
        closing = (form.after.split() or [""])[0]
        return (yield from _tagged(how, closing, scanner, schema, schema))
    yield from scanner.skip()
    if isinstance(how, Bare):
        return (yield from bare_object(scanner, how.quote))
    if isinstance(how, Python):
        return (yield from python_arguments(scanner))
    return (yield from scanner.object())


_KINDS = {
    **dict.fromkeys(("name", "tool_name", "function"), "name"),
    **dict.fromkeys(("arguments", "parameters"), "arguments"),
    **dict.fromkeys(("id", "tool_call_id", "call_id"), "id"),
    **{"type": "type", "index": "index"},
}


def _object(
    how: Object, scanner: Scanner, only: Offered | None
) -> Reading[tuple[str, dict[str, Any], str]]:
    """A JSON object that is a call.

    With ``only``, its name must be one of those, and it must have arguments.
    """
    kinds = {**_KINDS, how.name: "name", how.arguments: "arguments", how.id: "id"}
    values: dict[str, Any] = {}
    yield from scanner.exact("{")
    while (yield from scanner.item("}", not values)):
        yield from scanner.skip()
        key = yield from scanner.string()
        kind = kinds.get(key)
        if how.name and (kind is None or kind in values):
            raise Mismatch
        yield from scanner.mark(":")
        char = yield from scanner.skip()
        if not how.name and not values:
            values = {"name": key, "arguments": (yield from scanner.object())}
            continue
        if kind is None or kind in values:
            raise Mismatch
        if key == "function" and char == "{":
            inner = yield from _object(how, scanner, only)
            if "arguments" in values:
                raise Mismatch
            values |= {"name": inner[0], "arguments": inner[1]}
            continue
        values[kind] = yield from scanner.value()
        if kind == "name" and only is not None and values["name"] not in only:
            raise Mismatch
    name, arguments = values.get("name"), values.get("arguments")
    if isinstance(arguments, str):
        arguments = read_json(arguments)
    if only is not None and "arguments" not in values:
        raise Mismatch
    arguments = {} if arguments is None else arguments
    if not isinstance(name, str) or not name or not isinstance(arguments, dict):
        raise Mismatch
    return name, arguments, str(values.get("id") or "")


def _tagged(
    how: Tagged, closing: str, scanner: Scanner, schema: Any, root: Schema
) -> Reading[dict[str, Any]]:
    "Keys and values up to a closing tag, which is left unread"
    found: dict[str, Any] = {}
    following = (closing, how.key)  # in this order: they may begin alike
    while True:
        start = scanner.at
        if not (yield from scanner.choose(following)):
            scanner.at = start
            return found
        key = (yield from scanner.run(_KEY, _start(how.value))).strip()
        if not key or (key in found and key != how.item):
            raise Mismatch
        own = part(schema, root, key)
        value = yield from _value(how, key, following, scanner, own, root)
        if key == how.item:
            value = [*found.get(key, ()), value]
        found[key] = value


def _value(
    how: Tagged,
    key: str,
    following: tuple[str, str],
    scanner: Scanner,
    schema: Any,
    root: Schema,
) -> Reading[Any]:
    is_json = yield from scanner.choose((how.value, *how.others))
    end = how.end.replace(KEY, key)
    stop = end.split()[0]
    if how.item and not takes_text(schema, root):
        start = scanner.at
        if (yield from scanner.choose((stop, how.key, ""))) == 1:
            scanner.at = start
            inner = yield from _tagged(how, stop, scanner, schema, root)
            yield from scanner.mark(stop)
            return inner[how.item] if set(inner) == {how.item} else inner
        scanner.at = start
    if how.cdata:
        start = scanner.at
        if not (yield from scanner.choose(("<![CDATA[", ""))):
            text = yield from scanner.upto("]]>")
            yield from scanner.mark(f"]]> {stop}")
            return typed(text, schema, root)
        scanner.at = start
    text = yield from _text(scanner, stop, following)
    text = text.removeprefix(how.value[len(how.value.rstrip()) :])
    text = text.removesuffix(end[: len(end) - len(end.lstrip())])
    if is_json:
        return read_json(text)
    return text if how.others else typed(text, schema, root)


def _text(scanner: Scanner, stop: str, following: tuple[str, str]) -> Reading[str]:
    """Everything up to the tag that ends a value; reads the tag as well.

    A value may contain that tag: it ends the value only if a key or the closing tag
    comes next.
    """
    begin = scanner.at
    while True:
        yield from scanner.upto(stop)
        end = scanner.at
        behind = scanner.at = end + len(stop)
        try:
            yield from scanner.choose(following)
        except Mismatch:
            scanner.at = behind
        else:
            scanner.at = behind
            return scanner.source.text[begin:end]
