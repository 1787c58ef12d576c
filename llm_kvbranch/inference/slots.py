"""The slots of a context: which rows each sequence holds, and how large the context is.

The idea: a slot is a sequence of the context, together with the token ids of its
rows. Slots that begin with the same tokens share the cells of those rows. The context
is only as large as all slots need; when they need more, it is made again, larger,
around the same rows.

The invariant: unless a slot is busy, ``slot.tokens`` are exactly the rows of its
sequence, also after an error or Ctrl-C. A busy slot never lists a row that its sequence
lacks, even if a context was lost. Rows that may still be logged are handed over before
they are lost.

This module does not know where rows come from.
"""

from __future__ import annotations

import contextlib
import itertools
import weakref
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from ..engine import Engine, Kept
from ..errors import BusyError, ContextError, StateError
from ..store import common_prefix, tokens_of
from .resume import GRID, Snapshots

HEADROOM = 512  # cells reserved for an answer whose length is not known


class Waiting(Protocol):
    "An answer whose rows are in a slot and not stored yet"

    @property
    def end(self) -> int:
        "Position after its last token"

    def detach(self) -> None:
        "Called before the slot loses the rows"


@dataclass(eq=False)
class Slot:
    """A sequence of the context and the token ids of its rows.

    ``cells`` has the number of each row's cell: sequences that share a row have the
    same number there. ``kinds`` says how each row was computed (see ``exact``).
    ``response_id`` is the logged response that the slot ends with,
    if any. ``ahead`` is how many tokens after that were decoded for the next prompt.
    ``target`` are the tokens that it is being filled with, None while it is not.
    ``reserved`` is how many tokens it may hold before it must reserve again.
    ``beside`` says whether rows were decoded beside others' since it was last filled.
    """

    seq: int
    tokens: array[int] = field(default_factory=tokens_of)
    cells: array[int] = field(default_factory=lambda: array("q"))
    kinds: bytearray = field(default_factory=bytearray)
    target: array[int] | None = None
    reserved: int = 0
    beside: bool = False
    response_id: str | None = None
    ahead: int = 0
    busy: bool = False
    used: int = 0
    waiting: weakref.WeakSet[Any] = field(default_factory=weakref.WeakSet)
    snapshots: Snapshots = field(default_factory=Snapshots)

    def append(self, tokens: array[int], kinds: bytes) -> None:
        "Record rows of more tokens, in new cells"
        self.tokens += tokens
        self.kinds += kinds
        self.cells.extend(itertools.islice(_cells, len(tokens)))

    def share(self, other: Slot, end: int) -> None:
        "Record that the rows of another slot are in this one too, up to ``end``"
        begin = len(self.tokens)
        self.tokens += other.tokens[begin:end]
        self.cells += other.cells[begin:end]
        self.kinds += other.kinds[begin:end]

    def drop(self, n: int) -> None:
        "Record that there are no rows from n on"
        if n < len(self.tokens):
            self.response_id = None
        self.ahead = max(0, self.ahead - max(0, len(self.tokens) - n))
        del self.tokens[n:]
        del self.cells[n:]
        del self.kinds[n:]

    def rests_at(self, tokens: array[int]) -> bool:
        "Whether it is idle, and these are its tokens but for those read ahead"
        n = len(self.tokens) - self.ahead
        return not self.busy and n == len(tokens) and self.tokens[:n] == tokens


_cells = itertools.count()


