"""The commands that prompt a model: branch, focus, continue, retry."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click
import llm

from . import streams
from .answers import show_answers
from .groups import refuse_misspelt
from .options import asking, count_option, placing, response_argument

if TYPE_CHECKING:
    from ..log import Branch, History, Place


@click.command()
@response_argument()
@click.argument("prompt", required=False)
@placing
@click.option(
    "--mode",
    type=click.Choice(["reuse_kv", "fresh"]),
    default="reuse_kv",
    help="reuse_kv (default) continues the conversation; fresh starts a new one that "
    "only quotes the excerpt",
)
@click.option(
    "--context-window",
    type=click.IntRange(0),
    help="With fresh: quote this many tokens before the end of the excerpt",
)
@count_option
@asking
def branch(
    response_id: str,
    prompt: str | None,
    excerpt: str | None,
    occurrence: int | None,
    range_: str | None,
    mode: str,
    context_window: int | None,
    **asked: Any,
) -> None:
    """
    Continue from a response in a new thread

    With an excerpt the answer is cut right after it; the rest of the answer is not
    part of the branch. This is the default command.

    \b
        llm kvbranch last --excerpt 'the sky is blue' 'Why?'
    """
    from ..log import branching

    place = _place(excerpt, occurrence, range_)
    if context_window is not None and mode != "fresh":
        raise click.UsageError("--context-window needs --mode fresh")

    def tail(logged: str, text: str, n: int) -> str:
        model = _model(asked["model_id"] or logged, asked["model_id"] is None)
        return str(getattr(model, "tail", branching.last_words)(text, n))

    def plan(history: History, id: str, question: str) -> Branch:
        if mode == "fresh":
            n = context_window or 0
            return branching.fresh(history, id, question, place, n, tail)
        return branching.branch(history, id, question, place)

    _ask(plan, response_id, place, lambda: _read_prompt(prompt), **asked)


@click.command()
@response_argument()
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

    The new thread keeps the whole conversation and quotes that part.
    """
    from ..log import branching

    place = _place(excerpt, occurrence, range_)
    if place.words is None and place.range is None:
        raise click.ClickException("focus needs an excerpt or a range of the answer")

    def plan(history: History, id: str, question: str) -> Branch:
        return branching.focus(history, id, question, place)

    _ask(plan, response_id, place, lambda: _read_prompt(prompt), **asked)


@click.command(name="continue")
@response_argument()
@click.argument("prompt", required=False)
@asking
def continue_(response_id: str, prompt: str | None, **asked: Any) -> None:
    """
    Add a turn after a response

    In the same thread if the response is its last, otherwise in a new one.
    """
    from ..log import branching

    _ask(branching.continue_, response_id, None, lambda: _read_prompt(prompt), **asked)


@click.command()
@response_argument()
@count_option
@asking
def retry(response_id: str, **asked: Any) -> None:
    "Send the prompt of a response again, in a new thread"
    from ..log import branching

    def plan(history: History, id: str, _: str) -> Branch:
        return branching.retry(history, id)

    _ask(plan, response_id, None, str, **asked)


def _read_prompt(prompt: str | None) -> str:
    "The prompt: standard input, then the argument, as llm prompt does"
    is_read = _is_piped() or (prompt is None and streams.is_terminal(sys.stdin))
    piped = streams.read() if is_read else ""
    whole = " ".join(bit for bit in (piped, prompt) if bit)
    if not whole.strip():
        raise click.ClickException("The prompt is empty: pass it as an argument")
    return whole


def _is_piped() -> bool:
    return sys.stdin is not None and not streams.is_terminal(sys.stdin)


def _place(excerpt: str | None, occurrence: int | None, range_: str | None) -> Place:
    from ..log import Place

    if excerpt is not None and range_ is not None:
        raise click.UsageError("Give --excerpt or --range, not both")
    if occurrence is not None and excerpt is None:
        raise click.UsageError("--occurrence needs an --excerpt")
    span = None
    if range_ is not None:
        start, colon, end = range_.partition(":")
        if not (colon and start.strip().isdecimal() and end.strip().isdecimal()):
            raise click.ClickException(
                f"--range {range_!r} is not START:END, as in 10:42"
            )
        span = (int(start), int(end))
    return Place(excerpt, occurrence, span)


def _look_up(database: str | None, reference: str) -> tuple[History, str]:
    "The log and the full id of a response; a misspelt command is reported as one"
    from ..errors import HistoryError
    from ..log import History, open_log

    try:
        history = History(open_log(database))
        return history, history.resolve(reference)
    except HistoryError:
        refuse_misspelt(reference)
        raise


