"""The store does what people ask of it, and nothing else.

If a pin does not last, or one state too many is deleted, a long document is read
again. An index that another process has rebuilt is the one to use.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llm_kvbranch.cli.store import _status_lines
from llm_kvbranch.errors import StoreError
from llm_kvbranch.store import status as status_module
from llm_kvbranch.store.chain import Chain
from llm_kvbranch.store.maintenance import PRUNED, Removal, collect, pin, prune, verify
from llm_kvbranch.store.store import Store

from ..support.stores import (
    DOCUMENT,
    MODEL,
    blocks,
    contents,
    conversation,
    files,
    fill,
    find,
    names,
    pinned,
    put,
    put_after,
    remove_index,
)

pytestmark = pytest.mark.usefixtures("no_fsync")


class TestPin:
    "A pin that is lost is noticed when the long document is read again"

    def test_until_unpinned(self, store: Store) -> None:
        conversation(store, "a", "b", "c")
        pin(store, "b")
        pin(store, "b")
        assert pinned(store) == ["b"]
        assert store.pinned_keys() == {(MODEL, "a"), (MODEL, "b")}
        assert not list(verify(store))
        pin(store, "b", False)
        pin(store, "b", False)
        assert not pinned(store)
        assert not store.pinned_keys()
        assert not list(verify(store))

    @pytest.mark.parametrize("event", ["reopened", "rebuilt", "written again"])
    def test_survives(self, root: Path, event: str) -> None:
        with contextlib.closing(Store(root)) as store:
            a, _ = conversation(store, "a", "b")
            pin(store, "a")
            pin(store, "b")
            pin(store, "a", False)
            if event == "written again":
                fill(store, "b", a)
        if event == "rebuilt":
            remove_index(root)
        with contextlib.closing(Store(root)) as store:
            assert pinned(store) == ["b"]
            assert not list(verify(store))

    def test_survives_the_loss_of_its_file(self, root: Path) -> None:
        "And the loss of the index, before the file is written again"
        with contextlib.closing(Store(root)) as store:
            a = fill(store, "a")
            pin(store, "a")
            store.lost(a, "damaged")
        remove_index(root)
        with contextlib.closing(Store(root)) as store:
            fill(store, "a")
            assert pinned(store) == ["a"]

    def test_where_there_is_no_state(self, store: Store) -> None:
        with pytest.raises(StoreError, match=r"Response a has no state to pin$"):
            pin(store, "a")
        with pytest.raises(StoreError, match="no state"):
            pin(store, "a", False)

    def test_where_its_file_is_gone(self, store: Store) -> None:
        store.lost(fill(store, "a"), "state was evicted")
        with pytest.raises(StoreError, match="to pin: state was evicted"):
            pin(store, "a")
        pin(store, "a", False)
        assert files(store.root) == set()

    def test_in_an_index_made_again_by_another(self, store: Store) -> None:
        fill(store, "a")
        with contextlib.closing(Store(store.root)) as other:
            other.rebuild()
            pin(store, "a")
            assert pinned(other) == ["a"]

    def test_is_for_its_owner_only(self, store: Store) -> None:
        before = os.umask(0)
        try:
            fill(store, "a")
            pin(store, "a")
        finally:
            os.umask(before)
        mode = (store.root / "states" / MODEL / "a.pin").stat().st_mode
        assert stat.S_IMODE(mode) == 0o600


def kept(removal: Removal) -> dict[str, str]:
    return {entry.state.response_id: reason for entry, reason in removal.kept}


NEEDED = "another response continues from it"
PINNED = "it is pinned, or a pinned state needs it"


class TestPrune:
    "What was pruned is deleted, unless something else needs it"

    def test_rows_and_token_ids(self, store: Store) -> None:
        entry = put(store, "one", DOCUMENT, tip_hash="tip")
        pin(store, "one")
        pin(store, "one", False)
        removal = prune(store, ["one"])
        assert names(removal.removed) == ["one"]
        assert removal.nbytes == entry.nbytes
        assert not removal.kept
        assert not files(store.root)
        assert not list(store.entries())
        assert blocks(store) == 0
        assert find(store, DOCUMENT) == Chain()
        assert not store.by_hash("tip_hash", ["tip"])
        assert [r["reason"] for r in store.removals()] == [PRUNED]

    def test_all_that_was_given(self, store: Store) -> None:
        a, b, _ = conversation(store, "a", "b", "c")
        fill(store, "b2", a)
        fill(store, "c2", b)
        removal = prune(store, ["b", "c", "c2", "never stored"])
        assert sorted(names(removal.removed)) == ["b", "c", "c2"]
        assert names(list(store.entries())) == ["a", "b2"]
        assert not list(verify(store))

    def test_of_every_model(self, store: Store) -> None:
        put(store, "one", DOCUMENT, fingerprint="x")
        put(store, "one", DOCUMENT, fingerprint="y")
        assert len(prune(store, ["one"]).removed) == 2
        assert not files(store.root)

    def test_what_others_go_on_from_stays(self, store: Store) -> None:
        conversation(store, "a", "b", "c", "d")
        fill(store, "x")
        removal = prune(store, ["a", "b", "c", "x"])
        assert kept(removal) == dict.fromkeys("abc", NEEDED)
        assert names(removal.removed) == ["x"]
        assert not list(verify(store))

    def test_what_others_are_linked_through_stays(self, store: Store) -> None:
        "Even if they need none of its rows"
        put(store, "one", DOCUMENT)
        put(store, "two", DOCUMENT[:50] + [7] * 30, 50, "one")
        whole = DOCUMENT[:30] + [8] * 40
        put(store, "three", whole, 30, "two")
        assert kept(prune(store, ["two"])) == {"two": NEEDED}
        assert find(store, whole).available == 70

    def test_what_only_lends_its_name_goes(self, store: Store) -> None:
        "None of its tokens is in the other's context"
        put(store, "one", DOCUMENT)
        put(store, "two", [7, 8, 9], 0, "one")
        put(store, "other", [*DOCUMENT, 7], 100, "one", fingerprint="other-model")
        assert names(prune(store, ["one"]).removed) == ["one"]

    def test_what_is_pinned_stays(self, store: Store) -> None:
        conversation(store, "a", "b", "c", "d")
        pin(store, "b")
        removal = prune(store, "abcd")
        assert kept(removal) == dict.fromkeys("ab", PINNED)
        assert sorted(names(removal.removed)) == ["c", "d"]
        assert pinned(store) == ["b"]

    def test_what_is_in_use_stays(self, store: Store) -> None:
        _, b, _ = conversation(store, "a", "b", "c")
        with contextlib.closing(Store(store.root)) as other:
            assert other.hold(other.chain(b))
            removal = prune(store, "abc")
            assert kept(removal) == dict.fromkeys("ab", "it is in use")
        assert names(prune(store, "ab").removed) == ["a", "b"]
        assert not list(store.entries())

    def test_what_is_needed_by_what_is_in_use_stays(self, store: Store) -> None:
        a, b = conversation(store, "a", "b")
        store.lost(a, "gone")
        with contextlib.closing(Store(store.root)) as other:
            assert other.hold(other.chain(b))
            assert kept(prune(store, "ab")) == {"a": NEEDED, "b": "it is in use"}

    def test_what_has_no_file_is_forgotten(self, store: Store) -> None:
        store.lost(put(store, "one", DOCUMENT), "gone")
        assert names(prune(store, ["one"]).removed) == ["one"]
        assert find(store, DOCUMENT) == Chain()

    def test_a_dry_run_changes_nothing(self, store: Store) -> None:
        conversation(store, "a", "b", "c")
        before = contents(store.root), list(store.db.iterdump())
        removal = prune(store, ["b", "c"], dry_run=True)
        assert sorted(names(removal.removed)) == ["b", "c"]
        assert kept(prune(store, ["a"], dry_run=True)) == {"a": NEEDED}
        assert (contents(store.root), list(store.db.iterdump())) == before
        with contextlib.closing(Store(store.root)) as other:
            assert len(collect(other, 0).removed) == 3

    def test_what_stays_can_be_evicted_later(self, store: Store) -> None:
        conversation(store, "a", "b", "c")
        prune(store, ["a", "b"])
        with contextlib.closing(Store(store.root)) as other:
            assert len(collect(other, 0).removed) == 3

    def test_after_another_made_the_index_again(self, store: Store) -> None:
        a = fill(store, "a")
        with contextlib.closing(Store(store.root)) as other:
            other.rebuild()
            put_after(other, "b", a, [7])
            assert kept(prune(store, ["a"])) == {"a": NEEDED}
            assert not list(verify(other))


class TestRebuiltByAnother:
    "A store that keeps using a replaced index writes for nobody"

    @pytest.mark.parametrize("how", ["rebuilt", "removed", "turned to garbage"])
    def test_the_next_state_is_in_the_new_one(self, root: Path, how: str) -> None:
        with contextlib.closing(Store(root)) as store:
            one = put(store, "one", DOCUMENT)
            if how == "removed":
                remove_index(root)
            elif how == "rebuilt":
                with contextlib.closing(Store(root)) as other:
                    other.rebuild()
            else:
                with contextlib.closing(Store(root)) as other:
                    remove_index(root)
                    (root / "index.db").write_bytes(b"garbage" * 1000)
                    Store(root).close()
            put_after(store, "two", one, [7])
            assert names(list(store.entries())) == ["one", "two"]
            with contextlib.closing(Store(root)) as other:
                assert find(other, [*DOCUMENT, 7]).available == 101
                assert not list(verify(other))

    @pytest.mark.parametrize("call", [collect, lambda s, _: s.lost(s.get("one"), "x")])
    def test_so_is_what_is_removed(
        self, store: Store, call: Callable[..., Any]
    ) -> None:
        put(store, "one", DOCUMENT)
        with contextlib.closing(Store(store.root)) as other:
            other.rebuild()
            call(store, 0)
            assert not files(store.root)
            assert not list(verify(other))
            assert find(other, DOCUMENT).available == 0


def test_status_leaves_out_kinds_without_states(root: Path, monkeypatch) -> None:
    "A KV type that was tried once would be listed for ever"
    monkeypatch.setattr(status_module, "data_directory", lambda: root)
    with contextlib.closing(Store(root)) as store:
        put(store, "one", DOCUMENT)
        put(store, "two", DOCUMENT, fingerprint="other")
        prune(store, ["two"])
        store.count_prompt("other", 10, 0)
    lines = list(_status_lines(status_module.describe_store()))
    (text,) = (text for name, text in lines if name == "Model")
    assert "llama.cpp unknown: 1 state, " in text
