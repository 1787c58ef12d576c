"""Shell completion: ids of responses, models and settings.

The idea: a shell asks whenever Tab is pressed. So the log is read as it is, without
waiting, and whatever fails completes nothing.

This module does not know which command is completed.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import click
from click.shell_completion import CompletionItem

Item = CompletionItem

_MOST = 30  # responses
_PATIENCE = 0.2  # seconds to wait for a locked log


def complete(kind: str, ctx: click.Context, incomplete: str) -> list[Item]:
    "What a word may become; an empty list if that cannot be found out"
    items: list[Item] = []
    with contextlib.suppress(Exception):  # a shell would print it over the prompt
        items += _KINDS[kind](ctx, incomplete)
    return items


def _responses(ctx: click.Context, incomplete: str) -> Iterator[Item]:
    "The newest responses, each with the beginning of its prompt"
    import llm
    import sqlite_utils

    from ..log import Forest, History, one_line

    if "last".startswith(incomplete):
        yield CompletionItem("last", help="the newest response")
    path = Path(ctx.params.get("database") or Path(llm.user_dir()) / "logs.db")
    address = f"{path.absolute().as_uri()}?mode=ro"
    connection = sqlite3.connect(address, uri=True, timeout=_PATIENCE)
    with contextlib.closing(connection):
        history = History(sqlite_utils.Database(connection), readable=True)
        for node in Forest(history, 200).newest(_MOST, incomplete):
            yield CompletionItem(node.id, help=one_line(node.prompt, 60))


def _models(ctx: click.Context, incomplete: str) -> Iterator[Item]:
    "The default model, and those on the list"
    from ..models import catalog

    names = {catalog.MODEL_ID: "the default model"}
    names |= {name: one.source for name, one in catalog.found_models().items()}
    yield from _matching(names, incomplete)


def _model_ids(ctx: click.Context, incomplete: str) -> Iterator[Item]:
    "The same, under the names that llm uses"
    from ..models import catalog

    names = {catalog.MODEL_ID: "the default model"}
    for name, one in catalog.found_models().items():
        names[f"{catalog.MODEL_ID}/{name}"] = one.source
    yield from _matching(names, incomplete)


def _usable_models(ctx: click.Context, incomplete: str) -> Iterator[Item]:
    "Models on the list and of other programs, or else files"
    from ..models import catalog

    found = [*catalog.found_models().values(), *catalog.offered_models()]
    items = list(_matching({one.name: one.source for one in found}, incomplete))
    yield from items or [CompletionItem(incomplete, type="file")]


def _presets(ctx: click.Context, incomplete: str) -> Iterator[Item]:
    from ..models import PRESETS

    notes = {name: preset.note for name, preset in PRESETS.items()}
    yield from _matching(notes, incomplete)


def _settings(ctx: click.Context, incomplete: str) -> Iterator[Item]:
    from ..models import ModelSettings

    fields = ModelSettings.model_fields
    about = {name: str(field.description) for name, field in fields.items()}
    yield from _matching(about, incomplete)


def _matching(names: dict[str, str], incomplete: str) -> Iterator[Item]:
    for name, about in names.items():
        if name.startswith(incomplete):
            yield CompletionItem(name, help=about)


_KINDS = {
    "responses": _responses,
    "models": _models,
    "model ids": _model_ids,
    "usable models": _usable_models,
    "presets": _presets,
    "settings": _settings,
}
