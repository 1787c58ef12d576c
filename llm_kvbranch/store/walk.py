"""Every state of an index, with the hashes that its tokens must have.

The idea: a state is visited after the one it continues, depth-first, and takes over
the hashes of the tokens before it. So each token is hashed once, however deep a
conversation is and however many branches it has.

The invariant: every state is visited once, even if its ancestors are missing or form a
circle. In memory are the states above the one that is visited, and keys.

This module does not know what is done with the states, and writes nothing.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from .chain import Entry
from .tokens import Prefix

_ROOTS = """
select key from states s where start = 0 or not exists (
  select 1 from states p where p.id = s.parent and p.fingerprint = s.fingerprint)
  order by key
"""
_CHILDREN = """
select key from states where parent = ? and fingerprint = ? and start > 0
  order by start, key
"""


@dataclass(frozen=True)
class Visit:
    """A state, and the hashes of its blocks as they must be in the index.

    The first one is of the blocks before it; None if its ancestors are unknown.
    """

    key: int
    entry: Entry
    hashes: list[int] | None


class _Node:
    "A state on the way to the one that is visited"

    def __init__(self, entry: Entry, above: _Node | None):
        self.state, self.above = entry.state, above
        self.children: Iterator[int] = iter(())
        start = self.state.start
        if above is not None:
            before = above.prefix(start)
        else:
            before = None if start else Prefix(self.state.fingerprint)
        if before is not None and before.digest != self.state.prefix:
            before = None
        self._before = before
        self._reached: Prefix | None = None  # what is known of its own tokens

    def prefix(self, at: int) -> Prefix | None:
        "The hashes of the tokens before a position; None if they are unknown"
        node: _Node | None = self
        while node is not None and at <= node.state.start:
            node = node.above  # whoever branches off before a state does not need it
        if node is None or node._before is None or at > node.state.end:
            return None
        reached, start = node._reached, node.state.start
        if reached is None or reached.n > at:
            reached = node._before.copy()
        reached.add(node.state.tokens[reached.n - start : at - start])
        node._reached = reached
        return reached.copy()

    def hashes(self) -> list[int] | None:
        if self._before is None:
            return None
        return self._before.copy().add(self.state.tokens)


def walk(
    db: sqlite3.Connection, entry_of: Callable[[sqlite3.Row], Entry]
) -> Iterator[Visit]:
    "Visit every state; the store may change while this runs"
    seen: set[int] = set()

    def entry(key: int) -> Entry | None:
        row = db.execute("select * from entries where key = ?", [key]).fetchone()
        if row is None or key in seen:
            return None
        seen.add(key)
        return entry_of(row)

    def below(entry: Entry) -> Iterator[int]:
        values = [entry.state.response_id, entry.state.fingerprint]
        return iter([row["key"] for row in db.execute(_CHILDREN, values)])

    for row in db.execute(_ROOTS).fetchall():
        path: list[_Node] = []
        at: int | None = row["key"]
        while at is not None:
            if found := entry(at):
                node = _Node(found, path[-1] if path else None)
                yield Visit(at, found, node.hashes())
                node.children = below(found)
                path.append(node)
            at = None
            while path and (at := next(path[-1].children, None)) is None:
                path.pop()
    # What is left was added just now, or is its own ancestor
    keys = (row["key"] for row in db.execute("select key from states order by key"))
    for key in [key for key in keys if key not in seen]:
        if found := entry(key):
            yield Visit(key, found, None)
