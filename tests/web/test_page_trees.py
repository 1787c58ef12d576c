"""What the page is told of a log: trees, conversations, finds, differences, exports."""

from __future__ import annotations

import json
import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_kvbranch.errors import HistoryError
from llm_kvbranch.log import diff
from llm_kvbranch.log.ancestry import Ancestry, resolve_message
from llm_kvbranch.log.marks import MAX_NOTE, mark
from llm_kvbranch.log.path import read_path
from llm_kvbranch.log.search import Filter, list_trees, match_of, search_responses
from llm_kvbranch.log.transcript import file_name, path_text, tree_text
from llm_kvbranch.log.tree import Forest
from llm_kvbranch.web.page.page_data import (
    describe_columns,
    describe_path,
    describe_tree,
)

from ..support.logged import HOSTILE, Log


@pytest.fixture
def log(user_path):
    log = Log(user_path / "logs.db")
    yield log
    log.close()


def slow_parent(history, response_id):
    "A response's parent as it is defined, one question after the other"
    branch = history.branch(response_id)
    origin = branch.get("from_response")
    if not origin or not history.db["turns"].count_where("id = ?", [origin]):
        return slow_answered(history, history.turn(response_id))
    if branch["verb"] == "retry":  # a sibling, unless there is nothing above
        return slow_parent(history, origin) or origin
    return origin


def slow_answered(history, turn):
    "The response whose answer is the last in a prompt"
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


def grow(log, seed, n=40):
    "Conversations with every verb; few words, so that many answers are alike"
    chance, ids = random.Random(seed), []
    for _ in range(n):
        answer = " ".join(chance.choices(["yes", "no"], k=chance.randint(3, 4)))
        asked = chance.choice(["Why?", "How?"])
        verb = chance.choice(
            ["begin", *["go_on", "as_llm"] * 2, "branch", "focus", "fresh", "retry"]
        )
        if verb == "begin" or not ids:
            ids.append(log.begin(asked, answer))
            continue
        parent = chance.choice(ids)
        if verb == "as_llm":
            ids.append(log.as_llm(parent, asked, answer))
        elif verb == "go_on":
            system = chance.choice([None, None, "Be brief."])
            ids.append(log.go_on(parent, asked, answer, system=system))
        elif verb == "retry":
            ids.append(log.retry(parent, answer))
        else:
            ids.append(
                getattr(log, verb)(parent, 0, chance.randint(1, 8), asked, answer)
            )
    return ids


class TestAncestry:
    "Fails if a tree is another one because it is read at once"

    @pytest.mark.parametrize("seed", range(6))
    def test_parents_as_they_are_defined(self, log, seed):
        ids = grow(log, seed)
        for some in (ids, ids[::-1], ids[20:21]):
            ancestry = Ancestry(log.db)
            for each in some:
                assert ancestry.parent(each) == slow_parent(log.history, each)

    def test_of_conversations_that_begin_alike(self, log):
        "Each goes on with itself, though the messages are the same"
        one, other = (log.begin("Why?", "Because.") for _ in range(2))
        two = log.as_llm(one, "And?", "So.")
        then = log.as_llm(other, "And?", "So.")
        ancestry = Ancestry(log.db)
        assert (ancestry.parent(two), ancestry.parent(then)) == (one, other)

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

    def test_few_questions_however_many_responses(self, log):
        counts, at = [], log.begin("0", "Because.")
        for i in range(1, 61):
            at = log.go_on(at, str(i), f"Because of {i}.")
            if i in (30, 60):
                asked = []
                log.db.conn.set_trace_callback(asked.append)
                describe_tree(log.history, "last", {})
                describe_path(log.history, "last", {})
                log.db.conn.set_trace_callback(None)
                counts.append(len(asked))
        assert counts[0] == counts[1]


