"""What fills the sequences of a context: rows from memory, from disk, and decoded.

The idea: filling a slot with tokens keeps what it has in common with them, shares
what another slot has, restores what is stored, and prefills the rest. Where rows
alone are not enough to go on from, snapshots are taken on the way and used to go
back.

What has to be decoded is not decoded here: it is yielded as feeds, of which any
beginning may be decoded next, in a batch with those of other slots.

This module does not know messages, responses or where states are kept.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TypeVar

from ..engine import Engine, Feed
from ..errors import ContextError, StateError
from ..store import Chain, Check, Entry, Segment, State, common_prefix
from .cells import Cells, Slot
from .resume import Step, resumable, steps

BEING_WRITTEN = "state was just being written by another process"
_WORTH_WAITING = 32  # tokens that someone else is reading just now

OpenState = Callable[
    [Entry, Sequence[int], Check | None],
    AbstractContextManager[tuple[memoryview, dict[int, memoryview]]],
]


@dataclass(frozen=True)
class Done:
    """What became of a feed: its first ``n`` tokens were decoded.

    ``token`` was drawn from the logits of the last one, if that was decoded and its
    logits were wanted; ``seconds`` is the feed's share of the batch's time.
    """

    n: int = 0
    token: int | None = None
    seconds: float = 0.0


Result = TypeVar("Result")
# Feeds to be decoded, or None while there is something to wait for
Work = Generator[Feed | None, Done, Result]


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
    token: int | None = None  # drawn after the last one


class Slots(Cells):
    """All slots of an engine. The caller sees to it that calls do not overlap.

    ``open_state`` gives an entry's payload, which is verified when a check, if given,
    is settled, and its snapshots at some positions, or raises StateError; ``lost`` is
    told of entries that could not be restored, and why, and ``prefetch`` of those that
    will be opened after another.
    """

    def __init__(
        self,
        engine: Engine,
        open_state: OpenState,
        lost: Callable[[Entry, str], None],
        prefetch: Callable[[list[Entry]], None] = lambda _: None,
    ):
        super().__init__(engine)
        self._open_state = open_state
        self._lost = lost
        self._prefetch = prefetch

    def fill(
        self,
        slot: Slot,
        tokens: array[int],
        chain: Chain,
        n_cells: int = 0,
        logits: bool = True,
    ) -> Work[Filling]:
        """Make the slot hold exactly the tokens.

        ``chain`` says which of them are stored. Room for ``n_cells`` tokens is made
        in the slot. With ``logits`` a token is drawn after the last one. Raises
        ContextError when there is no room.
        """
        filling = Filling()
        started = time.perf_counter()
        held = self.engine.length(slot.seq)  # fewer, should a context be lost
        resident = min(common_prefix(slot.tokens, tokens), held, len(tokens) - 1)
        self._settle(slot, resident)
        self.truncate(slot, resident)
        slot.target = tokens
        try:
            filling.shared = self._share(slot, tokens)
            filling.resident = len(slot.tokens)
            self.reserve(slot, max(n_cells, len(tokens)))
            filling.restore_ms += _ms_since(started)
            if self.engine.cuts_anywhere:
                yield from self._restore_chain(slot, tokens, chain, filling)
            else:
                started = time.perf_counter()
                self._restore_whole(slot, tokens, chain, filling)
                filling.restore_ms += _ms_since(started)
            filling.token = yield from self.prefill(slot, tokens, filling, logits)
        finally:
            slot.target = None
        return filling

    def _restore_chain(
        self, slot: Slot, tokens: array[int], chain: Chain, filling: Filling
    ) -> Work[None]:
        "Restore what can be, and prefill between"
        wanted = [s.entry for s in chain.segments if s.end > len(slot.tokens)]
        self._prefetch(wanted[1:])  # while the first is read
        for segment in chain.segments:
            if segment.end <= len(slot.tokens):
                continue
            started = time.perf_counter()
            lost = ""
            try:
                self._restore(slot, tokens, segment, filling)
            except ContextError as error:  # room for the whole file, that is
                filling.misses.append((segment.entry, str(error)))
                break
            except StateError as error:
                lost = str(error)
                filling.misses.append((segment.entry, lost))
                self._lost(segment.entry, lost)
            filling.restore_ms += _ms_since(started)
            if lost:
                missing = tokens[: segment.end]
                yield from self.decode(slot, missing, filling, logits=False)

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
        check = Check()
        with self._open_state(segment.entry, marks, check) as (payload, snapshots):
            if state.origin is not None:
                check.settle()
                if not self._is_finite(state, payload, snapshots):
                    raise StateError("state payload holds values that are no numbers")
            self.engine.restore(
                *(slot.seq, payload, state.start, state.end, segment.end, begin),
                check=check.settle,
            )
            slot.add(tokens[begin : segment.end])
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
            slot.drop(step.begin)
            return False
        return True

    def _is_finite(
        self, state: State, payload: memoryview, snapshots: dict[int, memoryview]
    ) -> bool:
        return self.engine.is_finite(payload, state.start, state.end) and all(
            self.engine.is_finite_snapshot(snapshot, mark)
            for mark, snapshot in snapshots.items()
        )

    def decode(
        self,
        slot: Slot,
        tokens: array[int],
        filling: Filling | None = None,
        logits: bool = True,
    ) -> Work[int | None]:
        "Decode what the slot lacks of the tokens; the token drawn after the last one"
        token = None
        while (begin := len(slot.tokens)) < len(tokens):
            end = min(begin + self.engine.settings.n_batch, len(tokens))
            token = yield from self._feed(slot, tokens, end, filling, logits)
        return token

    def prefill(
        self, slot: Slot, tokens: array[int], filling: Filling, logits: bool = True
    ) -> Work[int | None]:
        """The same for a prompt.

        What another slot is reading just now is waited for, and snapshots are taken
        where the like of the prompt may be gone on from.
        """
        token, first, worth = None, len(slot.tokens), _WORTH_WAITING
        while (begin := len(slot.tokens)) < len(tokens):
            if self._is_read_elsewhere(slot, tokens, worth):
                worth = 1  # to the end, having waited so long
                yield None
                n = self._share(slot, tokens)
                filling.shared += n
                filling.resident += n
                continue
            stop = len(tokens)
            if not self.engine.cuts_anywhere:
                stop = slot.snapshots.next_stop(begin, first, len(tokens))
            end = min(begin + self.engine.settings.n_batch, stop)
            token = yield from self._feed(slot, tokens, end, filling, logits)
            if len(slot.tokens) == stop < len(tokens):
                self._snap(slot, stop == len(tokens) - 1)
        return token

    def _feed(
        self,
        slot: Slot,
        tokens: array[int],
        end: int,
        filling: Filling | None,
        logits: bool,
    ) -> Work[int | None]:
        "Decode the next tokens of a slot up to an end, or some of them"
        begin = len(slot.tokens)
        wanted = logits and end == len(tokens)
        done = yield Feed(slot.seq, begin, tokens[begin:end], wanted)
        slot.add(tokens[begin : begin + done.n])
        if filling is not None:
            filling.prefill_ms += done.seconds * 1000
        return done.token

    def _is_read_elsewhere(self, slot: Slot, tokens: array[int], worth: int) -> bool:
        "Whether another slot is ahead in reading the same, or that many tokens of it"
        for other in self._slots:
            if other is slot or other.target is None:
                continue
            n = min(common_prefix(other.target, tokens), len(tokens) - 1)
            if n - len(slot.tokens) < worth:
                continue
            if not self.engine.cuts_anywhere and n < len(tokens) - 1:
                continue  # it would leave no snapshot where they part
            ahead = min(len(other.tokens), n), -other.used
            if ahead > (len(slot.tokens), -slot.used):
                return True
        return False

    def stepped(self, slot: Slot) -> None:
        "Told that a token of an answer was decoded"
        if not self.engine.cuts_anywhere and slot.snapshots.is_due(len(slot.tokens)):
            self._snap(slot)

    def _snap(self, slot: Slot, keep: bool = False) -> None:
        data = self.engine.snapshot(slot.seq)
        slot.snapshots.add(len(slot.tokens), data, keep)


def _ms_since(started: float) -> float:
    return (time.perf_counter() - started) * 1000
