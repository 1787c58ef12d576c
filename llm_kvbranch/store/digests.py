"""Whether bytes are those that were written, by their digest (xxh3-128).

The idea: reading a large state that is in memory is limited by memory bandwidth, so
a second thread computes its digest while llama.cpp copies the rows to cells that
nobody uses yet. Reading from disk is limited by the disk, and two threads that fault
in its pages in turn are slower than one, so there one does both.

The invariant: bytes that are still being checked are not relied on before the check
is settled.

This module does not know where the bytes come from.
"""

from __future__ import annotations

import threading
import time

import xxhash

from ..errors import StateError

_FIRST = 1 << 20  # bytes whose speed shows whether the rest is in memory
_IN_MEMORY = 5e9  # bytes a second, at least; a disk has half of it, memory six times
_WORTH_A_THREAD = 1 << 22  # bytes: a tenth of a millisecond


class Check:
    "A check of a state's rows that may run while they are copied"

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._hash = xxhash.xxh3_128()
        self._wanted = self._hash.hexdigest()

    def start(self, data: memoryview, digest: str) -> None:
        "Start to check, in a thread if that saves time; otherwise finish it now"
        began = time.perf_counter()
        self._wanted = digest
        self._hash.update(data[:_FIRST])
        seconds = time.perf_counter() - began
        rest = data[_FIRST:]
        if len(data) >= _WORTH_A_THREAD and seconds * _IN_MEMORY < len(data[:_FIRST]):
            self._thread = threading.Thread(target=self._hash.update, args=(rest,))
            self._thread.start()
        else:
            self._hash.update(rest)
            self.settle()

    def settle(self) -> None:
        "Wait for the result; raises StateError if the bytes are damaged"
        self.leave()
        if self._hash.hexdigest() != self._wanted:
            raise damaged()

    def leave(self) -> None:
        "Wait until the bytes are not needed any more"
        if self._thread is not None:
            self._thread.join()


def verify(data: memoryview, digest: str) -> None:
    "Raise StateError if the bytes do not have this digest"
    if xxhash.xxh3_128_hexdigest(data) != digest:
        raise damaged()


def damaged() -> StateError:
    return StateError("state file is damaged (digest does not match)")
