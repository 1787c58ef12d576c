"""Filling slots with tokens: rows come from memory, from disk, or are decoded.

The idea: a slot keeps what it has in common with the tokens, shares what another slot
has, restores what is stored, and prefills the rest. Where rows alone are not enough
to continue from (sliding windows, recurrent layers), snapshots are taken on the way.

Nothing is decoded here. What has to be is yielded as feeds: the caller decodes the
beginning of each, or all of it, in a batch with the feeds of other slots.

This module does not know messages, responses, or where states are kept.
"""

from __future__ import annotations

import contextlib
import time
from array import array
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from ..engine import Engine, Feed
from ..errors import ContextError, StateError
from ..store import Chain, Check, Entry, Segment, State, common_prefix
from .exact import GENERATED, Fit, fit_of, kinds_of
from .resume import Step, resumable, steps
from .slots import Slot, Slots

BEING_WRITTEN = "state was just being written by another process"
_WORTH_WAITING = 32  # tokens that another slot is prefilling right now


class Files(Protocol):
    "What is needed of a store here"

    def prefetch(self, entries: Iterable[Entry], /) -> None:
        "Start reading files that will be opened soon"

    def open(
        self, entry: Entry, marks: Sequence[int], check: Check, /
    ) -> AbstractContextManager[tuple[memoryview, dict[int, memoryview]]]:
        """An entry's payload, and its snapshots at some positions.

        The payload is verified when the check is settled. Raises StateError.
        """


@dataclass(frozen=True)
class Decoded:
    """What became of a feed: its first ``n`` tokens were decoded.

    ``token`` was drawn from the logits of the last one, if that was decoded and its
    logits were wanted. ``seconds`` is the feed's share of the batch's time, which had
    ``n_batch`` tokens, if others were decoded too.
    """

    n: int = 0
    token: int | None = None
    seconds: float = 0.0
    n_batch: int = 0


Result = TypeVar("Result")
# A coroutine that yields what it needs decoded, or None to wait for a batch of others
Feeds = Generator[Feed | None, Decoded, Result]


@dataclass
class Filling:
    """How a slot was filled, in tokens: ``resident`` in memory, ``restored`` from disk.

    ``shared`` is how many of the resident ones came from other slots. ``misses`` are
    files that could not be used, and why; ``reads`` the bytes of each file restored
    and the seconds it took. ``token`` was drawn after the last token. ``stored`` says
    how the stored rows were computed. ``rounds_otherwise`` says that rows which were
    computed again in a batch of the same class were not the same bits.
    """

    resident: int = 0
    shared: int = 0
    restored: int = 0
    misses: list[tuple[Entry, str]] = field(default_factory=list)
    reads: list[tuple[int, float]] = field(default_factory=list)
    restore_ms: float = 0.0
    prefill_ms: float = 0.0
    token: int | None = None
    stored: bytes = b""
    rounds_otherwise: bool = False


