"""The index of all states: a tree that is found by content.

The idea: a state's row names its parent and the position where it leaves the
parent's tokens, so the tokens and the files of any prefix are a walk from a
state to its root. A state is found three ways: by response id, by llm's message
hashes, and by the token ids themselves (a row for every BLOCK tokens, keyed by
the hash of everything up to there).

The invariant: every hit is confirmed token by token. Token ids outlive their
file (evicted or lost), so generated text is never tokenised again.

This module does not know files or llama.cpp; a fingerprint is an opaque name, a
message hash an opaque string.
"""

from __future__ import annotations

import contextlib
import datetime
import sqlite3
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import xxhash

from .errors import StoreError
from .state import (
    State,
    common_prefix,
    prefix_digest,
    token_bytes,
    tokens_from_bytes,
    tokens_of,
)

BLOCK = 32  # tokens for each row that finds a state by its tokens
SCHEMA_VERSION = 1  # a different version is rebuilt from the files
_MAX_CANDIDATES = 64  # states looked at that begin in the block after a match

SCHEMA = """
create table states (
  key integer primary key,
  id text not null,             -- response id
  fingerprint text not null,    -- which model, KV layout and build
  parent text,                  -- response id whose chain supplies [0, start)
  start integer not null,
  end integer not null,
  answer integer not null,      -- position of the first generated token
  tokens blob not null,         -- int32 ids of [start, end)
  prefix text not null,         -- digest of the ids of [0, start)
  input_hash text,              -- llm's hash of the prompt's message chain
  tip_hash text,                -- llm's hash of the answer
  render text not null,         -- what turned messages into text
  nbytes integer not null,      -- of the file, 0 when there is none
  digest text not null,
  created text not null,
  used text not null,
  unique (fingerprint, id)
);
create index states_tip on states (tip_hash);
create index states_input on states (input_hash);
create index states_id on states (id);
create table blocks (
  hash integer not null,        -- of all tokens up to a multiple of BLOCK
  starts integer not null,      -- 1: the state starts in the block after it
  state integer not null references states (key) on delete cascade,
  primary key (hash, starts, state)
) without rowid;
create index blocks_state on blocks (state);
create table fingerprints (fingerprint text primary key, fields text not null);
create table digests (
  path blob primary key, size integer, mtime_ns integer, inode integer,
  digest text not null
);
create table misses (
  reason text primary key, count integer not null, last text not null
);
"""


@dataclass(frozen=True)
class Entry:
    "One state as the index has it; ``nbytes`` is 0 where the file is gone"

    state: State
    nbytes: int
    used: str

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
        "Tokens in the file: it is read whole, however little of it is needed"
        return self.entry.state.end - self.entry.state.start


@dataclass(frozen=True)
class Chain:
    """A prefix that the store knows: its token ids, and who holds which rows.

    Segments are in order and cover [0, len(tokens)) without gaps or overlap.
    """

    segments: tuple[Segment, ...] = ()
    tokens: array[int] = field(default_factory=tokens_of)

    def cut(self, n: int) -> Chain:
        "The same chain, its first n tokens only"
        if n >= len(self.tokens):
            return self
        kept = tuple(
            replace(segment, end=min(segment.end, n))
            for segment in self.segments
            if segment.start < n
        )
        return Chain(kept, self.tokens[:n])

    def before(self, entries: Iterable[Entry]) -> Chain:
        "The same chain up to the first row that one of the entries supplies"
        bad = [entry.state.response_id for entry in entries]
        for segment in self.segments:
            if segment.entry.state.response_id in bad:
                return self.cut(segment.start)
        return self

    @property
    def n_cells(self) -> int:
        "Cells taken while the chain is restored, at the most"
        return max((s.start + s.size for s in self.segments), default=0)

    @property
    def available(self) -> int:
        "How many of the tokens have their rows in a file"
        return sum(s.end - s.start for s in self.segments if s.entry.present)


@dataclass
class _Search:
    "The best chain so far for some tokens"

    tokens: array[int]
    usable: Callable[[Chain], Chain]
    best: Chain = field(default_factory=Chain)
    tried: set[int] = field(default_factory=set)

    def offer(self, chain: Chain) -> None:
        chain = chain.cut(common_prefix(chain.tokens, self.tokens))
        chain = self.usable(chain)
        ours = (self.best.available, len(self.best.tokens))
        if (chain.available, len(chain.tokens)) > ours:
            self.best = chain


