"""State files stored, opened, and evicted to stay within a budget.

The idea: a state is put with the chain that it continues, and the least recently
used states are evicted to make room for it.

The invariants: the files never exceed the budget, and no file that anyone reads
is deleted. Nothing here is the only copy of anything: the log is the history,
the store is a cache of it.

This module does not know llama.cpp, prompts or llm's log.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import StateError, StoreError, UnreadableStateError
from .chain import Chain, Entry
from .database import BY_KEY
from .digests import Check
from .files import Addition, Deletion, Files, lock_name
from .header import State
from .locks import Claims, Hold
from .statefile import SUFFIX, open_state, write_state

EVICTED = "state was evicted to stay within the store's budget"
EVICTED_FULL = "state was evicted because the disk was full"


class Store(Files):
    """The state files below one directory, and their index.

    ``budget`` is how many bytes the files may take; None for a share of the free
    disk. Opening creates the directory (0700) and the index (0600), and cleans up
    after a crash. Raises StoreError if that fails. Threads may share a Store if
    their calls do not overlap. Each process needs its own, also after a fork.
    """

    @contextlib.contextmanager
    def open(
        self,
        entry: Entry,
        marks: Sequence[int] | None = None,
        check: Check | None = None,
    ) -> Iterator[tuple[memoryview, dict[int, memoryview]]]:
        """Open an entry's file and yield (payload, snapshots by position), verified.

        Of the snapshots those at ``marks``, or all. With a ``check`` the payload is
        verified only once that is settled. Raises StateError when the file is not
        the one that the index knows or cannot be used, UnreadableStateError when it
        cannot be read.
        """
        with contextlib.ExitStack() as stack:
            try:
                opened = open_state(self.path(entry.state), marks, check)
                state, payload, snapshots = stack.enter_context(opened)
            except StateError:
                # Another process may have deleted it since the entry was found
                current = self.get(entry.state.response_id, entry.state.fingerprint)
                if current is not None and current.gone:
                    raise StateError(current.gone) from None
                raise
            if state.fingerprint != entry.state.fingerprint:
                raise StateError("state file belongs to another model or build")
            if state.digest != entry.state.digest and not self._is_newer(entry, state):
                raise StateError("state file is not the one that was stored")
            if marks is not None and not set(marks) <= snapshots.keys():
                raise StateError("state file lacks a snapshot that is in the index")
            yield payload, snapshots

    def prefetch(self, entries: Iterable[Entry]) -> None:
        "Let the kernel read files that will be opened soon, in the background"
        if not hasattr(os, "posix_fadvise"):  # not on macOS or Windows
            return
        for entry in entries:
            with contextlib.suppress(OSError):  # reported when it is opened
                file = os.open(self.path(entry.state), os.O_RDONLY)
                try:
                    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_WILLNEED)
                finally:
                    os.close(file)

    def _is_newer(self, entry: Entry, state: State) -> bool:
        "Whether a file was indexed since the entry was found, with the same rows"
        current = self.get(entry.state.response_id, entry.state.fingerprint)
        known = entry.state
        return (
            current is not None
            and current.state.digest == state.digest
            and (state.start, state.prefix) == (known.start, known.prefix)
            and state.tokens == known.tokens
        )

    def put(
        self,
        state: State,
        payload: Any,
        chain: Chain | None = None,
        snapshots: Mapping[int, Any] | None = None,
        at_any_cost: bool = False,
    ) -> Entry:
        """Store a state, and make room for it; ``chain`` is what it continues.

        If what would have to be evicted costs more to read again than the state itself
        (see ``_is_worth``), the state counts as evicted at once: the entry that is
        returned has no file. Not if it is wanted ``at_any_cost``, or replaces a file.

        ``payload`` and the ``snapshots`` by position are any buffers. A state of the
        same response is replaced; ``created`` becomes now, so no two files are equal.
        Raises StoreError, with no new file, if it cannot be written or too little can
        be evicted.
        """
        for name in (state.response_id, state.fingerprint):
            if not re.fullmatch(r"[A-Za-z0-9_.-]{1,128}", name):
                raise StoreError(f"Response id {name!r} cannot be used as a file name")
        state = replace(state, created=self.time(self.db))
        temporary = self.root / "tmp" / f"{secrets.token_hex(8)}{SUFFIX}"
        chain = chain or Chain()
        parts = (payload, snapshots or {})
        with contextlib.suppress(OSError):  # reported when the file is written
            self.make_directories()
        with self.locks.hold([temporary.name]):
            try:
                self._check_budget(_nbytes(*parts))
                state, nbytes = self._write_file(temporary, state, chain, *parts)
                with self.writer(), self.locks.claims() as claims:
                    evicted = self._to_evict(claims, nbytes, state, chain, at_any_cost)
                    if evicted is None:
                        self.add_without_file(state, nbytes, chain, EVICTED)
                        return Entry(state, 0, state.created, EVICTED)
                    self.change(
                        Deletion(evicted, EVICTED),
                        Addition(state, temporary, nbytes, chain),
                    )
            except OSError as error:
                raise StoreError(f"Cannot write to the state store: {error}") from None
            finally:
                with contextlib.suppress(OSError):
                    temporary.unlink(missing_ok=True)
        return Entry(state, nbytes, state.created)

    def _write_file(
        self,
        path: Path,
        state: State,
        chain: Chain,
        payload: Any,
        snapshots: Mapping[int, Any],
    ) -> tuple[State, int]:
        "Write a file, evicting others if the disk is full; raises OSError"
        try:
            return write_state(path, state, payload, snapshots)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            # The index grows as well, and its journal takes the same again
            nbytes = _nbytes(payload, snapshots) + 16 * len(state.tokens) + (1 << 17)
            with self.writer(), self.locks.claims() as claims:
                entries = self.least_used(claims, nbytes, state, chain)
                if sum(entry.nbytes for entry in entries) < nbytes:
                    raise
                self.change(Deletion(entries, EVICTED_FULL))
            return write_state(path, state, payload, snapshots)

    def lost(self, entry: Entry, reason: str | StateError) -> None:
        """Delete an entry's unusable file, and record why; its token ids are kept.

        A file that another process has replaced since is left alone, as is one that
        could not be read now (UnreadableStateError): it may be good.
        """
        readable, reason = not isinstance(reason, UnreadableStateError), str(reason)
        if entry.present and readable:
            with self.writer():
                state = entry.state
                current = self.get(state.response_id, state.fingerprint)
                if (
                    current is not None
                    and current.present
                    and current.state.digest == state.digest
                ):
                    self.change(Deletion([current], reason))
        self.count_miss(reason)

    # -- room ----------------------------------------------------------

    def hold(self, chain: Chain) -> Hold | None:
        """Keep the files of a chain from being deleted until the hold is released.

        Returns None, with nothing held, if one of them has been deleted or replaced
        since the chain was found.
        """
        present = [s.entry for s in chain.segments if s.entry.present]
        hold = self.locks.hold(map(lock_name, present))
        for entry in present:
            query = f"select digest from states {BY_KEY} and nbytes > 0"
            row = self.db.execute(query, entry.state.key).fetchone()
            if row is None or row["digest"] != entry.state.digest:
                hold.release()
                return None
        return hold

    def set_pinned(self, entry: Entry, pinned: bool) -> None:
        with self._write() as db:
            db.execute(
                f"update states set pinned = ? {BY_KEY}", [pinned, *entry.state.key]
            )

    def _check_budget(self, nbytes: int) -> None:
        if nbytes > (budget := self.budget()):
            raise StoreError(
                f"A state of {nbytes:,} bytes exceeds the store's budget of "
                f"{budget:,} bytes. Raise it with llm kvbranch store budget"
            )

    def _to_evict(
        self,
        claims: Claims,
        nbytes: int,
        state: State,
        chain: Chain,
        at_any_cost: bool,
    ) -> list[Entry] | None:
        """What to evict for a new state; None if that is worth more than the state.

        Raises StoreError if it is not enough.
        """
        before = self.get(state.response_id, state.fingerprint)
        budget = self.budget()
        held = self.nbytes() - (before.nbytes if before else 0)
        excess = held + nbytes - budget
        spared: list[Entry] | None = []
        if at_any_cost or (before and before.present):
            spared = None
        entries = self.least_used(claims, excess, state, chain, spared, nbytes)
        missing = excess - sum(entry.nbytes for entry in entries)
        if missing > 0:
            if spared and sum(entry.nbytes for entry in spared) >= missing:
                return None
            raise StoreError(
                f"The store's budget of {budget:,} bytes is full of states that are "
                "in use or pinned. Raise it with llm kvbranch store budget"
            )
        return entries

    def least_used(
        self,
        claims: Claims,
        nbytes: int,
        state: State | None = None,
        chain: Chain | None = None,
        spared: list[Entry] | None = None,
        size: int = 1,
    ) -> list[Entry]:
        """Claim entries to evict, least recently used first, until they make up nbytes.

        Never those that are pinned or in use, nor ``state`` or what is in ``chain``.
        There may be too few of them. With a list ``spared``, those that are worth more
        than the state, whose file has ``size`` bytes, are put there instead, with
        what they continue.
        """
        entries: list[Entry] = []
        if nbytes <= 0:
            return entries
        kept = self.pinned_keys() | {
            s.entry.state.key for s in (chain.segments if chain else ())
        }
        if state is not None:
            kept.add(state.key)
        needed: set[tuple[str, str | None]] = set()  # by those that are spared
        for entry in self.by_use(without=kept):
            if nbytes <= 0:
                break
            if (
                state is not None
                and spared is not None
                and (
                    entry.state.key in needed or not self._is_worth(state, size, entry)
                )
            ):
                needed.add((entry.state.fingerprint, entry.state.parent_id))
                spared.append(entry)
                continue
            if claims.take(lock_name(entry)):
                entries.append(entry)
                nbytes -= entry.nbytes
        return entries

    def _is_worth(self, state: State, size: int, entry: Entry) -> bool:
        """Whether to evict an entry for a state whose file has ``size`` bytes.

        What was used n uses ago is taken to be n times less likely to be needed than
        what is used now, and costs as much as it has tokens and bytes. So a short turn
        does not evict the beginning of a conversation used in turn with its own, but
        the tenth turn of a new conversation does.
        """
        times = min(len(entry.state.tokens) // len(state.tokens), entry.nbytes // size)
        return times < 2 or self.n_uses_since(entry, times) + 2 > times


def _nbytes(payload: Any, snapshots: Mapping[int, Any]) -> int:
    return sum(memoryview(part).nbytes for part in (payload, *snapshots.values()))
