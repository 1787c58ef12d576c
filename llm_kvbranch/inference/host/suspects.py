"""Which request is to blame when the engine's process ended.

The idea: a request that ends the engine does so each time at the same place: with the
same work, and as many tokens in memory. Whoever was further along, or elsewhere, was
only there by chance. Several that decode in one batch are told apart by running them
one after the other.

The invariant: among requests that end the engine each time, one is refused after a few
starts at most.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from .board import Work

_AT_LEAST = 2  # times that a request ended the engine at the same place, alone
_TOGETHER = 3  # the same, in a batch with others
_AT_MOST = 4  # then all that are under suspicion alike are refused


@dataclass
class Verdict:
    "Numbers of requests to refuse, and to run one after the other"

    refused: set[int] = field(default_factory=set)
    suspected: list[int] = field(default_factory=list)


class Suspects:
    "Keeps count of the places where requests were when the engine ended"

    def __init__(self) -> None:
        self._ends: dict[int, tuple[tuple[str, int], int]] = {}

    def judge(self, work: Work) -> Verdict:
        "The engine has ended at some work"
        counts = {}
        for number, place in work.places:
            before, n = self._ends.get(number, (None, 0))
            n = n + 1 if before == (work.name, place) else 1
            self._ends[number] = (work.name, place), n
            counts[number] = n
        most = max(counts.values(), default=0)
        if most < _AT_LEAST:
            return Verdict()
        worst = [number for number, n in counts.items() if n == most]
        alone = len(counts) == 1 or (len(worst) == 1 and most >= _TOGETHER)
        if alone or most >= _AT_MOST:
            return Verdict(refused=set(worst))
        return Verdict(suspected=worst)

    def forget(self, number: int) -> None:
        "A request has ended"
        self._ends.pop(number, None)
