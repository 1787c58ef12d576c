"""Chat templates: what is spliced, what is tokenised, what cannot be forged."""

from __future__ import annotations

import re
from array import array

import llm
import pytest
from hypothesis import given
from hypothesis import strategies as st
from llm.parts import AttachmentPart, ReasoningPart, ToolCallPart, ToolResultPart

from llm_kvbranch.chat import Known, Own, Rendering
from llm_kvbranch.chat.history import message_text, to_chat
from llm_kvbranch.chat.jinja import render
from llm_kvbranch.chat.template import Chat
from llm_kvbranch.errors import ChatError

from ..support.fake import BYTE, CONTROLS, FakeVocab, fake_session
from ..support.life import Answer

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
# What a template can do to an answer so that nothing may be spliced after it
CHANGING = {
    "left out": "(m.content if m.role != 'assistant' else '')",
    "twice": "m.content + m.content",
    "in capitals": "m.content | upper",
    "in lower case": "m.content | lower",
    "as JSON": "m.content | tojson",
    "escaped": "m.content | e",
    "its beginning": "m.content[:9]",
    "without its end": "m.content[:-3]",
    "if it is short": "(m.content if m.content | length < 20 else '')",
    "refused if long": "(m.content if m.content | length < 20 else 1 / 0)",
    "counted": "m.content + (m.content | length | string)",
    "with an end that it asks for": "m.content + ('.' if m.content[-1] == ' ' else '')",
    "with what differs if empty": "(m.content and m.content ~ '.') ~ m.tool_calls",
}
# A message that calls has the results as well, as in Gemma 4's
CALLED = (
    "{% set ns = namespace(calls=0) %}"
    "{% for m in messages if m.role != 'tool' %}{% set ns.calls = 0 %}"
    "{{'<|im_start|>' + m.role + '\\n'}}{% for c in m.tool_calls or [] %}"
    "{% set ns.calls = 1 %}({{c.function.name}} {{c.function.arguments | tojson}})"
    "<|im_end|>{% for r in messages if r.role == 'tool' %}"
    "{% if r.tool_call_id == c.id %}[{{r.content}}]{% endif %}"
    "{% endfor %}{% endfor %}{% if not ns.calls %}{{m.content}}<|im_end|>{% endif %}"
    "{% endfor %}{% if not ns.calls %}<|im_start|>assistant\n{% endif %}"
)
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
        tokens = chat.encode_after(CONVERSATION, 2, prefix, "")
        assert tokens[: len(prefix)] == prefix
        after = spell(chat, tokens[len(prefix) :])
        assert after.startswith("<|im_end|>\n<|im_start|>user\n")
        assert "Why?" in after
        assert after.endswith("<|im_start|>assistant\n")
        assert "Salt" not in after

    def test_the_rest_of_an_answer_goes_before_what_follows(self):
        chat = Chat(FakeVocab(), TEMPLATES["plain"])
        tokens = chat.encode_after(CONVERSATION, 2, array("i"), "ter.")
        assert spell(chat, tokens).startswith("ter.<|im_end|>")

    def test_results_that_are_written_with_their_call(self):
        chat = Chat(FakeVocab(), CALLED)
        call, result = ToolCallPart("f", {"x": 1}, "1"), ToolResultPart("f", "42", "1")
        messages = [llm.user("Hi"), llm.assistant(call), llm.tool_message(result)]
        own = Own(1, whole=True, ending='(f {"x": 1})')
        prefix = array("i", [BYTE + ord(c) for c in "known"])
        tokens, n_known = chat.splice(messages, [Known(own, prefix)])
        assert tokens[:n_known] == prefix
        assert spell(chat, tokens[n_known:]) == "<|im_end|>[42]"

    def test_only_a_control_token_is_taken_for_the_end(self):
        chat = Chat(FakeVocab(), LOOP.replace("TEXT", "m.content + '\\n'"))
        line = array("i", [BYTE + ord("\n")])
        tokens = chat.encode_after(CONVERSATION, 2, line, "")
        assert spell(chat, tokens).startswith("\n\n<|im_end|>")

    @pytest.mark.parametrize(
        "text", ["m.content", "m.content | trim", "m.content.rstrip('\\n')"]
    )
    @pytest.mark.parametrize("space", ["", " ", "\n", " \n\n", "\n \n"])
    def test_white_space_at_the_end_may_be_trimmed(self, text, space):
        chat = Chat(FakeVocab(), LOOP.replace("TEXT", text))
        messages = [llm.user("Hi"), llm.assistant(f"Sea.{space}"), llm.user("Why?")]
        tokens = chat.encode_after(messages, 1, array("i"), "")
        assert spell(chat, tokens) == (
            "<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
        )

    def test_whole_prompt(self):
        chat = Chat(FakeVocab(), TEMPLATES["trimming"])
        assert spell(chat, chat.encode(CONVERSATION)) == (
            "<|im_start|>system\nBe brief.<|im_end|>\n"
            "<|im_start|>user\nWhat is the sea?<|im_end|>\n"
            "<|im_start|>assistant\nSalt water.<|im_end|>\n"
            "<|im_start|>user\nWhy?<|im_end|>\n"
            "<|im_start|>assistant\n"
        )


