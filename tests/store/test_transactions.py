"""Transactions on the index.

None stays open when Ctrl-C ends the wait for one, and what one connection commits is
seen by all others, however many stores this process has open.
"""

from __future__ import annotations

import contextlib
import functools
import sqlite3

import pytest

from llm_kvbranch.store.database import SCHEMA_VERSION
from llm_kvbranch.store.store import Store

from ..support.interrupting import Interrupting
from ..support.stores import fill, present, run


class TestInterrupted:
    "Fails if every other process is locked out until this one ends"

    @pytest.fixture(autouse=True)
    def interrupting(self, monkeypatch):
        connect = functools.partial(sqlite3.connect, factory=Interrupting)
        monkeypatch.setattr(sqlite3, "connect", connect)

    def test_a_write(self, root):
        with contextlib.closing(Store(root)) as store:
            store.db.armed = True
            with pytest.raises(KeyboardInterrupt):
                fill(store, "a")
            assert not store.db.in_transaction
            fill(store, "b")
            with contextlib.closing(Store(root)) as other:
                fill(other, "c")

    def test_a_migration(self, root):
        with contextlib.closing(Store(root)) as store:
            store.db.execute("pragma user_version = 1")
            Interrupting.armed = True
            try:
                with pytest.raises(KeyboardInterrupt):
                    store._migrate(store.db)
            finally:
                Interrupting.armed = False
            assert not store.db.in_transaction
            with contextlib.closing(Store(root)) as other:
                (found,) = other.db.execute("pragma user_version").fetchone()
                assert found == SCHEMA_VERSION


_LEAVE = "import sys; from llm_kvbranch.store import Store; Store(sys.argv[1]).close()"


class TestTwoStoresInOneProcess:
    """Fails if opening or closing the second drops SQLite's locks of the first

    Another process that closes the index then deletes the journal that the first
    writes to: from then on there are two indexes.
    """

    @pytest.mark.parametrize("closed", [False, True])
    def test_what_the_first_writes_is_seen_by_others(self, root, closed):
        with contextlib.closing(Store(root)) as first, contextlib.ExitStack() as stack:
            fill(first, "a")
            second = stack.enter_context(contextlib.closing(Store(root)))
            if closed:
                second.close()
            assert run(_LEAVE, str(root)).wait() == 0
            fill(first, "b")
            assert (root / "index.db-wal").exists()
            script = (
                "import sys; from llm_kvbranch.store import Store\n"
                "store = Store(sys.argv[1])\n"
                "assert [store.get(n) is not None for n in 'ab'] == [True] * 2"
            )
            assert run(script, str(root)).wait() == 0
            with contextlib.closing(Store(root)) as third:
                assert present(third) == "a b"
