"""Looking up the states of responses without opening the store."""

from __future__ import annotations

import contextlib

import pytest

from llm_kvbranch.store.lookup import look_up
from llm_kvbranch.store.maintenance import collect, pin, prune
from llm_kvbranch.store.store import Store

from ..support.stores import ROWS, contents, conversation, files, fill

pytestmark = pytest.mark.usefixtures("no_fsync")


@pytest.fixture(autouse=True)
def here(root, monkeypatch):
    monkeypatch.setenv("LLM_KVBRANCH_DIR", str(root))


def kinds(*ids):
    return {id: known.kind for id, known in look_up(ids).items()}


class TestKnown:
    "Fails if the page shows a wrong state"

    def test_with_a_file(self, store):
        conversation(store, "a", "b")
        pin(store, "b")
        known = look_up(["a", "b", "c"])
        assert {id: each.nbytes > ROWS for id, each in known.items()} == {
            "a": True,
            "b": True,
        }
        assert [known[id].pinned for id in "ab"] == [False, True]
        assert kinds("a") == {"a": "disk"}
        assert kinds() == {}

    def test_evicted_lost_and_dropped(self, store, root):
        conversation(store, "a", "b")
        fill(store, "c")
        prune(store, ["c"])
        collect(store, 0)
        known = look_up("abc")
        assert "evicted" in (known["a"].gone or "")
        assert {id: each.kind for id, each in known.items()} == {
            "a": "evicted",
            "b": "evicted",
        }
        entry = fill(store, "d")
        store.lost(entry, "state file is damaged")
        assert kinds("d") == {"d": "none"}

    def test_of_many_at_once(self, store):
        fill(store, "a")
        assert set(look_up([*map(str, range(100_000)), "a"])) == {"a"}


class TestNothing:
    "Fails if looking up creates, changes or needs anything"

    def test_no_store(self, root):
        assert look_up("abc") == {}
        assert not root.exists()

    def test_nothing_is_changed(self, root):
        with contextlib.closing(Store(root)) as store:
            conversation(store, "a", "b")
        before = contents(root), files(root)
        assert kinds("a", "b") == {"a": "disk", "b": "disk"}
        assert (contents(root), files(root)) == before

    @pytest.mark.parametrize("damage", ["bytes", "empty", "version", "directory"])
    def test_an_index_that_cannot_be_read(self, root, damage):
        with contextlib.closing(Store(root)) as store:
            fill(store, "a")
            if damage == "version":
                store.db.execute("pragma user_version = 99")
        path = root / "index.db"
        if damage == "bytes":
            path.write_bytes(b"no database" * 1000)
        elif damage == "empty":
            path.write_bytes(b"")
        elif damage == "directory":
            path.unlink()
            path.mkdir()
        assert look_up("a") == {}
