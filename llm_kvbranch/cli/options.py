"""Options that several commands share, named as llm's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click


def completing(kind: str) -> Callable[..., list[Any]]:
    "A completion of arguments and options, imported when a shell asks for it"

    def complete(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[Any]:
        from . import completion

        return completion.complete(kind, ctx, incomplete)

    return complete


def response_argument(name: str = "response_id", **more: Any) -> Callable[..., Any]:
    return click.argument(name, shell_complete=completing("responses"), **more)


database_option = click.option(
    "-d",
    "--database",
    type=click.Path(readable=True, dir_okay=False),
    help="Path to log database",
)
json_option = click.option("json_", "--json", is_flag=True, help="Output as JSON")


def asking(command: Callable[..., None]) -> Callable[..., None]:
    "The options of every command that prompts a model, named as those of llm prompt"
    for option in reversed(
        [
            click.option(
                "model_id",
                "-m",
                "--model",
                help="Use another model",
                shell_complete=completing("model ids"),
            ),
            click.option("-s", "--system", help="Use another system prompt"),
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
            click.option(
                "-x", "--extract", is_flag=True, help="Extract first fenced code block"
            ),
            click.option(
                "-R",
                "--hide-reasoning",
                is_flag=True,
                help="Hide reasoning output",
            ),
            click.option("-u", "--usage", is_flag=True, help="Show token usage"),
            click.option(
                "--no-server",
                is_flag=True,
                help="Load the model in this process even if a server is running",
            ),
        ]
    ):
        command = option(command)
    return command


def placing(command: Callable[..., None]) -> Callable[..., None]:
    "The options that select part of an answer"
    for option in reversed(
        [
            click.option(
                "--excerpt", help="Text from the answer, or from its thinking"
            ),
            click.option(
                "--occurrence",
                type=click.IntRange(1),
                help="Which occurrence of the excerpt, counted from 1",
            ),
            click.option(
                "range_",
                "--range",
                metavar="START:END",
                help="Part of the answer, by character offsets",
            ),
        ]
    ):
        command = option(command)
    return command


count_option = click.option(
    "-n",
    "--count",
    type=click.IntRange(1, 64),
    default=1,
    help="Number of answers, generated together from the shared prompt",
)
