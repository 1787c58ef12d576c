"""Connections that send nothing: how many there may be, and for how long.

The idea: whoever reaches the port may open connections, before any key is asked for. A
connection without a request is closed after some seconds. When there are too many, the
one that has been silent for longest makes room for the next; that is also one whose
request has a body that does not come.

The invariant: there are always descriptors left to accept a connection and to open the
files of an answer.

This module does not know what is served.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

AT_ONCE = 32  # connections that asyncio accepts in a turn of its loop
_TURNS = 4  # until one is counted, and the one that made room is closed
QUEUE = 4096  # and that the system holds meanwhile; it lets others wait for seconds
_FILES = 256  # descriptors for the log, state files, models
_HEADER_SECONDS = 10.0
_MOST = 4096
_MOST_DESCRIPTORS = 65_536


def raise_limit() -> int:
    "Allow as many descriptors as the system does; returns how many connections fit"
    try:
        import resource
    except ImportError:  # Windows
        return _MOST
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return _MOST
    wanted = _MOST_DESCRIPTORS
    if hard != resource.RLIM_INFINITY:
        wanted = min(hard, wanted)
    if wanted > soft:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
        except (OSError, ValueError):  # macOS allows less than it says
            pass
    return max(16, min(_MOST, soft - _TURNS * AT_ONCE - _FILES))


def protocol(most: int, seconds: float = _HEADER_SECONDS) -> type[H11Protocol]:
    "uvicorn's protocol for at most so many connections, each silent for so long"
    # The longest first. The guard has its own limit of time for a body: no timer
    silent: dict[Any, asyncio.TimerHandle | None] = {}

    class Protocol(H11Protocol):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._watch()
            if len(self.connections) > most and silent:
                longest = next(iter(silent))
                longest._forget()
                self.connections.discard(longest)  # at once: its end comes later
                longest.transport.abort()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            self._forget()

        def _watch(self) -> None:
            "Expect a whole header soon, unless a request is being answered"
            if self.cycle is not None and not self.cycle.response_complete:
                self._forget()
                if self.cycle.more_body and not self.transport.is_closing():
                    silent[self] = None  # the last again with each piece of the body
            elif silent.get(self) is None and not self.transport.is_closing():
                self._forget()
                silent[self] = self.loop.call_later(seconds, self.transport.abort)

        def _forget(self) -> None:
            if timer := silent.pop(self, None):
                timer.cancel()

    return Protocol


def keep_quiet(loop: asyncio.AbstractEventLoop) -> None:
    "Say only once that there are no descriptors left: asyncio says it at each attempt"
    said = False

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        nonlocal said
        if not str(context.get("message")).startswith("socket.accept() out of"):
            loop.default_exception_handler(context)
        elif not said:
            said = True
            sys.stderr.write(
                "Warning: there are too many open files to accept connections: raise "
                "the limit with ulimit -n\n"
            )

    loop.set_exception_handler(handle)
