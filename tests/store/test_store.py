"""The store finds everything that it has, and nothing else.

A state found for the wrong tokens is a wrong answer, while one that is not found only
costs time. So every test that looks something up compares tokens, not just ids. The
last class drives a store and a naive twin, which keeps every response's whole token
list in a dict, through the same random events, and compares them. Budgets are tested
in test_budget; pins, pruning and repair in test_maintenance and test_repair.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import sqlite3
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
)

import llm_kvbranch.store.index as index_module
import llm_kvbranch.store.stats as stats_module
import llm_kvbranch.store.tokens as tokens_module
from llm_kvbranch.errors import StateError, StoreError, UnreadableStateError
from llm_kvbranch.store import locks
from llm_kvbranch.store.chain import Chain, Entry
from llm_kvbranch.store.header import State
from llm_kvbranch.store.maintenance import collect, pin, prune, repair, verify
from llm_kvbranch.store.statefile import read_state, write_state
from llm_kvbranch.store.store import Store
from llm_kvbranch.store.tokens import BLOCK, tokens_of

from ..support.stores import (
    DOCUMENT,
    MODEL,
    a_state,
    blocks,
    check,
    die_while_writing,
    files,
    find,
    flip,
    names,
    present,
    put,
    put_after,
    remove_index,
    rows_of,
    run,
    suppliers,
    total,
)


def full(*_: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def costs(store: Store, call: Callable[[], Any]) -> list[int]:
    "Steps that SQLite takes for a call, with some other states and with many"
    store.db.execute("pragma synchronous = off")
    counts, n_put = [], 0
    for n in (150, 450):  # both are more than the states that are considered
        for i in range(n_put, n):
            facts = {"tip_hash": f"tip {i}", "input_hash": f"input {i}"}
            put(store, f"other-{i}", [i] * 100, **facts)
        n_put = n
        steps: list[None] = []
        store.db.set_progress_handler(lambda steps=steps: steps.append(None), 1)
        assert call() is not None
        store.db.set_progress_handler(None, 1)
        counts.append(len(steps))
    return counts


MADE = ("created", "digest", "payload")  # what a store adds to a state


pytestmark = pytest.mark.usefixtures("no_fsync")


@pytest.fixture
def umask() -> Iterator[Callable[[int], int]]:
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


class TestPut:
    "A row without its file, or a file without its row, is work lost"

    def test_file_and_row(self, store: Store) -> None:
        facts = {"input_hash": "in", "tip_hash": "tip", "render": "template"}
        state = a_state("one", DOCUMENT, **facts)
        entry = store.put(state, b"rows")
        assert files(store.root) == {f"{MODEL}/one.safetensors"}
        assert entry.nbytes == store.path(state).stat().st_size
        assert entry.present
        made = {name: getattr(entry.state, name) for name in MADE}
        assert entry.state == replace(state, **made)
        assert all(made.values())
        found = store.get("one")
        assert found is not None
        assert (found.state, found.nbytes) == (entry.state, entry.nbytes)
        with store.open(found) as (rows, _):
            assert rows == b"rows"

    def test_every_field_has_a_column(self, store: Store) -> None:
        "A fact that a row lacks is lost when its file is evicted"
        facts = {"input_hash": "i", "tip_hash": "t", "render": "r"}
        facts |= {"thread_id": "thread", "origin": "elsewhere"}
        state = a_state("one", DOCUMENT, 0, "zero", **facts)
        entry = store.put(state, rows_of("one"), snapshots={50: b"memory"})
        filled = {field.name for field in fields(State)} - {"start", "answer"}
        assert all(getattr(entry.state, name) for name in filled)
        found = store.get("one")
        assert found is not None
        assert found.state == entry.state == read_state(store.path(entry.state))

    def test_the_same_response_is_replaced(self, store: Store) -> None:
        old = put(store, "one", DOCUMENT)
        new = store.put(a_state("one", DOCUMENT[::-1]), b"other rows")
        assert names(list(store.entries())) == ["one"]
        assert files(store.root) == {f"{MODEL}/one.safetensors"}
        assert not find(store, DOCUMENT).tokens
        assert len(find(store, DOCUMENT[::-1]).tokens) == len(DOCUMENT)
        with store.open(new) as (rows, _):
            assert rows == b"other rows"
        with pytest.raises(StateError, match="not the one that was stored"):
            store.open(old).__enter__()

    def test_the_index_forgets_what_was_replaced(self, store: Store) -> None:
        put(store, "one", DOCUMENT)
        before = blocks(store)
        put(store, "two", DOCUMENT)
        assert blocks(store) == 2 * before
        for tokens in (DOCUMENT[::-1], DOCUMENT, DOCUMENT[::-1]):
            put(store, "one", tokens)
        assert blocks(store) == 2 * before

    def test_models_do_not_replace_each_other(self, store: Store) -> None:
        put(store, "one", DOCUMENT, fingerprint="a")
        put(store, "one", DOCUMENT, fingerprint="b")
        assert len(list(store.entries())) == 2
        found = store.get("one")
        assert found is not None
        assert found.state.fingerprint == "b"

    @pytest.mark.parametrize(
        "name",
        [
            "",
            "../x",
            "../../x",
            "a/b",
            "/x",
            "a\\b",
            "a\0",
            "a\n",
            "a b",
            "ü",
            "x" * 129,
        ],
        ids=ascii,
    )
    def test_a_name_that_is_no_file_name_is_refused(
        self, store: Store, name: str
    ) -> None:
        before = sorted(store.root.parent.rglob("*"))
        with pytest.raises(StoreError, match="cannot be used as a file name"):
            put(store, name, DOCUMENT)
        assert sorted(store.root.parent.rglob("*")) == before
        assert not list(store.entries())

    @pytest.mark.parametrize("name", [".", "..", "...", ".x.tmp", "-x", "x" * 128])
    def test_an_odd_name_stays_in_its_directory(self, store: Store, name: str) -> None:
        entry = put(store, name, DOCUMENT)
        assert store.path(entry.state).parent == store.root / "states" / MODEL
        assert files(store.root) == {f"{MODEL}/{name}.safetensors"}
        assert not list(verify(store))
        remove_index(store.root)
        with contextlib.closing(Store(store.root)) as again:
            assert names(list(again.entries())) == [name]

    def test_a_full_disk_leaves_nothing(
        self, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(StoreError, match="No space left"):
            put(store, "one", DOCUMENT)
        assert not files(store.root)
        assert not os.listdir(store.root / "tmp")
        assert not list(store.entries())

    def test_a_full_disk_at_the_very_end_leaves_token_ids_only(
        self, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", full)
            with pytest.raises(StoreError, match="No space left"):
                put(store, "one", DOCUMENT)
        assert not files(store.root)
        assert not os.listdir(store.root / "tmp")
        assert not list(verify(store))
        assert store.nbytes() == 0
        chain = find(store, DOCUMENT)
        assert (len(chain.tokens), chain.available) == (100, 0)
        put(store, "one", DOCUMENT)
        assert find(store, DOCUMENT).available == 100

    def test_an_index_that_cannot_be_written_leaves_no_file(self, store: Store) -> None:
        store.db.execute("pragma busy_timeout = 20")
        with contextlib.closing(sqlite3.connect(store.root / "index.db")) as other:
            other.execute("begin immediate")
            with pytest.raises(StoreError, match="locked"):
                put(store, "one", DOCUMENT)
        assert not files(store.root)
        assert not os.listdir(store.root / "tmp")
        put(store, "one", DOCUMENT)
        assert not list(verify(store))

    def test_a_state_that_the_index_cannot_hold_leaves_no_file(
        self, store: Store
    ) -> None:
        with pytest.raises(Exception, match=r"surrogates|cannot"):
            put(store, "one", DOCUMENT, render="\ud800")
        assert not files(store.root)
        assert not list(store.entries())


class TestOpen:
    "Rows of another state, however sound its file, are not the ones asked for"

    def test_a_file_swapped_for_another_states(self, store: Store) -> None:
        one, two = put(store, "one", DOCUMENT), put(store, "two", DOCUMENT)
        shutil.copy(store.path(two.state), store.path(one.state))
        with pytest.raises(StateError, match="not the one that was stored"):
            store.open(one).__enter__()

    def test_a_file_of_another_model(self, store: Store) -> None:
        one = put(store, "one", DOCUMENT)
        other = put(store, "one", DOCUMENT, fingerprint="other-model")
        shutil.copy(store.path(other.state), store.path(one.state))
        with pytest.raises(StateError, match="another model or build"):
            store.open(one).__enter__()

    def test_a_file_that_cannot_be_read(self, store: Store) -> None:
        "It may be good, and must not be taken for a bad one"
        one = put(store, "one", DOCUMENT)
        store.path(one.state).unlink()
        store.path(one.state).mkdir()
        with pytest.raises(UnreadableStateError, match="is unreadable"):
            store.open(one).__enter__()

    def test_a_missing_file(self, store: Store) -> None:
        one = put(store, "one", DOCUMENT)
        store.path(one.state).unlink()
        with pytest.raises(StateError, match="missing"):
            store.open(one).__enter__()


class TestPrefetch:
    "Exactly the files are read ahead, and failures are not reported here"

    @pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="not on this system")
    def test_all_that_are_there(
        self, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        entries = [put(store, name, DOCUMENT) for name in ("one", "two", "three")]
        store.path(entries[1].state).unlink()
        advise, advised = os.posix_fadvise, []

        def noted(file: int, start: int, length: int, what: int) -> None:
            advised.append((os.fstat(file).st_ino, start, length, what))
            advise(file, start, length, what)

        monkeypatch.setattr(os, "posix_fadvise", noted)
        before = len(os.listdir("/proc/self/fd"))
        store.prefetch(entries)
        assert advised == [
            (store.path(entries[i].state).stat().st_ino, 0, 0, os.POSIX_FADV_WILLNEED)
            for i in (0, 2)
        ]
        assert len(os.listdir("/proc/self/fd")) == before

    def test_where_there_is_no_such_call(
        self, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delattr(os, "posix_fadvise", raising=False)
        store.prefetch([put(store, "one", DOCUMENT)])


class TestChain:
    "With one row out of place the model remembers a conversation that never was"

    def test_of_a_root(self, store: Store) -> None:
        entry = put(store, "one", DOCUMENT)
        chain = store.chain(entry)
        check(chain)
        assert suppliers(chain) == [("one", 0, 100)]
        assert list(chain.tokens) == DOCUMENT

    @pytest.mark.parametrize("cut", [1, 31, 32, 33, 99, 100])
    def test_a_child_leaves_its_parent_anywhere(self, store: Store, cut: int) -> None:
        put(store, "one", DOCUMENT)
        child = put(store, "two", [*DOCUMENT[:cut], 7, 8], cut, "one")
        chain = store.chain(child)
        check(chain)
        assert suppliers(chain) == [("one", 0, cut), ("two", cut, cut + 2)]
        assert list(chain.tokens) == [*DOCUMENT[:cut], 7, 8]

    def test_siblings_share_their_parent(self, store: Store) -> None:
        put(store, "one", DOCUMENT)
        two = put(store, "two", [*DOCUMENT[:50], 7], 50, "one")
        three = put(store, "three", [*DOCUMENT[:70], 8], 70, "one")
        assert list(store.chain(two).tokens) == [*DOCUMENT[:50], 7]
        assert list(store.chain(three).tokens) == [*DOCUMENT[:70], 8]

    @pytest.mark.parametrize("cut", [1, 30, 49])
    def test_a_grandchild_that_leaves_before_its_parent_began(
        self, store: Store, cut: int
    ) -> None:
        put(store, "one", DOCUMENT)
        put(store, "two", DOCUMENT[:50] + [7] * 30, 50, "one")
        whole = DOCUMENT[:cut] + [8] * 40
        chain = store.chain(put(store, "three", whole, cut, "two"))
        check(chain)
        assert list(chain.tokens) == whole
        assert suppliers(chain) == [("one", 0, cut), ("three", cut, cut + 40)]
        assert find(store, whole).tokens == chain.tokens
        assert not list(verify(store))

    def test_a_grandchild_that_leaves_where_its_parent_began(
        self, store: Store
    ) -> None:
        put(store, "one", DOCUMENT)
        put(store, "two", DOCUMENT[:50] + [7] * 30, 50, "one")
        whole = DOCUMENT[:50] + [8] * 40
        chain = store.chain(put(store, "three", whole, 50, "two"))
        check(chain)
        assert list(chain.tokens) == whole
        assert suppliers(chain) == [("one", 0, 50), ("three", 50, 90)]

    def test_a_child_of_a_cut_at_nothing_stands_alone(self, store: Store) -> None:
        put(store, "one", DOCUMENT)
        child = put(store, "two", [7, 8, 9], 0, "one")
        assert suppliers(store.chain(child)) == [("two", 0, 3)]

    def test_an_unknown_parent_makes_no_chain(self, store: Store) -> None:
        child = put(store, "two", DOCUMENT, 50, "nobody")
        assert store.chain(child) == Chain()
        assert not find(store, DOCUMENT).tokens

    def test_an_unknown_parent_of_equal_tokens_makes_no_chain(
        self, store: Store
    ) -> None:
        child = put(store, "two", [7] * 200, 96, "nobody")
        assert store.chain(child) == Chain()
        assert not find(store, [7] * 200).tokens

    def test_a_parent_of_another_model_is_unknown(self, store: Store) -> None:
        put(store, "one", DOCUMENT, fingerprint="other-model")
        child = put(store, "two", [*DOCUMENT, 7], 100, "one")
        assert store.chain(child) == Chain()

    def test_a_parent_that_is_too_short_makes_no_chain(self, store: Store) -> None:
        put(store, "one", DOCUMENT[:40])
        child = put(store, "two", DOCUMENT, 50, "one")
        assert store.chain(child) == Chain()

    def test_a_parent_that_was_replaced_makes_no_chain(self, store: Store) -> None:
        put(store, "one", DOCUMENT)
        child = put(store, "two", DOCUMENT + [7] * 40, 100, "one")
        put(store, "one", [*DOCUMENT[:99], 0])
        assert store.chain(child) == Chain()
        find(store, DOCUMENT + [7] * 40)

    def test_a_state_without_a_chain_hides_no_other(self, store: Store) -> None:
        put(store, "one", DOCUMENT)
        put(store, "two", DOCUMENT + [7] * 40, 100, "one")
        put(store, "one", [*DOCUMENT[:99], 0])
        assert len(find(store, DOCUMENT + [7] * 40).tokens) == 99

    def test_a_parent_that_comes_back_makes_the_chain_again(self, store: Store) -> None:
        one = put(store, "one", DOCUMENT)
        child = put(store, "two", DOCUMENT + [7] * 40, 100, "one")
        store.lost(one, "gone")
        put(store, "one", DOCUMENT)
        assert len(find(store, DOCUMENT + [7] * 40).tokens) == 140
        assert store.chain(child).available == 140

    def test_a_state_that_names_itself_ends(self, store: Store) -> None:
        entry = put(store, "one", DOCUMENT, 50, "one")
        assert store.chain(entry) == Chain()

    def test_a_circle_of_parents_ends_soon(self, store: Store) -> None:
        for i in range(3):
            put(store, f"{i}", DOCUMENT, 50, f"{(i + 1) % 3}")
        steps: list[None] = []
        store.db.set_progress_handler(lambda: steps.append(None), 1)
        assert not store.chain(store.get("0")).segments
        store.db.set_progress_handler(None, 1)
        assert len(steps) < 2000

    def test_a_long_conversation(self, store: Store) -> None:
        whole: list[int] = []
        parent = None
        for turn in range(120):
            start = max(0, len(whole) - 1)  # the last token is decoded again
            whole = whole[:start] + [turn] * 5
            entry = put(store, f"turn-{turn}", whole, start, parent)
            parent = f"turn-{turn}"
        chain = store.chain(entry)
        check(chain)
        assert list(chain.tokens) == whole
        assert len(chain.segments) == 120
        assert find(store, [*whole[:300], -1]).tokens == tokens_of(whole[:300])

    def test_of_an_entry_that_is_not_stored(self, store: Store) -> None:
        entry = put(store, "one", DOCUMENT)
        gone = replace(entry, state=replace(entry.state, response_id="two"))
        assert store.chain(gone) == Chain()

    @pytest.mark.parametrize("n", [0, 1, 49, 50, 51, 80, 81])
    def test_cut(self, store: Store, n: int) -> None:
        put(store, "one", DOCUMENT)
        whole = DOCUMENT[:50] + [7] * 30
        chain = store.chain(put(store, "two", whole, 50, "one")).cut(n)
        check(chain)
        assert list(chain.tokens) == whole[:n]
        assert chain.available == min(n, 80)


class TestLongestPrefix:
    "What is not found is read again, the very cost that the store saves"

    def test_an_empty_store(self, store: Store) -> None:
        assert find(store, DOCUMENT) == Chain()

    def test_nothing_asked(self, store: Store) -> None:
        put(store, "one", DOCUMENT)
        assert find(store, []) == Chain()

    @pytest.mark.parametrize("n", [1, 2, 31, 32, 33, 63, 64, 65, 96, 99, 100])
    def test_a_shared_document(self, store: Store, n: int) -> None:
        put(store, "one", DOCUMENT)
        assert suppliers(find(store, DOCUMENT[:n] + [7] * 50)) == [("one", 0, n)]
        assert suppliers(find(store, DOCUMENT[:n])) == [("one", 0, n)]

    @pytest.mark.parametrize("start", [1, 31, 32, 33, 64, 96, 100])
    @pytest.mark.parametrize("more", [1, 5, 31, 32, 33, 64])
    def test_through_a_child(self, store: Store, start: int, more: int) -> None:
        put(store, "one", DOCUMENT)
        whole = DOCUMENT[:start] + [7] * 64
        put(store, "two", whole, start, "one")
        expected = [("one", 0, start), ("two", start, start + more)]
        assert suppliers(find(store, whole[: start + more])) == expected
        assert suppliers(find(store, [*whole[: start + more], 9])) == expected

    def test_nothing_shared(self, store: Store) -> None:
        put(store, "one", DOCUMENT)
        assert find(store, [7, *DOCUMENT]) == Chain()

    def test_documents_that_differ_early(self, store: Store) -> None:
        "The same tokens further on are another block: what comes before counts"
        put(store, "one", [1] * 32 + [5] * 64)
        put(store, "two", [2] * 32 + [5] * 64)
        assert suppliers(find(store, [1] * 32 + [5] * 64)) == [("one", 0, 96)]
        assert suppliers(find(store, [2] * 32 + [5] * 40)) == [("two", 0, 72)]
        assert find(store, [3] * 32 + [5] * 64) == Chain()
        for i in range(70):  # more of them than would be looked at
            put(store, f"other-{i}", [9 + i] * 32 + [5] * 64)
        assert suppliers(find(store, [1] * 32 + [5] * 64)) == [("one", 0, 96)]

    def test_every_child_of_a_popular_point(self, store: Store) -> None:
        put(store, "root", DOCUMENT)
        wholes = {f"c{i:03}": DOCUMENT[:40] + [i] * 60 for i in range(150)}
        for name, whole in wholes.items():
            put(store, name, whole, 40, "root")
        for name in ("c000", "c001", "c085", "c086", "c149"):
            whole = wholes[name]
            expected = [("root", 0, 40), (name, 40, 100)]
            assert suppliers(find(store, whole)) == expected
            assert len(find(store, [*whole[:65], -1]).tokens) == 65
            # With so many states in this block, a block may be missed
            assert len(find(store, [*whole[:45], -1]).tokens) in (40, 45)

    def test_every_one_of_many_that_begin_alike(self, store: Store) -> None:
        wholes = {f"c{i:03}": DOCUMENT[:40] + [i] * 60 for i in range(150)}
        for name, whole in wholes.items():
            put(store, name, whole)
        for name in ("c000", "c001", "c085", "c086", "c149"):
            assert suppliers(find(store, wholes[name])) == [(name, 0, 100)]
            assert len(find(store, [*wholes[name][:45], -1]).tokens) in (40, 45)
        assert len(find(store, DOCUMENT[:35]).tokens) == 35

    def test_an_old_child_of_a_popular_point_that_is_known(self, store: Store) -> None:
        put(store, "root", DOCUMENT)
        for i in range(150):
            put(store, f"c{i:03}", DOCUMENT[:40] + [i] * 60, 40, "root")
        oldest = store.get("c000")
        assert oldest is not None
        query = DOCUMENT[:40] + [0] * 5 + [-1]
        assert suppliers(find(store, query, [oldest])) == [
            ("root", 0, 40),
            ("c000", 40, 45),
        ]

    def test_models_never_mix(self, store: Store) -> None:
        entry = put(store, "one", DOCUMENT, fingerprint="a")
        assert find(store, DOCUMENT, fingerprint="b") == Chain()
        assert find(store, DOCUMENT, [entry], fingerprint="b") == Chain()
        put(store, "two", DOCUMENT[:50], fingerprint="b")
        assert suppliers(find(store, DOCUMENT, fingerprint="a")) == [("one", 0, 100)]
        assert suppliers(find(store, DOCUMENT, fingerprint="b")) == [("two", 0, 50)]
        for i in range(70):  # more of them than would be looked at
            put(store, f"other-{i}", DOCUMENT, fingerprint="c")
        assert suppliers(find(store, DOCUMENT, fingerprint="a")) == [("one", 0, 100)]

    @pytest.mark.parametrize("fingerprint", ["a", "b"])
    def test_equal_hashes_prove_nothing(
        self, store: Store, monkeypatch: pytest.MonkeyPatch, fingerprint: str
    ) -> None:
        monkeypatch.setattr(tokens_module, "_signed", lambda _: 0)
        put(store, "one", DOCUMENT, fingerprint="a")
        put(store, "two", DOCUMENT[:50] + [7] * 50, fingerprint="a")
        put(store, "three", DOCUMENT[:33], fingerprint="b")
        n = len(find(store, DOCUMENT[:70], fingerprint=fingerprint).tokens)
        assert n == (70 if fingerprint == "a" else 33)
        assert not find(store, [9] * 70, fingerprint=fingerprint).tokens

    @pytest.mark.parametrize("order", [("one", "two"), ("two", "one")])
    def test_of_equal_chains_the_one_with_files_wins(
        self, store: Store, order: tuple[str, str]
    ) -> None:
        for name in order:
            put(store, name, DOCUMENT)
        gone = store.get("one")
        assert gone is not None
        store.lost(gone, "gone")
        assert suppliers(find(store, DOCUMENT)) == [("two", 0, 100)]

    def test_rows_in_files_count_more_than_tokens(self, store: Store) -> None:
        put(store, "short", DOCUMENT[:97])
        gone = put(store, "long", DOCUMENT)
        assert suppliers(find(store, DOCUMENT)) == [("long", 0, 100)]
        store.lost(gone, "gone")
        assert suppliers(find(store, DOCUMENT)) == [("short", 0, 97)]

    def test_rows_in_files_are_counted_over_the_whole_chain(self, store: Store) -> None:
        gone = put(store, "root", DOCUMENT[:90])
        put(store, "child", DOCUMENT, 90, "root")
        put(store, "other", DOCUMENT[:98])
        assert len(find(store, DOCUMENT).tokens) == 100
        store.lost(gone, "gone")
        chain = find(store, DOCUMENT)
        assert suppliers(chain) == [("other", 0, 98)]
        assert chain.available == 98

    def test_token_ids_are_found_where_no_file_is_left(self, store: Store) -> None:
        store.lost(put(store, "one", DOCUMENT), "gone")
        chain = find(store, DOCUMENT)
        assert len(chain.tokens) == 100
        assert chain.available == 0

    def test_the_cost_is_that_of_the_path(self, store: Store) -> None:
        put(store, "one", DOCUMENT)
        some, many = costs(store, lambda: find(store, DOCUMENT).tokens[99])
        assert many <= some * 1.2

    def test_the_cost_of_finding_nothing_is_not_that_of_the_store(
        self, store: Store
    ) -> None:
        some, many = costs(store, lambda: find(store, DOCUMENT))
        assert many <= some * 1.2


class TestFind:
    "A turn found by a stale or another model's hash has the wrong tokens"

    @pytest.mark.parametrize("column", ["tip_hash", "input_hash"])
    def test_by_hash(self, store: Store, column: str) -> None:
        put(store, "one", DOCUMENT, **{column: "h1"})
        put(store, "two", DOCUMENT, **{column: "h2"})
        put(store, "three", DOCUMENT)
        assert names(store.by_hash(column, ["h1"])) == ["one"]
        assert names(store.by_hash(column, ["h1", None, "h2", "h3"])) == ["two", "one"]
        assert not store.by_hash(column, [])
        assert not store.by_hash(column, [None, ""])
        other = "input_hash" if column == "tip_hash" else "tip_hash"
        assert not store.by_hash(other, ["h1"])

    def test_newest_first(self, store: Store) -> None:
        for name in ("b", "c", "a"):
            put(store, name, DOCUMENT, input_hash="h")
        assert names(store.by_hash("input_hash", ["h"])) == ["a", "c", "b"]
        put(store, "b", DOCUMENT, input_hash="h")
        assert names(store.by_hash("input_hash", ["h"])) == ["b", "a", "c"]

    def test_newest_first_among_very_many_hashes(self, store: Store) -> None:
        put(store, "old", DOCUMENT, tip_hash="h0")
        put(store, "new", DOCUMENT, tip_hash="h1999")
        hashes = [f"h{i}" for i in range(2000)]
        assert names(store.by_hash("tip_hash", hashes)) == ["new", "old"]
        assert names(store.by_hash("tip_hash", hashes[::-1])) == ["new", "old"]

    def test_of_one_model_or_any(self, store: Store) -> None:
        put(store, "one", DOCUMENT, fingerprint="a", tip_hash="h")
        put(store, "two", DOCUMENT, fingerprint="b", tip_hash="h")
        assert names(store.by_hash("tip_hash", ["h"], "a")) == ["one"]
        assert names(store.by_hash("tip_hash", ["h"], "b")) == ["two"]
        assert names(store.by_hash("tip_hash", ["h"])) == ["two", "one"]

    @pytest.mark.parametrize("column", ["tip_hash", "input_hash", "id"])
    def test_the_cost_is_that_of_what_is_found(self, store: Store, column: str) -> None:
        put(store, "one", DOCUMENT, tip_hash="h", input_hash="h")
        some, many = costs(
            store,
            (lambda: store.get("one"))
            if column == "id"
            else (lambda: store.by_hash(column, ["h"])[0]),
        )
        assert many <= some * 1.2

    def test_no_such_response(self, store: Store) -> None:
        assert store.get("one") is None


class TestPermissions:
    "States are as private as prompts, whatever the umask"

    @pytest.mark.parametrize("mask", [0o000, 0o022])
    @pytest.mark.parametrize("start", ["fresh", "garbage", "reopened"])
    def test_modes(
        self, root: Path, umask: Callable[[int], int], mask: int, start: str
    ) -> None:
        umask(mask)
        if start != "fresh":
            with contextlib.closing(Store(root)) as store:
                put(store, "zero", DOCUMENT)
        if start == "garbage":
            (root / "index.db").write_bytes(b"garbage" * 1000)
        with contextlib.closing(Store(root)) as store:
            put(store, "one", DOCUMENT)
            assert {"index.db", "index.db-wal", "index.db-shm"} <= set(os.listdir(root))
            for path in (root, *root.rglob("*")):
                expected = 0o700 if path.is_dir() else 0o600
                assert stat.S_IMODE(path.stat().st_mode) == expected, path


class TestRestart:
    "What is not found after a restart might as well not have been stored"

    @staticmethod
    def plant(root: Path) -> None:
        "Two models, a branching conversation, documents with the same beginning"
        with contextlib.closing(Store(root)) as store:
            for model in ("a", "b"):
                one = [*DOCUMENT, 5, 5]
                put(store, "01", one, fingerprint=model, tip_hash="t1")
                facts = {"fingerprint": model, "input_hash": "i2", "render": "r"}
                two = DOCUMENT[:50] + [6] * 70
                put(store, "02", two, 50, "01", tip_hash="t2", **facts)
                three = two[:90] + [7] * 40
                put(store, "03", three, 90, "02", tip_hash="t3", **facts)
                # Its parent's file comes after its own
                four = three + [8] * 3
                put(store, "00", four, 130, "03", fingerprint=model)
            put(store, "99", [9] * 64, 32, "nobody", fingerprint="b", tip_hash="t9")

    @staticmethod
    def answers(store: Store) -> dict[str, Any]:
        "The results of all queries of the planted store"
        two, three = DOCUMENT[:50] + [6] * 70, DOCUMENT[:50] + [6] * 40 + [7] * 40
        found: dict[str, Any] = {}
        for model in ("a", "b"):
            for n in (1, 20, 32, 50, 51, 64, 89, 90, 91, 110, 130):
                for whole in (DOCUMENT, two, three, [*three, 8, 8, 8]):
                    chain = find(store, whole[:n], fingerprint=model)
                    found[f"{model} {whole[:n]}"] = suppliers(chain)
            for column, value in {"tip_hash": "t9", "input_hash": "i2"}.items():
                entries = store.by_hash(column, ["t1", "t2", "t3", value], model)
                found[f"{model} {column}"] = [(e.state, e.nbytes) for e in entries]
        for entry in store.entries():
            key = f"{entry.state.fingerprint} {entry.state.response_id}"
            found[key] = (entry.state, entry.nbytes, suppliers(store.chain(entry)))
            with store.open(entry) as (rows, _):
                assert rows == rows_of(entry.state.response_id)
        found["problems"] = sorted(verify(store))
        return found

    def after(self, root: Path, event: Callable[[Path], None]) -> None:
        "The results are the same after an event between two openings"
        self.plant(root)
        with contextlib.closing(Store(root)) as store:
            before = self.answers(store)
            assert before["problems"] == [("99", "its parent nobody is unknown")]
            assert len(before) > 50
        event(root)
        with contextlib.closing(Store(root)) as store:
            assert self.answers(store) == before

    def test_reopened(self, root: Path) -> None:
        self.after(root, lambda root: None)

    def test_index_deleted(self, root: Path) -> None:
        self.after(root, remove_index)

    def test_index_emptied(self, root: Path) -> None:
        self.after(root, lambda root: os.truncate(root / "index.db", 0))

    @pytest.mark.parametrize("nbytes", [1, 15, 100, 4096, 100_000])
    def test_index_turned_to_garbage(self, root: Path, nbytes: int) -> None:
        garbage = (b"no database " * nbytes)[:nbytes]
        self.after(root, lambda root: (root / "index.db").write_bytes(garbage) and None)

    def test_index_deleted_but_not_its_log(self, root: Path) -> None:
        def event(root: Path) -> None:
            with contextlib.closing(Store(root)) as store:
                store.count_miss("so that there is a log")
                shutil.copy(root / "index.db-wal", root / "kept")
            (root / "index.db").unlink()
            (root / "kept").rename(root / "index.db-wal")

        self.after(root, event)

    def test_index_of_another_version(self, root: Path) -> None:
        def event(root: Path) -> None:
            with contextlib.closing(sqlite3.connect(root / "index.db")) as db:
                db.execute("drop table misses")
                db.execute("create table novelty (id text)")
                db.execute("pragma user_version = 99")

        self.after(root, event)

    def test_order_is_kept_when_the_index_is_rebuilt(self, root: Path) -> None:
        "Newest first, although ids and models sort differently"
        with contextlib.closing(Store(root)) as store:
            for name, model in (("b", "y"), ("a", "y"), ("a", "x")):
                put(store, name, DOCUMENT, fingerprint=model, tip_hash="h")
            before = [(e.state.fingerprint, names([e])) for e in store.entries()]
        remove_index(root)
        with contextlib.closing(Store(root)) as store:
            found = store.get("a")
            assert found is not None
            assert found.state.fingerprint == "x"
            assert names(store.by_hash("tip_hash", ["h"], "y")) == ["a", "b"]
            after = [(e.state.fingerprint, names([e])) for e in store.entries()]
            assert after == before

    def test_a_crash_between_file_and_row(self, root: Path) -> None:
        with contextlib.closing(Store(root)) as store:
            put(store, "one", DOCUMENT)
            state = a_state("two", DOCUMENT + [7] * 40, 100, "one")
            write_state(store.path(state), state, rows_of("two"))
            assert list(verify(store)) == [("two", "file is not in the index")]
        remove_index(root)
        with contextlib.closing(Store(root)) as store:
            assert not list(verify(store))
            assert len(find(store, DOCUMENT + [7] * 40).tokens) == 140

    def test_files_that_are_no_states_stop_nothing(self, root: Path) -> None:
        with contextlib.closing(Store(root)) as store:
            put(store, "one", DOCUMENT)
            bad = put(store, "two", DOCUMENT)
            with open(store.path(bad.state), "r+b") as file:
                file.truncate(200)
        directory = root / "states" / MODEL
        (directory / "noise.safetensors").write_bytes(b"noise")
        (directory / "directory.safetensors").mkdir()
        (directory / ".three.safetensors.0123.tmp").write_bytes(b"half")
        (root / "states" / "stray").touch()
        remove_index(root)
        with contextlib.closing(Store(root)) as store:
            assert names(list(store.entries())) == ["one"]
            assert len(find(store, DOCUMENT).tokens) == 100

    @pytest.mark.parametrize("place", [f"{MODEL}/z", f"{MODEL}/1", "a-copy/one"])
    def test_a_copied_file_stops_nothing(self, root: Path, place: str) -> None:
        with contextlib.closing(Store(root)) as store:
            for name in ("one", "two", "three"):
                put(store, name, [*DOCUMENT, *name.encode()])
            source = root / "states" / MODEL / "one.safetensors"
            copy = root / "states" / f"{place}.safetensors"
            copy.parent.mkdir(exist_ok=True)
            shutil.copy(source, copy)
        remove_index(root)
        with contextlib.closing(Store(root)) as store:
            for name in ("one", "two", "three"):
                entry = store.get(name)
                assert entry is not None
                with store.open(entry) as (rows, _):
                    assert rows == rows_of(name)

    def test_a_file_out_of_place_is_no_entry(self, root: Path) -> None:
        "An entry's file is where its ids say; any other file is not ours"
        with contextlib.closing(Store(root)) as store:
            put(store, "one", DOCUMENT)
        directory = root / "states" / MODEL
        evil = a_state("../../../precious", DOCUMENT)
        write_state(directory / "evil.safetensors", evil, b"rows")
        precious = root.parent / "precious.safetensors"
        precious.touch()
        remove_index(root)
        with contextlib.closing(Store(root)) as store:
            for entry in list(store.entries()):
                store.lost(entry, "gone")
        assert precious.exists()

    def test_waits_for_the_one_who_makes_the_index(self, root: Path) -> None:
        root.mkdir()
        other = sqlite3.connect(
            root / "index.db", isolation_level=None, check_same_thread=False
        )
        other.execute("begin immediate")

        def finish() -> None:
            time.sleep(0.2)
            other.execute("commit")
            other.close()

        thread = threading.Thread(target=finish)
        thread.start()
        try:
            with contextlib.closing(Store(root)) as store:
                put(store, "one", DOCUMENT)
        finally:
            thread.join()

    def test_a_closed_store_left_nothing_open(self, root: Path) -> None:
        with contextlib.closing(Store(root)) as store:
            put(store, "one", DOCUMENT)
        assert set(os.listdir(root)) == {"index.db", "lock", "states", "tmp"}
        assert not os.listdir(root / "tmp")


class TestDeletedDirectory:
    "Fails if a process can store nothing more, or writes beside the other writers"

    def test_it_is_made_again(self, store: Store) -> None:
        put(store, "one", DOCUMENT)
        shutil.rmtree(store.root)
        put(store, "two", DOCUMENT)
        assert present(store) == "two"
        assert list(verify(store)) == []
        assert store.root.stat().st_mode & 0o777 == 0o700

    def test_another_process_made_it_again(
        self, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(locks, "PATIENCE", 0.01)
        put(store, "one", DOCUMENT)
        shutil.rmtree(store.root)
        with contextlib.closing(Store(store.root)) as other:
            put(other, "two", DOCUMENT)
            with other.writer(), pytest.raises(StoreError):
                put(store, "three", DOCUMENT)
            put(store, "three", DOCUMENT)
            assert present(other) == present(store) == "three two"
            assert list(verify(other)) == []


class TestLost:
    "What was generated must never be tokenised again, with or without a file"

    def test_token_ids_survive_the_file(self, store: Store) -> None:
        entry = put(store, "one", DOCUMENT, tip_hash="tip")
        child = put(store, "two", [*DOCUMENT, 7], 100, "one")
        store.lost(entry, "state file is damaged")
        assert not store.path(entry.state).exists()
        found = store.get("one")
        assert found is not None
        assert not found.present
        assert found.state == entry.state
        assert names(store.by_hash("tip_hash", ["tip"])) == ["one"]
        chain = store.chain(child)
        assert list(chain.tokens) == [*DOCUMENT, 7]
        assert chain.available == 1
        assert not list(verify(store))

    def test_it_survives_a_restart(self, root: Path) -> None:
        with contextlib.closing(Store(root)) as store:
            store.lost(put(store, "one", DOCUMENT), "gone")
        with contextlib.closing(Store(root)) as store:
            assert len(find(store, DOCUMENT).tokens) == 100
            assert find(store, DOCUMENT).available == 0

    def test_a_file_that_is_gone_already(self, store: Store) -> None:
        entry = put(store, "one", DOCUMENT)
        store.path(entry.state).unlink()
        store.lost(entry, "state file is missing")
        assert not list(verify(store))

    def test_reasons_are_counted(self, store: Store) -> None:
        one, two = put(store, "one", DOCUMENT), put(store, "two", DOCUMENT)
        store.count_miss("rare")
        store.lost(one, "frequent")
        store.lost(two, "frequent")
        counts = [(miss["reason"], miss["count"]) for miss in store.misses()]
        assert counts == [("frequent", 2), ("rare", 1)]

    def test_put_again(self, store: Store) -> None:
        entry = put(store, "one", DOCUMENT)
        store.lost(entry, "gone")
        put(store, "one", DOCUMENT)
        assert find(store, DOCUMENT).available == 100
        assert not list(verify(store))

    @pytest.mark.parametrize("as_it_was", [True, False])
    def test_a_file_that_another_wrote_again_is_left_alone(
        self, store: Store, as_it_was: bool
    ) -> None:
        seen = put(store, "one", DOCUMENT)
        state = replace(seen.state, digest="")
        if not as_it_was:
            state = replace(state, tokens=tokens_of(DOCUMENT[::-1]))
        with contextlib.closing(Store(store.root)) as other:
            healed = other.put(state, rows_of("one"))
        store.lost(seen, "state file is damaged")
        with store.open(healed) as (rows, _):
            assert rows == rows_of("one")
        assert not list(verify(store))
        assert [e.present for e in store.entries()] == [True]

    def test_while_walking_through_all(self, store: Store) -> None:
        "As an eviction does, even while another process stores something"
        for i in range(5):
            put(store, f"old-{i}", DOCUMENT)
        seen = 0
        with contextlib.closing(Store(store.root)) as other:
            for entry in store.entries():
                if entry.state.response_id.startswith("old"):
                    seen += 1
                    put(other, f"new-{seen}", DOCUMENT)
                    store.lost(entry, "evicted")
        assert seen == 5
        assert files(store.root) == {
            f"{MODEL}/new-{i}.safetensors" for i in range(1, 6)
        }


def everything(store: Store) -> Any:
    "Index and files of a store, down to modes and times"
    paths = [p for p in store.root.rglob("*") if not p.name.startswith("index.db")]
    stats = {path: path.stat() for path in paths}
    kept = {
        path: (found.st_mode, found.st_size, found.st_mtime_ns, found.st_ino)
        for path, found in stats.items()
    }
    return list(store.db.iterdump()), kept


class TestVerify:
    "A check that finds no problem in a broken store is worse than none"

    @staticmethod
    def filled(store: Store) -> Entry:
        put(store, "one", DOCUMENT)
        put(store, "two", DOCUMENT[:50] + [7] * 30, 50, "one")
        return put(store, "three", DOCUMENT[:50] + [7] * 30 + [8], 80, "two")

    def test_clean(self, store: Store) -> None:
        assert list(verify(store)) == []
        self.filled(store)
        assert list(verify(store)) == []

    @pytest.mark.parametrize("at", [0, 8, 20, 200, -1])
    def test_a_flipped_byte(self, store: Store, at: int) -> None:
        flip(store.path(self.filled(store).state), at)
        ((name, problem),) = verify(store)
        assert name == "three"
        assert problem.startswith("state file is ")

    def test_a_deleted_file(self, store: Store) -> None:
        store.path(self.filled(store).state).unlink()
        assert list(verify(store)) == [("three", "state file is missing")]

    def test_an_orphan(self, store: Store) -> None:
        path = store.path(self.filled(store).state)
        shutil.copy(path, path.with_name("orphan.safetensors"))
        assert list(verify(store)) == [("orphan", "file is not in the index")]

    def test_a_leftover(self, store: Store) -> None:
        self.filled(store)
        (store.root / "tmp" / "0123.safetensors").touch(0o600)
        problem = "temporary file left by a crash"
        assert list(verify(store)) == [("0123.safetensors", problem)]
        with contextlib.closing(Store(store.root)):
            assert list(verify(store)) == []

    def test_a_file_that_is_being_written_is_no_leftover(self, store: Store) -> None:
        self.filled(store)
        leftover = store.root / "tmp" / "0123.safetensors"
        leftover.touch(0o600)
        with contextlib.closing(Store(store.root)) as other:
            leftover.touch(0o600)
            other.locks.hold([leftover.name])
            assert list(verify(store)) == []
            Store(store.root).close()
            assert leftover.exists()

    def test_the_leftovers_of_a_killed_writer(self, store: Store) -> None:
        "With the names that they really have"
        self.filled(store)
        die_while_writing(store)
        (leftover,) = os.listdir(store.root / "tmp")
        assert list(verify(store)) == [
            ("x", "being written, or left incomplete by a crash"),
            (leftover, "temporary file left by a crash"),
        ]
        with contextlib.closing(Store(store.root)):
            assert list(verify(store)) == []

    def test_a_swapped_file(self, store: Store) -> None:
        state = self.filled(store).state
        shutil.copy(store.path(replace(state, response_id="one")), store.path(state))
        problem = "index and file disagree"
        assert list(verify(store)) == [("three", problem)]

    def test_a_file_that_came_back(self, store: Store) -> None:
        entry = self.filled(store)
        path = store.path(entry.state)
        path.rename(store.root / "kept")
        store.lost(entry, "gone")
        (store.root / "kept").rename(path)
        problem = "file exists, but not according to the index"
        assert list(verify(store)) == [("three", problem)]

    def test_an_unknown_parent(self, store: Store) -> None:
        put(store, "two", DOCUMENT, 50, "nobody")
        assert list(verify(store)) == [("two", "its parent nobody is unknown")]

    def test_all_problems_at_once(self, store: Store) -> None:
        directory = store.path(self.filled(store).state).parent
        (directory / "one.safetensors").unlink()
        os.truncate(directory / "two.safetensors", 300)
        (directory / "orphan.safetensors").touch(0o600)
        assert [name for name, _ in verify(store)] == ["one", "two", "orphan"]

    def test_changes_nothing(self, store: Store) -> None:
        directory = store.path(self.filled(store).state).parent
        (directory / "one.safetensors").unlink()
        os.truncate(directory / "two.safetensors", 300)
        (directory / "orphan.safetensors").touch(0o600)
        (directory / "three.safetensors").chmod(0o644)
        (store.root / "tmp" / "0123.safetensors").touch(0o600)
        before = everything(store)
        assert len(list(verify(store))) == 5
        assert everything(store) == before


WRITER = """
import sys, time
from pathlib import Path
from llm_kvbranch.store.header import State
from llm_kvbranch.store.tokens import prefix_digest, tokens_of
from llm_kvbranch.store.store import Store

