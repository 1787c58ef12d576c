"""Histories that a template does not take as they are."""

from __future__ import annotations

import llm
import pytest
from llm.parts import (
    AttachmentPart,
    ReasoningPart,
    TextPart,
    ToolCallPart,
    ToolResultPart,
)

from llm_kvbranch.chat import Chat, Rendering, message_text
from llm_kvbranch.chat.history import short_id
from llm_kvbranch.errors import ChatError

from ..support.fake import FakeVocab

TOOLS = (
    {
        "type": "function",
        "function": {
            "name": "f",
            "description": "d",
            "parameters": {"type": "object", "properties": {"x": {"type": "string"}}},
        },
    },
)
# A turn is written like "user: Hi; "
LOOP = "{% for m in messages %}HEAD{{ m.role }}: {{ m.content }}MORE; {% endfor %}"
CALLS = (
    "{% for c in m.tool_calls or [] %} {{ c.function.name }}({{ c.id }}){% endfor %}"
)
RESULT = "{{ '=' ~ m.tool_call_id if m.role == 'tool' }}"
PLAIN = LOOP.replace("HEAD", "").replace("MORE", CALLS + RESULT)
U = llm.user("Hi")


def written(template: str, *messages: llm.Message, tools: tuple = ()) -> str:
    chat = Chat(FakeVocab(), template)
    tokens = chat.encode(messages, Rendering(tools))
    return b"".join(map(chat.vocab.piece, tokens)).decode().removesuffix("; ")


def refusing(what: str) -> str:
    return "{% if " + what + " %}{{ raise_exception('no') }}{% endif %}"


def result(*ids: str) -> llm.Message:
    return llm.tool_message(*(ToolResultPart("f", "out", id) for id in ids))


FOLDING = {
    "refused": LOOP.replace("HEAD", refusing("m.role == 'system'")),
    "left out": LOOP.replace("messages", "messages if m.role != 'system'"),
}


class TestSystemPrompts:
    "Fails if a system prompt is lost, or an answer refused because of it"

    S = llm.system("Be brief.")

    @pytest.mark.parametrize("name", FOLDING)
    def test_it_begins_the_first_question(self, name):
        template = FOLDING[name].replace("HEAD", "").replace("MORE", "")
        messages = [self.S, U, llm.assistant("Yo"), llm.user("Why?")]
        shown = "user: Be brief.\nHi; assistant: Yo; user: Why?"
        assert written(template, *messages) == shown
        assert written(template, self.S) == "user: Be brief."
        assert written(template, llm.system(""), U) == "user: Hi"
        chat = Chat(FakeVocab(), template)
        assert chat.folds_system(messages)
        assert not chat.folds_system(messages[1:])

    def test_others_show_it_as_it_is(self):
        assert written(PLAIN, self.S, U) == "system: Be brief.; user: Hi"
        assert not Chat(FakeVocab(), PLAIN).folds_system([self.S, U])

    def test_tokens_are_spliced_behind_it(self):
        template = FOLDING["left out"].replace("HEAD", "").replace("MORE", "")
        chat = Chat(FakeVocab(), template)
        messages = [self.S, U, llm.assistant("Yo"), llm.user("Why?")]
        prompt = chat.encode(messages[:2])
        tokens = chat.encode_after(messages, 2, prompt, "")
        assert tokens is not None
        assert tokens[: len(prompt)] == prompt
        rest = b"".join(map(chat.vocab.piece, tokens[len(prompt) :]))
        assert rest == b"; user: Why?; "


THINKING = {
    "usual": "({{ m.reasoning_content }})",
    "the other": "({{ m.thinking }})",
    "both": "({{ m.thinking }}){{ '(' ~ m.reasoning_content ~ ')' "
    "if m.reasoning_content }}",
    "rare": "({{ m.reasoning }})",
    "another": "({{ m.thought }})",
    "none": "",
}


