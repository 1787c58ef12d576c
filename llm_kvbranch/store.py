"""All state files below one directory, and the index that finds them.

The invariant: a row is committed after its file is in place, and the index can
be rebuilt from the files alone. Nothing here is the only copy of anything: the
log is the history, the store is a cache of it.

This module does not know llama.cpp, prompts or llm's log.
"""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import xxhash

from .errors import StateError, StoreError
from .index import SCHEMA, SCHEMA_VERSION, Entry, Index, is_damage, now
from .state import SUFFIX, State, open_state, read_state, write_state


class Store(Index):
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
                if not is_damage(error):
                    raise
                self.rebuild()
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
        if db.execute("pragma user_version").fetchone()[0] != SCHEMA_VERSION:
            self._migrate(db)
        if db.execute("pragma journal_mode").fetchone()[0] != "wal":
            with contextlib.suppress(sqlite3.OperationalError):
                # Readers and the writer then leave each other alone. It lasts;
                # if someone is writing just now, the next one to open does it
                db.execute("pragma journal_mode = wal")
        return db

    def _migrate(self, db: sqlite3.Connection) -> None:
        "Make the index, or make it again after another version made it"
        db.execute("begin immediate")
        try:
            if db.execute("pragma user_version").fetchone()[0] != SCHEMA_VERSION:
                self._create(db)
            db.execute("commit")
        except BaseException:
            db.execute("rollback")
            raise

    def _create(self, db: sqlite3.Connection) -> None:
        for (name,) in db.execute(
            "select name from sqlite_master where type = 'table'"
            " and name not like 'sqlite_%'"
        ).fetchall():
            db.execute(f"drop table if exists [{name}]")
        for statement in SCHEMA.split(";"):
            db.execute(statement)
        db.execute(f"pragma user_version = {SCHEMA_VERSION}")
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

    def rebuild(self) -> None:
        "Make the index again from the files alone, whatever state it is in"
        if hasattr(self, "db"):
            self.db.close()
        path = self.root / "index.db"
        for leftover in self.root.glob("index.db*"):
            leftover.unlink()
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        self.db = self._connect(path)

    def close(self) -> None:
        self.db.close()

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
        state = replace(state, created=now())
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

    # -- checking ------------------------------------------------------

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

    def file_digest(self, path: Path) -> str:
        """xxh3-128 of a file's content, cached by path, size, mtime and inode.

        Raises OSError when the file cannot be read.
        """
        status = path.stat()
        identity = [status.st_size, status.st_mtime_ns, status.st_ino]
        name = os.fsencode(path)
        row = self.db.execute("select * from digests where path = ?", [name]).fetchone()
        if row and [row["size"], row["mtime_ns"], row["inode"]] == identity:
            return str(row["digest"])
        digest = content_digest(path)
        with contextlib.suppress(StoreError), self._write() as db:
            db.execute(
                "insert or replace into digests values (?, ?, ?, ?, ?)",
                [name, *identity, digest],
            )
        return digest

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
