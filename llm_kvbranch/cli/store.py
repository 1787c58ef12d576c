"""The commands about the state store: status, budget, gc, verify, pin, unpin."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from typing import Any

import click

from ..settings import format_size, parse_size
from .groups import LazyGroup
from .options import database_option, json_option, response_argument
from .text import count


@click.group(
    cls=LazyGroup,
    default="status",
    default_if_no_args=True,
    sections={
        "Commands": {
            "status": "store:status",
            "budget": "store:budget",
            "gc": "store:gc",
            "verify": "store:verify",
            "pin": "store:pin",
            "unpin": "store:unpin",
        }
    },
)
def store() -> None:
    """
    Inspect and maintain the state store

    The store is a cache: whatever is missing from it is recomputed from the log.
    """


@click.command()
@database_option
@json_option
def status(database: str | None, json_: bool) -> None:
    """
    Show what the store holds, what it saved and what was removed

    Reused is the share of all prompt tokens that did not have to be read again.
    """
    from ..log import printable
    from ..store import describe_store
    from .report import log_if_any

    # Without a log the threads have no names
    facts = describe_store(log_if_any(database))
    if json_:
        click.echo(json.dumps(facts, indent=2))
        return
    for name, text in _status_lines(facts):
        click.echo(f"{click.style(name.ljust(8), dim=True)}  {printable(text)}")


def _status_lines(facts: dict[str, Any]) -> Iterator[tuple[str, str]]:
    from ..log import one_line

    yield "Store", facts["directory"]
    if not facts["responses"]:
        yield "States", "none yet"
        return
    yield (
        "States",
        f"{facts['states']:,} of {count(facts['responses'], 'response')}, "
        f"{count(facts['tokens'], 'token')}",
    )
    default = ", a fifth of the free disk" if facts["budget_is_default"] else ""
    yield (
        "Bytes",
        f"{format_size(facts['bytes'])} of {format_size(facts['budget'])}{default}; "
        f"{format_size(facts['reclaimable_bytes'])} reclaimable, "
        f"{format_size(facts['pinned_bytes'])} pinned",
    )
    if facts["hit_rate"] is not None:
        yield (
            "Reused",
            f"{facts['hit_rate']:.0%} of {count(facts['prompt_tokens'], 'token')} "
            f"in {count(facts['prompts'], 'prompt')}",
        )
    for model in (each for each in facts["models"] if each["states"]):
        yield (
            "Model",
            f"{model['name']}, KV {model['kv_type']}, llama.cpp "
            f"{model['llama.cpp']}: {count(model['states'], 'state')}, "
            f"{format_size(model['bytes'])}",
        )
    for thread in facts["threads"]:
        name = one_line(thread["name"] or "", 40)
        yield (
            "Thread",
            f"{thread['thread_id'] or 'no thread'}  {name}  "
            f"{count(thread['states'], 'state')}, {format_size(thread['bytes'])}",
        )
    for miss in facts["misses"]:
        yield "Missed", f"{miss['count']:,} x {miss['reason']}"
    for removal in facts["removals"]:
        yield (
            "Removed",
            f"{removal['count']:,} x {removal['reason']} "
            f"({format_size(removal['nbytes'])})",
        )


@click.command()
@click.argument("size", required=False)
@click.option("--default", is_flag=True, help="Return to the default")
@json_option
def budget(size: str | None, default: bool, json_: bool) -> None:
    """
    Show or set how much disk space states may use

    SIZE is like 500MB or 20GB; 0 stores nothing. Above the budget, the least
    recently used states are evicted, now and whenever a state is stored. The
    default is a fifth of the disk space that is free or used by the store.

    \b
        llm kvbranch store budget 20GB
    """
    from .. import settings
    from ..store import Removal, evict, open_store

    if size is not None and default:
        raise click.UsageError("Give a SIZE or --default, not both")
    changed = size is not None or default
    if changed:
        if size is not None:
            parse_size(size)
        settings.put("budget", size)
    store = open_store()
    full = store is not None and store.nbytes() > store.budget()
    removal = evict(store) if store and full and changed else Removal()
    facts = {
        "budget": store.budget() if store else settings.budget(),
        "budget_is_default": settings.budget() is None,
        "bytes": store.nbytes() if store else 0,
        "removed": [entry.state.response_id for entry in removal.removed],
        "removed_bytes": removal.nbytes,
    }
    if json_:
        click.echo(json.dumps(facts, indent=2))
        return
    _print_budget(facts, changed)


def _print_budget(facts: dict[str, Any], changed: bool) -> None:
    kind = "default" if facts["budget_is_default"] else "set"
    if facts["budget"] is None:
        click.echo("A fifth of the free disk (default)")
        return
    click.echo(f"{format_size(facts['budget'])} ({kind})")
    if n := len(facts["removed"]):
        click.echo(
            f"Removed {count(n, 'state')}, {format_size(facts['removed_bytes'])}"
        )
    if facts["bytes"] > facts["budget"]:
        click.echo(
            f"The store uses {format_size(facts['bytes'])}"
            + (
                ": states that are pinned or in use are kept"
                if changed
                else ". The next answer makes room, or do it now: llm kvbranch store gc"
            )
        )


@click.command()
@click.option("--max-size", metavar="SIZE", help="Size to keep (default: the budget)")
@click.option("--dry-run", is_flag=True, help="Only show what would be removed")
@json_option
def gc(max_size: str | None, dry_run: bool, json_: bool) -> None:
    """
    Delete leftovers and evict the least recently used states

    Leftovers are files of processes that crashed. Pinned states and states in use
    are kept. Nothing is lost: an evicted state is recomputed from the log when it
    is needed.
    """
    from ..store import Removal, collect, open_store
    from .report import describe_removal

    store = open_store()
    limit = None if max_size is None else parse_size(max_size)
    removal = collect(store, limit, dry_run) if store else Removal()
    if json_:
        click.echo(json.dumps(describe_removal(removal, store), indent=2))
        return
    if store is None:
        click.echo("Nothing is stored yet")
        return
    verb = "Would remove" if dry_run else "Removed"
    n = len(removal.removed)
    click.echo(f"{verb} {count(n, 'state')}, {format_size(removal.nbytes)}")
    if not dry_run:
        left = store.nbytes()
        wanted = store.budget() if limit is None else limit
        more = " (the rest is pinned or in use)" if left > wanted else ""
        click.echo(f"Left {format_size(left)}{more}")


@click.command()
@click.option("--repair", is_flag=True, help="Repair the index, delete unusable files")
@json_option
def verify(repair: bool, json_: bool) -> None:
    """
    Check every state file, the links between them and the index

    With --repair the index is corrected, or rebuilt from the files, and files that
    cannot be used are deleted. The exit code is 1 if there are problems left.
    """
    from ..store import open_store
    from ..store import repair as repair_store
    from ..store import verify as verify_store

    store = open_store()
    repaired, problems = [], []
    for name, done in repair_store(store) if store and repair else ():
        repaired.append({"name": name, "done": done})
        if not json_:
            click.echo(f"{name}: {done}")
    for name, problem in verify_store(store) if store else ():
        problems.append({"name": name, "problem": problem})
        if not json_:
            click.echo(f"{name}: {problem}")
    try:
        n = sum(model["states"] for model in store.models()) if store else 0
    except sqlite3.DatabaseError:
        if not problems:
            raise
        n = None
    if json_:
        facts = {"states": n, "repaired": repaired, "problems": problems}
        click.echo(json.dumps(facts, indent=2))
        raise click.exceptions.Exit(1 if problems else 0)
    if problems:
        raise click.ClickException(
            f"{count(len(problems), 'problem')} found. Nothing is lost: unusable "
            "states are recomputed from the log"
            + ("" if repair else ". Repair with: llm kvbranch store verify --repair")
        )
    click.echo(f"{count(n or 0, 'state')} checked, no problem found")


@click.command()
@response_argument()
@database_option
def pin(response_id: str, database: str | None) -> None:
    """
    Keep the state of a response from being evicted

    This includes the states that it builds on, such as that of a long document.
    """
    _pin(response_id, database, True)


@click.command()
@response_argument()
@database_option
def unpin(response_id: str, database: str | None) -> None:
    "Allow the state of a response to be evicted again"
    _pin(response_id, database, False)


def _pin(reference: str, database: str | None, pinned: bool) -> None:
    from ..log import History, open_log, printable
    from ..store import existing_store, open_store, resolve_stored
    from ..store import pin as set_pin

    store = open_store()
    history = History(open_log(database))
    id = resolve_stored(store, history, reference)
    entry = store.get(id) if store else None
    was = entry is not None and entry.pinned
    if not pinned and not was:
        click.echo(printable(f"{id} is not pinned"))
        return
    store = store or existing_store()
    set_pin(store, id, pinned)
    if pinned:
        done = f"{id} is already pinned" if was else f"Pinned {id}"
    else:
        done = f"Unpinned {id}"
    total = format_size(store.pinned_bytes())
    click.echo(printable(f"{done}; {total} pinned in all"))