class Index:
    "Rows about states, in one SQLite database"

    db: sqlite3.Connection

    @contextlib.contextmanager
    def _write(self) -> Iterator[sqlite3.Connection]:
        "A transaction that waits its turn; StoreError where it cannot be had"
        try:
            self.db.execute("begin immediate")
            try:
                yield self.db
                self.db.execute("commit")
            except BaseException:
                self.db.execute("rollback")
                raise
        except (OSError, UnicodeError, OverflowError, sqlite3.Error) as error:
            raise StoreError(f"Cannot write to the state store: {error}") from None

    def _insert(self, db: sqlite3.Connection, state: State, nbytes: int) -> int:
        db.execute(
            "delete from states where fingerprint = ? and id = ?",
            [state.fingerprint, state.response_id],
        )
        cursor = db.execute(
            "insert into states"
            " (id, fingerprint, parent, start, end, answer, tokens, prefix,"
            " input_hash, tip_hash, render, nbytes, digest, created, used)"
            " values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [
                state.response_id,
                state.fingerprint,
                state.parent_id,
                state.start,
                state.end,
                state.answer,
                token_bytes(state.tokens),
                state.prefix,
                state.input_hash,
                state.tip_hash,
                state.render,
                nbytes,
                state.digest,
                state.created,
                now(),
            ],
        )
        assert cursor.lastrowid is not None
        return cursor.lastrowid

    def _index_tokens(self, db: sqlite3.Connection, key: int, state: State) -> None:
        "Make a state findable by its token ids"
        tokens = self._prefix_tokens(db, state) + state.tokens
        if prefix_digest(tokens, state.start) != state.prefix:
            # The parent is unknown here: found by id and message hashes only,
            # until a repair finds the parent
            return
        hashes = block_hashes(state.fingerprint, tokens)
        rows = [(hashes[state.start // BLOCK], 1, key)]
        rows += [(h, 0, key) for h in hashes[state.start // BLOCK + 1 :]]
        db.executemany("insert or ignore into blocks values (?, ?, ?)", rows)

    def _prefix_tokens(self, db: sqlite3.Connection, state: State) -> array[int]:
        "Token ids of [0, state.start), empty where the parent is unknown"
        if state.parent_id is None or not state.start:
            return tokens_of()
        row = db.execute(
            "select key from states where fingerprint = ? and id = ?",
            [state.fingerprint, state.parent_id],
        ).fetchone()
        return self._chain(db, row["key"]).tokens[: state.start] if row else tokens_of()

    # -- finding -------------------------------------------------------

    def get(self, response_id: str) -> Entry | None:
        "The entry of a response, the newest where several models have one"
        row = self.db.execute(
            "select * from states where id = ? order by key desc limit 1",
            [response_id],
        ).fetchone()
        return _entry(row) if row else None

    def chain(self, entry: Entry) -> Chain:
        "Everything that leads up to an entry's end; empty if a link is unknown"
        row = self.db.execute(
            "select key from states where fingerprint = ? and id = ?",
            [entry.state.fingerprint, entry.state.response_id],
        ).fetchone()
        return self._chain(self.db, row["key"]) if row else Chain()

    def _chain(self, db: sqlite3.Connection, key: int) -> Chain:
        rows = db.execute(
            "with recursive up(key, cut, depth) as ("
            " select key, end, 0 from states where key = ?"
            " union all"
            " select parent.key, min(up.cut, child.start), up.depth + 1"
            " from up join states child on child.key = up.key"
            " join states parent on parent.id = child.parent"
            " and parent.fingerprint = child.fingerprint"
            " where child.start > 0 and up.depth < 100000)"
            " select states.*, up.cut from up join states using (key)"
            " order by up.depth desc",
            [key],
        ).fetchall()
        tokens, segments = tokens_of(), []
        for row in rows:
            entry = _entry(row)
            end = min(row["cut"], entry.state.end)
            if end <= entry.state.start:
                continue  # its child leaves the chain before it begins
            if entry.state.start > len(tokens):
                return Chain()  # the parent is unknown
            tokens = tokens[: entry.state.start]
            if prefix_digest(tokens, len(tokens)) != entry.state.prefix:
                return Chain()
            tokens += entry.state.tokens[: end - entry.state.start]
            segments.append(Segment(entry, entry.state.start, end))
        return Chain(tuple(segments), tokens)

    def find(
        self, column: str, hashes: Iterable[str | None], fingerprint: str | None = None
    ) -> list[Entry]:
        """Entries whose ``tip_hash`` or ``input_hash`` is among the hashes.

        Newest first. Without a fingerprint, entries of any model.
        """
        assert column in ("tip_hash", "input_hash")
        found: list[sqlite3.Row] = []
        for chunk in _chunks([h for h in hashes if h]):
            found += self.db.execute(
                f"select * from states where {column} in"
                f" ({','.join('?' * len(chunk))})"
                " and fingerprint = coalesce(?, fingerprint)",
                [*chunk, fingerprint],
            ).fetchall()
        return [_entry(row) for row in sorted(found, key=lambda r: -r["key"])]

    def longest_prefix(
        self,
        fingerprint: str,
        tokens: array[int],
        known: Iterable[Entry] = (),
        usable: Callable[[Chain], Chain] = lambda chain: chain,
    ) -> Chain:
        """The chain that shares the most leading tokens with ``tokens``.

        ``known`` are entries found another way, to be tried too; ``usable`` cuts
        a chain to what can be made use of. Of the chains found, the one with the
        most rows in files wins. The cost is that of the path, not of the store.
        """
        search = _Search(tokens, usable)
        for chunk in _chunks([entry.state.response_id for entry in known]):
            self._try(
                search,
                "select key from states where fingerprint = ?"
                f" and id in ({','.join('?' * len(chunk))})",
                [fingerprint, *chunk],
            )
        hashes = block_hashes(fingerprint, tokens)
        for depth in self._known_blocks(hashes):
            for starts in (0, 1):
                self._try(
                    search,
                    "select state from blocks join states on key = state"
                    " where hash = ? and starts = ? and fingerprint = ?"
                    " order by state desc limit ?",
                    [hashes[depth], starts, fingerprint, _MAX_CANDIDATES],
                )
            if search.best.available >= depth * BLOCK:
                break  # else rows are lost, or the hash promised too much
        return search.best

    def _try(self, search: _Search, query: str, values: list[Any]) -> None:
        "Offer the chains of the states that a query selects"
        for (key,) in self.db.execute(query, values).fetchall():
            if key not in search.tried:
                search.tried.add(key)
                search.offer(self._chain(self.db, key))

    def _known_blocks(self, hashes: list[int]) -> list[int]:
        "Indices of the hashes that any state has a block for, deepest first; 0 last"
        known: set[int] = set()
        for chunk in _chunks(hashes[1:]):
            known |= {
                row[0]
                for row in self.db.execute(
                    "select distinct hash from blocks where starts = 0 and hash in"
                    f" ({','.join('?' * len(chunk))})",
                    chunk,
                )
            }
        deepest_first = range(len(hashes) - 1, 0, -1)
        return [*(i for i in deepest_first if hashes[i] in known), 0]

    # -- bookkeeping ---------------------------------------------------

    def count_miss(self, reason: str) -> None:
        with self._write() as db:
            db.execute(
                "insert into misses values (?, 1, ?) on conflict (reason)"
                " do update set count = count + 1, last = excluded.last",
                [reason, now()],
            )

    def used(self, chain: Chain) -> None:
        "Note that a chain's states were used now"
        with self._write() as db:
            db.executemany(
                "update states set used = ? where fingerprint = ? and id = ?",
                [
                    (now(), s.entry.state.fingerprint, s.entry.state.response_id)
                    for s in chain.segments
                ],
            )

    def describe(self, fingerprint: str, fields: str | None = None) -> str | None:
        "The JSON that a fingerprint stands for; records it where it is given"
        if fields is not None:
            row = self.describe(fingerprint)
            if row != fields:
                with self._write() as db:
                    db.execute(
                        "insert or replace into fingerprints values (?, ?)",
                        [fingerprint, fields],
                    )
            return fields
        row = self.db.execute(
            "select fields from fingerprints where fingerprint = ?", [fingerprint]
        ).fetchone()
        return row["fields"] if row else None

    def entries(self) -> Iterator[Entry]:
        "Every entry, oldest first; the store may change in the meantime"
        last = -1
        while rows := self.db.execute(
            "select * from states where key > ? order by key limit 500", [last]
        ).fetchall():
            yield from map(_entry, rows)
            last = rows[-1]["key"]

    def misses(self) -> list[dict[str, Any]]:
        "Reasons for which stored state was not used, most frequent first"
        return [
            dict(row)
            for row in self.db.execute("select * from misses order by count desc")
        ]


def is_damage(error: BaseException) -> bool:
    "Whether an error says that the index is no sound database"
    return isinstance(error, sqlite3.DatabaseError) and not isinstance(
        error, sqlite3.OperationalError | sqlite3.IntegrityError
    )


def block_hashes(fingerprint: str, tokens: array[int]) -> list[int]:
    """Chained hashes of the tokens at 0, BLOCK, 2 * BLOCK, ... as signed int64.

    Entry k covers tokens [0, k * BLOCK). 64 bits, because a hit is confirmed
    token by token.
    """
    data = token_bytes(tokens)
    last = xxhash.xxh3_64_digest(fingerprint.encode())
    digests = [last]
    step = 4 * BLOCK
    for begin in range(0, len(data) - step + 1, step):
        last = xxhash.xxh3_64_digest(last + data[begin : begin + step])
        digests.append(last)
    return [int.from_bytes(digest, "big", signed=True) for digest in digests]


def _entry(row: sqlite3.Row) -> Entry:
    state = State(
        response_id=row["id"],
        fingerprint=row["fingerprint"],
        start=row["start"],
        end=row["end"],
        answer=row["answer"],
        tokens=tokens_from_bytes(row["tokens"]),
        prefix=row["prefix"],
        parent_id=row["parent"],
        input_hash=row["input_hash"],
        tip_hash=row["tip_hash"],
        render=row["render"],
        created=row["created"],
        digest=row["digest"],
    )
    return Entry(state, row["nbytes"], row["used"])


def _chunks(items: list[Any], size: int = 500) -> Iterator[list[Any]]:
    "SQLite limits the variables of one statement"
    for begin in range(0, len(items), size):
        yield items[begin : begin + size]


def now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat()
