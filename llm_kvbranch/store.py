"""All state files, found by the content of what came before them.

The idea: states form a tree. A state's row names its parent and the position
where it leaves the parent's tokens, so the tokens and the files of any prefix
are a walk from a state to its root. The index (``index.db``, SQLite) keeps each
state's token ids and finds a state three ways: by response id, by llm's message
hashes, and by the token ids themselves (a row for every BLOCK tokens, keyed by
the hash of everything up to there). Every hit is confirmed token by token.

The invariant: a row is committed after its file is in place, and the index can
be rebuilt from the files alone. Nothing here is the only copy of anything: the
log is the history, the store is a cache of it. Token ids outlive their file
(evicted or lost), so generated text is never tokenised again.

This module does not know llama.cpp, prompts or llm's log; a fingerprint is an
opaque name, a message hash an opaque string.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import re
import sqlite3
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import xxhash

from .errors import StateError, StoreError
from .state import (
    SUFFIX,
    State,
    common_prefix,
    open_state,
    prefix_digest,
    read_state,
    token_bytes,
    tokens_from_bytes,
    tokens_of,
    write_state,
)

BLOCK = 32  # tokens for each row that finds a state by its tokens
_SCHEMA_VERSION = 1  # a different version is rebuilt from the files
_MAX_CANDIDATES = 64  # states looked at that begin in the block after a match

_SCHEMA = """
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
  path text primary key, size integer, mtime_ns integer, inode integer,
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

    @property
    def available(self) -> int:
        "How many of the tokens have their rows in a file"
        return sum(s.end - s.start for s in self.segments if s.entry.present)


@dataclass
class _Search:
    "The best chain so far for some tokens, and the longest match of any"

    tokens: array[int]
    usable: Callable[[Chain], Chain]
    best: Chain = field(default_factory=Chain)
    longest: int = 0
    tried: set[int] = field(default_factory=set)

    def offer(self, chain: Chain) -> None:
        chain = chain.cut(common_prefix(chain.tokens, self.tokens))
        self.longest = max(self.longest, len(chain.tokens))
        chain = self.usable(chain)
        ours = (self.best.available, len(self.best.tokens))
        if (chain.available, len(chain.tokens)) > ours:
            self.best = chain