class TestThinking:
    "Fails if a template does not get the thinking where it looks for it, once"

    @pytest.mark.parametrize("name", THINKING)
    def test_fields(self, name):
        template = LOOP.replace("HEAD", THINKING[name]).replace("MORE", "")
        answer = llm.assistant(ReasoningPart("Hm"), "Yo")
        text = written(template, U, answer)
        assert text.count("(Hm)") == (name != "none")
        assert text.endswith("assistant: Yo")

    def test_parts(self):
        "As Mistral's reasoning models have it"
        template = (
            "{% for m in messages %}{{ m.role }}: "
            "{% if m.content is string %}{{ m.content }}{% else %}"
            "{% for p in m.content %}{{ '[' ~ p.thinking ~ ']' "
            "if p.type == 'thinking' else p.text }}{% endfor %}"
            "{% endif %}; {% endfor %}"
        )
        answer = llm.assistant(ReasoningPart("Hm"), "Yo")
        assert written(template, U, answer, U).endswith("assistant: [Hm]Yo; user: Hi")

    def test_content_that_is_written_as_it_is_has_no_parts(self):
        answer = llm.assistant(ReasoningPart("Hm"), "Yo")
        assert written(PLAIN, U, answer) == "user: Hi; assistant: Yo"

    def test_text_and_thinking_with_a_call(self):
        "gpt-oss takes only one of them"
        template = LOOP.replace(
            "HEAD", refusing("m.tool_calls and m.thinking and m.content")
        ).replace("MORE", "{{ '[' ~ m.thinking ~ ']' if m.thinking }}" + CALLS)
        call = ToolCallPart("f", {}, "1")
        answer = llm.assistant(ReasoningPart("Hm"), "Let me", call)
        text = written(template, U, answer, result("1"))
        assert text == "user: Hi; assistant: [Hm\nLet me] f(1); tool: out"


