"""A state file that cannot be read for a moment is not deleted.

Too many open files, a network file system that is away, a disk that hiccups: none of
these say that the file is bad. Only its content, or its absence, does.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llm_kvbranch.errors import StateError, UnreadableStateError
from llm_kvbranch.store import statefile
from llm_kvbranch.store.maintenance import collect, pin, repair, verify
from llm_kvbranch.store.store import Store

from ..support.fake import fake_session
from ..support.life import Answer, user
from ..support.stores import DOCUMENT, files, flip, present, put

pytestmark = pytest.mark.usefixtures("no_fsync")

ERRORS = [errno.EMFILE, errno.EACCES, errno.EIO, errno.ESTALE, errno.ENOMEM]


@pytest.fixture
def store(root: Path) -> Iterator[Store]:
    with contextlib.closing(Store(root)) as store:
        yield store


@contextlib.contextmanager
def refused(monkeypatch: pytest.MonkeyPatch, number: int) -> Iterator[None]:
    "State files cannot be opened"

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(statefile, "open", refuse, raising=False)
        yield


@pytest.mark.parametrize("number", ERRORS)
class TestUnreadable:
    "Fails if one failed system call deletes a sound state, or a pinned one"

    def test_restoring(self, tmp_path, monkeypatch, number):
        one = Answer(fake_session(tmp_path), [user("A question " * 20)])
        session = fake_session(tmp_path)
        pin(session.store, one.id)
        before = files(tmp_path)
        with refused(monkeypatch, number):
            after = Answer(session, [*one.chain, user("?")], log=False).check()
        assert os.strerror(number) in after.facts["miss_reason"]
        assert files(tmp_path) == before
        assert session.store.get(one.id).present
        assert session.store.removals() == []
        assert [miss["count"] for miss in session.store.misses()] == [1]
        again = Answer(fake_session(tmp_path), [*one.chain, user("?")]).check()
        assert again.facts["miss_reason"] is None
        assert again.facts["restored_tokens"] == one.entry.state.end

    @pytest.mark.parametrize("indexed", [True, False])
    def test_maintenance(self, store, monkeypatch, number, indexed):
        put(store, "one", DOCUMENT)
        if not indexed:
            store.db.execute("delete from states")
        with refused(monkeypatch, number):
            collect(store)
            assert list(repair(store)) == []
            problems = list(verify(store))
            assert len(problems) == 1
        assert len(files(store.root)) == 1
        list(repair(store))
        assert present(store) == "one"
        assert list(verify(store)) == []

    def test_after_a_crash(self, store, monkeypatch, number):
        "What is pending stays pending until the file can be looked at"
        entry = put(store, "one", DOCUMENT)
        store._set_pending(store.db, entry.state)
        with refused(monkeypatch, number), store.writer():
            assert len(files(store.root)) == 1
        with store.writer():
            pass
        assert present(store) == "one"
        assert store.db.execute("select * from pending").fetchall() == []

    def test_lost(self, store, number):
        entry = put(store, "one", DOCUMENT)
        error = UnreadableStateError(f"state file is unreadable ({number})")
        store.lost(entry, error)
        assert present(store) == "one"
        assert [miss["reason"] for miss in store.misses()] == [str(error)]


def test_a_bad_file_is_still_deleted(store):
    entry = put(store, "one", DOCUMENT)
    flip(store.path(entry.state))
    with pytest.raises(StateError) as caught, store.open(entry):
        pass
    store.lost(entry, caught.value)
    assert present(store) == ""
