"""From the bytes of tokens to text that can be shown.

The idea: a token can end inside a UTF-8 character, and a stop string can begin in one
token and end in another. Both are held back until it is clear what they are.

The invariant: what was shown stays part of the text.

This module does not know tokens or models.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class TextStream:
    """Takes bytes, returns text to show; ``text`` is all of it so far.

    ``stopped`` becomes true at a stop string. The stop string and what follows it are
    not part of the text.
    """

    def __init__(self, stop: Sequence[str] = ()):
        self.text = ""
        self.stopped = False
        self._stop = tuple(s for s in stop if s)
        self._held = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, data: bytes, stops: bool = True) -> str:
        """Add bytes; returns the text that is certain now, possibly none.

        Without ``stops``, stop strings are text like any other.
        """
        self._held += self._decoder.decode(data)
        if not stops:
            return self.release()
        found = [at for s in self._stop if (at := self._held.find(s)) >= 0]
        if found:
            self.stopped = True
            self._held = self._held[: min(found)]
            return self._release(len(self._held))
        return self._release(len(self._held) - self._possible_stop())

    def release(self) -> str:
        "What was held back and is text after all; half a character is not"
        return self._release(len(self._held))

    @property
    def is_whole(self) -> bool:
        "Whether the bytes so far end with a whole character"
        return not self._decoder.getstate()[0]

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
