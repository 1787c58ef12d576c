"""What processes that share a store tell each other, in locks that die with them.

The idea: a lock is a byte range of one empty file, at an offset that stands for
a name. Whoever reads a state holds its name, together with others; who wants to
remove it claims the name, alone, and leaves it be when it is held. The same file
has the one lock that is taken to change files. Nothing is written, so a crash
leaves nothing behind.

The invariant: what is held here or in any other process cannot be claimed.
Where locks cannot be had (Windows, some network file systems) everything can: a
state may then be evicted while another process wants it, which is a reported
miss.

This module does not know what the names stand for.
"""

from __future__ import annotations

import contextlib
import os
import struct
import sys
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from pathlib import Path

import xxhash

from ..errors import StoreError

try:
    import fcntl
except ImportError:  # pragma: no cover  (Windows)
    fcntl = None  # type: ignore[assignment]

PATIENCE = 10.0  # seconds to wait for another process, as SQLite does
_WRITER = 0  # offset of the lock for changing files; names come after it


class Locks:
    "Named locks in a file. One Locks may be used from one thread at a time."

    def __init__(self, path: Path):
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        self._held: Counter[str] = Counter()
        self._dropped: deque[str] = deque()
        self._writing = False

    def close(self) -> None:
        "Let go of everything"
        if getattr(self, "_file", -1) >= 0:
            os.close(self._file)
            self._file = -1

    __del__ = close

    def hold(self, names: Iterable[str]) -> None:
        "Share some names until they are dropped as often as they were held"
        self._drop()
        held = []
        try:
            for name in names:
                if not self._held[name]:
                    # Waits for someone's claim, which lasts for moments
                    self._wait(_offset(name), shared=True)
                self._held[name] += 1
                held.append(name)
        except BaseException:
            self.drop(held)
            raise

    def drop(self, names: Iterable[str]) -> None:
        self.drop_later(names)
        self._drop()

    def drop_later(self, names: Iterable[str]) -> None:
        "Drop names with the next call of anything else: for finalizers"
        self._dropped.extend(names)

    def _drop(self) -> None:
        while self._dropped:
            name = self._dropped.popleft()
            self._held[name] -= 1
            if self._held[name] <= 0:
                del self._held[name]
                self._unlock(_offset(name))

    def claim(self, name: str) -> bool:
        "Have a name alone until it is released; False if anyone holds it"
        self._drop()
        return name not in self._held and self._lock(_offset(name), shared=False)

    def release(self, names: Iterable[str]) -> None:
        "Give back what was claimed; what is held here stays held"
        for name in names:
            if name not in self._held:
                self._unlock(_offset(name))

    @contextlib.contextmanager
    def writer(self) -> Iterator[None]:
        """Be the only one to change files; raises StoreError if another stays.

        May be entered again by who is in it already.
        """
        if self._writing:
            yield
            return
        self._wait(_WRITER, shared=False)
        self._writing = True
        try:
            yield
        finally:
            self._writing = False
            self._unlock(_WRITER)

    def _wait(self, offset: int, shared: bool) -> None:
        until = time.monotonic() + PATIENCE
        while not self._lock(offset, shared):
            if time.monotonic() > until:
                raise StoreError("Another process keeps the state store locked")
            time.sleep(0.002)

    def _lock(self, offset: int, shared: bool) -> bool:
        "Take a lock without waiting; False when another has it"
        if fcntl is None:  # pragma: no cover
            return True
        kind = fcntl.F_RDLCK if shared else fcntl.F_WRLCK
        try:
            fcntl.fcntl(self._file, _SET, _flock(kind, offset))
        except (BlockingIOError, PermissionError):  # EAGAIN, EACCES
            return False
        except OSError:
            return True  # a file system without locks
        return True

    def _unlock(self, offset: int) -> None:
        if fcntl is not None:
            with contextlib.suppress(OSError):
                fcntl.fcntl(self._file, _SET, _flock(fcntl.F_UNLCK, offset))


# A lock of the open file where there is such a thing (Linux). A lock of the
# process is let go when any file object for the path is closed, so that two
# stores in one process protect each other less.
_SET = getattr(fcntl, "F_OFD_SETLK", getattr(fcntl, "F_SETLK", 0))


def _flock(kind: int, offset: int) -> bytes:
    "struct flock for one byte of the file"
    if sys.platform == "darwin":  # pragma: no cover
        return struct.pack("qqihh", offset, 1, 0, kind, os.SEEK_SET)
    return struct.pack("hhqqi4x", kind, os.SEEK_SET, offset, 1, 0)


def _offset(name: str) -> int:
    "Where a name's lock is; two names rarely share one, which does no harm"
    return 1 + xxhash.xxh3_64_intdigest(name.encode()) % (1 << 62)
