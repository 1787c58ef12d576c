"""The engine's process: a scheduler that reads requests from standard input.

The idea: what a server does with a model in its own process is done here, and every
line on standard output is an event of one request. One thread reads, the scheduler's
decodes and writes, one shows that the process is alive.

The invariant: whatever a request does to this process, its host learns what the process
was doing (``board``). When the host is gone, so is this process.

This module does not know what becomes of the answers.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, BinaryIO

from ...chat import Event, event_to_json
from ...errors import KVBranchError, report
from ...store import prune
from ..batching import PAUSE, PIECE, Limits
from ..generation import Generation
from ..scheduler import Scheduler, Ticket, fulfil
from ..session import Session, open_session
from ..status import describe
from . import wire
from .board import Board

BEAT_SECONDS = 0.5
_FIRST_CELLS = 4096  # reserved at the start; the context grows when it must


def main(path: str) -> None:
    "Run until standard input ends; ``path`` is the board's"
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):  # the host decides when it is time
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    board = Board(path)
    board.remove()
    board.beat()
    board.write("open")
    threading.Thread(target=_beat, args=(board,), daemon=True).start()
    lines = os.fdopen(os.dup(0), "rb")
    events = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # whatever else prints
    Worker(board, lines, events).run()
    os._exit(0)  # libraries' own clean-up may hang or abort


def _beat(board: Board) -> None:
    host = os.getppid()
    while os.getppid() == host:
        board.beat()
        time.sleep(BEAT_SECONDS)
    os._exit(1)


def _open(opening: wire.Opening, warn: Callable[[str], None]) -> Session:
    "The session, with its first cells reserved; raises ModelLoadError"
    session = open_session(
        opening.load,
        opening.settings,
        opening.root,
        warn,
        budget=opening.budget,
        name=opening.name,
        template=opening.template,
    )
    session.slots.max_cells = opening.max_cells
    session.limits = Limits(opening.max_pause or PAUSE, alone=PIECE)
    session.engine.reserve(min(opening.max_cells or _FIRST_CELLS, _FIRST_CELLS))
    return session


class Worker:
    "Takes the host's messages from ``lines``, and writes to ``events``"

    def __init__(self, board: Board, lines: BinaryIO, events: BinaryIO):
        self._board = board
        self._lines = lines
        self._events = events
        self._writing = threading.Lock()
        self._tickets: dict[int, Ticket] = {}  # running, or not committed yet

    def run(self) -> None:
        opening = wire.opening_of(json.loads(self._lines.readline()))
        try:
            session = _open(opening, self._warn)
        except Exception as error:
            self._send({"failed": _told(error)})
            return
        session.watch = self._watch
        self.scheduler = scheduler = Scheduler(session, opening.n_waiting)
        scheduler.call(session.warm_up)
        engine = session.engine
        self._send(
            {
                "ready": {
                    "name": session.name,
                    "n_ctx_train": engine.n_ctx_train,
                    "sampling": engine.weights.sampling,
                }
            }
        )
        for line in self._lines:
            message = json.loads(line)
            if "stop" in message:
                scheduler.stop(message["stop"])
                break
            self._take(message)

    def _take(self, message: dict[str, Any]) -> None:
        for number in message.get("drop", ()):
            self._tickets.pop(number, None)
        number = message.get("id", 0)
        if "run" in message:
            self._run(number, message["run"], message["client"])
        elif "cancel" in message:
            if (ticket := self._tickets.get(number)) is not None:
                self.scheduler.cancel(ticket)
        elif "call" in message:
            self._call(message["call"], message["name"], message["arguments"])

    def _run(self, number: int, data: dict[str, Any], client: str) -> None:
        listener = _Listener(number, self._send)
        try:
            request = wire.request_of(data)
            if request.resumed is not None:
                listener.n_sent = len(request.resumed.tokens)
            self._tickets[number] = self.scheduler.submit(request, listener, client)
        except Exception as error:
            self._tickets.pop(number, None)
            self._send({"id": number, "error": _told(error)})

    def _call(self, number: int, name: str, arguments: Sequence[Any]) -> None:
        "Call a function, in the engine's thread unless it only looks"

        def ended(future: Future[Any]) -> None:
            if (error := future.exception()) is None:
                self._send({"call": number, "result": future.result()})
            else:
                self._send({"call": number, "error": _told(error)})

        function: Callable[..., Any] = getattr(self, f"do_{name}")
        if name == "status":
            future: Future[Any] = Future()
            fulfil(future, function)
        else:
            future = self.scheduler.call(function, *arguments)
        future.add_done_callback(ended)

    def do_status(self) -> dict[str, Any]:
        return describe(self.scheduler)

    def do_nothing(self) -> None:
        "Answered when the engine is between two batches"

    def do_tail(self, text: str, n: int) -> str:
        return self.scheduler.session.tail(text, n)

    def do_place(self, text: str, start: int, end: int) -> tuple[int, int]:
        return self.scheduler.session.place(text, start, end)

    def do_prune(self, ids: list[str], dry_run: bool) -> dict[str, Any]:
        store = self.scheduler.session.store
        if store is None:  # state is not kept
            return {"states": 0, "nbytes": 0, "kept": []}
        removal = prune(store, ids, dry_run)
        return {
            "states": len(removal.removed),
            "nbytes": removal.nbytes,
            "kept": sorted({reason for _, reason in removal.kept}),
        }

    def do_commit(
        self, number: int, response_id: str, thread_id: str | None
    ) -> bool | None:
        "Whether the state was stored; None if this process never had it"
        ticket = self._tickets.pop(number, None)
        if ticket is None:
            return None
        return ticket.generation.commit(response_id, thread_id) is not None

    def _watch(
        self,
        work: str,
        generations: Sequence[Generation] = (),
        seconds: float | None = None,
    ) -> None:
        places = [(g.request.number, _place(g)) for g in generations]
        self._board.write(work, places, seconds)

    def _warn(self, message: str) -> None:
        self._send({"warn": message})

    def _send(self, message: dict[str, Any]) -> None:
        data = memoryview(wire.to_line(message))
        try:
            with self._writing:
                while data:
                    data = data[self._events.write(data) :]
        except OSError:  # the host is gone
            os._exit(1)


def _place(generation: Generation) -> int:
    "How many tokens it has, the same in each process that gets as far"
    if generation.generated:
        return generation.n_prompt + len(generation.generated)
    return len(generation.slot.tokens) if generation.slot is not None else 0


class _Listener:
    "Sends what is new of one request"

    def __init__(self, number: int, send: Callable[[dict[str, Any]], None]):
        self.n_sent = 0  # tokens of the answer
        self._number = number
        self._send = send

    def __call__(self, ticket: Ticket, events: list[Event]) -> None:
        generation = ticket.generation
        tokens = generation.generated[self.n_sent :].tolist()
        self.n_sent += len(tokens)
        message: dict[str, Any] = {
            "id": self._number,
            "events": [event_to_json(event) for event in events],
            "tokens": tokens,
            "slot": generation.slot.seq if generation.slot is not None else None,
        }
        if ticket.error is not None:
            message["error"] = _told(ticket.error)
        elif ticket.ended:
            message |= {
                "facts": generation.facts,
                "finish_reason": generation.finish_reason,
                "ended_by": generation.ended_by,
            }
        self._send(message)


def _told(error: BaseException) -> dict[str, Any]:
    "An error as JSON; one that is unforeseen is reported here as well"
    if not isinstance(error, KVBranchError):
        report(error)
    return wire.error_to_json(error)
