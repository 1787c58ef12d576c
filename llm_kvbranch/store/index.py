"""The index of all states: a tree that is searched by content.

The idea: a state's row names its parent and the position where it leaves the
parent's tokens, so the tokens and files of any prefix are found by walking from a
state to its root. States are looked up by response id, by llm's message hashes, and
by token ids (a row for every BLOCK tokens, keyed by the hash of all tokens up to
there).

The invariant: every hit is confirmed token by token. Token ids are kept when their
file is evicted or lost, so generated text is never tokenised again.

This module does not know files or llama.cpp. Fingerprints and message hashes are
opaque strings to it.
"""

from __future__ import annotations

import json
import sqlite3
from array import array
from collections.abc import Callable, Iterable, Iterator, Set
from dataclasses import dataclass, field, fields
from typing import Any

import xxhash

from .chain import Chain, Entry, Segment
from .database import BY_KEY, Database, chunks, just_after, now
from .header import Key, State, snapshots_of, snapshots_text
from .tokens import (
    BLOCK,
    Prefix,
    block_hashes,
    common_prefix,
    token_bytes,
    tokens_from_bytes,
    tokens_of,
)
from .walk import Visit, walk

# A column for each field of a state; its token ids are in a table of their own
_RENAMED = {"response_id": "id", "parent_id": "parent", "thread_id": "thread"}
_COLUMNS = {
    field.name: _RENAMED.get(field.name, field.name)
    for field in fields(State)
    if field.name != "tokens"
}
_MAX_CANDIDATES = 8  # states looked at that begin in the block after a match
_BY_USE = ("nbytes > 0", "nbytes = 0")  # there is an index on ``used`` for each
_MAX_PREFIXES = 64  # whose hashes are kept for the states that continue them
_PINNED = """with recursive up(key, fingerprint, id, parent, start, nbytes) as (
  select key, fingerprint, id, parent, start, nbytes from states where pinned
  union
  select s.key, s.fingerprint, s.id, s.parent, s.start, s.nbytes from up
  join states s on s.fingerprint = up.fingerprint and s.id = up.parent
  where up.start > 0)"""


@dataclass
class _Search:
    "The best chain so far for some tokens"

    tokens: array[int]
    usable: Callable[[Chain], Chain]
    best: Chain = field(default_factory=Chain)
    tried: set[int] = field(default_factory=set)

    def reach(self, start: int, tokens: bytes) -> int:
        "How many tokens a state's chain shares if all those before its own match"
        own = tokens_from_bytes(tokens)
        return start + common_prefix(own, self.tokens[start : start + len(own)])

    def offer(self, chain: Chain) -> None:
        chain = chain.cut(common_prefix(chain.tokens, self.tokens))
        chain = self.usable(chain)
        ours = (self.best.available, len(self.best.tokens))
        if (chain.available, len(chain.tokens)) > ours:
            self.best = chain


