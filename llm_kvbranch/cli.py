"""The ``llm kvbranch`` commands: parse, call, print."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click
import llm
from click_default_group import DefaultGroup

if TYPE_CHECKING:
    from .branching import Branch, Place
    from .history import History

database_option = click.option(
    "-d",
    "--database",
    type=click.Path(readable=True, dir_okay=False),
    help="Path to log database",
)
json_option = click.option("json_", "--json", is_flag=True, help="Output as JSON")


class _Group(DefaultGroup):  # type: ignore[misc]
    "A group whose expected errors are one line and exit code 1"

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except llm.ModelError as error:
            raise click.ClickException(str(error)) from None
        except sqlite3.Error as error:
            raise click.ClickException(f"The log cannot be used: {error}") from None


def asking(command: Callable[..., None]) -> Callable[..., None]:
    "The options of every command that asks a model, named as those of llm prompt"
    for option in reversed(
        [
            click.option("model_id", "-m", "--model", help="Another model to answer"),
            click.option("-s", "--system", help="Another system prompt"),
            click.option(
                "options",
                "-o",
                "--option",
                type=(str, str),
                multiple=True,
                help="key/value options for the model",
            ),
            database_option,
            click.option("--no-stream", is_flag=True, help="Do not stream output"),
            json_option,
            click.option("-u", "--usage", is_flag=True, help="Show token usage"),
        ]
    ):
        command = option(command)
    return command


def placing(command: Callable[..., None]) -> Callable[..., None]:
    "The options that name a part of an answer"
    for option in reversed(
        [
            click.option("--excerpt", help="Words of the answer"),
            click.option(
                "--occurrence", type=int, help="Which one, if they occur several times"
            ),
            click.option(
                "range_",
                "--range",
                metavar="START:END",
                help="Part of the answer by its characters",
            ),
        ]
    ):
        command = option(command)
    return command


def _kvbranch() -> None:
    """
    Explore conversations as trees, and the KV state they left

    RESPONSE_ID is a full id, the start of one, or "last".
    """


kvbranch: click.Group = click.group("kvbranch", cls=_Group, default="branch")(_kvbranch)


@kvbranch.command()
@click.argument("response_id")
@click.argument("prompt", required=False)
@placing
@click.option(
    "--mode",
    type=click.Choice(["reuse_kv", "fresh"]),
    default="reuse_kv",
    help="reuse_kv (default) goes on from the answer, fresh starts a new context "
    "with the excerpt quoted and nothing else",
)
@click.option(
    "--context-window",
    type=click.IntRange(0),
    default=0,
    help="With fresh: quote this many tokens up to the end of the excerpt",
)
@asking
def branch(
    response_id: str,
    prompt: str | None,
    excerpt: str | None,
    occurrence: int | None,
    range_: str | None,
    mode: str,
    context_window: int,
    **asked: Any,
) -> None:
    """
    Go on from a response in a new thread

    With an excerpt the answer is cut right after it: what came later is not part
    of the branch. This is the default command.

    \b
        llm kvbranch last --excerpt 'the sky is blue' 'Why?'
    """
    from . import branching

    place = _place(excerpt, occurrence, range_)
    question = _read_prompt(prompt)

    def tail(logged: str, text: str, n: int) -> str:
        model = _model(asked["model_id"] or logged, asked["model_id"] is None)
        return str(getattr(model, "tail", branching.last_words)(text, n))

    def plan(history: History) -> Branch:
        if mode == "fresh":
            return branching.fresh(
                history, response_id, question, place, context_window, tail
            )
        return branching.branch(history, response_id, question, place)

    _ask(plan, **asked)


@kvbranch.command()
@click.argument("response_id")
@click.argument("prompt", required=False)
@placing
@asking
def focus(
    response_id: str,
    prompt: str | None,
    excerpt: str | None,
    occurrence: int | None,
    range_: str | None,
    **asked: Any,
) -> None:
    """
    Ask about a part of an answer

    The whole conversation stays, in a new thread, and the part is quoted.
    """
    from . import branching

    place = _place(excerpt, occurrence, range_)
    question = _read_prompt(prompt)
    _ask(lambda h: branching.focus(h, response_id, question, place), **asked)


@kvbranch.command(name="continue")
@click.argument("response_id")
@click.argument("prompt", required=False)
@asking
def continue_(response_id: str, prompt: str | None, **asked: Any) -> None:
    """
    Add a turn after a response

    In its thread if it is the last of it, otherwise in a new one.
    """
    from . import branching

    question = _read_prompt(prompt)
    _ask(lambda h: branching.continue_(h, response_id, question), **asked)


@kvbranch.command()
@click.argument("response_id")
@asking
def retry(response_id: str, **asked: Any) -> None:
    "Send the prompt of a response again, in a new thread"
    from . import branching

    _ask(lambda h: branching.retry(h, response_id), **asked)


def _read_prompt(prompt: str | None) -> str:
    "The prompt from the argument, after what is piped in, as llm prompt has it"
    piped = "" if sys.stdin is None or sys.stdin.isatty() else sys.stdin.read()
    if prompt is None and not piped and sys.stdin is not None and sys.stdin.isatty():
        piped = sys.stdin.read()
    whole = " ".join(bit for bit in (piped, prompt) if bit)
    if not whole.strip():
        raise click.ClickException("The prompt is empty: give it as an argument")
    return whole


def _place(excerpt: str | None, occurrence: int | None, range_: str | None) -> Place:
    from .branching import Place

    span = None
    if range_ is not None:
        start, colon, end = range_.partition(":")
        if not (colon and start.strip().isdecimal() and end.strip().isdecimal()):
            raise click.ClickException(
                f"--range {range_!r} is not START:END, as in 10:42"
            )
        span = (int(start), int(end))
    return Place(excerpt, occurrence, span)


def _ask(
    plan: Callable[[History], Branch],
    model_id: str | None,
    system: str | None,
    options: tuple[tuple[str, str], ...],
    database: str | None,
    no_stream: bool,
    json_: bool,
    usage: bool,
) -> None:
    "Ask a model what a verb plans, show the answer and log it"
    from llm.cli import display_stream_events

    from . import branching
    from .history import History, open_log

    history = History(open_log(database))
    branch = plan(history)
    model = _model(model_id or branch.parent.model, model_id is None)
    chosen = _options(model, options)
    stream = model.can_stream and not (no_stream or json_)
    response = branching.ask(branch, model, system, stream, **chosen)
    try:
        if stream:
            display_stream_events(response.stream_events())
            click.echo()
        else:
            text = response.text()
            if not json_:
                click.echo(text)
    except Exception as error:  # a model may raise anything, as in llm prompt
        if os.environ.get("LLM_RAISE_ERRORS"):
            raise
        raise click.ClickException(str(error)) from None
    branching.log(history, branch, response)
    if json_:
        from .report import describe_response

        facts = describe_response(history, response.id)
        click.echo(json.dumps({**facts, "text": response.text()}, indent=2))
    if usage:
        line = click.style(
            f"Token usage: {response.token_usage()}", fg="yellow", bold=True
        )
        click.echo(line, err=True)


def _model(model_id: str, logged: bool) -> Any:
    try:
        return llm.get_model(model_id)
    except llm.UnknownModelError:
        raise click.ClickException(
            f"The response was made by the model {model_id}, which is not installed: "
            "install its plugin, or choose another model with -m"
            if logged
            else f"Unknown model: {model_id}. See llm models"
        ) from None


def _options(model: Any, given: tuple[tuple[str, str], ...]) -> dict[str, Any]:
    "Options from the command line over the ones set with llm models options"
    import pydantic
    from llm.cli import get_model_options, render_errors

    try:
        checked = dict(model.Options(**dict(given)))
    except pydantic.ValidationError as error:
        raise click.ClickException(render_errors(error.errors())) from None
    chosen = {name: value for name, value in checked.items() if value is not None}
    return {**get_model_options(model.model_id), **chosen}


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
@click.argument("reference", metavar="[ID]", required=False)
@database_option
@click.option("-n", "--count", default=5, help="How many trees to show without an ID")
def tree(reference: str | None, database: str | None, count: int) -> None:
    """
    Show responses as a tree of branches

    ID is a response or a thread; without one the newest trees are shown. The
    response that llm -c would go on from is marked with a star.
    """
    from .history import History, open_log
    from .report import describe_tree

    history = History(open_log(database))
    for number, lines in enumerate(describe_tree(history, reference, count)):
        if number:
            click.echo()
        for line in lines:
            _print_node(line)


def _print_node(line: dict[str, Any]) -> None:
    "One line of a tree: where it hangs, how it was reached, what was asked"
    kept = _size(line["state_bytes"]) if line["state_bytes"] else "no state"
    tokens = "" if line["tokens"] is None else f"{line['tokens']:,} tokens, "
    tail = f"  {tokens}{kept}"
    head = f"{line['lead']}{line['id']}  "
    how = {"branch": "at ", "focus": "on ", "retry": "retry "}.get(line["verb"], "")
    if line["mode"] == "fresh":
        how = "fresh "
    if line["excerpt"]:
        how += f"“{_words(line['excerpt'], 24)}” "
    elif line["verb"] == "branch":
        how = "branch "
    room = shutil.get_terminal_size((100, 24)).columns - len(head + how + tail)
    click.echo(
        click.style(line["lead"], dim=True)
        + click.style(line["id"], fg="yellow")
        + click.style("* " if line["current"] else "  ", fg="green", bold=True)
        + click.style(how, fg="cyan")
        + _words(line["prompt"], max(12, room))
        + click.style(tail, dim=True)
    )


def _words(text: str, n: int) -> str:
    "The beginning of a text in one line of n characters"
    line = " ".join(text.split())
    return line if len(line) <= n else line[: n - 1] + "…"


@kvbranch.command()
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
    from .history import History, open_log
    from .report import describe_diff

    facts = describe_diff(History(open_log(database)), one, other)
    if json_:
        click.echo(json.dumps(facts, indent=2))
        return
    plural = "" if facts["shared"] == 1 else "s"
    line = f"{facts['shared']} message{plural} in common"
    if facts["last_shared"]:
        line += f", the last: {_words(facts['last_shared'][1], 60)}"
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
