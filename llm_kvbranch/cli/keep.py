"""The commands that mark and delete responses: star, note, prune."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from ..settings import format_size
from .options import database_option, json_option, response_argument
from .text import count

if TYPE_CHECKING:
    from ..log import History


def _history(database: str | None) -> History:
    from ..log import History, open_log

    return History(open_log(database))


@click.command()
@response_argument()
@database_option
@click.option("--remove", is_flag=True, help="Remove the star")
def star(response_id: str, database: str | None, remove: bool) -> None:
    """
    Star a response to find it again

    Stars are shown by llm kvbranch tree and on the pages of llm kvbranch serve.
    """
    from ..log import marks, printable

    history = _history(database)
    id = history.resolve(response_id)
    was = marks.read_mark(history, id).starred
    marks.mark(history, id, starred=not remove)
    if remove:
        done = f"Removed the star from {id}" if was else f"{id} is not starred"
    else:
        done = f"{id} is already starred" if was else f"Starred {id}"
    click.echo(printable(done))


@click.command()
@response_argument()
@click.argument("text", required=False)
@database_option
@click.option("--remove", is_flag=True, help="Remove the note")
def note(
    response_id: str, text: str | None, database: str | None, remove: bool
) -> None:
    """
    Write a note on a response; without TEXT, show its note

    \b
        llm kvbranch note last 'The best of these so far'
    """
    from ..log import marks, printable

    if remove and text is not None:
        raise click.UsageError("Give a TEXT or --remove, not both")
    history = _history(database)
    id = history.resolve(response_id)
    was = marks.read_mark(history, id).note
    if text is None and not remove:
        shown = was or f"{id} has no note"
        click.echo(printable(shown, lines=True), err=not was)
        return
    now = marks.mark(history, id, note=text or "").note
    if now is None:
        done = f"Removed the note from {id}" if was else f"{id} has no note"
    else:
        done = f"Replaced the note on {id}" if was else f"Added a note to {id}"
    click.echo(printable(done))


@click.command()
@response_argument()
@database_option
@click.option("--log", "from_log", is_flag=True, help="Also delete from the log")
@click.option("-y", "--yes", is_flag=True, help="With --log: do not ask first")
@click.option("--dry-run", is_flag=True, help="Only show what would be removed")
@json_option
def prune(
    response_id: str,
    database: str | None,
    from_log: bool,
    yes: bool,
    dry_run: bool,
    json_: bool,
) -> None:
    """
    Remove the state of a response and of everything after it

    The log is kept, unless you pass --log: this also deletes the responses from
    the log, which cannot be undone. States that are pinned, in use or needed by
    another branch are kept.
    """
    from ..log import Ancestry, edits, printable
    from ..store import Removal, open_store, resolve_stored
    from ..store import prune as prune_states
    from .report import describe_removal

    if yes and not from_log:
        raise click.UsageError("--yes needs --log: only that asks first")
    history, store = _history(database), open_store()
    response_id = (
        history.resolve(response_id)
        if from_log
        else resolve_stored(store, history, response_id)
    )
    ids = Ancestry(history.db).continuations(response_id) or [response_id]
    if from_log and not (yes or dry_run):
        click.confirm(
            f"Delete {count(len(ids), 'response')} from the log for good?",
            abort=True,
            err=True,
        )
    removal = prune_states(store, ids, dry_run) if store else Removal()
    if from_log and not dry_run:
        edits.prune(history, response_id, ids)
    if json_:
        click.echo(json.dumps(describe_removal(removal, store), indent=2))
        return
    verb = "Would remove" if dry_run else "Removed"
    click.echo(
        f"{verb} {count(len(removal.removed), 'state')}, {format_size(removal.nbytes)}"
        + (f", and {count(len(ids), 'response')} from the log" if from_log else "")
    )
    for entry, reason in removal.kept:
        click.echo(printable(f"{entry.state.response_id} stays: {reason}"))