class Index(Database):
    "The rows about states, and the searches over them"

    def __init__(self) -> None:
        self._prefixes: dict[tuple[str, str], Prefix] = {}

    def _insert(
        self, db: sqlite3.Connection, state: State, nbytes: int, pinned: bool
    ) -> int:
        "Insert or replace a state's row; returns its key"
        db.execute(f"delete from states {BY_KEY}", state.key)
        columns = {column: getattr(state, name) for name, column in _COLUMNS.items()}
        columns["snapshots"] = snapshots_text(state.snapshots)
        columns |= {"nbytes": nbytes, "pinned": pinned, "used": self.time(db)}
        cursor = db.execute(
            f"insert into states ({', '.join(columns)})"
            f" values ({', '.join('?' * len(columns))})",
            list(columns.values()),
        )
        key = cursor.lastrowid
        assert key is not None
        db.execute(
            "insert into token_ids values (?, ?)", [key, token_bytes(state.tokens)]
        )
        return key

    def _index_tokens(
        self,
        db: sqlite3.Connection,
        key: int,
        state: State,
        chain: Chain | None = None,
    ) -> None:
        "Index a state by its token ids; ``chain`` is what it continues, if known"
        # If the parent is unknown, the state is found by id and message hashes only,
        # until a repair finds the parent
        self._insert_blocks(db, key, self._hashes(db, state, chain) or [])

    def _insert_blocks(
        self, db: sqlite3.Connection, key: int, hashes: list[int]
    ) -> None:
        "Let a state be found by its tokens; the first hash is of the blocks before it"
        db.executemany(
            "insert or ignore into blocks select ?, ?, key from states where key = ?",
            [(hash, i == 0, key) for i, hash in enumerate(hashes)],
        )

    def _hashes(
        self, db: sqlite3.Connection, state: State, chain: Chain | None
    ) -> list[int] | None:
        "Hashes of the blocks before a state and of its own; None if it has no parent"
        before = self._prefix(db, state, chain)
        if before.digest != state.prefix:
            return None
        after = before.copy()
        hashes = after.add(state.tokens)
        for prefix in (before, after):  # siblings and follow-ups are stored next
            self._prefixes.pop((prefix.fingerprint, prefix.digest), None)
            self._prefixes[prefix.fingerprint, prefix.digest] = prefix
        while len(self._prefixes) > _MAX_PREFIXES:
            del self._prefixes[next(iter(self._prefixes))]
        return hashes

    def _prefix(
        self, db: sqlite3.Connection, state: State, chain: Chain | None
    ) -> Prefix:
        "The hashes of the tokens before a state, as far as its ancestors are known"
        if state.parent_id is None or not state.start:
            return Prefix(state.fingerprint)
        parent = state.fingerprint, state.parent_id
        above = chain.segments[-1].entry.state.key if chain and chain.segments else None
        if known := self._prefixes.get((state.fingerprint, state.prefix)):
            query = f"select 1 from states {BY_KEY}"
            if above == parent or db.execute(query, parent).fetchone():
                return known
        if chain is None or above != parent:
            chain = self._chain_of(db, parent)
        prefix = Prefix(state.fingerprint)
        prefix.add(chain.tokens[: state.start])
        return prefix

    # -- finding -------------------------------------------------------

    def get(self, response_id: str, fingerprint: str | None = None) -> Entry | None:
        """The entry of a response.

        Without a fingerprint, the newest of all models' entries.
        """
        row = self.db.execute(
            "select * from entries where id = ? and fingerprint = coalesce(?,"
            " fingerprint) order by key desc limit 1",
            [response_id, fingerprint],
        ).fetchone()
        return entry_of(row) if row else None

    def get_all(self, response_id: str) -> list[Entry]:
        "The entries of a response, one for each model"
        rows = self.db.execute("select * from entries where id = ?", [response_id])
        return [entry_of(row) for row in rows.fetchall()]

    def hashes_of(self, entry: Entry) -> set[int]:
        "The block hashes under which an entry is found"
        query = f"select hash from blocks join states on state = key {BY_KEY}"
        rows = self.db.execute(query, entry.state.key)
        return {row["hash"] for row in rows.fetchall()}

    def chain(self, entry: Entry) -> Chain:
        "Everything that leads up to an entry's end; empty if an ancestor is unknown"
        return self._chain_of(self.db, entry.state.key)

    def _chain_of(self, db: sqlite3.Connection, key: Key) -> Chain:
        row = db.execute(f"select key from states {BY_KEY}", key).fetchone()
        return self._chain(db, row["key"]) if row else Chain()

    def _chain(self, db: sqlite3.Connection, key: int) -> Chain:
        rows = db.execute(
            "with recursive up(key) as ("  # a union, so a circle of parents ends
            " select ? union"
            " select parent.key from up join states child on child.key = up.key"
            " join states parent on parent.id = child.parent"
            " and parent.fingerprint = child.fingerprint where child.start > 0)"
            " select entries.* from up join entries using (key)",
            [key],
        ).fetchall()
        named = {row["id"]: row for row in rows}
        at = next((row for row in rows if row["key"] == key), None)
        path, cut = [], at["end"] if at else 0
        while at is not None:
            path.append((at, cut))
            cut = min(cut, at["start"])
            at = named.pop(at["parent"], None) if at["start"] else None
        tokens, segments, digest = tokens_of(), [], xxhash.xxh3_128()
        for row, cut in reversed(path):
            entry = entry_of(row)
            end = min(cut, entry.state.end)
            if end <= entry.state.start:
                continue  # its child branches off before it starts
            if entry.state.start > len(tokens):
                return Chain()  # the parent is unknown
            if digest.hexdigest() != entry.state.prefix:
                return Chain()
            own = entry.state.tokens[: end - entry.state.start]
            digest.update(token_bytes(own))
            tokens += own
            segments.append(Segment(entry, entry.state.start, end))
        return Chain(tuple(segments), tokens)

    def by_hash(
        self, column: str, hashes: Iterable[str | None], fingerprint: str | None = None
    ) -> list[Entry]:
        """Entries whose ``tip_hash`` or ``input_hash`` is among the hashes.

        Newest first. Without a fingerprint, entries of any model.
        """
        assert column in ("tip_hash", "input_hash")
        found: list[sqlite3.Row] = []
        for chunk in chunks([h for h in hashes if h]):
            found += self.db.execute(
                f"select * from entries where {column} in"
                f" ({','.join('?' * len(chunk))})"
                " and fingerprint = coalesce(?, fingerprint)",
                [*chunk, fingerprint],
            ).fetchall()
        return [entry_of(row) for row in sorted(found, key=lambda r: -r["key"])]

    def longest_prefix(
        self,
        fingerprint: str,
        tokens: array[int],
        known: Iterable[Entry] = (),
        usable: Callable[[Chain], Chain] = lambda chain: chain,
    ) -> Chain:
        """The chain that shares the most leading tokens with ``tokens``.

        ``known`` are entries found another way, to try as well; ``usable`` cuts a
        chain to the part that can be used. Of the chains found, the one with the most
        rows in files wins. The cost depends on the path, not on the store.
        """
        search = _Search(tokens, usable)
        for chunk in chunks([entry.state.response_id for entry in known]):
            self._try(
                search,
                "select key, start, tokens from entries where fingerprint = ?"
                f" and id in ({','.join('?' * len(chunk))})",
                [fingerprint, *chunk],
            )
        hashes = block_hashes(fingerprint, tokens)
        for depth in self._known_blocks(hashes):
            for starts in (0, 1):
                self._try(
                    search,
                    "select key, start, tokens from blocks join entries on key = state"
                    " where hash = ? and starts = ? and fingerprint = ?"
                    " order by state desc limit ?",
                    [hashes[depth], starts, fingerprint, _MAX_CANDIDATES],
                )
            if search.best.available >= depth * BLOCK:
                break  # else rows are lost, or the hashes collide
        return search.best

    def _try(self, search: _Search, query: str, values: list[Any]) -> None:
        "Offer the chains of the states that a query selects if they may be better"
        found = []
        for row in self.db.execute(query, values).fetchall():
            if row["key"] not in search.tried:
                search.tried.add(row["key"])
                found.append((search.reach(row["start"], row["tokens"]), row["key"]))
        for reach, key in sorted(found, reverse=True):
            if reach <= search.best.available:
                break  # one of many that leave a prefix at the same place is enough
            search.offer(self._chain(self.db, key))

    def _known_blocks(self, hashes: list[int]) -> Iterator[int]:
        "Indices of the hashes that any state has a block for, deepest first; then 0"
        # A few at a time: a follow-up is found among the first ones
        for indices in chunks(list(range(len(hashes) - 1, 0, -1)), 32):
            rows = self.db.execute(
                "select distinct hash from blocks where starts = 0 and hash in"
                f" ({','.join('?' * len(indices))})",
                [hashes[i] for i in indices],
            )
            known = {row[0] for row in rows}
            yield from (i for i in indices if hashes[i] in known)
        yield 0

    # -- walking -------------------------------------------------------

    def by_use(self, without: Set[Key] = frozenset()) -> Iterator[Entry]:
        """Entries with a file, least recently used first, children before parents.

        Those whose keys are in ``without`` are skipped before their tokens are loaded.
        """
        size, offset = 200, 0
        while True:
            rows = self.db.execute(
                "select key, fingerprint, id from states where nbytes > 0"
                " order by used, start desc limit ? offset ?",
                [size, offset],
            ).fetchall()
            for key, fingerprint, response_id in rows:
                if (fingerprint, response_id) not in without:
                    query = "select * from entries where key = ?"
                    if found := self.db.execute(query, [key]).fetchone():
                        yield entry_of(found)
            if len(rows) < size:
                return
            # Twice as many each time: SQLite walks over those before the offset
            offset, size = offset + size, 2 * size

    def n_uses_since(self, entry: Entry, most: int) -> int:
        "How often any state was used after an entry was, counted up to ``most``"
        return sum(
            self.db.execute(
                "select count(*) from (select distinct used from states"
                f" where {which} and used > ? limit ?)",
                [entry.used, most],
            ).fetchone()[0]
            for which in _BY_USE
        )

    def pinned_keys(self) -> set[Key]:
        "The keys of the pinned states and their ancestors"
        rows = self.db.execute(f"{_PINNED} select fingerprint, id from up").fetchall()
        return {(row["fingerprint"], row["id"]) for row in rows}

    def pinned_bytes(self) -> int:
        "Bytes of the pinned states and their ancestors"
        query = f"{_PINNED} select coalesce(sum(nbytes), 0) from up"
        return int(self.db.execute(query).fetchone()[0])

    def children(self, entry: Entry) -> list[Entry]:
        "Entries whose chain leads through an entry"
        state = entry.state
        rows = self.db.execute(
            "select * from entries where parent = ? and fingerprint = ? and start > 0",
            [state.response_id, state.fingerprint],
        ).fetchall()
        return [entry_of(row) for row in rows]

    def time(self, db: sqlite3.Connection) -> str:
        """The time, or just after the last use if the clock was set back since.

        So the order of uses is the one in which this store saw them.
        """
        last = [
            db.execute(f"select max(used) from states where {which}").fetchone()[0]
            for which in _BY_USE
        ]
        return max([now(), *(just_after(used) for used in last if used)])

    def _touch(self, db: sqlite3.Connection, key: int | None, chain: Chain) -> None:
        """Record that a new state and all that it continues were used now.

        If it continues the state that was stored last, nothing else was used since: it
        joins them at that time, and their rows need not be written for every turn.
        """
        query = "select * from states where key < ? order by key desc limit 1"
        last = db.execute(query, [key]).fetchone()
        above = chain.segments[-1].entry.state.key if chain.segments else None
        if last is not None and (last["fingerprint"], last["id"]) == above:
            query = "update states set used = ? where key = ?"
            db.execute(query, [last["used"], key])
            return
        ids: dict[str, list[str]] = {}
        for segment in chain.segments:
            fingerprint, response_id = segment.entry.state.key
            ids.setdefault(fingerprint, []).append(response_id)
        used = self.time(db)
        for fingerprint, some in ids.items():
            db.execute(
                "update states set used = ? where fingerprint = ?"
                " and id in (select value from json_each(?))",
                [used, fingerprint, json.dumps(some)],
            )

    def _delete_gone(self, db: sqlite3.Connection, n: int = 100) -> None:
        "Delete the least recently used rows without a file or children"
        db.execute(
            "delete from states where key in (select key from states s"
            " where nbytes = 0 and gone is not null and not exists ("
            "  select 1 from states c where c.parent = s.id"
            "  and c.fingerprint = s.fingerprint and c.start > 0)"
            " order by used, start desc limit ?)",
            [n],
        )

    def walk(self) -> Iterator[Visit]:
        "Every entry, each after the one it continues; the store may change meanwhile"
        return walk(self.db, entry_of)

    def entries(self) -> Iterator[Entry]:
        "Every entry, oldest first; the store may change while this runs"
        last = -1
        while rows := self.db.execute(
            "select * from entries where key > ? order by key limit 500", [last]
        ).fetchall():
            yield from map(entry_of, rows)
            last = rows[-1]["key"]


def entry_of(row: sqlite3.Row) -> Entry:
    "An entry from a row of the view ``entries``"
    values = {name: row[column] for name, column in _COLUMNS.items()}
    values["snapshots"] = snapshots_of(values["snapshots"])
    state = State(tokens=tokens_from_bytes(row["tokens"]), **values)
    return Entry(state, row["nbytes"], row["used"], row["gone"], bool(row["pinned"]))
