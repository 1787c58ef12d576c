"""Which of the tokens that generations need are decoded in the next batch.

The idea: every batch has the next token of every answer. The room that is left is
shared by the prompts that are being prefilled. While there are answers, prompts are
prefilled in pieces that take a tenth of a second, so that no answer stands still.

This module decides; it does not touch llama.cpp.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

from ..engine import Feed

_SECONDS = 0.1  # that an answer may have to wait for prompts
_PATIENCE = 0.3  # seconds; a batch that takes longer can be stopped
_LEAST = 8  # tokens of prompts in a batch: fewer are not much faster
_ENDLESS, _TIMES = 60.0, 50  # seconds, and times as long as it should take
_MEASURED = 8  # tokens; the time of fewer says little about the rate


class Reader(Protocol):
    "What batching needs to know about a generation"

    @property
    def feed(self) -> Feed | None:
        "The tokens that it needs decoded next, None while it needs nothing"

    @property
    def is_answering(self) -> bool:
        "Whether its prompt is read, and it generates token by token"


AnyReader = TypeVar("AnyReader", bound=Reader)


class Pace:
    "How many tokens of prompts are prefilled in how much time"

    def __init__(self, n_batch: int):
        self._n_batch = n_batch
        self._rate = 0.0  # tokens per second

    def chunk(self) -> int:
        "The most tokens of prompts in a batch that has answers too"
        return max(_LEAST, min(self._n_batch, round(self._rate * _SECONDS)))

    def takes_long(self, n: int) -> bool:
        "Whether a batch with n tokens of prompts should be one that can be stopped"
        return n > self._rate * _PATIENCE

    def seconds_at_most(self, n: int) -> float | None:
        "After how many seconds a batch with n tokens counts as endless, if it is known"
        return _ENDLESS + _TIMES * n / self._rate if self._rate else None

    def measured(self, n: int, seconds: float) -> None:
        "Record how long a batch with n tokens of prompts took"
        if n >= _MEASURED:
            rate = n / max(seconds, 1e-6)
            self._rate = rate if not self._rate else (self._rate + rate) / 2


def choose(
    readers: Sequence[AnyReader], n_batch: int, chunk: int
) -> list[tuple[AnyReader, Feed]]:
    """The feeds, or the beginnings of feeds, that go into the next batch.

    A batch has at most ``n_batch`` tokens, and at most ``chunk`` tokens of prompts if
    it has answers too.
    """
    fed = [(r, r.feed) for r in readers if r.feed is not None]
    answers = [(r, feed) for r, feed in fed if len(feed.tokens) == 1][:n_batch]
    prompts = [(r, feed) for r, feed in fed if len(feed.tokens) > 1]
    room = n_batch - len(answers)
    if any(r.is_answering for r, _ in answers):
        room = min(room, chunk)
    chosen = list(answers)
    prompts.sort(key=lambda pair: len(pair[1].tokens))
    for i, (reader, feed) in enumerate(prompts):
        n = min(len(feed.tokens), -(-room // (len(prompts) - i)))
        if n:
            chosen.append((reader, _beginning(feed, n)))
            room -= n
    return chosen


def _beginning(feed: Feed, n: int) -> Feed:
    if n == len(feed.tokens):
        return feed
    return Feed(feed.seq, feed.start, feed.tokens[:n], logits=False)


@contextlib.contextmanager
def interruptible(
    cancelled: Callable[[], bool], takes_long: bool
) -> Iterator[Callable[[], bool] | None]:
    """A function that stops a decode after Ctrl-C; None for a decode that is short.

    Python raises KeyboardInterrupt only between its own instructions, but a prefill
    can spend seconds inside llama.cpp, which calls this function instead. It does so
    some hundred times, which costs a twentieth of the time of one token.
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
