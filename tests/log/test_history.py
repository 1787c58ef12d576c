"""Transactions on the log: interrupted, nested, and by several processes at once."""

from __future__ import annotations

import contextlib
import sqlite3
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import llm
import pytest
import sqlite_utils
from llm.migrations import migrate
from sqlite_utils.migrations import Migrations

from llm_kvbranch.errors import HistoryError
from llm_kvbranch.log import Forest, History, edits, marks, search
from llm_kvbranch.log.tables import migrations
from llm_kvbranch.web.page.list_data import describe_list

from ..support.interrupting import Interrupting
from ..support.logged import Log

FIRST = """
import sys
import llm.migrations
from llm_kvbranch.log import History, open_log
print("ready", flush=True)
sys.stdin.read()
History(open_log(create=True)).prepare()
"""


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


class TestFirstUse:
    "Fails if processes that use a log for the first time are in each other's way"

    def test_several_at_once(self, user_path, monkeypatch):
        "All of them see that the tables are missing before one creates them"
        log = Log(user_path / "logs.db", ours=False)
        ids = [log.begin(f"Why {n}?", "Because.") for n in range(4)]
        log.close()
        here, all_here = threading.local(), threading.Barrier(len(ids))
        pending = Migrations.pending

        def meet(self, db):
            found = pending(self, db)
            if not hasattr(here, "met"):
                here.met = True
                all_here.wait(10)
            return found

        def star(id):
            with Log(log.path, ours=False).db as db:
                marks.mark(History(db), id, starred=True)

        monkeypatch.setattr(Migrations, "pending", meet)
        with ThreadPoolExecutor(len(ids)) as pool:
            list(pool.map(star, ids))
        with Log(log.path, ours=False).db as db:
            assert {mark.response_id for mark in marks.read_marks(db, ids)} == set(ids)

    def test_processes_that_create_the_log(self, user_path):
        "Fails if one finds it locked, or with half of llm's tables"
        children = [
            subprocess.Popen(
                [sys.executable, "-c", FIRST],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for _ in range(6)
        ]
        for child in children:
            assert child.stdout.readline() == "ready\n"
        for child in children:
            child.stdin.close()  # now
        errors = [child.stderr.read() for child in children]
        assert [child.wait(60) for child in children] == [0] * 6, max(errors)
        with Log(user_path / "logs.db", ours=False).db as db:
            assert not migrations.pending(db)
            alone = sqlite_utils.Database(memory=True)
            migrate(alone)
            assert set(alone.table_names()) <= set(db.table_names())

    def test_nothing_is_written_when_there_is_nothing_to_do(self, log):
        with contextlib.closing(sqlite3.connect(log.path)) as other:
            other.execute("begin immediate")
            log.history.prepare()


class TestLegacy:
    "Fails if the advice for old responses does not work"

    def test_only_new_answers_can_be_branched_from(self, log):
        log.db["conversations"].insert({"id": "c1", "name": "Old", "model": "parrot"})
        log.db["responses"].insert(
            {"id": "old1", "conversation_id": "c1", "prompt": "Why?", "response": "So."}
        )
        with pytest.raises(HistoryError) as caught:
            log.history.resolve("old1")
        message = str(caught.value)
        assert "cannot be branched from" in message
        assert "llm --cid c1" in message
        assert "convert" not in message


class TestLast:
    "Fails if an imported response stays the last one after new answers"

    @pytest.mark.parametrize("id", ["zzzz", "7zzzzzzzzzzzzzzzzzzzzzzzzz"])
    def test_is_the_one_logged_last(self, log, id):
        turn = edits.ImportedTurn(
            id,
            [llm.user("Why?")],
            [llm.assistant("So.")],
            dict.fromkeys(
                [
                    *("model", "resolved_model", "datetime_utc"),
                    *("input_tokens", "output_tokens", "duration_ms"),
                ]
            ),
        )
        edits.import_turns(log.history, [turn], "thread", "imported")
        assert log.history.resolve("last") == id
        new = log.begin("And?", "Because.")
        assert log.history.resolve("last") == new


class TestFuture:
    """Fails if a response whose id is of a clock that is ahead stays the newest.

    An import, or a computer with a wrong clock, may have logged it.
    """

    @pytest.fixture
    def ids(self, log):
        "A tree of the future, one logged before it and one after it"
        old = log.begin("Old?", "Yes.")
        ahead = log.begin("Ahead?", "So far.")
        id = "7zzzzzzzzzzzzzzzzzzzzzzzzz"
        log.db.execute("update turns set id = ? where id = ?", [id, ahead])
        log.db.execute(
            "update turn_search set turn_id = ? where turn_id = ?", [id, ahead]
        )
        log.db.conn.commit()
        return {"old": old, "ahead": id, "new": log.begin("New?", "No.")}

    def test_the_newest_tree(self, log, ids):
        newest = [root.id for root in Forest(log.history).recent(3)]
        assert newest == [ids["new"], ids["ahead"], ids["old"]]
        assert log.history.resolve("last") == newest[0]

    def test_the_pages_of_a_list(self, log, ids):
        listed, before = [], None
        for _ in ids:
            page = search.list_trees(log.history, search.Filter(before=before), 1)
            listed += [tree.root.id for tree in page.trees]
            before = page.before
        assert listed == [ids["new"], ids["ahead"], ids["old"]]
        assert before is None

    def test_what_continues_it(self, log, ids):
        "In its thread, its tree and as the last of both"
        child = log.as_llm(ids["ahead"], "And now?", "Now.")
        root = Forest(log.history).tree(child)
        assert [node.id for node in root.walk()] == [ids["ahead"], child]
        thread = log.history.turn(child)["thread_id"]
        assert log.history.resolve(thread, threads=True) == child
        (listed,) = search.list_trees(log.history, search.Filter("now")).trees
        assert listed.fitting == [child]
        trees = describe_list(log.history, search.Filter(), {})["trees"]
        assert trees[0]["open"] == child
        assert trees[0]["changed"] == log.history.turn(child)["datetime_utc"]