class TestTree:
    "Fails if a tree is told otherwise than the log has it"

    def test_every_verb(self, log):
        one = log.begin("Why is the sky blue?", "Because of Rayleigh scattering.")
        two = log.go_on(one, "And Mars?", "That is red.")
        cut = log.branch(one, 0, 7, "Of what?", "Of light.")
        about = log.focus(one, 11, 19, "Who?", "A lord.")
        alone = log.fresh(one, 11, 30, "What?", "A process.")
        again = log.retry(two, "It is not.")
        cut_again = log.retry(cut, "Of air.")
        told = describe_tree(log.history, two, {})
        nodes = {node["id"]: node for node in told["nodes"]}
        assert told["root"] == told["nodes"][0]["id"] == one
        assert {n["parent"] for n in told["nodes"][1:]} == {one}
        assert list(nodes) == [one, two, cut, about, alone, again, cut_again]
        assert told["current"] == cut_again
        verbs = [(n["verb"], n["mode"], n["excerpt"]) for n in told["nodes"]]
        assert verbs == [
            (None, None, None),
            ("continue", None, None),
            ("branch", "reuse_kv", "Because"),
            ("focus", None, "Rayleigh"),
            ("branch", "fresh", "Rayleigh scattering"),
            ("retry", None, None),
            ("retry", None, None),
        ]
        assert nodes[about]["prompt"] == "Who?"  # without what it quotes
        assert nodes[one]["start"] == "Because of Rayleigh scattering."
        assert nodes[one]["tokens"] == {"input": 1, "output": 31}
        assert nodes[one]["state"] == "none"

    def test_another_conversation_is_not_current(self, log):
        one = log.begin("Why?", "Because.")
        log.begin("How?", "So.")
        assert describe_tree(log.history, one, {})["current"] is None

    def test_what_is_in_memory(self, log):
        "A slot holds what it ends with, and what that goes on from as a whole"
        one = log.begin("Why?", "Because of this.")
        two = log.go_on(one, "And?", "So.")
        cut = log.branch(two, 0, 2, "Now?", "Then.")
        three = log.go_on(two, "And then?", "No.")
        for held, hot in ((three, {one, two, three}), (cut, {cut}), (one, {one})):
            told = describe_tree(log.history, one, {held: 3})
            assert {n["id"] for n in told["nodes"] if n["state"] == "hot"} == hot
            assert {n["slot"] for n in told["nodes"]} == {3, None} - (
                {None} if len(hot) == 4 else set()
            )

    def test_long_texts_are_cut_and_lines_joined(self, log):
        id = log.begin("a\n\n b" + "c" * 500, "d\te\r\n" * 100_000)
        (node,) = describe_tree(log.history, id, {})["nodes"]
        assert node["prompt"] == "a b" + "c" * 197
        assert node["start"] == ("d e " * 100)[:160]

    def test_the_question_after_a_long_quote(self, log):
        id = log.begin("Why?", "word " * 5000)
        about = log.focus(id, 0, 20_000, "What is that?", "It is.")
        nodes = describe_tree(log.history, id, {})["nodes"]
        assert nodes[1]["prompt"] == "What is that?"
        assert len(nodes[1]["excerpt"]) <= 200
        assert about == nodes[1]["id"]

    def test_marks(self, log):
        id = log.begin("Why?", "Because.")
        mark(log.history, id, starred=True, note=" the best ")
        (node,) = describe_tree(log.history, id, {})["nodes"]
        assert (node["starred"], node["note"]) == (True, "the best")
        mark(log.history, id, note="")
        assert describe_tree(log.history, id, {})["nodes"][0]["starred"]
        mark(log.history, id, starred=False)
        assert log.db["kvbranch_marks"].count == 0
        with pytest.raises(HistoryError, match="at most"):
            mark(log.history, id, note="x" * (MAX_NOTE + 1))

    @pytest.mark.parametrize("name", HOSTILE)
    def test_whatever_is_said(self, log, name):
        text = HOSTILE[name]
        id = log.begin(text, text)
        more = log.go_on(id, text, text)
        for end in {1, len(text)}:
            if text[:end].strip():
                log.focus(id, 0, end, text, text)
        told = describe_tree(log.history, more, {})
        assert len(told["nodes"]) >= 3
        turns = describe_path(log.history, more, {})["turns"]
        assert [(t["prompt"], t["text"]) for t in turns] == [(text, text)] * 2
        json.dumps([told, turns]).encode()

    def test_a_message_stands_for_its_newest_response(self, log):
        one = log.begin("Why?", "Because.")
        two = log.retry(one, "Because.")
        turn = log.history.turn(one)
        assert resolve_message(log.history, turn["tip_message_hash"]) == two
        assert resolve_message(log.history, turn["parent_message_hash"]) == two
        with pytest.raises(HistoryError, match="No response"):
            resolve_message(log.history, "b2:nix")


