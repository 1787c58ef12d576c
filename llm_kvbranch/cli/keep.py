"""The commands that look after the store: budget, gc, pin, unpin, prune, verify."""

from __future__ import annotations

from typing import Any

import click

from ..settings import format_size, parse_size
from .options import database_option, json_option, say_states


def _resolve(reference: str, database: str | None) -> str:
    from ..log import History, open_log

    return History(open_log(database)).resolve(reference)


@click.command()
@click.argument("size", required=False)
@click.option("--default", is_flag=True, help="Go back to a share of the free disk")
def budget(size: str | None, default: bool) -> None:
    """
    Show or set how much disk the state files may take

    SIZE is like 500MB or 20GB; 0 keeps no state. The longest unused states leave
    first. Without a budget of your own it is a fifth of what is free on the disk
    or taken by the store.

        llm kvbranch budget 20GB
    """
    from .. import settings
    from ..store import open_store

    if size is not None or default:
        if size is not None:
            parse_size(size)
        settings.put("budget", None if default else size)
    store = open_store()
    nbytes = store.budget() if store else settings.budget()
    kind = "default" if settings.budget() is None else "set"
    if nbytes is None:
        click.echo("A fifth of the free disk (default)")
    else:
        click.echo(f"{format_size(nbytes)} ({kind})")
    if store and store.nbytes() > store.budget():
        click.echo(
            f"{format_size(store.nbytes())} are taken: llm kvbranch gc makes room now,"
            " or the next answer does"
        )


@click.command()
@click.option(
    "--max-size", metavar="SIZE", help="Leave this much (default: the budget)"
)
@click.option("--dry-run", is_flag=True, help="Only say what would be removed")
@json_option
def gc(max_size: str | None, dry_run: bool, json_: bool) -> None:
    """
    Remove what crashes left, and the longest unused states above a size

    Pinned states stay, and those that a running process uses. Nothing is lost:
    what is asked for again is read again from the log.
    """
    from ..store import collect, existing_store

    store = existing_store()
    limit = None if max_size is None else parse_size(max_size)
    removal = collect(store, limit, dry_run)
    if json_:
        _print_removal_json(removal, store)
        return
    verb = "Would remove" if dry_run else "Removed"
    click.echo(
        f"{verb} {say_states(len(removal.removed))}, {format_size(removal.nbytes)}"
    )
    if not dry_run:
        left = store.nbytes()
        wanted = store.budget() if limit is None else limit
        more = " (the rest is pinned or in use)" if left > wanted else ""
        click.echo(f"Left {format_size(left)}{more}")


@click.command()
@click.argument("response_id")
@database_option
def pin(response_id: str, database: str | None) -> None:
    """
    Keep the state of a response from being evicted

    And all that it goes on from, such as a long document read once.
    """
    _pin(response_id, database, True)


@click.command()
@click.argument("response_id")
@database_option
def unpin(response_id: str, database: str | None) -> None:
    "Let the state of a response be evicted again"
    _pin(response_id, database, False)


def _pin(reference: str, database: str | None, pinned: bool) -> None:
    from ..store import existing_store
    from ..store import pin as set_pin

    store = existing_store()
    set_pin(store, _resolve(reference, database), pinned)
    click.echo(f"{format_size(store.pinned_bytes())} are pinned")


@click.command()
@click.argument("response_id")
@database_option
@click.option("--log", "from_log", is_flag=True, help="Remove it from the log, too")
@click.option("-y", "--yes", is_flag=True, help="Do not ask before --log")
@click.option("--dry-run", is_flag=True, help="Only say what would be removed")
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
    Remove the state of a response and of all that goes on from it

    The log stays as it is, unless --log says otherwise: then the responses are
    removed from it as well, which cannot be undone. A state that another branch
    goes on from stays, and so does one that is pinned or in use.
    """
    from ..log import Forest, History, edits, open_log
    from ..store import Removal, open_store
    from ..store import prune as prune_states

    history = History(open_log(database))
    root = Forest(history).below(history.resolve(response_id))
    ids = [node.id for node in root.walk()]
    store = open_store()
    if from_log and not (yes or dry_run):
        plural = "s" if len(ids) > 1 else ""
        click.confirm(
            f"Remove {len(ids):,} response{plural} from the log for good?",
            abort=True,
            err=True,
        )
    removal = prune_states(store, ids, dry_run) if store else Removal()
    if from_log and not dry_run:
        edits.delete_responses(history, ids)
    if json_:
        _print_removal_json(removal, store)
        return
    verb = "Would remove" if dry_run else "Removed"
    click.echo(
        f"{verb} {say_states(len(removal.removed))}, {format_size(removal.nbytes)}"
        + (f", and {len(ids):,} responses from the log" if from_log else "")
    )
    for entry, reason in removal.kept:
        click.echo(f"{entry.state.response_id} stays: {reason}")


def _print_removal_json(removal: Any, store: Any) -> None:
    import json

    facts = {
        "removed": [entry.state.response_id for entry in removal.removed],
        "removed_bytes": removal.nbytes,
        "kept": {entry.state.response_id: why for entry, why in removal.kept},
        "bytes": store.nbytes() if store else 0,
    }
    click.echo(json.dumps(facts, indent=2))


@click.command()
@click.option("--repair", is_flag=True, help="Mend what can be mended, remove the rest")
def verify(repair: bool) -> None:
    """
    Check every state file, every link between them, and the index

    With --repair files and index are made to agree: the index is corrected, or
    made again from the files alone; files that cannot be used are removed.
    """
    from ..store import maintenance, open_store

    store = open_store()
    if store is not None and repair:
        for name, done in maintenance.repair(store):
            click.echo(f"{name}: {done}")
    problems = 0
    for name, problem in maintenance.verify(store) if store else ():
        problems += 1
        click.echo(f"{name}: {problem}")
    if problems:
        raise click.ClickException(
            f"{problems} problem{'s' if problems > 1 else ''} found. Nothing is lost: "
            "what cannot be used is read again from the log"
            + ("" if repair else ". Mend it with llm kvbranch verify --repair")
        )
    n = sum(model["states"] for model in store.models()) if store else 0
    click.echo(f"{say_states(n)} checked, no problem found")
