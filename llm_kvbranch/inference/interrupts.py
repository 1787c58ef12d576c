"""Stopping a decode after Ctrl-C.

The idea: Python raises KeyboardInterrupt only between its own instructions, but a
prefill can spend seconds inside llama.cpp, which calls a function of ours instead.

This module does not know what is decoded.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def interruptible(
    cancelled: Callable[[], bool], takes_long: bool
) -> Iterator[Callable[[], bool] | None]:
    """A function that stops a decode after Ctrl-C; None for a decode that is short.

    llama.cpp calls it some hundred times, which costs a twentieth of the time of one
    token.
    """
    if not takes_long:
        yield None
        return
    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT) if main else None
    if handler is not signal.default_int_handler:
        yield cancelled
        return
    interrupted = False

    def on_interrupt(*_: Any) -> None:
        nonlocal interrupted
        interrupted = True

    signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield lambda: interrupted or cancelled()
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if interrupted:
        raise KeyboardInterrupt
