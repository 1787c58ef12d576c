"""An answer, or the result of a call, that the engine's process owes.

The invariant: what was sent of an answer is known as tokens and calls, so that another
process can continue it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field, replace
from typing import Any

from ...chat import Call, Event
from ..request import Request, Resumed
from .process import EngineProcess

Listener = Callable[["HostedAnswer", list[Event]], None]


@dataclass(eq=False)
class HostedAnswer:
    """An answer of the engine's process.

    ``listener(answer, events)`` is called in a thread of the host's with what is new,
    for the last time when ``ended`` is true. ``facts`` and ``finish_reason`` are then
    known, or ``error`` is what it failed with. ``calls`` are those that were sent, and
    ``ended_by`` is the text of the token that ended the answer. ``slot_id`` is the
    sequence of its slot while it runs.
    """

    request: Request
    listener: Listener
    client: str
    facts: dict[str, Any] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    finish_reason: str = "stop"
    ended_by: str | None = None
    slot_id: int | None = None
    cancelled: bool = False
    ended: bool = False
    error: Exception | None = None
    asked: float = field(default_factory=time.monotonic)
    ttft_ms: float | None = None
    n_restarts: int = 0
    tokens: list[int] = field(default_factory=list)
    process: EngineProcess | None = None  # which has it, or had

    @property
    def number(self) -> int:
        return self.request.number

    def to_send(self) -> Request:
        "The request, to be continued after what was sent of its answer"
        if not self.tokens:
            return self.request
        reason = "cancelled" if self.cancelled else None
        return replace(self.request, resumed=self._resumed(reason))

    def again(self, number: int) -> Request:
        "The request of an answer that has ended, to have its rows in memory again"
        resumed = self._resumed(self.finish_reason)
        return replace(self.request, resumed=resumed, number=number)

    def copy(self, request: Request, listener: Listener) -> HostedAnswer:
        "The same answer, to be read once more for another request"
        return HostedAnswer(
            request,
            listener,
            self.client,
            calls=list(self.calls),
            finish_reason=self.finish_reason,
            ended_by=self.ended_by,
            tokens=list(self.tokens),
        )

    def _resumed(self, finish_reason: str | None) -> Resumed:
        tokens, calls = tuple(self.tokens), tuple(self.calls)
        return Resumed(tokens, finish_reason, calls, self.ended_by)

    def complete(self, message: dict[str, Any]) -> None:
        "Take over the facts of its end"
        self.facts = message["facts"]
        if self.n_restarts and self.facts:
            self.facts["ttft_ms"] = self.ttft_ms  # how long the client really waited
            self.facts["restarts"] = self.n_restarts
        self.finish_reason = message["finish_reason"]
        self.ended_by = message["ended_by"]

    def notify(self, events: list[Event]) -> None:
        "Call the listener; ignore its errors, as when its event loop has ended"
        self.calls += [event.call for event in events if event.call is not None]
        if events and self.ttft_ms is None:
            self.ttft_ms = round((time.monotonic() - self.asked) * 1000, 2)
        with contextlib.suppress(Exception):
            self.listener(self, events)


@dataclass(eq=False)
class Called:
    "A call whose result the process owes; ``answer`` is what it commits"

    name: str
    arguments: tuple[Any, ...]
    future: Future[Any]
    answer: HostedAnswer | None = None
    tries: int = 0

    def settle(self, result: Any = None, error: Exception | None = None) -> None:
        "Set its result or error, unless it was cancelled"
        with contextlib.suppress(InvalidStateError):
            if error is not None:
                self.future.set_exception(error)
            else:
                self.future.set_result(result)
