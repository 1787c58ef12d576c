"""What the engine's process is doing, in memory that it shares with its host.

The idea: before each piece of work the engine writes down what it begins, for which
requests, and how long that may take. Whoever finds the process dead, or hanging, reads
what it was doing. Writing costs a few microseconds and no system call.

The invariant: what is read was written at one moment, or is nothing at all.

This module does not know what happens to a process that hangs.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import struct
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass

_WORDS = {
    "wait": "waiting",
    "open": "loading the model",
    "start": "planning a prompt",
    "sampler": "preparing to draw tokens",
    "decode": "decoding",
    "draw": "drawing a token",
    "advance": "writing a token's text",
    "call": "storing state",
    "read ahead": "reading ahead",
}
_NAMES = list(_WORDS)
# After so many seconds the work counts as endless
SECONDS = {
    "wait": math.inf,
    "open": 1800.0,  # large weights from a slow disk
    "start": 300.0,  # states from a slow disk
    "sampler": 20.0,
    "decode": 600.0,  # at first, when the weights may have to be read from disk
    "draw": 20.0,
    "advance": 20.0,
    "call": 600.0,  # a large state to a slow disk
    "read ahead": 600.0,
}
_BEAT = struct.Struct("<d")
_HEAD = struct.Struct("<QddII")  # changes, since, seconds, work, how many requests
_REQUEST = struct.Struct("<QQ")  # number, place
_MOST = 64
_SIZE = _BEAT.size + _HEAD.size + _MOST * _REQUEST.size


@dataclass(frozen=True)
class Work:
    """What the engine did, ``since`` when (time.monotonic), for ``seconds`` at most.

    ``places`` maps the numbers of requests to how many tokens they had in memory.
    """

    name: str = "wait"
    since: float = 0.0
    seconds: float = math.inf
    places: tuple[tuple[int, int], ...] = ()

    def __str__(self) -> str:
        return _WORDS[self.name]

    def is_endless(self, now: float) -> bool:
        return now > self.since + self.seconds


class Board:
    "The shared memory, made by the host and opened by the engine by its ``path``"

    def __init__(self, path: str | None = None):
        if path is None:
            descriptor, self.path = tempfile.mkstemp(prefix="kvbranch-")
            os.write(descriptor, bytes(_SIZE))
        else:
            descriptor, self.path = os.open(path, os.O_RDWR), path
        try:
            self._memory = mmap.mmap(descriptor, _SIZE)
        finally:
            os.close(descriptor)
        self._changes = 0

    def remove(self) -> None:
        "Remove the file; whoever has opened it keeps the memory"
        with contextlib.suppress(OSError):
            os.unlink(self.path)

    # -- by the engine ---------------------------------------------------

    def beat(self) -> None:
        "Say that the process runs, whatever it is doing"
        _BEAT.pack_into(self._memory, 0, time.monotonic())

    def write(
        self,
        name: str,
        places: Sequence[tuple[int, int]] = (),
        seconds: float | None = None,
    ) -> None:
        "Say what begins, and what it may take if not as usual; by one thread only"
        memory, since = self._memory, time.monotonic()
        seconds = SECONDS[name] if seconds is None else seconds
        about = since, seconds, _NAMES.index(name), min(len(places), _MOST)
        self._changes += 2
        _HEAD.pack_into(memory, _BEAT.size, self._changes - 1, *about)
        at = _BEAT.size + _HEAD.size
        for number, place in places[:_MOST]:
            _REQUEST.pack_into(memory, at, number, place)
            at += _REQUEST.size
        _HEAD.pack_into(memory, _BEAT.size, self._changes, *about)

    # -- by the host -------------------------------------------------------

    def last_beat(self) -> float:
        return float(_BEAT.unpack_from(self._memory, 0)[0])

    def read(self) -> Work:
        "What the engine is doing; waiting, if it is just writing that"
        data = bytes(self._memory)
        changes, since, seconds, work, n = _HEAD.unpack_from(data, _BEAT.size)
        again = _HEAD.unpack_from(self._memory, _BEAT.size)[0]
        if changes % 2 or again != changes or not changes:
            return Work()
        at = _BEAT.size + _HEAD.size
        places = tuple(
            _REQUEST.unpack_from(data, at + i * _REQUEST.size) for i in range(n)
        )
        return Work(_NAMES[work], since, seconds, places)
