"""What several commands share: options named as llm's own, and words."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Callable

import click

database_option = click.option(
    "-d",
    "--database",
    type=click.Path(readable=True, dir_okay=False),
    help="Path to log database",
)
json_option = click.option("json_", "--json", is_flag=True, help="Output as JSON")


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
            click.option(
                "-x", "--extract", is_flag=True, help="Extract first fenced code block"
            ),
            click.option("-u", "--usage", is_flag=True, help="Show token usage"),
            click.option(
                "--no-server",
                is_flag=True,
                help="Load the model here, though llm kvbranch serve has it",
            ),
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


def say_states(n: int) -> str:
    return f"{n:,} state{'' if n == 1 else 's'}"


def hanging(text: str, indent: int) -> str:
    "A text as it fits the terminal, its later lines indented; elsewhere as it is"
    if not sys.stdout.isatty():
        return text
    lines = textwrap.wrap(
        text,
        max(20, shutil.get_terminal_size().columns - indent),
        break_long_words=False,  # paths and commands are copied
        break_on_hyphens=False,
    )
    return ("\n" + " " * indent).join(lines)
