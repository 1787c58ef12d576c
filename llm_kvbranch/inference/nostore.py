"""What stands in for the store where there is none.

The idea: nothing is found in it and nothing is kept, so whoever plans or restores
does not ask whether there is a store.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager

from ..errors import StateError, UnreadableStateError
from ..store import Chain, Check, Entry, Hold, Store


class NoStore:
    "A store without states, as far as planning and restoring use one"

    def by_hash(
        self, column: str, hashes: Iterable[str | None], fingerprint: str | None = None
    ) -> list[Entry]:
        return []

    def longest_prefix(
        self,
        fingerprint: str,
        tokens: array[int],
        known: Iterable[Entry] = (),
        usable: Callable[[Chain], Chain] = lambda chain: chain,
    ) -> Chain:
        return Chain()

    def chain(self, entry: Entry) -> Chain:
        return Chain()

    def hold(self, chain: Chain) -> Hold | None:
        return None

    def rate(self, name: str) -> float | None:
        return None

    def describe(self, fingerprint: str, fields: str | None = None) -> str | None:
        return None

    def prefetch(self, entries: Iterable[Entry]) -> None:
        pass

    def open(
        self,
        entry: Entry,
        marks: Sequence[int] | None = None,
        check: Check | None = None,
    ) -> AbstractContextManager[tuple[memoryview, dict[int, memoryview]]]:
        raise UnreadableStateError("the state store cannot be read")

    def lost(self, entry: Entry, reason: str | StateError) -> None:
        pass

    def count_miss(self, reason: str) -> None:
        pass


States = Store | NoStore
