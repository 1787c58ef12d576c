"""Looks after the engine's process, and the answers that it works on.

The idea: the host knows each request, and the tokens whose events were sent. If the
process ends, it is started again, and each answer continues after these tokens. What
it had stored is restored, the rest is read again.

The invariant: every answer ends, and its listener is told so exactly once. No event is
sent twice, and none is left out.

This module does not know HTTP, llm's models or the log.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
import time
import weakref
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

from ...chat import Event, event_of
from ...errors import EngineError, KVBranchError, UnavailableError
from ..request import Request
from .board import Work
from .hosted import Called, HostedAnswer, Listener
from .process import EngineProcess
from .suspects import Suspects, Verdict
from .wire import Opening, error_of, opening_to_json, request_to_json

_TICK = 0.5  # seconds between two looks at the process
_PAUSES = (0.0, 0.5, 1.0, 2.0, 4.0)  # seconds before each try to start it again
_TRIES = 3  # times that a call may end the process
_STATUS_SECONDS = 2.0


class Host:
    """An engine in a process of its own; raises ModelLoadError and its like.

    ``warn`` is given one line about anything that went wrong without stopping an
    answer. ``name``, ``n_ctx_train`` and ``sampling`` are the model's. All methods that
    are not async may be called from any thread.
    """

    name: str
    n_ctx_train: int
    sampling: dict[str, float]

    def __init__(self, opening: Opening, warn: Callable[[str], None]):
        self.opening = opening
        self.n_restarts = 0
        self._warn = warn
        self._lock = threading.RLock()
        self._wanted = threading.Condition(self._lock)  # by requests, when it is down
        self._numbers = itertools.count(1)
        self._answers: dict[int, HostedAnswer] = {}  # that have not ended
        self._calls: dict[int, Called] = {}
        self._held: deque[HostedAnswer] = deque()  # suspects, which run one by one
        self._tested: HostedAnswer | None = None
        self._dropped: deque[int] = deque()
        self._suspects = Suspects()
        self._last_status: dict[str, Any] = {}
        self._stopping = False
        self._opened: Future[None] = Future()
        self._process = EngineProcess()
        self._thread = threading.Thread(
            target=self._run, name="kvbranch-host", daemon=True
        )
        self._thread.start()
        threading.Thread(target=self._look_after, daemon=True).start()
        try:
            self._opened.result()
        except BaseException:
            self.stop(0)
            raise

    # -- asking ----------------------------------------------------------

    def submit(
        self, request: Request, listener: Listener, client: str = ""
    ) -> HostedAnswer:
        "Queue a request; an error, as when too many are waiting, ends its answer"
        request = replace(request, number=next(self._numbers))
        answer = HostedAnswer(request, listener, client)
        weakref.finalize(answer, self._dropped.append, request.number)
        with self._lock:
            if self._stopping:
                raise UnavailableError()
            most = self.opening.settings.n_seq + self.opening.n_waiting
            if not self._process.ready and len(self._answers) >= most:
                raise UnavailableError("The engine is being started again", 5)
            self._answers[answer.number] = answer
            if self._process.ready:
                self._submit(answer)
            self._wanted.notify_all()
        return answer

    def cancel(self, answer: HostedAnswer) -> None:
        "End an answer as soon as possible; does nothing if it has ended"
        with self._lock:
            answer.cancelled = True
            if answer in self._held:
                self._held.remove(answer)
                answer.finish_reason = "cancelled"
                self._end(answer)
            elif answer.process is self._process:
                self._process.send({"id": answer.number, "cancel": True})

    async def stream(
        self, request: Request, client: str = ""
    ) -> AsyncGenerator[tuple[HostedAnswer, Event | None], None]:
        """The events of an answer, with the answer; the first time without an event.

        Closing the generator cancels the request.
        """
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[tuple[list[Event], bool]] = asyncio.Queue()

        def listen(answer: HostedAnswer, events: list[Event]) -> None:
            loop.call_soon_threadsafe(queue.put_nowait, (events, answer.ended))

        answer = self.submit(request, listen, client)
        try:
            yield answer, None
            ended = False
            while not ended:
                events, ended = await queue.get()
                for event in events:
                    yield answer, event
            if answer.error is not None:
                raise answer.error
        finally:
            if not answer.ended:
                self.cancel(answer)

    def commit(
        self, answer: HostedAnswer, response_id: str, thread_id: str | None = None
    ) -> Future[bool]:
        "Store the state of a logged answer; whether that was done"
        return self._ask(Called("commit", (response_id, thread_id), Future(), answer))

    def tail(self, text: str, n: int) -> Future[str]:
        "The last n tokens of a text"
        return self._ask(Called("tail", (text, n), Future()))

    def place(self, text: str, start: int, end: int) -> Future[tuple[int, int]]:
        "Where the tokens [start, end) of a text begin and end, in characters"
        return self._ask(Called("place", (text, start, end), Future()))

    def prune(self, ids: list[str], dry_run: bool) -> Future[dict[str, Any]]:
        "Delete states of responses: how many, their bytes, why some were kept"
        return self._ask(Called("prune", (ids, dry_run), Future()))

    def alive(self) -> Future[None]:
        "Done when the engine is between two batches"
        return self._ask(Called("nothing", (), Future()))

    async def status(self) -> dict[str, Any]:
        "As status.describe; the last one known, with no slots, if there is no answer"
        if self._process.ready:
            asked = self._ask(Called("status", (), Future()))
            with contextlib.suppress(KVBranchError, asyncio.TimeoutError):
                self._last_status = await asyncio.wait_for(
                    asyncio.wrap_future(asked), _STATUS_SECONDS
                )
                return self._last_status
        waiting = len(self._answers)
        return {
            **_NOTHING,
            **self._last_status,
            "slots": [],
            "n_used": 0,
            "n_running": 0,
            "n_waiting": waiting,
        }

    def requests(self) -> list[Request]:
        "The requests that are running or waiting"
        with self._lock:
            return [answer.request for answer in self._answers.values()]

    def stop(self, seconds: float | None = None) -> bool:
        "End all answers and the process; False if it had to be killed"
        with self._lock:
            self._stopping = True
            self._process.send({"stop": seconds})
            self._wanted.notify_all()
        gentle = self._process.wait(10.0 if seconds is None else seconds)
        if not gentle:
            self._process.kill("it did not stop")
        if threading.current_thread() is not self._thread:
            self._thread.join(2)
        return gentle

    # -- the host's thread -------------------------------------------------

    def _run(self) -> None:
        error = self._serve()
        while not self._stopping:
            if not self._opened.done():  # it never was there
                self._opened.set_exception(
                    error or EngineError(f"The engine ended: {self._process.why()}")
                )
                return
            if self._process.ready:
                self._bury()
            for pause in _PAUSES:
                with self._wanted:
                    self._wanted.wait_for(lambda: self._stopping, pause)
                    if self._stopping:
                        break
                    self._process = EngineProcess()
                error = self._serve()
                if self._process.ready:
                    break
            else:
                why = error or self._process.why()
                self._fail(UnavailableError(f"The engine does not start: {why}", 10))
                with self._wanted:
                    self._wanted.wait_for(self._is_wanted)
        self._fail(UnavailableError())

    def _is_wanted(self) -> bool:
        return bool(self._stopping or self._answers or self._calls)

    def _serve(self) -> Exception | None:
        "Read the process's messages until it ends; returns why it could not start"
        process, error = self._process, None
        process.send(opening_to_json(self.opening))
        for message in process.messages():
            if "ready" in message:
                self._begin(message["ready"])
            elif "failed" in message:
                error = error_of(message["failed"])
            elif "warn" in message:
                self._warn(message["warn"])
            elif "call" in message:
                self._result(message)
            elif "id" in message:
                self._event(message)
        return error

    def _begin(self, about: dict[str, Any]) -> None:
        "The process can take requests: send it all that there are"
        with self._lock:
            self.name = about["name"]
            self.n_ctx_train = about["n_ctx_train"]
            self.sampling = about["sampling"]
            self._process.ready = True
            for answer in list(self._answers.values()):
                if answer not in self._held:
                    self._submit(answer)
            for number, called in list(self._calls.items()):
                del self._calls[number]
                self._send_call(called)
        if not self._opened.done():
            self._opened.set_result(None)

    def _submit(self, answer: HostedAnswer) -> None:
        "Have the process begin an answer, or continue it"
        process = answer.process = self._process
        if answer.cancelled and not answer.tokens:
            answer.finish_reason = "cancelled"
            return self._end(answer)
        data = request_to_json(answer.to_send())
        process.send({"id": answer.number, "run": data, "client": answer.client})
        return None

    def _event(self, message: dict[str, Any]) -> None:
        with self._lock:
            answer = self._answers.get(message["id"])
            if answer is None:
                return
            if tokens := message.get("tokens"):
                answer.tokens += tokens
                if answer is self._tested:
                    self._test_next()
            answer.slot_id = message.get("slot", answer.slot_id)
            said = [event_of(each) for each in message.get("events", ())]
            events = [event for event in said if event is not None]
            if "error" in message:
                self._end(answer, error_of(message["error"]), events)
            elif "facts" in message:
                answer.complete(message)
                self._end(answer, None, events)
            elif events:
                answer.notify(events)

    def _end(
        self,
        answer: HostedAnswer,
        error: Exception | None = None,
        events: Sequence[Event] = (),
    ) -> None:
        self._answers.pop(answer.number, None)
        self._suspects.forget(answer.number)
        answer.error, answer.ended = error, True
        if answer is self._tested:
            self._test_next()
        answer.notify(list(events))

    def _test_next(self) -> None:
        self._tested = self._held.popleft() if self._held else None
        if self._tested is not None and self._process.ready:
            self._submit(self._tested)

    def _bury(self) -> None:
        "The process has ended: refuse what is to blame, and warn the user"
        process = self._process
        why, work = process.why(), process.work()
        with self._lock:
            process.ready = False
            self.n_restarts += 1
            verdict = Verdict() if process.is_accident else self._suspects.judge(work)
            for answer in list(self._answers.values()):
                answer.slot_id = None
                answer.n_restarts += answer.process is process
                if answer.number in verdict.refused:
                    self._end(answer, EngineError(_refusal(work, why)))
            if suspects := [
                self._answers[n] for n in verdict.suspected if n in self._answers
            ]:
                suspects += [a for a in (self._tested, *self._held) if a is not None]
                self._held = deque(dict.fromkeys(suspects))
                self._tested = self._held.popleft()
            for number, called in list(self._calls.items()):
                called.tries += work.name == "call"
                if called.tries >= _TRIES or called.name == "status":
                    del self._calls[number]
                    called.settle(error=EngineError(f"The engine ended: {why}"))
        self._warn(f"The engine ended while {work}: {why}. It is started again")

    def _fail(self, error: Exception) -> None:
        "End everything that waits for the process"
        with self._lock:
            self._held.clear()
            self._tested = None
            for answer in list(self._answers.values()):
                self._end(answer, error)
            calls, self._calls = self._calls, {}
        for called in calls.values():
            called.settle(error=error)

    # -- calls -------------------------------------------------------------

    def _ask(self, called: Called) -> Future[Any]:
        with self._lock:
            if self._stopping and not self._thread.is_alive():
                called.settle(error=UnavailableError())
            else:
                self._send_call(called)
        return called.future

    def _send_call(self, called: Called) -> None:
        number, answer = next(self._numbers), called.answer
        arguments: tuple[Any, ...] = called.arguments
        if self._process.ready and answer is not None:
            if answer.process is not self._process:  # whose rows are gone
                return self._compute_again(called, answer)
            arguments = answer.number, *arguments
        self._calls[number] = called
        self._wanted.notify_all()
        if self._process.ready:
            self._process.send(
                {"call": number, "name": called.name, "arguments": arguments}
            )
        return None

    def _compute_again(self, called: Called, answer: HostedAnswer) -> None:
        "Read an answer that had ended in an earlier process, to store its state"

        def ended(again: HostedAnswer, events: list[Event]) -> None:
            if again.ended and again.error is not None:
                called.settle(error=again.error)
            elif again.ended:
                called.answer = again
                self._send_call(called)

        request = answer.again(next(self._numbers))
        again = answer.copy(request, ended)
        weakref.finalize(again, self._dropped.append, request.number)
        self._answers[again.number] = again
        self._submit(again)

    def _result(self, message: dict[str, Any]) -> None:
        with self._lock:
            called = self._calls.pop(message["call"], None)
        if called is None:
            return
        if "error" in message:
            called.settle(error=error_of(message["error"]))
        else:
            called.settle(message["result"])

    # -- looking after the process -----------------------------------------

    def _look_after(self) -> None:
        last = time.monotonic()
        while not self._stopping:
            time.sleep(_TICK)
            now = time.monotonic()
            if now - last < 5 * _TICK:  # else this process was stopped as well
                self._process.look_after(now)
            last = now
            self._drop()

    def _drop(self) -> None:
        "Tell the process which answers nobody will commit"
        numbers = []
        while self._dropped:
            numbers.append(self._dropped.popleft())
        if numbers:
            self._process.send({"drop": numbers})


def _refusal(work: Work, why: str) -> str:
    return (
        f"This request ended the engine several times while {work} ({why}), so it is "
        "refused"
    )


_NOTHING: dict[str, Any] = {"n_cells": 0, "n_limit": None, "counts": {}}
