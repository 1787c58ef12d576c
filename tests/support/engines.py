"""The engine's process of a running server: which it is, and what it takes."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def engine_of(pid: int) -> int | None:
    "The process id of the engine that a server has started, None while it has none"
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in children.read_text().split():
                return int(child)
    return None


def hit(pid: int, number: int) -> bool:
    "Send a signal to the engine of a server; False if there is none to send it to"
    engine = engine_of(pid)
    if engine is None:
        return False
    try:
        os.kill(engine, number)
    except ProcessLookupError:
        return False
    return True
