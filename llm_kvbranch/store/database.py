"""The SQLite database behind the store: its tables, and how they are written.

The idea: everything about a state is in one row of ``states``. Totals, which would
need all rows, are kept up to date by triggers, so no query gets slower as the store
grows.

The invariant: a write is one transaction that waits its turn. Tables of another
version are not read: the store rebuilds them from its files.

This module does not know what the rows mean.
"""

from __future__ import annotations

import contextlib
import datetime
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import StoreError

SCHEMA_VERSION = 3

_TABLES = """
create table states (
  key integer primary key,
  id text not null,             -- response id
  fingerprint text not null,    -- which model, KV layout and build
  parent text,                  -- response id whose chain supplies [0, start)
  start integer not null,
  end integer not null,
  answer integer not null,      -- position of the first generated token
  prefix text not null,         -- digest of the ids of [0, start)
  input_hash text,              -- llm's hash of the prompt's message chain
  tip_hash text,                -- llm's hash of the answer
  render text not null,         -- what turned messages into text
  thread text,                  -- llm's thread that the response was logged in
  origin text,                  -- where it was imported from, null if it was not
  payload text not null,        -- digest of the KV rows
  snapshots text not null,      -- positions and digests of snapshots
  digest text not null,         -- of the file
  created text not null,
  nbytes integer not null,      -- of the file, 0 when there is none
  gone text,                    -- why there is none
  pinned integer not null default 0,
  used text not null,
  unique (fingerprint, id)
);
create table token_ids (        -- apart: what is changed often stays small
  state integer primary key references states (key) on delete cascade,
  ids blob not null             -- int32 ids of [start, end)
);
create view entries as
  select states.*, ids as tokens from states join token_ids on state = key;
create index states_tip on states (tip_hash);
create index states_input on states (input_hash);
create index states_id on states (id);
create index states_parent on states (parent);
create index states_used on states (used, start desc) where nbytes > 0;
create index states_gone on states (used, start desc) where nbytes = 0;
create index states_pinned on states (pinned) where pinned;
create table blocks (
  hash integer not null,        -- of all tokens up to a multiple of BLOCK
  starts integer not null,      -- 1: the state starts in the block after it
  state integer not null references states (key) on delete cascade,
  primary key (hash, starts, state)
) without rowid;
create index blocks_state on blocks (state);
create table pending (          -- files that are being changed: see files.py
  fingerprint text not null, id text not null, primary key (fingerprint, id)
) without rowid;
create table models (
  fingerprint text primary key,
  fields text,                  -- what the fingerprint stands for, as JSON
  responses integer not null default 0,
  states integer not null default 0,
  nbytes integer not null default 0,
  tokens integer not null default 0,
  prompts integer not null default 0,
  prompt_tokens integer not null default 0,
  reused_tokens integer not null default 0
) without rowid;
create table threads (
  thread text primary key,
  states integer not null default 0,
  nbytes integer not null default 0
) without rowid;
create index threads_nbytes on threads (nbytes);
create table misses (
  reason text primary key, count integer not null, last text not null
);
create table removals (
  reason text primary key, count integer not null, nbytes integer not null,
  last text not null
);
create table rates (            -- amounts per second, measured here
  name text primary key, amount real not null, seconds real not null
);
create table digests (
  path blob primary key, size integer, mtime_ns integer, inode integer,
  digest text not null
);
"""

_COUNT = """
  insert into models (fingerprint, responses, states, nbytes, tokens)
  values ({row}.fingerprint, {sign}1, {sign}({row}.nbytes > 0), {sign}{row}.nbytes,
    {sign}({row}.nbytes > 0) * ({row}.end - {row}.start))
  on conflict (fingerprint) do update set
    responses = responses + excluded.responses, states = states + excluded.states,
    nbytes = nbytes + excluded.nbytes, tokens = tokens + excluded.tokens;
  insert into threads (thread, states, nbytes)
  values (coalesce({row}.thread, ''), {sign}({row}.nbytes > 0), {sign}{row}.nbytes)
  on conflict (thread) do update set
    states = states + excluded.states, nbytes = nbytes + excluded.nbytes;
"""
_ADD, _TAKE = _COUNT.format(row="new", sign="+"), _COUNT.format(row="old", sign="-")

SCHEMA = (
    *(statement for statement in _TABLES.split(";") if statement.strip()),
    f"create trigger states_insert after insert on states begin {_ADD} end",
    f"create trigger states_delete after delete on states begin {_TAKE} end",
    "create trigger states_update after update of nbytes, thread on states"
    f" begin {_TAKE} {_ADD} end",
)


# What any use of a store may raise
STORE_ERRORS = (StoreError, sqlite3.Error, OSError)

BY_KEY = "where fingerprint = ? and id = ?"  # a State.key


class Database:
    "The connection that all parts of the store share"

    db: sqlite3.Connection

    @contextlib.contextmanager
    def _write(self) -> Iterator[sqlite3.Connection]:
        "A transaction that waits its turn; raises StoreError"
        try:
            with transaction(self.db):
                yield self.db
        except (OSError, UnicodeError, OverflowError, sqlite3.Error) as error:
            if is_damage(error):
                raise  # the index can be rebuilt
            raise StoreError(f"Cannot write to the state store: {error}") from None


@contextlib.contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    "A transaction that waits its turn and is undone after any exception"
    is_ours = not db.in_transaction  # otherwise SQLite refuses to begin
    try:
        # Ctrl-C while this waits arrives after SQLite has begun
        db.execute("begin immediate")
        yield
        db.execute("commit")
    except BaseException:
        if is_ours:
            with contextlib.suppress(sqlite3.Error):
                db.rollback()
        raise


def connect(path: Path) -> sqlite3.Connection:
    "Open a database for reading and writing; raises sqlite3.Error"
    db = sqlite3.connect(
        path, isolation_level=None, check_same_thread=False, timeout=10
    )
    db.row_factory = sqlite3.Row
    db.execute("pragma foreign_keys = on")
    return db


def connect_reading(path: Path) -> sqlite3.Connection:
    "Open a database read-only; raises sqlite3.Error"
    db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=10)
    db.row_factory = sqlite3.Row
    return db


def version(db: sqlite3.Connection) -> int:
    return int(db.execute("pragma user_version").fetchone()[0])


def create(db: sqlite3.Connection) -> None:
    "Drop and create all tables, in the caller's transaction"
    for kind, name in db.execute(
        "select type, name from sqlite_master where type in ('table', 'view')"
        " and name not like 'sqlite_%'"
    ).fetchall():
        db.execute(f"drop {kind} if exists [{name}]")
    for statement in SCHEMA:
        db.execute(statement)
    db.execute(f"pragma user_version = {SCHEMA_VERSION}")


def is_damage(error: BaseException) -> bool:
    "Whether an error means that the database is damaged"
    return isinstance(error, sqlite3.DatabaseError) and not isinstance(
        error, sqlite3.OperationalError | sqlite3.IntegrityError
    )


def chunks(items: list[Any], size: int = 500) -> Iterator[list[Any]]:
    "Split a list: SQLite limits the variables of one statement"
    for begin in range(0, len(items), size):
        yield items[begin : begin + size]


def now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat()


def just_after(time: str) -> str:
    "The next moment after one that ``now`` returned"
    with contextlib.suppress(ValueError, OverflowError):
        moment = datetime.datetime.fromisoformat(time)
        return (moment + datetime.timedelta(microseconds=1)).isoformat()
    return time