class TestPath:
    "Fails if a conversation is not what was said"

    def test_what_was_new_in_each_turn(self, log):
        one = log.begin("Why?", "Because of Rayleigh.", system="Be brief.")
        two = log.branch(one, 8, 10, "Of what?", "Of light.")
        three = log.focus(two, 3, 8, "Which?", "White.")
        four = log.go_on(three, "And?", "No.", system="Be long.")
        turns = describe_path(log.history, four, {})["turns"]
        assert [turn["id"] for turn in turns] == [one, two, three, four]
        assert [turn["system"] for turn in turns] == [
            "Be brief.",
            None,
            None,
            "Be long.",
        ]
        asked = "About this part of your answer:\n\n> light\n\nWhich?"
        assert [turn["prompt"] for turn in turns] == ["Why?", "Of what?", asked, "And?"]
        assert [turn["quoted"] for turn in turns] == [None, None, "light", None]
        assert turns[2]["question"] == "Which?"
        assert [turn["cut"] for turn in turns] == [10, None, None, None]
        assert turns[0]["text"][: turns[0]["cut"]] == "Because of"
        assert [turn["apart"] for turn in turns] == [False] * 4
        (child,) = turns[0]["children"]
        assert (child["id"], child["start"], child["end"]) == (two, 8, 10)

    def test_the_cut_of_what_was_asked_again(self, log):
        one = log.begin("Why?", "Because of Rayleigh.")
        two = log.branch(one, 8, 10, "Of what?", "Of light.")
        again = log.retry(two, "Of air.")
        turns = describe_path(log.history, again, {})["turns"]
        assert [turn["cut"] for turn in turns] == [10, None]

    def test_what_does_not_go_on_from_what_stands_above(self, log):
        one = log.begin("Why?", "Because of Rayleigh.")
        again = log.retry(one, "For no reason.")
        alone = log.fresh(one, 0, 7, "What?", "A word.")
        for id in (again, alone):
            first, last = describe_path(log.history, id, {})["turns"]
            assert (first["cut"], first["apart"], last["apart"]) == (None, False, True)

    def test_facts(self, log):
        log.model.facts = {"restored_tokens": 7, "finish_reason": "stop", "other": 1}
        id = log.begin("Why?", "Because.")
        (turn,) = describe_path(log.history, id, {})["turns"]
        assert turn["facts"] == {"restored_tokens": 7, "finish_reason": "stop"}

    def test_tools_attachments_and_fragments(self, log):
        import llm

        part = llm.parts
        sent = [
            llm.user("Look."),
            part.Message(
                role="assistant",
                parts=[part.ToolCallPart(name="look", arguments={"at": "</b>"})],
            ),
            part.Message(
                role="tool",
                parts=[
                    part.ToolResultPart(name="look", output="A cat.", tool_call_id="1")
                ],
            ),
        ]
        model = log.model
        model.attachment_types = {"text/plain"}
        model.say = "I see a cat."
        from llm_kvbranch.log import branching

        first = branching.ask_messages(sent, model)
        first.text()
        log.history.log_by_content(first, {"id": first.conversation.id, "name": "look"})
        second = llm.Conversation(model=model).prompt(
            "And this?",
            fragments=["a long document"],
            attachments=[llm.Attachment(type="text/plain", content=b"hello")],
        )
        second.text()
        log.history.log_by_content(second, {"id": second.conversation.id, "name": "x"})
        (turn,) = describe_path(log.history, first.id, {})["turns"]
        assert turn["results"] == [{"name": "look", "output": "A cat."}]
        (turn,) = describe_path(log.history, second.id, {})["turns"]
        assert "a long document" in turn["prompt"]
        assert "And this?" in turn["prompt"]
        assert turn["attachments"] == ["text/plain"]
        nodes = describe_tree(log.history, first.id, {})["nodes"]
        assert nodes[0]["prompt"] == "← look"

    @pytest.mark.parametrize("seed", range(3))
    def test_as_llm_itself_has_it(self, log, seed):
        "Every prompt and answer as the messages say that were sent"
        ids = grow(log, seed, 25)
        nodes = {n.id: n for r in Forest(log.history).recent(99) for n in r.walk()}
        for id in ids:
            logged = log.history.response(id)
            *_, turn = read_path(log.history, nodes[id])
            last = logged.sent[-1]
            assert turn.text == logged.text
            assert turn.prompt == "".join(part.text for part in last.parts)


