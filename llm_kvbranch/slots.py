"""The sequences of a context, and what each of them holds.

The idea: a slot is a sequence together with the token ids of its rows. Filling
a slot with tokens keeps what it has in common with them, restores what is
stored, and prefills the rest. Where rows alone are not enough to go on from,
snapshots are taken on the way and used to go back.

The invariant: ``slot.tokens`` are exactly the rows of the slot's sequence
whenever the slot is not busy, also after an error or Ctrl-C. Rows that may
still be logged are handed over before they are lost.

This module does not know messages, responses or where states are kept.
"""

from __future__ import annotations

import contextlib
import itertools
import time
import weakref
from array import array
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from .engine import Engine, Feed
from .errors import ContextError, StateError
from .index import Chain, Entry, Segment
from .resume import GRID, Snapshots, Step, resumable, steps
from .state import State, common_prefix, tokens_of

BEING_WRITTEN = "state was just being written by another process"
HEADROOM = 512  # cells reserved for an answer whose length is not known

Stop = Callable[[], bool]
OpenState = Callable[
    [Entry, Sequence[int]],
    AbstractContextManager[tuple[memoryview, dict[int, memoryview]]],
]


class Waiting(Protocol):
    "Something whose rows are in a slot and not stored yet"

    @property
    def end(self) -> int:
        "Position after its last token"

    def detach(self) -> None:
        "Called before the slot loses the rows"


@dataclass(eq=False)
class Slot:
    "A sequence of the context and the token ids of its rows"

    seq: int
    tokens: array[int] = field(default_factory=tokens_of)
    busy: bool = False
    used: int = 0
    waiting: weakref.WeakSet[Any] = field(default_factory=weakref.WeakSet)
    snapshots: Snapshots = field(default_factory=Snapshots)


@dataclass
class Filling:
    "How a slot was filled: tokens in memory, tokens restored, misses"

    resident: int = 0
    shared: int = 0  # of the resident ones: rows of other slots
    restored: int = 0
    misses: list[tuple[Entry, str]] = field(default_factory=list)
    reads: list[tuple[int, float]] = field(default_factory=list)  # (bytes, seconds)
    restore_ms: float = 0.0
    prefill_ms: float = 0.0
    index: int = -1


