"""Many clients, one engine: a thread that decodes for all of them.

The idea: one thread owns a session. It admits waiting requests as slots become free,
one of each client in turn, decodes a batch, and hands out what is new. Whatever else
needs the session (storing a state, counting tokens) is done between two batches.

The invariant: every ticket ends, and its listener is told so exactly once. Nothing
runs on after its ticket was cancelled.

This module does not know HTTP, llm's models or the log.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

from ..chat import Event
from ..errors import BusyError, OverloadedError, UnavailableError
from .generation import Generation
from .request import Request
from .session import Session

Result = TypeVar("Result")
_IDLE = 0.02  # seconds without a request before the next turn is read ahead
_COURTESY = 0.001  # seconds that the event loop needs to send a few words
Listener = Callable[["Ticket", list[Event]], None]


@dataclass(eq=False)
class Ticket:
    """A request on its way; ``generation`` is its answer.

    ``listener(ticket, events)`` is called in the engine's thread with what is new, for
    the last time when ``ended`` is true. ``error`` is then what it failed with, if it
    did.
    """

    generation: Generation
    listener: Listener
    client: str = ""
    asked: float = field(default_factory=time.monotonic)
    started: float | None = None
    ended: bool = False
    error: BaseException | None = None

    @property
    def queue_ms(self) -> float:
        "How long it waited for a slot"
        return round(((self.started or time.monotonic()) - self.asked) * 1000, 2)


class Scheduler:
    """Runs a session's generations in a thread of its own.

    ``n_waiting`` is how many requests may wait for a slot: more are refused with an
    OverloadedError. All methods may be called from any thread.
    """

    def __init__(self, session: Session, n_waiting: int = 64):
        self.session = session
        self.n_waiting = n_waiting
        self.counts: Counter[str] = Counter()
        self._wake = threading.Condition()
        self._queues: OrderedDict[str, deque[Ticket]] = OrderedDict()
        self._calls: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._running: list[Ticket] = []
        self._cancelled: list[Ticket] = []
        self._full_at: int | None = None  # _n_answering when a request had no room
        self._ahead: Generation | None = None  # the last one, if it ended well
        self._stopping = False
        self._seconds = 1.0  # that answers took lately, on average
        session.waiting = self._waiting
        self._thread = threading.Thread(
            target=self._loop, name="kvbranch-engine", daemon=True
        )
        self._thread.start()

    # -- asking ----------------------------------------------------------

    def submit(self, request: Request, listener: Listener, client: str = "") -> Ticket:
        "Queue a request; raises OverloadedError when too many are waiting"
        generation = self.session.generate(request)
        ticket = Ticket(generation, listener, client)
        with self._wake:
            if self._stopping:
                raise UnavailableError()
            if self.n_waiting_now() >= self.n_waiting + self._n_idle():
                self.counts["refused"] += 1
                n = self.session.engine.settings.n_seq
                raise OverloadedError(
                    f"The server is full (at once: {n}, waiting: {self.n_waiting}): "
                    "try again later, or ask for fewer answers",
                    self.seconds_to_wait(),
                )
            self._queues.setdefault(client, deque()).append(ticket)
            self.counts["requests"] += 1
            self._wake.notify()
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        "End a request as soon as possible; does nothing if it has ended"
        ticket.generation.cancel()
        with self._wake:
            self._cancelled.append(ticket)
            self._wake.notify()

    def call(self, function: Callable[..., Result], *arguments: Any) -> Future[Result]:
        "Call a function in the engine's thread, between two batches"
        future: Future[Result] = Future()
        with self._wake:
            if self._stopping:
                future.set_exception(UnavailableError())
                return future
            self._calls.append((future, lambda: function(*arguments)))
            self._wake.notify()
        return future

    # -- looking ---------------------------------------------------------

    def n_waiting_now(self) -> int:
        "Requests that wait for a slot"
        with self._wake:
            return sum(map(len, self._queues.values()))

    def n_running(self) -> int:
        return len(self._running)

    def tickets(self) -> dict[int, Ticket]:
        "The running requests by the sequence of their slot"
        running = [(t.generation.slot, t) for t in list(self._running)]
        return {slot.seq: ticket for slot, ticket in running if slot is not None}

    def _waiting(self) -> list[Request]:
        "The requests that wait for a slot"
        with self._wake:
            queues = list(map(list, self._queues.values()))
        return [ticket.generation.request for queue in queues for ticket in queue]

    def seconds_to_wait(self) -> int:
        "How long a refused request should wait, by how long answers took lately"
        n = max(1, self.session.engine.settings.n_seq)
        return max(1, round(self._seconds * (1 + self.n_waiting_now()) / n))

    def _n_idle(self) -> int:
        return self.session.engine.settings.n_seq - len(self._running)

    # -- the engine's thread -----------------------------------------------

    def stop(self, seconds: float | None = None) -> bool:
        "End all requests and the thread; False if that takes longer than ``seconds``"
        with self._wake:
            self._stopping = True
            self._wake.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join(seconds)
        return not self._thread.is_alive()

    def _loop(self) -> None:
        while True:
            with self._wake:
                self.session.watch("wait")
                while not self._is_wanted():
                    if not self._wake.wait(_IDLE if self._ahead else None):
                        break
                if self._stopping:
                    break
                calls, self._calls = self._calls, deque()
                cancelled, self._cancelled = self._cancelled, []
            for future, function in calls:
                self.session.watch("call")
                fulfil(future, function)
            for ticket in cancelled:
                self._withdraw(ticket)
            self._admit()
            if self._running:
                self._step()
            elif not (calls or cancelled):
                self._read_ahead()
        self._give_up()

    def _read_ahead(self) -> None:
        "While nobody waits, prepare for the next turn after the last answer"
        generation, self._ahead = self._ahead, None
        if generation is not None:
            self.session.watch("read ahead")
            with contextlib.suppress(Exception):  # nobody asked for it
                if not self.session.read_ahead(generation, self._is_wanted):
                    self._ahead = generation

    def _step(self) -> None:
        try:
            self.session.step()
        except Exception as error:  # one that belongs to no single generation
            for ticket in self._running:
                ticket.generation.close(error)
        self.session.watch("wait")  # which handing out may do: for its host to read
        self._hand_out()

    def _is_wanted(self) -> bool:
        return self._stopping or self._has_work()

    def _has_work(self) -> bool:
        can_start = self.n_waiting_now() and self._full_at is None
        return bool(self._calls or self._cancelled or self._running or can_start)

    def _admit(self) -> None:
        "Start waiting requests while slots are idle, one of each client in turn"
        if self._full_at is not None and self._full_at == self._n_answering():
            return
        self._full_at = None
        while self._n_idle() > 0:
            with self._wake:
                if not self._queues:
                    return
                client, queue = self._queues.popitem(last=False)
                ticket = queue.popleft()
                if queue:
                    self._queues[client] = queue
            ticket.started = time.monotonic()
            try:
                self.session.start(ticket.generation)
            except BusyError as error:
                if self._running:  # it will be first in line when one of them ends
                    self._put_back(ticket)
                    self._full_at = self._n_answering()
                    return
                self._end(ticket, error)
            except Exception as error:
                self._end(ticket, error)
            else:
                self._running.append(ticket)

    def _n_answering(self) -> int:
        "A number that changes when there may be new room"
        return sum(1 + t.generation.is_answering for t in self._running)

    def _put_back(self, ticket: Ticket) -> None:
        generation = self.session.generate(ticket.generation.request)
        if ticket.generation.cancelled:
            generation.cancel()
        ticket.generation, ticket.started = generation, None
        with self._wake:
            queue = self._queues.setdefault(ticket.client, deque())
            queue.appendleft(ticket)
            self._queues.move_to_end(ticket.client, last=False)

    def _withdraw(self, ticket: Ticket) -> None:
        "Take a cancelled request out of its queue"
        with self._wake:
            queue = self._queues.get(ticket.client)
            if queue is None or ticket not in queue:
                return
            queue.remove(ticket)
            if not queue:
                del self._queues[ticket.client]
        ticket.generation.finish_reason = "cancelled"
        self._end(ticket)

    def _hand_out(self) -> None:
        """Give each listener what is new, and end the tickets that have ended.

        llama.cpp's threads take all processors again right after. So a first word is
        given a moment to be sent; otherwise it would arrive with the second.
        """
        begun = False
        for ticket in list(self._running):
            generation = ticket.generation
            events = list(generation.pieces)
            generation.pieces.clear()
            begun = begun or (bool(events) and generation.n_generated == 1)
            if generation.ended:
                self._running.remove(ticket)
                self._full_at = None
                self._end(ticket, generation.error, events)
            elif events:
                _notify(ticket, events)
        if begun:
            time.sleep(_COURTESY)

    def _end(
        self,
        ticket: Ticket,
        error: BaseException | None = None,
        events: list[Event] | None = None,
    ) -> None:
        facts, now = ticket.generation.facts, time.monotonic()
        ticket.error, ticket.ended = error, True
        outcome = "failed" if error else ticket.generation.finish_reason
        self.counts[f"ended {outcome}"] += 1
        for name in ("prompt", "restored", "resident", "prefilled", "generated"):
            self.counts[f"{name}_tokens"] += facts.get(f"{name}_tokens") or 0
        if ticket.started is not None and not error:
            facts.update(served=True, queue_ms=ticket.queue_ms)
            self._seconds += 0.2 * (now - ticket.started - self._seconds)
            self._ahead = ticket.generation
        _notify(ticket, events or [])

    def _give_up(self) -> None:
        "End everything that is running, waiting or to be called"
        with self._wake:
            waiting = [t for queue in self._queues.values() for t in queue]
            self._queues.clear()
            calls, self._calls = self._calls, deque()
        for ticket in self._running:
            ticket.generation.cancel()
        for _ in range(2 * len(self._running) + 2):  # until all answers have ended
            if self._running:
                self._step()
        for ticket in (*self._running, *waiting):
            self.session.stop(ticket.generation)
            self._end(ticket, UnavailableError())
        self._running = []
        for future, _ in calls:
            future.set_exception(UnavailableError())


def _notify(ticket: Ticket, events: list[Event]) -> None:
    "Call a listener; one that fails, as when its event loop has ended, harms no other"
    with contextlib.suppress(Exception):
        ticket.listener(ticket, events)


def fulfil(future: Future[Any], function: Callable[[], Any]) -> None:
    "Set a future to what a function returns or raises"
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(function())
    except BaseException as error:
        future.set_exception(error)
