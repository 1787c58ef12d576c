"""What a call costs in SQL statements: no more as conversations get deeper."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from llm_kvbranch.store import index
from llm_kvbranch.store.chain import Entry
from llm_kvbranch.store.maintenance import pin
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