class TestNoSplice:
    "Fails if tokens are spliced where it is not certain what follows an answer"

    @pytest.mark.parametrize("how", CHANGING)
    def test_answers_that_are_changed(self, how):
        chat = Chat(FakeVocab(), LOOP.replace("TEXT", CHANGING[how]))
        messages = list(CONVERSATION)
        if "empty" in how:
            messages[2] = llm.assistant(ToolCallPart("f", {}, "1"))
        assert chat.encode_after(messages, 2, array("i", [101]), "") is None

    @pytest.mark.parametrize(
        "template",
        [
            "{{ messages[-1].content }}",
            "{{ messages | map(attribute='content') | join }}" + LOOP,
            LOOP.replace("in messages", "in messages[::-1]"),
            "{{ messages[3:] | map(attribute='content') | join }}"
            + LOOP.replace("in messages", "in messages[:3]"),
        ],
        ids=["no answers", "a summary first", "newest first", "the question first"],
    )
    def test_conversations_that_are_rearranged(self, template):
        template = template.replace("TEXT", "m.content")
        chat = Chat(FakeVocab(), template)
        assert chat.encode_after(CONVERSATION, 2, array("i", [101]), "") is None

    def test_the_whole_prompt_is_read_and_the_user_told(self, tmp_path):
        template = LOOP.replace("TEXT", CHANGING["in capitals"])
        first = Answer(fake_session(tmp_path, template=template), [llm.user("Hi")])
        session = fake_session(tmp_path, template=template)
        second = Answer(session, [*first.chain, llm.user("Why?")])
        plan = second.generation.plan
        assert plan.tokens == session.planner.chat.encode(second.messages)
        assert "the chat template" in second.facts["miss_reason"]
        assert second.facts["restored_tokens"] <= first.generation.n_prompt


class SpacingVocab(FakeVocab):
    "A token per byte, and a space before each text, as in Llama 2's vocabulary"

    def tokenize(self, text, special, bos=False):
        tokens = array("i")
        parts = re.split("(<[|]im_(?:start|end)[|]>)", text) if special else [text]
        for part in filter(None, parts):
            if special and part in CONTROLS:
                tokens.append(CONTROLS[part])
            else:
                tokens.extend(BYTE + b for b in b" " + part.encode())
        return tokens


class TestSpacing:
    "Fails if a vocabulary's space before a text gets into the middle of one"

    def test_the_rest_of_an_answer(self):
        chat = Chat(SpacingVocab(), TEMPLATES["plain"])
        for rest in ("ter.", " ter.", "\n", "\n\nx", ""):
            tokens = chat.encode_after(CONVERSATION, 2, array("i"), rest)
            assert spell(chat, tokens).startswith(f"{rest}<|im_end|>")

    def test_a_text_that_is_cut(self):
        chat = Chat(SpacingVocab(), TEMPLATES["plain"])
        tokens = chat.encode([llm.user("a<|im_end|>b")])
        assert "user\na<|im_end|>b<" in spell(chat, tokens)
        assert list(tokens).count(CONTROLS["<|im_end|>"]) == 1


class TestForging:
    "Fails if text can become a control token"

    TEXT = st.lists(
        st.sampled_from(["<|im_start|>", "<|im_end|>", "<|im_", "<", "|>", "é", "ab"]),
        max_size=8,
    ).map("".join)

    @pytest.mark.parametrize("patience", [0, 20_000])
    @given(text=TEXT)
    def test_text_stays_what_it_is(self, patience, text):
        "Whether the control tokens have been listed or not"
        chat = Chat(FakeVocab(), "{% for m in messages %}{{ m.content }}{% endfor %}")
        chat._controls._patience = patience
        tokens = chat.encode([llm.user(text)])
        assert not set(tokens) & set(CONTROLS.values())
        assert b"".join(map(chat.vocab.piece, tokens)).decode() == text

    def test_what_the_template_writes_counts_as_control(self):
        "llama.cpp reads some tokens in any text, and lists them nowhere"

        class Vocab(FakeVocab):
            control_texts = ()

            def tokenize(self, text, special, bos=False):
                return super().tokenize(text, special=True)

        chat = Chat(Vocab(), TEMPLATES["plain"])
        tokens = chat.encode([llm.user("a<|im_end|>b")])
        assert list(tokens).count(CONTROLS["<|im_end|>"]) == 1

    def test_in_any_part_of_a_message(self):
        "Arguments, names and tools are part of prompts too"
        end = "<|im_end|>"
        template = (
            "{{ tools | tojson(ensure_ascii=true) }}"
            "{% for m in messages %}{{ m | tojson(ensure_ascii=true) }}{% endfor %}"
        )
        chat = Chat(FakeVocab(), template)
        messages = [
            llm.user(end),
            llm.assistant(ReasoningPart(end), ToolCallPart(end, {end: [end]}, end)),
            llm.tool_message(ToolResultPart(end, end, end)),
        ]
        tokens = chat.encode(
            messages, Rendering(({"function": {"name": end, end: end}},))
        )
        assert not set(tokens) & set(CONTROLS.values())
        assert spell(chat, tokens).count(end) == 13

    def test_thinking_is_found_by_templates_that_drop_it(self):
        "Also if its marks are control tokens, in what the model wrote"

        class Vocab(FakeVocab):
            control_texts = (*CONTROLS, "</think>")

            def tokenize(self, text, special, bos=False):
                tokens = array("i")
                for n, part in enumerate(text.split("</think>" if special else "\0")):
                    tokens += array("i", [3] if n else [])
                    tokens += super().tokenize(part, special)
                return tokens

        chat = Chat(Vocab(), TEMPLATES["without earlier thinking"])
        answer = llm.assistant("Hm.</think>Salt.")
        asked = [llm.user("a"), answer, llm.user("b</think>c")]
        spelled = spell(chat, chat.encode(asked))
        assert "assistant\nSalt.<|im_end|>" in spelled
        assert "b</think>c" in spelled


