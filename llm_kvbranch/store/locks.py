"""Locks that processes sharing a store use to protect each other's files.

The idea: a lock is one byte of an empty file, at an offset computed from a name.
Whoever reads a state holds its name, a shared lock; whoever wants to delete it
claims the name, an exclusive lock, and skips the state if that fails. One more
byte is the lock of the process that is changing files. Nothing is written, and
locks end with their process, so a crash leaves nothing behind.

The invariant: a name that is held here or in any other process cannot be
claimed. Where there are no locks (Windows, some network file systems) every claim
succeeds: a state may then be evicted while another process needs it, which is
reported as a miss.

This module does not know what the names mean.
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
_AGAIN = 0.1  # seconds to wait for one that kept the same lock longer than that
_WRITER = 0  # offset of the writer's lock; names come after it


class Hold:
    "Names kept from being claimed until ``release``, or the end of a with block"

    def __init__(self, locks: Locks, names: Iterable[str]):
        self.names = tuple(names)
        self._locks = locks

    def release(self) -> None:
        "May be called again, which does nothing"
        self.release_later()
        self._locks._drop_released()

    def release_later(self) -> None:
        "Release with the next call to the locks: for finalizers, in any thread"
        names, self.names = self.names, ()
        self._locks._released.extend(names)

    def __enter__(self) -> Hold:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class Claims:
    "Names that nobody else can hold or claim until the end of a with block"

    def __init__(self, locks: Locks):
        self._locks = locks
        self._names: set[str] = set()

    def take(self, name: str) -> bool:
        "Claim a name; False if anyone holds it or another process has claimed it"
        if not self._locks._claim(name):
            return False
        self._names.add(name)
        return True

    def release(self) -> None:
        while self._names:
            self._locks._release_claim(self._names.pop())

    def __enter__(self) -> Claims:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class Locks:
    "Named locks in a file. Use it, and what it returns, from one thread at a time."

    def __init__(self, path: Path):
        self._path = path
        self._open()
        self._held: Counter[str] = Counter()
        self._released: deque[str] = deque()  # but still in _held
        self._writing = False
        self._stuck: set[int] = (
            set()
        )  # offsets of locks that another process did not release

    def _open(self) -> None:
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        self._inode = os.fstat(self._file).st_ino

    def _is_current(self) -> bool:
        "Whether the file is the one that other processes open"
        try:
            return os.stat(self._path).st_ino == self._inode
        except OSError:
            return False

    def _follow(self) -> None:
        "Use the file that replaced ours if that was deleted with its directory"
        if self._is_current():
            return
        before = self._file
        with contextlib.suppress(FileNotFoundError):  # there is nothing to protect
            self._open()
            os.close(before)
            for name in self._held:
                self._lock(_offset(name), shared=True)

    def close(self) -> None:
        "Release everything"
        if getattr(self, "_file", -1) >= 0:
            self._close_file(self._file)
            self._file = -1

    _close_file = staticmethod(os.close)  # at the end of Python, os has no functions
    __del__ = close

    def hold(self, names: Iterable[str]) -> Hold:
        """Share some names with everyone else who holds them.

        Raises StoreError, with none of them held, if a claim on one is not released.
        """
        self._drop_released()
        self._follow()
        held = []
        try:
            for name in names:
                if not self._held[name]:
                    # Waits while the name is claimed, which is never for long
                    self._wait(_offset(name), shared=True)
                self._held[name] += 1
                held.append(name)
        except BaseException:
            Hold(self, held).release()
            raise
        return Hold(self, held)

    def claims(self) -> Claims:
        "To be used in a with statement, and filled by ``take``"
        return Claims(self)

    @contextlib.contextmanager
    def writer(self) -> Iterator[None]:
        """Be the only process that changes files.

        Can be nested. Raises StoreError if another process does not finish.
        """
        if self._writing:
            yield
            return
        self._follow()
        self._wait(_WRITER, shared=False)
        if not self._is_current():  # it was deleted while this waited
            self._unlock(_WRITER)
            self._follow()
            self._wait(_WRITER, shared=False)
        self._writing = True
        try:
            yield
        finally:
            self._writing = False
            self._unlock(_WRITER)

    def _drop_released(self) -> None:
        while self._released:
            name = self._released.popleft()
            self._held[name] -= 1
            if self._held[name] <= 0:
                del self._held[name]
                self._unlock(_offset(name))

    def _claim(self, name: str) -> bool:
        self._drop_released()
        return name not in self._held and self._lock(_offset(name), shared=False)

    def _release_claim(self, name: str) -> None:
        if name not in self._held:  # else it was held since, with the same lock
            self._unlock(_offset(name))

    def _wait(self, offset: int, shared: bool) -> None:
        patience = min(_AGAIN, PATIENCE) if offset in self._stuck else PATIENCE
        until = time.monotonic() + patience
        while not self._lock(offset, shared):
            if time.monotonic() > until:
                self._stuck.add(offset)
                raise StoreError("Another process keeps the state store locked")
            time.sleep(0.002)
        self._stuck.discard(offset)

    def _lock(self, offset: int, shared: bool) -> bool:
        "Take a lock without waiting; False if another process has it"
        if fcntl is None:  # pragma: no cover
            return True
        try:
            _set(self._file, fcntl.LOCK_SH if shared else fcntl.LOCK_EX, offset)
        except (BlockingIOError, PermissionError):  # EAGAIN, EACCES
            return False
        except OSError:
            return True  # a file system without locks
        return True

    def _unlock(self, offset: int) -> None:
        if fcntl is not None:
            with contextlib.suppress(OSError):
                _set(self._file, fcntl.LOCK_UN, offset)


def _set(file: int, kind: int, offset: int) -> None:
    "Lock or unlock one byte of a file, without waiting"
    if hasattr(fcntl, "F_OFD_SETLK"):
        # A lock that belongs to the open file (Linux, macOS)
        fcntl.fcntl(file, fcntl.F_OFD_SETLK, _flock(kind, offset))
    else:
        # It belongs to the process and ends when any file object for the path is
        # closed, so two stores in one process protect each other less
        wait = 0 if kind == fcntl.LOCK_UN else fcntl.LOCK_NB
        fcntl.lockf(file, kind | wait, 1, offset, os.SEEK_SET)


def _flock(kind: int, offset: int) -> bytes:
    "struct flock for one byte of the file, which Python does not pack for OFD locks"
    kinds: dict[int, int] = {
        fcntl.LOCK_SH: fcntl.F_RDLCK,
        fcntl.LOCK_EX: fcntl.F_WRLCK,
        fcntl.LOCK_UN: fcntl.F_UNLCK,
    }
    if sys.platform == "darwin":  # pragma: no cover
        return struct.pack("qqihh", offset, 1, 0, kinds[kind], os.SEEK_SET)
    return struct.pack("hhqqi4x", kinds[kind], os.SEEK_SET, offset, 1, 0)


def _offset(name: str) -> int:
    "Where a name's lock is; a collision only makes two names share it"
    return 1 + xxhash.xxh3_64_intdigest(name.encode()) % (1 << 62)
