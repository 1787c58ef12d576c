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

# Times that a request ended the engine at the same place until it is refused. Prompts
# are decoded in few large batches, so that two accidents often meet in the same one.
_ALONE, _DECODING = 2, 4
_MORE = 2  # after so many more, all that are under suspicion alike are refused


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
        limit = _DECODING if work.name == "decode" else _ALONE
        worst = [number for number, n in counts.items() if n == most]
        if (most >= limit and len(worst) == 1) or most >= limit + _MORE:
            return Verdict(refused=set(worst))
        if most >= limit - 1 and len(worst) > 1:
            return Verdict(suspected=worst)
        return Verdict()

    def forget(self, number: int) -> None:
        "A request has ended"
        self._ends.pop(number, None)
