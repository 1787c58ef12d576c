"""Which rows a prompt may reuse, so that its answer is the same, bit for bit.

The idea: llama.cpp rounds a row by how many were computed with it (see the engine's
``classes``). A fresh run computes what a prompt adds to its history in one go. So rows
of that part are reused only if they were computed in a batch of the same class, and
the rest, which gives the first token, is large enough to be of that class too. Rows of
the history are what they were: prompts of earlier turns, and answers, token by token.

The invariant: a prompt of n own tokens is computed as if nothing of them were known.

This module does not know where rows are kept.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ..engine import Classes
from ..store import Chain

OTHERWISE = "it was computed in batches of another size, which round differently"
GENERATED = 0  # the kind of an answer's rows; that of others is the code of their class


@dataclass(frozen=True)
class Fit:
    """What may be reused for a prompt of ``n`` tokens.

    Its own begin at ``own``. ``kind`` is how their rows are computed, and only those
    below ``end`` can be reused.
    """

    n: int
    own: int
    kind: int
    end: int

    def rows(self, kinds: bytes | bytearray) -> int:
        "How many of some rows, by their kinds, are as a fresh run would compute them"
        own = bytes(kinds[self.own :])
        return (
            min(len(kinds), self.own) + len(own) - len(own.lstrip(bytes([self.kind])))
        )

    def reusable(self, kinds: bytes | bytearray) -> int:
        "How many of these rows may be reused"
        return min(self.rows(kinds), self.end)


def fit_of(
    n: int, own: int, classes: Classes, known: Iterable[bytes | bytearray] = ()
) -> Fit:
    """What may be reused for a prompt of n tokens that are its own from ``own`` on.

    Or from the last token on that was generated among ``known`` rows.
    """
    for kinds in known:
        own = max(own, kinds.rfind(GENERATED, 0, n) + 1)
    own = min(own, n - 1)
    end = max(own, n - classes.least(n - own))
    return Fit(n, own, classes.of(n - own), min(end, n - 1))


def kinds_of(chain: Chain, classes: Classes) -> bytes:
    "How the rows of stored states were computed"
    kinds, own, answer = b"", 0, 0
    for segment in chain.segments:
        state = segment.entry.state
        if segment.start > answer:  # it continues the answer before
            own = segment.start
        answer = state.answer
        n_prompt = max(0, min(segment.end, answer) - segment.start)
        kinds += bytes([classes.of(answer - own)]) * n_prompt
        kinds += bytes([GENERATED]) * (segment.end - segment.start - n_prompt)
    return kinds