class TestSearch:
    "Fails if what is typed is a mistake, or what is there is not found"

    @pytest.fixture
    def ids(self, log):
        one = log.begin("Why is the sky blue?", "Because of Rayleigh scattering.")
        two = log.go_on(one, "And the sea?", "It mirrors the blue sky.")
        other = log.begin("Name a bird", "A blue jay.")
        return one, two, other

    def found(self, log, words, **more):
        return {each.id for each in search_responses(log.db, words, **more)}

    def test_words(self, log, ids):
        one, two, other = ids
        assert self.found(log, "blue") == set(ids)
        assert self.found(log, "sky blue") == {one, two}
        assert self.found(log, '"blue sky"') == {two}
        assert self.found(log, "RAYLEIGH") == {one}
        assert self.found(log, "scat") == {one}  # may go on
        assert self.found(log, "scat blue") == set()
        assert self.found(log, '"scat"') == set()
        assert self.found(log, "blue", among=[other, two]) == {other, two}
        assert len(search_responses(log.db, "blue", n=1)) == 1

    def test_hits_are_what_was_looked_for(self, log, ids):
        for each in search_responses(log.db, "sky blue"):
            hits = {each.snippet[a:b].lower() for a, b in each.hits}
            assert hits == {"sky", "blue"}

    @pytest.mark.parametrize(
        "typed",
        ["", " ", '"', '""', '"a', "*", "a*b", "a OR", "NOT", "(", "a:b", "-a", "^a",
         "NEAR(a b)", "{a b}: c", "\0", "a\0b", "'", "; drop table turns", "日本", "😀",
         "prompt : blue", "+", "a + b", "x" * 5000],
    )  # fmt: skip
    def test_nothing_that_is_typed_is_a_mistake(self, log, ids, typed):
        search_responses(log.db, typed)
        list_trees(log.history, Filter(typed))

    @given(st.text())
    @settings(max_examples=200)
    def test_nor_anything_else(self, typed):
        import sqlite3

        db = sqlite3.connect(":memory:")
        db.execute("create virtual table t using fts5(a)")
        if (match := match_of(typed)) is not None:
            try:
                match.encode()
            except UnicodeEncodeError:
                return
            db.execute("select * from t where t match ?", [match]).fetchall()
        db.close()

    @pytest.mark.parametrize("name", HOSTILE)
    def test_snippets_of_anything(self, log, name):
        log.begin(HOSTILE[name], "needle " + HOSTILE[name])
        (each,) = search_responses(log.db, "needle")
        assert len(each.snippet) <= 300
        assert "needle" in {each.snippet[a:b] for a, b in each.hits}


class TestListing:
    "Fails if a conversation is left out of the list, or is in it twice"

    @pytest.mark.parametrize(
        "wanted", [Filter(), Filter("yes"), Filter(model="parrot")]
    )
    @pytest.mark.parametrize("n", [1, 3, 100])
    def test_all_of_them_once_page_by_page(self, log, wanted, n):
        ids = grow(log, 2, 60)
        forest = Forest(log.history)
        roots = {forest.ancestry.root(each) for each in ids}
        listed, before = [], None
        for _ in range(100):
            page = list_trees(
                log.history, Filter(wanted.words, wanted.model, before=before), n
            )
            listed += page.trees
            before = page.before
            assert len(page.trees) <= n
            if before is None:
                break
        assert [tree.root.id for tree in listed]
        assert len(listed) == len({tree.root.id for tree in listed})
        keys = [tree.fitting[0] for tree in listed]
        assert keys == sorted(keys, reverse=True)
        if wanted.words:
            wanted_ids = {each.id for each in search_responses(log.db, "yes", n=1000)}
            roots = {forest.ancestry.root(each) for each in wanted_ids}
            assert {id for tree in listed for id in tree.fitting} == wanted_ids
        assert {tree.root.id for tree in listed} == roots

    def test_stars(self, log):
        one, other = log.begin("Why?", "Because."), log.begin("How?", "So.")
        assert not list_trees(log.history, Filter(starred=True)).trees
        mark(log.history, one, starred=True)
        mark(log.history, other, note="no star")
        (tree,) = list_trees(log.history, Filter(starred=True)).trees
        assert tree.fitting == [one]

    def test_models(self, log):
        log.begin("Why?", "Because.")
        log.model.model_id = "other"
        other = log.begin("How?", "So.")
        (tree,) = list_trees(log.history, Filter(model="other")).trees
        assert tree.root.id == other


