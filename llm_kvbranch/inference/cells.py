"""The sequences of a context, what each of them holds, and the cells that takes.

The idea: a slot is a sequence together with the token ids of its rows. Slots that
begin alike share the cells of their rows; the context is as large as all need, and
grows around them.

The invariant: ``slot.tokens`` are exactly the rows of the slot's sequence
whenever the slot is not busy, also after an error or Ctrl-C. Rows that may
still be logged are handed over before they are lost.

This module does not know where rows come from.
"""

from __future__ import annotations

import contextlib
import itertools
import weakref
from array import array
from dataclasses import dataclass, field
from typing import Any, Protocol

from ..engine import Engine, Kept
from ..errors import BusyError, ContextError, StateError
from ..store import common_prefix, tokens_of
from .resume import GRID, Snapshots

HEADROOM = 512  # cells reserved for an answer whose length is not known


class Waiting(Protocol):
    "Something whose rows are in a slot and not stored yet"

    @property
    def end(self) -> int:
        "Position after its last token"

    def detach(self) -> None:
        "Called before the slot loses the rows"


@dataclass(eq=False)
class Slot:
    """A sequence of the context and the token ids of its rows.

    ``cells`` tells for each row which cell it is: sequences that share rows have
    equal ones. ``response_id`` is the logged response that it ends with, if that is
    known. ``target`` are the tokens that it is being filled with, while it is;
    ``reserved`` is how many it may come to have before it has to ask again.
    """

    seq: int
    tokens: array[int] = field(default_factory=tokens_of)
    cells: array[int] = field(default_factory=lambda: array("q"))
    target: array[int] | None = None
    reserved: int = 0
    response_id: str | None = None
    busy: bool = False
    used: int = 0
    waiting: weakref.WeakSet[Any] = field(default_factory=weakref.WeakSet)
    snapshots: Snapshots = field(default_factory=Snapshots)

    def add(self, tokens: array[int]) -> None:
        "Have rows of some more tokens, in cells of their own"
        self.tokens += tokens
        self.cells.extend(itertools.islice(_cells, len(tokens)))

    def take(self, other: Slot, end: int) -> None:
        "Have the rows of another slot up to an end, too"
        begin = len(self.tokens)
        self.tokens += other.tokens[begin:end]
        self.cells += other.cells[begin:end]

    def drop(self, n: int) -> None:
        "Have no rows from n on"
        if n < len(self.tokens):
            self.response_id = None
        del self.tokens[n:]
        del self.cells[n:]


_cells = itertools.count()


