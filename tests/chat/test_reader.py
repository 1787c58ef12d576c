"""Answers are split into thinking, text and calls, and nothing is lost."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_kvbranch.chat import Dialect, Reader
from llm_kvbranch.chat.attempts import Quotes
from llm_kvbranch.chat.dialect import Thinking
from llm_kvbranch.chat.formats import ANY, KEY, Bare, Form, Json, Object, Tagged

PARAMETERS = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "days": {"type": "integer"},
        "exact": {"type": "boolean"},
        "unit": {"enum": ["C", "F", None]},
        "near": {"$ref": "#/$defs/place"},
        "note": {"type": ["string", "null"]},
        "either": {"anyOf": [{"type": "integer"}, {"type": "string"}]},
        "any": {},
        "code": {"$ref": "#code"},
        "area": {"$ref": "#/$defs/a%20b"},
    },
    "$defs": {
        "place": {"type": "object"},
        "a b": {"type": "string"},
        "c": {"$anchor": "code", "type": "string"},
    },
}
TOOLS = [
    {"type": "function", "function": {"name": "forecast", "parameters": PARAMETERS}},
    {"type": "function", "function": {"name": "today"}},
]
THINKING = Thinking("<think>\n", "\n</think>\n\n")
THINKS = Dialect(THINKING)
ARGUMENTS = {"city": "Oslo", "days": 2}
CALL = ("forecast", ARGUMENTS)
JSON = json.dumps({"name": "forecast", "arguments": ARGUMENTS})
HERMES = f"<tool_call>\n{JSON}\n</tool_call>"
CODER = (
    "<tool_call>\n<function=forecast>\n<parameter=city>\nOslo\n</parameter>\n"
    "<parameter=days>\n2\n</parameter>\n</function>\n</tool_call>"
)
KIMI = (
    "<|tool_calls_section_begin|><|tool_call_begin|>functions.forecast:0"
    f"<|tool_call_argument_begin|>{json.dumps(ARGUMENTS)}<|tool_call_end|>"
    "<|tool_calls_section_end|>"
)

SAID = {
    "Hermes, Qwen 2.5 and 3": HERMES,
    "Hermes, its last tag left out": f"<tool_call>\n{JSON}",
    "Qwen 3 Coder": CODER,
    "Qwen 3 Coder, its first tag left out": CODER.removeprefix("<tool_call>\n"),
    "Llama 3": json.dumps({"name": "forecast", "parameters": ARGUMENTS}),
    "Llama 3.1": f"<|python_tag|>{JSON}",
    "functionary": f"<function=forecast>{json.dumps(ARGUMENTS)}</function>",
    "Mistral": f"[TOOL_CALLS][{JSON}]",
    "Mistral's newer ones": f"[TOOL_CALLS]forecast[ARGS]{json.dumps(ARGUMENTS)}",
    "Mistral without tags": f"forecast{json.dumps(ARGUMENTS)}",
    "Kimi": KIMI,
    "LFM2": '<|tool_call_start|>[forecast(city="Oslo", days=2)]<|tool_call_end|>',
    "LFM2 without tags": "[forecast(city='Oslo', days=2)]",
    "a Python call": "forecast(city='Oslo', days=2)",
    "a list": f"[{JSON}]",
    "fenced": f"```json\n{JSON}\n```",
    "fenced without a language": f"```\n[{JSON}]\n```",
    "arguments as a string": json.dumps(
        {"name": "forecast", "arguments": json.dumps(ARGUMENTS)}
    ),
    "OpenAI's": json.dumps({"type": "function", "function": json.loads(JSON)}),
}

# Forms that templates have, as they are learned
TAGS = Form(
    Tagged("<k>", "</k><v>", "</v>"), before="<call>", after="</call>", between="\n"
)
LIST = Form(Object(), begin="<calls>[", between=", ", end="]</calls>")
BARE = Form(Bare('<|"|>'), before="<|call>call:", after="<call|>")
SAYING_TYPES = Form(
    Tagged('<p n="', '" s="1">', "</p>", others=('" s="0">',)),
    begin="<all>",
    before='<one n="',
    middle='">',
    after="</one>",
    end="</all>",
)
NESTED = Form(
    Tagged("~<", ">", f"~</{KEY}>", item="item"),
    before='~<call n="',
    middle='">',
    after="~</call>",
)
WITH_IDS = Form(Json(), before="[C]", middle=f"[I]{ANY}[A]", id=ANY)


def read(
    text: str,
    dialect: Dialect = THINKS,
    size: int = 3,
    ended_by: str | None = "<eos>",
    prompt: str = "",
    tools=TOOLS,
) -> Reader:
    reader = Reader(dialect, tools, prompt)
    events = []
    for i in range(0, len(text), size):
        events += reader.feed(text[i : i + size])
    events += reader.end(ended_by)
    for kind, got in (("text", reader.text), ("reasoning", reader.reasoning)):
        assert "".join(e.text for e in events if e.kind == kind) == got
    assert [e.call for e in events if e.kind == "call"] == reader.calls
    return reader


def calls(reader: Reader) -> list[tuple[str, dict]]:
    return [(call.name, call.arguments) for call in reader.calls]


class TestCalls:
    "Fails if a call is not found: the user would see it as text"

    @pytest.mark.parametrize("size", [1, 4, 1000])
    @pytest.mark.parametrize("model", SAID)
    def test_every_known_form(self, model, size):
        reader = read(SAID[model], size=size)
        assert calls(reader) == [CALL]
        assert reader.text == reader.reasoning == ""

    @pytest.mark.parametrize(
        ("form", "text"),
        [
            (TAGS, "<call>forecast<k>city</k><v>Oslo</v><k>days</k><v>2</v></call>"),
            (LIST, f"<calls>[{JSON}]</calls>"),
            (BARE, '<|call>call:forecast{city:<|"|>Oslo<|"|>,days:2}<call|>'),
            (
                SAYING_TYPES,
                '<all><one n="forecast"><p n="city" s="1">Oslo</p>'
                '<p n="days" s="0">2</p></one></all>',
            ),
            (
                NESTED,
                '~<call n="forecast">~<city>Oslo~</city>~<days>2~</days>~</call>',
            ),
        ],
    )
    @pytest.mark.parametrize("size", [1, 1000])
    def test_a_template_s_own_form(self, form, text, size):
        reader = read(text, Dialect(forms=(form,)), size)
        assert calls(reader) == [CALL]
        assert reader.text == ""

    def test_several(self):
        for text in (
            f'{HERMES}\n<tool_call>{{"name": "today"}}</tool_call>',
            f'[{JSON}, {{"name": "today", "arguments": {{}}}}]',
            f'{JSON}; {{"name": "today", "parameters": null}}',
            "[forecast(city='Oslo', days=2), today()]",
        ):
            reader = read(text)
            assert calls(reader) == [CALL, ("today", {})], text
            assert len({call.id for call in reader.calls}) == 2
            assert reader.text == ""

    @pytest.mark.parametrize("size", [1, 3, 1000])
    def test_a_tag_that_another_begins_with(self, size):
        form = Form(Json(), before="~~~~<call>", middle="<", after="~~~~")
        text = f"~~~~<call>forecast<{json.dumps(ARGUMENTS)}~~~~"
        reader = read(f"{text}\n{text}", Dialect(forms=(form,)), size)
        assert calls(reader) == [CALL, CALL]
        assert reader.text == ""

    def test_comes_when_it_is_complete(self):
        reader = Reader(THINKS, TOOLS)
        assert reader.feed(HERMES[:-1]) == []
        (event,) = reader.feed(HERMES[-1])
        assert event.call == reader.calls[0]

    def test_its_text_stays_before_between_and_behind_it(self):
        reader = read(f"Let me see.\n\n{HERMES}\n and \n{CODER}\n\nThat's it.")
        kinds = [(part.kind, part.text) for part in reader.parts]
        assert kinds == [
            ("text", "Let me see."),
            ("call", ""),
            ("text", "and"),
            ("call", ""),
            ("text", "That's it."),
        ]

    def test_the_model_s_own_ids(self):
        dialect = Dialect(forms=(WITH_IDS,))
        text = "[C]today[I]abc123def[A]{}"
        reader = read(text + text, dialect)
        first, second = (call.id for call in reader.calls)
        assert first == "abc123def"
        assert second.startswith("call_")  # ids are unique
        (call,) = read(KIMI).calls
        assert call.id == "functions.forecast:0"

    def test_ids_of_templates_that_ask_for_nine_letters(self):
        (call,) = read(HERMES, Dialect(short_ids=True)).calls
        assert len(call.id) == 9
        assert call.id.isalnum()


class TestValues:
    "Fails if an argument's type is not what the tool asks for"

    @pytest.mark.parametrize(
        ("key", "text", "value"),
        [
            ("city", "75001", "75001"),
            ("city", '{"a": 1}', '{"a": 1}'),
            ("city", '"quoted"', '"quoted"'),
            ("city", "null", "null"),
            ("city", "", ""),
            ("city", "  two\nlines\n", "  two\nlines\n"),
            ("city", "if a < b: </parameter>\nelse", "if a < b: </parameter>\nelse"),
            ("days", "-3", -3),
            ("days", "soon", "soon"),
            ("exact", "True", True),
            ("unit", "null", None),
            ("unit", "C", "C"),
            ("near", '{"x": [1.5]}', {"x": [1.5]}),
            ("note", "null", None),
            ("note", "12", "12"),
            ("either", "12", 12),
            ("either", "12 or so", "12 or so"),
            ("any", "[1]", [1]),
            ("any", "word", "word"),
            ("code", "12", "12"),
            ("area", "12", "12"),
            ("unheard", "1", 1),
        ],
    )
    def test_text_between_tags(self, key, text, value):
        said = (
            f"<function=forecast>\n<parameter={key}>\n{text}\n</parameter>\n</function>"
        )
        assert calls(read(said)) == [("forecast", {key: value})]

    def test_lists_and_objects_of_tags(self):
        text = (
            '~<call n="forecast">~<near>~<tags>~<item>a~</item>~<item>b~</item>~</tags>'
            "~<at>~<x>1~</x>~</at>~</near>~<city>~<b>x~</b>~</city>~</call>"
        )
        near = {"tags": ["a", "b"], "at": {"x": 1}}
        assert calls(read(text, Dialect(forms=(NESTED,)))) == [
            ("forecast", {"near": near, "city": "~<b>x~</b>"})
        ]

    def test_python_literals(self):
        text = r"""[forecast(city='it\'s "Oslo"\n', exact=True, note=None, any=[1, -2.5,
            {"k": (true, null)}])]"""
        assert calls(read(text)) == [
            (
                "forecast",
                {
                    "city": 'it\'s "Oslo"\n',
                    "exact": True,
                    "note": None,
                    "any": [1, -2.5, {"k": [True, None]}],
                },
            )
        ]


class TestNoCalls:
    "Fails if something is run that the model did not ask for"

    @pytest.mark.parametrize("size", [1, 4, 1000])
    @pytest.mark.parametrize(
        "text",
        [
            "It will rain.",
            '{"name": "Rex", "age": 3}',
            '{"name": "today"}',  # any object may have a name
            '{"name": "launch", "arguments": {}}',
            f"{JSON} is what I would write.",
            f"[{JSON}] is what I would write.",
            f"[{JSON}",
            "[1, 2, 3]",
            "[launch(x=1)]",
            "[today](https://example.org)",
            "forecast is what I would call",
            '<tool_call>{"name": "launch", "arguments": {}}</tool_call>',
            "<tool_call>nonsense</tool_call>",
            "<tool_call>",
            "{",
            "```\ncode\n```",
            "[forecast(city=__import__('os'))]",
            "[forecast('Oslo')]",
            "today",
            f"It writes `{HERMES}` for that.",
            f'It writes "{HERMES}" for that.',
            f"It writes:\n```\n{HERMES}\n```\n",
        ],
    )
    def test_is_text(self, text, size):
        reader = read(text, size=size)
        assert not reader.calls
        assert reader.text == text

    @pytest.mark.parametrize(
        "arguments",
        [
            '{"city": NaN}',
            '{"days": Infinity}',
            '{"days": 1e999}',
            '{"days": 01}',
            '{"city": "a", "city": "b"}',
            '{"city": "\\ud83d"}',
            '{"city": "a\nb"}',
            '{"city": "a",}',
            "[1]",
            '"{"',
            '{"any": ' + "[" * 100 + "]" * 100 + "}",
        ],
    )
    def test_json_is_strict(self, arguments):
        text = (
            f'<tool_call>{{"name": "forecast", "arguments": {arguments}}}</tool_call>'
        )
        reader = read(text)
        assert not reader.calls
        assert reader.text == text

    def test_no_arguments_are_an_empty_object(self):
        text = '<tool_call>{"name": "today", "arguments": null}</tool_call>'
        assert calls(read(text)) == [("today", {})]

    @pytest.mark.parametrize("ended_by", [None, "<eos>"])
    @pytest.mark.parametrize("model", SAID)
    def test_no_beginning_is_a_call_with_other_arguments(self, model, ended_by):
        text = SAID[model]
        for n in range(len(text)):
            reader = read(text[:n], ended_by=ended_by)
            assert calls(reader) in ([], [CALL]), text[:n]
            if not reader.calls:
                assert reader.text == text[:n]

    def test_one_that_is_cut_off_is_text(self):
        reader = read(f"{HERMES}\n{CODER[:-30]}", ended_by=None)
        assert calls(reader) == [CALL]
        assert reader.text == CODER[:-30]

    def test_a_missing_last_tag_is_a_cut_unless_the_model_ended_there(self):
        assert not read(f"<tool_call>{JSON}", ended_by=None).calls

    def test_an_unknown_one_among_others_is_text(self):
        unknown = '{"name": "launch", "arguments": {"at": 3}}'
        reader = read(f"<calls>[{JSON}, {unknown}]</calls>", Dialect(forms=(LIST,)))
        assert calls(reader) == [CALL]
        assert reader.text == unknown
        reader = read(f"<tool_call>{unknown}</tool_call>{HERMES}")
        assert calls(reader) == [CALL]
        assert reader.text == f"<tool_call>{unknown}</tool_call>"

    def test_without_tools_there_is_none(self):
        reader = read(HERMES, tools=[])
        assert reader.text == HERMES


class TestThinking:
    "Fails if thinking is shown as the answer, or run"

    @pytest.mark.parametrize("size", [1, 5, 1000])
    def test_is_separated(self, size):
        reader = read("<think>\nHm, so.\n</think>\n\nYes. ", size=size)
        assert (reader.reasoning, reader.text) == ("Hm, so.", "Yes. ")
        reader = read("Hm, so.\n</think>\nYes.", size=size, prompt="<b><think>\n")
        assert (reader.reasoning, reader.text) == ("Hm, so.", "Yes.")

    def test_the_prompt_may_have_closed_it(self):
        reader = read("</think>\n\nYes.", prompt="<b><think>\n\n</think>\n\n")
        assert (reader.reasoning, reader.text) == ("", "Yes.")
        reader = read("Yes.", prompt="<think>\nHm.</think>Oh")
        assert (reader.reasoning, reader.text) == ("", "Yes.")

    def test_is_found_where_the_template_shows_none(self):
        reader = read("<think>Hm.</think>Yes.", Dialect())
        assert (reader.reasoning, reader.text) == ("Hm.", "Yes.")

    def test_the_word_in_an_answer_is_text(self):
        text = "Write <think> and </think> around it."
        assert read(text).text == text

    def test_a_call_in_it_is_thought(self):
        thought = f"I could say {HERMES} or\n{CODER}\nbut no."
        reader = read(f"<think>{thought}</think>It is sunny.")
        assert not reader.calls
        assert (reader.reasoning, reader.text) == (thought, "It is sunny.")

    def test_a_call_behind_it(self):
        reader = read(f"<think>\nHm.\n</think>\n\n{HERMES}")
        assert calls(reader) == [CALL]
        assert (reader.reasoning, reader.text) == ("Hm.", "")

    def test_a_call_that_ends_the_answer_ends_it(self):
        reader = read(f"Hm.\n{CODER}\n{HERMES}", prompt="<think>\n")
        assert calls(reader) == [CALL, CALL]
        assert (reader.reasoning, reader.text) == ("Hm.", "")

    @pytest.mark.parametrize(
        ("text", "ended_by"),
        [(f"Hm.\n{HERMES}", None), (f"Such as {HERMES}", "<eos>")],
    )
    def test_but_not_one_that_is_cut_off_or_in_a_sentence(self, text, ended_by):
        reader = read(text, prompt="<think>\n", ended_by=ended_by)
        assert not reader.calls
        assert reader.reasoning == text

    def test_the_answer_begins_behind_it(self):
        reader = Reader(THINKS, TOOLS, "<think>")
        assert not reader.in_answer
        reader.feed("Hm.</think>")
        assert reader.in_answer
        assert Reader(Dialect()).in_answer
        assert not Reader(THINKS).in_answer  # it may begin
        assert Reader(THINKS, (), "<think></think>").in_answer

    def test_tags_around_text_are_left_out(self):
        dialect = Dialect(Thinking("<T>", "</T>"), ("<|SAY|>",), ("<|SAID|>",))
        reader = read("<T>Hm.</T><|SAY|>Yes.<|SAID|>", dialect)
        assert (reader.reasoning, reader.text) == ("Hm.", "Yes.")
        reader = Reader(dialect)
        reader.feed("<T>Hm.</T>")
        assert not reader.in_answer
        reader.feed("<|SAY|>")
        assert reader.in_answer

    def test_words_in_the_prompt_that_it_begins_with(self):
        dialect = Dialect(Thinking("My steps:\n", "\n[FINAL]\n"))
        reader = read("One.\n[FINAL]\nYes.", dialect, prompt="<bot>\nMy steps:\n")
        assert (reader.reasoning, reader.text) == ("My steps:\nOne.", "Yes.")


class TestQuotes:
    "A mark in code or quotes is text"

    @pytest.mark.parametrize(
        ("text", "quoted"),
        [
            ("Write `", True),
            ("Write `a` and ", False),
            ("Write ``a` ", True),
            ("One ` of them.\n\nThen ", False),
            ("```\ncode\n\nmore ", True),
            ("```\ncode\n```\n", False),
            ("```\ncode\n   ~~~ ", False),
            ('Say "', True),
            ("Say “", True),
        ],
    )
    def test_whether(self, text, quoted):
        assert Quotes().holds(text) is quoted

    @given(st.lists(st.sampled_from(["`", "```", "~~~", "\n", " ", "a", '"', "(“"])))
    def test_asked_at_each_place(self, pieces):
        quotes, text = Quotes(), ""
        for piece in pieces:
            text += piece
            assert quotes.holds(text) == Quotes().holds(text)

    def test_each_character_is_read_once(self):
        "A model that repeats itself may write thousands of marks"
        reads = Counter()

        class Text(str):
            def rstrip(self, *chars):
                reads[quotes._at] += 1
                return super().rstrip(*chars)

        quotes, text = Quotes(), ""
        for _ in range(100):
            text += "`a` and <call> "
            assert not quotes.holds(Text(text))
        assert len(reads) == 100


class TestTokens:
    "Fails if control tokens are shown, or parts do not know their tokens"

    def test_control_tokens_are_not_shown(self):
        reader = Reader(THINKS, TOOLS)
        for text, control in (
            ("<think>", True),
            ("Hm.", False),
            ("<|odd|>", True),
            ("</think>", True),
            ("Yes", False),
            ("<|odd|>", True),
            ("<|odd|>", False),
        ):
            reader.feed(text, control)
        reader.end("<|end|>")
        assert (reader.reasoning, reader.text) == ("Hm.", "Yes<|odd|>")

    def test_those_of_a_call_are_shown_where_it_is_none(self):
        reader = Reader(THINKS, TOOLS)
        for text, control in (
            ("<tool_call>", True),
            ('{"name": "launch"}', False),
            ("</tool_call>", True),
        ):
            reader.feed(text, control)
        reader.end("<|end|>")
        assert reader.text == '<tool_call>{"name": "launch"}</tool_call>'

    def test_parts_say_which_tokens_they_are(self):
        tokens = ["<think>", "\n", "Hm", ".", "\n</think>", "\n\n", "So", ":", "\n"]
        tokens += ["<tool_call>", JSON[:9], JSON[9:], "</tool_call>", "\n", "Done"]
        reader = Reader(THINKS, TOOLS)
        for token in tokens:
            reader.feed(token)
        reader.end("<|end|>")
        assert [(p.kind, p.begin, p.end) for p in reader.parts] == [
            ("reasoning", 2, 4),
            ("text", 6, 8),
            ("call", 9, 13),
            ("text", 14, 15),
        ]

    def test_text_comes_at_once(self):
        reader = Reader(THINKS, TOOLS)

        def feed(text: str) -> str:
            return "".join(event.text for event in reader.feed(text))

        assert feed("It") == "It"
        assert feed(" will be <b>fine</b>") == " will be <b>fine</b>"
        assert feed(" or <tool") == " or"
        assert feed("box") == " <toolbox"

    @pytest.mark.parametrize(
        "begins",
        [
            "[see",
            '{"titles"',
            '{"name": "Rex"',
            "`x",
            "```py",
            "for",
            "forecasts",
            "<th",
        ],
    )
    def test_an_answer_that_begins_like_a_call_comes_as_soon_as_it_differs(
        self, begins
    ):
        reader = Reader(THINKS, TOOLS)
        events = reader.feed(begins + " ")
        assert "".join(event.text for event in events) == begins


def fragments() -> list[str]:
    found = [
        "<think>",
        "</think>",
        "\n",
        " ",
        "`",
        '"',
        "word",
        "launch",
        "<",
        "[",
        "]",
    ]
    return [*found, *SAID.values(), CODER[:40], CODER[40:], HERMES[:20], HERMES[20:]]


@given(
    st.lists(st.sampled_from(fragments()), max_size=7),
    st.integers(1, 9),
    st.sampled_from([None, "<eos>"]),
)
def test_it_makes_no_difference_how_the_text_is_cut_into_tokens(pieces, size, ended_by):
    text = "".join(pieces)

    def found(size: int) -> list[tuple]:
        reader = read(text, size=size, ended_by=ended_by)
        return [
            (part.kind, part.text, part.call and (part.call.name, part.call.arguments))
            for part in reader.parts
        ]

    assert found(size) == found(len(text) or 1)


@given(st.lists(st.text(alphabet='<>{}[]()"=tol_calnw \n', max_size=9)))
def test_text_that_is_no_call_is_all_given_out(pieces):
    text = "".join(pieces)
    reader = read(text, Dialect())
    if not reader.calls:
        assert reader.text == text
