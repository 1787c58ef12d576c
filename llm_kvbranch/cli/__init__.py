"""The ``llm kvbranch`` commands: parse, call, print."""

from __future__ import annotations

import sqlite3
from typing import Any

import click
import llm
from click_default_group import DefaultGroup

from . import ask, keep, look, marks, models, serve, share


class _Group(DefaultGroup):  # type: ignore[misc]
    "A group whose expected errors are one line and exit code 1"

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except llm.ModelError as error:
            raise click.ClickException(str(error)) from None
        except sqlite3.Error as error:
            raise click.ClickException(f"The log cannot be used: {error}") from None


def _kvbranch() -> None:
    """
    Explore conversations as trees, and the KV state they left

    RESPONSE_ID is a full id, the start of one, or "last".
    """


kvbranch: click.Group = click.group("kvbranch", cls=_Group, default="branch")(_kvbranch)

for command in (
    *(ask.branch, ask.focus, ask.continue_, ask.retry),
    *(look.show, look.tree, look.diff, look.status),
    *(marks.star, marks.note),
    *(share.export, share.import_),
    *(models.models, models.use, models.settings, models.download, models.doctor_),
    serve.serve,
    *(keep.budget, keep.gc, keep.pin, keep.unpin, keep.prune, keep.verify),
):
    kvbranch.add_command(command)