class Store:
    """The state files below one directory, and their index.

    Opening creates the directory (0700) and the index (0600). Raises
    StoreError where that is impossible. One Store may be used from several
    threads, one call at a time; several processes may have one each.
    """

    def __init__(self, root: Path | str):
        self.root = Path(root)
        try:
            self._make_directory(self.root)
            self._make_directory(self.root / "states")
            path = self.root / "index.db"
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
            try:
                self.db = self._connect(path)
            except sqlite3.DatabaseError as error:
                if isinstance(error, sqlite3.OperationalError):
                    raise
                # Not a database at all: the files are the truth
                for leftover in self.root.glob("index.db*"):
                    leftover.unlink()
                os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
                self.db = self._connect(path)
        except (OSError, sqlite3.Error) as error:
            raise StoreError(
                f"Cannot use the state store {self.root}: {error}. "
                "Check its permissions, or set LLM_KVBRANCH_DIR to another directory"
            ) from None

    @staticmethod
    def _make_directory(path: Path) -> None:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)

    def _connect(self, path: Path) -> sqlite3.Connection:
        db = sqlite3.connect(
            path, isolation_level=None, check_same_thread=False, timeout=10
        )
        db.row_factory = sqlite3.Row
        db.execute("pragma foreign_keys = on")
        if db.execute("pragma user_version").fetchone()[0] == _SCHEMA_VERSION:
            return db
        db.execute("begin immediate")
        try:
            if db.execute("pragma user_version").fetchone()[0] != _SCHEMA_VERSION:
                self._create(db)
            db.execute("commit")
        except BaseException:
            db.execute("rollback")
            raise
        with contextlib.suppress(sqlite3.OperationalError):
            # Readers and the writer then leave each other alone. Someone else
            # may be at it: it is a property of the file, one time is enough
            db.execute("pragma journal_mode = wal")
        return db

    def _create(self, db: sqlite3.Connection) -> None:
        for (name,) in db.execute(
            "select name from sqlite_master where type = 'table'"
            " and name not like 'sqlite_%'"
        ).fetchall():
            db.execute(f"drop table if exists [{name}]")
        for statement in _SCHEMA.split(";"):
            db.execute(statement)
        db.execute(f"pragma user_version = {_SCHEMA_VERSION}")
        states = []
        for path in self._files():
            with contextlib.suppress(StateError):
                state = read_state(path)
                if path == self.path(state):  # or it is a copy, or no file of ours
                    states.append((state, path.stat().st_size))
        states.sort(key=lambda pair: pair[0].created)
        keys = [self._insert(db, state, nbytes) for state, nbytes in states]
        for key, (state, _) in zip(keys, states, strict=True):
            self._index_tokens(db, key, state)  # now that every parent is there

    def close(self) -> None:
        self.db.close()

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
        except (OSError, sqlite3.Error) as error:
            raise StoreError(f"Cannot write to the state store: {error}") from None

    # -- files ---------------------------------------------------------

    def path(self, state: State) -> Path:
        return self.root / "states" / state.fingerprint / f"{state.response_id}{SUFFIX}"

    def _files(self) -> Iterator[Path]:
        yield from sorted((self.root / "states").glob(f"*/*{SUFFIX}"))

    @contextlib.contextmanager
    def open(self, entry: Entry) -> Iterator[memoryview]:
        """The payload of an entry's file, every byte verified.

        Raises StateError when the file is not the one that the index knows.
        """
        with open_state(self.path(entry.state)) as (state, payload):
            if state.fingerprint != entry.state.fingerprint:
                raise StateError("state file belongs to another model or build")
            if state.digest != entry.state.digest or state.tokens != entry.state.tokens:
                raise StateError("state file is not the one that was stored")
            yield payload

    def put(self, state: State, payload: Any) -> Entry:
        """Store a state: the file first, then its index row.

        A state of the same response is replaced; ``created`` becomes now, so no
        two files are equal. Raises StoreError, with the file removed again, when
        either cannot be written.
        """
        if not re.fullmatch(r"[A-Za-z0-9_.-]{1,128}", state.response_id):
            raise StoreError(f"Response id {state.response_id!r} cannot name a file")
        path = self.path(state)
        state = replace(state, created=_now())
        try:
            self._make_directory(path.parent)
            digest, nbytes = write_state(path, state, payload)
        except OSError as error:
            raise StoreError(f"Cannot write to the state store: {error}") from None
        state = replace(state, digest=digest)
        try:
            with self._write() as db:
                self._index_tokens(db, self._insert(db, state, nbytes), state)
        except BaseException:
            with contextlib.suppress(OSError):
                path.unlink()
            raise
        return Entry(state, nbytes, state.created)

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
                _now(),
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
            if search.longest >= depth * BLOCK:
                break  # else what was found is not what the hash promised
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

    def lost(self, entry: Entry, reason: str) -> None:
        """Record that an entry's file cannot be used; its token ids stay known.

        A file that another process has written again since is left alone.
        """
        with self._write() as db:
            cursor = db.execute(
                "update states set nbytes = 0"
                " where fingerprint = ? and id = ? and digest = ?",
                [
                    entry.state.fingerprint,
                    entry.state.response_id,
                    entry.state.digest,
                ],
            )
        if cursor.rowcount:
            with contextlib.suppress(OSError):
                self.path(entry.state).unlink()
        self.count_miss(reason)

    def count_miss(self, reason: str) -> None:
        with self._write() as db:
            db.execute(
                "insert into misses values (?, 1, ?) on conflict (reason)"
                " do update set count = count + 1, last = excluded.last",
                [reason, _now()],
            )

    def used(self, chain: Chain) -> None:
        "Note that a chain's states were used now"
        with self._write() as db:
            db.executemany(
                "update states set used = ? where fingerprint = ? and id = ?",
                [
                    (_now(), s.entry.state.fingerprint, s.entry.state.response_id)
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

    def file_digest(self, path: Path) -> str:
        """xxh3-128 of a file's content, cached by path, size, mtime and inode.

        Raises OSError when the file cannot be read.
        """
        status = path.stat()
        identity = [status.st_size, status.st_mtime_ns, status.st_ino]
        row = self.db.execute(
            "select * from digests where path = ?", [str(path)]
        ).fetchone()
        if row and [row["size"], row["mtime_ns"], row["inode"]] == identity:
            return str(row["digest"])
        digest = content_digest(path)
        with contextlib.suppress(StoreError), self._write() as db:
            db.execute(
                "insert or replace into digests values (?, ?, ?, ?, ?)",
                [str(path), *identity, digest],
            )
        return digest

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

    def verify(self) -> Iterator[tuple[str, str]]:
        """Check every file, every link and the index; yields (id, problem).

        Reads every byte of the store, changes nothing.
        """
        indexed = set()
        for entry in self.entries():
            state = entry.state
            indexed.add(self.path(state))
            if not entry.present:
                if self.path(state).exists():
                    yield state.response_id, "file is there, the index says it is not"
                continue
            try:
                with self.open(entry):
                    pass
            except StateError as error:
                yield state.response_id, str(error)
            if len(self.chain(entry).tokens) != state.end:
                yield state.response_id, f"its parent {state.parent_id} is unknown"
        for path in self._files():
            if path not in indexed:
                yield path.name.removesuffix(SUFFIX), "file is not in the index"
        for path in sorted((self.root / "states").glob("*/.*.tmp")):
            yield path.name, "temporary file left by a crash"


def content_digest(path: Path) -> str:
    "xxh3-128 of a file's content"
    digest = xxhash.xxh3_128()
    with open(path, "rb", buffering=0) as file:
        buffer = bytearray(1 << 22)
        while n := file.readinto(buffer):
            digest.update(memoryview(buffer)[:n])
    return digest.hexdigest()


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


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat()
