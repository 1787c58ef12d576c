"""Whether bytes are those that were written, by a digest of them (xxh3-128).

The idea: reading a large state that is in memory is bound by memory. Its digest is
taken by a second thread, while llama.cpp copies the rows to where nobody uses them yet.
What comes from the disk is bound by that, and two threads that ask for its pages in
turns wait for longer, so then one is enough.

The invariant: who is given bytes that are still being checked waits for the check
before they count.
"""

from __future__ import annotations

import threading
import time

import xxhash

from ..errors import StateError

_FIRST = 1 << 20  # bytes that show whether the others are in memory
_IN_MEMORY = 5e9  # bytes a second, at least; a disk has half of it, memory six times
_WORTH_A_THREAD = 1 << 22  # bytes: a tenth of a millisecond


class Check:
    "The check of a state's rows, which may go on while they are copied"

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._hash = xxhash.xxh3_128()
        self._wanted = self._hash.hexdigest()

    def start(self, data: memoryview, digest: str) -> None:
        "Compare, in a thread if that saves time; else raises StateError"
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
        "Wait for the end; raises StateError where the bytes are others"
        self.leave()
        if self._hash.hexdigest() != self._wanted:
            raise damaged()

    def leave(self) -> None:
        "Wait for the end, after which the bytes may go away"
        if self._thread is not None:
            self._thread.join()


def verify(data: memoryview, digest: str) -> None:
    "Raises StateError where a digest is not that of the bytes"
    if xxhash.xxh3_128_hexdigest(data) != digest:
        raise damaged()


def damaged() -> StateError:
    return StateError("state file is damaged (digest does not match)")
