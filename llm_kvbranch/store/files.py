"""The directory of a store, and how its files are changed.

The idea: a change of files is recorded in the index before it is made (``pending``),
and the record is deleted afterwards. Only one process changes files at a time, under
a lock that ends with the process. So whatever is pending when that lock is acquired
was left by a crash, and is settled by looking at the files.

The invariants: a file appears only when it is complete, by a rename, and is never
changed. A row says that there is a file only if there is one. The index can be
rebuilt from the files alone.

This module does not know why a file is written or deleted.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import StateError, StoreError, UnreadableStateError
from .chain import Chain, Entry
from .database import (
    BY_KEY,
    SCHEMA_VERSION,
    connect,
    create,
    is_damage,
    now,
    transaction,
    version,
)
from .header import Key, State
from .index import Index, entry_of
from .locks import Locks
from .statefile import SUFFIX, is_missing, read_head, sync_directory
from .stats import Stats
from .walk import walk

BUDGET_SHARE = 0.2  # of the bytes that are free on the disk or in the store
# Token ids of evicted states are kept until the index takes this share of the budget
# and this many bytes
_INDEX_SHARE = 0.1
_INDEX_LEAST = 1 << 26
_CREATING = threading.Lock()


@dataclass(frozen=True)
class Deletion:
    "Entries whose files are deleted, and why; their rows are kept unless with_rows"

    entries: Sequence[Entry]
    reason: str
    with_rows: bool = False


@dataclass(frozen=True)
class Addition:
    "A new state, in a temporary file of nbytes, and the chain it continues"

    state: State
    temporary: Path
    nbytes: int
    chain: Chain


class Files(Index, Stats):
    "State files and their index, which agree even after a crash; see Store"

    def __init__(self, root: Path | str, budget: int | None = None):
        super().__init__()
        self.root = Path(root)
        self.limit = budget
        try:
            self.make_directories()
            self.locks = Locks(self.root / "lock")
            path = self._index_file()
            try:
                self.db = self._connect(path)
                self.recover()
            except sqlite3.DatabaseError as error:
                if not is_damage(error):
                    raise
                self.rebuild()
        except (OSError, sqlite3.Error) as error:
            raise StoreError(
                f"Cannot use the state store {self.root}: {error}. "
                "Check its permissions, or set LLM_KVBRANCH_DIR to another directory"
            ) from None

    def close(self) -> None:
        self.db.close()
        self.locks.close()

    # -- opening -------------------------------------------------------

    def make_directories(self) -> None:
        for directory in (self.root, self.root / "states", self.root / "tmp"):
            self._make_directory(directory)

    @staticmethod
    def _make_directory(path: Path) -> None:
        if not path.is_dir():
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            sync_directory(path.parent)

    def _index_file(self) -> Path:
        """The index, created empty if there is none.

        An existing one is never opened here: closing any descriptor of a file drops
        the locks that this process's SQLite connections have on it, and the next
        process to leave would then delete the journal that they write to.
        """
        path = self.root / "index.db"
        with _CREATING:  # no other thread may connect before the file is closed
            try:
                os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
            except FileExistsError:
                if not os.access(path, os.R_OK | os.W_OK):
                    raise PermissionError(
                        errno.EACCES, os.strerror(errno.EACCES), str(path)
                    ) from None
        self._inode = path.stat().st_ino
        return path

    def _connect(self, path: Path) -> sqlite3.Connection:
        db = connect(path)
        if version(db) != SCHEMA_VERSION:
            self._migrate(db)
        if db.execute("pragma journal_mode").fetchone()[0] != "wal":
            with contextlib.suppress(sqlite3.OperationalError):
                # Lets readers and a writer work at the same time. It is permanent;
                # if the index is locked now, the next one to open it does this
                db.execute("pragma journal_mode = wal")
        return db

    def _migrate(self, db: sqlite3.Connection) -> None:
        "Create the index, or replace the one of another version"
        # Nobody changes files while they are read
        with self.locks.writer(), transaction(db):
            if version(db) != SCHEMA_VERSION:
                create(db)
                self._read_files(db)

    def _read_files(self, db: sqlite3.Connection) -> None:
        "Fill an empty index from the headers of the files"
        states = []
        for path in self.files():
            with contextlib.suppress(StateError):
                state, nbytes = read_head(path)
                if path == self.path(state):  # else it is a copy or not ours
                    states.append((state, nbytes))
        states.sort(key=lambda pair: pair[0].created)
        keys = [self._add(db, state, nbytes) for state, nbytes in states]
        for visit in walk(db, entry_of):  # now that every parent has a row
            self._insert_blocks(db, visit.key, visit.hashes or [])
        # When they were used is unknown, but a parent is used with its children:
        # the newest come first, and so do their ancestors
        above = {(s.fingerprint, s.response_id): s.parent_id for s, _ in states}
        used: dict[tuple[str, str | None], str] = {}
        for state, _ in reversed(states):
            which: tuple[str, str | None] = (state.fingerprint, state.response_id)
            while which in above and which not in used:
                used[which] = state.created
                which = (state.fingerprint, above[which])
        for key, (state, _) in zip(keys, states, strict=True):
            last = used[state.fingerprint, state.response_id]
            db.execute("update states set used = ? where key = ?", [last, key])

    def rebuild(self) -> None:
        "Replace the index, even a damaged one, by one made from the files alone"
        with self.locks.writer():
            if hasattr(self, "db"):
                self.db.close()
            for leftover in self.root.glob("index.db*"):
                leftover.unlink()
            self.db = self._connect(self._index_file())

    # -- files ---------------------------------------------------------

    def path(self, state: State) -> Path:
        return self._path(state.key)

    def _path(self, key: Key) -> Path:
        fingerprint, response_id = key
        return self.root / "states" / fingerprint / f"{response_id}{SUFFIX}"

    def pin_file(self, state: State) -> Path:
        "An empty file that marks a state as pinned even if the index is lost"
        return self.path(state).with_suffix(".pin")

    def files(self) -> Iterator[Path]:
        "Every state file, whether it is in the index or not"
        for path in sorted((self.root / "states").glob(f"*/*{SUFFIX}")):
            if not path.is_dir():
                yield path

    # -- changing ------------------------------------------------------

    @contextlib.contextmanager
    def writer(self) -> Iterator[None]:
        """Be the only process to change files, with the current index.

        Settles what a crash left half done, and makes the store's directory again if
        it was deleted. Raises OSError or StoreError.
        """
        self.make_directories()
        with self.locks.writer():
            self._follow_rebuild()
            self._settle()
            yield

    def change(self, deleted: Deletion, added: Addition | None = None) -> None:
        """Delete files and add one, so that a crash cannot leave it half done.

        The caller is the writer and has claimed what is deleted. Raises OSError or
        StoreError, with the files as the index says.
        """
        states = [entry.state for entry in deleted.entries]
        if added is not None:
            states.append(added.state)
        key = self._announce(deleted, added)
        try:
            self._move(deleted, added)
        except BaseException:
            with contextlib.suppress(OSError, StoreError, sqlite3.Error):
                self._settle()
            raise
        with self._write() as db:
            if added is not None:
                db.execute(
                    "update states set nbytes = ? where key = ?", [added.nbytes, key]
                )
                self._touch(db, key, added.chain)
            self._clear_pending(db, [state.key for state in states])

    def add_without_file(
        self, state: State, nbytes: int, chain: Chain, reason: str
    ) -> None:
        "Index a state that is found by its tokens, but has no file for a reason"
        with self._write() as db:
            key = self._add(db, state, nbytes)
            self._index_tokens(db, key, state, chain)
            self._remove(db, Entry(state, nbytes, state.created), reason, False)
            self._clear_pending(db, [state.key])
            self._touch(db, key, chain)

    def _announce(self, deleted: Deletion, added: Addition | None) -> int | None:
        "Record what is about to be done to files; returns the key of the new row"
        key = None
        with self._write() as db:
            for entry in deleted.entries:
                self._remove(db, entry, deleted.reason, deleted.with_rows)
            if added is not None:
                key = self._add(db, added.state, 0)
                self._index_tokens(db, key, added.state, added.chain)
                self._set_pending(db, added.state)
                if self._index_bytes() > max(
                    _INDEX_LEAST, int(_INDEX_SHARE * self.budget())
                ):
                    self._delete_gone(db)
        return key

    def _index_bytes(self) -> int:
        "Bytes of the index that are in use"
        pages, free, size = (
            self.db.execute(f"pragma {name}").fetchone()[0]
            for name in ("page_count", "freelist_count", "page_size")
        )
        return int((pages - free) * size)

    def _follow_rebuild(self) -> None:
        "Open the index that another process has created in the meantime"
        with contextlib.suppress(FileNotFoundError):
            if (self.root / "index.db").stat().st_ino == self._inode:
                return
        self.db.close()
        self.db = self._connect(self._index_file())

    def _remove(
        self, db: sqlite3.Connection, entry: Entry, reason: str, with_row: bool
    ) -> None:
        self._set_pending(db, entry.state)
        if with_row:
            db.execute(f"delete from states {BY_KEY}", entry.state.key)
        else:
            db.execute(
                f"update states set nbytes = 0, gone = ? {BY_KEY}",
                [reason, *entry.state.key],
            )
        db.execute(
            "insert into removals values (?, 1, ?, ?) on conflict (reason) do update"
            " set count = count + 1, nbytes = nbytes + excluded.nbytes,"
            " last = excluded.last",
            [reason, entry.nbytes, now()],
        )

    def _set_pending(self, db: sqlite3.Connection, state: State) -> None:
        db.execute("insert or ignore into pending values (?, ?)", state.key)

    def _clear_pending(self, db: sqlite3.Connection, keys: list[Key]) -> None:
        db.executemany(f"delete from pending {BY_KEY}", keys)

    def _move(self, deleted: Deletion, added: Addition | None) -> None:
        "Change the files as announced, and make it durable"
        directories = set()
        for entry in deleted.entries:
            path = self.path(entry.state)
            path.unlink(missing_ok=True)
            if deleted.with_rows:
                self.pin_file(entry.state).unlink(missing_ok=True)
            directories.add(path.parent)
        if added is not None:
            path = self.path(added.state)
            self._make_directory(path.parent)
            os.replace(added.temporary, path)
            directories.add(path.parent)
        for directory in directories:
            sync_directory(directory)

    def _settle(self) -> None:
        "Finish or undo the change that a crash left; the caller is the writer"
        rows = self.db.execute("select fingerprint, id from pending").fetchall()
        found = []
        for fingerprint, response_id in rows:
            key = fingerprint, response_id
            entry, path, nbytes = self.get(response_id, fingerprint), self._path(key), 0
            if entry is not None and entry.gone is None:
                try:
                    state, size = read_head(path)
                    nbytes = size if state.digest == entry.state.digest else 0
                except UnreadableStateError:
                    if not is_missing(path):
                        continue  # stays pending: the file may be good
                except StateError:
                    pass
            if not nbytes:
                try:
                    path.unlink(missing_ok=True)
                except OSError:
                    if path.exists():
                        continue  # stays pending, without stopping the rest
            found.append((nbytes, key))
        if found:
            with self._write() as db:
                db.executemany(
                    "update states set nbytes = ?, gone = iif(?, null,"
                    f" coalesce(gone, 'state could not be written')) {BY_KEY}",
                    [(nbytes, nbytes, *key) for nbytes, key in found],
                )
                self._clear_pending(db, [key for _, key in found])

    def recover(self) -> None:
        "Clean up after processes that ended while they wrote"
        leftovers = list((self.root / "tmp").iterdir())
        pending = self.db.execute("select 1 from pending limit 1").fetchone()
        if not (leftovers or pending):
            return
        with self.writer(), self.locks.claims() as claims:
            for path in leftovers:
                if claims.take(path.name):
                    path.unlink(missing_ok=True)

    def add_to_index(self, state: State, nbytes: int) -> None:
        "Index a file that is in its place, complete and verified"
        with self.writer(), self._write() as db:
            self._index_tokens(db, self._add(db, state, nbytes), state)

    def index_blocks(self, key: int, hashes: list[int]) -> None:
        "Let a state be found by its tokens"
        with self.writer(), self._write() as db:
            self._insert_blocks(db, key, hashes)

    def _add(self, db: sqlite3.Connection, state: State, nbytes: int) -> int:
        "Add a state's row to the index, pinned if its pin file exists"
        return self._insert(db, state, nbytes, self.pin_file(state).exists())

    # -- room ----------------------------------------------------------

    def budget(self) -> int:
        "How many bytes the state files may take"
        if self.limit is not None:
            return self.limit
        free = shutil.disk_usage(self.root).free
        return int(BUDGET_SHARE * (free + self.nbytes()))


def lock_name(entry: Entry) -> str:
    "The name of a state's lock"
    return "/".join(entry.state.key)
