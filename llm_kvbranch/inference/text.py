"""From token bytes to text that can be shown: whole characters, no stop strings.

A token can end in the middle of a UTF-8 character, and a stop string can begin
in one token and end in another: both are held back until it is clear what they
are. This module knows neither tokens nor models.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class TextStream:
    """Feed bytes, get text to show; ``text`` is all of it so far.

    ``stopped`` becomes true at a stop string, which is not part of the text,
    nor is anything after it.
    """

    def __init__(self, stop: Sequence[str] = ()):
        self.text = ""
        self.stopped = False
        self._stop = tuple(s for s in stop if s)
        self._held = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, data: bytes) -> str:
        "Text that is now certain, possibly none"
        self._held += self._decoder.decode(data)
        found = [at for s in self._stop if (at := self._held.find(s)) >= 0]
        if found:
            self.stopped = True
            self._held = self._held[: min(found)]
            return self._release(len(self._held))
        return self._release(len(self._held) - self._possible_stop())

    def end(self) -> str:
        "What was held back and turned out to be text; half a character is not"
        return self._release(len(self._held))

    def _possible_stop(self) -> int:
        "How many characters at the end could begin a stop string"
        longest = 0
        for stop in self._stop:
            for n in range(min(len(stop) - 1, len(self._held)), longest, -1):
                if self._held.endswith(stop[:n]):
                    longest = n
                    break
        return longest

    def _release(self, n: int) -> str:
        released, self._held = self._held[:n], self._held[n:]
        self.text += released
        return released
