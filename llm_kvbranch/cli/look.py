"""The commands that show what there is: show, tree, diff, status."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from typing import Any

import click
import llm

from ..log import one_line
from ..settings import format_size
from .options import database_option, json_option, say_states


@click.command()
@click.argument("response_id")
@database_option
@json_option
def show(response_id: str, database: str | None, json_: bool) -> None:
    """
    Show what a response cost and what state it left

    RESPONSE_ID is a full id, the start of one, or "last".
    """
    from ..log import History, open_log
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


@click.command()
@click.argument("reference", metavar="[ID]", required=False)
@database_option
@click.option("-n", "--count", default=5, help="How many trees to show without an ID")
def tree(reference: str | None, database: str | None, count: int) -> None:
    """
    Show responses as a tree of branches

    ID is a response or a thread; without one the newest trees are shown. The
    response that llm -c would go on from is marked with a star.
    """
    from ..log import History, open_log
    from .report import describe_tree

    history = History(open_log(database))
    for number, lines in enumerate(describe_tree(history, reference, count)):
        if number:
            click.echo()
        for line in lines:
            _print_node(line)


def _print_node(line: dict[str, Any]) -> None:
    "One line of a tree: where it hangs, how it was reached, what was asked"
    from ..store import is_evicted

    kept = "evicted" if is_evicted(line["state_gone"]) else "no state"
    if line["state_bytes"]:
        kept = format_size(line["state_bytes"])
    tokens = "" if line["tokens"] is None else f"{line['tokens']:,} tokens, "
    tail = f"  {tokens}{kept}"
    head = f"{line['lead']}{line['id']}  "
    how = {"branch": "at ", "focus": "on ", "retry": "retry "}.get(line["verb"], "")
    if line["mode"] == "fresh":
        how = "fresh "
    if line["excerpt"]:
        how += f"“{one_line(line['excerpt'], 24)}” "
    elif line["verb"] == "branch":
        how = "branch "
    how += "★ " if line["starred"] else ""
    if line["note"]:
        tail += f"  “{one_line(line['note'], 40)}”"
    room = shutil.get_terminal_size((100, 24)).columns - len(head + how + tail)
    click.echo(
        click.style(line["lead"], dim=True)
        + click.style(line["id"], fg="yellow")
        + click.style("* " if line["current"] else "  ", fg="green", bold=True)
        + click.style(how, fg="cyan")
        + one_line(line["prompt"], max(12, room))
        + click.style(tail, dim=True)
    )


@click.command()
@click.argument("one")
@click.argument("other")
@database_option
@json_option
def diff(one: str, other: str, database: str | None, json_: bool) -> None:
    """
    Show where two responses part, and how they differ

    Words that only ONE has are red or in [-...-], those that only OTHER has are
    green or in {+...+}.
    """
    from ..log import History, open_log
    from .report import describe_diff

    facts = describe_diff(History(open_log(database)), one, other)
    if json_:
        click.echo(json.dumps(facts, indent=2))
        return
    plural = "" if facts["shared"] == 1 else "s"
    line = f"{facts['shared']} message{plural} in common"
    if facts["last_shared"]:
        line += f", the last: {one_line(facts['last_shared'][1], 60)}"
    click.echo(click.style(line, dim=True))
    if not facts["messages"]:
        click.echo("They say the same")
    for message in facts["messages"]:
        click.echo(click.style(f"\n{message['role']}", bold=True))
        click.echo("".join(_change(*change) for change in message["changes"]))


def _change(sign: str, text: str) -> str:
    "A run of words, marked by colour where there is any"
    if sign == " ":
        return text
    if sys.stdout.isatty():
        return click.style(text, fg={"-": "red", "+": "green"}[sign], underline=True)
    return f"[-{text}-]" if sign == "-" else f"{{+{text}+}}"


@click.command()
@database_option
@json_option
def status(database: str | None, json_: bool) -> None:
    """
    Show what the state store holds, what it was good for, and what left it

    Reused is the share of all prompts' tokens that was not read again.
    """
    from ..log import History, open_log
    from ..store import describe_store

    try:
        history = History(open_log(database))
    except llm.ModelError:  # without a log the threads have no names
        history = None
    facts = describe_store(history)
    if json_:
        click.echo(json.dumps(facts, indent=2))
        return
    for name, text in _status_lines(facts):
        click.echo(f"{click.style(name.ljust(8), dim=True)}  {text}")


def _status_lines(facts: dict[str, Any]) -> Iterator[tuple[str, str]]:
    "What there is to say of the store, line by line"
    yield "Store", facts["directory"]
    if not facts["responses"]:
        yield "States", "none yet"
        return
    yield (
        "States",
        f"{facts['states']:,} of {facts['responses']:,} responses, "
        f"{facts['tokens']:,} tokens",
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
            f"{facts['hit_rate']:.0%} of {facts['prompt_tokens']:,} tokens "
            f"in {facts['prompts']:,} prompt{'' if facts['prompts'] == 1 else 's'}",
        )
    for model in facts["models"]:
        yield (
            "Model",
            f"{model['name']}, KV {model['kv_type']}, llama.cpp "
            f"{model['llama.cpp']}: {say_states(model['states'])}, "
            f"{format_size(model['bytes'])}",
        )
    for thread in facts["threads"]:
        name = one_line(thread["name"] or "", 40)
        yield (
            "Thread",
            f"{thread['thread_id'] or 'no thread'}  {name}  "
            f"{say_states(thread['states'])}, {format_size(thread['bytes'])}",
        )
    for miss in facts["misses"]:
        yield "Missed", f"{miss['count']:,} x {miss['reason']}"
    for removal in facts["removals"]:
        yield (
            "Removed",
            f"{removal['count']:,} x {removal['reason']} "
            f"({format_size(removal['nbytes'])})",
        )
