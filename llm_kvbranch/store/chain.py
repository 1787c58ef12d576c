"""Which states hold the rows of a prefix, as plain values.

The idea: an entry is a state as the index knows it, with or without its file. The
rows of a prefix come from a chain of entries, each of which supplies a segment.

The invariant: a chain's segments cover its tokens without gaps or overlap.

This module does not know how entries are found.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from .header import State
from .tokens import tokens_of


@dataclass(frozen=True)
class Entry:
    """One state as the index has it.

    ``nbytes`` is the size of its file, 0 if there is none; ``gone`` says why.
    """

    state: State
    nbytes: int
    used: str
    gone: str | None = None
    pinned: bool = False

    @property
    def present(self) -> bool:
        return self.nbytes > 0


@dataclass(frozen=True)
class Segment:
    "The rows [start, end) of a prefix, supplied by one entry"

    entry: Entry
    start: int
    end: int

    @property
    def size(self) -> int:
        "Tokens in the file, which is read whole even if few of them are needed"
        return self.entry.state.end - self.entry.state.start


@dataclass(frozen=True)
class Chain:
    """A prefix that the store knows: its token ids, and which entry has which rows.

    Segments are in order and cover [0, len(tokens)) without gaps or overlap.
    """

    segments: tuple[Segment, ...] = ()
    tokens: array[int] = field(default_factory=tokens_of)

    def cut(self, n: int) -> Chain:
        "The chain of the first n tokens"
        if n >= len(self.tokens):
            return self
        kept = tuple(
            replace(segment, end=min(segment.end, n))
            for segment in self.segments
            if segment.start < n
        )
        return Chain(kept, self.tokens[:n])

    def then(self, entry: Entry) -> Chain:
        "The chain up to the end of an entry that begins where this one ends"
        segment = Segment(entry, entry.state.start, entry.state.end)
        return Chain((*self.segments, segment), self.tokens + entry.state.tokens)

    def before(self, entries: Iterable[Entry]) -> Chain:
        "The chain up to the first row that one of the entries supplies"
        bad = [entry.state.response_id for entry in entries]
        for segment in self.segments:
            if segment.entry.state.response_id in bad:
                return self.cut(segment.start)
        return self

    @property
    def n_cells(self) -> int:
        "The most cells in use while the chain is restored"
        return max((s.start + s.size for s in self.segments), default=0)

    @property
    def available(self) -> int:
        "How many of the tokens have their rows in a file"
        return sum(s.end - s.start for s in self.segments if s.entry.present)
