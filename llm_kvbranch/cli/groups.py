"""The click group that imports a command only when it is used.

The idea: a group is a table of names and places ("module:attribute" in this package).
``llm`` itself and completion of its own commands read nothing but the table; running
a command imports the one module it is in, and only ``--help`` imports them all.

This module knows no command.
"""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Mapping
from importlib import import_module
from typing import Any, NoReturn

import click
import llm
from click_default_group import DefaultGroup

Places = Mapping[str, str]
_WORDS = ("last",)  # arguments of the default command, not misspelt commands


class LazyGroup(DefaultGroup):  # type: ignore[misc]
    """Commands under headings; expected errors are one line and exit code 1.

    ``sections`` maps headings to commands, in the order that help shows them.
    ``aliases`` are older names: they work, but neither help nor completion shows them.
    """

    def __init__(
        self,
        *arguments: Any,
        sections: Mapping[str, Places],
        aliases: Places | None = None,
        **options: Any,
    ):
        super().__init__(*arguments, **options)
        self._sections = sections
        self._places = dict(aliases or {})
        for places in sections.values():
            self._places.update(places)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if ctx.resilient_parsing:  # complete commands, not options of the default
            return click.Group.parse_args(self, ctx, args)
        rest: list[str] = super().parse_args(ctx, args)
        return rest

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for places in self._sections.values() for name in places]

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if self._is_misspelt(args[0]) and not ctx.resilient_parsing:
            self._refuse(ctx, args[0])
        found: tuple[str | None, click.Command | None, list[str]]
        found = super().resolve_command(ctx, args)
        return found

    def _is_misspelt(self, word: str) -> bool:
        "Whether a word is no command, where the default only takes options"
        known = word in self._places or word.startswith("-")
        return bool(self.default_if_no_args) and not known

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in self._places:
            return self._load(cmd_name)
        if self._is_misspelt(cmd_name):
            return None
        self._load(self.default_cmd_name)
        command: click.Command | None = super().get_command(ctx, cmd_name)
        return command

    def _load(self, name: str) -> click.Command:
        if name not in self.commands:
            module, _, attribute = self._places[name].partition(":")
            found = getattr(import_module(f".{module}", __package__), attribute)
            self.commands[name] = found
            from . import streams

            streams.take_text(found)
        command: click.Command = self.commands[name]
        return command

    def make_context(self, *arguments: Any, **more: Any) -> click.Context:
        from . import streams

        try:  # --help prints here
            context: click.Context = super().make_context(*arguments, **more)
        except OSError as error:
            raise _refusal(error) from None
        streams.prepare(context)
        return context

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except OSError as error:
            raise _refusal(error) from None
        except UnicodeError as error:
            raise click.ClickException(f"Invalid text: {error}") from None
        except click.ClickException as error:
            word = getattr(ctx, "arg0", "")
            is_usage = isinstance(error, click.UsageError) and error.ctx is not ctx
            if is_usage and self._near(word):
                # Options and arguments of another command were given to the default
                self._refuse(ctx, word)
            vars(error)["message"] = _printable(error.message)
            raise
        except llm.ModelError as error:
            raise click.ClickException(_printable(error)) from None
        except sqlite3.Error as error:
            from ..store import rebuild_if_damaged

            if rebuild_if_damaged():
                raise click.ClickException(
                    "The index of the state store was damaged, and was rebuilt from "
                    "the state files. Run the command again"
                ) from None
            raise click.ClickException(
                _printable(f"Cannot use the log: {error}")
            ) from None

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[Any]:
        "Commands, and what the default command takes first once a letter is typed"
        items: list[Any] = super().shell_complete(ctx, incomplete)
        if incomplete and not incomplete.startswith("-"):
            default = self._load(self.default_cmd_name)
            inner = click.Context(default, parent=ctx, resilient_parsing=True)
            for each in default.params:
                if isinstance(each, click.Argument):
                    return [*items, *each.shell_complete(inner, incomplete)]
        return items

    def _near(self, word: str) -> list[str]:
        "The command that a word is a misspelling of, if any"
        if word in _WORDS or word.startswith("-"):
            return []
        import difflib

        return difflib.get_close_matches(word.lower(), self._places, n=1)

    def _refuse(self, ctx: click.Context, word: str, more: str = "") -> NoReturn:
        "Raise click's error for an unknown command; click suggests none before 8.4"
        near = "".join(f" Did you mean {name!r}?" for name in self._near(word))
        raise click.UsageError(
            _printable(f"No such command {word!r}.{near}{more}"), ctx
        )

    def format_options(
        self, ctx: click.Context, formatter: click.HelpFormatter
    ) -> None:
        "Only the commands: --help is the only option, and all must fit a screen"
        width = max(map(len, self.list_commands(ctx))) + 1
        limit = formatter.width - 6 - width
        formatter.write_paragraph()
        for heading, names in self._sections.items():
            rows = []
            for name in names:
                mark = "*" if name == self.default_cmd_name else ""
                about = self._load(name).get_short_help_str(limit)
                rows.append((f"{name}{mark}".ljust(width), about))
            formatter.write_heading(heading)
            with formatter.indentation():
                formatter.write_dl(rows)


def refuse_misspelt(reference: str) -> None:
    """Raise UsageError if the word for a response, which is unknown, is like a command.

    Does nothing in a command that was called by its name.
    """
    ctx = click.get_current_context().parent
    if ctx is None or not isinstance(ctx.command, LazyGroup):
        return
    if hasattr(ctx, "arg0") and ctx.command._near(reference):
        ctx.command._refuse(ctx, reference, " There is no response with that id either")


def _refusal(error: OSError) -> Exception:
    "What to raise for a file or an output that fails; click ends a broken pipe quietly"
    if error.errno == errno.EPIPE or os.environ.get("LLM_RAISE_ERRORS"):
        return error
    from . import streams

    refusal = streams.refuse(error)
    return click.ClickException(_printable(refusal.message))


def _printable(error: object) -> str:
    "A message, which may quote the log or a bundle"
    from ..log import printable

    return printable(str(error), lines=True)
