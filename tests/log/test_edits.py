"""Deleting responses: what goes, what stays, and what others do meanwhile."""

from __future__ import annotations

import click
import pytest
from click.testing import CliRunner

from llm_kvbranch.cli import kvbranch
from llm_kvbranch.log import Ancestry, Forest, edits

from ..support.logged import grow


def rows(log):
    return {row["id"] for row in log.db["turns"].rows}


class TestRetries:
    "Fails if a good answer is deleted with the bad one that it replaced"

    def test_of_a_first_answer_stay(self, log):
        bad = log.begin("Why?", "Bad.")
        good = log.retry(bad, "Good.")
        below = log.as_llm(good, "And?", "So.")
        other = log.retry(bad, "Other.")
        log.as_llm(bad, "And?", "Worse.")
        result = CliRunner().invoke(kvbranch, ["prune", bad, "--log"], input="y\n")
        assert "Delete 2 responses from the log for good?" in result.stderr
        assert rows(log) == {good, below, other}
        root = Forest(log.history).tree(below)
        assert [node.id for node in root.walk()] == [good, below, other]
        assert [node.verb for node in root.walk()] == [None, None, "retry"]

    def test_of_a_later_answer_stay_where_they_are(self, log):
        one = log.begin("Why?", "Because.")
        bad = log.as_llm(one, "And?", "Bad.")
        good = log.retry(bad, "Good.")
        again = log.retry(good, "Better.")
        for each in (bad, good):
            ids = Ancestry(log.db).continuations(each)
            assert ids == [each]
            edits.prune(log.history, each, ids)
            assert Ancestry(log.db).parent(again) == one

    @pytest.mark.parametrize("seed", range(5))
    def test_what_stays_reads_as_before(self, log, seed):
        "Messages, parents and search of a random log, before and after"
        ids = grow(log, seed)
        gone = Ancestry(log.db).continuations(ids[seed])
        stay = [id for id in ids if id not in gone]
        before = {id: log.history.response(id) for id in stay}
        edits.prune(log.history, ids[seed], gone)
        assert rows(log) == set(stay)
        assert {id: log.history.response(id) for id in stay} == before
        assert log.history.store.verify() == []
        used = {hash for each in before.values() for hash in each.hashes}
        assert {row["hash"] for row in log.db["messages"].rows} == used
        assert not list(log.db.query("pragma foreign_key_check"))
        assert log.db["turn_search"].count == len(stay)


class TestMeanwhile:
    "Fails if what another process does while a question waits ends in a traceback"

    @pytest.fixture
    def prune(self, log, monkeypatch):
        "Prune from the log while something else happens before the answer"

        def run(id, meanwhile):
            def confirm(*_, **__):
                meanwhile()
                return True

            monkeypatch.setattr(click, "confirm", confirm)
            return CliRunner().invoke(kvbranch, ["prune", id, "--log"])

        return run

    def test_others_prune_the_same(self, log, prune):
        one = log.begin("Why?", "Because.")
        two = log.as_llm(one, "And?", "So.")
        result = prune(one, lambda: edits.delete_responses(log.history, [two]))
        assert result.exit_code == 1
        assert "The log has changed since" in result.stderr
        assert rows(log) == {one}
        result = prune(one, lambda: edits.delete_responses(log.history, [one]))
        assert "was deleted" in result.stderr
        assert result.stderr.count("\n") == 1

    def test_others_continue_it(self, log, prune):
        one = log.begin("Why?", "Because.")
        result = prune(one, lambda: log.as_llm(one, "And?", "So."))
        assert "has other continuations now" in result.stderr
        assert len(rows(log)) == 2


class TestStatements:
    "Fails if deleting many responses from a log takes a statement or more for each"

    def test_do_not_grow(self, log):
        counts = []
        for n in (5, 40):
            last = first = log.begin(f"Why {n}?", "Because.")
            for i in range(n):
                last = log.as_llm(last, f"And {i}?", "So.")
            made = []
            with log.db.tracer(lambda sql, _, made=made: made.append(sql)):
                edits.prune(log.history, first, Ancestry(log.db).continuations(first))
            counts.append(len(made))
        assert counts[0] == counts[1]