class Cells:
    "All slots of an engine. The caller sees to it that calls do not overlap."

    def __init__(self, engine: Engine):
        self.engine = engine
        self.limit: int | None = None  # of cells, beside what memory allows
        self._clock = itertools.count(1)
        # A later snapshot of a window holds all since the one before
        self._grid = max(GRID, engine.window)
        self._slots = [
            Slot(seq, snapshots=Snapshots(self._grid))
            for seq in range(engine.settings.n_seq)
        ]

    def acquire(self, tokens: array[int]) -> Slot:
        "The idle slot to put the tokens into; raises BusyError if all are busy"
        idle = [slot for slot in self._slots if not slot.busy]
        if not idle:
            raise BusyError(
                f"{len(self._slots)} generations are running, which is the most: "
                "finish one first, or ask for fewer at once"
            )

        def worth(slot: Slot) -> tuple[int, bool, int]:
            "What is kept, if that is not little; else an empty or an old slot"
            kept, whole = common_prefix(slot.tokens, tokens), len(slot.tokens)
            if not self.engine.cuts_anywhere and kept < whole:
                kept = slot.snapshots.last(kept) or 0
            return kept if 2 * kept >= whole else 0, not slot.tokens, -slot.used

        slot = max(idle, key=worth)
        slot.busy, slot.response_id = True, None
        slot.used = next(self._clock)
        return slot

    def release(self, slot: Slot) -> None:
        "Give a slot back, corrected to what its sequence really holds"
        held = self.engine.length(slot.seq)
        if held != len(slot.tokens):
            self.truncate(slot, min(held, len(slot.tokens)))
        slot.busy, slot.reserved = False, 0

    def _share(self, slot: Slot, tokens: array[int]) -> int:
        "Take over what another slot has beyond this one's rows; how many tokens"
        begin, end = len(slot.tokens), len(slot.tokens)
        for other in self._slots:
            n = min(common_prefix(other.tokens, tokens), len(tokens) - 1)
            if not self.engine.cuts_anywhere:
                n = other.snapshots.last(n) or 0
            if other is not slot and n > end and n <= self.engine.length(other.seq):
                donor, end = other, n
        if end > begin:
            self.engine.share(donor.seq, slot.seq, begin, end)
            slot.take(donor, end)
            if not self.engine.cuts_anywhere:
                slot.snapshots.add(end, donor.snapshots.taken[end], keep=True)
                return max(0, self._roll_back(slot, end) - begin)
        return end - begin

    def truncate(self, slot: Slot, n: int) -> None:
        """Forget the slot's rows from n on, or from the last snapshot before.

        The slot may hold fewer than n tokens afterwards, never more.
        """
        if self.engine.cut(slot.seq, n):
            slot.drop(n)
            slot.snapshots.forget_after(n)
        else:
            self._roll_back(slot, n)

    def _roll_back(self, slot: Slot, n: int) -> int:
        "Go back to the last snapshot up to n, or to the beginning; where that is"
        slot.snapshots.forget_after(n)
        at = slot.snapshots.last(n)
        if at is not None:
            with contextlib.suppress(StateError):
                snapshot = memoryview(slot.snapshots.taken[at])
                self.engine.resume(slot.seq, snapshot, at)
                slot.drop(at)
                return at
        self._clear(slot)
        return 0

    def _clear(self, slot: Slot) -> None:
        self.engine.cut(slot.seq, 0)
        slot.drop(0)
        slot.snapshots = Snapshots(self._grid)

    def reserve(self, slot: Slot, n: int) -> None:
        """Make room for n tokens in the slot.

        Idle slots are given up before the context grows, the longest unused
        first: memory is dearer than restoring them from disk. Raises ContextError
        when there is no room, BusyError when others have to end first.
        """
        before, slot.reserved = slot.reserved, max(slot.reserved, n)
        idle = [s for s in self._slots if s.tokens and not s.busy and s is not slot]
        for other in sorted(idle, key=lambda s: s.used):
            if self._n_cells() <= self.engine.n_ctx:
                break
            self._settle(other, 0)
            self.truncate(other, 0)
        try:
            if (needed := self._n_cells()) > self.engine.n_ctx:
                self._enlarge(needed)
        except ContextError:
            slot.reserved = before
            raise

    def all(self) -> list[Slot]:
        return list(self._slots)

    def n_used(self) -> int:
        "Cells that the slots' rows take"
        rows = [slot.cells for slot in self._slots if slot.cells]
        return len(set().union(*rows)) if len(rows) > 1 else sum(map(len, rows))

    def n_shared(self, slot: Slot) -> int:
        "Rows of a slot that others have, too"
        return max(
            (common_prefix(s.cells, slot.cells) for s in self._slots if s is not slot),
            default=0,
        )

    def _n_cells(self) -> int:
        "Cells that rows take, and those that are promised to busy slots"
        return self.n_used() + sum(
            max(0, s.reserved - len(s.tokens)) for s in self._slots
        )

    def _enlarge(self, n_cells: int) -> None:
        "Make the context larger; rows that slots share stay shared"
        if self.limit is not None and n_cells > self.limit:
            if sum(slot.busy for slot in self._slots) > 1:
                raise BusyError(
                    f"The context of {self.limit:,} tokens is taken by generations "
                    "that are running: finish one first, or give it more"
                )
            raise ContextError(
                f"{n_cells:,} tokens do not fit the context of {self.limit:,}: "
                "give it more, or shorten the prompt"
            )
        live: list[Kept] = []
        before: list[Slot] = []
        for slot in self._slots:
            if not slot.tokens:
                continue
            shares = [(common_prefix(s.cells, slot.cells), s.seq) for s in before]
            n, donor = max(shares, default=(0, -1))
            live.append(Kept(slot.seq, donor, n))
            before.append(slot)
        self.engine.reserve(n_cells, live)
        if not self.engine.cuts_anywhere:  # all have cells of their own now
            for slot in self._slots:
                slot.cells = array("q", itertools.islice(_cells, len(slot.tokens)))

    def grow(self, slot: Slot, n: int, limit: int) -> None:
        "Make room for n tokens in the slot, and for more to come below the limit"
        if n <= slot.reserved:
            return
        try:
            self.reserve(slot, min(limit, n + max(HEADROOM, n // 2)))
        except ContextError:
            self.reserve(slot, n)

    def _settle(self, slot: Slot, n: int) -> None:
        "Before rows from n on are lost: hand over those that may still be logged"
        waiting: list[Waiting] = list(slot.waiting)
        for one in waiting:
            if n < one.end or not self.engine.cuts_anywhere:
                one.detach()
                slot.waiting.discard(one)
