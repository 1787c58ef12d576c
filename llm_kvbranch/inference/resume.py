"""Where a sequence can be continued from, when its rows alone are not enough.

The idea: layers with a sliding window, and recurrent layers, remember more than the
rows of the tokens, and cannot go back. So snapshots of what they remember are taken on
the way: near the end of a prompt, at the end of an answer, and at intervals, which grow
with the bytes that snapshots take. A sequence can be continued from any snapshot. With
a sliding window of W tokens it can also be continued from anywhere between two
snapshots that are at most W apart: the later one holds all that came in between.

The invariant: a sequence is continued only from a snapshot or from its beginning. What
comes after that is decoded again.

This module decides; it does not touch llama.cpp's memory or any file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ..store import Segment

GRID = 32  # tokens from one snapshot of an answer to the next, at least
PROMPT_GRID = 512  # the same while prefilling: batches have to end there
_WORTH = 64  # prefilled tokens that make a snapshot at the end worth its bytes
_MAX_BYTES = 128 << 20  # of one sequence's snapshots
_MAX_COUNT = 48


@dataclass
class Snapshots:
    """The snapshots of one sequence that are in memory, by position.

    They are taken at multiples of ``grid`` tokens.
    """

    grid: int = GRID
    taken: dict[int, bytearray] = field(default_factory=dict)
    kept: set[int] = field(default_factory=set)  # ends of prompts, off the grid

    def is_due(self, position: int) -> bool:
        "Whether to take a snapshot at a position of an answer"
        return position % self.grid == 0

    def next_stop(
        self, at: int, begin: int, end: int, last: int, least: int = 1
    ) -> int:
        """Where to stop next, after ``at``, while prefilling a prompt [begin, end).

        ``last`` is where other prompts will continue from. Stops do not depend on how
        much of the prompt is known, and are ``least`` tokens apart, or more.
        """
        grid = max(self.grid, PROMPT_GRID)
        stop = at - at % grid + grid
        while stop - at < least:
            stop += grid
        if last - begin >= _WORTH and at < last and last - stop < least:
            stop = last
        return stop if end - stop >= least else end

    def add(self, position: int, data: bytearray, keep: bool = False) -> None:
        "Keep a snapshot, and fewer of the others if they take too much memory"
        self.taken[position] = data
        if keep:
            self.kept.add(position)
        while len(self.taken) > 1 and (
            sum(map(len, self.taken.values())) > _MAX_BYTES
            or len(self.taken) > _MAX_COUNT
        ):
            self._thin()

    def _thin(self) -> None:
        "Drop every other snapshot; if only ends of prompts are left, the oldest"
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
        "Forget the snapshots above position n"
        self.taken = {at: data for at, data in self.taken.items() if at <= n}
        self.kept &= self.taken.keys()

    def forget_before(self, n: int) -> None:
        "Forget the snapshots below position n: they are stored by now"
        self.taken = {at: data for at, data in self.taken.items() if at >= n}
        self.kept &= self.taken.keys()

    def last(self, n: int) -> int | None:
        "The position of the last snapshot up to n"
        return max((at for at in self.taken if at <= n), default=None)

    def between(self, start: int, end: int) -> dict[int, bytearray]:
        "The snapshots after ``start`` and before ``end``, by position"
        return {at: data for at, data in self.taken.items() if start < at < end}


@dataclass(frozen=True)
class Step:
    """One thing to do, once the rows are there, to continue from position ``upto``.

    Resume from a segment's snapshot at ``mark``; or, if ``begin`` is given, use it to
    slide the window from ``begin`` to ``upto``.
    """

    segment: Segment
    mark: int
    upto: int
    begin: int | None = None


def resumable(segments: Sequence[Segment], window: int) -> int:
    "How many tokens of a chain can be continued from, by its files' snapshots"
    best, whole = 0, True  # whole: the segment before can be continued at its end
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
    """What to do to continue from the end of a chain, in order.

    ``resident`` is how many of its tokens are in memory and can be continued from. The
    chain must be one that ``resumable`` would not cut.
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
