"""Which of the tokens that generations wait for are decoded next, together.

The idea: every answer gets its next token in every batch, and what room is left is
shared by the prompts that are being read. While answers are running, prompts are
read in pieces that take a tenth of a second, so that no answer stands still.

This module decides; it does not touch llama.cpp.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

from ..engine import Feed

_SECONDS = 0.1  # that an answer may wait while prompts are read
_PATIENCE = 0.3  # seconds that a batch takes to its end, though it was given up
_LEAST = 8  # tokens of prompts in a batch: fewer are not much faster
_MEASURED = 8  # tokens that say something of the rate


class Reader(Protocol):
    "What reads a prompt or generates an answer, as far as batches are concerned"

    @property
    def feed(self) -> Feed | None:
        "The tokens that it needs decoded next, None while it needs nothing"

    @property
    def is_answering(self) -> bool:
        "Whether its prompt is read, and it generates token by token"


Who = TypeVar("Who", bound=Reader)


class Pace:
    "How many tokens of prompts may be decoded in one batch with answers"

    def __init__(self, n_batch: int):
        self._n_batch = n_batch
        self._rate = 0.0  # tokens a second

    def chunk(self) -> int:
        return max(_LEAST, min(self._n_batch, round(self._rate * _SECONDS)))

    def takes_long(self, n: int) -> bool:
        "Whether a batch with so many tokens of prompts may be waited for in vain"
        return n > self._rate * _PATIENCE

    def measured(self, n: int, seconds: float) -> None:
        "Told that a batch with so many tokens of prompts took so long"
        if n >= _MEASURED:
            rate = n / max(seconds, 1e-6)
            self._rate = rate if not self._rate else (self._rate + rate) / 2


def choose(readers: Sequence[Who], n_batch: int, chunk: int) -> list[tuple[Who, Feed]]:
    """The feeds, or beginnings of them, that go into the next batch.

    ``n_batch`` is the most tokens of a batch, ``chunk`` the most tokens of prompts
    in one that has answers, too.
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
    """A stop function for a long decode that Ctrl-C makes true; None for a short one.

    Python delivers KeyboardInterrupt only between its own instructions; a
    prefill can take seconds inside llama.cpp, which asks this function instead.
    It asks some hundred times, which takes a twentieth of the time of one token.
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