root, name = Path(sys.argv[1]), sys.argv[2]
(root / f"ready-{name}").touch()
while not (root / "go").exists():
    time.sleep(0.001)
store = Store(root / "kvbranch")
whole, parent = tokens_of(range(1000, 1040)), None
for i in range(20):
    start = len(whole) if parent else 0
    whole += tokens_of([ord(name)] * 10)
    parent, prefix, before = f"{name}-{i}", prefix_digest(whole, start), parent
    state = State(
        response_id=parent,
        parent_id=before,
        fingerprint="some-model",
        start=start,
        end=len(whole),
        answer=start,
        prefix=prefix,
        tokens=whole[start:],
    )
    store.put(state, parent.encode(), store.longest_prefix("some-model", whole[:start]))
    assert store.longest_prefix("some-model", whole).tokens == whole
    store.count_miss("clash")
"""


class TestConcurrentWriters:
    "Two terminals are two writers: neither may fail or overwrite the other"

    def test_processes(self, tmp_path: Path) -> None:
        writers = {name: run(WRITER, str(tmp_path), name) for name in "abcd"}
        deadline = time.monotonic() + 60
        while len(list(tmp_path.glob("ready-*"))) < len(writers):
            assert all(writer.poll() is None for writer in writers.values())
            assert time.monotonic() < deadline
            time.sleep(0.01)
        (tmp_path / "go").touch()
        for writer in writers.values():
            _, error = writer.communicate(timeout=60)
            assert writer.returncode == 0, error
        with contextlib.closing(Store(tmp_path / "kvbranch")) as store:
            assert not list(verify(store))
            assert len(list(store.entries())) == 80
            assert store.misses()[0]["count"] == 80
            for name in writers:
                whole = [*range(1000, 1040), *[ord(name)] * 200]
                chain = find(store, whole)
                assert len(chain.tokens) == 240
                assert chain.available == 240
                assert chain.segments[-1].entry.state.response_id == f"{name}-19"

    def test_two_stores_see_each_others_states(self, root: Path) -> None:
        with (
            contextlib.closing(Store(root)) as one,
            contextlib.closing(Store(root)) as two,
        ):
            put(one, "a", DOCUMENT)
            put(two, "b", DOCUMENT + [7] * 40, 100, "a")
            put(one, "c", DOCUMENT + [7] * 40 + [8], 140, "b")
            whole = DOCUMENT + [7] * 40 + [8]
            assert find(one, whole).tokens == find(two, whole).tokens
            assert len(find(two, whole).tokens) == 141

    def test_many_threads_one_call_at_a_time(self, store: Store) -> None:
        lock, errors = threading.Lock(), []

        def work(name: str) -> None:
            try:
                for i in range(10):
                    with lock:
                        put(store, f"{name}-{i}", [*DOCUMENT, i])
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=work, args=[name]) for name in "abc"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors
        assert len(list(store.entries())) == 30


class TestUnwritable:
    "A store that cannot be used must say so once, and say what to do"

    def refused(self, root: Path) -> None:
        with pytest.raises(StoreError) as caught:
            Store(root)
        assert str(root) in str(caught.value)
        assert "LLM_KVBRANCH_DIR" in str(caught.value)

    def test_root_is_a_file(self, root: Path) -> None:
        root.write_text("not a directory")
        self.refused(root)
        assert root.read_text() == "not a directory"

    def test_root_is_below_a_file(self, root: Path) -> None:
        root.touch()
        self.refused(root / "kvbranch")

    @pytest.mark.parametrize("name", ["states", "tmp"])
    def test_a_directory_is_a_file(self, root: Path, name: str) -> None:
        root.mkdir()
        (root / name).touch()
        self.refused(root)

    @pytest.mark.parametrize("name", ["index.db", "lock"])
    def test_a_file_is_a_directory(self, root: Path, name: str) -> None:
        (root / name).mkdir(parents=True)
        self.refused(root)

    @pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
    def test_root_is_read_only(self, root: Path) -> None:
        root.mkdir(0o500)
        self.refused(root)

    def test_no_directory_for_a_models_states(self, store: Store) -> None:
        (store.root / "states" / MODEL).touch(0o600)
        with pytest.raises(StoreError, match="Cannot write to the state store"):
            put(store, "one", DOCUMENT)
        assert not any(entry.present for entry in store.entries())
        put(store, "one", DOCUMENT, fingerprint="other-model")
        assert list(verify(store)) == []

    def test_an_index_that_stays_locked(self, store: Store) -> None:
        entry = put(store, "one", DOCUMENT)
        store.db.execute("pragma busy_timeout = 20")
        with contextlib.closing(sqlite3.connect(store.root / "index.db")) as other:
            other.execute("begin immediate")
            for write in (
                lambda: store.lost(entry, "gone"),
                lambda: store.count_miss("gone"),
                lambda: put_after(store, "two", entry, [7]),
                lambda: pin(store, "one"),
                lambda: prune(store, ["one"]),
                lambda: collect(store, 0),
                lambda: store.describe(MODEL, "{}"),
            ):
                with pytest.raises(StoreError, match="locked"):
                    write()
            assert len(find(store, DOCUMENT).tokens) == 100
        assert list(verify(store)) == []


class TestFileDigest:
    "A stale digest mixes up two models' states; a slow one delays every prompt"

    @pytest.fixture
    def model(self, tmp_path: Path) -> Path:
        path = tmp_path / "model.gguf"
        path.write_bytes(b"some weights")
        return path

    @pytest.fixture
    def reads(self, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
        "All files whose content is read for their digest"
        paths: list[Path] = []
        digest = stats_module.content_digest

        def reading(path: Path) -> str:
            paths.append(path)
            return digest(path)

        monkeypatch.setattr(stats_module, "content_digest", reading)
        return paths

    def test_a_hit_does_not_read_the_file(
        self, store: Store, model: Path, reads: list[Path]
    ) -> None:
        first = store.file_digest(model)
        assert store.file_digest(model) == first
        assert reads == [model]
        with contextlib.closing(Store(store.root)) as again:
            assert again.file_digest(model) == first
        assert reads == [model]

    def test_content_is_what_counts(
        self, store: Store, model: Path, reads: list[Path]
    ) -> None:
        copy = model.with_name("copy.gguf")
        shutil.copy(model, copy)
        assert store.file_digest(copy) == store.file_digest(model)
        other = model.with_name("other.gguf")
        other.write_bytes(b"more weights")
        assert store.file_digest(other) != store.file_digest(model)
        assert reads == [copy, model, other]

    def test_longer_content_is_noticed(self, store: Store, model: Path) -> None:
        first = store.file_digest(model)
        status = model.stat()
        model.write_bytes(b"some weights and more")
        os.utime(model, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert store.file_digest(model) != first

    def test_a_later_change_is_noticed(self, store: Store, model: Path) -> None:
        first = store.file_digest(model)
        mtime = model.stat().st_mtime_ns
        model.write_bytes(b"SOME weights")
        os.utime(model, ns=(mtime, mtime + 1))
        assert store.file_digest(model) != first

    def test_another_file_in_its_place_is_noticed(
        self, store: Store, model: Path
    ) -> None:
        first = store.file_digest(model)
        status = model.stat()
        other = model.with_name("other.gguf")
        other.write_bytes(b"SOME weights")
        os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
        other.replace(model)
        assert store.file_digest(model) != first

    def test_an_unwritable_index_still_gives_a_digest(
        self, store: Store, model: Path
    ) -> None:
        store.db.execute("pragma busy_timeout = 20")
        with contextlib.closing(sqlite3.connect(store.root / "index.db")) as other:
            other.execute("begin immediate")
            digest = store.file_digest(model)
        assert digest == store.file_digest(model) == stats_module.content_digest(model)

    def test_a_missing_file(self, store: Store, model: Path) -> None:
        store.file_digest(model)
        model.unlink()
        with pytest.raises(FileNotFoundError):
            store.file_digest(model)

    def test_larger_than_the_buffer(self, store: Store, model: Path) -> None:
        model.write_bytes(bytes(5 << 20))
        first = store.file_digest(model)
        model.write_bytes(bytes((5 << 20) - 1) + b"\1")
        assert stats_module.content_digest(model) != first


class TestBookkeeping:
    "The numbers that are shown, and those that eviction relies on"

    def test_what_a_state_goes_on_from_was_used(self, store: Store) -> None:
        one = put(store, "one", DOCUMENT)
        two = put_after(store, "two", one, [7])
        put_after(store, "three", one, [8])
        before = {e.state.response_id: e.used for e in store.entries()}
        put_after(store, "four", two, [9])
        after = {e.state.response_id: e.used for e in store.entries()}
        later = {name for name in before if after[name] > before[name]}
        assert later == {"one", "two"}

    def test_entries_are_oldest_first(self, store: Store) -> None:
        for name in ("b", "c", "a"):
            put(store, name, DOCUMENT)
        assert names(list(store.entries())) == ["b", "c", "a"]

    def test_fingerprints_are_described(self, root: Path) -> None:
        with contextlib.closing(Store(root)) as store:
            assert store.describe("a") is None
            assert store.describe("a", '{"n": 1}') == '{"n": 1}'
            assert store.describe("a", '{"n": 2}') == '{"n": 2}'
            assert store.describe("b") is None
        with contextlib.closing(Store(root)) as store:
            assert store.describe("a") == '{"n": 2}'


# -- a store and its naive twin ----------------------------------------------

# Runs of few values, with lengths around BLOCK: shared beginnings are common, and so
# are cuts and ends exactly at a block's edge.
runs = st.lists(
    st.tuples(
        st.integers(0, 1),
        st.sampled_from([1, 2, 7, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK]),
    ),
    min_size=1,
    max_size=3,
).map(lambda pieces: [value for value, n in pieces for _ in range(n)])
models = st.sampled_from(["a", "b"])
places = st.integers(0, 63)
cuts = st.tuples(st.integers(0, 6), st.integers(-1, 1))


MOST_PUT = 64
THREADS = [None, "thread-1", "thread-2"]


@dataclass
class Twin:
    "A response with its whole context, and which states have which rows"

    state: State
    tokens: list[int]
    owners: list[str]

    def available(self, n: int, present: set[str]) -> int:
        return sum(owner in present for owner in self.owners[:n])


def cut_of(tokens: list[int], cut: tuple[int, int]) -> int:
    "A position in or at the ends of a list: some sixths of it, or next to that"
    return min(max(0, len(tokens) * cut[0] // 6 + cut[1]), len(tokens))


def shared(a: list[int], b: list[int]) -> int:
    for n, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return n
    return min(len(a), len(b))


class StoreMachine(RuleBasedStateMachine):
    """A store and a dict of whole token lists live through the same events.

    The store promises: of the states that share the most whole blocks with a query,
    it finds the one with the most rows in files, then with the most tokens. (There
    are too few states for any to be skipped.) Pinned states and their ancestors are
    never evicted or pruned. Totals always add up.
    """

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp())
        self.store = Store(self.root)
        self.twins: dict[str, Twin] = {}
        self.present: set[str] = set()
        self.pinned: set[str] = set()
        self.n_put = 0
        self.candidates = index_module._MAX_CANDIDATES
        index_module._MAX_CANDIDATES = MOST_PUT

    def teardown(self) -> None:
        index_module._MAX_CANDIDATES = self.candidates
        self.store.close()
        shutil.rmtree(self.root)

    def pick(self, place: int) -> Twin:
        return list(self.twins.values())[place % len(self.twins)]

    def put(self, model: str, parent: Twin | None, start: int, new: list[int]) -> None:
        if self.n_put == MOST_PUT:
            return
        self.n_put += 1
        name = f"r{self.n_put:04}"
        tokens = (parent.tokens[:start] if parent else []) + new
        owners = (parent.owners[:start] if parent else []) + [name] * len(new)
        above = parent.state.response_id if parent else None
        thread = THREADS[self.n_put % len(THREADS)]
        facts = {"fingerprint": model, "thread_id": thread}
        state = a_state(name, tokens, start, above, **facts)
        chain = Chain()
        if parent:
            (entry,) = self.store.get_all(parent.state.response_id)
            chain = self.store.chain(entry).cut(start)
        self.store.put(state, rows_of(name), chain)
        self.twins[name] = Twin(state, tokens, owners)
        self.present.add(name)

    @initialize(model=models, tokens=runs)
    def a_first_root(self, model: str, tokens: list[int]) -> None:
        self.put(model, None, 0, tokens)

    @rule(model=models, tokens=runs)
    def a_root(self, model: str, tokens: list[int]) -> None:
        self.put(model, None, 0, tokens)

    @rule(children=st.lists(st.tuples(places, cuts, runs), min_size=1, max_size=3))
    def children(self, children: list[tuple[int, tuple[int, int], list[int]]]) -> None:
        for place, cut, new in children:
            if self.twins:
                parent = self.pick(place)
                start = cut_of(parent.tokens, cut)
                self.put(parent.state.fingerprint, parent, start, new)

    @rule(place=places)
    def a_lost_file(self, place: int) -> None:
        if not self.present:
            return
        name = sorted(self.present)[place % len(self.present)]
        (entry,) = [e for e in self.store.entries() if e.state.response_id == name]
        self.store.lost(entry, "lost")
        self.present.remove(name)

    @rule(place=places)
    def put_again(self, place: int) -> None:
        if self.twins:
            twin = self.pick(place)
            name = twin.state.response_id
            self.store.put(twin.state, rows_of(name))
            self.present.add(name)

    @rule(place=places, pinned=st.booleans())
    def pin(self, place: int, pinned: bool) -> None:
        if not self.present:
            return
        name = sorted(self.present)[place % len(self.present)]
        pin(self.store, name, pinned)
        (self.pinned.add if pinned else self.pinned.discard)(name)

    def protected(self) -> set[str]:
        "The pinned responses and their ancestors"
        found: set[str] = set()
        waiting = list(self.pinned)
        while waiting:
            name = waiting.pop()
            if name in self.twins and name not in found:
                found.add(name)
                state = self.twins[name].state
                waiting += [state.parent_id] if state.start and state.parent_id else []
        return found

    @rule(sixths=st.integers(0, 6))
    def evict(self, sixths: int) -> None:
        before, limit = self.store.nbytes(), self.store.nbytes() * sixths // 6
        removal = collect(self.store, limit)
        gone = set(names(removal.removed))
        assert gone <= self.present - self.protected()
        self.present -= gone
        assert self.store.nbytes() == before - removal.nbytes
        assert self.store.nbytes() <= limit or self.present <= self.protected()

    @rule(chosen=st.lists(places, min_size=1, max_size=4))
    def pruned(self, chosen: list[int]) -> None:
        asked = {self.pick(place).state.response_id for place in chosen if self.twins}
        stay = self.protected() | set(self.twins) - asked
        for _ in self.twins:  # what stays keeps its ancestors
            links = [self.twins[n].state for n in stay]
            stay |= {s.parent_id for s in links if s.start and s.parent_id}
        removal = prune(self.store, asked)
        assert set(names(removal.removed)) == asked - stay
        assert {e.state.response_id for e, _ in removal.kept} == asked & stay
        for name in asked - stay:
            del self.twins[name]
            self.present.discard(name)
            self.pinned.discard(name)

    @rule()
    def reopened(self) -> None:
        self.store.close()
        self.store = Store(self.root)

    @rule()
    def rebuilt_by_another(self) -> None:
        "This is noticed by the next change"
        with contextlib.closing(Store(self.root)) as other:
            other.rebuild()
            self.forget(other)
        with self.store.writer():
            pass

    @rule()
    def rebuilt(self) -> None:
        "Without its index a store forgets lost states"
        self.store.close()
        remove_index(self.root)
        self.store = Store(self.root)
        self.forget(self.store)

    def forget(self, store: Store) -> None:
        "And a repair deletes those that continue from them"
        list(repair(store))
        assert not list(verify(store))
        for name, twin in list(self.twins.items()):
            rooted = not twin.state.start or twin.state.parent_id in self.twins
            if name not in self.present or not rooted:
                del self.twins[name]
                self.present.discard(name)

    @rule(model=models, place=places, cut=cuts, more=runs)
    def asked(
        self, model: str, place: int, cut: tuple[int, int], more: list[int]
    ) -> None:
        tokens = self.pick(place).tokens if self.twins else []
        self.ask(model, tokens[: cut_of(tokens, cut)] + more)

    def ask(self, model: str, query: list[int]) -> None:
        chain = find(self.store, query, fingerprint=model)
        n = len(chain.tokens)
        matches = [
            (shared(twin.tokens, query), twin)
            for twin in self.twins.values()
            if twin.state.fingerprint == model
        ]
        best = max(
            ((twin.available(match, self.present), match) for match, twin in matches),
            default=(0, 0),
        )
        assert (chain.available, n) == best
        for segment in chain.segments:
            self.check_rows(segment.entry)

    def check_rows(self, entry: Entry) -> None:
        name = entry.state.response_id
        assert entry.present == (name in self.present)
        if entry.present:
            with self.store.open(entry) as (rows, _):
                assert rows == rows_of(name)

    @invariant()
    def every_state_has_its_chain(self) -> None:
        entries = {e.state.response_id: e for e in self.store.entries()}
        for name, twin in self.twins.items():
            chain = self.store.chain(entries[name])
            check(chain, twin.state.fingerprint)
            assert list(chain.tokens) == twin.tokens
            assert chain.available == twin.available(len(twin.tokens), self.present)

    @invariant()
    def totals_are_the_sums_of_their_parts(self) -> None:
        for table, column in (("models", "fingerprint"), ("threads", "thread")):
            sums = {
                row[0]: tuple(row)[1:]
                for row in self.store.db.execute(
                    f"select coalesce({column}, ''), sum(nbytes > 0), sum(nbytes)"
                    " from states group by 1"
                )
            }
            totals = {
                row[0]: tuple(row)[1:]
                for row in self.store.db.execute(
                    f"select {column}, states, nbytes from {table}"
                )
            }
            empty = dict.fromkeys(totals.keys() | sums.keys(), (0, 0))
            assert {**empty, **totals} == {**empty, **sums}
        tokens, responses = self.store.db.execute(
            "select sum((nbytes > 0) * (end - start)), count(*) from states"
        ).fetchone()
        models = self.store.models()
        assert sum(model["tokens"] for model in models) == (tokens or 0)
        assert sum(model["responses"] for model in models) == responses
        assert self.store.nbytes() == total(self.root)

    @invariant()
    def pins_are_kept(self) -> None:
        pinned = {e.state.response_id for e in self.store.entries() if e.pinned}
        assert pinned == self.pinned & set(self.twins)
        keys = {name for _, name in self.store.pinned_keys()}
        assert keys == self.protected()

    @invariant()
    def every_state_is_found_whole(self) -> None:
        for twin in self.twins.values():
            self.ask(twin.state.fingerprint, twin.tokens + [-1] * BLOCK)


TestStoreAndTwin = StoreMachine.TestCase
TestStoreAndTwin.settings = settings(
    max_examples=50,
    stateful_step_count=20,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
    suppress_health_check=[HealthCheck.too_slow],
)