class TestCalls:
    "Fails if a history of calls is refused, or a result is given to another call"

    SHORT = PLAIN.replace(
        "{% for c",
        refusing("m.tool_call_id and m.tool_call_id | length != 9") + "{% for c",
    )
    SINGLE = (
        refusing(
            "messages | selectattr('tool_calls') | list and "
            "messages | selectattr('tool_calls') | map(attribute='tool_calls')"
            " | map('length') | max > 1"
        )
        + PLAIN
    )

    def test_ids_of_nine_letters_and_digits(self):
        "As Mistral's templates demand"
        ids = ["call_0123456789abcdef", "toolu_01", "abcDEF789"]
        answer = llm.assistant(*(ToolCallPart("f", {}, id) for id in ids))
        text = written(self.SHORT, U, answer, result(*reversed(ids)), tools=TOOLS)
        one, two, three = (short_id(id) for id in ids)
        assert three == ids[2]
        assert len({one, two, three}) == 3
        assert all(len(id) == 9 and id.isalnum() for id in (one, two))
        assert f"f({one}) f({two}) f({three})" in text
        assert text.endswith(f"={three}; tool: out={two}; tool: out={one}")

    def test_other_templates_see_the_ids_as_they_are(self):
        answer = llm.assistant(ToolCallPart("f", {}, "toolu_01"))
        text = written(PLAIN, U, answer, result("toolu_01"), tools=TOOLS)
        assert text.endswith("f(toolu_01); tool: out=toolu_01")

    def test_an_id_is_always_the_same(self):
        assert short_id("call_1") == "COAmd84Y4"

    def test_two_calls_where_one_is_taken(self):
        "As in Llama 3: what works must not depend on what is in the store"
        calls = ToolCallPart("f", {}, "1"), ToolCallPart("f", {}, "2")
        answer = llm.assistant("Let me", *calls)
        text = written(self.SINGLE, U, answer, result("1", "2"))
        assert text == (
            "user: Hi; assistant: Let me f(1); assistant:  f(2); "
            "tool: out=1; tool: out=2"
        )

    def test_parameters_without_a_description(self):
        "As in Command-R+; llm makes them of Python functions"
        template = PLAIN + (
            "{% for t in tools %}"
            "{% for n, p in t.function.parameters.properties.items() %}"
            "{{ n + p.description }}{% endfor %}{% endfor %}"
        )
        assert written(template, U, tools=TOOLS) == "user: Hi; x"

    def test_lists_that_a_template_fills(self):
        "As Kimi K2's does; transformers refuses it"
        template = (
            "{% set ids = [] %}{% for m in messages %}{% set _ = ids.append(m.role) %}"
            "{% endfor %}{{ ids | join(' ') }}"
        )
        assert written(template, U, llm.assistant("Yo")) == "user assistant"

    def test_tools_that_a_template_leaves_out(self):
        "As in DeepSeek V3.1: it writes calls and results, but the model must be told"
        told = (
            "## Tools\nYou have access to the following tools:\n\n"
            "### f\nDescription: d\n"
            'Parameters: {"type": "object", "properties": {"x": {"type": "string"}}}'
        )
        assert Chat(FakeVocab(), PLAIN).takes_tools
        assert written(PLAIN, U, tools=TOOLS) == f"system: {told}; user: Hi"
        system = llm.system("Be brief.")
        shown = f"system: Be brief.\n\n{told}; user: Hi"
        assert written(PLAIN, system, U, tools=TOOLS) == shown
        folding = FOLDING["left out"].replace("HEAD", "").replace("MORE", CALLS)
        assert written(folding, U, tools=TOOLS) == f"user: {told}\n\nHi"
        without = LOOP.replace("HEAD", "").replace("MORE", "")
        assert not Chat(FakeVocab(), without).takes_tools

    @pytest.mark.parametrize("tools", [(), TOOLS])
    def test_functions(self, tools):
        "Firefunction's names for tools and the date"
        template = "{{ '[' + functions + '] ' + datetime[:0] }}" + PLAIN
        text = written(template, U, tools=tools)
        assert text.startswith('[[\n  {\n    "type": ' if tools else "[] user")
        assert Chat(FakeVocab(), template).takes_tools


class TestServerSideTools:
    "Fails if an answer with a tool that another model's provider ran is lost"

    ANSWER = llm.assistant(
        TextPart("Let me look."),
        ToolCallPart("web", {"q": "2+2"}, "srv_1", server_executed=True),
        ToolResultPart("web", "four", "srv_1", server_executed=True),
        TextPart("It is 4."),
    )

    def test_calls_and_results_stand_where_they_were(self):
        assert written(PLAIN, U, self.ANSWER, U) == (
            "user: Hi; assistant: Let me look. web(srv_1); tool: four=srv_1; "
            "assistant: It is 4.; user: Hi"
        )

    def test_templates_without_tools_show_the_text(self):
        template = LOOP.replace("HEAD", refusing("m.role == 'tool'")).replace(
            "MORE", ""
        )
        assert written(template, U, self.ANSWER, U) == (
            "user: Hi; assistant: Let me look.It is 4.; user: Hi"
        )

    def test_the_text(self):
        assert message_text(self.ANSWER) == "Let me look.It is 4."

    def test_attachments_in_results_are_refused(self):
        image = llm.Attachment(type="image/png", content=b"x")
        part = ToolResultPart("f", "see", "1", attachments=[image])
        with pytest.raises(ChatError, match="attachments in tool results"):
            written(PLAIN, U, llm.tool_message(part))
        with pytest.raises(ChatError, match="parts of type attachment"):
            written(PLAIN, llm.user(AttachmentPart(image)))


def test_generators_are_lists_in_json():
    template = (
        "{{ tools | map(attribute='function') | map(attribute='name') | tojson }}"
    )
    assert written(template, U, tools=TOOLS) == '["f"]'
