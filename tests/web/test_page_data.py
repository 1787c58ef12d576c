"""The JSON of the page's trees, conversations and comparisons."""

from __future__ import annotations

import json

import pytest

from llm_kvbranch.errors import HistoryError
from llm_kvbranch.log.marks import MAX_NOTE, mark
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


class TestTree:
    "Fails if a tree differs from the log"

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
        assert nodes[about]["prompt"] == "Who?"  # without the quote
        assert nodes[one]["start"] == "Because of Rayleigh scattering."
        assert nodes[one]["tokens"] == {"input": 1, "output": 31}
        assert nodes[one]["state"] == "none"

    def test_another_conversation_is_not_current(self, log):
        one = log.begin("Why?", "Because.")
        log.begin("How?", "So.")
        assert describe_tree(log.history, one, {})["current"] is None

    def test_what_is_in_memory(self, log):
        "A slot holds its last response and those whose whole answers come before it"
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


class TestCompare:
    "Fails if the shared part of two conversations is wrong"

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


class TestCost:
    "Fails if reading a tree takes a query for each of its responses"

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
