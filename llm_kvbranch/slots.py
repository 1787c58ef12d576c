"""The sequences of a context, and what each of them holds.

The idea: a slot is a sequence together with the token ids of its rows. Filling
a slot with tokens keeps what it has in common with them, restores what is
stored, and prefills the rest.

The invariant: ``slot.tokens`` are exactly the rows of the slot's sequence
whenever the slot is not busy, also after an error or Ctrl-C. Rows that may
still be logged are handed over before they are lost.

This module does not know messages, responses or where states are kept.
"""

from __future__ import annotations

import itertools
import time
import weakref
from array import array
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from .engine import Engine, Feed
from .errors import ContextError, StateError
from .index import Chain, Entry, Segment
from .state import common_prefix, tokens_of

BEING_WRITTEN = "state was just being written by another process"
HEADROOM = 512  # cells reserved for an answer whose length is not known

Stop = Callable[[], bool]


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

    ``open_state`` gives an entry's verified payload or raises StateError;
    ``lost`` is told of entries that could not be restored, and why.
    """

    def __init__(
        self,
        engine: Engine,
        open_state: Callable[[Entry], AbstractContextManager[memoryview]],
        lost: Callable[[Entry, str], None],
    ):
        self.engine = engine
        self._open_state = open_state
        self._lost = lost
        self._clock = itertools.count(1)
        self._slots = [Slot(seq) for seq in range(engine.settings.n_seq)]

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
                kept = 0
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
        for segment in chain.segments:
            if segment.end <= len(slot.tokens):
                continue
            try:
                self.reserve(slot, len(slot.tokens) + segment.size)
                begun = time.perf_counter()
                self._restore(slot, tokens, segment)
                took = time.perf_counter() - begun
                filling.reads.append((segment.entry.nbytes, took))
                filling.restored += segment.end - max(segment.start, filling.resident)
            except ContextError as error:  # room for the whole file, that is
                filling.misses.append((segment.entry, str(error)))
                break
            except StateError as error:
                filling.misses.append((segment.entry, str(error)))
                self._lost(segment.entry, str(error))
                if not self.engine.cuts_anywhere:
                    break
                filling.restore_ms += _ms_since(started)
                started = time.perf_counter()
                self.prefill(slot, tokens[: segment.end], stop, logits=False)
                filling.prefill_ms += _ms_since(started)
                started = time.perf_counter()
        filling.restore_ms += _ms_since(started)
        started = time.perf_counter()
        filling.index = self.prefill(slot, tokens, stop)
        filling.prefill_ms += _ms_since(started)
        return filling

    def _share(self, slot: Slot, tokens: array[int]) -> int:
        "Take over what another slot has beyond this one's rows; how many tokens"
        if not self.engine.cuts_anywhere:
            return 0
        begin, end = len(slot.tokens), len(slot.tokens)
        for other in self._slots:
            n = min(common_prefix(other.tokens, tokens), len(tokens) - 1)
            if other is not slot and n > end and n <= self.engine.length(other.seq):
                donor, end = other, n
        if end > begin:
            self.engine.share(donor.seq, slot.seq, begin, end)
            slot.tokens += tokens[begin:end]
        return end - begin

    def _restore(self, slot: Slot, tokens: array[int], segment: Segment) -> None:
        "Append a segment's rows to the slot; raises StateError"
        if not segment.entry.present:
            raise StateError(segment.entry.gone or BEING_WRITTEN)
        state = segment.entry.state
        with self._open_state(segment.entry) as payload:
            if state.origin is not None and not self.engine.is_finite(
                payload, state.start, state.end
            ):
                raise StateError("state payload holds values that are no numbers")
            self.engine.restore(slot.seq, payload, state.start, state.end, segment.end)
        slot.tokens += tokens[len(slot.tokens) : segment.end]

    def prefill(
        self,
        slot: Slot,
        tokens: array[int],
        stop: Stop | None = None,
        logits: bool = True,
    ) -> int:
        "Decode what the slot lacks of the tokens; index of the last one's logits"
        index = -1
        while (begin := len(slot.tokens)) < len(tokens):
            chunk = tokens[begin : begin + self.engine.settings.n_batch]
            last = begin + len(chunk) == len(tokens)
            feed = Feed(slot.seq, begin, chunk, logits=logits and last)
            (index,) = self.engine.decode([feed], stop)
            slot.tokens += chunk
        return index

    def truncate(self, slot: Slot, n: int) -> None:
        """Forget the slot's rows from n on, or all where only that is possible.

        The slot may hold fewer than n tokens afterwards, never more.
        """
        if not self.engine.cut(slot.seq, n):
            self.engine.cut(slot.seq, 0)
            n = 0
        del slot.tokens[n:]

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