class TestCompare:
    "Fails if texts differ otherwise than it says"

    @given(st.lists(st.text("ab \n", max_size=60), min_size=1, max_size=4))
    @settings(max_examples=300)
    def test_the_pieces_are_the_texts(self, texts):
        columns = diff.columns(texts)
        assert ["".join(text for _, text in column) for column in columns] == texts
        if len(set(texts)) == 1:
            assert all(sign == " " for column in columns for sign, _ in column)

    @given(st.text("ab ", max_size=80), st.text("ab ", max_size=80))
    @settings(max_examples=300)
    def test_what_is_gone_and_new(self, left, right):
        found = diff.changes(left, right)
        assert "".join(text for sign, text in found if sign != "+") == left
        assert "".join(text for sign, text in found if sign != "-") == right

    def test_columns(self):
        assert diff.columns(["a b c d", "a x c d", "a b c e"]) == [
            [(" ", "a "), ("+", "b "), (" ", "c "), ("+", "d")],
            [(" ", "a "), ("+", "x "), (" ", "c d")],
            [(" ", "a b c "), ("+", "e")],
        ]

    def test_no_text_takes_long(self):
        import time

        chance, started = random.Random(1), time.monotonic()
        long = [" ".join(chance.choices("abcdefgh", k=50_000)) for _ in range(2)]
        same = ["a " * 50_000 + "x", "y " + "a " * 50_000]
        for texts in (long, same, ["x" * 100_000, "y " * 50_000]):
            columns = diff.columns(texts)
            assert ["".join(t for _, t in column) for column in columns] == texts
        assert time.monotonic() - started < 30

    def test_what_they_go_on_from_alike(self, log):
        one = log.begin("Why?", "Because.")
        two = log.go_on(one, "And?", "It is so.")
        left, right = (
            log.go_on(two, "A?", "Yes it is."),
            log.go_on(two, "B?", "No it is."),
        )
        other = log.begin("How?", "So.")
        told = describe_columns(log.history, [left, right])
        assert (told["shared"], told["last_shared"]) == (2, two)
        pieces = [
            [(p["sign"], p["text"]) for p in c["pieces"]] for c in told["columns"]
        ]
        assert pieces[1] == [("+", "No "), (" ", "it is.")]
        assert [c["question"] for c in told["columns"]] == ["A?", "B?"]
        told = describe_columns(log.history, [left, other, left])
        assert (told["shared"], told["last_shared"]) == (0, None)
        assert [c["id"] for c in told["columns"]] == [left, other, left]
        told = describe_columns(log.history, [one, two])
        assert told["last_shared"] == one


class TestExport:
    "Fails if what is given away is not what was said"

    @pytest.mark.parametrize("name", HOSTILE)
    def test_whatever_is_said(self, log, name):
        text = HOSTILE[name]
        one = log.begin(text, text)
        log.go_on(one, text, text)
        root = Forest(log.history).tree(one)
        *_, last = root.walk()
        for kind in ("markdown", "json"):
            for file in (
                path_text(log.history, last, kind),
                tree_text(log.history, root, kind),
            ):
                if kind == "json":
                    data = json.loads(file)
                    turns = data.get("turns") or data["responses"]
                    assert [t["text"] for t in turns] == [text] * 2
                else:
                    assert file.count(text) >= 4
        name = file_name(root, "path", "markdown")
        assert re.fullmatch(r"[a-z0-9-]+\.md", name)

    def test_as_the_model_saw_it(self, log):
        one = log.begin("Why?", "Because of Rayleigh.", system="Be brief.")
        two = log.branch(one, 8, 10, "Of what?", "Of light.")
        mark(log.history, two, starred=True, note="good")
        *_, node = Forest(log.history).tree(one).walk()
        text = path_text(log.history, node, "markdown")
        assert "Because of\n" in text
        assert "Rayleigh" not in text
        assert "## ★ branch: Of what?" in text
        assert "**Note:** good" in text
        assert "**System:**\n\nBe brief." in text
        turns = json.loads(path_text(log.history, node, "json"))["turns"]
        assert [turn.get("cut") for turn in turns] == [10, None]
        assert turns[0]["text"] == "Because of Rayleigh."
        assert turns[1]["parent"] == one

    def test_code_that_never_ends_swallows_nothing(self, log):
        one = log.begin("Why?", "```python\nprint(1)")
        log.go_on(one, "And?", "~~~~\n```\nx\n~~~\n")
        root = Forest(log.history).tree(one)
        text = tree_text(log.history, root, "markdown")
        opened = 0
        for line in text.splitlines():
            if re.match(r"(```|~~~)", line):
                opened += 1
        assert "print(1)\n```\n" in text
        assert text.rstrip().endswith("~~~~")
