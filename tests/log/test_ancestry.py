"""Ancestry, trees and paths, compared with slow definitions on random logs."""

from __future__ import annotations

import pytest

from llm_kvbranch.errors import HistoryError
from llm_kvbranch.log.ancestry import Ancestry, resolve_message
from llm_kvbranch.log.path import read_path
from llm_kvbranch.log.tree import Forest

from ..support.logged import grow


def slow_parent(history, response_id):
    "A response's parent by definition, one query at a time"
    branch = history.branch(response_id)
    origin = branch.get("from_response")
    if not origin or not history.db["turns"].count_where("id = ?", [origin]):
        return slow_answered(history, history.turn(response_id))
    if branch["verb"] == "retry":  # a sibling, unless it has no parent
        return slow_parent(history, origin) or origin
    return origin


def slow_answered(history, turn):
    "The response whose answer comes last in a prompt"
    at = turn["parent_message_hash"]
    while at is not None:
        row = next(history.db.query("select * from messages where hash = ?", [at]))
        if row["role"] == "assistant":
            found = history.db.query(
                "select id from turns where tip_message_hash = ? and id < ?"
                " order by thread_id = ? desc, id desc limit 1",
                [at, turn["id"], turn["thread_id"]],
            )
            return next((each["id"] for each in found), None)
        at = row["parent_hash"]
    return None


class TestAncestry:
    "Fails if reading many responses at once changes their parents"

    @pytest.mark.parametrize("seed", range(6))
    def test_parents_as_they_are_defined(self, log, seed):
        ids = grow(log, seed)
        for some in (ids, ids[::-1], ids[20:21]):
            ancestry = Ancestry(log.db)
            for each in some:
                assert ancestry.parent(each) == slow_parent(log.history, each)

    def test_of_conversations_that_begin_alike(self, log):
        "Each continues its own thread, even if their messages are the same"
        one, other = (log.begin("Why?", "Because.") for _ in range(2))
        two = log.as_llm(one, "And?", "So.")
        then = log.as_llm(other, "And?", "So.")
        ancestry = Ancestry(log.db)
        assert (ancestry.parent(two), ancestry.parent(then)) == (one, other)

    def test_the_context_is_what_a_prompt_continues(self, log):
        one = log.begin("Why?", "Because of Rayleigh.")
        two = log.go_on(one, "And?", "So.")
        again = log.retry(two, "No.")
        cut = log.branch(one, 0, 7, "Of what?", "Of light.")
        alone = log.fresh(two, 0, 2, "What?", "A word.")
        ancestry = Ancestry(log.db)
        for last, context in (
            (two, [one, two]),
            (again, [one, again]),
            (cut, [cut]),
            (alone, [alone]),
        ):
            assert ancestry.context(last) == context

    @pytest.mark.parametrize("seed", range(6))
    def test_every_response_is_in_one_tree(self, log, seed):
        ids = grow(log, seed)
        forest = Forest(log.history)
        trees = {each: forest.ancestry.root(each) for each in ids}
        for root in set(trees.values()):
            found = [node.id for node in forest.below(root).walk()]
            assert len(found) == len(set(found))
            assert set(found) == {each for each in ids if trees[each] == root}
        roots = [root.id for root in forest.recent(100)]
        assert len(roots) == len(set(trees.values()))
        newest = [max(i for i in ids if trees[i] == root) for root in roots]
        assert newest == sorted(newest, reverse=True)

    def test_tables_that_name_each_other_end(self, log):
        one = log.begin("Why?", "Because.")
        other = log.go_on(one, "And?", "So.")
        table = log.db["kvbranch_branches"]
        for verb in ("branch", "retry"):
            for id, origin in ((one, other), (other, one)):
                row = {"response_id": id, "from_response": origin, "verb": verb}
                table.insert(row, replace=True)
            for id in (one, other):
                assert {node.id for node in Forest(log.history).tree(id).walk()}
            table.insert(
                {"response_id": one, "from_response": one, "verb": verb}, replace=True
            )
            assert Ancestry(log.db).parent(one) is None
            assert Forest(log.history).tree(one).id == one


class TestResolveMessage:
    "Fails if the hash of a message finds the wrong response"

    def test_a_message_stands_for_its_newest_response(self, log):
        one = log.begin("Why?", "Because.")
        two = log.retry(one, "Because.")
        turn = log.history.turn(one)
        assert resolve_message(log.db, turn["tip_message_hash"]) == two
        assert resolve_message(log.db, turn["parent_message_hash"]) == two
        with pytest.raises(HistoryError, match="No response"):
            resolve_message(log.db, "b2:nix")


class TestPath:
    "Fails if a turn is not what llm logged"

    @pytest.mark.parametrize("seed", range(3))
    def test_as_llm_itself_has_it(self, log, seed):
        "Every prompt and answer, compared with the messages llm loads"
        ids = grow(log, seed, 25)
        nodes = {n.id: n for r in Forest(log.history).recent(99) for n in r.walk()}
        for id in ids:
            logged = log.history.response(id)
            *_, turn = read_path(log.history, nodes[id])
            last = logged.sent[-1]
            assert turn.text == logged.text
            assert turn.prompt == "".join(part.text for part in last.parts)


class TestCost:
    "Fails if reading a deep conversation takes statements for each of its turns"

    @pytest.fixture
    def statements(self, log):
        "How many statements some work takes in conversations of two depths"

        def count(work):
            counts = []
            for n in (4, 40):
                last = log.begin(f"Why {n}?", "Because.")
                for i in range(n):
                    last = log.as_llm(last, f"And {i}?", "So.")
                made = []
                with log.db.tracer(lambda sql, _, made=made: made.append(sql)):
                    work(last)
                counts.append(len(made))
            return counts

        return count

    @pytest.mark.parametrize(
        "work",
        [
            lambda history, last: history.response(last),
            lambda history, last: history.facts(last),
            lambda history, last: Forest(history).tree(last),
            lambda history, last: Forest(history).recent(1),
        ],
        ids=["response", "facts", "tree", "recent"],
    )
    def test_statements_do_not_grow(self, log, statements, work):
        few, many = statements(lambda last: work(log.history, last))
        assert few == many

    def test_each_parent_is_found_once(self, log, monkeypatch):
        "Otherwise the roots of all turns of a thread take the square of its length"
        last = log.begin("Why?", "Because.")
        ids = [last] + [last := log.as_llm(last, f"{i}?", "So.") for i in range(30)]
        asked = []
        parent = Ancestry.parent
        monkeypatch.setattr(
            Ancestry, "parent", lambda self, id: asked.append(id) or parent(self, id)
        )
        ancestry = Ancestry(log.db)
        assert {ancestry.root(id) for id in ids} == {ids[0]}
        assert len(asked) <= 2 * len(ids)
