"""What people do with a store: pin, prune, collect garbage, verify, repair.

The idea: each is made of the store's own reads and changes, so its guarantees
hold here too: one writer at a time, nothing left half done.

The invariant: nothing is removed that is pinned, in use, or needed by a state that
is kept.

This module does not know the log: it is given response ids.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import StateError, StoreError, UnreadableStateError
from .chain import Entry
from .database import is_damage
from .files import Deletion, lock_name
from .statefile import SUFFIX, is_missing, open_state, read_state, sync_directory
from .store import EVICTED, Store
from .tokens import BLOCK, block_hashes

PRUNED = "state was pruned"
UNFINDABLE = "cannot be found by its tokens"


@dataclass
class Removal:
    "Entries that were removed, and those that were kept, with the reason"

    removed: list[Entry] = field(default_factory=list)
    kept: list[tuple[Entry, str]] = field(default_factory=list)

    @property
    def nbytes(self) -> int:
        return sum(entry.nbytes for entry in self.removed)


def pin(store: Store, response_id: str, pinned: bool = True) -> Entry:
    """Protect a state and its ancestors from being evicted, or stop doing so.

    Raises StoreError if there is no state.
    """
    with store.writer():
        entry = store.get(response_id)
        if entry is None or not (entry.present or not pinned):
            raise StoreError(
                f"Response {response_id} has no state to pin"
                + (f": {entry.gone}" if entry and entry.gone else "")
            )
        marker = store.pin_file(entry.state)
        try:
            if pinned:
                os.close(os.open(marker, os.O_WRONLY | os.O_CREAT, 0o600))
            else:
                marker.unlink(missing_ok=True)
        except OSError as error:
            raise StoreError(f"Cannot write to the state store: {error}") from None
        sync_directory(marker.parent)
        store.set_pinned(entry, pinned)
    return entry


def collect(store: Store, limit: int | None = None, dry_run: bool = False) -> Removal:
    """Delete leftovers, and evict states until they take ``limit`` bytes.

    The limit is the store's budget by default. The least recently used states go
    first. Leftovers are temporary files of crashed processes, and files that are not
    in the index, such as those of an earlier format. Good ones are added to the index.
    """
    store.recover()
    for path in () if dry_run else store.files():
        if store.get(path.name.removesuffix(SUFFIX), path.parent.name) is None:
            _repair_file(store, path)
    return evict(store, limit, dry_run)


def evict(store: Store, limit: int | None = None, dry_run: bool = False) -> Removal:
    """Evict states until they take ``limit`` bytes, by default the store's budget.

    The least recently used ones go first; pinned ones and those in use are kept.
    """
    removal = Removal()
    limit = store.budget() if limit is None else limit
    with store.writer(), store.locks.claims() as claims:
        removal.removed = store.least_used(claims, store.nbytes() - limit)
        if not dry_run:
            store.change(Deletion(removal.removed, EVICTED))
    return removal


def prune(store: Store, response_ids: Iterable[str], dry_run: bool = False) -> Removal:
    """Delete the states of some responses, with their token ids.

    States that are pinned, in use, or needed by another response are kept.
    """
    removal = Removal()
    with store.writer(), store.locks.claims() as claims:
        chosen = {}
        for response_id in response_ids:
            for entry in store.get_all(response_id):
                chosen[lock_name(entry)] = entry
        pinned = store.pinned_keys()
        for name, entry in list(chosen.items()):
            reason = None
            if entry.state.key in pinned:
                reason = "it is pinned, or a pinned state needs it"
            elif not claims.take(name):
                reason = "it is in use"
            if reason:
                removal.kept.append((chosen.pop(name), reason))
        _keep_needed(store, chosen, removal)
        removal.removed = list(chosen.values())
        if not dry_run:
            store.change(Deletion(removal.removed, PRUNED, with_rows=True))
    return removal


def _keep_needed(store: Store, chosen: dict[str, Entry], removal: Removal) -> None:
    "Unchoose the states that any other state continues"
    needed = [
        entry
        for entry in chosen.values()
        if any(lock_name(child) not in chosen for child in store.children(entry))
    ]
    for entry in needed:
        at: Entry | None = entry
        while at and (found := chosen.pop(lock_name(at), None)):
            removal.kept.append((found, "another response continues from it"))
            state, at = at.state, None
            if state.start and state.parent_id:
                at = store.get(state.parent_id, state.fingerprint)


# -- checking ----------------------------------------------------------


def verify(store: Store) -> Iterator[tuple[str, str]]:
    """Check every file, every link and the index; yields (name, problem).

    Reads every byte of the store and changes nothing. Other processes may use the
    store meanwhile: whatever looks wrong is checked again while nobody changes files.
    """
    try:
        yield from _check_database(store)
        yield from _check_entries(store)
        yield from _check_files(store)
    except sqlite3.DatabaseError as error:
        if not is_damage(error):
            raise
        yield "index.db", str(error)


def _check_entries(store: Store) -> Iterator[tuple[str, str]]:
    "Check that entries and files agree"
    unknown = _Unknown(store)
    for visit in store.walk():
        state = visit.entry.state
        problem = _problem(store, visit.entry, visit.hashes)
        if problem or visit.hashes is None:
            with store.locks.writer():
                current = store.get(state.response_id, state.fingerprint)
                problem = None
                if current is not None:
                    problem = _problem(store, current, unknown.hashes(current))
        if problem:
            yield state.response_id, problem


class _Unknown:
    "The states whose ancestors are unknown, as are then those of their children"

    def __init__(self, store: Store):
        self._store, self._keys = store, set[tuple[str, str | None]]()

    def hashes(self, entry: Entry) -> list[int] | None:
        "The hashes under which an entry must be found; None if ancestors are unknown"
        state = entry.state
        if not (state.start and (state.fingerprint, state.parent_id) in self._keys):
            tokens = self._store.chain(entry).tokens
            if len(tokens) == state.end:
                return block_hashes(state.fingerprint, tokens)[state.start // BLOCK :]
        self._keys.add(state.key)
        return None


def _problem(store: Store, entry: Entry, hashes: list[int] | None) -> str | None:
    "What is wrong with an entry whose blocks must have some hashes, or None"
    state, path = entry.state, store.path(entry.state)
    if not entry.present:
        if entry.gone is None:
            return "being written, or left incomplete by a crash"
        return "file exists, but not according to the index" if path.exists() else None
    problem = None
    try:
        with open_state(path) as (found, _, _):
            if found != state:
                problem = "index and file disagree"
            elif path.stat().st_size != entry.nbytes:
                problem = "index and file disagree about its size"
    except (StateError, OSError) as error:
        problem = str(error)
    return problem or _link_problem(store, entry, hashes)


def _link_problem(store: Store, entry: Entry, hashes: list[int] | None) -> str | None:
    "Whether an entry's ancestors are known and it is indexed by its tokens"
    if hashes is None:
        return f"its parent {entry.state.parent_id} is unknown"
    return UNFINDABLE if set(hashes) - store.hashes_of(entry) else None


def _check_database(store: Store) -> Iterator[tuple[str, str]]:
    "Let SQLite check the index, and compare the totals"
    for pragma in ("integrity_check(5)", "foreign_key_check"):
        for row in store.db.execute(f"pragma {pragma}").fetchall():
            if row[0] != "ok":
                yield "index.db", " ".join(" ".join(map(str, row)).split())
    sums = store.db.execute(
        "select (select coalesce(sum(nbytes), 0) from states),"
        " (select coalesce(sum(nbytes), 0) from models),"
        " (select coalesce(sum(nbytes), 0) from threads)"
    ).fetchone()
    if len(set(sums)) > 1:
        yield "index.db", "totals do not add up"


def is_sound(store: Store) -> bool:
    "Whether SQLite finds the index intact, and its totals add up"
    try:
        return next(_check_database(store), None) is None
    except sqlite3.DatabaseError as error:
        return not is_damage(error)


def _check_files(store: Store) -> Iterator[tuple[str, str]]:
    "Files that should not exist, or that other users can read"
    for path in store.files():
        which = path.name.removesuffix(SUFFIX), path.parent.name
        if store.get(*which) is None:
            with store.locks.writer():
                unindexed = store.get(*which) is None and path.exists()
            if unindexed:
                yield which[0], "file is not in the index"
    for path in _leftovers(store):
        yield path.name, "temporary file left by a crash"
    for path in _exposed(store):
        yield str(path.relative_to(store.root)), "other users can read it"


def _leftovers(store: Store) -> list[Path]:
    "Temporary files whose writer has ended"
    found = []
    for path in sorted((store.root / "tmp").iterdir()):
        with store.locks.claims() as claims:
            abandoned = claims.take(path.name)
        if abandoned and path.exists():
            found.append(path)
    return found


def _exposed(store: Store) -> Iterator[Path]:
    "Files and directories of the store that are not private to their owner"
    ours = [store.root / "states", store.root / "tmp", *store.root.glob("index.db*")]
    for path in [*ours, *sorted((store.root / "states").rglob("*"))]:
        with contextlib.suppress(OSError):
            if os.name == "posix" and path.lstat().st_mode & 0o077:
                yield path


def repair(store: Store) -> Iterator[tuple[str, str]]:
    """Make files and index agree again; yields (name, what was done).

    The files are the truth: a damaged index is rebuilt from them alone. Otherwise it
    is corrected, and keeps what is in no file.
    """
    for path in _exposed(store):
        path.chmod(0o700 if path.is_dir() else 0o600)
        yield str(path.relative_to(store.root)), "made private"
    if not is_sound(store):
        store.rebuild()
        yield "index.db", "rebuilt from the files"
    for path in _leftovers(store):
        yield path.name, "deleted a temporary file"
    store.recover()
    for path in store.files():
        done = _repair_file(store, path)
        if done:
            yield path.name.removesuffix(SUFFIX), done
    with store.writer():
        for entry in list(store.entries()):
            if entry.present and is_missing(store.path(entry.state)):
                store.change(Deletion([entry], "state file is missing"))
                yield entry.state.response_id, "file is missing: index updated"
    yield from _repair_links(store)


def _repair_file(store: Store, path: Path) -> str | None:
    "Make a file and its row agree; returns what was done, or None"
    with store.writer():
        try:
            state = read_state(path)
        except UnreadableStateError:
            return None  # it may be good; verify reports it
        except StateError as error:
            if not path.exists():
                return None
            entry = store.get(path.name.removesuffix(SUFFIX), path.parent.name)
            if entry is not None and entry.present:
                store.change(Deletion([entry], str(error)))
            else:
                path.unlink()
            return f"removed: {error}"
        if store.path(state) != path:
            path.unlink()
            return "removed: the file has the name of another state"
        entry = store.get(state.response_id, state.fingerprint)
        size = path.stat().st_size
        if entry is not None and entry.state == state and entry.nbytes == size:
            return None
        store.add_to_index(state, size)
        return "added to the index"


def _repair_links(store: Store) -> Iterator[tuple[str, str]]:
    "Fix states whose ancestors are unknown or that are not indexed by their tokens"
    unknown = _Unknown(store)
    for visit in store.walk():
        entry, hashes = visit.entry, visit.hashes
        if hashes is None:
            hashes = unknown.hashes(entry)  # once more: it may be known by now
        problem = _link_problem(store, entry, hashes) if entry.present else None
        if problem == UNFINDABLE:
            store.index_blocks(visit.key, hashes or [])
            yield entry.state.response_id, "indexed by its tokens"
        elif problem:
            with store.writer(), store.locks.claims() as claims:
                if claims.take(lock_name(entry)):
                    store.change(Deletion([entry], problem, with_rows=True))
                    yield entry.state.response_id, f"removed: {problem}"
