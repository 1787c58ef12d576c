"""A time limit for reading a log on behalf of somebody else.

The idea: whoever reads for a visitor does it inside ``limited``. SQLite asks the
deadline every few hundred steps of a query, and our own loops over rows ask it with
``check`` or ``checked``. A command reads without a deadline, and asking costs nothing.

The invariant: what a deadline cut short never looks like a result.

This module does not know who is waiting, or where the limit comes from.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from typing import Any, TypeVar

from ..errors import TimeLimitError

T = TypeVar("T")
_STEPS = 500  # of SQLite's virtual machine, some 0.05 ms
_current: ContextVar[Deadline | None] = ContextVar("deadline", default=None)


class Deadline:
    "How long some work may take; the time runs from when ``limited`` begins it"

    def __init__(self, seconds: float):
        self.seconds = seconds
        self._end: float | None = None
        self._is_cancelled = False
        self.has_ended_work = False

    def begin(self) -> None:
        self._end = time.monotonic() + self.seconds

    def cancel(self) -> None:
        "End the work soon, whoever does it; from any thread"
        self._is_cancelled = True

    def is_over(self) -> bool:
        "Whether the work must end; once it must, it is never a success"
        late = self._end is not None and time.monotonic() >= self._end
        self.has_ended_work = self.has_ended_work or self._is_cancelled or late
        return self.has_ended_work

    def check(self) -> None:
        "Raises TimeLimitError once it is over"
        if self.is_over():
            raise self.error

    @property
    def error(self) -> TimeLimitError:
        return TimeLimitError(
            f"This took longer than the limit of {1000 * self.seconds:,.0f} ms"
        )


@contextlib.contextmanager
def limited(deadline: Deadline, connection: Any) -> Iterator[None]:
    "Do some work with a database before a deadline; raises TimeLimitError"
    token = _current.set(deadline)
    try:
        deadline.begin()
        deadline.check()
        with interrupting(connection):
            yield
    finally:
        _current.reset(token)


@contextlib.contextmanager
def interrupting(connection: Any) -> Iterator[None]:
    """Interrupt the queries of a database at the deadline, if there is one.

    Raises TimeLimitError then, whatever became of the query's own error.
    """
    deadline = _current.get()
    if deadline is None:
        yield
        return
    connection.set_progress_handler(deadline.is_over, _STEPS)
    try:
        yield
    except Exception:
        if deadline.has_ended_work:
            raise deadline.error from None
        raise
    finally:
        connection.set_progress_handler(None, _STEPS)
    if deadline.has_ended_work:
        raise deadline.error


def check() -> None:
    "Raises TimeLimitError if there is a deadline and it is over"
    deadline = _current.get()
    if deadline is not None:
        deadline.check()


def checked(items: Iterable[T]) -> Iterator[T]:
    "Some items, with a check before each"
    for item in items:
        check()
        yield item