class Slots:
    """All slots of an engine. The caller sees to it that calls do not overlap.

    ``open_state`` gives an entry's verified payload, and its snapshots at some
    positions, or raises StateError; ``lost`` is told of entries that could not be
    restored, and why.
    """

    def __init__(
        self,
        engine: Engine,
        open_state: OpenState,
        lost: Callable[[Entry, str], None],
    ):
        self.engine = engine
        self._open_state = open_state
        self._lost = lost
        self._clock = itertools.count(1)
        # A later snapshot of a window holds all since the one before
        self._grid = max(GRID, engine.window)
        self._slots = [
            Slot(seq, snapshots=Snapshots(self._grid))
            for seq in range(engine.settings.n_seq)
        ]

    def acquire(self, tokens: array[int]) -> Slot:
        "The idle slot to put the tokens into; raises ContextError if all are busy"
        idle = [slot for slot in self._slots if not slot.busy]
        if not idle:
            raise ContextError(
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
        slot.busy = True
        slot.used = next(self._clock)
        return slot

    def release(self, slot: Slot) -> None:
        "Give a slot back, corrected to what its sequence really holds"
        held = self.engine.length(slot.seq)
        if held != len(slot.tokens):
            self.truncate(slot, min(held, len(slot.tokens)))
        slot.busy = False

    def fill(
        self, slot: Slot, tokens: array[int], chain: Chain, stop: Stop | None = None
    ) -> Filling:
        """Make the slot hold exactly the tokens; logits of the last one.

        ``chain`` says which of them are stored. Raises KeyboardInterrupt when
        ``stop`` says so.
        """
        filling = Filling()
        started = time.perf_counter()
        held = self.engine.length(slot.seq)  # fewer, should a context be lost
        resident = min(common_prefix(slot.tokens, tokens), held, len(tokens) - 1)
        self._settle(slot, resident)
        self.truncate(slot, resident)
        filling.shared = self._share(slot, tokens)
        filling.resident = len(slot.tokens)
        if self.engine.cuts_anywhere:
            started = self._restore_chain(slot, tokens, chain, filling, started, stop)
        else:
            self._restore_whole(slot, tokens, chain, filling)
        filling.restore_ms += _ms_since(started)
        started = time.perf_counter()
        filling.index = self.prefill(slot, tokens, stop, prompt=True)
        filling.prefill_ms += _ms_since(started)
        return filling

    def _restore_chain(
        self,
        slot: Slot,
        tokens: array[int],
        chain: Chain,
        filling: Filling,
        started: float,
        stop: Stop | None,
    ) -> float:
        "Restore what can be, and prefill between; since when the rest is restored"
        for segment in chain.segments:
            if segment.end <= len(slot.tokens):
                continue
            try:
                self._restore(slot, tokens, segment, filling)
            except ContextError as error:  # room for the whole file, that is
                filling.misses.append((segment.entry, str(error)))
                break
            except StateError as error:
                filling.misses.append((segment.entry, str(error)))
                self._lost(segment.entry, str(error))
                filling.restore_ms += _ms_since(started)
                started = time.perf_counter()
                self.prefill(slot, tokens[: segment.end], stop, logits=False)
                filling.prefill_ms += _ms_since(started)
                started = time.perf_counter()
        return started

    def _restore_whole(
        self, slot: Slot, tokens: array[int], chain: Chain, filling: Filling
    ) -> None:
        """Restore a chain's rows, and by snapshots what makes them complete.

        If a file fails, what came before it is restored as if that were all.
        """
        window, resident = self.engine.window, len(slot.tokens)
        while len(chain.tokens) > resident:
            todo = steps(chain.segments, window, resident)
            segment = chain.segments[0]
            try:
                for segment in chain.segments:
                    if segment.end > len(slot.tokens) and not self._restore(
                        slot, tokens, segment, filling, todo
                    ):
                        break
            except (ContextError, StateError) as error:
                filling.misses.append((segment.entry, str(error)))
                if isinstance(error, StateError):
                    self._lost(segment.entry, str(error))
                self._clear(slot)
                filling.resident = filling.shared = resident = 0
                chain = chain.before([segment.entry])
                chain = chain.cut(resumable(chain.segments, window))
            else:
                break
        filling.restored = len(slot.tokens) - filling.resident

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
            slot.tokens += tokens[begin:end]
            if not self.engine.cuts_anywhere:
                slot.snapshots.add(end, donor.snapshots.taken[end], keep=True)
                return max(0, self._roll_back(slot, end) - begin)
        return end - begin

    def _restore(
        self,
        slot: Slot,
        tokens: array[int],
        segment: Segment,
        filling: Filling,
        todo: Sequence[Step] = (),
    ) -> bool:
        """Append a segment's rows to the slot, and take the steps that are its own.

        False where they could not be taken to the end: the slot then holds what can
        be gone on from. Raises StateError.
        """
        if not segment.entry.present:
            raise StateError(segment.entry.gone or BEING_WRITTEN)
        self.reserve(slot, len(slot.tokens) + segment.size)
        begun, begin = time.perf_counter(), len(slot.tokens)
        state = segment.entry.state
        own = [step for step in todo if step.segment is segment]
        marks = [step.mark for step in own]
        with self._open_state(segment.entry, marks) as (payload, snapshots):
            if state.origin is not None and not self._is_finite(
                state, payload, snapshots
            ):
                raise StateError("state payload holds values that are no numbers")
            self.engine.restore(
                slot.seq, payload, state.start, state.end, segment.end, begin
            )
            slot.tokens += tokens[begin : segment.end]
            for step in own:
                if not self._take(slot, step, snapshots[step.mark]):
                    return False
        took = time.perf_counter() - begun
        filling.reads.append((segment.entry.nbytes, took))
        filling.restored += segment.end - begin
        return True

    def _take(self, slot: Slot, step: Step, snapshot: memoryview) -> bool:
        "Do what a step says, the rows being there"
        engine = self.engine
        if step.begin is None:
            engine.resume(slot.seq, snapshot, step.mark, cut=False)
        elif not engine.slide(slot.seq, snapshot, step.mark, step.begin, step.upto):
            del slot.tokens[step.begin :]
            return False
        return True

    def _is_finite(
        self, state: State, payload: memoryview, snapshots: dict[int, memoryview]
    ) -> bool:
        return self.engine.is_finite(payload, state.start, state.end) and all(
            self.engine.is_finite_snapshot(snapshot, mark)
            for mark, snapshot in snapshots.items()
        )

    def prefill(
        self,
        slot: Slot,
        tokens: array[int],
        stop: Stop | None = None,
        logits: bool = True,
        prompt: bool = False,
    ) -> int:
        """Decode what the slot lacks of the tokens; index of the last one's logits.

        Of a prompt snapshots are taken where its like may be gone on from.
        """
        index, first = -1, len(slot.tokens)
        snaps = prompt and not self.engine.cuts_anywhere
        while (begin := len(slot.tokens)) < len(tokens):
            stop_at = slot.snapshots.next_stop(begin, first, len(tokens))
            end = begin + self.engine.settings.n_batch
            end = min(end, stop_at if snaps else len(tokens))
            last = end == len(tokens)
            feed = Feed(slot.seq, begin, tokens[begin:end], logits=logits and last)
            (index,) = self.engine.decode([feed], stop)
            slot.tokens += feed.tokens
            if snaps and end == stop_at < len(tokens):
                self._snap(slot, end == len(tokens) - 1)
        return index

    def stepped(self, slot: Slot) -> None:
        "Told that a token of an answer was decoded"
        if not self.engine.cuts_anywhere and slot.snapshots.is_due(len(slot.tokens)):
            self._snap(slot)

    def _snap(self, slot: Slot, keep: bool = False) -> None:
        data = self.engine.snapshot(slot.seq)
        slot.snapshots.add(len(slot.tokens), data, keep)

    def truncate(self, slot: Slot, n: int) -> None:
        """Forget the slot's rows from n on, or from the last snapshot before.

        The slot may hold fewer than n tokens afterwards, never more.
        """
        if self.engine.cut(slot.seq, n):
            del slot.tokens[n:]
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
                del slot.tokens[at:]
                return at
        self._clear(slot)
        return 0

    def _clear(self, slot: Slot) -> None:
        self.engine.cut(slot.seq, 0)
        del slot.tokens[:]
        slot.snapshots = Snapshots(self._grid)

    def reserve(self, slot: Slot, n: int) -> None:
        """Make room for n tokens in the slot; raises ContextError.

        Idle slots are given up before the context grows, the longest unused
        first: memory is dearer than restoring them from disk.
        """
        idle = [s for s in self._slots if s.tokens and not s.busy and s is not slot]
        for other in sorted(idle, key=lambda s: s.used):
            if n + self._others(slot) <= self.engine.n_ctx:
                break
            self._settle(other, 0)
            self.truncate(other, 0)
        self.engine.reserve(
            n + self._others(slot), [s.seq for s in self._slots if s.tokens]
        )

    def grow(self, slot: Slot, n: int, limit: int) -> None:
        "Make room for n tokens in the slot, and for more to come below the limit"
        if n + self._others(slot) > self.engine.n_ctx:
            self.reserve(slot, min(limit, n + max(HEADROOM, n // 2)))

    def _others(self, slot: Slot) -> int:
        return sum(len(s.tokens) for s in self._slots if s is not slot)

    def _settle(self, slot: Slot, n: int) -> None:
        "Before rows from n on are lost: hand over those that may still be logged"
        waiting: list[Waiting] = list(slot.waiting)
        for one in waiting:
            if n < one.end or not self.engine.cuts_anywhere:
                one.detach()
                slot.waiting.discard(one)


def _ms_since(started: float) -> float:
    return (time.perf_counter() - started) * 1000
