"""Where a sequence can be gone on from, where rows alone are not enough.

The idea: layers with a sliding window, and recurrent ones, remember more than the
rows of the tokens, and cannot take it back. So snapshots of it are taken on the way:
at the end of a prompt and of an answer, and every so many tokens between, more thinly
the more bytes they take. A sequence can be gone on from where there is one. With a
sliding window of W tokens also from anywhere between two that are at most W apart:
the later one holds all that came in between.

The invariant: nothing but a snapshot, or the beginning, makes a position one to go
on from; what comes after it is decoded again.

This module decides; it does not touch llama.cpp's memory or any file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ..store import Segment

GRID = 32  # tokens of an answer from one snapshot to the next, at the least
PROMPT_GRID = 512  # the same while prefilling: a batch may have to end there
_WORTH = 64  # tokens that make a snapshot at the end of a prompt worth its bytes
_MAX_BYTES = 128 << 20  # of one sequence's snapshots
_MAX_COUNT = 48


@dataclass
class Snapshots:
    """Those of one sequence that are in memory, by position.

    ``grid`` is how many tokens apart they are taken.
    """

    grid: int = GRID
    taken: dict[int, bytearray] = field(default_factory=dict)
    kept: set[int] = field(default_factory=set)  # ends of prompts: not on the grid

    def is_due(self, position: int) -> bool:
        "Whether to take one at a position of an answer"
        return position % self.grid == 0

    def next_stop(self, at: int, begin: int, end: int) -> int:
        "Where to stop after ``at`` while a prompt is prefilled from begin to end"
        grid = max(self.grid, PROMPT_GRID)
        stop = at - at % grid + grid
        if end - 1 - begin >= _WORTH and at < end - 1:
            stop = min(stop, end - 1)
        return min(stop, end)

    def add(self, position: int, data: bytearray, keep: bool = False) -> None:
        "Keep one, and fewer of the others where they take too much"
        self.taken[position] = data
        if keep:
            self.kept.add(position)
        while len(self.taken) > 1 and (
            sum(map(len, self.taken.values())) > _MAX_BYTES
            or len(self.taken) > _MAX_COUNT
        ):
            self._thin()

    def _thin(self) -> None:
        "Drop every other one; the oldest end of a prompt where only those are left"
        loose = sorted(set(self.taken) - self.kept)
        if not loose:
            oldest = min(self.taken)
            self.kept.discard(oldest)
            del self.taken[oldest]
            return
        self.grid *= 2
        for position in loose:
            if position % self.grid:
                del self.taken[position]

    def forget_after(self, n: int) -> None:
        "Forget those of positions above n"
        self.taken = {at: data for at, data in self.taken.items() if at <= n}
        self.kept &= self.taken.keys()

    def forget_before(self, n: int) -> None:
        "Forget those of positions below n: they are stored by now"
        self.taken = {at: data for at, data in self.taken.items() if at >= n}
        self.kept &= self.taken.keys()

    def last(self, n: int) -> int | None:
        "The greatest position up to n that there is one of"
        return max((at for at in self.taken if at <= n), default=None)

    def between(self, start: int, end: int) -> dict[int, bytearray]:
        "Those of the positions after ``start`` and before ``end``"
        return {at: data for at, data in self.taken.items() if start < at < end}


@dataclass(frozen=True)
class Step:
    """One thing to do, after the rows are there, to go on from a position.

    Resume by a segment's snapshot at ``mark``; or, where ``begin`` is given, slide
    the window from there to ``upto`` by it.
    """

    segment: Segment
    mark: int
    upto: int
    begin: int | None = None


def resumable(segments: Sequence[Segment], window: int) -> int:
    "How many tokens of a chain can be gone on from, by the snapshots in its files"
    best, whole = 0, True  # whole: the segment before can be gone on from at its end
    for segment in segments:
        if not segment.entry.present:
            break
        start, end = segment.start, segment.end
        marks = segment.entry.state.marks
        first = start if whole else None
        before = max((at for at in marks if at <= end), default=first)
        after = min((at for at in marks if at >= end), default=None)
        whole = after == end or (
            None not in (before, after) and 0 < (after or 0) - (before or 0) <= window
        )
        if whole:
            best = end
        elif any(start < at <= end for at in marks):
            best = max(at for at in marks if at <= end)
    return best


def steps(segments: Sequence[Segment], window: int, resident: int) -> list[Step]:
    """What to do to go on from where a chain ends, in order.

    ``resident`` is how much of it is in memory and can be gone on from. The chain is
    one that resumable left as it is.
    """
    found: list[Step] = []
    for segment in reversed(segments):
        marks = segment.entry.state.marks
        if segment.end <= resident:
            break
        if segment.end in marks:
            return [Step(segment, segment.end, segment.end), *found]
        after = min(at for at in marks if at > segment.end)
        before = max((at for at in marks if at < segment.end), default=segment.start)
        begin = max(before, resident)
        found.insert(0, Step(segment, after, segment.end, begin))
        if begin == resident:
            break
        if before != segment.start:
            return [Step(segment, before, before), *found]
    return found