class Filler:
    """Fills slots, from the files of a store and by feeds to decode.

    ``lost`` is told of each file that could not be used, and why.
    """

    def __init__(
        self,
        engine: Engine,
        slots: Slots,
        store: Files,
        lost: Callable[[Entry, StateError], None],
    ):
        self.engine = engine
        self.slots = slots
        self.store = store
        self._lost = lost

    def fill(
        self,
        slot: Slot,
        tokens: array[int],
        chain: Chain,
        n_cells: int = 0,
        logits: bool = True,
        mark: int | None = None,
        own: int = 0,
    ) -> Feeds[Filling]:
        """Make the slot hold exactly the tokens.

        ``chain`` says which of them are stored. Room for ``n_cells`` tokens is made
        in the slot. With ``logits`` a token is drawn after the last one. ``mark`` is
        where other prompts will continue from, if not from the last token. ``own`` is
        where the tokens begin that are new to their history. Raises ContextError when
        there is no room.
        """
        stored = kinds_of(chain, self.engine.classes)
        filling = Filling(stored=stored)
        started = time.perf_counter()
        fit = self._fit(tokens, own, stored)
        held = self.engine.length(slot.seq)  # fewer if a context was lost
        known = slot.kinds[: min(common_prefix(slot.tokens, tokens), held)]
        resident, end = fit.reusable(known), fit.rows(known)
        before = self._rows(slot, resident, end)
        chain = chain.cut(fit.reusable(stored))
        self.slots.hand_over(slot, resident)
        self.slots.truncate(slot, resident)
        slot.target, slot.beside = tokens, False
        try:
            filling.shared = self.slots.share_prefix(slot, tokens, fit.reusable)
            self.slots.reserve(slot, max(n_cells, len(tokens)))
            filling.resident = len(slot.tokens)
            filling.shared = min(filling.shared, filling.resident)
            filling.restore_ms += _ms_since(started)
            if self.engine.cuts_anywhere:
                yield from self._restore_chain(slot, tokens, chain, filling)
            else:
                started = time.perf_counter()
                self._restore_whole(slot, tokens, chain, filling)
                filling.restore_ms += _ms_since(started)
            filling.token = yield from self._prefill(
                slot, tokens, filling, logits, mark, fit
            )
        finally:
            slot.target = None
        if before is not None and before != self._rows(slot, resident, end):
            filling.rounds_otherwise = True
        return filling

    def _rows(self, slot: Slot, start: int, end: int) -> bytearray | None:
        "Rows that are about to be computed again; None if nothing is to be expected"
        is_alone = self.slots.n_used() == len(slot.tokens)
        if not self.engine.cuts_anywhere or end <= start or not is_alone:
            return None
        return self.engine.capture(slot.seq, start, end)

    def _fit(self, tokens: array[int], own: int, stored: bytes) -> Fit:
        "Which rows can be reused, by what is in memory and stored"
        known = [
            slot.kinds[: common_prefix(slot.tokens, tokens)]
            for slot in self.slots.all()
        ]
        return fit_of(len(tokens), own, self.engine.classes, [*known, stored])

    # -- from disk -------------------------------------------------------

    def _restore_chain(
        self, slot: Slot, tokens: array[int], chain: Chain, filling: Filling
    ) -> Feeds[None]:
        "Restore what can be restored, and prefill in place of files that are bad"
        wanted = [s.entry for s in chain.segments if s.end > len(slot.tokens)]
        self.store.prefetch(wanted[1:])  # while the first is read
        for segment in chain.segments:
            if segment.end <= len(slot.tokens):
                continue
            started = time.perf_counter()
            lost = False
            try:
                self._restore(slot, tokens, segment, filling)
            except ContextError as error:  # no room for the whole file
                filling.misses.append((segment.entry, str(error)))
                break
            except StateError as error:
                lost = True
                filling.misses.append((segment.entry, str(error)))
                self._lost(segment.entry, error)
            filling.restore_ms += _ms_since(started)
            if lost:
                missing, n = tokens[: segment.end], segment.end
                yield from self.decode(slot, missing, n, filling, logits=False)

    def _restore_whole(
        self, slot: Slot, tokens: array[int], chain: Chain, filling: Filling
    ) -> None:
        """Restore a chain's rows, and the snapshots that make them complete.

        If a file is bad, restore what comes before it instead.
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
                    self._lost(segment.entry, error)
                self.slots.clear(slot)
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
        """Append a segment's rows to the slot, and do the steps that belong to it.

        False if a step had to stop early: the slot then ends where it can be continued
        from. Raises StateError or ContextError.
        """
        if not segment.entry.present:
            raise StateError(segment.entry.gone or BEING_WRITTEN)
        begin = len(slot.tokens)
        self.slots.reserve(slot, begin + segment.size)
        if len(slot.tokens) != begin:
            raise ContextError("rows were lost when the context grew")
        started = time.perf_counter()
        state = segment.entry.state
        own = [step for step in todo if step.segment is segment]
        marks = [step.mark for step in own]
        check = Check()
        with (
            self.store.open(segment.entry, marks, check) as opened,
            _told_by(check),
        ):
            payload, snapshots = opened
            if state.origin is not None:
                check.settle()
                if not self._is_finite(state, payload, snapshots):
                    raise StateError("state payload holds NaN or infinite values")
            self.engine.restore(
                *(slot.seq, payload, state.start, state.end, segment.end, begin),
                check=check.settle,
            )
            kinds = filling.stored[begin : segment.end]
            slot.append(tokens[begin : segment.end], kinds)
            for step in own:
                if not self._resume(slot, step, snapshots[step.mark]):
                    return False
        took = time.perf_counter() - started
        filling.reads.append((segment.entry.nbytes, took))
        filling.restored += segment.end - begin
        return True

    def _resume(self, slot: Slot, step: Step, snapshot: memoryview) -> bool:
        "Do a step, whose rows are there by now; False if it had to stop early"
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

    # -- by decoding -----------------------------------------------------

    def decode(
        self,
        slot: Slot,
        tokens: array[int],
        n_prompt: int,
        filling: Filling | None = None,
        logits: bool = True,
    ) -> Feeds[int | None]:
        """Decode the tokens that the slot lacks; returns the token drawn after them.

        Those after the prompt are an answer's, which are decoded one by one.
        """
        token = None
        room, classes = self.engine.settings.n_batch, self.engine.classes
        while token is None and (begin := len(slot.tokens)) < len(tokens):
            end = begin + 1
            if begin < n_prompt:
                end = begin + classes.piece(n_prompt - begin, room)
            token = yield from self._feed(slot, tokens, end, filling, logits, n_prompt)
        return token

    def _prefill(
        self,
        slot: Slot,
        tokens: array[int],
        filling: Filling,
        logits: bool,
        mark: int | None,
        fit: Fit,
    ) -> Feeds[int | None]:
        """Decode a prompt's tokens that the slot lacks; returns the token drawn.

        It waits for another slot that is prefilling the same tokens, and takes
        snapshots where prompts that begin alike could continue from.
        """
        token, worth = None, _WORTH_WAITING
        room, classes = self.engine.settings.n_batch, self.engine.classes
        last = fit.end if mark is None else min(mark, fit.end)
        least = classes.least(len(tokens) - fit.own)
        while token is None and (begin := len(slot.tokens)) < len(tokens):
            if self._is_prefilled_elsewhere(slot, tokens, worth, fit):
                worth = 1  # having waited, wait for all of it
                yield None
                n = self.slots.share_prefix(slot, tokens, fit.reusable)
                filling.shared += n
                filling.resident += n
                continue
            stop = len(tokens)
            if not self.engine.cuts_anywhere:
                n = len(tokens)
                stop = slot.snapshots.next_stop(begin, fit.own, n, last, least)
            end = begin + classes.piece(stop - begin, room)
            token = yield from self._feed(
                slot, tokens, end, filling, logits, len(tokens)
            )
            if len(slot.tokens) == stop < len(tokens):
                self._take_snapshot(slot, stop == last)
        return token

    def _feed(
        self,
        slot: Slot,
        tokens: array[int],
        end: int,
        filling: Filling | None,
        logits: bool,
        n_prompt: int,
    ) -> Feeds[int | None]:
        """Yield the slot's next tokens, up to ``end``; record what was decoded of them.

        Not if the rows were lost since: another slot may have made the context grow.
        """
        if not self.engine.n_ctx:  # the context was lost, and is needed again
            self.slots.reserve(slot, len(tokens))
        begin = len(slot.tokens)
        wanted = logits and end == len(tokens)
        done = yield Feed(slot.seq, begin, tokens[begin:end], wanted)
        slot.beside = slot.beside or done.n_batch > done.n
        if done.n and self.engine.length(slot.seq) == begin + done.n:
            kind = GENERATED
            if begin < n_prompt:
                kind = self.engine.classes.of(max(done.n, done.n_batch))
            slot.append(tokens[begin : begin + done.n], bytes([kind]) * done.n)
        if filling is not None:
            filling.prefill_ms += done.seconds * 1000
        return done.token

    def _is_prefilled_elsewhere(
        self, slot: Slot, tokens: array[int], worth: int, fit: Fit
    ) -> bool:
        "Whether another slot is ahead in prefilling ``worth`` or more of the tokens"
        for other in self.slots.all():
            if other is slot or other.target is None:
                continue
            n = min(common_prefix(other.target, tokens), fit.end)
            kinds = other.kinds[:n]
            if n - len(slot.tokens) < worth or fit.rows(kinds) < len(kinds):
                continue
            if not self.engine.cuts_anywhere and n < len(tokens) - 1:
                continue  # it would take no snapshot where they part
            ahead = min(len(other.tokens), n), -other.used
            if ahead > (len(slot.tokens), -slot.used):
                return True
        return False

    def token_decoded(self, slot: Slot) -> None:
        "Called after each token of an answer: takes a snapshot when one is due"
        n = len(slot.tokens)
        if n and not self.engine.cuts_anywhere and slot.snapshots.is_due(n):
            self._take_snapshot(slot)

    def _take_snapshot(self, slot: Slot, keep: bool = False) -> None:
        data = self.engine.snapshot(slot.seq)
        slot.snapshots.add(len(slot.tokens), data, keep)


@contextlib.contextmanager
def _told_by(check: Check) -> Iterator[None]:
    "Report damage as such, rather than what it looks like to llama.cpp"
    try:
        yield
    except StateError:
        check.settle()
        raise


def _ms_since(started: float) -> float:
    return (time.perf_counter() - started) * 1000
