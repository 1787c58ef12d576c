"""Chat templates: what is spliced, what is tokenised, what cannot be forged."""

from __future__ import annotations

from array import array

import llm
import pytest
from llm.parts import AttachmentPart, ReasoningPart, ToolCallPart, ToolResultPart

from llm_kvbranch.chat import Chat, message_text, render, to_chat
from llm_kvbranch.errors import ChatError

from .fake import CONTROLS, FakeVocab

TURN = "{{'<|im_start|>' + m.role + '\\n' + TEXT + '<|im_end|>\\n'}}"
LOOP = "{% for m in messages %}" + TURN + "{% endfor %}{{'<|im_start|>assistant\\n'}}"
TEMPLATES = {
    "plain": LOOP.replace("TEXT", "m.content"),
    "trimming": LOOP.replace("TEXT", "m.content | trim"),
    "dated": "{{'<|im_start|>system\\n' + strftime_now('%H:%M:%S.%f')}}"
    "{{'<|im_end|>\\n'}}" + LOOP.replace("TEXT", "m.content"),
    "without earlier thinking": LOOP.replace(
        "TEXT", "(m.content.split('</think>')[-1] if not loop.last else m.content)"
    ),
    "folding the system prompt": (
        "{% if messages[0].role == 'system' %}{% set system = messages[0].content %}"
        "{% set messages = messages[1:] %}{% endif %}"
        + LOOP.replace("TEXT", "((system or '') + m.content)")
    ),
}
CONVERSATION = [
    llm.system("Be brief. "),
    llm.user(" What is the sea? "),
    llm.assistant(" Salt water. "),
    llm.user("Why?\n"),
]


def spell(chat: Chat, tokens: array) -> str:
    names = {value: key for key, value in CONTROLS.items()}
    return "".join(
        names.get(t) or chat.vocab.piece(t).decode("utf-8", "replace") for t in tokens
    )


class TestSplice:
    "Fails if known tokens are tokenised again, or text after them is lost"

    @pytest.mark.parametrize("name", TEMPLATES)
    def test_prefix_is_kept_and_the_rest_follows(self, name):
        chat = Chat(FakeVocab(), TEMPLATES[name])
        prefix = array("i", [100 + ord(c) for c in "known"])
        tokens = chat.encode_after(CONVERSATION, 2, prefix, "", ())
        assert tokens[: len(prefix)] == prefix
        after = spell(chat, tokens[len(prefix) :])
        assert after.startswith("<|im_end|>\n<|im_start|>user\n")
        assert "Why?" in after
        assert after.endswith("<|im_start|>assistant\n")
        assert "Salt" not in after

    def test_the_rest_of_an_answer_goes_before_what_follows(self):
        chat = Chat(FakeVocab(), TEMPLATES["plain"])
        tokens = chat.encode_after(CONVERSATION, 2, array("i"), "ter.", ())
        assert spell(chat, tokens).startswith("ter.<|im_end|>")

    def test_a_template_that_drops_the_answer(self):
        chat = Chat(FakeVocab(), "{{ messages[-1].content }}")
        assert chat.encode_after(CONVERSATION, 2, array("i", [101]), "", ()) is None

    def test_whole_prompt(self):
        chat = Chat(FakeVocab(), TEMPLATES["trimming"])
        assert spell(chat, chat.encode(CONVERSATION)) == (
            "<|im_start|>system\nBe brief.<|im_end|>\n"
            "<|im_start|>user\nWhat is the sea?<|im_end|>\n"
            "<|im_start|>assistant\nSalt water.<|im_end|>\n"
            "<|im_start|>user\nWhy?<|im_end|>\n"
            "<|im_start|>assistant\n"
        )


class TestBeginning:
    "Fails if a prompt begins twice, or not at all"

    @pytest.mark.parametrize(
        ("template", "bos"),
        [("{{ bos_token }}{{ messages[0].content }}", False), ("hello", True)],
    )
    def test_bos_once(self, template, bos):
        class Vocab(FakeVocab):
            bos_text = "<|im_start|>"

            def tokenize(self, text, special, bos=False):
                if special and text:
                    seen.append((text, bos))
                return super().tokenize(text, special)

        seen = []
        Chat(Vocab(), template).encode([llm.user("hi")])
        assert seen[-1][1] is bos


class TestRenderId:
    "Fails if states of other tools or another template could be mixed up"

    def test_differs(self):
        tool = {"type": "function", "function": {"name": "f"}}
        plain = Chat(FakeVocab(), TEMPLATES["plain"])
        ids = {
            plain.render_id(),
            plain.render_id([tool]),
            Chat(FakeVocab(), TEMPLATES["trimming"]).render_id(),
        }
        assert len(ids) == 3
        assert Chat(FakeVocab(), TEMPLATES["plain"]).render_id() == plain.render_id()


class TestMessages:
    "Fails if a part of a message is lost or put in the wrong place"

    def test_reasoning_and_calls(self):
        (chat,) = to_chat(
            llm.assistant(
                ReasoningPart("hmm"), "text", ToolCallPart("f", {"x": 1}, "c1")
            )
        )
        assert chat["content"] == "text"
        assert chat["reasoning_content"] == "hmm"
        assert chat["tool_calls"][0]["function"] == {"name": "f", "arguments": {"x": 1}}

    def test_each_tool_result_is_a_message(self):
        results = to_chat(
            llm.tool_message(ToolResultPart("f", "1", "a"), ToolResultPart("g", "2"))
        )
        assert [r["content"] for r in results] == ["1", "2"]
        assert all(r["role"] == "tool" for r in results)

    def test_attachments_are_refused(self):
        with pytest.raises(ChatError, match="attachment"):
            message_text(llm.user(AttachmentPart(llm.Attachment(content=b"x"))))


class TestErrors:
    "Fails if a template's own complaint does not reach the user in one line"

    @pytest.mark.parametrize(
        "template",
        [
            "{{ raise_exception('roles must alternate') }}",
            "{{ messages.nothing.more }}",
            "{% broken",
            "{{ 1 / 0 }}",
            "{{ ''.__class__.__mro__ }}",
        ],
    )
    def test_one_line(self, template):
        with pytest.raises(ChatError) as caught:
            render(template, messages=[])
        assert "\n" not in str(caught.value)
        assert "template" in str(caught.value)
