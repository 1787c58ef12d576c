"""What a model can do for the commands of llm that run it: llm prompt and llm chat.

The idea: any exception of a model ends llm chat with a traceback, and the conversation
with it. Here the error is printed, llm is told that the turn never happened, and the
chat continues. And llm prompt logs an answer after printing it, so a reader that leaves
early (``| head``) would lose it: unread output is discarded instead.

The invariant: both happen only inside those commands. A model used from Python raises
its errors, and standard output is left alone.

This module does not know kvllama.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import Any

import click


def is_chat() -> bool:
    "Whether llm chat is running"
    return _is_running("chat")


def chatting(events: Iterator[Any], response: Any) -> Iterator[Any]:
    """The events of a response; in llm chat an error is printed and ends them.

    The response is then neither logged nor part of the conversation.
    """
    is_line_open = False
    try:
        for event in events:
            yield event
            is_line_open = True
    except Exception as error:
        if not _continues(error):
            raise
        if is_line_open:
            click.echo(err=True)
        _print(error)
        _leave_out(response)


@contextlib.contextmanager
def logging() -> Iterator[None]:
    "In llm chat, print why an answer is not logged and continue"
    _open_line[:] = [True] * is_chat()
    try:
        yield
    except Exception as error:
        if not _continues(error):
            raise
        end_line()
        _print(f"The answer is not logged: {error}")
    finally:
        _open_line.clear()


_open_line: list[bool] = []  # llm chat ends the line of an answer after logging it


def end_line() -> None:
    "End the line of an answer, if it is not ended yet"
    if _open_line:
        _open_line.clear()
        click.echo(err=True)


def discard_unread() -> None:
    "In llm prompt, discard output that nobody reads any more: llm logs it afterwards"
    out = sys.stdout
    if out is not sys.__stdout__ or not _is_running("prompt"):
        return
    with contextlib.suppress(OSError, ValueError):
        if out is None or out.isatty():
            return
        out.flush()
        raw = _Pipe(out.fileno(), "wb", closefd=False)
        sys.stdout = io.TextIOWrapper(
            io.BufferedWriter(raw), out.encoding, out.errors, write_through=True
        )


class _Pipe(io.FileIO):
    "A pipe that takes everything, even if nobody reads from it"

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            return len(data)


def _is_running(name: str) -> bool:
    "Whether this thread is running a command of llm"
    context = click.get_current_context(silent=True)
    cli = sys.modules.get("llm.cli")
    return context is not None and context.command is getattr(cli, name, False)


def _continues(error: Exception) -> bool:
    "Whether a chat continues after an error, as it does unless errors are raised"
    return is_chat() and not os.environ.get("LLM_RAISE_ERRORS")


def _print(error: object) -> None:
    click.ClickException(" ".join(str(error).split()) or repr(error)).show()


def _leave_out(response: Any) -> None:
    "Have llm continue its conversation as if a response had not been asked for"
    conversation, response.conversation = response.conversation, None
    response.log_to_db = lambda db: None
    if conversation is not None:
        # Without the question, but with the system prompt and the results of tools,
        # which llm would not send again
        messages = list(response.prompt.messages)
        if messages and messages[-1].role == "user":
            messages.pop()
        conversation.loaded_messages = messages or None
