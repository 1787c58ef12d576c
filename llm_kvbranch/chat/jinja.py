"""A chat template's source to text, as Hugging Face renders it.

The idea: jinja2 in its sandbox, within limits, with the functions that templates use.

The invariant: whatever a template does, the caller gets its text or one ChatError.

This module does not know messages.
"""

from __future__ import annotations

import datetime
import functools
import json
import secrets
from collections.abc import Iterator
from typing import Any

from ..errors import ChatError

# Private-use characters around a random number: no message can contain them. Put inside
# a text that would be read as a control token; tojson leaves it as it is.
NUMBER = secrets.randbelow(10**18)
CUT = f"\ue000{NUMBER}\ue001"


def render(source: str, /, **values: Any) -> str:
    "Render a chat template the way Hugging Face does; raises ChatError"
    from .limits import limited

    values.setdefault("strftime_now", datetime.datetime.now().strftime)
    try:
        template = _compile(source)
        return str(limited(lambda: template.render(**values)))
    except _Rejected as error:
        raise ChatError(
            f"The model's chat template rejects these messages: {_line(error)}"
        ) from None
    except Exception as error:  # a template may raise anything
        raise ChatError(f"The model's chat template failed: {_line(error)}") from None


class _Rejected(Exception):
    "Raised by a template itself, with its reason"


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _raise_exception(message: str) -> None:
    raise _Rejected(message)


def _plain(value: Any) -> list[Any] | None:
    "What JSON has for a variable that is not set, and for what a filter returns"
    from jinja2 import Undefined

    if isinstance(value, Iterator):
        return list(value)
    if not isinstance(value, Undefined):
        raise TypeError(f"{type(value).__name__} cannot be written as JSON")
    return None


def to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    "Unlike jinja's own, it does not escape < and >, and keeps cuts intact"
    text = json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
        default=_plain,
    )
    return text.replace(json.dumps(CUT)[1:-1], CUT)


def undefined() -> Any:
    "A value that templates take for a variable that is not set"
    from jinja2 import Undefined

    return Undefined()


@functools.lru_cache(maxsize=8)
def variables(source: str) -> tuple[frozenset[str], tuple[str, ...]]:
    """The variables that a template reads: all, and those that may be set.

    The latter without those that it sets itself before it reads them. Both are empty
    if it is not valid.
    """
    from jinja2 import TemplateError, meta, nodes

    environment = _environment()
    try:
        tree = environment.parse(source)
        read = meta.find_undeclared_variables(tree) - set(environment.globals)
    except (TemplateError, RecursionError):
        return frozenset(), ()
    mine = {name.name for name in tree.find_all(nodes.Name) if name.ctx == "store"}
    asked: set[str] = set()
    for test in tree.find_all((nodes.Test, nodes.Filter)):
        if isinstance(test.node, nodes.Name) and test.name in _ASKS:
            asked.add(test.node.name)
    return frozenset(read), tuple(sorted(read - (mine - asked)))


# Tests and filters that are applied to variables that may not be set
_ASKS = ("defined", "undefined", "none", "default", "d")


@functools.lru_cache(maxsize=8)
def _compile(source: str) -> Any:
    return _environment().from_string(source)


@functools.cache
def _environment() -> Any:
    from jinja2 import Undefined, nodes
    from jinja2.ext import Extension

    from .limits import LimitedEnvironment, guarded

    class Generation(Extension):
        "{% generation %} marks answers for training; here it has no effect"

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    environment = LimitedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.loopcontrols", Generation],
    )
    environment.filters["tojson"] = guarded("tojson", to_json)
    environment.globals["raise_exception"] = _raise_exception
    # Without tools, Hugging Face passes none, llama.cpp leaves it undefined: be both
    environment.tests["none"] = lambda v: v is None or isinstance(v, Undefined)
    return environment