class Slots:
    """All slots of a context. Calls must not overlap.

    ``max_cells`` limits the context, in cells; None for what memory allows.
    """

    def __init__(self, engine: Engine):
        self.engine = engine
        self.max_cells: int | None = None
        self._clock = itertools.count(1)
        # Closer snapshots add nothing: one of a window holds all since the one before
        self._grid = max(GRID, engine.window)
        self._slots = [
            Slot(seq, snapshots=Snapshots(self._grid))
            for seq in range(engine.settings.n_seq)
        ]

    def all(self) -> list[Slot]:
        return list(self._slots)

    def acquire(self, tokens: array[int]) -> Slot:
        """The idle slot that is best for some tokens, busy from now on.

        Raises BusyError when all slots are busy.
        """
        idle = [slot for slot in self._slots if not slot.busy]
        if not idle:
            raise BusyError(
                f"{len(self._slots)} generations are running, which is the limit: "
                "wait for one to finish, or ask for fewer at once"
            )

        def worth(slot: Slot) -> tuple[int, bool, int]:
            "Rows it can keep, if at least half of them; else empty or old slots"
            kept, whole = common_prefix(slot.tokens, tokens), len(slot.tokens)
            if not self.engine.cuts_anywhere and kept < whole:
                kept = slot.snapshots.last(kept) or 0
            return kept if 2 * kept >= whole else 0, not slot.tokens, -slot.used

        slot = max(idle, key=worth)
        slot.busy, slot.response_id, slot.ahead = True, None, 0
        slot.used = next(self._clock)
        return slot

    def release(self, slot: Slot) -> None:
        "Make a slot idle, with the tokens that its sequence really holds"
        held = self.engine.length(slot.seq)
        if held != len(slot.tokens):
            self.truncate(slot, min(held, len(slot.tokens)))
        slot.busy, slot.reserved = False, 0

    def for_next_turn(self, slot: Slot, tokens: array[int]) -> Slot | None:
        """The idle slot in which to read ahead tokens that may differ from a slot's.

        It has what the slot has of them, and there is room for the rest. A slot that
        differs stays as it is, if another is empty or has little else than tokens of
        the same conversation. None if there is no room, or nothing to read.
        """
        same = common_prefix(slot.tokens, tokens)
        if same == len(slot.tokens):
            return slot if self._has_room(len(tokens) - same) else None
        others = [
            (n, other)
            for other in self._slots
            if other is not slot and not other.busy and not other.waiting
            if 2 * (n := common_prefix(other.tokens, tokens)) >= len(other.tokens)
        ]
        for n, other in sorted(others, key=lambda each: -each[0]):
            if n == len(tokens):
                return None  # it was read before
            freed = len(other.tokens) - n
            if self._has_room(len(tokens) - max(n, same) - freed):
                self.truncate(other, n)
                self.share_prefix(other, tokens)
                other.used = slot.used
                return other
        if not self._has_room(len(tokens) - len(slot.tokens)):
            return None
        self.hand_over(slot, same)
        self.truncate(slot, same)
        return slot

    def _has_room(self, n: int) -> bool:
        return n <= self.engine.n_ctx - self.n_used()

    # -- rows ------------------------------------------------------------

    def share_prefix(
        self, slot: Slot, tokens: array[int], fit: Callable[[bytearray], int] = len
    ) -> int:
        """Share the rows of the slot that has the most of the tokens.

        All but the last token, whose logits are needed. ``fit`` says how many rows of
        some kinds may be used. Returns how many rows the slot gained.
        """
        begin, end = len(slot.tokens), len(slot.tokens)
        for other in self._slots:
            n = min(common_prefix(other.tokens, tokens), len(tokens) - 1)
            n = min(n, fit(other.kinds))
            if not self.engine.cuts_anywhere:
                n = other.snapshots.last(n) or 0
            if other is not slot and n > end and n <= self.engine.length(other.seq):
                donor, end = other, n
        if end > begin:
            self.engine.share(donor.seq, slot.seq, begin, end)
            slot.share(donor, end)
            if not self.engine.cuts_anywhere:
                slot.snapshots.add(end, donor.snapshots.taken[end], keep=True)
                return max(0, self._roll_back(slot, end) - begin)
        return end - begin

    def truncate(self, slot: Slot, n: int) -> None:
        """Forget the slot's rows from n on, or from the last snapshot before n.

        Afterwards the slot holds n tokens or fewer.
        """
        if self.engine.cut(slot.seq, n):
            slot.drop(n)
            slot.snapshots.forget_after(n)
        else:
            self._roll_back(slot, n)

    def _roll_back(self, slot: Slot, n: int) -> int:
        "Go back to the last snapshot up to n, or to the start; the position reached"
        slot.snapshots.forget_after(n)
        at = slot.snapshots.last(n)
        if at is not None:
            with contextlib.suppress(StateError):
                snapshot = memoryview(slot.snapshots.taken[at])
                self.engine.resume(slot.seq, snapshot, at)
                slot.drop(at)
                return at
        self.clear(slot)
        return 0

    def clear(self, slot: Slot) -> None:
        self.engine.cut(slot.seq, 0)
        slot.drop(0)
        slot.snapshots = Snapshots(self._grid)

    def hand_over(self, slot: Slot, n: int) -> None:
        "Before rows from n on are lost: hand over those that may still be logged"
        waiting: list[Waiting] = list(slot.waiting)
        for one in waiting:
            if n < one.end or not self.engine.cuts_anywhere:
                one.detach()
                slot.waiting.discard(one)

    # -- room ------------------------------------------------------------

    def reserve(self, slot: Slot, n: int) -> None:
        """Make room for n tokens in the slot.

        Idle slots lose their rows before the context grows, the least recently used
        first: they can be restored from disk, which is cheaper than memory. Raises
        ContextError when there is no room, BusyError when another generation has to
        end first.
        """
        if n <= slot.reserved and self.engine.n_ctx:  # nobody else has taken it
            return
        before, slot.reserved = slot.reserved, max(slot.reserved, n)
        idle = [s for s in self._slots if s.tokens and not s.busy and s is not slot]
        for other in sorted(idle, key=lambda s: s.used):
            if self._n_cells() <= self.engine.n_ctx:
                break
            self.hand_over(other, 0)
            self.truncate(other, 0)
        try:
            if (needed := self._n_cells()) > self.engine.n_ctx:
                self._enlarge(needed)
        except BaseException:
            slot.reserved = before
            raise

    def grow(self, slot: Slot, n: int, most: int) -> None:
        """Make room for n tokens in the slot, and for more if that can be had.

        ``most`` is how many tokens it will ever hold. Raises like reserve.
        """
        if n <= slot.reserved:
            return
        try:
            self.reserve(slot, min(most, n + max(HEADROOM, n // 2)))
        except ContextError:
            self.reserve(slot, n)

    def n_used(self) -> int:
        "Cells that the slots' rows take"
        rows = [slot.cells for slot in self._slots if slot.cells]
        return len(set().union(*rows)) if len(rows) > 1 else sum(map(len, rows))

    def _n_cells(self) -> int:
        "Cells that rows take, and those that busy slots have reserved"
        return self.n_used() + self._n_reserved()

    def _n_reserved(self) -> int:
        return sum(max(0, s.reserved - len(s.tokens)) for s in self._slots)

    def _enlarge(self, n_cells: int) -> None:
        """Make a larger context; rows that slots begin with alike stay shared.

        Other shared rows get cells of their own, for which there is room as well.
        """
        live: list[Kept] = []
        cells: list[array[int]] = []  # of each slot, afterwards
        for slot in self._slots:
            before = self._slots[: len(live)]
            shares = [(common_prefix(s.cells, slot.cells), s.seq) for s in before]
            n, donor = max(shares, default=(0, -1))
            live.append(Kept(slot.seq, donor, n))
            if not self.engine.cuts_anywhere:
                n = 0
            shared = cells[donor][:n] if n else array("q")
            fresh = itertools.islice(_cells, len(slot.tokens) - n)
            cells.append(shared + array("q", fresh))
        n_cells = max(n_cells, len(set().union(*cells)) + self._n_reserved())
        if self.max_cells is not None and n_cells > self.max_cells:
            if sum(slot.busy for slot in self._slots) > 1:
                raise BusyError(
                    f"Running generations take the context of {self.max_cells:,} "
                    "tokens: wait for one to finish, or raise the limit"
                )
            raise ContextError(
                f"{n_cells:,} tokens do not fit the context of {self.max_cells:,}: "
                "raise the limit, or shorten the prompt"
            )
        try:
            self.engine.reserve(n_cells, live)
            for slot, each in zip(self._slots, cells, strict=True):
                slot.cells = each
        finally:
            self._note_losses()

    def _note_losses(self) -> None:
        """Forget the tokens of rows that were lost with a context.

        A busy slot may have more rows than tokens: those just decoded. Its generation
        decodes what it lacks again.
        """
        for slot in self._slots:
            held = self.engine.length(slot.seq)
            if held < len(slot.tokens):
                slot.waiting.clear()
                self.truncate(slot, held)