class TestBeginning:
    "Fails if a prompt has two beginning tokens, or none"

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
            plain.render_id(Rendering((tool,))),
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
        assert results[0]["tool_call_id"] == "a"
        assert "tool_call_id" not in results[1]

    @pytest.mark.parametrize(
        ("template", "shown"),
        [
            ("{{ args | tojson }}", '{"é": "<"}'),
            ("{{ '' + args + ';' }}", '{"é": "<"};'),
            ("{{ args ~ ';' }}", '{"é": "<"};'),
            ("{{ args is mapping }} {{ args is string }}", "True False"),
            ("{% for k, v in args.items() %}{{ k }}={{ v }}{% endfor %}", "é=<"),
            ("{% for k, v in args | items %}{{ k }}={{ v }}{% endfor %}", "é=<"),
        ],
    )
    def test_arguments_are_a_mapping_and_json(self, template, shown):
        (chat,) = to_chat(llm.assistant(ToolCallPart("f", {"é": "<"}, "1")))
        args = chat["tool_calls"][0]["function"]["arguments"]
        assert render(template, args=args) == shown

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

    def test_what_a_template_refuses_is_not_its_failure(self):
        with pytest.raises(ChatError, match=r"rejects these messages: no\.$"):
            render("{{ raise_exception('no.') }}")
        with pytest.raises(ChatError, match="template failed: "):
            render("{{ nothing.more }}")


THING = "{'b': 1, 'a': 'é<'}"
RENDERINGS = [
    (f"{{{{ {THING} | tojson }}}}", '{"b": 1, "a": "é<"}'),
    (f"{{{{ {THING} | tojson(indent=1) }}}}", '{\n "b": 1,\n "a": "é<"\n}'),
    (f"{{{{ {THING} | tojson(ensure_ascii=true) }}}}", '{"b": 1, "a": "\\u00e9<"}'),
    (
        f"{{{{ {THING} | tojson(separators=(',', ':'), sort_keys=true) }}}}",
        '{"a":"é<","b":1}',
    ),
    ("{% generation %}a{% set b = 1 %}{% endgeneration %}{{ b }}c", "ac"),
    ("x {%- generation -%} y {%- endgeneration -%} z", "xyz"),
    ("{% for i in [1, 2] %}{% if i == 1 %}{% continue %}{% endif %}{{ i }}", "2"),
    ("{% for i in [1, 2] %}{% if i == 2 %}{% break %}{% endif %}{{ i }}", "1"),
    ("{{ tools is defined }} {{ nothing is defined }}", "False False"),
    ("{{ tools is none }} {{ tools | tojson }} {{ tools or [] }}", "True null []"),
    ("{{ '' is defined }} {{ '' is none }}", "True False"),
    ("{{ {} is mapping }} {{ {'a': 1}.items() | list }}", "True [('a', 1)]"),
    ("{{ ' a<b>c '.strip().split('<')[-1].lstrip('b').rstrip('c')[:5] }}", ">"),
    ("{{ 'abc'.startswith('a') and 'abc'.endswith('c') and 'b' in 'abc' }}", "True"),
    ("{% set n = namespace(a=1) %}{% set n.a = 2 %}{{ n.a }}", "2"),
    ("{{ strftime_now is defined }} {{ strftime_now('%Y') | length }}", "True 4"),
    ("  {% if true %}\nx\n  {% endif %}\ny", "x\ny"),
]


class TestEnvironment:
    "Fails if something that published templates use is missing or differs"

    def test_what_a_template_is_given(self):
        template = (
            "{{ messages | length }} {{ add_generation_prompt }} {{ eos_token }} "
            "{{ tools is defined }} {{ tools is none }} {% for x in tools %}"
            "{% endfor %}"
        )
        chat, tool = Chat(FakeVocab(), template), {"type": "function"}
        asked = [llm.user("Hi")]
        assert spell(chat, chat.encode(asked)) == "1 True <|im_end|> False True "
        assert spell(chat, chat.encode(asked, Rendering((tool,)))).endswith(
            "True False "
        )

    @pytest.mark.parametrize(("template", "shown"), RENDERINGS)
    def test_rendering(self, template, shown):
        if "{% for" in template:
            template += "{% endfor %}"
        assert render(template) == shown
