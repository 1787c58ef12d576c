"""What a call costs in steps: it grows with a conversation, not with its square.

A step is an SQL statement, a state loaded from the index, or a token that is hashed.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from llm_kvbranch.store import index, tokens
from llm_kvbranch.store.chain import Entry
from llm_kvbranch.store.maintenance import pin, repair, verify
from llm_kvbranch.store.store import Store

from ..support.stores import put, put_after

pytestmark = pytest.mark.usefixtures("no_fsync")


@pytest.fixture
def store(root: Path) -> Iterator[Store]:
    with contextlib.closing(Store(root)) as store:
        yield store


def statements(store: Store, work: Callable[[], Any]) -> int:
    "How many statements a call executes; rows of an executemany count each"
    seen: list[str] = []
    store.db.set_trace_callback(seen.append)
    try:
        work()
    finally:
        store.db.set_trace_callback(None)
    return sum(not sql.startswith("--") for sql in seen)  # those of triggers


def conversation(store: Store, n: int) -> Entry:
    entry = put(store, "turn-0", range(100, 140))
    for i in range(1, n):
        entry = put_after(store, f"turn-{i}", entry, range(i * 40, i * 40 + 40))
    return entry


def test_storing_a_turn(store: Store) -> None:
    entry = conversation(store, 5)
    shallow = statements(store, lambda: put_after(store, "a", entry, range(40)))
    entry = conversation(store, 60)
    deep = statements(store, lambda: put_after(store, "b", entry, range(40)))
    assert deep <= shallow + 2


def test_all_that_leads_up_to_a_state_was_used(store: Store) -> None:
    entry = conversation(store, 5)
    put(store, "other", range(900, 940))
    put_after(store, "next", entry, [1, 2, 3])
    used = [found.state.response_id for found in store.by_use()]
    assert used == ["other", "next", *(f"turn-{i}" for i in (4, 3, 2, 1, 0))]


def test_pinned_states_are_not_loaded_to_be_skipped(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    pinned = conversation(store, 30)
    pin(store, pinned.state.response_id)
    put(store, "other", range(900, 940))
    loaded: list[Any] = []
    load = index.entry_of
    monkeypatch.setattr(
        index, "entry_of", lambda row: loaded.append(row["id"]) or load(row)
    )
    with store.locks.claims() as claims:
        (entry,) = store.least_used(claims, 1)
    assert entry.state.response_id == "other"
    assert loaded == ["other"]


# -- whole conversations -------------------------------------------------


class Steps:
    "Counts the states that are loaded and the tokens that are hashed"

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.n = 0
        load, convert = index.entry_of, tokens.token_bytes

        def counted_load(row: Any) -> Entry:
            self.n += 1
            return load(row)

        def counted_convert(some: Any) -> bytes:
            self.n += len(some)
            return convert(some)

        monkeypatch.setattr(index, "entry_of", counted_load)
        for module in (tokens, index):
            monkeypatch.setattr(module, "token_bytes", counted_convert)


def delete_rows(store: Store, where: str = "true") -> None:
    store.db.execute(f"delete from states where {where}")


WHOLE: dict[str, Callable[[Store], Any]] = {
    "verify": lambda store: list(verify(store)),
    "repair": lambda store: list(repair(store)),
    "rebuild": lambda store: store.rebuild(),
    "verify without the first state": lambda store: (
        delete_rows(store, "id = 'turn-0000'"),
        list(verify(store)),
    ),
    "repair without the first state": lambda store: (
        store.path(store.get("turn-0000").state).unlink(),  # type: ignore[union-attr]
        delete_rows(store, "id = 'turn-0000'"),
        list(repair(store)),
    ),
    "repair without the blocks": lambda store: (
        store.db.execute("delete from blocks"),
        list(repair(store)),
    ),
    "repair without any rows": lambda store: (
        delete_rows(store),
        list(repair(store)),
    ),
}


@pytest.mark.parametrize("shape", ["thread", "branches"])
@pytest.mark.parametrize("what", WHOLE)
def test_of_what_is_done_with_a_conversation(
    root: Path, monkeypatch: pytest.MonkeyPatch, what: str, shape: str
) -> None:
    counted = Steps(monkeypatch)
    costs = []
    for n in (30, 60, 120):
        with contextlib.closing(Store(root / str(n))) as store:
            entry = put(store, "turn-0000", range(100, 140))
            for i in range(1, n):
                new = put_after(
                    store, f"turn-{i:04}", entry, range(i * 40, i * 40 + 40)
                )
                if shape == "thread" or i % 2:
                    entry = new
            counted.n = 0
            costs.append(statements(store, lambda: WHOLE[what](store)) + counted.n)
            assert what == "verify without the first state" or not list(verify(store))
    assert all(most <= 2.3 * less for less, most in itertools.pairwise(costs)), costs
