"""Transactions on the log: interrupted, nested, and by several processes at once."""

from __future__ import annotations

import contextlib
import sqlite3

import pytest
import sqlite_utils

from llm_kvbranch.log import History, marks

from ..support.interrupting import Interrupting
from ..support.logged import Log


@pytest.fixture
def interrupting(log):
    "A second connection to the log, whose next transaction is interrupted"
    with contextlib.closing(
        sqlite3.connect(log.path, factory=Interrupting)
    ) as connection:
        yield History(sqlite_utils.Database(connection))


class TestWriting:
    "Fails if a change is lost without a word, or keeps others from writing"

    def test_an_interrupted_wait_leaves_no_transaction(self, log, interrupting):
        one = log.begin("Why?", "Because.")
        interrupting.db.conn.armed = True
        with pytest.raises(KeyboardInterrupt):
            marks.mark(interrupting, one, note="lost")
        assert not interrupting.db.conn.in_transaction
        marks.mark(interrupting, one, note="kept")
        assert marks.read_mark(log.history, one).note == "kept"
        marks.mark(log.history, one, note="also by others")

    def test_a_change_in_a_transaction_of_the_caller_is_undone_alone(self, log):
        "datasette's writes are in a transaction that it commits after an error"
        one = log.begin("Why?", "Because.")
        with log.db.atomic():
            marks.mark(log.history, one, note="kept")
            with contextlib.suppress(ValueError), log.history.writing():
                log.db.execute("delete from turns")
                raise ValueError
        assert log.history.resolve("last") == one
        with Log(log.path).db as other:
            assert marks.read_mark(History(other), one).note == "kept"
