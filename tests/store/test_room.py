"""Which states must not be evicted, and when room is made other than by a put.

It is no use to keep the budget by deleting what someone reads, or by letting the
index grow instead. If others filled the disk, answers are still stored.
"""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

import llm_kvbranch
import llm_kvbranch.store.files as files_module
import llm_kvbranch.store.locks as locks_module
from llm_kvbranch.errors import StoreError
from llm_kvbranch.store.chain import Entry
from llm_kvbranch.store.maintenance import collect, pin, prune, verify
from llm_kvbranch.store.store import EVICTED_FULL, Store

from ..support.stores import (
    DOCUMENT,
    ROWS,
    SIZE,
    a_state,
    contents,
    conversation,
    fill,
    names,
    present,
    remove_index,
    total,
)

pytestmark = pytest.mark.usefixtures("no_fsync")


BUDGET = 4 * SIZE  # room for four states


HOLDER = """
import sys
from llm_kvbranch.store.store import Store
store = Store(sys.argv[1])
hold = store.hold(store.chain(store.get(sys.argv[2])))
print(len(hold.names), flush=True)
sys.stdin.readline()
hold.release()
print("dropped", flush=True)
sys.stdin.readline()
"""


class TestHeld:
    "If rows vanish after a prompt was planned, all of them are read again"

    def test_by_another_store(self, store: Store) -> None:
        *_, b = conversation(store, "a", "b")
        with contextlib.closing(Store(store.root)) as other:
            held = other.hold(other.chain(b))
            assert held is not None
            for name in "wxyz":
                fill(store, name)
            assert present(store) == "a b y z"
            held.release()
            fill(store, "new")
            assert present(store) == "a new y z"

    def test_by_the_store_itself(self, store: Store) -> None:
        held = store.hold(store.chain(fill(store, "a")))
        assert held is not None
        for name in "wxyz":
            fill(store, name)
        assert present(store) == "a x y z"
        held.release()
        fill(store, "new")
        assert present(store) == "new x y z"

    def test_all_is_held(self, store: Store) -> None:
        held = [store.hold(store.chain(fill(store, name))) for name in "abcd"]
        with pytest.raises(StoreError, match="in use or pinned"):
            fill(store, "e")
        assert present(store) == "a b c d"
        assert held[2] is not None
        held[2].release()
        fill(store, "e")
        assert present(store) == "a b d e"

    @pytest.mark.parametrize("end", ["dropped", "killed"])
    def test_by_another_process(self, store: Store, end: str) -> None:
        conversation(store, "a", "b")
        with subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(store.root), "b"],
            cwd=Path(llm_kvbranch.__file__).parents[1],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as holder:
            assert holder.stdin is not None
            assert holder.stdout is not None
            assert holder.stdout.readline() == "2\n"
            for name in "wxyz":
                fill(store, name)
            assert present(store) == "a b y z"
            if end == "dropped":
                holder.stdin.write("\n")
                holder.stdin.flush()
                assert holder.stdout.readline() == "dropped\n"
            else:
                holder.kill()
                holder.wait()
            fill(store, "new")
            assert present(store) == "a new y z"
            holder.kill()

    def test_an_interrupted_eviction_claims_nothing(
        self, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        "Otherwise no other process could read the state until this one ends"
        a = fill(store, "a")

        def interrupted(**_: object) -> Iterator[Entry]:
            yield a
            raise KeyboardInterrupt

        monkeypatch.setattr(store, "by_use", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fill(store, "b", nbytes=4 * ROWS)
        with contextlib.closing(Store(store.root)) as other:
            monkeypatch.setattr(locks_module, "PATIENCE", 0.01)
            assert other.hold(other.chain(a)) is not None

    @pytest.mark.parametrize("event", ["evicted", "written again", "forgotten"])
    def test_what_changed_in_the_meantime_is_not_held(
        self, store: Store, event: str
    ) -> None:
        a, b = conversation(store, "a", "b")
        chain = store.chain(b)
        if event == "evicted":
            store.lost(b, "gone")
        elif event == "forgotten":
            prune(store, ["b"])
        else:
            fill(store, "b", a)
        assert store.hold(chain) is None
        with contextlib.closing(Store(store.root, SIZE)) as other:
            fill(other, "new")
            assert present(other) == "new"

    def test_what_has_no_file_need_not_be_held(self, store: Store) -> None:
        a, b = conversation(store, "a", "b")
        store.lost(a, "gone")
        held = store.hold(store.chain(b))
        assert held is not None
        assert len(held.names) == 1

    def test_a_bad_state_that_is_held_stays_held_when_written_again(
        self, store: Store
    ) -> None:
        a = fill(store, "a")
        held = store.hold(store.chain(a))
        assert held is not None
        store.lost(a, "damaged")
        fill(store, "a")
        with contextlib.closing(Store(store.root, 2 * SIZE)) as other:
            for name in "bcd":
                fill(other, name)
        assert present(store) == "a d"


class TestDefaultBudget:
    "A share of a disk is only right while it follows the free space"

    @pytest.fixture
    def disk(self, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
        "A disk with nothing but the store"
        disk = SimpleNamespace(size=1_000_000)

        def usage(root: Path) -> SimpleNamespace:
            return SimpleNamespace(free=disk.size - total(root))

        monkeypatch.setattr(files_module.shutil, "disk_usage", usage)
        return disk

    def test_is_a_share_of_what_is_free_or_taken_by_the_store(
        self, root: Path, disk: SimpleNamespace
    ) -> None:
        with contextlib.closing(Store(root)) as store:
            assert store.budget() == 200_000
            a = fill(store, "a")
            assert store.budget() == 200_000
            disk.size = a.nbytes
            assert store.budget() == a.nbytes // 5

    def test_is_kept(self, root: Path, disk: SimpleNamespace) -> None:
        with contextlib.closing(Store(root)) as store:
            for name in "abc":
                fill(store, name)
            assert present(store) == "c"
            disk.size = 20 * SIZE
            for name in "defg":
                fill(store, name)
            assert present(store) == "d e f g"
            disk.size = 5 * SIZE
            fill(store, "h")
            assert present(store) == "h"
            disk.size = 4 * SIZE
            with pytest.raises(StoreError, match="llm kvbranch store budget"):
                fill(store, "i")
            assert present(store) == "h"

    def test_a_given_one_asks_for_no_disk(
        self, root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delattr(files_module.shutil, "disk_usage")
        with contextlib.closing(Store(root, SIZE)) as store:
            fill(store, "a")
            assert store.budget() == SIZE


BIG = 4 * SIZE  # more than the room that is made for the index


class TestFullDisk:
    "A disk that others filled must not keep answers from being stored"

    @pytest.fixture
    def store(self, root: Path) -> Iterator[Store]:
        with contextlib.closing(Store(root, 100 * BIG)) as store:
            yield store

    @pytest.fixture
    def disk_of(
        self, root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> Callable[..., None]:
        "Set how many bytes of files fit on the disk"

        def limit(nbytes: int, number: int = errno.ENOSPC) -> None:
            def flush(_: int) -> None:
                if sum(map(len, contents(root).values())) > nbytes:
                    raise OSError(number, os.strerror(number))

            monkeypatch.setattr(os, "fsync", flush)

        return limit

    @pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
    def test_old_states_make_room(
        self, store: Store, disk_of: Callable[..., None], number: int
    ) -> None:
        disk_of(4 * BIG, number)
        for name in "abcde":
            fill(store, name, nbytes=4 * ROWS)
        # More than the new one takes, for the index, but not by a whole state
        assert present(store) == "c d e"
        found = store.get("a")
        assert found is not None
        assert found.gone == EVICTED_FULL
        assert not os.listdir(store.root / "tmp")
        assert not list(verify(store))

    def test_but_not_those_that_it_goes_on_from(
        self, store: Store, disk_of: Callable[..., None]
    ) -> None:
        disk_of(4 * BIG)
        a = fill(store, "a", nbytes=4 * ROWS)
        for name in "xyz":
            fill(store, name, nbytes=4 * ROWS)
        fill(store, "a2", a, 4 * ROWS)
        assert present(store) == "a a2 z"

    def test_where_too_little_could_go_all_stays(
        self, store: Store, disk_of: Callable[..., None]
    ) -> None:
        disk_of(2 * BIG)
        a = fill(store, "a", nbytes=4 * ROWS)
        fill(store, "b", a, 4 * ROWS)
        pin(store, "b")
        before = contents(store.root)
        with pytest.raises(StoreError, match="No space left"):
            fill(store, "new", a, 4 * ROWS)
        assert contents(store.root) == before
        pin(store, "b", False)
        with pytest.raises(StoreError, match="No space left"):
            fill(store, "new", a, 4 * ROWS)
        assert present(store) == "a b"
        with contextlib.closing(Store(store.root)) as other:
            assert names(collect(other, 0).removed) == ["b", "a"]

    def test_a_disk_that_stays_full_is_an_error(
        self, store: Store, disk_of: Callable[..., None]
    ) -> None:
        for name in "abcd":
            fill(store, name, nbytes=4 * ROWS)
        disk_of(0)
        with pytest.raises(StoreError, match="No space left"):
            fill(store, "new", nbytes=4 * ROWS)
        assert not os.listdir(store.root / "tmp")
        assert not list(verify(store))

    def test_another_error_gives_up_nothing(
        self, store: Store, disk_of: Callable[..., None]
    ) -> None:
        for name in "abcd":
            fill(store, name, nbytes=4 * ROWS)
        disk_of(0, errno.EIO)
        with pytest.raises(StoreError, match="Input/output error"):
            fill(store, "new", nbytes=4 * ROWS)
        assert present(store) == "a b c d"


class TestCollect:
    "Room that was asked for and not made, or made by deleting what is needed"

    def test_to_a_limit(self, store: Store) -> None:
        entries = [fill(store, name) for name in "abcd"]
        removal = collect(store, 2 * SIZE)
        assert names(removal.removed) == ["a", "b"]
        assert removal.nbytes == entries[0].nbytes + entries[1].nbytes
        assert present(store) == "c d"
        assert not collect(store, 2 * SIZE).removed
        collect(store, 0)
        assert present(store) == ""
        assert not list(verify(store))

    def test_to_the_budget(self, store: Store) -> None:
        for name in "abcd":
            fill(store, name)
        assert not collect(store).removed
        store.limit = SIZE
        assert names(collect(store).removed) == ["a", "b", "c"]

    def test_a_conversation_goes_from_its_end(self, store: Store) -> None:
        conversation(store, "a", "b", "c", "d")
        assert names(collect(store, 0).removed) == ["d", "c", "b", "a"]

    def test_a_dry_run_changes_nothing(self, store: Store) -> None:
        for name in "abcd":
            fill(store, name)
        before = contents(store.root), list(store.db.iterdump())
        assert names(collect(store, 2 * SIZE, dry_run=True).removed) == ["a", "b"]
        assert (contents(store.root), list(store.db.iterdump())) == before
        with contextlib.closing(Store(store.root)) as other:
            assert names(collect(other, 2 * SIZE).removed) == ["a", "b"]

    def test_what_is_pinned_or_in_use_stays(self, store: Store) -> None:
        conversation(store, "a", "b", "c")
        x = fill(store, "x")
        pin(store, "b")
        with contextlib.closing(Store(store.root)) as other:
            assert other.hold(other.chain(x))
            assert names(collect(store, 0).removed) == ["c"]
        assert present(store) == "a b x"

    def test_leftovers_of_a_crash_go(self, store: Store) -> None:
        leftover = store.root / "tmp" / "0123.safetensors"
        leftover.touch(0o600)
        collect(store)
        assert not leftover.exists()


class TestBoundedIndex:
    "Token ids of evicted states would fill the disk instead of their rows"

    @staticmethod
    def long(store: Store, name: str, parent: Entry | None = None) -> Entry:
        "A state of many tokens and few rows"
        chain = store.chain(parent) if parent else None
        before = list(chain.tokens) if chain else []
        above = parent.state.response_id if parent else None
        tokens = [*before, *map(ord, name), *DOCUMENT * 10]
        state = a_state(name, tokens, len(before), above)
        return store.put(state, bytes(1000), chain)

    def test_it_stops_growing(
        self, root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(files_module, "_INDEX_LEAST", 600_000)
        with contextlib.closing(Store(root, 60_000)) as store:
            store.db.execute("pragma synchronous = off")
            sizes, known = [], []
            for i in range(250):
                self.long(store, f"r{i:03}")
                sizes.append(store._index_bytes())
                known.append(len(list(store.entries())))
            assert max(sizes) < 700_000
            entries = names(list(store.entries()))
            assert entries == [f"r{i:03}" for i in range(250)][-len(entries) :]
            assert max(known) < 200
            assert sum(entry.present for entry in store.entries()) * 3 < max(known)
            assert not list(verify(store))

    def test_a_larger_budget_lets_it_grow(
        self, root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(files_module, "_INDEX_LEAST", 0)
        with contextlib.closing(Store(root, 10_000_000)) as store:
            store.lost(self.long(store, "a"), "gone")
            self.long(store, "b")
            assert names(list(store.entries())) == ["a", "b"]
            store.limit = 100_000
            self.long(store, "c")
            assert names(list(store.entries())) == ["b", "c"]

    def test_what_another_goes_on_from_is_not_forgotten(
        self, root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(files_module, "_INDEX_LEAST", 0)
        with contextlib.closing(Store(root, 60_000)) as store:
            a = self.long(store, "a")
            b = self.long(store, "b", a)
            store.lost(a, "gone")
            store.lost(self.long(store, "x"), "gone")
            self.long(store, "y")
            assert names(list(store.entries())) == ["a", "b", "y"]
            assert store.chain(b).available == b.state.end - b.state.start
            assert not list(verify(store))

    def test_the_longest_unused_are_forgotten_first(self, store: Store) -> None:
        for entry in [self.long(store, name) for name in "cab"]:
            store.lost(entry, "gone")
        for left in (["a", "b"], ["b"], []):
            with store._write() as db:
                store._delete_gone(db, 1)
            assert names(list(store.entries())) == left

    def test_the_one_being_put_is_not_forgotten(
        self, root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(files_module, "_INDEX_LEAST", 0)
        with contextlib.closing(Store(root, 60_000)) as store:
            store.lost(self.long(store, "a"), "gone")
            self.long(store, "a")
            remaining = store.get("a")
            assert remaining is not None
            assert remaining.present


class TestRebuilt:
    "A rebuilt index has no dates of use, but must not evict beginnings first"

    def order(self, root: Path) -> list[str]:
        "The order in which states are evicted after the index was lost"
        remove_index(root)
        with contextlib.closing(Store(root)) as store:
            return names(list(store.by_use()))

    def test_the_oldest_go_first(self, root: Path) -> None:
        with contextlib.closing(Store(root)) as store:
            for name in "bca":
                fill(store, name)
        assert self.order(root) == ["b", "c", "a"]

    def test_children_go_before_parents(self, root: Path) -> None:
        with contextlib.closing(Store(root)) as store:
            *_, c = conversation(store, "a", "b", "c")
            fill(store, "x")
            fill(store, "d", c)
        assert self.order(root) == ["x", "d", "c", "b", "a"]

    def test_also_where_one_of_them_was_written_again(self, root: Path) -> None:
        "So that its file is newer than those that continue from it"
        with contextlib.closing(Store(root)) as store:
            a, b, _ = conversation(store, "a", "b", "c")
            fill(store, "b", a)
            fill(store, "x")
            fill(store, "d", b)
        assert self.order(root) == ["c", "x", "d", "b", "a"]
        with contextlib.closing(Store(root)) as store:
            fill(store, "a")
            fill(store, "e", store.get("d"))
        assert self.order(root)[-4:] == ["e", "d", "b", "a"]
