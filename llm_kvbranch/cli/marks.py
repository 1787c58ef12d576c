"""The commands that mark what a person wants to find again: star, note."""

from __future__ import annotations

from typing import Any

import click

from .options import database_option


def _history(database: str | None) -> Any:
    from ..log import History, open_log

    return History(open_log(database))


@click.command()
@click.argument("response_id")
@database_option
@click.option("--remove", is_flag=True, help="Take the star off")
def star(response_id: str, database: str | None, remove: bool) -> None:
    """
    Star a response, to find it again

    The tree shows the star, and so do the pages of llm kvbranch serve.
    """
    from ..log import marks

    history = _history(database)
    marks.mark(history, history.resolve(response_id), starred=not remove)


@click.command()
@click.argument("response_id")
@click.argument("text", required=False)
@database_option
@click.option("--remove", is_flag=True, help="Remove the note")
def note(
    response_id: str, text: str | None, database: str | None, remove: bool
) -> None:
    """
    Write a note on a response; without a TEXT, show the one there is

        llm kvbranch note last 'The best of these so far'
    """
    from ..log import marks

    if remove and text is not None:
        raise click.UsageError("Give a TEXT or --remove, not both")
    history = _history(database)
    id = history.resolve(response_id)
    if text is None and not remove:
        if found := marks.read_mark(history, id).note:
            click.echo(found)
        return
    marks.mark(history, id, note=text or "")
