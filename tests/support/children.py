"""Work in forked processes, and conversations passed between them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator

import llm


@contextlib.contextmanager
def child(work: Callable[[int], None]) -> Iterator[tuple[int, int]]:
    "Run a function in a forked process; yields its id and a pipe to read from"
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        status = 1
        try:
            work(writing)
            status = 0
        except BaseException as error:
            os.write(writing, f"failed {error!r}\n".encode())
        finally:
            os._exit(status)
    os.close(writing)
    try:
        yield pid, reading
    finally:
        os.close(reading)


def as_line(messages: list) -> str:
    "Messages as one line of text"
    return "|".join(f"{m.role} {m.parts[0].text.encode().hex()}" for m in messages)


def from_line(words: str) -> list:
    "Messages from a line written by ``as_line``"
    make = {"user": llm.user, "assistant": llm.assistant}
    pairs = [word.split(" ") for word in words.split("|")]
    return [make[role](bytes.fromhex(text).decode()) for role, text in pairs]
