"""What a call costs in steps: it grows with a conversation, not with its square.

A step is an SQL statement, a state loaded from the index, or a token that is hashed.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from llm import logs

from benchmarks import log_cost, store_depth
from llm_kvbranch.store import index, tokens
from llm_kvbranch.store.chain import Entry
from llm_kvbranch.store.maintenance import pin, prune, repair, verify
from llm_kvbranch.store.store import Store

from ..support.stores import MODEL, put, put_after

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


def test_what_a_turn_writes(store: Store) -> None:
    "Bytes of the journal that one more turn takes"
    journal, written = store.root / "index.db-wal", []
    entry = conversation(store, 5)
    for n in (100, 200):
        entry = conversation(store, n)
        store.db.execute("pragma wal_checkpoint(truncate)")
        entry = put_after(store, f"after-{n}", entry, range(40))
        written.append(journal.stat().st_size)
    assert written[1] <= 1.1 * written[0]


def test_a_conversation_is_used_as_a_whole(store: Store) -> None:
    "Whether its turns were stored one after the other or not"
    first = put(store, "a-0", range(100, 140))
    second = put_after(store, "a-1", first, [1])
    put(store, "b-0", range(900, 940))
    third = put_after(store, "a-2", second, [2])
    put_after(store, "a-3", third, [3])
    put_after(store, "x", second, [4])  # a branch, after the others
    used = [found.state.response_id for found in store.by_use()]
    assert used == ["b-0", "a-3", "a-2", "x", "a-1", "a-0"]


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


def prune_all_but_one(store: Store) -> None:
    "In an order in which each is kept for the next one"
    ids = [entry.state.response_id for entry in store.entries()]
    with store.locks.hold([f"{MODEL}/{ids[-1]}"]):
        assert len(prune(store, ids).removed) < len(ids)


WHOLE: dict[str, Callable[[Store], Any]] = {
    "verify": lambda store: list(verify(store)),
    "repair": lambda store: list(repair(store)),
    "prune all but one": prune_all_but_one,
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


def test_of_a_bundle(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    "What is sent in a turn is neither read nor hashed again for the next one"
    counted = Steps(monkeypatch)
    hash_message = logs.message_hash

    def counted_hash(*args: Any) -> str:
        counted.n += 1
        return hash_message(*args)

    monkeypatch.setattr(logs, "message_hash", counted_hash)
    costs = []
    for n in (20, 40, 80):
        thread = store_depth.Thread(root / str(n), n)
        thread.home.mkdir(parents=True)
        log_cost.write_deep(thread.home / "logs.db", n)
        with thread.opened() as (store, history):
            growing = store_depth.Growing(store)
            while growing.n < n:
                growing.add()
            counted.n = 0
            export = functools.partial(store_depth.export, store, history, thread)
            n_statements = statements(store, export)
            store_depth.import_(store, history, thread)
            costs.append(n_statements + counted.n)
    assert all(most <= 2.3 * less for less, most in itertools.pairwise(costs)), costs
