"""Whether bytes are those that were written, by their digest (xxh3-128).

The idea: computing the digest of a large state takes as long as reading it from the
page cache. So a second thread computes it, behind the one that reads, and may finish
while llama.cpp copies the rows to cells that nobody uses yet.

The invariant: bytes that are still being checked are not relied on before the check
is settled.

This module does not know where the bytes come from.
"""

from __future__ import annotations

import contextlib
import queue
import threading

import xxhash

from ..errors import StateError

_WORTH_A_THREAD = 1 << 22  # bytes: a tenth of a millisecond


class Check:
    "A check of a state's rows, which may run while they are read and copied"

    def __init__(self) -> None:
        self._hash = xxhash.xxh3_128()
        self._wanted = self._hash.hexdigest()
        self._pieces: queue.SimpleQueue[memoryview | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def start(self, nbytes: int, digest: str) -> None:
        "Expect so many bytes, which have this digest"
        self._wanted = digest
        if nbytes >= _WORTH_A_THREAD:
            thread = threading.Thread(target=self._work)
            with contextlib.suppress(RuntimeError):  # too many threads
                thread.start()
                self._thread = thread

    def add(self, data: memoryview) -> None:
        "The next bytes; they must stay as they are until the check is left"
        if self._thread is None:
            self._hash.update(data)
        else:
            self._pieces.put(data)

    def _work(self) -> None:
        while (data := self._pieces.get()) is not None:
            self._hash.update(data)

    def settle(self) -> None:
        "Wait for the result; raises StateError if the bytes are damaged"
        self.leave()
        if self._hash.hexdigest() != self._wanted:
            raise damaged()

    def leave(self) -> None:
        "Wait until the bytes are not needed any more"
        if self._thread is not None:
            self._pieces.put(None)
            self._thread.join()
            self._thread = None


def damaged() -> StateError:
    return StateError("state file is damaged (digest does not match)")
