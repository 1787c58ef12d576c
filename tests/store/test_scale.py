"""What a query of the store costs does not depend on the store's size.

``benchmarks/scale.py`` measures it; these are tests for the causes of past failures.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from llm_kvbranch.store.chain import Chain
from llm_kvbranch.store.header import State
from llm_kvbranch.store.index import Index
from llm_kvbranch.store.store import Store
from llm_kvbranch.store.tokens import BLOCK, prefix_digest, tokens_of

MODEL = "some-model"
SYSTEM = list(range(1000, 1000 + 4 * BLOCK + 5))


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr(os, "fsync", lambda _: None)
    return Store(tmp_path)


@pytest.fixture
def chains(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    "Keys of the states whose chains were assembled"
    keys: list[int] = []
    original = Index._chain

    def counted(self: Index, db: Any, key: int) -> Chain:
        keys.append(key)
        return original(self, db, key)

    monkeypatch.setattr(Index, "_chain", counted)
    return keys


def put(store: Store, name: str, tokens: list[int], chain: Chain | None = None) -> None:
    "Store a response to some tokens, on the chain that the store finds for them"
    chain, whole = chain or Chain(), tokens_of(tokens)
    start = len(chain.tokens)
    parent = chain.segments[-1].entry.state.response_id if start else None
    state = State(
        response_id=name,
        fingerprint=MODEL,
        start=start,
        end=len(whole),
        answer=start,
        tokens=whole[start:],
        prefix=prefix_digest(whole, start),
        parent_id=parent,
    )
    store.put(state, name.encode(), chain)


def find(store: Store, tokens: list[int]) -> Chain:
    return store.longest_prefix(MODEL, tokens_of(tokens))


def shared(store: Store, n: int) -> None:
    "Conversations that only have a system prompt in common"
    for i in range(n):
        tokens = SYSTEM + [i] * 20
        put(store, f"conversation-{i}", tokens, find(store, tokens))


class TestSharedPrompt:
    def test_one_of_many_conversations_will_do(
        self, store: Store, chains: list[int]
    ) -> None:
        shared(store, 40)
        chains.clear()
        assert len(find(store, [*SYSTEM, 9999]).tokens) == len(SYSTEM)
        assert len(chains) == 1

    def test_the_one_that_goes_on_furthest(self, store: Store) -> None:
        shared(store, 40)
        chain = find(store, [*SYSTEM, *[33] * 9, 9999])
        assert chain.segments[-1].entry.state.response_id == "conversation-33"
        assert len(chain.tokens) == len(SYSTEM) + 9

    def test_unknown(self, store: Store, chains: list[int]) -> None:
        for i in range(40):
            put(store, f"conversation-{i}", [i] * 100)
        chains.clear()
        assert not find(store, [9999] * 100).tokens
        assert not chains

    def test_with_rows_that_are_gone(self, store: Store) -> None:
        "Lost rows below the deepest match do not count"
        put(store, "lost", SYSTEM + [1] * 30)
        put(store, "kept", SYSTEM[:-1])
        put(store, "far", SYSTEM + [1] * 60, find(store, SYSTEM + [1] * 30))
        lost = store.get("lost")
        assert lost is not None
        store.lost(lost, "test")
        chain = find(store, SYSTEM + [1] * 60)
        assert [s.entry.state.response_id for s in chain.segments] == ["kept"]


def test_a_chain_is_evicted_from_its_end(store: Store) -> None:
    "No state is kept whose beginning was evicted"
    tokens: list[int] = []
    for i in range(6):
        chain = find(store, tokens)
        tokens = tokens + [i] * 50
        put(store, f"turn-{i}", tokens, chain)
    order = [entry.state.response_id for entry in store.by_use()]
    assert order == [f"turn-{i}" for i in reversed(range(6))]
