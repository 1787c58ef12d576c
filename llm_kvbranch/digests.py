"""Whether bytes are those that were written, by a digest of them (xxh3-128).

The idea: reading a large state is bound by memory. Its digest is taken by a second
thread, while llama.cpp copies the rows to where nobody uses them yet.

The invariant: who is given bytes that are still being checked waits for the check
before they count.
"""

from __future__ import annotations

import threading

import xxhash

from .errors import StateError

_WORTH_A_THREAD = 1 << 22  # bytes: a tenth of a millisecond


class Check:
    "The check of a state's rows, which may go on while they are copied"

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._found = self._wanted = ""

    def start(self, data: memoryview, digest: str) -> None:
        "Compare in a thread, at once if the bytes are few; raises StateError then"
        if len(data) < _WORTH_A_THREAD:
            verify(data, digest)
            return
        self._wanted = digest
        self._thread = threading.Thread(target=self._take, args=(data,), daemon=True)
        self._thread.start()

    def _take(self, data: memoryview) -> None:
        self._found = xxhash.xxh3_128_hexdigest(data)

    def settle(self) -> None:
        "Wait for the end; raises StateError where the bytes are others"
        self.leave()
        if self._found != self._wanted:
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
