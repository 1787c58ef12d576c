"""The commands that show responses: tree, show, diff."""

from __future__ import annotations

import json

import click

from .options import database_option, json_option, response_argument
from .outline import node_line
from .streams import has_colours
from .text import columns
from .text import count as counted


@click.command()
@response_argument("reference", metavar="[ID]", required=False)
@database_option
@click.option(
    "-n",
    "--count",
    type=click.IntRange(1),
    help="Number of trees to show without ID (default: 5)",
)
@json_option
def tree(
    reference: str | None, database: str | None, count: int | None, json_: bool
) -> None:
    """
    Show responses as a tree of branches

    ID is a response or a thread; without it the newest trees are shown. The
    response that llm -c would continue is marked with an asterisk.
    """
    from .report import DRAWN, describe_tree, log_if_any

    if reference is not None and count is not None:
        raise click.UsageError("Give an ID or --count, not both")
    history = log_if_any(database, must_exist=reference is not None)
    trees = () if history is None else describe_tree(history, reference, count or 5)
    if json_:
        plain = [
            [{k: v for k, v in node.items() if k not in DRAWN} for node in nodes]
            for nodes in trees
        ]
        facts = [{"root": nodes[0]["id"], "nodes": nodes} for nodes in plain]
        click.echo(json.dumps({"trees": facts}, indent=2))
        return
    number = -1
    for number, nodes in enumerate(trees):
        if number:
            click.echo()
        for node in nodes:
            click.echo(node_line(node, columns()))
    if number < 0:
        click.echo("There are no responses yet")


@click.command()
@response_argument()
@database_option
@json_option
def show(response_id: str, database: str | None, json_: bool) -> None:
    """
    Show the tokens, timings and state of a response

    RESPONSE_ID is a full id, the start of one, or "last".
    """
    from ..log import History, open_log, printable
    from .report import describe_response

    history = History(open_log(database))
    facts = describe_response(history, history.resolve(response_id))
    if json_:
        click.echo(json.dumps(facts, indent=2))
        return
    width = max(map(len, facts))
    for name, value in facts.items():
        if value is not None:
            label = click.style(name.ljust(width), dim=True)
            click.echo(f"{label}  {printable(str(value))}")


@click.command()
@response_argument("one")
@response_argument("other")
@database_option
@json_option
def diff(one: str, other: str, database: str | None, json_: bool) -> None:
    """
    Show where two conversations diverge and how they differ

    Words only in ONE are red or in [-...-], words only in OTHER are green or in
    {+...+}.
    """
    from ..log import History, one_line, open_log, printable
    from .report import describe_diff

    facts = describe_diff(History(open_log(database)), one, other)
    if json_:
        click.echo(json.dumps(facts, indent=2))
        return
    line = f"{counted(facts['shared'], 'message')} in common"
    if facts["last_shared"]:
        line += f", the last: {one_line(facts['last_shared'][1], 60)}"
    click.echo(click.style(line, dim=True))
    if not facts["messages"]:
        click.echo("The answers are identical")
    for message in facts["messages"]:
        click.echo(click.style(f"\n{printable(message['role'])}", bold=True))
        changes = [(s, printable(text, lines=True)) for s, text in message["changes"]]
        click.echo("".join(_change(*change) for change in changes))


def _change(sign: str, text: str) -> str:
    "A run of words, marked by colour on a terminal and by brackets elsewhere"
    if sign == " ":
        return text
    if has_colours():
        return click.style(text, fg={"-": "red", "+": "green"}[sign], underline=True)
    return f"[-{text}-]" if sign == "-" else f"{{+{text}+}}"
