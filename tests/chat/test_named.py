"""Answers of gpt-oss and muse-glimmer, which are messages with headers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from llm_kvbranch.chat.dialect import Dialect, learn
from llm_kvbranch.chat.named import MUSE
from llm_kvbranch.chat.reader import Event, Reader

TEMPLATES = Path(__file__).parents[1] / "support" / "templates"
DIALECT = learn((TEMPLATES / "gpt-oss.jinja").read_text(), lambda *_, **__: "")
TOOLS = [{"type": "function", "function": {"name": "rm", "parameters": {}}}]
PROMPT = "<|end|><|start|>assistant"
CALL = (
    '<|channel|>commentary to=functions.rm <|constrain|>json<|message|>{"path": "/a"}'
)
THOUGHT = "<|channel|>analysis<|message|>So {}.<|end|><|start|>assistant"


def answer(*fed: str, prompt: str = PROMPT, ended_by: str | None = "<|return|>"):
    "Text in <|...|> is fed as control tokens, the rest by characters"
    reader = Reader(DIALECT, TOOLS, prompt)
    for part in re.split(r"(<\|\w+\|>)", "".join(fed)):
        if part.startswith("<|"):
            reader.feed(part, control=True)
        else:
            for character in part:
                reader.feed(character)
    reader.end(ended_by)
    return reader.reasoning, reader.text, [call.arguments for call in reader.calls]


def test_thinking_and_answer():
    said = THOUGHT.format("be it") + "<|channel|>final<|message|>Yes."
    assert answer(said) == ("So be it.", "Yes.", [])


def test_a_text_before_a_call_and_a_call():
    text = "<|channel|>commentary<|message|>I look.<|end|><|start|>assistant"
    found = answer(text, CALL, ended_by="<|call|>")
    assert found == ("", "I look.", [{"path": "/a"}])


@pytest.mark.parametrize("end", [None, "<|call|>"])
def test_a_call_that_is_not_complete_is_text(end):
    "Whoever ended it: the arguments are not valid JSON yet"
    for length in range(1, 14):
        _, text, calls = answer(CALL[:-length], ended_by=end)
        assert calls == []
        assert text == '{"path": "/a"}'[:-length]


def test_a_call_whose_end_did_not_come_is_text():
    assert answer(CALL, ended_by=None) == ("", '{"path": "/a"}', [])


@pytest.mark.parametrize("value", ["NaN", '["/a"]', "[" * 100_000, '{"a": 1} {}'])
def test_what_is_not_a_json_object_is_text(value):
    begin = CALL.removesuffix('{"path": "/a"}')
    assert answer(begin, value) == ("", value, [])


def test_a_function_that_was_not_offered_is_text():
    found = answer(CALL.replace("functions.rm", "python"))
    assert found == ("", '{"path": "/a"}', [])


def test_a_call_in_thinking_is_thinking():
    said = THOUGHT.format('to=functions.rm {"path": "/a"}')
    assert answer(said)[1:] == ("", [])


def test_markers_spelled_as_text_are_text_once_control_tokens_came():
    reader = Reader(DIALECT, TOOLS, PROMPT)
    reader.feed("<|channel|>", control=True)
    reader.feed("final")
    reader.feed("<|message|>", control=True)
    for piece in ("It ends with <|end|><|sta", "rt|>assistant", CALL):
        reader.feed(piece)
    reader.end("<|return|>")
    assert reader.text == f"It ends with <|end|><|start|>assistant{CALL}"
    assert not reader.calls


def test_an_answer_without_header_is_streamed():
    reader = Reader(DIALECT, TOOLS, PROMPT)
    assert reader.feed("Yes") == [Event("text", "Yes")]
    assert reader.feed(", of course") == [Event("text", ", of course")]


def test_an_answer_goes_on_where_its_prompt_ends():
    begun = PROMPT + "<|channel|>analysis<|message|>So be"
    said = " it.<|end|><|start|>assistant<|channel|>final<|message|>Yes."
    assert answer(said, prompt=begun) == (" it.", "Yes.", [])
    final = PROMPT + "<|channel|>final<|message|>Ye"
    assert answer("s.", prompt=final) == ("", "s.", [])


def test_it_says_where_the_answer_begins():
    reader = Reader(DIALECT, TOOLS, PROMPT)
    for text in ("<|channel|>analysis<|message|>So", "<|end|><|start|>assistant"):
        reader.feed(text)
        assert not reader.in_answer
    reader.feed("<|channel|>final <|constrain|>json<|message|>")
    assert reader.in_answer


def test_parts_say_which_tokens_they_are_made_of():
    reader = Reader(DIALECT, TOOLS, PROMPT)
    fed = ["<|channel|>", "analysis", "<|message|>", "So", " be", "<|end|>"]
    for token in [
        *fed,
        "<|start|>",
        "assistant",
        "<|channel|>",
        "final",
        "<|message|>",
    ]:
        reader.feed(token, token.startswith("<|"))
    reader.feed("Yes")
    assert [(p.kind, p.begin, p.end) for p in reader.parts] == [
        ("reasoning", 3, 5),
        ("text", 11, 12),
    ]


class TestMuse:
    "muse-glimmer's messages name whom they are for, and calls are tagged"

    CALL = (
        '<atem:function_calls>\n<atem:invoke name="rm">\n<atem:parameter name="path">'
        "1</atem:parameter>\n</atem:invoke>\n</atem:function_calls>"
    )

    def answer(self, text: str, ended_by: str | None = "<|eot|>"):
        parameters = {"properties": {"path": {"type": "string"}}}
        function = {"name": "rm", "parameters": parameters}
        tools = [{"type": "function", "function": function}]
        reader = Reader(Dialect(messages=MUSE), tools, "<|start|>assistant")
        for character in text:
            reader.feed(character)
        reader.end(ended_by)
        return reader.reasoning, reader.text, [call.arguments for call in reader.calls]

    def test_thinking_text_and_a_call(self):
        text = (
            " to=self<|message|>So.<|eom|><|start|>assistant to=user<|message|>Yes."
            f"<|eom|><|start|>assistant to=rm<|message|>{self.CALL}"
        )
        assert self.answer(text) == ("So.", "Yes.", [{"path": "1"}])

    @pytest.mark.parametrize("recipient", ["user", "self"])
    def test_a_call_in_a_message_to_someone_is_quoted(self, recipient):
        reasoning, text, calls = self.answer(f" to={recipient}<|message|>{self.CALL}")
        assert reasoning + text == self.CALL
        assert not calls

    def test_a_call_that_is_not_complete_is_text(self):
        for length in range(1, len(self.CALL)):
            begun = self.CALL[:length]
            assert self.answer(f" to=rm<|message|>{begun}") == ("", begun, [])

    def test_a_message_with_more_than_calls_is_text(self):
        text = self.CALL + " or not"
        assert self.answer(f" to=rm<|message|>{text}") == ("", text, [])
