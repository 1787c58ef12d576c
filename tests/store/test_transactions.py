"""Transactions on the index: none stays open when Ctrl-C ends the wait for one."""

from __future__ import annotations

import contextlib
import functools
import sqlite3

import pytest

from llm_kvbranch.store.database import SCHEMA_VERSION
from llm_kvbranch.store.store import Store

from ..support.interrupting import Interrupting
from ..support.stores import fill


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