def _ask(
    plan: Callable[[History, str, str], Branch],
    reference: str,
    place: Place | None,
    read: Callable[[], str],
    model_id: str | None,
    system: str | None,
    options: tuple[tuple[str, str], ...],
    database: str | None,
    no_stream: bool,
    json_: bool,
    extract: bool,
    usage: bool,
    hide_reasoning: bool = False,
    no_server: bool = False,
    count: int = 1,
) -> None:
    """Prompt a model as a verb plans, print the answers and log them.

    Mistakes in the call are reported before the prompt is read.
    """
    from ..log import branching

    if extract and json_:
        raise click.UsageError("Give --extract or --json, not both")
    question = None
    if reference == "last" and _is_piped():
        question = read()  # the command before the pipe may be logging it
    history, parent_id = _look_up(database, reference)
    if place is not None:
        _check_place(history, parent_id, place)
    logged = str(history.turn(parent_id)["model"])
    model = _model(model_id or logged, model_id is None)
    chosen = _options(model, options)
    if no_server:
        _check_no_server(model, chosen)
        chosen["server"] = False
    branch = plan(history, parent_id, read() if question is None else question)
    stream = model.can_stream and not (no_stream or json_ or extract)
    responses = []
    for i in range(count):
        if "seed" in chosen and i:
            chosen["seed"] += 1  # or all answers would be identical
        responses.append(branching.ask(branch, model, system, stream, i, **chosen))
    try:
        output = show_answers(responses, json_ or extract, hide_reasoning)
    except Exception as error:  # a model may raise anything, as in llm prompt
        if os.environ.get("LLM_RAISE_ERRORS"):
            raise
        raise click.ClickException(str(error)) from None
    for response in responses:
        branching.log(history, branch, response)
    if json_:
        _show_json(history, responses)
    if extract:
        _show_code(responses)
    for response in responses if usage else ():
        line = f"Token usage: {response.token_usage()}"
        click.echo(click.style(line, fg="yellow", bold=True), err=True)
    output.check()


def _show_json(history: History, responses: list[Any]) -> None:
    from .report import describe_response

    facts = [
        {**describe_response(history, response.id), **_said(response)}
        for response in responses
    ]
    click.echo(json.dumps(facts if len(facts) > 1 else facts[0], indent=2))


def _said(response: Any) -> dict[str, str]:
    "The text of an answer, and the thinking before it"
    parts = [part for message in response.messages() for part in message.parts]
    thoughts = [
        part.text for part in parts if isinstance(part, llm.parts.ReasoningPart)
    ]
    return {"reasoning": "".join(thoughts), "text": response.text()}


def _show_code(responses: list[Any]) -> None:
    from llm.utils import extract_fenced_code_block

    for response in responses:
        text = response.text()
        code = extract_fenced_code_block(text) or text
        click.echo(streams.shown(code), color=True)


def _check_place(history: History, response_id: str, place: Place) -> None:
    "Raise HistoryError if the answer has no such part"
    from ..errors import AmbiguousExcerptError, HistoryError

    if place.words is None and place.range is None:
        return
    try:
        place.find(history.response(response_id))
    except AmbiguousExcerptError as error:
        raise HistoryError(
            f"{error.what}, choose one with --occurrence: {error.matches}"
        ) from None


def _check_no_server(model: Any, chosen: dict[str, Any]) -> None:
    if "server" not in model.Options.model_fields:
        raise click.UsageError(
            f"--no-server does not apply to {model.model_id}, which is not a "
            "kvllama model"
        )
    if chosen.get("server"):
        raise click.UsageError("Give --no-server or -o server true, not both")


def _model(model_id: str, logged: bool) -> Any:
    try:
        return llm.get_model(model_id)
    except llm.UnknownModelError:
        raise click.ClickException(
            f"The response was made by the model {model_id}, which is not installed: "
            "install its plugin or choose another model with -m"
            if logged
            else f"Unknown model: {model_id}. See llm models"
        ) from None


def _options(model: Any, given: tuple[tuple[str, str], ...]) -> dict[str, Any]:
    "Options from the command line, over those set with llm models options"
    import pydantic
    from llm.cli import get_model_options, render_errors

    try:
        checked = dict(model.Options(**dict(given)))
    except pydantic.ValidationError as error:
        raise click.ClickException(render_errors(error.errors())) from None
    chosen = {name: value for name, value in checked.items() if value is not None}
    return {**get_model_options(model.model_id), **chosen}
