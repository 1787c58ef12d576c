"""Which of the tokens that generations need are decoded in the next batch.

The idea: every batch has the next token of every answer. The room that is left goes to
the prompt with the fewest tokens left, then to the next: one after the other, prompts
are answered sooner on average than side by side. While there are answers, a batch
reads as much of the prompts as is predicted to take the time for which answers may
stand still.

The invariants: each batch reads some of a prompt, if there is one. Where a kernel
computes whole tiles of rows, batches have whole tiles. A prompt is never left with
fewer tokens than have to be computed together.

This module decides; it does not touch llama.cpp.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from ..engine import Classes, Feed
from .costs import Costs, Shape

PAUSE = 0.3  # seconds that answers may stand still while prompts are read
PIECE = 0.5  # seconds that others wait for a prompt whose client has gone
_PATIENCE = 0.3  # seconds; a batch that takes longer can be stopped
_LEAST = 8  # tokens of prompts in a batch: fewer are not much faster
_STRETCH = 1.5  # times the limit that one batch may take if it evens out the rest
_ANY = Classes()


class Reader(Protocol):
    "What batching needs to know about a generation"

    @property
    def feed(self) -> Feed | None:
        "The tokens that it needs decoded next, None while it needs nothing"

    @property
    def is_answering(self) -> bool:
        "Whether its prompt is read, and it generates token by token"

    @property
    def n_left(self) -> int:
        "How many tokens of its prompt are not read yet, its feed's included"


AnyReader = TypeVar("AnyReader", bound=Reader)


@dataclass(frozen=True)
class Kernel:
    """How batches are computed.

    At most ``n_batch`` rows together, in tiles of ``tile`` rows, 1 where it has none.
    All rows of a prompt have to be computed in batches of the same of the ``classes``.
    """

    n_batch: int
    tile: int = 1
    classes: Classes = _ANY


@dataclass(frozen=True)
class Limits:
    """How many seconds a batch may take that reads prompts.

    ``beside`` answers, which stand still meanwhile; ``alone`` where there are none,
    None for no limit.
    """

    beside: float = PAUSE
    alone: float | None = None


def shape_of(feeds: Sequence[Feed]) -> Shape:
    shape = Shape()
    for feed in feeds:
        shape = shape.and_rows(feed.start, len(feed.tokens))
    return shape


def takes_long(feeds: Sequence[Feed], costs: Costs) -> bool:
    "Whether a batch should be one that can be stopped"
    if all(len(feed.tokens) == 1 for feed in feeds):
        return False
    seconds = costs.seconds(shape_of(feeds))
    return seconds is None or seconds > _PATIENCE


def choose(
    readers: Sequence[AnyReader],
    kernel: Kernel,
    limits: Limits,
    costs: Costs,
    eldest_first: bool = False,
) -> list[tuple[AnyReader, Feed]]:
    """The feeds, or the beginnings of feeds, that go into the next batch.

    The first of the readers has waited longest. With ``eldest_first`` its prompt is
    read before shorter ones: if that is so every now and then, none waits for ever.
    """
    fed = [(r, r.feed) for r in readers if r.feed is not None]
    chosen = [(r, feed) for r, feed in fed if len(feed.tokens) == 1][: kernel.n_batch]
    prompts = [(r, feed) for r, feed in fed if len(feed.tokens) > 1]
    is_answering = any(r.is_answering for r, _ in chosen)
    limit = limits.beside if is_answering else limits.alone
    shape = shape_of([feed for _, feed in chosen])
    eldest = prompts[0] if prompts and eldest_first else None
    prompts.sort(key=lambda pair: (pair is not eldest, pair[0].n_left))
    room, has_read = _Room(kernel, limit, costs), False
    for reader, feed in prompts:
        n = room.rows(shape, feed, reader.n_left, has_read)
        if n:
            chosen.append((reader, _beginning(feed, n)))
            shape, has_read = shape.and_rows(feed.start, n), True
    return chosen


@dataclass(frozen=True)
class _Room:
    "How much of a prompt goes into a batch that has other rows already"

    kernel: Kernel
    limit: float | None
    costs: Costs

    def rows(self, before: Shape, feed: Feed, left: int, has_read: bool) -> int:
        "Rows of a feed; ``has_read`` if another prompt is in the batch, so 0 is fine"
        most = min(len(feed.tokens), self.kernel.n_batch - before.rows)
        n = self._within_limit(before, feed.start, most, has_read)
        if not n or n >= left:
            return n
        return self._leaving_enough(n, before, feed.start, left, most)

    def _within_limit(
        self, before: Shape, start: int, most: int, has_read: bool
    ) -> int:
        if self.limit is None:
            return most
        step = self._step(before)
        n = fitting = 0
        while fitting < most:
            n += step if n == 0 else max(self.kernel.tile, _LEAST)
            if not self._fits(before.and_rows(start, min(n, most))):
                break
            fitting = n
        return min(fitting or (0 if has_read else step), most)

    def _step(self, before: Shape) -> int:
        "Rows that fill a tile, together with those before them"
        tile = self.kernel.tile
        return tile - before.rows % tile if tile > 1 else _LEAST

    def _leaving_enough(
        self, n: int, before: Shape, start: int, left: int, most: int
    ) -> int:
        "About n rows, so that what is left of the prompt can be computed together"
        together, tile = self.kernel.classes.least(left), self.kernel.tile
        step = self._step(before)
        if n == step < left - together and tile > 1 and self.limit is not None:
            # Tile after tile: what they do not divide is read now if that fits. A row
            # costs least at the start
            over = (left - together) % step
            if n + over <= most and self._fits(
                before.and_rows(start, n + over), _STRETCH
            ):
                return n + over
        if left - n >= together:
            return n
        fewer = left - together
        if fewer > 0 and before.rows + fewer >= together:
            return fewer
        return left if left <= most else n

    def _fits(self, shape: Shape, stretch: float = 1.0) -> bool:
        seconds = self.costs.seconds(shape)
        limit = self.limit
        return limit is None or (seconds is not None and seconds <= stretch * limit)


def _beginning(feed: Feed, n: int) -> Feed:
    if n == len(feed.tokens):
        return feed
    return Feed(feed.seq, feed.start, feed.tokens[:n], logits=False)
