"""Tables of the documentation that are made from code; cog calls this.

``python -m cogapp -r README.md docs/*.md`` writes them, a test checks that they are up
to date.
"""

from __future__ import annotations

import ast
import inspect
import json
import types
import typing
from collections.abc import Iterator
from typing import Any

import click
from pydantic import BaseModel

_TYPES = {str: "string", int: "integer", float: "number", bool: "boolean"}


def commands(group: click.Group, *path: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    "Every command that is not hidden, groups before what is in them: (path, command)"
    context = click.Context(group)
    yield path, group
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if command is None or command.hidden:
            continue
        if isinstance(command, click.Group):
            yield from commands(command, *path, name)
        else:
            yield (*path, name), command


def fields(schema: type[BaseModel], without: type[BaseModel] | None = None) -> str:
    "A table of what a request may contain"
    rows = []
    known = without.model_fields if without and issubclass(schema, without) else {}
    for name, field in schema.model_fields.items():
        if name in known:
            continue
        shown = f"`{field.alias or name}`"
        need = "required" if field.is_required() else _default(field.default)
        rows.append(f"| {shown} | {_type(field.annotation)} | {need} |")
    header = ["", "| field | type | default |", "| --- | --- | --- |"]
    return "\n".join([*header, *rows, "", ""])


def _default(value: Any) -> str:
    if value is None:
        return ""
    return f"`{json.dumps(value)}`"


def rooms() -> str:
    "The rooms of the package: what each owns, and which it may import"
    from tests.test_layers import MODULES, ROOMS

    lines = ["", "| room | what it owns | may import |", "| --- | --- | --- |"]
    for room, allowed in ROOMS.items():
        said = ast.get_docstring(ast.parse(MODULES[room].read_text())) or ""
        idea = " ".join(said.split("\n\n")[0].split()).rstrip(".:").replace("|", "\\|")
        lines.append(f"| `{room}` | {idea} | {', '.join(allowed.split()) or '–'} |")
    return "\n".join([*lines, "", ""])


def _type(annotation: Any) -> str:
    "A type in JSON's words"
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        inner = annotation.model_fields.items()
        return f"object ({', '.join(f'`{f.alias or n}`' for n, f in inner)})"
    if origin in (typing.Union, types.UnionType):
        kinds = [_type(each) for each in arguments if each is not type(None)]
        return " or ".join(dict.fromkeys(kinds))
    simple = {
        typing.Annotated: lambda: _type(arguments[0]),
        typing.Literal: lambda: ", ".join(f"`{each}`" for each in arguments),
        list: lambda: f"array of {_type(arguments[0])}",
        tuple: lambda: "[start, end]",
    }
    return simple[origin]() if origin in simple else _TYPES.get(annotation, "object")
