"""Standard input and output, whatever they are: terminals, pipes, a full disk.

The idea: a terminal shows an answer and never obeys it, a pipe gets it as it is. Text
comes in as UTF-8 whatever the locale says, and what the output's encoding lacks is
written in plainer characters.

The invariant: an answer that cannot be printed is still generated to its end, and
logged. The failure is reported after that.

This module does not know what the text is about.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import io
import os
import sys
from typing import IO, Any

import click

_ADVICE = "Convert it first, for example with: iconv -f latin1 -t utf-8"
_PLAINER = {
    **dict.fromkeys("│├", "|"),
    **dict.fromkeys("─✗\u2013\u2014", "-"),
    **dict.fromkeys("“”", '"'),
    **dict.fromkeys("\u2018\u2019", "'"),
    "└": "`",
    "★": "*",
    "…": "...",
    "✓": "+",
}


# -- in ------------------------------------------------------------------


class Text(click.types.StringParamType):
    "An option or argument; a command line in another locale is UTF-8 as well"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        text = super().convert(value, param, ctx)
        try:
            text.encode()
        except UnicodeEncodeError:
            with contextlib.suppress(UnicodeError):
                return os.fsencode(text).decode()
            name = param.opts[-1]
            raise click.ClickException(
                f"{name} is not valid UTF-8. {_ADVICE}"
            ) from None
        return text


TEXT = Text()


def take_text(command: click.Command) -> None:
    "Require valid text of a command's options and arguments, except for paths"
    for parameter in command.params:
        if isinstance(parameter.type, click.Tuple):
            parameter.type.types = [
                TEXT if each is click.STRING else each for each in parameter.type.types
            ]
        elif parameter.type is click.STRING:
            parameter.type = TEXT


def read() -> str:
    "All of standard input; raises ClickException"
    data = getattr(sys.stdin, "buffer", None)
    if data is None:
        return sys.stdin.read()
    encoding = codecs.lookup(sys.stdin.encoding or "utf-8").name
    if encoding == "ascii":
        encoding = "utf-8"
    try:
        return io.TextIOWrapper(io.BytesIO(data.read()), encoding).read()
    except UnicodeDecodeError as error:
        raise click.ClickException(
            f"Standard input is not valid {error.encoding.upper()} (at byte "
            f"{error.start:,}). {_ADVICE}"
        ) from None


# -- out -----------------------------------------------------------------


def prepare(context: click.Context) -> None:
    "Before a command prints: honour NO_COLOR, replace what the encoding lacks"
    if os.environ.get("NO_COLOR"):  # https://no-color.org: "present and not empty"
        context.color = False
    out = sys.stdout
    if isinstance(out, io.TextIOWrapper) and out.errors in (
        "strict",
        "surrogateescape",
    ):
        codecs.register_error("plainer", _plainer)
        out.reconfigure(errors="plainer")


def _plainer(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    refused = error.object[error.start : error.end]
    return "".join(_PLAINER.get(c, "?") for c in refused), error.end


def is_terminal(stream: IO[str] | None) -> bool:
    return stream is not None and stream.isatty()


def has_colours() -> bool:
    "Whether colours reach standard output"
    return is_terminal(sys.stdout) and click.get_current_context().color is not False


def shown(text: str, err: bool = False) -> str:
    "Text for standard output or error, with a terminal's control characters shown"
    from ..log import printable

    if not is_terminal(sys.stderr if err else sys.stdout):
        return text
    return printable(text.replace("\r\n", "\n"), lines=True)


def refuse(error: OSError) -> click.ClickException:
    "The error for a failed read or write, unless it is EPIPE"
    reason = error.strerror or str(error)
    if error.filename is not None:
        return click.ClickException(f"Cannot use {error.filename}: {reason}")
    if sys.stdout is sys.__stdout__:
        # Python would try to write the rest once more when it ends
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return click.ClickException(f"Cannot write the output: {reason}")


class Answers:
    "Prints answers piece by piece; ``check`` raises the error that ended it"

    def __init__(self) -> None:
        self._error: OSError | None = None
        self._held = {False: "", True: ""}

    def write(self, piece: str, err: bool = False, **style: Any) -> None:
        "Text to standard output, or to standard error"
        if self._error is not None and not err:
            return
        piece = self._held[err] + piece
        self._held[err] = "\r" if piece.endswith("\r") else ""  # half of a line's end?
        piece = shown(piece.removesuffix("\r"), err)
        if style:
            piece = click.style(piece, **style)
        try:
            # click takes colours, and what looks like them, from pipes
            click.echo(piece, nl=False, err=err, color=None if style else True)
        except OSError as error:
            if not err:
                self._error = error

    def end(self) -> None:
        "End the line of an answer"
        held, self._held = self._held[False], {False: "", True: ""}
        self.write(f"{shown(held)}\n")

    def check(self) -> None:
        "Raise the error that printing ended with"
        if self._error is None:
            return
        if self._error.errno == errno.EPIPE:
            raise self._error  # which click makes a quiet exit
        raise click.ClickException(
            f"{refuse(self._error).message}. The answer is logged"
        )
