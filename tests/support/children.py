"""Work in forked processes, and conversations on their way between them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator

import llm


@contextlib.contextmanager
def child(work: Callable[[int], None]) -> Iterator[tuple[int, int]]:
    "Run something in a process of its own: its id, and what it writes to"
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
    "Messages as text without line ends"
    return "|".join(f"{m.role} {m.parts[0].text.encode().hex()}" for m in messages)


def from_line(words: str) -> list:
    "The messages of a line that ``as_line`` wrote"
    make = {"user": llm.user, "assistant": llm.assistant}
    pairs = [word.split(" ") for word in words.split("|")]
    return [make[role](bytes.fromhex(text).decode()) for role, text in pairs]
