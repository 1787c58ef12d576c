"""The ``llm kvbranch`` commands: parse, call, print."""

from __future__ import annotations

import json
import sqlite3
from typing import Any

import click

from .errors import KVBranchError

database_option = click.option(
    "-d",
    "--database",
    type=click.Path(readable=True, dir_okay=False),
    help="Path to log database",
)
json_option = click.option("json_", "--json", is_flag=True, help="Output as JSON")


class _Group(click.Group):
    "A group whose expected errors are one line and exit code 1"

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KVBranchError as error:
            raise click.ClickException(str(error)) from None
        except sqlite3.Error as error:
            raise click.ClickException(f"The log cannot be used: {error}") from None


@click.group(cls=_Group)
def kvbranch() -> None:
    "Explore conversations with a local model, and the KV state they left"


@kvbranch.command()
@click.argument("response_id")
@database_option
@json_option
def show(response_id: str, database: str | None, json_: bool) -> None:
    """
    Show what a response cost and what state it left

    RESPONSE_ID is a full id, the start of one, or "last".
    """
    from .history import History, open_log
    from .report import describe_response

    history = History(open_log(database))
    facts = describe_response(history, history.resolve(response_id))
    if json_:
        click.echo(json.dumps(facts, indent=2))
        return
    width = max(map(len, facts))
    for name, value in facts.items():
        if value is not None:
            click.echo(f"{click.style(name.ljust(width), dim=True)}  {value}")


@kvbranch.command()
@json_option
def status(json_: bool) -> None:
    "Show what the state store holds"
    from .report import describe_store

    facts = describe_store()
    if json_:
        click.echo(json.dumps(facts, indent=2))
        return
    click.echo(f"Store   {facts['directory']}")
    click.echo(
        f"States  {facts['states']:,} of {facts['responses']:,} responses, "
        f"{_size(facts['bytes'])}, {facts['tokens']:,} tokens"
    )
    for model in facts["models"]:
        click.echo(
            f"Model   {model['name']} with KV type {model['kv_type']}: "
            f"{model['states']:,} states, {_size(model['bytes'])}"
        )
    for miss in facts["misses"]:
        click.echo(f"Missed  {miss['count']:,} x {miss['reason']}")


@kvbranch.command()
def verify() -> None:
    "Check every state file, and the index"
    from .report import open_store

    problems = 0
    store = open_store()
    for name, problem in store.verify() if store else ():
        problems += 1
        click.echo(f"{name}: {problem}")
    n = sum(entry.present for entry in store.entries()) if store else 0
    if problems:
        raise click.ClickException(
            f"{problems} problem{'s' if problems > 1 else ''} found. Nothing is lost: "
            "what cannot be used is read again from the log"
        )
    click.echo(f"{n:,} state file{'s' if n != 1 else ''} checked, no problem found")


def _size(nbytes: float) -> str:
    "Bytes as people say them"
    unit = "bytes"
    for larger in ("kB", "MB", "GB", "TB"):
        if nbytes < 1000:
            break
        nbytes, unit = nbytes / 1000, larger
    return f"{nbytes:,.0f} {unit}" if unit == "bytes" else f"{nbytes:,.1f} {unit}"
